"""Which detection finds which object, of every image once: what AP of any choice of images is made of.

The engines keep this to themselves, or hand it out as millions of Python objects. The rules are those of cocoeval.py
(evaluateImg) and lvis-api: within an image and class the best detections choose first, each the object of highest IoU
that is left; an object that does not count (a crowd, one of another size) is chosen only where no other fits.

Shape legend: N detections, S of them with a choice, G objects, T thresholds, A area ranges (see protocols.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.coco_results import Results
from pipeline.evaluation.coco_truth import Truth
from pipeline.evaluation.oks import keypoint_similarity
from pipeline.evaluation.protocols import AREA_RANGES, IOU_THRESHOLDS

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
_PAIRS = 2**18  # of which the IoU is computed at once: bounds memory
_BELOW_ONE = 1 - 1e-10  # cocoeval.py: a threshold is at most this


@dataclass(frozen=True)
class Matches:
    """Detections by class, then falling score, then image; images and classes as places (see Results)."""

    images: Integers  # [N]
    categories: Integers  # [N]
    scores: Floats  # [N]
    ranks: Integers  # [N], how many of its image and class come before it
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
    keys = (results.images * classes + results.categories)[order]  # of a group: an image and class
    ranks = _ranks(keys)
    kept = ranks < protocol.limits[-1]
    object_keys = object_images * classes + object_categories
    exhaustive = np.ones(len(kept), np.bool_)
    if protocol.federated:
        absent, partial = _federated(truth, places, classes)
        kept &= np.isin(keys, np.concatenate((absent, object_keys)))
        exhaustive = ~np.isin(keys, partial)
    order, keys, ranks, exhaustive = order[kept], keys[kept], ranks[kept], exhaustive[kept]
    alarms = _in_range(results.areas[order], protocol.areas) & exhaustive

    overlap = _OVERLAPS[protocol.geometry](truth, results, crowds)
    found, wanted, ious = _pairs(overlap, order, keys, object_keys)
    matched, owner = np.unique(found, return_inverse=True)
    turns = _ranks(keys[matched])  # a group's detections choose one after the other
    choice = _choose(owner, turns, wanted, ious, counted, crowds)  # [A, T, S]
    some = choice >= 0
    hits = np.zeros_like(some)
    for area, real in enumerate(counted if len(objects) else ()):
        hits[area] = some[area] & real[choice[area]]
    return Matches(
        results.images[order], results.categories[order], results.scores[order], ranks, alarms, matched, hits,
        some & ~hits, object_images, object_categories, counted,
    )  # fmt: skip


def _choose(
    owner: Integers, turns: Integers, wanted: Integers, ious: Floats, counted: Bools, crowds: Bools
) -> NDArray[np.int32]:
    """The object of each detection, -1 for none: [A, T, S].

    Args:
        owner: [P] which of the S detections a pair is of, rising; within it, objects are in the data's order.
        turns: [S] when it chooses.
        wanted: [P] object of a pair.
        ious: [P].
        counted: [A, G] whether an object counts.
        crowds: [G]; a crowd may be found again and again.
    """
    ranges, steps = len(counted), len(IOU_THRESHOLDS)
    rows_of = np.repeat(np.arange(ranges), steps)  # the two axes are one here: [A * T]
    thresholds = np.tile(np.minimum(IOU_THRESHOLDS, _BELOW_ONE), ranges)[:, None]
    free = np.ones((ranges * steps, counted.shape[1]), np.bool_)
    choice = np.full((ranges * steps, len(turns)), -1, np.int32)
    by_turn = np.argsort(turns[owner], kind="stable")
    for rows in np.split(by_turn, np.flatnonzero(np.diff(turns[owner][by_turn])) + 1) if len(owner) else ():
        who, objects = owner[rows], wanted[rows]
        firsts = np.flatnonzero(np.diff(who, prepend=-1))
        lengths = np.diff(np.append(firsts, len(who)))
        fits = (ious[rows] >= thresholds) & (free[:, objects] | crowds[objects])  # [A * T, P]
        real = fits & counted[:, objects][rows_of]
        any_real = np.repeat(np.logical_or.reduceat(real, firsts, axis=1), lengths, axis=1)
        value = np.where(np.where(any_real, real, fits), ious[rows], -1.0)
        best = np.repeat(np.maximum.reduceat(value, firsts, axis=1), lengths, axis=1)
        # Of equal ones the last is taken, as cocoeval.py does.
        last = np.maximum.reduceat(np.where((value == best) & (value >= 0), np.arange(len(rows)), -1), firsts, axis=1)
        chosen = np.where(last >= 0, objects[last], -1)  # [A * T, detections of this turn]
        choice[:, who[firsts]] = chosen
        at, which = np.nonzero(chosen >= 0)
        free[at, chosen[at, which]] = False
    return choice.reshape(ranges, steps, -1)


Overlap = Callable[[Integers, Integers], Floats]  # IoUs [P] of detections (their numbers) and objects


def _pairs(
    overlap: Overlap, order: Integers, keys: Integers, object_keys: Integers
) -> tuple[Integers, Integers, Floats]:
    """[P] detections (places in `order`, rising), objects and IoUs that may find each other."""
    by_key = np.argsort(object_keys, kind="stable")
    groups, first, size = np.unique(object_keys[by_key], return_index=True, return_counts=True)
    if not len(groups):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    group = np.minimum(np.searchsorted(groups, keys), len(groups) - 1)  # [N]
    some = np.flatnonzero(groups[group] == keys)  # detections whose class their image has
    group = group[some]
    ends = np.cumsum(size[group])
    found = []
    blocks = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, _PAIRS))
    for start, end in pairwise([*blocks.tolist(), len(some)]):
        count = size[group[start:end]]
        who = np.repeat(some[start:end], count)
        place = np.arange(len(who)) - np.repeat(np.cumsum(count) - count, count)  # among the group's objects
        what = by_key[np.repeat(first[group[start:end]], count) + place]
        ious = overlap(order[who], what)
        near = ious >= IOU_THRESHOLDS[0]
        found.append((who[near], what[near], ious[near]))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    who, what, ious = map(np.concatenate, zip(*found, strict=True))
    return who, what, ious


def _box_overlaps(truth: Truth, results: Results, crowds: Bools) -> Overlap:
    """maskApi.c (bbIou)."""
    boxes = np.array([o["bbox"] for o in truth.coco["annotations"]], np.float64).reshape(-1, 4)
    ends, areas = boxes[:, :2] + boxes[:, 2:], boxes[:, 2] * boxes[:, 3]
    used = np.zeros(len(crowds), np.bool_) if truth.protocol.federated else crowds

    def overlap(who: Integers, what: Integers) -> Floats:
        own = results.shapes[who]
        shared = np.minimum(own[:, :2] + own[:, 2:], ends[what]) - np.maximum(own[:, :2], boxes[what, :2])  # [P, 2]
        ious = np.zeros(len(who))
        meet = np.flatnonzero((shared > 0).all(axis=1))
        both, own_areas = shared[meet, 0] * shared[meet, 1], results.areas[who[meet]]
        ious[meet] = both / np.where(used[what[meet]], own_areas, own_areas + areas[what[meet]] - both)
        return ious

    return overlap


def _mask_overlaps(truth: Truth, results: Results, crowds: Bools) -> Overlap:
    objects, masks = truth.coco["annotations"], results.masks
    used = np.zeros(len(crowds), np.bool_) if truth.protocol.federated else crowds

    def overlap(who: Integers, what: Integers) -> Floats:
        # Two masks share at most the smaller one: most pairs cannot reach the first threshold, whatever they share.
        own, other = results.areas[who], truth.pixels[what]
        most = np.minimum(own, other)
        near = np.flatnonzero(most >= np.where(used[what], own, np.maximum(own, other)) * IOU_THRESHOLDS[0])
        near = near[np.argsort(what[near], kind="stable")]
        ious = np.zeros(len(who))
        found, crowd, some = ious[near], used.tolist(), list(map(masks.__getitem__, who[near].tolist()))
        numbers, firsts = np.unique(what[near], return_index=True)
        for number, (start, end) in zip(numbers.tolist(), pairwise([*firsts.tolist(), len(near)]), strict=True):
            mask = objects[number]["segmentation"]
            found[start:end] = hotcoco.primitives.mask_iou(some[start:end], [mask], [crowd[number]])[:, 0]
        ious[near] = found
        return ious

    return overlap


def _keypoint_overlaps(truth: Truth, results: Results, crowds: Bools) -> Overlap:
    objects, sigmas = truth.coco["annotations"], np.array(truth.sigmas)
    points = results.shapes.reshape(len(results.scores), len(sigmas), 3)[:, :, :2]

    def overlap(who: Integers, what: Integers) -> Floats:
        similarities = np.empty(len(who))
        for number in np.unique(what):
            rows = np.flatnonzero(what == number)
            similarities[rows] = keypoint_similarity(points[who[rows]], objects[number], sigmas)
        return similarities

    return overlap


_OVERLAPS: dict[str, Callable[[Truth, Results, Bools], Overlap]] = {
    "bbox": _box_overlaps,
    "segmentation": _mask_overlaps,
    "keypoints": _keypoint_overlaps,
}


def _in_range(areas: Floats, names: tuple[str, ...]) -> Bools:
    """[A, ...] whether areas lie in each range; both ends belong to it."""
    ranges = [AREA_RANGES[name] for name in names]
    return np.stack([(areas >= low) & (areas <= high) for low, high in ranges])


def _ranks(keys: Integers) -> Integers:
    """How many equal keys come before each; keys are at least 0."""
    order = np.argsort(keys, kind="stable")
    new = np.diff(keys[order], prepend=-1) != 0
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.arange(len(keys)) - np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))
    return ranks


def _federated(truth: Truth, places: list[dict[int, int]], classes: int) -> tuple[Integers, Integers]:
    """Groups of a class that is known to be absent from an image, and of one that is not marked everywhere in it."""

    def groups(key: str) -> Integers:
        found: list[Any] = [
            places[0][image["id"]] * classes + places[1][c] for image in truth.coco["images"] for c in image[key]
        ]
        return np.array(found, np.int64)

    return groups("neg_category_ids"), groups("not_exhaustive_category_ids")
