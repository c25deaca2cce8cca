"""Precision and recall of matches, as cocoeval.py (accumulate) has them, bit for bit.

Precision is looked at where a detection hits, alone: a false alarm lowers it, and does not raise recall. So what is
computed is a few numbers a detection that finds something, and one running count of the others.

Shape legend: see protocols.py; of one class, N detections and E events (those that find an object at some threshold).
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.matches import Matches
from pipeline.evaluation.protocols import EPS, IOU_THRESHOLDS, RECALL_THRESHOLDS, Protocol

Floats = NDArray[np.float64]


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
        needed = _hits_needed(objects[areas, k], len(at))
        for m, limit in enumerate(protocol.limits):
            if m and ranks.max(initial=0) < protocol.limits[m - 1]:  # none is beyond the last limit
                precision[:, :, k, :, m], recall[:, k, :, m] = precision[:, :, k, :, m - 1], recall[:, k, :, m - 1]
                continue
            counted = alarms & (ranks < limit)  # [A, N]
            own = hits & (ranks[at] < limit)
            right = np.cumsum(own, axis=2, dtype=np.int32)
            # All that count, less those that find something after all.
            wrong = np.cumsum(counted, axis=1, dtype=np.int32)[:, None, at]
            wrong = wrong - np.cumsum((hits | idle) & counted[:, None, at], axis=2, dtype=np.int32)
            precision[:, :, k, areas, m] = _interpolated(own, right, wrong, needed).transpose(1, 2, 0)
            recall[:, k, areas, m] = (right[:, :, -1].T if len(at) else 0) / objects[areas, k]
    return precision, recall


def _hits_needed(objects: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """[A, R] hits that each recall threshold takes, less the first one; `most` where there are not so many."""
    hits = np.arange(most + 1)
    needed = [np.searchsorted(hits / total, RECALL_THRESHOLDS) for total in objects.tolist()]
    return np.clip(np.array(needed, np.int64) - 1, 0, most)


def _interpolated(
    hits: NDArray[np.bool_], right: NDArray[np.int32], wrong: NDArray[np.int32], needed: NDArray[np.int64]
) -> Floats:
    """Precision at each recall threshold: [A, T, R].

    Args:
        hits: [A, T, E].
        right: [A, T, E] hits up to and with each event.
        wrong: [A, T, E] false alarms before it.
        needed: [A, R], see _hits_needed.
    """
    best = np.where(hits, right / (wrong + right + EPS), 0.0)
    best = np.maximum.accumulate(best[:, :, ::-1], axis=2)[:, :, ::-1]
    by_hits = np.zeros((*hits.shape[:2], hits.shape[2] + 1))  # precision at the first, second, ... hit; then 0
    area, threshold, event = np.nonzero(hits)
    by_hits[area, threshold, right[area, threshold, event] - 1] = best[area, threshold, event]
    return np.take_along_axis(by_hits, needed[:, None], axis=2)
