"""Object keypoint similarity, the overlap of keypoints (cocoeval.py: computeOks)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.protocols import EPS

Floats = NDArray[np.float64]


def keypoint_similarity(points: Floats, thing: Mapping[str, Any], sigmas: Floats) -> Floats:
    """[D] similarity to one object, 0..1.

    Args:
        points: [D, J, 2] x and y of detected keypoints, pixels.
        thing: COCO's annotation: keypoints, bbox (xywh) and area. Of one without labelled keypoints the distance counts
            from a box of three times its own.
        sigmas: [J] how far people differ on a keypoint, as a share of the object's size.
    """
    own = np.reshape(np.asarray(thing["keypoints"], np.float64), (-1, 3))
    seen = own[:, 2] > 0
    if seen.any():
        away = points - own[:, :2]
    else:
        corner, side = np.array(thing["bbox"][:2], np.float64), np.array(thing["bbox"][2:], np.float64)
        away = np.maximum(0, corner - side - points) + np.maximum(0, points - (corner + side * 2))
        seen = ~seen
    errors = (away**2).sum(axis=2) / (sigmas * 2) ** 2 / (thing["area"] + EPS) / 2
    return np.asarray(np.exp(-errors[:, seen]).sum(axis=1) / seen.sum())
