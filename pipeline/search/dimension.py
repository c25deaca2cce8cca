"""One key of a space: what it may be, and how that is written.

{choice: [fpn, c4]}    {log_uniform: [0.001, 0.05]}    {choice: [64, 128], when: {model.trunk.neck: fpn}}
"""

import itertools
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from pydantic import TypeAdapter, ValidationError

from pipeline.config_keys import annotations, expected, suggest
from pipeline.errors import UserError

Kind = Literal["choice", "grid", "uniform", "log_uniform", "int"]
LISTED: tuple[Kind, ...] = ("choice", "grid")
FIXED = {  # what has to be the same for all trials, and why
    "cluster": "the search decides what each trial gets of the cluster",
    "track": "all trials are logged in one place",
    "evaluate": "AP of different evaluations does not compare",
    "data.val": "AP on different pictures does not compare",
    "data.decode": "the search plans CPUs for one way to decode",
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
        """The value at a share 0..1 of the dimension: uniform shares give what `kind` says."""
        if self.kind in LISTED:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        low, high = self.values
        if self.kind == "int":
            return min(low + int(share * (high - low + 1)), high)
        value = low * (high / low) ** share if self.kind == "log_uniform" else low + share * (high - low)
        return self.rounded(value)

    def rounded(self, value: float) -> float:
        """A value of a range in as many digits as tell a thousandth of it: four, more of a narrow one."""
        low, high = map(float, self.values)
        digits = max(4, 3 + math.ceil(math.log10(max(abs(low), abs(high)) / (high - low))))
        return min(max(float(f"{value:.{digits}g}"), low), high)


def read_dimension(key: str, spec: Any) -> Dimension:
    """`{choice: [...], when: {...}}` of a key.

    Raises:
        SpaceError: there is no such key, it must not be searched, or that is not how it is said.
    """
    names = key.split(".")
    if key not in annotations():
        raise SpaceError(f"space: {key} is not a key; {suggest(names)}")
    for name, reason in FIXED.items():
        if key == name or key.startswith(f"{name}."):
            raise SpaceError(f"space: {key} cannot be searched: {reason}; set it for all trials, on the command line")
        if name.startswith(f"{key}."):
            raise SpaceError(
                f"space: {key} cannot be searched whole: it holds {name}, and {reason}; name the keys in it that vary"
            )
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
        if kind[0] != "int" and float not in (annotations()[key], *get_args(annotations()[key])):
            raise SpaceError(
                f"space: {key} takes {expected(annotations()[key])}, which {kind[0]} does not give; use int or a choice"
            )
    elif any(same(a, b) for a, b in itertools.combinations(values, 2)):
        raise SpaceError(f"space: {key}: {kind[0]} holds a value twice: {json.dumps(values)[:80]}; leave one out")
    when = spec.get("when", {})
    if not isinstance(when, dict) or [] in when.values():
        raise SpaceError(f"space: {key}: when takes KEY: VALUE or KEY: [VALUE, ...], got {json.dumps(when)[:80]}")
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


def never(key: str, value: Any, other: Dimension | None) -> str | None:
    """Why a key never has a value; None: it can. `other`: the key's own dimension."""
    if other is None:  # a command line may give the configuration another value than it has: any that it can have
        try:
            TypeAdapter(annotations()[key]).validate_json(json.dumps(value))
        except ValidationError:
            return f"it is {expected(annotations()[key])}"
        return None
    if other.kind == "int":
        low, high = other.values
        whole = isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
        return None if whole and low <= value <= high else f"it is a whole number from {low} to {high}"
    if any(same(value, one) for one in other.values):
        return None
    lists = any(isinstance(one, list) for one in other.values)
    hint = "; a list there means any of its values: write [[...]] for one list" if lists else ""
    return f"it is one of {', '.join(json.dumps(one) for one in other.values)}{hint}"


def same(one: Any, other: Any) -> bool:
    """As YAML means them: 10 is 10.0, and 1 is not true."""
    return json.dumps(_plain(one), sort_keys=True) == json.dumps(_plain(other), sort_keys=True)


def _plain(value: Any) -> Any:
    """Numbers as floats, in lists and mappings too."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
