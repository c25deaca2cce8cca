"""Which detection finds which object, of every image once: what AP of any choice of images is made of.

The engines keep this to themselves, or hand it out as millions of Python objects. The rules are those of cocoeval.py
(evaluateImg) and lvis-api: within an image and class the best detections choose first, each the object of highest IoU
that is left; an object that does not count (a crowd, one of another size) is chosen only where no other fits.

Shape legend: N detections, S of them with a choice, G objects, T thresholds, A area ranges (see protocols.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.coco_results import Results
from pipeline.evaluation.coco_truth import Truth
from pipeline.evaluation.protocols import AREA_RANGES, IOU_THRESHOLDS

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
_BELOW_ONE = 1 - 1e-10  # cocoeval.py: a threshold is at most this


@dataclass(frozen=True)
class Matches:
    """Detections by class, then falling score, then image; images and classes as places (see Results)."""

    images: Integers  # [N]
    categories: Integers  # [N]
    scores: Floats  # [N]
    alarms: Bools  # [A, N], a false alarm where it finds nothing
    matched: Integers  # [S], which of the N have found an object at some threshold
    hits: Bools  # [A, T, S], it finds an object that counts
    idle: Bools  # [A, T, S], it finds one that does not: neither right nor wrong
    object_images: Integers  # [G]
    object_categories: Integers  # [G]
    counted: Bools  # [A, G], an object to find


def find_matches(truth: Truth, results: Results) -> Matches:
    """Match checked results with the objects of a task that has classes."""
    protocol = truth.protocol
    objects = truth.coco["annotations"]
    places = [{number: place for place, number in enumerate(ids)} for ids in (truth.image_ids, truth.category_ids)]
    object_images = np.array([places[0][o["image_id"]] for o in objects], np.int64)
    object_categories = np.array([places[1][o["category_id"]] for o in objects], np.int64)
    crowds = np.array([bool(o["iscrowd"]) for o in objects], np.bool_)
    labelled = np.array([o.get("num_keypoints", 1) > 0 for o in objects], np.bool_)
    object_sizes = _in_range(np.array([o["area"] for o in objects], np.float64), protocol.areas)  # [A, G]
    counted = object_sizes & ~crowds & labelled

    order = np.lexsort((results.images, -results.scores, results.categories))  # stable: then the file's order
    classes = len(truth.category_ids)
    keys = results.images * classes + results.categories  # of a group: an image and class
    kept = order[_ranks(keys[order]) < protocol.limits[-1]]
    object_keys = object_images * classes + object_categories
    exhaustive = np.ones(len(kept), np.bool_)
    if protocol.federated:
        absent, partial = _federated(truth, places, classes)
        kept = kept[np.isin(keys[kept], np.concatenate((absent, object_keys)))]
        exhaustive = ~np.isin(keys[kept], partial)
    detections, keys = results.take(kept), keys[kept]
    alarms = _in_range(_areas(truth, detections), protocol.areas) & exhaustive

    pairs = list(_pairs(truth, detections, keys, object_keys, crowds))
    found = np.concatenate([p[0] for p in pairs]) if pairs else np.zeros(0, np.int64)
    wanted = np.concatenate([p[1] for p in pairs]) if pairs else np.zeros(0, np.int64)
    ious = np.concatenate([p[2] for p in pairs]) if pairs else np.zeros(0)
    by_detection = np.lexsort((wanted, found))
    found, wanted, ious = found[by_detection], wanted[by_detection], ious[by_detection]
    matched, owner = np.unique(found, return_inverse=True)
    turns = _ranks(keys[matched])  # a group's detections choose one after the other
    shape = (len(protocol.areas), len(IOU_THRESHOLDS), len(matched))
    hits, idle = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for area in range(len(protocol.areas)):
        choice = _choose(owner, turns, wanted, ious, counted[area], crowds)  # [T, S]
        some = choice >= 0
        hits[area] = some & (counted[area][choice] if len(objects) else False)
        idle[area] = some & ~hits[area]
    return Matches(
        detections.images, detections.categories, detections.scores, alarms, matched, hits, idle,
        object_images, object_categories, counted,
    )  # fmt: skip


def _choose(
    owner: Integers, turns: Integers, wanted: Integers, ious: Floats, counted: Bools, crowds: Bools
) -> Integers:
    """The object of each detection, -1 for none: [T, S].

    Args:
        owner: [P] which of the S detections a pair is of, rising; within it, objects are in the data's order.
        turns: [S] when it chooses.
        wanted: [P] object of a pair.
        ious: [P].
        counted: [G] whether an object counts.
        crowds: [G]; a crowd may be found again and again.
    """
    thresholds = np.minimum(IOU_THRESHOLDS, _BELOW_ONE)[:, None]
    free = np.ones((len(thresholds), len(counted)), np.bool_)
    choice = np.full((len(thresholds), len(turns)), -1)
    by_turn = np.argsort(turns[owner], kind="stable")
    for rows in np.split(by_turn, np.flatnonzero(np.diff(turns[owner][by_turn])) + 1) if len(owner) else ():
        who, objects = owner[rows], wanted[rows]
        firsts = np.flatnonzero(np.diff(who, prepend=-1))
        lengths = np.diff(np.append(firsts, len(who)))
        fits = (ious[rows] >= thresholds) & (free[:, objects] | crowds[objects])  # [T, P]
        real = fits & counted[objects]
        any_real = np.repeat(np.logical_or.reduceat(real, firsts, axis=1), lengths, axis=1)
        value = np.where(np.where(any_real, real, fits), ious[rows], -1.0)
        best = np.repeat(np.maximum.reduceat(value, firsts, axis=1), lengths, axis=1)
        # Of equal ones the last is taken, as cocoeval.py does.
        last = np.maximum.reduceat(np.where((value == best) & (value >= 0), np.arange(len(rows)), -1), firsts, axis=1)
        chosen = np.where(last >= 0, objects[last], -1)  # [T, detections of this turn]
        choice[:, who[firsts]] = chosen
        at, which = np.nonzero(chosen >= 0)
        free[at, chosen[at, which]] = False
    return choice


def _pairs(
    truth: Truth, detections: Results, keys: Integers, object_keys: Integers, crowds: Bools
) -> Iterator[tuple[Integers, Integers, Floats]]:
    """(detections, objects, IoUs) that may find each other, group by group."""
    overlap = _OVERLAPS[truth.protocol.geometry](truth, detections, crowds)
    order, object_order = np.argsort(keys, kind="stable"), np.argsort(object_keys, kind="stable")
    groups = np.unique(object_keys)
    starts, ends = (np.searchsorted(keys[order], groups, side) for side in ("left", "right"))
    first, last = (np.searchsorted(object_keys[object_order], groups, side) for side in ("left", "right"))
    for a, b, c, d in zip(starts.tolist(), ends.tolist(), first.tolist(), last.tolist(), strict=True):
        if a == b:
            continue
        who, what = order[a:b], object_order[c:d]
        ious = overlap(who, what)  # [detections, objects] of the group
        rows, columns = np.nonzero(ious >= IOU_THRESHOLDS[0])
        if len(rows):
            yield who[rows], what[columns], ious[rows, columns]


Overlap = Callable[[Integers, Integers], Floats]


def _box_overlaps(truth: Truth, detections: Results, crowds: Bools) -> Overlap:
    boxes = np.array([o["bbox"] for o in truth.coco["annotations"]], np.float64).reshape(-1, 4)
    crowded = not truth.protocol.federated and crowds.any()
    none = np.zeros(len(crowds), np.bool_)
    return lambda who, what: hotcoco.primitives.bbox_iou(
        detections.shapes[who], boxes[what], crowds[what] if crowded else none[what]
    )


def _mask_overlaps(truth: Truth, detections: Results, crowds: Bools) -> Overlap:
    objects, masks = truth.coco["annotations"], detections.masks
    used = np.zeros(len(crowds), np.bool_) if truth.protocol.federated else crowds
    return lambda who, what: hotcoco.primitives.mask_iou(
        [masks[i] for i in who], [objects[i]["segmentation"] for i in what], used[what]
    )


def _keypoint_overlaps(truth: Truth, detections: Results, crowds: Bools) -> Overlap:
    """OKS, as cocoeval.py (computeOks) has it."""
    objects = truth.coco["annotations"]
    variances = (np.array(truth.sigmas) * 2) ** 2
    points = detections.shapes.reshape(len(detections.scores), len(variances), 3)

    def overlap(who: Integers, what: Integers) -> Floats:
        similarities = np.empty((len(who), len(what)))
        for column, number in enumerate(what):
            thing = objects[number]
            own = np.reshape(thing["keypoints"], (-1, 3))
            seen = own[:, 2] > 0
            if seen.any():
                away = points[who, :, :2] - own[:, :2]  # [D, J, 2]
            else:  # how far each keypoint is outside a box of three times the object's
                low = np.array(thing["bbox"][:2]) - thing["bbox"][2:]
                high = np.array(thing["bbox"][:2]) + np.array(thing["bbox"][2:]) * 2
                away = np.maximum(0, low - points[who, :, :2]) + np.maximum(0, points[who, :, :2] - high)
                seen = ~seen
            errors = (away**2).sum(axis=2) / variances / (thing["area"] + np.spacing(1)) / 2
            similarities[:, column] = np.exp(-errors[:, seen]).sum(axis=1) / seen.sum()
        return similarities

    return overlap


_OVERLAPS: dict[str, Callable[[Truth, Results, Bools], Overlap]] = {
    "bbox": _box_overlaps,
    "segmentation": _mask_overlaps,
    "keypoints": _keypoint_overlaps,
}


def _areas(truth: Truth, detections: Results) -> Floats:
    """[N] pixels², as cocoeval.py gives them to a detection."""
    if truth.protocol.geometry == "bbox":
        return np.asarray(detections.shapes[:, 2] * detections.shapes[:, 3])
    if truth.protocol.geometry == "segmentation":
        return np.asarray(hotcoco.mask.area(detections.masks), np.float64) if detections.masks else np.zeros(0)
    points = detections.shapes.reshape(len(detections.scores), -1, 3)[:, :, :2]
    return np.asarray(np.ptp(points, axis=1).prod(axis=1)) if len(points) else np.zeros(0)


def _in_range(areas: Floats, names: tuple[str, ...]) -> Bools:
    """[A, ...] whether areas lie in each range; both ends belong to it."""
    ranges = [AREA_RANGES[name] for name in names]
    return np.stack([(areas >= low) & (areas <= high) for low, high in ranges])


def _ranks(keys: Integers) -> Integers:
    """How many equal keys come before each."""
    order = np.argsort(keys, kind="stable")
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.arange(len(keys)) - np.searchsorted(keys[order], keys[order])
    return ranks


def _federated(truth: Truth, places: list[dict[int, int]], classes: int) -> tuple[Integers, Integers]:
    """Groups of a class that is known to be absent from an image, and of one that is not marked everywhere in it."""

    def groups(key: str) -> Integers:
        found: list[Any] = [
            places[0][image["id"]] * classes + places[1][c] for image in truth.coco["images"] for c in image[key]
        ]
        return np.array(found, np.int64)

    return groups("neg_category_ids"), groups("not_exhaustive_category_ids")
