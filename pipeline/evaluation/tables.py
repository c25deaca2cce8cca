"""AP as tables for the terminal (percent, one decimal) and as files (0..1, every digit): ap.json and per_class.csv.

`aps` holds some of {"box": CocoAp, "mask": ..., "keypoint": ..., "proposal": ...}, or {"mask": CityscapesAp}; each
becomes a column.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.evaluation.bootstrap import Spread
from pipeline.evaluation.cityscapes_ap import CityscapesAp
from pipeline.evaluation.coco_ap import CocoAp

Ap = CocoAp | CityscapesAp
_ROWS_A_BLOCK = 20  # a longer class list goes on in a block beside the first, if there is room
_INTERVAL = "95 %"  # of resamples; the title of their columns
_INTERVAL_WIDTH = 9  # characters
_GAP = 3  # characters between two columns


def ap_tables(aps: Mapping[str, Ap]) -> Iterator[Table]:
    """The official numbers, a column a task, in percent; "-" where there is no ground truth.

    Tasks with the same numbers share a table.
    """
    for stats, group in groupby(aps.items(), lambda item: item[1].protocol.stats):
        columns = dict(group)
        title = "average recall of proposals, %" if "proposal" in columns else "average precision, %"
        table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
        table.add_column("")
        for task, ap in columns.items():
            table.add_column(task, justify="right")
            if spread_of(ap) is not None:
                table.add_column(_INTERVAL, justify="right", style="dim", no_wrap=True)
        table.add_column("", style="dim")
        for stat, after in zip(stats, (*stats[1:], None), strict=True):
            style = "bold" if stat.name == "AP" else None
            table.add_row(
                stat.name,
                *(text for ap in columns.values() for text in _cells(ap, stat.name)),
                stat.meaning,
                style=style,
            )
            if after is not None and after.is_recall and not stat.is_recall:
                table.add_section()
        yield table


def with_classes(aps: Mapping[str, Ap]) -> dict[str, Ap]:
    """Those of `aps` that have a number for each class; Cityscapes' once more as "mask50", with AP50 in its place."""
    columns: dict[str, Ap] = {}
    for task, ap in aps.items():
        if ap.per_class:
            columns[task] = ap
        if isinstance(ap, CityscapesAp):
            columns[f"{task}50"] = ap.at_50()
    return columns


def per_class_table(aps: Mapping[str, Ap], width: int = 80) -> Table:
    """AP of each class in percent, and how many objects it has; long lists go on in blocks beside the first.

    Args:
        aps: with_classes, at least one.
        width: characters that a line may have, as `Console.width` says.
    """
    any_ap = next(iter(aps.values()))
    names = list(any_ap.per_class)
    block_width = max(map(len, names), default=0) + _GAP + sum(max(len(task), 5) + _GAP for task in aps)
    block_width += sum(_INTERVAL_WIDTH + _GAP for ap in aps.values() if spread_of(ap) is not None)
    blocks = max(1, min(math.ceil(len(names) / _ROWS_A_BLOCK), width // block_width))
    rows = math.ceil(len(names) / blocks)
    counted = blocks == 1  # no room for the number of objects beside several blocks
    table = Table(box=SIMPLE_HEAD, title="AP a class, %", title_justify="left", title_style="bold")
    for _ in range(blocks):
        table.add_column("class", no_wrap=True)
        for task, ap in aps.items():
            table.add_column(task, justify="right", no_wrap=True)
            if spread_of(ap) is not None:
                table.add_column(_INTERVAL, justify="right", style="dim", no_wrap=True)
    if counted:
        table.add_column("objects", justify="right", style="dim")
    for row in range(rows):
        cells: list[str] = []
        for name in names[row::rows]:
            cells += [name, *(text for ap in aps.values() for text in _class_cells(ap, name))]
            cells += [str(any_ap.instances[name])] if counted else []
        table.add_row(*cells)
    return table


def spread_of(ap: Ap) -> Spread | None:
    """Its spread over resamples, where it has one."""
    return ap.spread if isinstance(ap, CocoAp) else None


def _cells(ap: Ap, name: str) -> list[str]:
    """A number, and its interval where there are any."""
    spread = spread_of(ap)
    return [percent(ap.stats[name])] + ([] if spread is None else [interval_text(spread.stats.get(name))])


def _class_cells(ap: Ap, name: str) -> list[str]:
    spread = spread_of(ap)
    return [percent(ap.per_class[name])] + ([] if spread is None else [interval_text(spread.per_class[name])])


def interval_text(interval: tuple[float, float] | None) -> str:
    """(0.331, 0.354) -> "33.1-35.4"; nothing where there is none."""
    return "" if interval is None or math.isnan(interval[0]) else f"{percent(interval[0])}-{percent(interval[1])}"


def percent(value: float) -> str:
    """0.4567 -> "45.7"; NaN -> "-"."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def write_ap_json(aps: Mapping[str, Ap], path: Path) -> None:
    """{"box": {"AP": 0.41, ..., "per_class": {"person": 0.5}}, ...}; null where there is no ground truth.

    Keypoints: with the OKS sigmas that were used. Where images were resampled: with "interval", the ends of what the
    middle 95 % of resamples give, {"AP": [0.39, 0.43], ..., "per_class": {...}}.
    """
    content = {
        task: {
            **_defined(ap.stats),
            "per_class": _defined(ap.per_class),
            **({"per_class_50": _defined(ap.per_class_50)} if isinstance(ap, CityscapesAp) else {}),
            "instances": ap.instances,
            **({} if ap.sigmas is None else {"oks_sigmas": ap.sigmas}),
            **({} if (spread := spread_of(ap)) is None else {"interval": interval_json(spread)}),
        }
        for task, ap in aps.items()
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def interval_json(spread: Spread) -> dict[str, Any]:
    """As ap.json has it; null where no resample has anything to find."""

    def ends(intervals: Mapping[str, tuple[float, float]]) -> dict[str, list[float] | None]:
        return {name: None if math.isnan(one[0]) else list(one) for name, one in intervals.items()}

    return {**ends(spread.stats), "per_class": ends(spread.per_class), "resamples": spread.resamples}


class Numbers(NamedTuple):
    """What ap.json says of a task, 0..1; NaN where there is no ground truth."""

    stats: dict[str, float]  # official name -> value
    per_class: dict[str, float]  # class name -> AP


def read_ap_json(path: Path) -> dict[str, Numbers]:
    """What `write_ap_json` wrote, a task; of Cityscapes' also "mask50", as `with_classes` has it."""
    found = {}
    for task, content in json.loads(path.read_bytes()).items():
        stats = {name: value for name, value in content.items() if not isinstance(value, dict | list)}
        found[task] = Numbers(_with_nan(stats), _with_nan(content["per_class"]))
        if "per_class_50" in content:
            found[f"{task}50"] = Numbers({}, _with_nan(content["per_class_50"]))
    return found


def write_per_class_csv(aps: Mapping[str, Ap], path: Path) -> None:
    """One row a class: class, objects, box_AP, mask_AP, ...; empty where there is no ground truth.

    `aps` are with_classes, at least one.
    """
    any_ap = next(iter(aps.values()))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "objects", *(f"{task}_AP" for task in aps)])
        for name, objects in any_ap.instances.items():
            values = [ap.per_class[name] for ap in aps.values()]
            writer.writerow([name, objects, *("" if math.isnan(v) else v for v in values)])


def _with_nan(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}


def _defined(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
