"""Overlap of detections and objects of one picture as pycocotools has it: IoU of boxes or masks, OKS of keypoints."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.evaluation.coco_truth import Json, Truth

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# (numbers of results, numbers of annotations, which of these are crowd or None) -> [D, G]
Overlap = Callable[[Ints, Ints, NDArray[np.bool_] | None], Floats]


def overlaps_of(truth: Truth, found: Sequence[Json], annotations: Sequence[Json]) -> Overlap:
    """How much results and annotations overlap, which are given by their numbers."""
    if truth.protocol.geometry == "keypoints":
        sigmas = np.array(truth.sigmas)
        return lambda d, g, _: _oks([found[i] for i in d], [annotations[i] for i in g], sigmas)

    key = truth.protocol.geometry

    def overlap(d: Ints, g: Ints, crowd: NDArray[np.bool_] | None) -> Floats:
        if not (len(d) and len(g)):
            return np.zeros((len(d), len(g)))
        # of a crowd region the overlap is the share of the detection that lies in it
        flags = np.zeros(len(g), np.uint8) if crowd is None else crowd.astype(np.uint8)
        ours, theirs = [found[i][key] for i in d.tolist()], [annotations[i][key] for i in g.tolist()]
        if key == "bbox":
            return np.asarray(coco_mask.iou(np.array(ours, float), np.array(theirs, float), flags), dtype=np.float64)
        return np.asarray(coco_mask.iou(ours, theirs, flags), dtype=np.float64)

    return overlap


def _oks(found: Sequence[Json], annotations: Sequence[Json], sigmas: Floats) -> Floats:
    """[D, G] object keypoint similarity.

    Of an object without labelled keypoints the distance is that from its box, made larger by its own size on each side.
    """
    result = np.zeros((len(found), len(annotations)))
    if not (len(found) and len(annotations)):
        return result
    points = np.array([r["keypoints"] for r in found], dtype=np.float64).reshape(len(found), -1, 3)
    for g, annotation in enumerate(annotations):
        labelled = np.array(annotation["keypoints"], dtype=np.float64).reshape(-1, 3)
        x, y, width, height = annotation["bbox"]
        seen = labelled[:, 2] > 0
        if seen.any():
            dx, dy = points[..., 0] - labelled[:, 0], points[..., 1] - labelled[:, 1]  # [D, J]
        else:
            dx = np.maximum(0, x - width - points[..., 0]) + np.maximum(0, points[..., 0] - (x + 2 * width))
            dy = np.maximum(0, y - height - points[..., 1]) + np.maximum(0, points[..., 1] - (y + 2 * height))
            seen = np.ones(len(labelled), dtype=np.bool_)
        error = (dx**2 + dy**2) / (2 * sigmas) ** 2 / (annotation["area"] + np.spacing(1)) / 2
        result[:, g] = np.exp(-error[:, seen]).sum(axis=1) / seen.sum()
    return result
