"""Which keys a RunConfig has, what each takes, and which one a misspelt key was meant to be."""

import difflib
import functools
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipeline.config import RunConfig


def known_keys() -> list[str]:
    """Dotted names of all values, in the order of the dataclasses; sections are not listed."""
    keys = list(annotations())
    return [key for key in keys if not any(other.startswith(key + ".") for other in keys)]


@functools.cache
def annotations() -> dict[str, Any]:
    """Dotted name -> type, of every section and value."""
    return dict(_walk(RunConfig, ""))


def _walk(section: type, prefix: str) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(section)
    for field in fields(section):
        annotation = hints[field.name]
        yield prefix + field.name, annotation
        for inner in (annotation, *get_args(annotation)):
            if is_dataclass(inner) and isinstance(inner, type):
                yield from _walk(inner, f"{prefix}{field.name}.")


def suggest(names: list[str]) -> str:
    """The nearest known key: the same name elsewhere, a similar one beside it, a similar one anywhere."""
    known, leaf, section = list(annotations()), names[-1], ".".join(names[:-1])
    if "." in leaf:
        return "in a file, write one level a line, indented, instead of dots"
    same = [key for key in known if key.rpartition(".")[2] == leaf]
    beside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    begun = [key for name, key in beside.items() if name.startswith(leaf)]
    similar = [beside[name] for name in difflib.get_close_matches(leaf, beside, n=1)]
    leaves = {key.rpartition(".")[2]: key for key in known}
    anywhere = [leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.75)]
    found = same[:3] or similar or begun[:3] or anywhere
    if found:
        return f"did you mean {' or '.join(found)}?"
    return f"{section or 'the configuration'} has {', '.join(beside)}"


def expected(annotation: Any) -> str:
    """What a value of this type looks like, in words."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    options = get_args(annotation)
    if NoneType in options:
        inner = " or ".join(expected(option) for option in options if option is not NoneType)
        return f"null or {inner}" if inner.startswith("a section") else f"{inner} or null"
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(options)}" if len(options) > 1 else str(options[0])
    if get_origin(annotation) is dict:
        return f"a mapping from texts to {expected(options[1]).removeprefix('a ')}"
    if get_origin(annotation) is tuple:
        count = "" if options[-1] is Ellipsis else f"{len(options)} "
        return f"a list of {count}{words[options[0]].removeprefix('a ')}s"
    if is_dataclass(annotation) and isinstance(annotation, type):
        return f"a section with the keys {', '.join(field.name for field in fields(annotation))}"
    return words[annotation]
