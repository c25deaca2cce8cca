import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import benchmark_learning
from jobs.main import app
from pipeline.benchmarks.learning import Learning

CONFIGS = Path(__file__).parents[2] / "configs"


def run(*words: object):
    return CliRunner().invoke(app, ["benchmark", *map(str, words)])


def test_variants_prints_each_model_once() -> None:
    """Table 2d has two models of one size, and one of them again."""
    table = CONFIGS / "paper/table_2d.yaml"
    done = run("variants", table, table, "--rounds", 0)
    assert done.exit_code == 0, done.output
    rows = re.findall(r"2d (\w+)\D+(\d+\.\d)\D+(\d+)", done.stdout)
    assert [name for name, *_ in rows] == ["RoIPool", "RoIAlign"]
    assert rows[0][1:] == rows[1][1:] == ("172.4", "364")
    assert "torchvision" not in done.stdout  # not timed


def test_learning_prints_losses_and_ap(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def learn(config, on_step):
        seen.append(config)
        on_step(1)
        keypoints = {} if config.model.keypoint is None else {"keypoint/keypoint": 8.25}
        first = {"rpn/objectness": 0.5, "rpn/box": 0.25, "box/class": 2.0, "box/box": 0.125, "mask/mask": 0.75}
        first |= keypoints
        aps = {"box": 0.123, "mask": 0.045, "mask_small": 0.031} | ({"keypoint": 0.67} if keypoints else {})
        return Learning(first, {name: loss / 4 for name, loss in first.items()}, aps, 1.5)

    monkeypatch.setattr(benchmark_learning, "learn", learn)
    done = run("learning", CONFIGS / "shapes/variants.yaml", "train.steps=7", "data.train=x")
    assert done.exit_code == 0, done.output
    assert [config.train.steps for config in seen] == [7] * 6 and {config.data.train for config in seen} == {"x"}
    lines = done.stdout.splitlines()
    (fpn,) = (i for i, line in enumerate(lines) if line.split()[:1] == ["FPN"])
    assert lines[fpn].split() == ["FPN", "3.62", "0.50", "0.25", "2.00", "0.12", "0.75", "12.3", "4.5", "3.1", "1.50"]
    assert lines[fpn + 1].split() == ["0.91", "0.12", "0.06", "0.50", "0.03", "0.19"]
    (points,) = (line.split() for line in lines if line.split()[:1] == ["keypoints"])
    assert points[-6:] == ["8.25", "12.3", "4.5", "3.1", "67.0", "1.50"]
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_a_table_that_is_none_is_refused() -> None:
    done = run("learning", CONFIGS / "shapes/quickstart.yaml")
    assert done.exit_code == 2
    assert "not a table of variants" in done.output
