"""`maskrcnn paper` up to where it would start Ray."""

from pathlib import Path

import pytest

from jobs import paper as module
from jobs.paper import paper
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.search.plan import Plan, plan_budget


class PlannedError(Exception):
    """In place of Ray."""


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    made: list[Plan] = []
    real = module.new_plan

    def keep(*words: object) -> Plan:
        made.append(real(*words))  # type: ignore[arg-type]
        return made[-1]

    def stop(*_: object, **__: object) -> None:
        raise PlannedError

    monkeypatch.setattr(module, "new_plan", keep)
    monkeypatch.setattr(module, "plan_on_cluster", stop)
    return made


def test_paths_are_taken_as_they_are(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plans: list[Plan]
) -> None:
    """A number is a directory, and what follows a # belongs to it."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "my data #1: all"
    data.symlink_to(shapes)
    with pytest.raises(PlannedError):
        paper("2c", "tiny", data, Path("2024"), 1, ["tune.name=t"])
    (plan,) = plans
    assert plan.directory == tmp_path / "2024/t"
    assert plan.config.data.train == str(data / "train") and plan.config.data.val == str(data / "val")


def test_every_row_is_tried_on_the_data_and_named(shapes: Path, tmp_path: Path, plans: list[Plan]) -> None:
    with pytest.raises(UserError, match=r"Faster R-CNN.*: evaluate\.during_training\.metric must be one of box/AP"):
        during = "evaluate.during_training={every_steps: 40, metric: mask/AP}"
        paper("3", "tiny", shapes, tmp_path, 1, ["train.checkpoint_every_steps=40", during])
    assert plans == []
    with pytest.raises(PlannedError):  # a row without masks: all are compared by boxes
        paper("3", "tiny", shapes, tmp_path, 1, [])
    assert plans[0].metric == "box/AP"
    config: RunConfig = plans[0].config
    assert config.evaluate.during_training is not None and not any(tmp_path.iterdir())


@pytest.mark.parametrize("cores", [2, 4])
def test_tiny_trains_a_row_a_core(shapes: Path, tmp_path: Path, plans: list[Plan], cores: int) -> None:
    with pytest.raises(PlannedError):
        paper("2c", "tiny", shapes, tmp_path, None, [])
    (plan,) = plans
    assert plan.tune.trials == 10
    budget = plan_budget(plan, [{"CPU": float(cores)}], [4] * 10, 10)
    assert (budget.concurrent, budget.workers.workers) == (cores, 1)
