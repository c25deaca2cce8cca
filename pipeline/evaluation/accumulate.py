"""Precision and recall of matches, as cocoeval.py (accumulate) has them, bit for bit.

Precision is looked at where a detection hits, alone: a false alarm lowers it, and does not raise recall. So what is
computed is a few numbers a detection that finds something, and one running count of the others.

Shape legend: see protocols.py; of one class, N detections and E events (those that find an object at some threshold).
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.matches import Matches
from pipeline.evaluation.protocols import IOU_THRESHOLDS, RECALL_THRESHOLDS, Protocol

Floats = NDArray[np.float64]
_EPS = np.spacing(1)  # cocoeval.py adds it to a count


def precision_recall(matches: Matches, protocol: Protocol, classes: int) -> tuple[Floats, Floats]:
    """Precision [T, R, K, A, M] and recall [T, K, A, M], -1 where there is no object to find."""
    shape = (len(IOU_THRESHOLDS), classes, len(protocol.areas), len(protocol.limits))
    precision, recall = np.full((shape[0], len(RECALL_THRESHOLDS), *shape[1:]), -1.0), np.full(shape, -1.0)
    bounds = np.searchsorted(matches.categories, np.arange(classes + 1))
    events = np.searchsorted(matches.matched, bounds)
    objects = np.stack(
        [np.bincount(matches.object_categories[c], minlength=classes) for c in matches.counted]
    )  # [A, K]
    for k in range(classes):
        areas = np.flatnonzero(objects[:, k])
        if not len(areas):
            continue
        of_class, some = slice(bounds[k], bounds[k + 1]), slice(events[k], events[k + 1])
        at = matches.matched[some] - bounds[k]  # [E] which of the N
        hits, idle = matches.hits[areas, :, some], matches.idle[areas, :, some]  # [A, T, E]
        alarms, ranks = matches.alarms[areas, of_class], matches.ranks[of_class]
        for m, limit in enumerate(protocol.limits):
            within = ranks < limit  # [N]
            counted = alarms & within  # [A, N]
            found = within[at]  # [E]
            right = np.cumsum(hits & found, axis=2, dtype=np.int32)
            # All that count, less those that find something after all.
            wrong = np.cumsum(counted, axis=1, dtype=np.int32)[:, None, at] - np.cumsum(
                (hits | idle) & counted[:, None, at], axis=2, dtype=np.int32
            )
            values, reached = _interpolated(hits & found, right, wrong, objects[areas, k])
            precision[:, :, k, areas, m] = np.moveaxis(values, 0, 2)
            recall[:, k, areas, m] = reached.T
    return precision, recall


def _interpolated(
    hits: NDArray[np.bool_], right: NDArray[np.int32], wrong: NDArray[np.int32], objects: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """Precision at each recall threshold [A, T, R], and the recall that is reached [A, T].

    Args:
        hits: [A, T, E].
        right: [A, T, E] hits up to and with each event.
        wrong: [A, T, E] false alarms before it.
        objects: [A] to find, at least 1.
    """
    count = hits.shape[2]
    best = np.where(hits, right / (wrong + right + _EPS), 0.0)
    best = np.maximum.accumulate(best[:, :, ::-1], axis=2)[:, :, ::-1]
    by_hits = np.zeros((*hits.shape[:2], count + 1))  # precision at the first, second, ... hit; then 0
    area, threshold, event = np.nonzero(hits)
    by_hits[area, threshold, right[area, threshold, event] - 1] = best[area, threshold, event]
    values = np.empty((*hits.shape[:2], len(RECALL_THRESHOLDS)))
    for row, total in enumerate(objects.tolist()):
        needed = np.searchsorted(np.arange(count + 1) / total, RECALL_THRESHOLDS)  # [R] hits
        values[row] = by_hits[row][:, np.clip(needed - 1, 0, count)]
    last = right[:, :, -1] if count else np.zeros(hits.shape[:2], np.int32)
    return values, last / objects[:, None]
