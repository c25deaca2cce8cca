"""What a search may set: dotted names of the run configuration, and the values of each.

    optim.lr: {log_uniform: [0.001, 0.05]}  # also uniform, int: [low, high], both ends included
    model.trunk.neck: {choice: [fpn, c4]}            # or grid: every value is tried, with every other grid
    model.trunk.fpn_channels: {choice: [64, 128], when: {model.trunk.neck: fpn}}   # else the configuration's stays

Every candidate value is tried on the configuration before anything starts: the key exists, the type is right, the
network can be built. `when` names keys of the space or of the configuration; a list there means any of its values.
"""

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal, cast, get_args

import torch

from model.build import build_model
from model.config import ModelConfig
from pipeline.config import RunConfig
from pipeline.config_keys import annotations, suggest
from pipeline.configure import ConfigError, apply_overrides, to_dict
from pipeline.data.storage import Storage
from pipeline.errors import UserError

Kind = Literal["choice", "grid", "uniform", "log_uniform", "int"]
Settings = dict[str, Any]  # dotted name -> value, of one trial
LISTED: tuple[Kind, ...] = ("choice", "grid")
FIXED = {  # what has to be the same for all trials, and why
    "cluster": "the search decides what each trial gets of the cluster",
    "track": "all trials are logged in one place",
    "evaluate": "AP of different evaluations does not compare",
    "data.val": "AP on different pictures does not compare",
    "train.name": "the search names its trials",
    "train.steps": "AP after different numbers of steps does not compare; the scheduler stops what is not worth more",
    "train.checkpoint_every_steps": "trials are compared at the same steps",
}


class SpaceError(UserError):
    """A space that cannot be searched; the message names every problem found."""


@dataclass(frozen=True)
class Dimension:
    """One key and what it may be."""

    key: str
    kind: Kind
    values: tuple[Any, ...]  # of a choice or grid: all of them; else (low, high)
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()  # key, its values with which this dimension counts

    def at(self, share: float) -> Any:
        """The value at a share 0..1 of the dimension: uniform shares give what `kind` says, in four digits."""
        if self.kind in LISTED:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        low, high = self.values
        if self.kind == "int":
            return min(low + int(share * (high - low + 1)), high)
        value = low * (high / low) ** share if self.kind == "log_uniform" else low + share * (high - low)
        return min(max(float(f"{value:.4g}"), low), high)


@dataclass(frozen=True)
class Space:
    """Dimensions, those that others depend on first."""

    dimensions: tuple[Dimension, ...]
    fixed: Mapping[str, Any]  # the configuration's own value of each key that a condition names

    def draw(self, pick: Callable[[Dimension], Any]) -> Settings:
        """A value for each dimension that counts, given those before it."""
        settings: Settings = {}
        for dimension in self.dimensions:
            if self.counts(dimension, settings):
                settings[dimension.key] = pick(dimension)
        return settings

    def counts(self, dimension: Dimension, settings: Settings) -> bool:
        """Whether its conditions hold."""
        own = {d.key for d in self.dimensions}
        for key, wanted in dimension.when:
            if key in own and key not in settings:  # it does not count itself
                return False
            if not any(_same(settings.get(key, self.fixed.get(key)), value) for value in wanted):
                return False
        return True

    def combinations(self, kinds: Sequence[Kind]) -> list[Settings]:
        """Every combination of the dimensions of these kinds (listed ones); others are left out."""
        found: list[Settings] = [{}]
        for dimension in (d for d in self.dimensions if d.kind in kinds):
            found = [
                settings | more
                for settings in found
                for more in (
                    [{dimension.key: value} for value in dimension.values]
                    if self.counts(dimension, settings)
                    else [cast(Settings, {})]
                )
            ]
        return found

    def sample(self, count: int, seed: int) -> list[Settings]:
        """`count` random draws for each combination of grids. Equal ones are drawn again; a small space gives fewer."""
        found: list[Settings] = []
        for index, grid in enumerate(self.combinations(("grid",))):
            rng = Random(f"{seed}/{index}")  # strings seed the same way in every process
            mine: list[Settings] = []
            for _ in range(50 * count):
                drawn = self.draw(lambda d: grid[d.key] if d.key in grid else d.at(rng.random()))  # noqa: B023
                if drawn not in mine and drawn not in found:
                    mine.append(drawn)
                if len(mine) == count:
                    break
            found += mine
        return found

    def all(self) -> list[Settings]:
        """Every combination.

        Raises:
            SpaceError: there are infinitely many.
        """
        ranges = [f"{d.key} ({d.kind})" for d in self.dimensions if d.kind not in LISTED]
        if ranges:
            raise SpaceError(
                f"search: grid tries every value, and {', '.join(ranges)} has no end of them; give a choice"
            )
        return self.combinations(LISTED)


