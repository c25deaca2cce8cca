"""Overlap of detections and objects of one picture as pycocotools has it: IoU of boxes or masks, OKS of keypoints."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipeline.evaluation.coco_truth import Json, Truth
from pipeline.evaluation.oks import keypoint_similarity

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
    """[D, G]"""
    points = np.array([r["keypoints"] for r in found], dtype=np.float64).reshape(len(found), len(sigmas), 3)[..., :2]
    columns = [keypoint_similarity(points, annotation, sigmas) for annotation in annotations]
    return np.stack(columns, axis=1) if columns else np.zeros((len(found), 0))
