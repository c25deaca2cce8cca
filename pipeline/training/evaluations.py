"""Evaluations of a run's checkpoints, and what follows from them: which is best, and whether to go on.

Each lies in RUN/evaluations/step_N, which appears by a rename when it is whole. From there the driver logs it and the
workers read whether to stop early; so a kill at any moment loses neither.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config import DuringTrainingConfig, RunConfig
from pipeline.evaluation.tables import Numbers, read_ap_json
from pipeline.training.checkpoint import META, checkpoint_name

NO_SCORE = -1.0  # of a checkpoint that is not evaluated: worse than any
Evaluated = Mapping[str, Numbers]  # task -> its numbers
_JUDGES = ("mask/AP", "keypoint/AP", "box/AP", "proposal/AR_1000")  # the first that there is
_LOGGED = ".logged"


def evaluation_directory(run_dir: Path, step: int) -> Path:
    """Where the evaluation of the checkpoint of `step` lies."""
    return run_dir / "evaluations" / checkpoint_name(step)


def evaluations(run_dir: Path) -> dict[int, Evaluated]:
    """Numbers of every finished evaluation, by ascending step."""
    found = (run_dir / "evaluations").glob("step_*/ap.json")
    return {int(path.parent.name.removeprefix("step_")): read_ap_json(path) for path in sorted(found)}


def failure_file(run_dir: Path, step: int) -> Path:
    """Where it is written why a checkpoint could not be evaluated."""
    return evaluation_directory(run_dir, step).with_suffix(".failed.txt")


def has_ended(run_dir: Path, step: int) -> bool:
    """Whether the evaluation of the checkpoint of `step` is finished, or has failed."""
    return evaluation_directory(run_dir, step).exists() or failure_file(run_dir, step).exists()


def is_due(config: RunConfig, step: int) -> bool:
    """Whether the checkpoint of `step` is to be evaluated while training goes on. The last one always is."""
    during = config.evaluate.during_training
    return during is not None and (step % during.every_steps == 0 or step == config.train.steps)


def score(evaluated: Evaluated, during: DuringTrainingConfig) -> float:
    """What a checkpoint is judged by: during.metric, by default the AP of the finest task. NO_SCORE if undefined."""
    numbers = {f"{task}/{name}": value for task, one in evaluated.items() for name, value in one.stats.items()}
    names = _JUDGES if during.metric is None else (during.metric,)
    value = next((numbers[name] for name in names if name in numbers), NO_SCORE)
    return NO_SCORE if math.isnan(value) else value


def judge(measured: Collection[str]) -> str | None:
    """The metric that judges checkpoints where the configuration names none; None: none of these."""
    return next((name for name in _JUDGES if name in measured), None)


def best_step(evaluated: Mapping[int, Evaluated], during: DuringTrainingConfig) -> int | None:
    """The step whose score is highest, the first of equals; None: nothing is evaluated."""
    return max(evaluated, key=lambda step: (score(evaluated[step], during), -step), default=None)


def out_of_patience(evaluated: Mapping[int, Evaluated], during: DuringTrainingConfig) -> bool:
    """Whether the last `patience` evaluations were no better than one before them."""
    best = best_step(evaluated, during)
    if during.patience is None or best is None:
        return False
    return sum(step > best for step in evaluated) >= during.patience


def best_checkpoint(run_dir: Path, during: DuringTrainingConfig) -> Path | None:
    """The best evaluated checkpoint of those that are kept; None: there is none."""
    evaluated = evaluations(run_dir)
    kept = {step: found for step, found in evaluated.items() if (run_dir / checkpoint_name(step) / META).is_file()}
    step = best_step(kept, during)
    return None if step is None else run_dir / checkpoint_name(step)


def not_logged(run_dir: Path) -> Iterator[dict[str, Any]]:
    """An event for the driver for each finished evaluation that it has not marked as logged, by ascending step."""
    for step, evaluated in evaluations(run_dir).items():
        directory = evaluation_directory(run_dir, step)
        if not (directory / _LOGGED).exists():
            yield {"kind": "evaluated", "step": step, "aps": evaluated, "directory": directory}


def mark_logged(directory: Path) -> None:
    """The driver has logged this evaluation."""
    (directory / _LOGGED).touch()