def apply(config: RunConfig, settings: Settings) -> RunConfig:
    """The configuration of a trial.

    A learning rate of the space is meant as it is; one of the configuration scales with the batch (optim.lr).

    Raises:
        ConfigError: the settings do not go together.
    """
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    changed = apply_overrides(config, overrides) if overrides else config
    if "optim.lr" in settings and "optim.lr_batch_images" not in settings:
        changed = replace(changed, optim=replace(changed.optim, lr_batch_images=changed.train.batch_images))
    if "data.train" in settings and changed.data.train is not None:  # trials run in directories of their own
        train = changed.data.train
        uris = Storage.at(train).uri if isinstance(train, str) else tuple(Storage.at(place).uri for place in train)
        changed = replace(changed, data=replace(changed.data, train=uris))
    if "init.weights" in settings and changed.init.weights is not None:
        changed = replace(changed, init=replace(changed.init, weights=str(Path(changed.init.weights).absolute())))
    return changed


def require_buildable(model: ModelConfig, what: str) -> None:
    """Raises SpaceError where the network of a configuration cannot be built. Costs no memory for weights."""
    reason = _build_problem(model)
    if reason is not None:
        raise SpaceError(f"{what}: the network cannot be built: {reason}; leave the value out, or add a `when`")


@functools.lru_cache(maxsize=1024)
def _build_problem(model: ModelConfig) -> str | None:
    keypoint = None if model.keypoint is None else replace(model.keypoint, count=model.keypoint.count or 17)
    try:
        with torch.device("meta"):
            build_model(replace(model, classes=model.classes or 1, keypoint=keypoint))
    except (ValueError, RuntimeError, TypeError, LookupError, UserError) as error:
        return str(error).splitlines()[0]
    return None


def read_space(tree: Mapping[str, Any], config: RunConfig, source: str) -> Space:
    """The `space` of a search's file, checked against the configuration that it changes.

    Raises:
        SpaceError: an unknown key (with the nearest one), a wrong type, a choice that does not build, a circle.
    """
    problems: list[str] = []
    dimensions: list[Dimension] = []
    for key, spec in tree.items():
        try:
            dimensions.append(_read_dimension(key, spec))
        except SpaceError as error:
            problems.append(str(error))
    if not tree:
        problems.append("space has no keys; there is nothing to search")
    names = {key for dimension in dimensions for key, _ in dimension.when}
    for name in sorted(names - set(annotations())):
        problems.append(f"space: `when` names {name}, which is not a key; {suggest(name.split('.'))}")
    if problems:
        raise SpaceError(_several(source, problems))
    flat = _flatten(to_dict(config))
    space = Space(_in_order(dimensions, source), {name: flat.get(name) for name in names})
    for dimension in space.dimensions:
        conditions = dict(_conditions(dimension, space))
        for value in dimension.values:  # of a range its ends: what lies between is right if they are
            try:
                changed = apply(config, conditions | {dimension.key: value})
                require_buildable(changed.model, f"{dimension.key}: {json.dumps(value)}")
            except (ConfigError, SpaceError) as error:
                problems.append(f"space: {error}")
    if problems:
        raise SpaceError(_several(source, list(dict.fromkeys(problems))))
    return space


