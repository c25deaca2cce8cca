"""What a record knows of its picture, moved with it: boxes, masks, keypoints of instances, and proposals.

Legend: N instances without crowds, P proposals, J keypoints, C crop side, h x w input.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model.config import MaskTarget
from pipeline.data import rle
from pipeline.data.augment import Geometry
from pipeline.data.records import Record

_THIN_PX = 0.01  # a box thinner than this (pixels of the picture) is nothing to learn from, and has no logarithm


@dataclass(frozen=True)
class GroundTruth:
    """N instances in pixels of the input."""

    source: list[int]  # N, index in the record each comes from
    boxes: NDArray[np.float32]  # [N, 4] xyxy
    classes: NDArray[np.int64]  # [N], 1..K
    masks: NDArray[np.uint8]  # [N, C, C] inside its box, or [N, h, w] for the target "image"
    keypoints: NDArray[np.float32] | None  # [N, J, 3]; zeros where an instance has none


def move(record: Record, geometry: Geometry, target: MaskTarget, flip_order: Sequence[int] | None) -> GroundTruth:
    """What of the ground truth is seen in the input that `geometry` makes.

    An instance inside the window keeps its annotated box and its crop (mirrored by a flip). One that the window cuts
    gets the box of the mask pixels that are left, within its annotated box, and a new crop of the exact mask. One
    without such a pixel is dropped.

    Args:
        record: the sample.
        geometry: what happens to its picture.
        target: "crop" or "image", see MaskConfig.target.
        flip_order: J keypoints, see source.Keypoints.flip; None: without keypoints.
    """
    keep = [i for i, crowd in enumerate(record["crowd"]) if not crowd]
    crops = {i: record["crops"][i] for i in keep}
    boxes = {i: record["boxes"][i] for i in keep}
    if not geometry.whole:
        x0, y0 = geometry.left, geometry.top
        x1, y1 = x0 + geometry.window_width, y0 + geometry.window_height
        for i in tuple(keep):
            box = boxes[i]
            if x0 <= box[0] and y0 <= box[1] and box[2] <= x1 and box[3] <= y1:
                continue
            clipped = [max(box[0], x0), max(box[1], y0), min(box[2], x1), min(box[3], y1)]
            seen = _see(record, i, clipped)
            if seen is None:
                keep.remove(i)
            else:
                boxes[i], crops[i] = seen
    own = move_boxes(np.array([boxes[i] for i in keep], np.float32).reshape(-1, 4), geometry)
    if target == "crop":
        masks = rle.unpack_crops([crops[i] for i in keep])
        masks = masks[:, :, ::-1] if geometry.flip else masks
    else:
        masks = np.zeros((len(keep), geometry.new_height, geometry.new_width), np.uint8)
        for slot, i in enumerate(keep):
            masks[slot] = _torchvision_mask(record, i, geometry)
    classes = np.array([record["classes"][i] for i in keep], np.int64)
    keypoints = None if flip_order is None else _move_keypoints(record, keep, geometry, flip_order)
    return GroundTruth(keep, own, classes, masks, keypoints)


def move_boxes(boxes: NDArray[np.float32], geometry: Geometry) -> NDArray[np.float32]:
    """Boxes [N, 4] xyxy of a picture, in the input that `geometry` makes of it."""
    moved = (boxes - np.array([geometry.left, geometry.top] * 2, np.float32)) * np.array(
        geometry.scales * 2, np.float32
    )
    if geometry.flip:
        moved[:, [0, 2]] = geometry.new_width - moved[:, [2, 0]]
    return moved


def move_proposals(record: Record, geometry: Geometry, most: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes [P, 4] xyxy in the input that `geometry` makes, and their scores [P]: the best `most` that are seen in it.

    They move as ground-truth boxes do, and are cut to the input.
    """
    boxes = move_boxes(np.array(record["proposals"], np.float32).reshape(-1, 4), geometry)
    boxes = np.clip(boxes, 0, np.array([geometry.new_width, geometry.new_height] * 2, np.float32))
    seen = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(axis=1))[:most]
    return boxes[seen], np.array(record["proposal_scores"], np.float32)[seen]


