"""What came of a table's rows, beside the paper's numbers: mean and spread over seeds, and the differences of rows.

Absolute numbers of a small budget mean nothing beside the paper's; differences between rows are what a table is about.
"""

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table as Shown
from rich.text import Text

from pipeline.evaluation.tables import Numbers
from pipeline.search.paper import runnable
from pipeline.search.plots import new_figure
from pipeline.search.trials import Trial
from pipeline.training.evaluations import evaluations
from pipeline.variants import Table

_LABELS = ("ours", "paper", "ours - first", "paper - first")  # lines of a row
_STYLES = ("bold", "", "dim", "dim")
_NAME_WIDTH = 24  # characters of a row's name in a line
_HEAD_WIDTH = len("11.2 ± 1.6")  # characters; a longer metric has its task in a line of its own
_GAP = 3  # characters that a column takes beside its text


@dataclass(frozen=True)
class Cell:
    """One number of a row: ours in percent, a value a seed, and the paper's."""

    row: str
    metric: str
    values: tuple[float, ...]  # always of val
    paper: float | None
    split: str = "val"  # that the paper's is of

    @property
    def column(self) -> str:
        """What tells it from the other numbers of its row."""
        return self.metric if self.split == "val" else f"{self.metric} ({self.split})"

    @property
    def mean(self) -> float:
        """NaN where nothing was measured."""
        return statistics.mean(self.values) if self.values else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; NaN of less than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan


def cells(table: Table, trials: Sequence[Trial], search_trials: Path) -> list[Cell]:
    """Every number of every row that ran, row by row, in the order of the table.

    Args:
        table: the paper's.
        trials: that have ended; those that diverged or failed count for nothing here.
        search_trials: where their runs lie.
    """
    found = []
    for row in runnable(table)[0]:
        mine = [t for t in trials if t.candidate.settings["row"] == row.name]
        mine = [t for t in mine if t.outcome is not None and t.outcome.why == "finished"]
        for place, column in enumerate(table.columns):
            values = []
            for trial in mine:
                measured = evaluations(search_trials / trial.name)
                value = number(measured[max(measured)], column.metric)
                if value is not None and not math.isnan(value):
                    values.append(100 * value)
            paper = None if row.paper is None else row.paper[place]
            found.append(Cell(row.name, column.metric, tuple(values), paper, column.split))
    return found


def number(evaluated: Mapping[str, Numbers], metric: str) -> float | None:
    """mask/AP of ap.json; cityscapes/AP_person is the AP of a class by Cityscapes' protocol. None: not measured."""
    task, _, stat = metric.partition("/")
    numbers = evaluated.get("mask" if task == "cityscapes" else task)
    if numbers is None:
        return None
    if stat in numbers.stats:
        return numbers.stats[stat]
    return numbers.per_class.get(stat.removeprefix("AP_"))


def differences(found: Sequence[Cell]) -> dict[tuple[str, str], tuple[float, float | None]]:
    """(row, column) -> mean minus that of the first row, ours and the paper's: what an ablation is about."""
    base = {cell.column: cell for cell in reversed(found)}
    return {
        (cell.row, cell.column): (
            cell.mean - base[cell.column].mean,
            None if cell.paper is None or (first := base[cell.column].paper) is None else cell.paper - first,
        )
        for cell in found
    }


def to_json(found: Sequence[Cell]) -> list[dict[str, Any]]:
    """For a file: null for what was not measured."""
    apart = differences(found)
    return [
        {
            "row": cell.row,
            "metric": cell.metric,
            "values": list(cell.values),
            "mean": None if math.isnan(cell.mean) else cell.mean,
            "standard_deviation": None if math.isnan(cell.spread) else cell.spread,
            "paper": cell.paper,
            "paper_split": cell.split,
            "minus_first_row": None if math.isnan(apart[cell.row, cell.column][0]) else apart[cell.row, cell.column][0],
            "paper_minus_first_row": apart[cell.row, cell.column][1],
        }
        for cell in found
    ]


