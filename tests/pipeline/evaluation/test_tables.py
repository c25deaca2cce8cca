import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.evaluation.bootstrap import Spread
from pipeline.evaluation.cityscapes_ap import CityscapesAp
from pipeline.evaluation.coco_ap import CocoAp
from pipeline.evaluation.protocols import PROTOCOLS, STAT_NAMES
from pipeline.evaluation.tables import (
    ap_tables,
    per_class_table,
    read_ap_json,
    with_classes,
    write_ap_json,
    write_per_class_csv,
)


def ap(value: float, classes: dict[str, float]) -> CocoAp:
    stats = {name: value for name in STAT_NAMES} | {"AP_large": math.nan}
    k = len(classes)
    empty = np.zeros((10, 101, k, 4, 3))
    return CocoAp(PROTOCOLS["coco"]["box"], stats, classes, dict.fromkeys(classes, 7), empty, empty[:, 0])


def show(table: Table, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_ap_table_shows_percent_and_dashes() -> None:
    (table,) = ap_tables({"box": ap(0.45678, {"a": 0.1}), "mask": ap(0.3, {"a": 0.1})})
    text = show(table)
    rows = {line.split()[0]: line.split()[1:3] for line in text.splitlines() if line.strip().startswith("A")}
    assert rows["AP"] == ["45.7", "30.0"]
    assert rows["AP_large"] == ["-", "-"]
    assert set(rows) == set(STAT_NAMES)


def test_per_class_table_fits_eighty_classes_in_a_terminal() -> None:
    classes = {f"class {i}": i / 100 for i in range(80)} | {"unseen": math.nan}
    for width, most_lines in ((80, 48), (120, 34), (40, 90)):
        text = show(per_class_table({"box": ap(0.4, classes), "mask": ap(0.3, classes)}, width), width)
        assert all(f" {name} " in text for name in classes)
        assert len(text.splitlines()) < most_lines
    assert "objects" in text


def test_cityscapes_numbers_are_ap_and_ap50() -> None:
    stats, objects = {"AP": 0.301, "AP50": 0.552}, {"car": 31, "train": 0}
    found = CityscapesAp(
        stats, {"car": 0.512, "train": math.nan}, {"car": 0.733, "train": math.nan}, objects, np.empty(0)
    )
    rows = [line.split()[:2] for line in show(next(ap_tables({"mask": found}))).splitlines() if " IoU " in line]
    assert rows == [["AP", "30.1"], ["AP50", "55.2"]]
    text = show(per_class_table(with_classes({"mask": found}))).splitlines()
    assert [line.split() for line in text if line.strip().startswith(("class", "car", "train"))] == [
        ["class", "mask", "mask50", "objects"],
        ["car", "51.2", "73.3", "31"],
        ["train", "-", "-", "0"],
    ]


def test_files_hold_every_digit_and_no_nan(tmp_path: Path) -> None:
    classes = {"größe, 猫": 1 / 3, "unseen": math.nan}
    aps = {"box": ap(0.1 + 0.2, classes), "mask": ap(0.5, classes)}
    write_ap_json(aps, tmp_path / "ap.json")
    content = json.loads((tmp_path / "ap.json").read_text(encoding="utf-8"))
    assert content["box"]["AP"] == 0.1 + 0.2
    assert content["mask"]["AP_large"] is None
    assert content["box"]["per_class"] == {"größe, 猫": 1 / 3, "unseen": None}
    write_per_class_csv(aps, tmp_path / "per_class.csv")
    with (tmp_path / "per_class.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["class", "objects", "box_AP", "mask_AP"],
            ["größe, 猫", "7", str(1 / 3), str(1 / 3)],
            ["unseen", "7", "", ""],
        ]


def test_intervals_stand_beside_their_numbers(tmp_path: Path) -> None:
    spread = Spread(1000, {"AP": (0.41, 0.493), "AP_large": (math.nan, math.nan)}, {"a": (0.1, 0.9)})
    found = replace(ap(0.45678, {"a": 0.1}), spread=spread)
    lines = {
        line.split()[0]: line.split()
        for line in show(next(ap_tables({"box": found, "mask": found}))).splitlines()
        if line.strip()
    }
    assert lines["box"] == ["box", "95", "%", "mask", "95", "%"]
    assert lines["AP"][1:5] == ["45.7", "41.0-49.3"] * 2
    assert lines["AP_large"][1:3] == ["-", "-"] and lines["AR_100"][1:3] == ["45.7", "45.7"]
    assert "a 10.0 10.0-90.0 7" in " ".join(show(per_class_table({"box": found})).split())
    write_ap_json({"box": found}, tmp_path / "ap.json")
    interval = json.loads((tmp_path / "ap.json").read_text())["box"]["interval"]
    assert interval == {"AP": [0.41, 0.493], "AP_large": None, "per_class": {"a": [0.1, 0.9]}, "resamples": 1000}
    numbers = read_ap_json(tmp_path / "ap.json")["box"]
    assert set(numbers.stats) == set(STAT_NAMES) and numbers.per_class == {"a": 0.1}
