"""COCO average precision of boxes, masks or keypoints, LVIS's of federated data, and recall of proposals.

By our own arithmetic on columns, by hotcoco or by pycocotools, with equal numbers. Shape legend: see protocols.py.
"""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import hotcoco
import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.config import Engine
from pipeline.data.coco_json import collector_paused
from pipeline.errors import UserError
from pipeline.evaluation.accumulate import precision_recall
from pipeline.evaluation.bootstrap import Spread, check_bootstrap, draw, resample, spread_of
from pipeline.evaluation.coco_results import Results, Warned, check_results
from pipeline.evaluation.coco_truth import Truth, check_truth
from pipeline.evaluation.matches import Matches, find_matches
from pipeline.evaluation.protocols import IOU_THRESHOLDS, Protocol, Style, Task

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CocoAp:
    """One task's numbers, 0..1. NaN where COCO says -1: there is no ground truth to find."""

    protocol: Protocol
    stats: dict[str, float]  # those of the protocol, in its order
    per_class: dict[str, float]  # class name -> AP (all thresholds and areas), by rising category id; no class: none
    instances: dict[str, int]  # class name -> ground-truth objects that count; crowd regions do not
    precision: Floats | None  # [T, R, K, A, M], -1 where there is no ground truth; None for proposals, which have none
    recall: Floats  # [T, K, A, M], -1 where there is no ground truth
    warnings: tuple[Warned, ...] = ()  # what is odd about the results
    sigmas: tuple[float, ...] | None = None  # OKS, of each keypoint
    spread: Spread | None = None  # over resamples of the images

    def precision_curve(self, iou: float | None) -> Floats:
        """[R] precision at RECALL_THRESHOLDS, mean over classes, at one IoU threshold or (None) over all of them."""
        if self.precision is None:
            raise ValueError(f"the {self.protocol.task} task has no precision; ask for its recall")
        at = self.precision[:, :, :, 0, -1]  # [T, R, K]
        if iou is not None:
            (index,) = np.nonzero(np.isclose(IOU_THRESHOLDS, iou))
            if not index.size:
                known = ", ".join(f"{t:.2f}" for t in IOU_THRESHOLDS)
                raise ValueError(f"COCO's IoU thresholds are {known}, got {iou}; choose one of them")
            at = at[index]
        present = at[0, 0] > -1  # [K]: no ground truth means -1 everywhere
        if not present.any():
            return np.full(at.shape[1], np.nan)
        return np.asarray(at[:, :, present].mean(axis=(0, 2)), dtype=np.float64)


def evaluate_coco(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    task: Task,
    engine: Engine = "columns",
    style: Style = "coco",
    categories: Sequence[str] | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> CocoAp:
    """AP and AR of `results` against `ground_truth`; neither is changed.

    Args:
        ground_truth: COCO's annotation file in memory: "images" (id, height, width), "categories" (id, name) and
            "annotations" (image_id, category_id, bbox xywh in pixels, area in pixels^2, iscrowd, and segmentation or
            keypoints). LVIS: with what it says of images and categories.
        results: COCO's results format (image_id, category_id, score, and bbox, segmentation or keypoints).
        task: which of these is compared. Masks and keypoints give a detection its area: pycocotools would take the
            box's if a result has one, which moves objects to another size range. "proposal" ignores classes.
        engine: "columns", "hotcoco" or "pycocotools"; the numbers are equal bit for bit. LVIS: not pycocotools.
        style: whose rules.
        categories: names of those that are scored; None: all.
        resamples: of the images, for `spread`; 0: without.
        seed: of the resamples.

    Raises:
        UserError: something cannot be scored, or has no AP to resample.
    """
    return score(prepare(ground_truth, results, task, style, categories), engine, resamples, seed)


@dataclass(frozen=True)
class Prepared:
    """Checked ground truth and results of one task: what is scored, and what a report explains."""

    truth: Truth
    results: Results
    warnings: tuple[Warned, ...]  # what is odd about the results

    @cached_property
    def found(self) -> list[dict[str, Any]]:
        """The results as COCO has them, in the same order."""
        return self.results.as_json(self.truth)

    @cached_property
    def matches(self) -> Matches:
        """Which result finds which object."""
        return find_matches(self.truth, self.results)


def prepare(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    task: Task,
    style: Style = "coco",
    categories: Sequence[str] | None = None,
) -> Prepared:
    """Check what `evaluate_coco` is to score; its arguments. Raises UserError."""
    with collector_paused():
        truth = check_truth(ground_truth, task, style, categories)
        checked, warnings = check_results(results, truth)
    return Prepared(truth, checked, tuple(warnings))


def score(prepared: Prepared, engine: Engine = "columns", resamples: int = 0, seed: int = 0) -> CocoAp:
    """The numbers. Raises UserError where the engine does not know the protocol, or it has no AP to resample."""
    truth, protocol = prepared.truth, prepared.truth.protocol
    if resamples:
        check_bootstrap(protocol)
    if protocol.federated and engine == "pycocotools":
        raise UserError(
            f"LVIS's federated AP needs engine columns or hotcoco, got {engine}: it does not know LVIS's rules"
        )
    precision, recall = _ENGINES[engine](prepared)
    names = class_names(truth.coco["categories"])
    counted = Counter(
        a["category_id"] for a in truth.coco["annotations"] if not a["iscrowd"] and a.get("num_keypoints", 1) > 0
    )
    spread = None
    if resamples:
        weights = draw(len(truth.image_ids), resamples, seed)
        sampled = resample(prepared.matches, protocol, truth.frequencies, len(names), weights)
        spread = spread_of(sampled, list(names.values()))
    values = {name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names.values())}
    return CocoAp(
        protocol=protocol,
        stats=_summary(truth, precision, recall),
        per_class=values if protocol.classes else {},
        instances={name: counted[category] for category, name in names.items()},
        precision=precision if protocol.classes else None,
        recall=recall,
        warnings=prepared.warnings,
        sigmas=truth.sigmas,
        spread=spread,
    )


