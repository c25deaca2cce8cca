"""AP as tables for the terminal (percent, one decimal) and as files (0..1, every digit): ap.json and per_class.csv.

`aps` is {"box": CocoAp, "mask": CocoAp} or one of the two, or {"mask": CityscapesAp}; each becomes a column.
"""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.evaluation.cityscapes_ap import CityscapesAp
from pipeline.evaluation.coco_ap import CocoAp

Ap = CocoAp | CityscapesAp
_MEANING = {
    "AP": "IoU .50:.95",
    "AP50": "IoU .50",
    "AP75": "IoU .75",
    "AP_small": "area < 32²",
    "AP_medium": "32² to 96²",
    "AP_large": "area > 96²",
    "AR_1": "recall, 1 detection an image",
    "AR_10": "recall, 10 detections",
    "AR_100": "recall, 100 detections",
    "AR_small": "recall, area < 32²",
    "AR_medium": "recall, 32² to 96²",
    "AR_large": "recall, area > 96²",
}
_ROWS_A_BLOCK = 20  # a longer class list goes on in a block beside the first, if there is room
_GAP = 3  # characters between two columns


def ap_table(aps: Mapping[str, Ap]) -> Table:
    """The protocol's numbers (COCO: 12, Cityscapes: 2) a column, in percent; "-" where there is no ground truth."""
    table = Table(box=SIMPLE_HEAD, title="average precision, %", title_justify="left", title_style="bold")
    table.add_column("")
    for task in aps:
        table.add_column(task, justify="right")
    table.add_column("", style="dim")
    for name in next(iter(aps.values())).stats:
        style = "bold" if name == "AP" else None
        table.add_row(name, *(percent(ap.stats[name]) for ap in aps.values()), _MEANING[name], style=style)
        if name == "AP_large":
            table.add_section()
    return table


def class_columns(aps: Mapping[str, Ap]) -> dict[str, Ap]:
    """`aps` as tables of classes show them: Cityscapes' with a column of AP50 beside that of AP."""
    columns: dict[str, Ap] = {}
    for task, ap in aps.items():
        columns[task] = ap
        if isinstance(ap, CityscapesAp):
            columns[f"{task}50"] = ap.at_50()
    return columns


def per_class_table(aps: Mapping[str, Ap], width: int = 80) -> Table:
    """AP of each class in percent, and how many objects it has; long lists go on in blocks beside the first.

    Args:
        aps: see above.
        width: characters that a line may have, as `Console.width` says.
    """
    any_ap = next(iter(aps.values()))
    names = list(any_ap.per_class)
    block_width = max(map(len, names), default=0) + _GAP + sum(max(len(task), 5) + _GAP for task in aps)
    blocks = max(1, min(math.ceil(len(names) / _ROWS_A_BLOCK), width // block_width))
    rows = math.ceil(len(names) / blocks)
    counted = blocks == 1  # no room for the number of objects beside several blocks
    table = Table(box=SIMPLE_HEAD, title="AP a class, %", title_justify="left", title_style="bold")
    for _ in range(blocks):
        table.add_column("class", no_wrap=True)
        for task in aps:
            table.add_column(task, justify="right", no_wrap=True)
    if counted:
        table.add_column("objects", justify="right", style="dim")
    for row in range(rows):
        cells: list[str] = []
        for name in names[row::rows]:
            cells += [name, *(percent(ap.per_class[name]) for ap in aps.values())]
            cells += [str(any_ap.instances[name])] if counted else []
        table.add_row(*cells)
    return table


def percent(value: float) -> str:
    """0.4567 -> "45.7"; NaN -> "-"."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def write_ap_json(aps: Mapping[str, Ap], path: Path) -> None:
    """{"box": {"AP": 0.41, ..., "per_class": {"person": 0.5}}, ...}; null where there is no ground truth."""
    content = {
        task: {
            **_defined(ap.stats),
            "per_class": _defined(ap.per_class),
            **({"per_class_50": _defined(ap.per_class_50)} if isinstance(ap, CityscapesAp) else {}),
            "instances": ap.instances,
        }
        for task, ap in aps.items()
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_per_class_csv(aps: Mapping[str, Ap], path: Path) -> None:
    """One row a class: class, objects, box_AP, mask_AP; empty where there is no ground truth."""
    any_ap = next(iter(aps.values()))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "objects", *(f"{task}_AP" for task in aps)])
        for name, objects in any_ap.instances.items():
            values = [ap.per_class[name] for ap in aps.values()]
            writer.writerow([name, objects, *("" if math.isnan(v) else v for v in values)])


def _defined(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in values.items()}
