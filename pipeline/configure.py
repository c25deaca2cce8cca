"""YAML and dotted overrides -> RunConfig, and back.

    config = load_config(Path("configs/shapes/quickstart.yaml"), ["train.steps=200", "model.mask=null"])

A file may name one parent (`base: ../base.yaml`, relative to itself). Mappings merge key by key, everything else (lists
too) replaces, `null` is None. A section that was null comes back with its defaults when a key below it is set.
All problems of one load are reported together, each with its full key and the file and line or override it came from.
"""

import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pipeline.config import RunConfig
from pipeline.config_keys import annotations, expected, known_keys, suggest
from pipeline.errors import UserError
from pipeline.yaml_core import Document, YamlError, dump, parse, read

Tree = dict[str, Any]
Origins = dict[str, str]  # dotted key -> where it was set last
UNKNOWN = "unexpected_keyword_argument"  # pydantic's word

__all__ = ["ConfigError", "apply_overrides", "from_yaml_text", "known_keys", "load_config", "to_dict", "to_yaml"]


class ConfigError(UserError):
    """The configuration cannot be used; the message names every problem found."""


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a file (None: the defaults) and its parents, apply `a.b.c=VALUE` overrides in order, and validate."""
    tree, origins = _read_file(path, ()) if path is not None else ({}, {})
    return _override(tree, origins, overrides)


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """`config` with `a.b.c=VALUE` overrides, such as a checkpoint's configuration evaluated in another way."""
    return _override(to_dict(config), {}, overrides)


def _override(tree: Tree, origins: Origins, overrides: Sequence[str]) -> RunConfig:
    for override in overrides:
        child, where = _read_override(override)
        tree, origins = _merge(tree, child), origins | where
    return _validate(tree, origins)


def from_yaml_text(text: str, source: str = "config.yaml") -> RunConfig:
    """Read a resolved config, such as a checkpoint's; it has no parent. `source` is what errors call it."""
    document = _parse(text, source)
    return _validate(_mapping(document, source), document.origins)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested dict (tuples as lists) in the order of the dataclasses."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def to_yaml(config: RunConfig) -> str:
    """Every key, resolved; reading it back gives an equal config."""
    return dump(to_dict(config))


def _parse(text: str, source: str, one_line: bool = False) -> Document:
    try:
        return parse(text, source, one_line)
    except YamlError as error:
        raise ConfigError(str(error)) from error


def _mapping(document: Document, source: str) -> Tree:
    if document.value is None:
        return {}
    if not isinstance(document.value, dict):
        raise ConfigError(f"{source}: expected sections such as `train:`, got {_show(document.value)}")
    return document.value


def _read_file(path: Path, children: tuple[Path, ...]) -> tuple[Tree, Origins]:
    if any(path.resolve() == child.resolve() for child in children):
        chain = " -> ".join(str(link) for link in (*children, path))
        raise ConfigError(f"{path}: `base` goes in a circle: {chain}; remove one of these `base` lines")
    asked_by = f" (the base of {children[-1]})" if children else ""
    try:
        document = read(path, asked_by)
    except YamlError as error:
        raise ConfigError(str(error)) from error
    tree = _mapping(document, str(path))
    if "base" not in tree:
        return tree, document.origins
    base = tree.pop("base")
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{document.origins['base']}: base must be one path relative to this file, got {_show(base)}")
    parent, origins = _read_file(path.parent / base, (*children, path))
    return _merge(parent, tree), origins | document.origins


def _read_override(override: str) -> tuple[Tree, Origins]:
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r} is not of the form a.b.c=VALUE; write for example train.steps=200")
    source = f"override {override if len(override) <= 80 else override[:77] + '...'}"
    document = _parse(text, source, one_line=True)
    prefix = ".".join(parts)
    tree: Any = document.value
    for part in reversed(parts):
        tree = {part: tree}
    origins = {f"{prefix}.{below}": source for below in document.origins}
    return tree, origins | {prefix: source}


def _merge(parent: Any, child: Any) -> Any:
    if isinstance(parent, dict) and isinstance(child, dict):
        return parent | {key: _merge(parent.get(key), value) for key, value in child.items()}
    return child


def _validate(tree: Tree, origins: Origins) -> RunConfig:
    problems = []
    while unknown := [line["loc"] for line in _check(tree)[1] if line["type"] == UNKNOWN]:
        problems += [_unknown([str(part) for part in loc], tree, origins) for loc in unknown]
        for loc in unknown:  # without them pydantic goes on to the checks of their sections
            del _at(tree, loc[:-1])[loc[-1]]
    for names in list(_not_finite(tree)):  # no key has a use for NaN or infinity
        section, leaf = _at(tree, names[:-1]), names[-1]
        problems.append(_problem(".".join(names), f"must be finite, got {_show(section.pop(leaf))}", origins))
    config, errors = _check(tree)
    for line in errors:
        problems += _explain(line["type"], line["loc"], line["msg"], tree, origins)
    if problems or config is None:
        problems = list(dict.fromkeys(problems))
        head = "" if len(problems) == 1 else f"{len(problems)} problems in the configuration:\n  "
        raise ConfigError(head + "\n  ".join(problems))
    return config


def _check(tree: Tree) -> tuple[RunConfig | None, list[ErrorDetails]]:
    try:
        return _adapter().validate_json(json.dumps(tree)), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


@functools.cache
def _adapter() -> TypeAdapter[RunConfig]:
    return TypeAdapter(RunConfig)


def _unknown(names: list[str], tree: Tree, origins: Origins) -> str:
    value = _at(tree, names)
    while isinstance(value, dict) and len(value) == 1:  # optimizer: {lr: 1} -> optimizer.lr
        names = [*names, next(iter(value))]
        value = value[names[-1]]
    return _problem(".".join(names), f"is not a key; {suggest(names)}", origins)


def _explain(kind: str, loc: tuple[int | str, ...], message: str, tree: Tree, origins: Origins) -> Iterator[str]:
    """One error of pydantic in our words: full key, expected, got, where from."""
    names = []
    for part in loc:  # a list is judged as a whole: stop at the first index
        if isinstance(part, int):
            break
        names.append(part)
    while len(names) > 1 and ".".join(names) not in annotations():  # pydantic adds the type it tried of several
        names.pop()
    key = ".".join(names)
    if kind == "value_error":  # a section's own check: one line a problem, each starting with the field's name
        for line in message.removeprefix("Value error, ").splitlines():
            name, _, rest = line.partition(" ")
            yield _problem(f"{key}.{name}" if key else name, rest, origins)
    elif key in annotations():
        value, wanted = _at(tree, names), expected(annotations()[key])
        quote = f"; write '{_show(str(value))}'" if wanted.startswith("a text") and type(value) in (int, float) else ""
        yield _problem(key, f"must be {wanted}, got {_show(value)}{quote}", origins)
    else:
        yield _problem(key or "configuration", message, origins)


def _problem(key: str, text: str, origins: Origins) -> str:
    parts = key.split(".")
    prefixes = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    below = [where for other, where in origins.items() if other.startswith(f"{key}.")]
    origin = next((origins[prefix] for prefix in prefixes if prefix in origins), below[-1] if below else None)
    return f"{key} {text}" + (f" ({origin})" if origin else "")


def _show(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _at(tree: Any, names: Sequence[int | str]) -> Any:
    for name in names:
        tree = tree[name]
    return tree


def _not_finite(tree: Tree, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _not_finite(value, (*above, key))
        elif any(isinstance(item, float) and not math.isfinite(item) for item in _flat(value)):
            yield (*above, key)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _flat(item)
    else:
        yield value
