"""Detections -> COCO results: masks as compressed run lengths, made from crops without ever building a full image.

COCO's run-length code reads an image column by column and stores the lengths of runs, zeros first; the lengths are
written as text, five bits a character (maskApi.c: rleEncode, rleToString). The bytes here equal pycocotools'.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from model.config import Paste
from model.ops.masks import paste_crops
from model.types import Detections
from pipeline.data import rle
from pipeline.errors import UserError
from pipeline.evaluation.mask_runs import exact_runs

Integers = npt.NDArray[np.int64]


def detections_to_results(
    detections: Detections,
    sample_id: int,
    category_ids: Sequence[int],
    rule: Paste = "exact",
    threshold: float = 0.5,
) -> list[dict[str, Any]]:
    """The detections of one image in COCO's results format, in the same order.

    Args:
        detections: N boxes, scores, classes 1..K and perhaps masks and keypoints, in pixels of the original image.
        sample_id: becomes image_id.
        category_ids: K ids of the data set's categories; class c has category_ids[c - 1].
        rule: how masks are pasted, see model/ops/masks.py.
        threshold: mask probability, 0..1.

    Returns:
        N of {"image_id", "category_id", "bbox": [x, y, width, height] in pixels, "score"}, and with masks
        "segmentation": {"size": [height, width], "counts": text}, with keypoints "keypoints": J times x, y (of a
        pixel's number, as COCO's annotations) and the keypoint's score. As `json.dump` takes them.
    """
    classes: list[int] = detections.classes.tolist()
    wrong = sorted({c for c in classes if not 1 <= c <= len(category_ids)})
    if wrong:
        raise UserError(
            f"detected classes must be 1..{len(category_ids)} (the data set's categories), got {wrong}; "
            "evaluate on shards with the classes that the model was trained on"
        )
    boxes = detections.boxes.double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    results: list[dict[str, Any]] = [
        {"image_id": sample_id, "category_id": category_ids[c - 1], "bbox": box, "score": score}
        for c, box, score in zip(classes, boxes.tolist(), detections.scores.tolist(), strict=True)
    ]
    if detections.masks is not None:
        height, width = detections.size
        masks, at = detections.masks.cpu(), detections.boxes.cpu()
        if rule == "exact":
            counts = rle.compress_many(*exact_runs(masks, at, detections.size, threshold))
        else:
            crops = paste_crops(masks, at, detections.size, rule, threshold)
            counts = encode_crops([(y0, x0, crop.numpy()) for y0, x0, crop in crops], height, width)
        for result, text in zip(results, counts, strict=True):
            result["segmentation"] = {"size": [height, width], "counts": text.decode("ascii")}
    if detections.keypoints is not None:
        points = detections.keypoints.double().cpu()
        points[..., :2] -= 0.5  # a pixel's number is half a pixel before its centre
        for result, numbers in zip(results, points.flatten(1).tolist(), strict=True):
            result["keypoints"] = numbers
    return results


def encode_crop(crop: npt.NDArray[Any], y0: int, x0: int, height: int, width: int) -> bytes:
    """COCO's compressed run lengths of an image [height, width] that is `crop` [h, w] at (y0, x0) and else zero."""
    return encode_crops([(y0, x0, crop)], height, width)[0]


def encode_crops(crops: Sequence[tuple[int, int, npt.NDArray[Any]]], height: int, width: int) -> list[bytes]:
    """`encode_crop` for N masks (y0, x0, crop [h, w]) of one image at once; column-major crops are quickest."""
    if not crops:
        return []
    runs = [_run_lengths(y0, x0, crop, height, width) for y0, x0, crop in crops]
    return rle.compress_many(np.concatenate(runs), np.array([len(r) for r in runs]))


def _run_lengths(y0: int, x0: int, crop: npt.NDArray[Any], height: int, width: int) -> Integers:
    """Lengths of the runs of the full image, column by column, zeros first (the first may be 0)."""
    h, w = crop.shape
    if crop.size == 0:
        return np.array([height * width], dtype=np.int64)
    if y0 < 0 or x0 < 0 or y0 + h > height or x0 + w > width:
        raise ValueError(
            f"a mask crop must lie in its image of {height} x {width} pixels, got {h} x {w} at row {y0}, column {x0}; "
            "cut it to the image first"
        )
    # A zero under every column keeps runs of neighbouring columns apart, as the rest of the image does. Only a crop
    # of the image's full height has nothing there: its runs go on over the column's end.
    stride = h if h == height else h + 1
    columns = np.zeros((w, stride), dtype=np.bool_)
    columns[:, :h] = crop.T
    flat = columns.reshape(-1)
    inner = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    changes = np.concatenate(([0], inner)) if flat[0] else inner
    changes = (changes // stride + x0) * height + changes % stride + y0
    if flat[-1]:
        changes = np.concatenate((changes, [(x0 + w) * height]))
    end = height * width
    if changes.size and changes[-1] == end:
        changes = changes[:-1]
    return np.diff(changes, prepend=0, append=end)
