"""All that a report counts about one task, in numbers and arrays: small, whatever the results weigh."""

from dataclasses import dataclass

from pipeline.evaluation.coco_ap import Prepared
from pipeline.report.confusion import confusion_matrix
from pipeline.report.diagnosis import Diagnosis, Ints, diagnose
from pipeline.report.error_costs import ErrorCosts, error_costs
from pipeline.report.scores import Calibration, WorkingPoint, calibration, working_point
from pipeline.report.sizes import BySize, by_size


@dataclass(frozen=True)
class Precise:
    """What asks for precision; proposals have none."""

    costs: ErrorCosts
    calibration: Calibration | None  # None: no results, or scores that are not in 0..1
    point: WorkingPoint | None  # None: nothing is right
    confusion: Ints | None  # [K + 1, K + 1] at the working point; None: no such point, or one class alone


@dataclass(frozen=True)
class Analysis:
    """One task."""

    task: str
    diagnosis: Diagnosis
    sizes: BySize
    precise: Precise | None

    @property
    def shown_score(self) -> float:
        """Detections below it are not drawn, and do not count in what is said of single images."""
        return 0.0 if self.precise is None or self.precise.point is None else self.precise.point.score


def analyse(prepared: Prepared) -> Analysis:
    """Count."""
    protocol, diagnosis = prepared.truth.protocol, diagnose(prepared.truth, prepared.found)
    precise = None
    if protocol.classes:
        point = working_point(diagnosis)
        several = point is not None and len(diagnosis.names) > 1
        precise = Precise(
            costs=error_costs(diagnosis),
            calibration=calibration(diagnosis),
            point=point,
            confusion=confusion_matrix(diagnosis, point.score) if point is not None and several else None,
        )
    return Analysis(protocol.task, diagnosis, by_size(prepared.truth, prepared.found), precise)
