"""What each kind of error costs: the AP at IoU .5 that is gained when just that kind is put right (TIDE's dAP).

A wrong class or place is put right by making the detection a hit of the object that it meant; where that object is
found already, or a better scored detection means it too, the detection is taken away. The other false alarms are taken
away. Missed objects, those that no wrong class or place accounts for, are no longer asked for.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.protocols import RECALL_THRESHOLDS
from pipeline.report.diagnosis import (
    BACKGROUND,
    BOTH,
    CLASS,
    DUPLICATE,
    IGNORED,
    PLACE,
    RIGHT,
    Diagnosis,
    Floats,
    Ints,
)

KINDS = {"class": CLASS, "place": PLACE, "class and place": BOTH, "duplicate": DUPLICATE, "background": BACKGROUND}
MISSED = "missed"


@dataclass(frozen=True)
class ErrorCosts:
    """AP at .5, and what is lost to each kind of error; 0..1, NaN without an object."""

    ap: float
    per_class: Floats  # [K] AP at .5, NaN for a class without an object
    gains: dict[str, float]  # KINDS and MISSED -> AP gained
    counts: dict[str, int]  # the same -> how many
    without_false: float  # AP gained if there were no false alarm
    with_all: float  # AP gained if all objects that were not found were no longer asked for


def error_costs(diagnosis: Diagnosis) -> ErrorCosts:
    """Count the errors and weigh them."""
    verdicts, counted = diagnosis.verdicts, diagnosis.counted
    right, counts = verdicts == RIGHT, verdicts != IGNORED
    per_class = class_aps(diagnosis, right, counts, diagnosis.classes, counted)
    ap = _mean(per_class)

    def gain(right: NDArray[np.bool_], kept: NDArray[np.bool_], classes: Ints, asked: Ints) -> float:
        return _mean(class_aps(diagnosis, right, kept & counts, classes, asked, counted)) - ap

    gains = {}
    for name, kind in KINDS.items():
        mended = _mended(diagnosis, kind) if kind in (CLASS, PLACE) else np.zeros_like(right)
        classes = diagnosis.classes.copy()
        classes[mended] = diagnosis.object_classes[diagnosis.objects[mended]]
        gains[name] = gain(right | mended, (verdicts != kind) | mended, classes, counted)
    missed = missed_objects(diagnosis)
    fewer = counted - np.bincount(diagnosis.object_classes[missed], minlength=len(counted))
    gains[MISSED] = gain(right, np.ones_like(right), diagnosis.classes, fewer)
    found = np.bincount(diagnosis.object_classes[diagnosis.finders >= 0], minlength=len(counted))
    return ErrorCosts(
        ap=ap,
        per_class=per_class,
        gains=gains,
        counts={name: int((verdicts == kind).sum()) for name, kind in KINDS.items()} | {MISSED: int(missed.sum())},
        without_false=gain(right, right, diagnosis.classes, counted),
        with_all=gain(right, np.ones_like(right), diagnosis.classes, found),
    )


def missed_objects(diagnosis: Diagnosis) -> NDArray[np.bool_]:
    """[G] objects that nothing found, nor meant with a wrong class or place."""
    meant = np.isin(diagnosis.verdicts, (CLASS, PLACE))
    missed: NDArray[np.bool_] = diagnosis.finders < 0
    missed[diagnosis.objects[meant]] = False
    return missed


def class_aps(
    diagnosis: Diagnosis,
    right: NDArray[np.bool_],
    kept: NDArray[np.bool_],
    classes: Ints,
    asked: Ints,
    counted: Ints | None = None,
) -> Floats:
    """[K] AP of detections at one overlap, with COCO's 101 points of recall.

    Args:
        diagnosis: whose scores and order.
        right: [D] hits.
        kept: [D] those that count.
        classes: [D].
        asked: [K] objects to find.
        counted: [K] objects that there are, where fewer are asked for. A class of which nothing is left to find has
            AP 1; one without an object has none, NaN.
    """
    counted = asked if counted is None else counted
    aps = np.where(counted > 0, np.where(asked > 0, 0.0, 1.0), np.nan)
    order = np.lexsort((-diagnosis.scores, classes))
    order = order[kept[order]]
    ends = np.searchsorted(classes[order], np.arange(len(asked) + 1))
    for k in np.flatnonzero((asked > 0) & (np.diff(ends) > 0)).tolist():
        hits = np.cumsum(right[order[ends[k] : ends[k + 1]]])
        recall = hits / asked[k]
        precision = hits / (np.arange(1, len(hits) + 1) + np.spacing(1))
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(recall, RECALL_THRESHOLDS, side="left")
        aps[k] = np.where(places < len(hits), precision[np.minimum(places, len(hits) - 1)], 0.0).mean()
    return aps


def _mended(diagnosis: Diagnosis, kind: int) -> NDArray[np.bool_]:
    """[D] of a wrong class or place, those that mean an object that is not found, and no other means it as surely.

    As in TIDE's code the other may be of either kind.
    """
    meant = np.flatnonzero(np.isin(diagnosis.verdicts, (CLASS, PLACE)))
    meant = meant[diagnosis.finders[diagnosis.objects[meant]] < 0]
    _, first = np.unique(diagnosis.objects[meant], return_index=True)  # in an image by falling score: the first is best
    best = np.zeros(len(diagnosis.verdicts), dtype=np.bool_)
    best[meant[first]] = True
    return np.asarray(best & (diagnosis.verdicts == kind))


def _mean(per_class: Floats) -> float:
    defined = per_class[~np.isnan(per_class)]
    return float(defined.mean()) if defined.size else float("nan")
