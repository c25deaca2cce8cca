"""pipeline/variants.py: what a table may say, and what is said of one that is wrong."""

from pathlib import Path

import pytest

from pipeline.variants import METRICS, TableError, load_table, row_config, row_model

GOOD = """
table: 9z
title: two ways
data: coco
config: base.yaml
overrides: [train.steps=7]
columns:
  - {metric: mask/AP}
  - {metric: box/AP50, split: test-dev}
rows:
  - name: another system
    paper: [24.6, null]
  - name: ours
    overrides: [model.roi.operation=pool, "optim.milestones=[3, 5]"]
    paper: [26, 50.5]
    note: a note
  - name: ours, elsewhere
    config: below/other.yaml
    overrides: []
    start: coco
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text("train:\n  steps: 5\n  seed: 3\n")
    (tmp_path / "below").mkdir()
    (tmp_path / "below/other.yaml").write_text("model:\n  mask: null\n  keypoint: {}\n")
    return tmp_path


def load(place: Path, text: str = GOOD):
    path = place / "table.yaml"
    path.write_text(text)
    return load_table(path)


def test_rows_with_overrides_are_variants(place: Path) -> None:
    table = load(place)
    assert [row.name for row in table.rows] == ["another system", "ours", "ours, elsewhere"]
    assert [row.name for row in table.variants] == ["ours", "ours, elsewhere"]
    assert [(c.metric, c.split) for c in table.columns] == [("mask/AP", "val"), ("box/AP50", "test-dev")]
    assert table.rows[0].paper == (24.6, None) and table.rows[1].paper == (26.0, 50.5)
    assert (table.start, table.rows[2].start) == ("imagenet", "coco")


def test_configurations_are_layers(place: Path) -> None:
    table = load(place)
    ours, elsewhere = table.variants
    config = row_config(table, ours, ["model.roi.operation=align"])
    assert config.train.steps == 7 and config.train.seed == 3  # table over file
    assert config.optim.milestones == (3, 5)
    assert row_config(table, ours).model.roi.operation == "pool"  # row over table
    assert config.model.roi.operation == "align"  # the caller over the row
    assert row_config(table, elsewhere).model.mask is None  # a file of its own, below the table
    with pytest.raises(TableError, match="row another system of table 9z has no overrides"):
        row_config(table, table.rows[0])


@pytest.mark.parametrize(
    ("data", "classes", "keypoints"), [("coco_persons", 1, 17), ("shapes", 8, 4)], ids=["persons", "shapes"]
)
def test_the_data_says_how_many(place: Path, data: str, classes: int, keypoints: int) -> None:
    table = load(place, GOOD.replace("data: coco", f"data: {data}"))
    model = row_model(table, table.variants[1])
    assert model.classes == classes
    assert model.keypoint is not None and model.keypoint.count == keypoints


def test_keypoints_need_data_with_some(place: Path) -> None:
    table = load(place)
    with pytest.raises(TableError, match=r"row ours, elsewhere: model.keypoint is set, but coco has no keypoints"):
        row_model(table, table.variants[1])


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[26, 50.5]", "[26]", r"row 2 \(ours\): paper must hold 2 numbers, one a column, got 1; write null"),
        ("name: ours, elsewhere", "name: ours", r"row 3 \(ours\): the name is that of row 2; choose another"),
        ("mask/AP}", "masks/AP}", "column 1: metric must be one of box/AP, .*, got masks/AP"),
        ("operation=pool", "operation=pol", r"row ours: model\.roi\.operation must be one of .*, got \"pol\""),
        ("[model.roi.operation=pool, ", "[train.stepz=3, ", r"row ours: train\.stepz is not a key; did you mean"),
        ("config: below/other.yaml", "config: below/gone.yaml", r"row ours, elsewhere: .*gone\.yaml: no such file"),
        ("note: a note", "notes: a note", r"row 2 \(ours\): notes is not a key"),
        ("note: a note", "note: 3", r"row 2 \(ours\): note: .*valid string, got 3"),
        ("paper: [24.6, null]", "note: nothing", r"row 1 \(another system\): paper must hold numbers where"),
        ("start: coco", "start: cocoa", r"row 3 \(ours, elsewhere\): start: "),
        ("data: coco", "data: voc", "data: "),
        ("title: two ways\n", "", "title: "),
        ("rows:", "rowz:", "not a table of variants, it has no rows"),
        ("title: two ways", "title: [two", r":\d+:\d+: not valid YAML"),
    ],
)
def test_errors_name_file_and_row(place: Path, old: str, new: str, problem: str) -> None:
    assert old in GOOD
    with pytest.raises(TableError, match=rf"(?s)table\.yaml.*{problem}"):
        load(place, GOOD.replace(old, new, 1))


def test_all_problems_at_once(place: Path) -> None:
    wrong = GOOD.replace("operation=pool", "operation=pol").replace("below/other", "below/gone")
    with pytest.raises(TableError, match=r"(?s)row ours: .*row ours, elsewhere: "):
        load(place, wrong)


def test_a_table_that_runs_nothing(place: Path) -> None:
    head = GOOD.partition("  - name: ours\n")[0]
    with pytest.raises(TableError, match="rows must hold one with overrides, got none"):
        load(place, head)


def test_no_such_table(place: Path) -> None:
    with pytest.raises(TableError, match=r"gone\.yaml: no such file; .* has base\.yaml"):
        load_table(place / "gone.yaml")


def test_metrics_have_no_doubles() -> None:
    assert len(set(METRICS)) == len(METRICS) == 3 * 6 + 2 + 8
