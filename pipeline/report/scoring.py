"""Tasks scored one after the other, with what a report counts of each while its input is in memory."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import Engine
from pipeline.evaluation.coco_ap import Prepared, prepare, score
from pipeline.evaluation.protocols import Style, Task
from pipeline.evaluation.tables import Ap
from pipeline.report.analysis import Analysis, analyse


@dataclass
class Scoring:
    """What came out so far."""

    main: str | None  # the task whose input is kept for a report's pictures; None: there is no report
    aps: dict[str, Ap] = field(default_factory=dict)
    analyses: dict[str, Analysis] = field(default_factory=dict)
    prepared: Prepared | None = None  # of the main task
    score_seconds: float = 0.0
    analysis_seconds: float = 0.0

    def score(
        self,
        truth: Mapping[str, Any],
        results: Sequence[Mapping[str, Any]],
        task: Task,
        engine: Engine,
        style: Style,
        categories: Sequence[str] | None,
        resamples: int = 0,
    ) -> None:
        """Score one task; the arguments are those of `evaluate_coco`. Raises UserError."""
        start = time.perf_counter()
        prepared = prepare(truth, results, task, style, categories)
        self.aps[task] = score(prepared, engine, resamples)
        self.score_seconds += time.perf_counter() - start
        if self.main is not None:
            self.explain(prepared)

    def explain(self, prepared: Prepared) -> None:
        """Count what a report says of a task."""
        start = time.perf_counter()
        task = prepared.truth.protocol.task
        self.analyses[task] = analyse(prepared)
        if task == self.main:
            self.prepared = prepared
        self.analysis_seconds += time.perf_counter() - start
