"""Which classes are taken for which: objects and detections matched by place alone."""

from dataclasses import dataclass

import numpy as np

from pipeline.report.diagnosis import IGNORED, Diagnosis, Ints


@dataclass(frozen=True)
class Confused:
    """Objects of one class that were taken for another."""

    object: str
    taken_for: str
    count: int
    share: float  # of the class's objects


def confusion_matrix(diagnosis: Diagnosis, min_score: float) -> Ints:
    """[K + 1, K + 1] objects of a class (row) taken for a class (column); the last row and column are background.

    By falling score each detection of at least `min_score` takes the free object, of whatever class, that it overlaps
    most, if by at least .5. The last column counts objects that none took; the last row, detections that took none,
    without those that COCO ignores (such as those in a crowd region of their class).
    """
    classes = len(diagnosis.names)
    shown = diagnosis.scores >= min_score
    wanted = shown[diagnosis.pair_detections]
    used, taken = np.zeros(len(shown), dtype=np.bool_), np.zeros(len(diagnosis.annotations), dtype=np.bool_)
    matrix = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    pairs = (diagnosis.pair_detections[wanted].tolist(), diagnosis.pair_objects[wanted].tolist())
    for d, g in zip(*pairs, strict=True):  # by image and falling score, then by falling overlap
        if not (used[d] or taken[g]):
            used[d] = taken[g] = True
            matrix[diagnosis.object_classes[g], diagnosis.classes[d]] += 1
    left = shown & ~used & (diagnosis.verdicts != IGNORED)
    matrix[:classes, classes] = np.bincount(diagnosis.object_classes[~taken], minlength=classes)
    matrix[classes, :classes] = np.bincount(diagnosis.classes[left], minlength=classes)
    return matrix


def most_confused(matrix: Ints, names: tuple[str, ...], count: int = 15) -> list[Confused]:
    """The largest numbers off the diagonal, background left out."""
    inner = matrix[:-1, :-1].copy()
    np.fill_diagonal(inner, 0)
    order = np.argsort(-inner, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order, inner.shape)
    totals = matrix[:-1].sum(axis=1)
    return [
        Confused(names[r], names[c], int(inner[r, c]), float(inner[r, c] / totals[r]))
        for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
        if inner[r, c]
    ]