def class_names(categories: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Category id -> name, by rising id, as axis K has them; of equal names each gets its id added."""
    ordered = sorted(categories, key=lambda c: int(c["id"]))
    uses = Counter(str(c["name"]) for c in ordered)
    return {int(c["id"]): f"{c['name']} ({c['id']})" if uses[c["name"]] > 1 else str(c["name"]) for c in ordered}


def _run_columns(prepared: Prepared) -> tuple[Floats, Floats]:
    """Precision [T, R, K, A, M] and recall [T, K, A, M]."""
    truth = prepared.truth
    return precision_recall(prepared.matches, truth.protocol, len(truth.category_ids))


def _run_hotcoco(prepared: Prepared) -> tuple[Floats, Floats]:
    """Precision [T, R, K, A, M] and recall [T, K, A, M]."""
    truth, found = prepared.truth, prepared.results
    source, protocol = hotcoco.COCO(truth.coco), truth.protocol
    rows = found.as_rows(truth) if protocol.geometry != "keypoints" and len(found.scores) else None
    if rows is None:
        detected = source.load_res(found.as_json(truth))
    else:
        masks: Any = found.masks or None
        detected = source.load_res(rows, segmentation=masks)
        if masks:  # else a detection has the area of its box
            detected.update_anns(ids=np.arange(1, len(masks) + 1), area=found.areas)
    evaluator = hotcoco.COCOeval(source, detected, protocol.iou_type, lvis_style=protocol.federated)
    evaluator.params.max_dets = list(protocol.limits)
    if truth.sigmas is not None:
        evaluator.params.kpt_oks_sigmas = list(truth.sigmas)
    evaluator.evaluate()
    evaluator.accumulate()
    return _arrays(evaluator.eval)


def _run_pycocotools(prepared: Prepared) -> tuple[Floats, Floats]:
    """Precision [T, R, K, A, M] and recall [T, K, A, M]."""
    truth, found = prepared.truth, prepared.results
    with contextlib.redirect_stdout(io.StringIO()):  # it prints progress, and has no switch for that
        source = COCO()
        source.dataset = truth.coco
        source.createIndex()
        if len(found.scores):
            detected = source.loadRes(found.as_json(truth))
        else:  # loadRes looks at the first result
            detected = COCO()
            detected.dataset = {**truth.coco, "annotations": []}
            detected.createIndex()
        evaluator = COCOeval(source, detected, truth.protocol.iou_type)
        evaluator.params.maxDets = list(truth.protocol.limits)
        if truth.sigmas is not None:
            evaluator.params.kpt_oks_sigmas = np.array(truth.sigmas)
        evaluator.evaluate()
        evaluator.accumulate()
    return _arrays(evaluator.eval)


def _arrays(evaluated: Mapping[str, Any] | None) -> tuple[Floats, Floats]:
    assert evaluated is not None  # after accumulate()
    return np.asarray(evaluated["precision"], dtype=np.float64), np.asarray(evaluated["recall"], dtype=np.float64)


_ENGINES: dict[Engine, Callable[[Prepared], tuple[Floats, Floats]]] = {
    "columns": _run_columns,
    "hotcoco": _run_hotcoco,
    "pycocotools": _run_pycocotools,
}


def _summary(truth: Truth, precision: Floats, recall: Floats) -> dict[str, float]:
    """cocoeval.py: summarize (LVIS: lvis-api's), without its print-out."""
    protocol, stats = truth.protocol, {}
    for stat in protocol.stats:
        area = protocol.areas.index(stat.area)
        limit = -1 if stat.limit is None else protocol.limits.index(stat.limit)
        values = recall[:, :, area, limit] if stat.is_recall else precision[:, :, :, area, limit]  # [T, (R,) K]
        if stat.iou is not None:
            values = values[int(np.argmin(abs(IOU_THRESHOLDS - stat.iou)))]
        if stat.frequency is not None:
            values = values[..., [frequency == stat.frequency for frequency in truth.frequencies]]
        stats[stat.name] = _mean(values)
    return stats


def _mean(values: Floats) -> float:
    """Mean of what is defined (not -1), NaN if nothing is."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else math.nan
