"""Evaluations while training goes on: which checkpoint is best, when to stop, what the driver has not logged yet."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_training import tiny_run, write_tiny

from pipeline.config import DuringTrainingConfig, EvaluateConfig
from pipeline.evaluation.tables import Numbers
from pipeline.training.checkpoint import checkpoint_name
from pipeline.training.evaluations import (
    NO_SCORE,
    best_checkpoint,
    best_step,
    evaluation_directory,
    evaluations,
    is_due,
    mark_logged,
    not_logged,
    out_of_patience,
    score,
)


def numbers(**tasks: float) -> dict[str, Numbers]:
    return {task: Numbers({"AP": value, "AP50": value / 2}, {}) for task, value in tasks.items()}


def write(run_dir: Path, step: int, box: float | None, mask: float | None) -> None:
    directory = evaluation_directory(run_dir, step)
    directory.mkdir(parents=True)
    content = {task: {"AP": value, "per_class": {"dog": value}} for task, value in (("box", box), ("mask", mask))}
    (directory / "ap.json").write_text(json.dumps(content))


def test_a_checkpoint_is_judged_by_its_finest_task_or_by_the_metric() -> None:
    during = DuringTrainingConfig()
    assert score(numbers(box=0.5, mask=0.4), during) == 0.4
    assert score(numbers(box=0.5), during) == 0.5
    assert score(numbers(box=0.5, mask=0.4), replace(during, metric="box/AP50")) == 0.25
    assert score({"proposal": Numbers({"AR_100": 0.3, "AR_1000": 0.6}, {})}, during) == 0.6
    for undefined in ({}, numbers(mask=math.nan)):
        assert score(undefined, during) == NO_SCORE


@pytest.mark.parametrize(
    ("scores", "patience", "best", "stop"),
    [
        ([], 1, None, False),
        ([0.1], 1, 10, False),
        ([0.1, 0.2], 1, 20, False),
        ([0.2, 0.1], 1, 10, True),
        ([0.2, 0.2], 1, 10, True),  # as good is not better
        ([0.2, 0.1], 2, 10, False),
        ([0.2, 0.1, 0.15], 2, 10, True),
        ([0.2, 0.1, 0.3], 2, 30, False),
        ([math.nan, math.nan], 1, 10, True),
        ([0.2, 0.1, 0.1, 0.1], None, 10, False),
    ],
)
def test_patience(scores: list[float], patience: int | None, best: int | None, stop: bool) -> None:
    during = DuringTrainingConfig(patience=patience)
    evaluated = {10 * (i + 1): numbers(mask=value) for i, value in enumerate(scores)}
    assert best_step(evaluated, during) == best
    assert out_of_patience(evaluated, during) is stop


def test_what_is_due() -> None:
    config = tiny_run(steps=25, checkpoint_every_steps=5)
    assert not any(is_due(config, step) for step in range(1, 26))
    config = replace(config, evaluate=EvaluateConfig(during_training=DuringTrainingConfig(every_steps=10)))
    assert [step for step in range(1, 26) if is_due(config, step)] == [10, 20, 25]


def test_only_checkpoints_are_evaluated() -> None:
    every = EvaluateConfig(during_training=DuringTrainingConfig(every_steps=7))
    with pytest.raises(
        ValueError, match=r"every_steps must be a multiple of train\.checkpoint_every_steps \(5\), got 7"
    ):
        replace(tiny_run(checkpoint_every_steps=5), evaluate=every)


def test_each_finished_evaluation_is_handed_on_until_it_is_logged(tmp_path: Path) -> None:
    assert not evaluations(tmp_path) and not list(not_logged(tmp_path))
    write(tmp_path, 2000000, 0.4, None)  # undefined: no ground truth
    write(tmp_path, 10, 0.3, 0.2)
    torn = evaluation_directory(tmp_path, 30)
    torn.with_name(f".{torn.name}.tmp").mkdir()
    assert list(evaluations(tmp_path)) == [10, 2000000]
    assert math.isnan(evaluations(tmp_path)[2000000]["mask"].stats["AP"])
    first, second = not_logged(tmp_path)
    assert (first["step"], second["step"]) == (10, 2000000)
    assert first["aps"]["mask"] == Numbers({"AP": 0.2}, {"dog": 0.2})
    mark_logged(first["directory"])
    assert [event["step"] for event in not_logged(tmp_path)] == [2000000]


def test_the_best_checkpoint_is_one_that_is_kept(tmp_path: Path) -> None:
    during = DuringTrainingConfig()
    assert best_checkpoint(tmp_path, during) is None
    for step, mask in ((10, 0.5), (20, 0.3), (30, 0.4)):
        write(tmp_path, step, 0.1, mask)
    assert best_checkpoint(tmp_path, during) is None
    for step in (20, 30):
        write_tiny(tmp_path / checkpoint_name(step))
    assert best_checkpoint(tmp_path, during) == tmp_path / checkpoint_name(30)
