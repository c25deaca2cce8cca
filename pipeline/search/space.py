"""What a search may set: dotted names of the run configuration, and the values of each.

    optim.lr: {log_uniform: [0.001, 0.05]}  # also uniform, int: [low, high], both ends included
    model.trunk.neck: {choice: [fpn, c4]}            # or grid: every value is tried, with every other grid
    model.trunk.fpn_channels: {choice: [64, 128], when: {model.trunk.neck: fpn}}   # else the configuration's stays

Every candidate value is tried on the configuration before anything starts: the key exists, the type is right, the
network can be built. `when` names keys of the space or of the configuration; a list there means any of its values.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, get_origin

import torch

from model.build import build_model
from model.config import ModelConfig
from pipeline.config import RunConfig
from pipeline.config_keys import annotations, suggest
from pipeline.configure import ConfigError, apply_overrides, to_dict
from pipeline.data.storage import Storage
from pipeline.errors import UserError
from pipeline.search.dimension import LISTED, Dimension, Kind, SpaceError, never, read_dimension, same

Settings = dict[str, Any]  # dotted name -> value, of one trial


@dataclass(frozen=True)
class Space:
    """Dimensions, those that others depend on first."""

    dimensions: tuple[Dimension, ...]
    fixed: Mapping[str, Any]  # the configuration's own value of each key that a condition names

    def expand(self, options: Callable[[Dimension], Sequence[Any]]) -> list[Settings]:
        """Every combination of the options of each dimension that counts, given those before it; of none: left out."""
        found: list[Settings] = [{}]
        for dimension in self.dimensions:
            before, found = found, []
            for settings in before:
                values = options(dimension) if self.counts(dimension, settings) else ()
                found += [settings | {dimension.key: value} for value in values] or [settings]
        return found

    def draw(self, pick: Callable[[Dimension], Any]) -> Settings:
        """A value for each dimension that counts, given those before it."""
        (settings,) = self.expand(lambda dimension: (pick(dimension),))
        return settings

    def counts(self, dimension: Dimension, settings: Settings) -> bool:
        """Whether its conditions hold."""
        own = {d.key for d in self.dimensions}
        for key, wanted in dimension.when:
            if key in own and key not in settings:  # it does not count itself
                return False
            if not any(same(settings.get(key, self.fixed.get(key)), value) for value in wanted):
                return False
        return True

    def combinations(self, kinds: Sequence[Kind]) -> list[Settings]:
        """Every combination of the dimensions of these kinds (listed ones); others are left out."""
        return self.expand(lambda dimension: dimension.values if dimension.kind in kinds else ())

    def sample(self, count: int, seed: int) -> list[Settings]:
        """`count` random draws for each combination of grids. Equal ones are drawn again; a small space gives fewer.

        A grid that counts only beside something drawn is tried whole with each draw that has it, all else the same.
        """
        found: list[Settings] = []
        for index, grid in enumerate(self.combinations(("grid",))):
            rng = Random(f"{seed}/{index}")  # strings seed the same way in every process
            draws = 0
            for _ in range(50 * count):
                drawn = {d.key: (d.at(rng.random()),) for d in self.dimensions if d.kind != "grid"}
                drawn |= {key: (value,) for key, value in grid.items()}
                new = [one for one in self.expand(lambda d: drawn.get(d.key, d.values)) if one not in found]  # noqa: B023
                found += new
                draws += bool(new)
                if draws == count:
                    break
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

    A learning rate of the space is meant as it is; one of the configuration scales with the batch (optim.lr). A section
    is merged with the configuration's, everything else replaces it: a list, and a mapping such as optim.freeze.

    Raises:
        ConfigError: the settings do not go together.
    """
    overrides = []
    for key, value in settings.items():
        if get_origin(annotations()[key]) is dict:  # a mapping would be merged with the configuration's
            overrides.append(f"{key}=null")
        overrides.append(f"{key}={json.dumps(value)}")
    changed = apply_overrides(config, overrides) if overrides else config
    given = _flatten(settings)  # a section may hold them too
    if "optim.lr" in given and "optim.lr_batch_images" not in given:
        changed = replace(changed, optim=replace(changed.optim, lr_batch_images=changed.train.batch_images))
    if "data.train" in given and changed.data.train is not None:  # trials run in directories of their own
        train = changed.data.train
        uris = Storage.at(train).uri if isinstance(train, str) else tuple(Storage.at(place).uri for place in train)
        changed = replace(changed, data=replace(changed.data, train=uris))
    if "init.weights" in given and changed.init.weights is not None:
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
            dimensions.append(read_dimension(key, spec))
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
    own = {dimension.key: dimension for dimension in space.dimensions}
    for dimension in space.dimensions:
        impossible = list(_impossible(dimension, own))
        if impossible:
            problems += impossible
            continue
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
    """Settings under which a dimension counts, those of conditions first: the configuration's, where they hold."""
    own = {d.key: d for d in space.dimensions}
    for key, wanted in dimension.when:
        if key in own:
            yield from _conditions(own[key], space)
            yield key, wanted[0]
        elif not any(same(space.fixed[key], value) for value in wanted):
            yield key, wanted[0]


def _impossible(dimension: Dimension, own: Mapping[str, Dimension]) -> Iterator[str]:
    """What is wrong with values of its conditions: those that the named key never has."""
    for key, wanted in dimension.when:
        other = own.get(key)
        if other is not None and other.kind not in (*LISTED, "int"):
            yield (
                f"space: {dimension.key}: when names {key}, which is drawn from a range ({other.kind}) and meets no "
                "value exactly; give it a choice, or leave the condition out"
            )
            continue
        for value in wanted:
            problem = never(key, value, other)
            if problem is not None:
                yield f"space: {dimension.key}: when {key} is {json.dumps(value)}, which it never is: {problem}"


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
