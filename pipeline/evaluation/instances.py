"""Objects of one image as pictures need them: from detections, from COCO results, or from the ground truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from model.config import Paste
from model.ops.masks import paste_crops
from model.types import Detections
from pipeline.data.records import Record

Pixels = npt.NDArray[np.uint8]
Crop = tuple[int, int, Pixels]  # y0, x0 (pixels of the image), [h, w] of 0 and 1


@dataclass(frozen=True)
class Instances:
    """N objects of one image, in its pixels."""

    boxes: npt.NDArray[np.float64]  # [N, 4] xyxy
    classes: npt.NDArray[np.int64]  # [N], 1..K
    scores: npt.NDArray[np.float64] | None = None  # [N]; None for ground truth
    masks: Sequence[Crop] | None = None  # N crops
    crowd: npt.NDArray[np.bool_] | None = None  # [N]; drawn grey and hatched
    keypoints: Sequence[npt.NDArray[np.float64]] | None = None  # N x [J or 0, 3]: x, y of a pixel, visibility 0..2


def from_detections(
    detections: Detections, min_score: float = 0.5, rule: Paste = "exact", threshold: float = 0.5
) -> Instances:
    """What was found with a score of at least `min_score`; `rule` and `threshold` as in model/ops/masks.py."""
    keep = (detections.scores >= min_score).cpu()
    boxes = detections.boxes.detach().cpu()[keep]
    masks = None
    if detections.masks is not None:
        crops = paste_crops(detections.masks.cpu()[keep], boxes, detections.size, rule, threshold)
        masks = [(y0, x0, crop.numpy()) for y0, x0, crop in crops]
    keypoints = None
    if detections.keypoints is not None:
        found = detections.keypoints.detach().cpu()[keep].double().numpy()
        keypoints = [_found_points(points - [0.5, 0.5, 0.0]) for points in found]
    return Instances(
        boxes=boxes.double().numpy(),
        classes=detections.classes.cpu()[keep].numpy(),
        scores=detections.scores.detach().cpu()[keep].double().numpy(),
        masks=masks,
        keypoints=keypoints,
    )


def from_results(
    results: Sequence[Mapping[str, Any]], category_ids: Sequence[int], min_score: float = 0.5
) -> Instances:
    """COCO results of one image with a score of at least `min_score`; class c has category_ids[c - 1]."""
    kept = [result for result in results if result["score"] >= min_score]
    classes = {category: c for c, category in enumerate(category_ids, start=1)}
    boxes = np.array([result["bbox"] for result in kept], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # [N, 4] xywh -> xyxy
    masks = None
    if all("segmentation" in result for result in kept):
        masks = [_cut(coco_mask.decode(result["segmentation"])) for result in kept]
    keypoints = None
    if all("keypoints" in result for result in kept):
        keypoints = [_found_points(np.reshape(result["keypoints"], (-1, 3))) for result in kept]
    return Instances(
        boxes=boxes,
        classes=np.array([classes[result["category_id"]] for result in kept], dtype=np.int64),
        scores=np.array([result["score"] for result in kept], dtype=np.float64),
        masks=masks,
        keypoints=keypoints,
    )


def from_record(record: Record) -> Instances:
    """A sample's ground truth, crowd regions included."""
    size = [record["height"], record["width"]]
    return Instances(
        boxes=np.array(record["boxes"], dtype=np.float64).reshape(-1, 4),
        classes=np.array(record["classes"], dtype=np.int64),
        masks=[_cut(coco_mask.decode({"size": size, "counts": counts})) for counts in record["rles"]],
        crowd=np.array(record["crowd"], dtype=np.bool_),
        keypoints=[np.array(points, dtype=np.float64).reshape(-1, 3) for points in record["keypoints"]],
    )


def _found_points(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Predicted keypoints [J, 3] x, y, score as seen ones: a network finds each, and says nothing of what is hidden."""
    return np.concatenate([points[:, :2], np.full((len(points), 1), 2.0)], axis=1)


def _cut(mask: Pixels) -> Crop:
    """A full mask [H, W] as the crop around what is set."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, np.zeros((0, 0), dtype=np.uint8)
    y0, x0 = int(rows[0]), int(columns[0])
    return y0, x0, np.ascontiguousarray(mask[y0 : rows[-1] + 1, x0 : columns[-1] + 1])
