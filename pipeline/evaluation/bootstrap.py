"""How sure an AP is: its spread over resamples of the images, and what two systems differ by on the same resamples.

A resample draws as many images as there are, with replacement. Its AP is just what COCO's evaluator says of a data set
that holds each image as often as it was drawn; but matches are found once (matches.py), and an image that was drawn
three times is one of weight 3.

Shape legend: I images, R resamples, K classes, A area ranges, T thresholds (see protocols.py); of one class and range,
E events (detections that have found an object at some threshold) and P hits at one threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.evaluation.matches import Matches
from pipeline.evaluation.protocols import EPS, IOU_THRESHOLDS, RECALL_THRESHOLDS, Protocol

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Weights = NDArray[np.int32]  # [I, R], how often each resample has each image
CONFIDENCE = 0.95
_CELLS = 2**24  # of the largest arrays: bounds memory
_TILE = 2**16  # cells that stay in the processor's cache
_ROWS = 512  # of weights, that are added up at once


@dataclass(frozen=True)
class Sampled:
    """AP of R resamples, 0..1; NaN where a resample has nothing to find."""

    stats: dict[str, Floats]  # official name -> [R]; AP and its kin, not AR
    per_class: Floats  # [R, K]
    per_area: Floats  # [R, K, A]


@dataclass(frozen=True)
class Spread:
    """Between which the middle 95 % of resamples lie, 0..1; NaN where none has a value."""

    resamples: int
    stats: dict[str, tuple[float, float]]  # official name -> low, high; AP and its kin
    per_class: dict[str, tuple[float, float]]  # class name -> low, high


def draw(images: int, resamples: int, seed: int) -> Weights:
    """How often each of `resamples` choices of `images` out of as many has each."""
    rng = np.random.default_rng(seed)
    weights = np.empty((images, resamples), np.int32)
    for resample in range(resamples):
        weights[:, resample] = np.bincount(rng.integers(0, images, images), minlength=images)
    return weights


def interval(values: Floats) -> tuple[float, float]:
    """Between which the middle 95 % of resamples lie (percentile method); NaN where none has a value."""
    defined = values[~np.isnan(values)]
    if not defined.size:
        return np.nan, np.nan
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def spread_of(sampled: Sampled, names: Sequence[str]) -> Spread:
    """The intervals of all numbers; `names` are the classes'."""
    return Spread(
        sampled.per_class.shape[0],
        {name: interval(values) for name, values in sampled.stats.items()},
        {name: interval(values) for name, values in zip(names, sampled.per_class.T, strict=True)},
    )


def check_bootstrap(protocol: Protocol) -> None:
    """Raises UserError where a protocol has no AP to resample."""
    if not protocol.classes or not protocol.limits:
        what = "proposals have recall alone" if not protocol.classes else "Cityscapes' protocol has its own AP"
        raise UserError(f"resampling is of COCO's and LVIS's AP, and {what}; leave --bootstrap out")


