"""A search as its YAML file describes it: a run configuration, what varies in it, and how it is searched.

    search = load_search(Path("configs/tune/backbone_and_loss.yaml"), ["tune.trials=8", "data.train=data/shapes/train"])

Overrides that begin with `tune.` change how it is searched, all others the run configuration of every trial.
"""

import difflib
import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import TypeAdapter, ValidationError

from model.config import COUNT, NOT_NEGATIVE, Limit, Section
from pipeline.config import RunConfig
from pipeline.configure import ConfigError, load_config
from pipeline.search.dimension import SpaceError
from pipeline.search.space import Space, read_space
from pipeline.yaml_core import YamlError, parse, read

Searcher = Literal["random", "tpe", "grid"]
Scheduler = Literal["fifo", "asha", "hyperband", "pbt"]
_PREFIX = "tune."
NO_PBT = (
    "scheduler: pbt cannot be had with Ray 2.60: population-based training lets a trial go on from the checkpoint of a "
    "better one, which Ray Tune has to hold itself, and the checkpoints of a distributed training are Ray Train's: of "
    "them Tune hears the path alone, finds nothing to exploit, and would quietly never do it; use asha or hyperband"
)


@dataclass(frozen=True)
class TuneConfig(Section):
    """How the space is searched. configs/tune/backbone_and_loss.yaml documents each key."""

    LIMITS: ClassVar[dict[str, Limit]] = {
        "trials": COUNT,
        "seed": NOT_NEGATIVE,
        "concurrent": COUNT,
        "max_failures": NOT_NEGATIVE,
        "grace_steps": COUNT,
        "reduction_factor": Limit(1, above=True),
    }

    name: str | None = None  # of the search; null: the file's name and the time
    trials: int = 16
    search: Searcher = "random"
    scheduler: Scheduler = "asha"
    seed: int = 0  # of what is tried; the seed of each training is train.seed
    concurrent: int | None = None  # trials at once; null: as many as the cluster has room for (budget.py)
    max_failures: int = 1  # times that a trial which failed is tried again
    grace_steps: int | None = None  # before which no trial is stopped; null: the first evaluation
    reduction_factor: float = 3.0  # one in so many goes on from each rung to the next

    def conflicts(self) -> Iterator[str]:
        """What Ray cannot do; a name is a directory."""
        if self.scheduler == "pbt":
            yield NO_PBT
        if self.name is not None and (self.name in ("", ".", "..") or "/" in self.name or "\\" in self.name):
            yield f"name must be a plain directory name, got {self.name!r}; searches are kept below cluster.runs_dir"


@dataclass(frozen=True)
class SearchFile(Section):
    """The file as it is written."""

    config: str  # file that the trials change; relative to this one
    space: dict[str, Any]  # dotted name -> what it may be, see space.py
    overrides: tuple[str, ...] = ()  # of every trial
    tune: TuneConfig = field(default_factory=TuneConfig)


@dataclass(frozen=True)
class Search:
    """What can be searched: all keys and values of it are possible."""

    tune: TuneConfig
    config: RunConfig  # of every trial, before the space
    space: Space
    tree: dict[str, Any]  # the space as it is written


def load_search(path: Path, overrides: Sequence[str] = ()) -> Search:
    """Read the file, and check every candidate value of its space against the configuration.

    Raises:
        SpaceError, ConfigError: all problems of the first kind found, each with its key.
    """
    ours, rest = split_overrides(overrides)
    tree = _read(path)
    if ours:
        tree = tree | {"tune": {**(tree.get("tune") or {}), **ours}}
    try:
        file = _adapter().validate_json(json.dumps(tree))
    except ValidationError as error:
        lines = [_explain(found["type"], found["loc"], found["msg"], found["input"]) for found in error.errors()]
        raise SpaceError(_several(path, [line for several in lines for line in several])) from error
    try:
        config = load_config(path.parent / file.config, [*file.overrides, *rest])
    except ConfigError as error:
        raise SpaceError(f"{path}: the configuration that the trials change: {error}") from error
    return Search(file.tune, config, read_space(file.space, config, str(path)), file.space)


def split_overrides(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What overrides say of the search (`tune.trials=8`: {"trials": 8}), and those of the configuration."""
    ours: dict[str, Any] = {}
    for override in overrides:
        if override.startswith(_PREFIX):
            key, equals, text = override.removeprefix(_PREFIX).partition("=")
            if not equals:
                raise SpaceError(f"override {override!r} is not of the form tune.KEY=VALUE; write tune.trials=8, say")
            try:
                ours[key] = parse(text, f"override {override}", one_line=True).value
            except YamlError as error:
                raise SpaceError(str(error)) from error
    return ours, [override for override in overrides if not override.startswith(_PREFIX)]


def read_tune(tree: dict[str, Any]) -> TuneConfig:
    """How a search is run, from plain values.

    Raises:
        SpaceError: an unknown key, or a value that cannot be.
    """
    try:
        return TypeAdapter(TuneConfig).validate_json(json.dumps(tree))
    except ValidationError as error:
        lines = [_explain(e["type"], ("tune", *e["loc"]), e["msg"], e["input"]) for e in error.errors()]
        raise SpaceError("\n".join(line for several in lines for line in several)) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = read(path).value
    except YamlError as error:
        raise SpaceError(str(error)) from error
    if not isinstance(tree, dict) or "space" not in tree:
        raise SpaceError(f"{path}: not a search, it has no `space`; configs/tune/backbone_and_loss.yaml is an example")
    return tree


@functools.cache
def _adapter() -> TypeAdapter[SearchFile]:
    return TypeAdapter(SearchFile)


def _explain(kind: str, loc: tuple[int | str, ...], message: str, value: Any) -> Iterator[str]:
    key = ".".join(map(str, loc))
    if kind == "value_error":
        for line in message.removeprefix("Value error, ").splitlines():
            yield f"{key}.{line}" if key else line
    elif kind == "unexpected_keyword_argument":
        known = [field.name for field in fields(TuneConfig if loc[0] == "tune" else SearchFile)]
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        yield f"{key} is not a key; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}")
    else:
        yield f"{key}: {message}, got {json.dumps(value)[:80]}"


def _several(path: Path, lines: Sequence[str]) -> str:
    head = "" if len(lines) == 1 else f"{len(lines)} problems in the search:\n  "
    return f"{path}: {head}" + "\n  ".join(dict.fromkeys(lines))
