"""Copy-paste: instances of one picture laid over another one, at the input's resolution.

Ghiasi et al. 2021, "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", 3: a random
subset of the partner's objects, no blending (which they found unnecessary), fully hidden objects are removed,
boxes and masks of partly hidden ones are made anew.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.config import MaskTarget
from pipeline.data import rle
from pipeline.data.augment import Geometry
from pipeline.data.ground_truth import GroundTruth, input_mask, tight_box
from pipeline.data.records import Record

Mask = NDArray[np.uint8]


def choose(truth: GroundTruth, seed: Sequence[int]) -> list[int]:
    """A random subset: each instance with probability one half."""
    chosen = np.random.default_rng(tuple(seed)).random(len(truth.classes)) < 0.5
    return [int(slot) for slot in np.flatnonzero(chosen)]


def paste(
    base: tuple[Record, Geometry, GroundTruth],
    partner: tuple[Record, Geometry, GroundTruth],
    chosen: Sequence[int],
    size: tuple[int, int],
    target: MaskTarget,
) -> tuple[NDArray[np.bool_], GroundTruth]:
    """Lay the chosen instances of the partner over the base.

    Both inputs lie in the top left corner of one of `size`. What is pasted is on top and keeps its box and crop. A base
    instance loses the pixels it shares with what is pasted; without a pixel left it is dropped, otherwise the box is
    that of the pixels left, within its old one. (mmdetection also drops what is left small; the paper does not.) A
    covered keypoint that was seen (visibility 2) is still where it was, but hidden (1).

    Args:
        base: record, geometry, its instances in the input.
        partner: the same of the other picture.
        chosen: which instances of the partner; one without a pixel at this resolution is left out.
        size: (height, width) of the input, pixels.
        target: "crop" or "image", see MaskConfig.target.

    Returns:
        Which pixels are the partner's, bool [height, width], and the instances of both: the base's first.
    """
    covered = np.zeros(size, np.bool_, order="F")  # as masks are
    pasted = []
    for slot in chosen:
        mask = input_mask(partner[0], partner[2].source[slot], partner[1])
        if mask.any():
            covered[: mask.shape[0], : mask.shape[1]] |= mask.astype(np.bool_)
            pasted.append(slot)
    left = _hide(*base, covered, size, target)
    return np.ascontiguousarray(covered), _join(left, _take(partner[2], pasted), size, target)


def _hide(
    record: Record,
    geometry: Geometry,
    truth: GroundTruth,
    covered: NDArray[np.bool_],
    size: tuple[int, int],
    target: MaskTarget,
) -> GroundTruth:
    """The base's instances without what is covered."""
    boxes, masks = truth.boxes.copy(), truth.masks.copy()
    keypoints = None if truth.keypoints is None else truth.keypoints.copy()
    own = covered[: geometry.new_height, : geometry.new_width]
    kept = []
    for slot, i in enumerate(truth.source):
        x0, y0, x1, y1 = (int(v) for v in (*np.floor(boxes[slot, :2]), *np.ceil(boxes[slot, 2:])))
        if own[max(0, y0 - 1) : y1 + 1, max(0, x0 - 1) : x1 + 1].any():  # a mask may stick out of its box by a pixel
            mask = input_mask(record, i, geometry).astype(np.bool_)
            if (mask & own).any():
                seen = mask & ~own
                box = _within(tight_box(seen), boxes[slot])
                if box is None:
                    continue
                boxes[slot] = box
                masks[slot] = masks[slot] * ~own if target == "image" else _crop(seen, box)
        if keypoints is not None:
            x, y = (keypoints[slot, :, k].astype(np.int64) for k in (0, 1))
            x, y = np.minimum(x, geometry.new_width - 1), np.minimum(y, geometry.new_height - 1)
            hidden = own[y, x] & (keypoints[slot, :, 2] == 2)
            keypoints[slot, hidden, 2] = 1
        kept.append(slot)
    return _take(GroundTruth(truth.source, boxes, truth.classes, masks, keypoints), kept)


def _within(tight: tuple[int, int, int, int] | None, box: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The intersection of two boxes xyxy; None: there is none."""
    if tight is None:
        return None
    low, high = np.maximum(tight[:2], box[:2]), np.minimum(tight[2:], box[2:])
    if (high - low < 0.01).any():  # pixels
        return None
    return np.concatenate((low, high)).astype(np.float32)


def _crop(mask: NDArray[np.bool_], box: NDArray[np.float32]) -> Mask:
    """uint8 [C, C] of a mask [h, w] inside its box."""
    runs = rle.parse_counts(rle.from_mask(mask))
    height, width = mask.shape
    crop: Mask = rle.unpack_crops([rle.crop(runs, height, width, box.tolist())])[0]
    return crop


def _take(truth: GroundTruth, slots: Sequence[int]) -> GroundTruth:
    rows = np.array(slots, np.int64)
    keypoints = None if truth.keypoints is None else truth.keypoints[rows]
    source = [truth.source[slot] for slot in slots]
    return GroundTruth(source, truth.boxes[rows], truth.classes[rows], truth.masks[rows], keypoints)


def _join(first: GroundTruth, second: GroundTruth, size: tuple[int, int], target: MaskTarget) -> GroundTruth:
    """The instances of both; whole masks are padded to `size`."""
    if target == "image":
        masks = np.zeros((len(first.masks) + len(second.masks), *size), np.uint8)
        for start, part in ((0, first.masks), (len(first.masks), second.masks)):
            masks[start : start + len(part), : part.shape[1], : part.shape[2]] = part
    else:
        masks = np.concatenate((first.masks, second.masks))
    keypoints = None
    if first.keypoints is not None and second.keypoints is not None:
        keypoints = np.concatenate((first.keypoints, second.keypoints))
    return GroundTruth(
        first.source + second.source,
        np.concatenate((first.boxes, second.boxes)),
        np.concatenate((first.classes, second.classes)),
        masks,
        keypoints,
    )
