"""Tables of the paper as lists of trainings: what a budget keeps, and what is said of the results."""

import csv
import functools
import io
import json
import math
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from model.config import ModelConfig
from pipeline.configure import to_yaml
from pipeline.evaluation.tables import Numbers
from pipeline.search.paper import SEEDS, TINY_STEPS, budget_config, runnable
from pipeline.search.paper_table import Cell, cells, differences, number, shown, write_files
from pipeline.search.space import require_buildable
from pipeline.search.trials import Outcome, Progress, Report, Trial, candidate
from pipeline.variants import Table, load_table, row_config

PAPER = Path(__file__).parents[3] / "configs/paper"
TABLES = sorted(PAPER.glob("table_*.yaml"))


def table(name: str) -> Table:
    return loaded(PAPER / f"table_{name}.yaml")


loaded = functools.cache(load_table)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_tiny_budget_keeps_what_tells_rows_apart(path: Path) -> None:
    """Rows that are different networks or recipes at full size are different at the tiny one too, and can be built."""
    rows, left = runnable(loaded(path))
    assert rows and all(reason for reason in left.values())
    full = [row_config(loaded(path), row) for row in rows]
    tiny = [budget_config(loaded(path), row, "tiny", 0, ["data.train=a", "data.val=b"]) for row in rows]
    assert len(set(map(to_yaml, full))) == len(rows) == len(set(map(to_yaml, tiny)))
    for before, after in zip(full, tiny, strict=True):
        require_buildable(after.model, path.stem)
        assert (after.model.mask is None) == (before.model.mask is None)
        assert (after.model.keypoint is None) == (before.model.keypoint is None)
        assert after.model.roi.operation == before.model.roi.operation
        assert after.model.trunk.neck == before.model.trunk.neck
        assert max(after.data.train_sizes_px) < 170 and after.model.trunk.width == 32 and after.train.batch_images <= 4
        assert TINY_STEPS <= after.train.steps < 1.2 * TINY_STEPS
        assert all(milestone < after.train.steps for milestone in after.optim.milestones)
        during = after.evaluate.during_training
        assert during is not None and during.every_steps == after.train.steps
    if path.stem == "table_2c":
        assert len({replaced(config.model) for config in tiny}) == 1  # in all else they are the same


def replaced(model: ModelConfig) -> ModelConfig:
    from dataclasses import replace

    return replace(model, roi=replace(model.roi, operation="align"))


def test_seeds_and_overrides_come_last() -> None:
    paper = table("2c")
    row = runnable(paper)[0][0]
    first, second = (
        budget_config(paper, row, "tiny", seed, ["train.steps=10", "model.trunk.norm=gn"]) for seed in (0, 1)
    )
    assert (first.train.seed, second.train.seed) == (0, 1)
    assert first.train.steps == 10 and first.model.trunk.norm == "gn"
    assert first.evaluate.during_training is not None and first.evaluate.during_training.every_steps == 10
    short = budget_config(paper, row, "short", 0, [])
    assert (short.train.steps, short.optim.milestones) == (8000, (6000,))
    full = budget_config(paper, row, "full", 0, [])
    assert full.model == row_config(paper, row).model and full.train.steps == 160000
    assert SEEDS["tiny"] == 2
    assert [budget_config(paper, row, "tiny", seed, ["train.seed=7"]).train.seed for seed in (0, 1)] == [7, 8]


def test_rows_that_cannot_be_compared_are_left_out_with_a_reason() -> None:
    assert runnable(table("7"))[1]["Mask R-CNN, fine + COCO"] == "starts from coco weights, the others from imagenet"
    assert "another system's" in runnable(table("1"))[1]["MNC, R101-C4"]


# --- results


def test_a_number_of_ap_json() -> None:
    nan = math.nan
    found = {"box": Numbers({"AP": 0.3}, {}), "mask": Numbers({"AP": 0.2, "AP50": nan}, {"person": 0.1})}
    assert number(found, "box/AP") == 0.3 and number(found, "cityscapes/AP") == 0.2
    assert number(found, "cityscapes/AP_person") == 0.1 and number(found, "cityscapes/AP_train") is None
    assert number(found, "keypoint/AP") is None and math.isnan(number(found, "mask/AP50") or 0)


@pytest.fixture
def found() -> list[Cell]:
    return [
        Cell("pool", "mask/AP", (10.0, 12.0), 26.9),
        Cell("pool", "mask/AP75", (5.0, 6.0), None),
        Cell("align", "mask/AP", (14.0, 15.0), 30.3),
        Cell("align", "mask/AP75", (), 31.5),
    ]


def test_mean_spread_and_differences(found: list[Cell]) -> None:
    assert found[0].mean == 11.0 and found[0].spread == pytest.approx(math.sqrt(2))
    assert math.isnan(found[3].mean) and math.isnan(Cell("a", "b", (1.0,), None).spread)
    apart = differences(found)
    assert apart["pool", "mask/AP"] == (0.0, 0.0)
    assert apart["align", "mask/AP"] == (pytest.approx(3.5), pytest.approx(3.4))
    ours, paper = apart["align", "mask/AP75"]
    assert math.isnan(ours) and paper is None


