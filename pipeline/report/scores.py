"""What scores say: how often detections of a score are right, and from which score on they are worth keeping."""

from dataclasses import dataclass

import numpy as np

from pipeline.report.diagnosis import IGNORED, RIGHT, Diagnosis, Floats, Ints


@dataclass(frozen=True)
class Calibration:
    """Detections in bins of equal width of their score, at an overlap of .5; those that COCO ignores are left out."""

    counts: Ints  # [B] detections
    confidence: Floats  # [B] mean score, NaN in an empty bin
    accuracy: Floats  # [B] share that is right, NaN in an empty bin

    @property
    def error(self) -> float:
        """Expected calibration error: the mean over detections of |confidence - accuracy| of their bin."""
        full = self.counts > 0
        if not full.any():
            return float("nan")
        gaps = np.abs(self.confidence[full] - self.accuracy[full])
        return float((gaps * self.counts[full]).sum() / self.counts.sum())


def calibration(diagnosis: Diagnosis, bins: int = 10) -> Calibration | None:
    """How far scores are probabilities; None where there are none, or they are not in 0..1."""
    counts = diagnosis.verdicts != IGNORED
    scores, right = diagnosis.scores[counts], diagnosis.verdicts[counts] == RIGHT
    if not len(scores) or scores.min() < 0 or scores.max() > 1:
        return None
    places = np.minimum((scores * bins).astype(np.int64), bins - 1)
    number = np.bincount(places, minlength=bins)
    sums = (np.bincount(places, weights=values, minlength=bins) for values in (scores, right))
    confidence, accuracy = (np.where(number > 0, total / np.maximum(number, 1), np.nan) for total in sums)
    return Calibration(number, confidence, accuracy)


@dataclass(frozen=True)
class WorkingPoint:
    """What is kept if detections from a score on are: over all classes, at an overlap of .5."""

    score: float
    precision: float
    recall: float
    f1: float


def working_point(diagnosis: Diagnosis) -> WorkingPoint | None:
    """The score with the best F1, the highest such score; None where nothing is right."""
    counts = diagnosis.verdicts != IGNORED
    scores, right = diagnosis.scores[counts], diagnosis.verdicts[counts] == RIGHT
    if not right.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    last = np.append(scores[1:] < scores[:-1], True)  # detections of one score are kept together
    f1 = np.where(last, 2 * hits / (np.arange(1, len(hits) + 1) + len(diagnosis.annotations)), -1.0)
    best = int(f1.argmax())
    return WorkingPoint(
        score=float(scores[best]),
        precision=float(hits[best] / (best + 1)),
        recall=float(hits[best] / len(diagnosis.annotations)),
        f1=float(f1[best]),
    )
