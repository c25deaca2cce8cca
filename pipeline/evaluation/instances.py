"""Objects of one image as pictures need them: from COCO results, from COCO annotations, or from a record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from pipeline.data import rle

if TYPE_CHECKING:  # it needs pyarrow, and whoever scores files of results does not
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


def from_results(
    results: Sequence[Mapping[str, Any]], category_ids: Sequence[int], min_score: float = 0.5
) -> Instances:
    """COCO results of one image with a score of at least `min_score`; class c has category_ids[c - 1].

    A result without a box gets that of its mask, or of its keypoints.
    """
    kept = [result for result in results if result["score"] >= min_score]
    classes = {category: c for c, category in enumerate(category_ids, start=1)}
    masks = None
    if all("segmentation" in result for result in kept):
        masks = [_cut(coco_mask.decode(result["segmentation"])) for result in kept]
    keypoints = None
    if all("keypoints" in result for result in kept):
        keypoints = [found_points(np.reshape(result["keypoints"], (-1, 3))) for result in kept]
    return Instances(
        boxes=_corners([_box(result) for result in kept]),
        classes=np.array([classes[result["category_id"]] for result in kept], dtype=np.int64),
        scores=np.array([result["score"] for result in kept], dtype=np.float64),
        masks=masks,
        keypoints=keypoints,
    )


def from_annotations(
    annotations: Sequence[Mapping[str, Any]], category_ids: Sequence[int], height: int, width: int
) -> Instances:
    """Ground truth of one image of these pixels in COCO's format; class c has category_ids[c - 1].

    With masks where all have a segmentation, and keypoints where all have them.
    """
    classes = {category: c for c, category in enumerate(category_ids, start=1)}
    masks, keypoints = None, None
    if all("segmentation" in a for a in annotations):
        codes = [rle.from_segmentation(a["segmentation"], height, width) for a in annotations]
        masks = [_cut(coco_mask.decode({"size": [height, width], "counts": counts})) for counts in codes]
    if all("keypoints" in a for a in annotations):
        keypoints = [np.array(a["keypoints"], dtype=np.float64).reshape(-1, 3) for a in annotations]
    return Instances(
        boxes=_corners([a["bbox"] for a in annotations]),
        classes=np.array([classes[a["category_id"]] for a in annotations], dtype=np.int64),
        masks=masks,
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=np.bool_),
        keypoints=keypoints,
    )


def from_record(record: "Record") -> Instances:
    """A sample's ground truth, crowd regions included."""
    size = [record["height"], record["width"]]
    return Instances(
        boxes=np.array(record["boxes"], dtype=np.float64).reshape(-1, 4),
        classes=np.array(record["classes"], dtype=np.int64),
        masks=[_cut(coco_mask.decode({"size": size, "counts": counts})) for counts in record["rles"]],
        crowd=np.array(record["crowd"], dtype=np.bool_),
        keypoints=[np.array(points, dtype=np.float64).reshape(-1, 3) for points in record["keypoints"]],
    )


def cut_out(instances: Instances, window: tuple[int, int, int, int]) -> Instances:
    """What lies in a window x0, y0, x1, y1 of the image, in the window's own pixels; boxes and masks are clipped."""
    x0, y0, x1, y1 = window
    corner, limit = np.array([x0, y0, x0, y0]), np.array([x1, y1, x1, y1])
    boxes = np.clip(instances.boxes, corner, limit) - corner
    inside = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).tolist()
    masks, keypoints = None, None
    if instances.masks is not None:
        masks = [_clip(instances.masks[i], window) for i in inside]
    if instances.keypoints is not None:
        keypoints = [instances.keypoints[i] - [x0, y0, 0] for i in inside]
    return Instances(
        boxes=boxes[inside],
        classes=instances.classes[inside],
        scores=None if instances.scores is None else instances.scores[inside],
        masks=masks,
        crowd=None if instances.crowd is None else instances.crowd[inside],
        keypoints=keypoints,
    )


def found_points(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Predicted keypoints [J, 3] x, y, score as seen ones: a network finds each, and says nothing of what is hidden."""
    return np.concatenate([points[:, :2], np.full((len(points), 1), 2.0)], axis=1)


def _cut(mask: Pixels) -> Crop:
    """A full mask [H, W] as the crop around what is set."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, np.zeros((0, 0), dtype=np.uint8)
    y0, x0 = int(rows[0]), int(columns[0])
    return y0, x0, np.ascontiguousarray(mask[y0 : rows[-1] + 1, x0 : columns[-1] + 1])


def _clip(crop: Crop, window: tuple[int, int, int, int]) -> Crop:
    """The part of a mask that lies in a window, in the window's pixels."""
    y0, x0, mask = crop
    left, top, right, bottom = window
    part = mask[max(0, top - y0) : max(0, bottom - y0), max(0, left - x0) : max(0, right - x0)]
    return max(0, y0 - top), max(0, x0 - left), np.ascontiguousarray(part)


def _corners(boxes: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """[N, 4] xywh -> xyxy."""
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return corners


def _box(result: Mapping[str, Any]) -> Sequence[float]:
    """xywh of a result."""
    if "bbox" in result:
        return list(result["bbox"])
    if "segmentation" in result:
        return [float(v) for v in coco_mask.toBbox(result["segmentation"])]
    points = np.reshape(result["keypoints"], (-1, 3))[:, :2]
    return [*points.min(axis=0).tolist(), *np.ptp(points, axis=0).tolist()]