def input_mask(record: Record, i: int, geometry: Geometry) -> NDArray[np.uint8]:
    """Instance i's mask at the resolution of the input, read at pixel centres: uint8 [new_height, new_width] in 0/1."""
    mask = _window(record, i, geometry)
    if mask.shape != (geometry.new_height, geometry.new_width):
        rows = (2 * np.arange(geometry.new_height) + 1) * geometry.window_height // (2 * geometry.new_height)
        columns = (2 * np.arange(geometry.new_width) + 1) * geometry.window_width // (2 * geometry.new_width)
        mask = mask.T.take(rows, axis=1)[columns].T  # columns stay contiguous
    return mask[:, ::-1] if geometry.flip else mask


def _torchvision_mask(record: Record, i: int, geometry: Geometry) -> NDArray[np.uint8]:
    """The same by torchvision's rule: mode "nearest", which reads the upper left of each pixel."""
    pixels = torch.from_numpy(np.ascontiguousarray(_window(record, i, geometry)))
    size = (geometry.new_height, geometry.new_width)
    mask: NDArray[np.uint8] = F.interpolate(pixels[None, None], size=size, mode="nearest")[0, 0].numpy()
    return mask[:, ::-1] if geometry.flip else mask


def _window(record: Record, i: int, geometry: Geometry) -> NDArray[np.uint8]:
    right, bottom = geometry.left + geometry.window_width, geometry.top + geometry.window_height
    runs = rle.parse_counts(record["rles"][i])
    return rle.window(runs, record["height"], geometry.left, geometry.top, right, bottom)


def _see(record: Record, i: int, clipped: Sequence[float]) -> tuple[list[float], bytes] | None:
    """Box and crop of the part of a mask that lies in `clipped` (xyxy, pixels of the picture); None: nothing does."""
    if clipped[2] - clipped[0] < _THIN_PX or clipped[3] - clipped[1] < _THIN_PX:
        return None
    left, top = math.floor(clipped[0]), math.floor(clipped[1])
    runs = rle.parse_counts(record["rles"][i])
    mask = rle.window(runs, record["height"], left, top, math.ceil(clipped[2]), math.ceil(clipped[3]))
    tight = tight_box(mask)
    if tight is None:
        return None
    box = [
        max(clipped[0], left + tight[0]),
        max(clipped[1], top + tight[1]),
        min(clipped[2], left + tight[2]),
        min(clipped[3], top + tight[3]),
    ]
    if box[2] - box[0] < _THIN_PX or box[3] - box[1] < _THIN_PX:
        return None
    return box, rle.crop(runs, record["height"], record["width"], box)


def tight_box(mask: NDArray[np.uint8] | NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """xyxy of what is set in a mask [H, W]; None: nothing is."""
    columns = np.flatnonzero(mask.any(axis=0))
    if not columns.size:
        return None
    rows = np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _move_keypoints(
    record: Record, keep: Sequence[int], geometry: Geometry, flip_order: Sequence[int]
) -> NDArray[np.float32]:
    """[N, J, 3] x, y, visibility in continuous pixels of the input; zeros for what is not labelled or not in it.

    COCO's integer coordinates name a pixel: its centre is half a pixel further (as detectron2 does).
    """
    moved = np.zeros((len(keep), len(flip_order), 3), np.float32)
    for slot, i in enumerate(keep):
        if record["keypoints"][i]:
            moved[slot] = np.reshape(record["keypoints"][i], (-1, 3))
    moved[..., :2] += 0.5
    moved[..., :2] -= np.array([geometry.left, geometry.top], np.float32)
    moved[..., :2] *= np.array(geometry.scales, np.float32)
    size = np.array([geometry.new_width, geometry.new_height], np.float32)
    outside = ((moved[..., :2] < 0) | (moved[..., :2] >= size)).any(axis=-1)
    moved[outside | (moved[..., 2] == 0)] = 0
    if geometry.flip:
        moved = moved[:, list(flip_order)]
        labelled = moved[..., 2] > 0
        moved[labelled, 0] = geometry.new_width - moved[labelled, 0]
    return moved