def resample(matches: Matches, protocol: Protocol, frequencies: tuple[str, ...], classes: int, w: Weights) -> Sampled:
    """AP of each resample.

    Args:
        matches: of all images.
        protocol: whose numbers.
        frequencies: of each class, LVIS alone.
        classes: how many.
        w: see draw.
    """
    resamples, areas = w.shape[1], len(protocol.areas)
    means = np.full((resamples, classes, areas), np.nan)  # over thresholds
    single = {stat.iou: int(np.argmin(abs(IOU_THRESHOLDS - stat.iou))) for stat in protocol.stats if stat.iou}
    at = {iou: np.full((resamples, classes), np.nan) for iou in single}
    bounds, most = np.searchsorted(matches.categories, np.arange(classes + 1)), int(w.max(initial=0))
    for category in range(classes):
        for area in range(areas):
            one = _of_class(matches, category, area, bounds[category], bounds[category + 1], most)
            block = min(resamples, max(32, _CELLS // max(len(one.events), 1)))
            for start in range(0, resamples, block):
                aps = _average_precision(one, np.ascontiguousarray(w[:, start : start + block]))  # [T, R]
                means[start : start + block, category, area] = aps.mean(axis=0)
                if area == 0:
                    for iou, threshold in single.items():
                        at[iou][start : start + block, category] = aps[threshold]
    stats = {}
    for stat in protocol.stats:
        if not stat.is_recall:
            values = means[:, :, protocol.areas.index(stat.area)] if stat.iou is None else at[stat.iou]
            if stat.frequency is not None:
                values = values[:, [frequency == stat.frequency for frequency in frequencies]]
            stats[stat.name] = _mean(values)
    return Sampled(stats, means[:, :, 0], means)


@dataclass(frozen=True)
class _OfClass:
    """What counts of one class and area range, detections in the order in which they count."""

    images: Integers  # [N] of the detections that may be right or wrong
    copies: Integers  # [N], -1: a detection counts as often as its image was drawn; c: once, if more often than c
    events: Integers  # [E], which of them
    alarm: NDArray[np.bool_]  # [N], a false alarm where it finds nothing
    hits: NDArray[np.bool_]  # [T, E]
    idle: NDArray[np.bool_]  # [T, E]
    objects: Integers  # images of the objects to find

    def rows(self, which: Integers | slice, w: Weights) -> Weights:
        """How often each resample has some of the detections: [which, R]."""
        rows = np.take(w, self.images[which], axis=0)
        single = self.copies[which] >= 0
        if single.any():
            rows[single] = rows[single] > self.copies[which][single, None]
        return rows


def _of_class(matches: Matches, category: int, area: int, first: int, last: int, most: int) -> _OfClass:
    """The class's detections are `first` to `last`; no image is drawn more than `most` times."""
    low, high = np.searchsorted(matches.matched, (first, last))
    events, alarm = matches.matched[low:high], matches.alarms[area]
    hits, idle = matches.hits[area][:, low:high], matches.idle[area][:, low:high]
    useful = hits.any(axis=0) | (alarm[events] & idle.any(axis=0))
    events, hits, idle = events[useful], hits[:, useful], idle[:, useful]
    place = np.full(last - first, -1)  # among the events
    place[events - first] = np.arange(len(events))
    rows = np.flatnonzero(alarm[first:last] | (place >= 0))
    rows, copies = _with_ties(matches.images[first:last], matches.scores[first:last], rows, place >= 0, most)
    place = place[rows]
    counted = matches.counted[area] & (matches.object_categories == category)
    return _OfClass(
        images=matches.images[first:last][rows],
        copies=copies,
        events=np.flatnonzero(place >= 0),
        alarm=alarm[first:last][rows],
        hits=hits[:, place[place >= 0]],
        idle=idle[:, place[place >= 0]],
        objects=matches.object_images[counted],
    )


def _with_ties(
    images: Integers, scores: Floats, rows: Integers, event: NDArray[np.bool_], most: int
) -> tuple[Integers, Integers]:
    """`rows` in the order in which a data set with repeated images has them, and of which copy of the image each is.

    Copies of an image follow each other, so its detections A, B of one score count as A, B, A, B, and not as A, A, B,
    B. Where one of them may be right, the two differ, and each copy gets rows of its own. -1: of all copies.
    """
    new = np.ones(len(rows), np.bool_)
    new[1:] = (np.diff(images[rows]) != 0) | (np.diff(scores[rows]) != 0)
    run = np.cumsum(new) - 1
    tied = ((np.bincount(run) > 1) & (np.bincount(run, weights=event[rows]) > 0))[run]
    if not tied.any():
        return rows, np.full(len(rows), -1)
    times = np.where(tied, most, 1)
    index = np.repeat(np.arange(len(rows)), times)
    copies = np.arange(len(index)) - np.repeat(np.cumsum(times) - times, times)
    copies = np.where(tied[index], copies, -1)
    order = np.lexsort((index, copies, run[index]))
    return rows[index[order]], copies[order]


def _average_precision(one: _OfClass, w: Weights) -> Floats:
    """[T, R], NaN where a resample has nothing to find."""
    resamples = w.shape[1]
    found = np.zeros(resamples, np.int32)
    for start in range(0, len(one.objects), _ROWS):
        found += np.add.reduce(np.take(w, one.objects[start : start + _ROWS], axis=0), axis=0, dtype=np.int32)
    objects = np.where(found > 0, found, 1).astype(np.float64)  # [R]
    own = one.rows(one.events, w)  # [E, R]
    alarms = _alarms(one, own, w)  # [E, R]
    alarm = one.alarm[one.events]
    aps = np.zeros((len(IOU_THRESHOLDS), resamples))
    for threshold, (hit, idle) in enumerate(zip(one.hits, one.idle, strict=True)):
        places = np.flatnonzero(hit)
        if len(places):
            counted = alarms[places]
            # Those of another size that hit count too, and those that find what does not count do not.
            _add_before(counted, places, own, np.flatnonzero(hit & ~alarm), 1)
            _add_before(counted, places, own, np.flatnonzero(idle & alarm), -1)
            aps[threshold] = _interpolated(_running_sums(own, places), counted, objects)
    aps[:, found == 0] = np.nan
    return aps


def _alarms(one: _OfClass, own: Weights, w: Weights) -> Weights:
    """Detections up to and with each event that are right or false alarms, be they events or not: [E, R]."""
    sums = np.empty_like(own)
    start, total = 0, np.zeros(w.shape[1], np.int32)
    for row, event in enumerate(one.events.tolist()):
        for first in range(start, event, _ROWS):
            total += np.add.reduce(one.rows(slice(first, min(first + _ROWS, event)), w), axis=0, dtype=np.int32)
        if one.alarm[event]:
            total += own[row]
        sums[row] = total
        start = event + 1
    return sums


def _running_sums(own: Weights, rows: Integers) -> Weights:
    """Sums of the chosen rows, down the columns: row after row in the cache, many times as fast as np.cumsum."""
    sums = own[rows]
    for before, row in pairwise(sums):
        np.add(before, row, out=row)
    return sums


def _add_before(counted: Weights, places: Integers, own: Weights, rows: Integers, sign: int) -> None:
    """Add to (or take from) the count at each of `places` the chosen rows that come no later."""
    if not len(rows):
        return
    sums = _running_sums(own, rows)
    before = np.searchsorted(rows, places, side="right") - 1
    some = before >= 0
    counted[some] += sign * sums[before[some]]


def _interpolated(right: Weights, counted: Weights, objects: Floats) -> Floats:
    """Mean precision at the recall thresholds: [R], as cocoeval.py (accumulate) interpolates it.

    Only hits matter: precision falls at a false alarm, and recall does not rise.

    Args:
        right: [P, R] hits up to each hit.
        counted: [P, R] hits and false alarms up to it.
        objects: [R], at least 1.
    """
    hits, resamples = right.shape
    total, best = np.zeros(resamples), np.zeros(resamples)
    tile = max(1, _TILE // resamples)
    for end in range(hits, 0, -tile):
        start = max(0, end - tile)
        precision = right[start:end] / (counted[start:end] + EPS)
        for row in precision[::-1]:  # the best that comes at this recall or a higher one
            best = np.maximum(best, row, out=row)
        steps = thresholds_up_to(right[max(0, start - 1) : end] / objects)
        steps = (
            np.diff(steps, axis=0, prepend=np.zeros((1, resamples), steps.dtype))
            if start == 0
            else np.diff(steps, axis=0)
        )
        total += np.einsum("pr,pr->r", precision, steps)
    return np.asarray(total / len(RECALL_THRESHOLDS))


def thresholds_up_to(recall: Floats) -> Floats:
    """How many of the recall thresholds are at most each recall."""
    below = np.floor(recall * (len(RECALL_THRESHOLDS) - 1) + 1e-9)  # the threshold i is i / 100, give or take a bit
    return below + (recall >= RECALL_THRESHOLDS[below.astype(np.intp)])


def _mean(values: Floats) -> Floats:
    """[R, n] -> [R]: of what is defined, NaN where nothing is."""
    defined = ~np.isnan(values)
    counts = defined.sum(axis=1)
    return np.where(counts > 0, np.where(defined, values, 0).sum(axis=1) / np.maximum(counts, 1), np.nan)
