"""A table of variants: one configuration, rows that change it, and the numbers that another source has for them.

    table = load_table(Path("configs/paper/table_2c.yaml"))
    for row in table.rows:
        if row.overrides is not None:
            config = row_config(table, row, ["data.train=data/coco/train"])

The tables of Mask R-CNN are files of this kind (configs/paper/), and so is what `maskrcnn benchmark learning` trains.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from model.config import ModelConfig, Section
from pipeline.config import RunConfig
from pipeline.configure import ConfigError, load_config
from pipeline.data.cityscapes_labels import CLASS_NAMES as CITYSCAPES
from pipeline.data.scenes import CLASS_NAMES as SHAPES
from pipeline.data.shapes import KEYPOINTS as EXTREMES
from pipeline.errors import UserError
from pipeline.yaml_core import YamlError, read

Data = Literal["coco", "coco_persons", "cityscapes", "shapes"]
Start = Literal["random", "imagenet", "imagenet_5k", "coco"]
COCO_STATS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
METRICS = (
    *(f"{task}/{stat}" for task in ("box", "mask", "keypoint") for stat in COCO_STATS),
    *(f"cityscapes/{stat}" for stat in ("AP", "AP50", *(f"AP_{name}" for name in CITYSCAPES))),
)
CLASSES: dict[Data, int] = {"coco": 80, "coco_persons": 1, "cityscapes": len(CITYSCAPES), "shapes": len(SHAPES)}
KEYPOINTS: dict[Data, int] = {"coco_persons": 17, "shapes": len(EXTREMES)}


class TableError(UserError):
    """A table cannot be used; the message names the file and the row."""


@dataclass(frozen=True)
class Column(Section):
    """What a number is: task and statistic, in percent, and the split that the other source measured it on."""

    metric: str
    split: str = "val"  # ours is always val (COCO's val2017 is the papers' minival)

    def conflicts(self) -> Iterator[str]:
        """There is such a number."""
        if self.metric not in METRICS:
            yield f"metric must be one of {', '.join(METRICS)}, got {self.metric}"


@dataclass(frozen=True)
class Row(Section):
    """One line: a variant of ours (with overrides), or what another system reached (without)."""

    name: str
    overrides: tuple[str, ...] | None = None  # as on the command line; null: nothing of ours to run, `paper` is all
    config: str | None = None  # another file than the table's; relative to the table
    start: Start | None = None  # another start than the table's
    paper: tuple[float | None, ...] | None = None  # a number a column, null where there is none
    note: str | None = None

    def conflicts(self) -> Iterator[str]:
        """Something is said of each row."""
        if self.overrides is None and self.paper is None:
            yield "paper must hold numbers where there are no overrides, got neither; write overrides: [] for no change"


@dataclass(frozen=True)
class Table(Section):
    """Variants side by side."""

    table: str  # what it is called: 2c
    title: str
    data: Data  # what it trains on and how it is scored
    config: str  # file that the rows change; relative to the table
    rows: tuple[Row, ...]
    columns: tuple[Column, ...] = ()
    overrides: tuple[str, ...] = ()  # of every row, before its own
    start: Start = "imagenet"  # where weights come from: init.weights has to name a file of them

    def conflicts(self) -> Iterator[str]:
        """A number a column; names tell rows apart."""
        names = [row.name for row in self.rows]
        for number, row in enumerate(self.rows, start=1):
            if row.paper is not None and len(row.paper) != len(self.columns):
                yield (
                    f"row {number} ({row.name}): paper must hold {len(self.columns)} numbers, one a column, "
                    f"got {len(row.paper)}; write null for one that is not known"
                )
            if names.index(row.name) < number - 1:
                yield f"row {number} ({row.name}): the name is that of row {names.index(row.name) + 1}; choose another"
        if all(row.overrides is None for row in self.rows):
            yield "rows must hold one with overrides, got none; there is nothing to run"

    @property
    def variants(self) -> tuple[Row, ...]:
        """The rows that can be run."""
        return tuple(row for row in self.rows if row.overrides is not None)


def load_table(path: Path) -> Table:
    """Read a table and check it with the configuration of every row; paths in it are made relative to nothing.

    Raises:
        TableError: it cannot be read, or a row is wrong; all problems are named.
    """
    try:
        tree = read(path).value
    except YamlError as error:
        raise TableError(str(error)) from error
    if not isinstance(tree, dict) or "rows" not in tree:
        raise TableError(f"{path}: not a table of variants, it has no rows; configs/paper/ has examples")
    try:
        table = _adapter().validate_json(json.dumps(tree))
    except ValidationError as error:
        raise TableError(_problems(path, _explain(error, tree))) from error
    table = replace(
        table,
        config=str(path.parent / table.config),
        rows=tuple(
            row if row.config is None else replace(row, config=str(path.parent / row.config)) for row in table.rows
        ),
    )
    problems = []
    for row in table.variants:
        try:
            row_config(table, row)
        except TableError as error:
            problems.append(str(error))
    if problems:
        raise TableError(_problems(path, problems))
    return table


def row_config(table: Table, row: Row, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a row with overrides; `overrides` come after the table's and the row's own.

    Raises:
        TableError: it is not a valid one.
    """
    if row.overrides is None:
        raise TableError(f"row {row.name} of table {table.table} has no overrides: its numbers are another system's")
    try:
        return load_config(Path(row.config or table.config), [*table.overrides, *row.overrides, *overrides])
    except ConfigError as error:
        raise TableError(f"row {row.name}: {error}") from error


def row_model(table: Table, row: Row) -> ModelConfig:
    """The network of a row, with as many classes and keypoints as the table's data has.

    Raises:
        TableError: the row is not valid, or learns keypoints of data that has none.
    """
    model = replace(row_config(table, row).model, classes=CLASSES[table.data])
    if model.keypoint is None:
        return model
    if table.data not in KEYPOINTS:
        raise TableError(f"row {row.name}: model.keypoint is set, but {table.data} has no keypoints; set it to null")
    return replace(model, keypoint=replace(model.keypoint, count=KEYPOINTS[table.data]))


@functools.cache
def _adapter() -> TypeAdapter[Table]:
    return TypeAdapter(Table)


def _problems(path: Path, problems: Sequence[str]) -> str:
    head = "" if len(problems) == 1 else f"{len(problems)} problems in the table:\n  "
    return f"{path}: {head}" + "\n  ".join(problems)


def _explain(error: ValidationError, tree: dict[str, Any]) -> list[str]:
    """pydantic's problems; rows and columns are called by their names."""
    lines = []
    for found in error.errors(include_url=False):
        loc, where = list(found["loc"]), ""
        if len(loc) > 1 and loc[0] in ("rows", "columns") and isinstance(loc[1], int):
            item = tree[str(loc[0])][loc[1]]
            name = item.get("name") if isinstance(item, dict) else None
            where = f"{str(loc[0])[:-1]} {loc[1] + 1}{f' ({name})' if name else ''}: "
            loc = loc[2:]
        key = ".".join(map(str, loc))
        if found["type"] == "value_error":
            lines += [where + line for line in found["msg"].removeprefix("Value error, ").splitlines()]
        elif found["type"] == "unexpected_keyword_argument":
            lines.append(f"{where}{key} is not a key")
        else:
            lines.append(f"{where}{key}: {found['msg']}, got {json.dumps(found['input'])[:80]}")
    return list(dict.fromkeys(lines))