def shown(found: Sequence[Cell], title: str, width: int) -> Group:
    """For each row ours with its spread, the paper's, and what both differ by from the first row.

    Names and numbers are whole at any usual width: metrics that have no room go on in a block below.

    Args:
        found: row by row.
        title: goes above.
        width: characters that a line may have, as `Console.width` says.
    """
    rows = list(dict.fromkeys(cell.row for cell in found))
    columns = _columns(found)
    room = width - 1 - (len(_LABELS[-1]) + _GAP) - _GAP  # for names and metrics
    widest = max(column.width for column in columns)
    names = min(max(map(len, rows)), _NAME_WIDTH, max(room - widest - _GAP, 1))
    blocks: list[list[_Column]] = [[]]
    left = room - names
    for column in columns:
        if blocks[-1] and left < column.width + _GAP:
            blocks.append([])
            left = room - names
        blocks[-1].append(column)
        left -= column.width + _GAP
    head = [Text(title, style="bold")]
    if any(cell.split != "val" for cell in found):
        head.append(Text("ours is of val; where a split stands below a number, the paper's is of that", style="dim"))
    return Group(*head, *(_block(rows, block, names) for block in blocks))


class _Column(NamedTuple):
    """Numbers of one metric as text."""

    head: list[str]  # lines: of what, and of which split the paper's are, if not of val
    rows: list[list[str]]  # of each row a text for each of _LABELS; the first row has no differences

    @property
    def width(self) -> int:
        return max(len(line) for lines in (self.head, *self.rows) for line in lines)


def _columns(found: Sequence[Cell]) -> list[_Column]:
    apart, first = differences(found), found[0].row
    columns: dict[str, _Column] = {}
    for cell in found:
        lines = [_ours(cell), _number(cell.paper)]
        if cell.row != first:
            lines += [_number(difference, "+") for difference in apart[cell.row, cell.column]]
        task, _, stat = cell.metric.partition("/")
        head = [cell.metric] if len(cell.metric) <= _HEAD_WIDTH else [f"{task}/", stat]
        head += [] if cell.split == "val" else [cell.split]
        columns.setdefault(cell.column, _Column(head, [])).rows.append(lines)
    return list(columns.values())


def _block(rows: Sequence[str], columns: Sequence[_Column], name_width: int) -> Shown:
    table = Shown(box=SIMPLE_HEAD)
    table.add_column("row", overflow="fold", width=name_width)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column("\n".join(column.head), justify="right", no_wrap=True)
    for row, *cells in zip(rows, *(column.rows for column in columns), strict=True):
        table.add_row(Text(row, style="bold"), _stacked(_LABELS[: len(cells[0])]), *map(_stacked, cells))
    return table


def _stacked(lines: Sequence[str]) -> Text:
    """One below the other: a name that takes several lines wraps beside them."""
    return Text("\n").join(Text(line, style=style) for line, style in zip(lines, _STYLES, strict=False))


def write_files(found: Sequence[Cell], directory: Path) -> list[Path]:
    """table.csv and table.json, in percent, and table.png."""
    lines = to_json(found)
    paths = [directory / name for name in ("table.csv", "table.json", "table.png")]
    with paths[0].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(lines[0])
        for line in lines:
            writer.writerow(
                [" ".join(f"{v:.4f}" for v in value) if isinstance(value, list) else value for value in line.values()]
            )
    paths[1].write_text(json.dumps(lines, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    plot(found, paths[2])
    return paths


def plot(found: Sequence[Cell], path: Path) -> None:
    """The first number of each row: ours with every seed on the left, the paper's on the right, scales of their own."""
    metric = found[0].metric
    mine = [cell for cell in found if cell.column == found[0].column]
    figure, (ours, paper) = new_figure(8.0, 1.4 + 0.4 * len(mine), columns=2)
    places = range(len(mine))[::-1]
    for place, cell in zip(places, mine, strict=True):
        ours.scatter(cell.values, [place] * len(cell.values), s=16, color="#3b528b", alpha=0.6, label="a seed")
        if cell.values:
            ours.scatter([cell.mean], [place], s=60, marker="|", color="#111111", linewidths=2, label="mean")
        if cell.paper is not None:
            paper.scatter([cell.paper], [place], s=36, color="#e07b39")
    ours.set_yticks(list(places), [cell.row for cell in mine], fontsize=8)
    paper.set_yticks(list(places), [])
    for axes, title in ((ours, "ours"), (paper, "paper")):
        axes.set(title=title, xlabel=f"{metric}, %", ylim=(-0.6, len(mine) - 0.4))
        axes.margins(x=0.15)
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _ours(cell: Cell) -> str:
    return _number(cell.mean) + ("" if math.isnan(cell.spread) else f" ± {cell.spread:.1f}")


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None or math.isnan(value) else f"{value:{sign}.1f}"