def _read_dimension(key: str, spec: Any) -> Dimension:
    names = key.split(".")
    if key not in annotations():
        raise SpaceError(f"space: {key} is not a key; {suggest(names)}")
    for name, reason in FIXED.items():
        if key == name or key.startswith(f"{name}."):
            raise SpaceError(f"space: {key} cannot be searched: {reason}; set it for all trials, on the command line")
    kinds = get_args(Kind)
    if not isinstance(spec, dict) or len(kind := [name for name in spec if name in kinds]) != 1:
        raise SpaceError(f"space: {key} must hold one of {', '.join(kinds)}, got {json.dumps(spec)[:80]}")
    strangers = [name for name in spec if name not in (*kinds, "when")]
    if strangers:
        raise SpaceError(f"space: {key} has {', '.join(strangers)}, which is not known; beside {kind[0]} goes `when`")
    values = spec[kind[0]]
    if not isinstance(values, list) or not values:
        raise SpaceError(f"space: {key}: {kind[0]} takes a list, got {json.dumps(values)[:80]}")
    if kind[0] not in LISTED:
        _check_range(key, kind[0], values)
    elif any(_same(a, b) for a, b in itertools.combinations(values, 2)):
        raise SpaceError(f"space: {key}: {kind[0]} holds a value twice: {json.dumps(values)[:80]}; leave one out")
    when = spec.get("when") or {}
    if not isinstance(when, dict):
        raise SpaceError(f"space: {key}: when takes KEY: VALUE, got {json.dumps(when)[:80]}")
    conditions = tuple((name, tuple(v) if isinstance(v, list) else (v,)) for name, v in when.items())
    return Dimension(key, cast(Kind, kind[0]), tuple(values), conditions)


def _check_range(key: str, kind: str, values: list[Any]) -> None:
    wanted = int if kind == "int" else (int, float)
    right = len(values) == 2 and all(isinstance(v, wanted) and not isinstance(v, bool) for v in values)
    if not right or not all(map(math.isfinite, values)) or not values[0] < values[1]:
        what = "whole numbers" if kind == "int" else "numbers"
        raise SpaceError(f"space: {key}: {kind} takes two {what}, [low, high], got {json.dumps(values)[:80]}")
    if kind == "log_uniform" and values[0] <= 0:
        raise SpaceError(f"space: {key}: log_uniform must be above 0, got {values[0]}; use uniform")


def _in_order(dimensions: Sequence[Dimension], source: str) -> tuple[Dimension, ...]:
    """Those that others depend on first, else as in the file."""
    left, placed = list(dimensions), []
    while left:
        waiting = {dimension.key for dimension in left}
        free = next((d for d in left if not any(key in waiting for key, _ in d.when)), None)
        if free is None:
            raise SpaceError(f"{source}: space: the conditions of {', '.join(sorted(waiting))} go in a circle")
        left.remove(free)
        placed.append(free)
    return tuple(placed)


def _conditions(dimension: Dimension, space: Space) -> Iterator[tuple[str, Any]]:
    """Settings under which a dimension counts: the first value of each condition, those of conditions first."""
    own = {d.key: d for d in space.dimensions}
    for key, wanted in dimension.when:
        if key in own:
            yield from _conditions(own[key], space)
        yield key, wanted[0]


def _same(one: Any, other: Any) -> bool:
    """As JSON: 1 is not true."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value, of sections too."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat[prefix + key] = value
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
    return flat


def _several(source: str, lines: Sequence[str]) -> str:
    head = "" if len(lines) == 1 else f"{len(lines)} problems in the search:\n  "
    return f"{source}: {head}" + "\n  ".join(lines)