def test_what_is_shown_and_written(found: list[Cell], tmp_path: Path) -> None:
    text = io.StringIO()
    Console(width=100, file=text).print(shown(found, "table", 100))
    lines = [" ".join(line.split()) for line in text.getvalue().splitlines() if line.strip()]
    assert lines[3:] == [
        *("pool ours 11.0 ± 1.4 5.5 ± 0.7", "paper 26.9 -"),
        *("align ours 14.5 ± 0.7 -", "paper 30.3 31.5", "ours - first +3.5 -", "paper - first +3.4 -"),
    ]
    paths = write_files(found, tmp_path)
    with paths[0].open() as file:
        rows = list(csv.DictReader(file))
    assert rows[2]["values"] == "14.0000 15.0000" and rows[2]["paper"] == "30.3" and rows[3]["mean"] == ""
    assert json.loads(paths[1].read_text())[2]["minus_first_row"] == pytest.approx(3.5)
    with Image.open(paths[2]) as image:
        assert image.width > 600 and len(image.convert("RGB").getcolors(1 << 24) or ()) > 50


@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_names_and_numbers_are_whole_at_any_width(path: Path, width: int) -> None:
    paper = loaded(path)
    rows = [row.name for row in runnable(paper)[0]]
    made = [  # the numbers tell the columns apart
        Cell(row, column.metric, (69.0 + place, 71.0 + place), -80.0 - place, column.split)
        for row in rows
        for place, column in enumerate(paper.columns)
    ]
    text = io.StringIO()
    Console(width=width, file=text).print(shown(made, "a title", width))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "…" not in text.getvalue()
    blocks = sum(line.split()[:1] == ["row"] for line in lines)
    assert 1 <= blocks <= (1 if width == 200 and path.stem != "table_7" else 4)
    for label, count in (("ours ", len(rows)), ("paper ", len(rows)), ("ours - first ", len(rows) - 1)):
        assert sum(f" {label}" in f" {' '.join(line.split())} " for line in lines) >= count * blocks
    for place, column in enumerate(paper.columns):
        words = text.getvalue().split()
        assert column.metric in words or set(column.metric.replace("/", "/ ").split()) <= set(words)
        assert text.getvalue().count(f" {70 + place}.0 ± 1.4 ") == len(rows)
        assert text.getvalue().count(f" -{80 + place}.0 ") == len(rows)
    names = " ".join(line[2:26].split("  ")[0] for line in lines)  # a name may take several lines
    for row in rows:
        assert " ".join(names.split()).count(row) >= blocks, names


def test_ours_is_of_val_and_the_papers_may_not_be() -> None:
    """Table 7 has the AP of both splits."""
    paper = table("7")
    row = runnable(paper)[0][0]
    trial = Trial(candidate(0, {"row": row.name, "seed": 0}, row_config(paper, row)), Progress(), Outcome("failed"))
    found = cells(paper, [trial], Path())
    assert [(cell.metric, cell.paper, cell.split) for cell in found[:2]] == [
        ("cityscapes/AP", 31.5, "val"),
        ("cityscapes/AP", 26.2, "test"),
    ]
    text = io.StringIO()
    Console(width=120, file=text).print(shown(found, "table", 120))
    lines = [line.split() for line in text.getvalue().splitlines()]
    place = next(index for index, line in enumerate(lines) if line[:1] == ["row"])
    assert lines[place - 1][:2] == ["cityscapes/", "AP"] or lines[place][:3] == ["row", "AP", "test"]
    assert next(line for line in lines if "paper" in line[:1])[:3] == ["paper", "31.5", "26.2"]


def test_only_trials_that_finished_count(tmp_path: Path) -> None:
    paper = table("2d")
    config = row_config(paper, runnable(paper)[0][0])
    trials = []
    for index, (row, why, ap) in enumerate(
        [
            ("RoIPool", "finished", 0.1),
            ("RoIAlign", "finished", 0.2),
            ("RoIPool", "diverged", 0.9),
            ("RoIAlign", "finished", 0.3),
        ]
    ):
        place = tmp_path / f"trial_{index:03d}/evaluations/step_0000010"
        place.mkdir(parents=True)
        stats = {"AP": ap, "AP50": None, "per_class": {}, "instances": {}}
        (place / "ap.json").write_text(json.dumps({"mask": stats}))
        progress = Progress((Report(10, 1.0, ap),))
        trials.append(Trial(candidate(index, {"row": row, "seed": index // 2}, config), progress, Outcome(why)))  # type: ignore[arg-type]
    by_place = {(cell.row, cell.metric): cell for cell in cells(paper, trials, tmp_path)}
    assert by_place["RoIPool", "mask/AP"].values == (10.0,) and by_place["RoIPool", "mask/AP"].paper == 23.6
    assert by_place["RoIAlign", "mask/AP"].values == (20.0, 30.0)
    assert by_place["RoIAlign", "mask/AP50"].values == () and by_place["RoIAlign", "box/AP"].values == ()
