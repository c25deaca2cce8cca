"""YAML as the config files use it: YAML 1.2 scalars, no duplicate keys, no aliases, no tags, and a line for every key.

PyYAML follows YAML 1.1, where `on` is a boolean, `1e-4` a string, `010` is 8, `1:30` is 90, and a second `lr:` silently
wins over the first. Here plain scalars follow the core schema of YAML 1.2 (section 10.3.2).
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

NULL, BOOL, INT, FLOAT, STR, SEQ, MAP = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")
)
CORE_SCHEMA = (  # tag, pattern, first characters
    (NULL, r"(~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
    (BOOL, r"(true|True|TRUE|false|False|FALSE)\Z", list("tTfF")),
    (INT, r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z", list("-+0123456789")),
    (FLOAT, r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?)\Z", list("-+.0123456789")),
    (FLOAT, r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z", list("-+.")),
)


class YamlError(ValueError):
    """A file or text cannot be read; the message starts with the source and perhaps the line."""


@dataclass(frozen=True)
class Document:
    """A parsed text: plain Python values, and where each key stands (dotted key -> "source:line")."""

    value: Any
    origins: dict[str, str] = field(default_factory=dict)


class Loader(yaml.SafeLoader):
    """SafeLoader with the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # PyYAML's own name

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse aliases: no config needs them, and they can make a small text huge or endless."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # PyYAML's parser has no types
            raise yaml.composer.ComposerError(None, None, "aliases are not supported; write the value out", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what either YAML 1.1 or 1.2 would take for something else; lists stay on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values out each time."""
        return True


for _tag, _pattern, _first in CORE_SCHEMA:
    for _end in (Loader, Dumper):
        _end.add_implicit_resolver(_tag, re.compile(_pattern), _first)
Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence(SEQ, items, flow_style=True))
Dumper.add_representer(  # only double quotes carry every character through
    str, lambda dumper, text: dumper.represent_scalar(STR, text, style=None if text.isprintable() else '"')
)


def dump(value: dict[str, Any]) -> str:
    """Block mappings in the given order, lists on one line."""
    text: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=4096)
    return text


def read(path: Path, asked_by: str = "") -> Document:
    """Read a file. `asked_by` is said in errors: who wants it. Raises YamlError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        beside = ", ".join(sorted(file.name for file in path.parent.glob("*.yaml"))) or "no .yaml file"
        raise YamlError(f"{path}: no such file{asked_by}; {path.parent} has {beside}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise YamlError(f"{path}: cannot be read{asked_by}: {error}; give a YAML file in UTF-8") from error
    return parse(text, str(path))


def parse(text: str, source: str, one_line: bool = False) -> Document:
    """Read one document. `one_line`: the text has no lines worth naming (a value from the command line)."""
    origins: dict[str, str] = {}
    try:
        node = yaml.compose(text, Loader=Loader)
        value = None if node is None else _build(node, source if one_line else f"{source}:", "", origins)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = source if one_line or mark is None else f"{source}:{mark.line + 1}:{mark.column + 1}"
        hint = "put the value in quotes" if one_line else "check indentation and quotes"
        raise YamlError(f"{place}: not valid YAML: {error.problem or error.context}; {hint}") from error
    except yaml.YAMLError as error:
        raise YamlError(f"{source}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise YamlError(f"{source}: nested too deeply; a config has a few levels") from error
    return Document(value, origins)


def _build(node: yaml.Node, place: str, prefix: str, origins: dict[str, str]) -> Any:
    """Node -> value. `place` ends in a colon where a line number shall follow."""
    here = _line(place, node)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node.tag, node.value, here)
    if isinstance(node, yaml.SequenceNode) and node.tag == SEQ:
        return [_build(item, place, prefix, {}) for item in node.value]
    if not isinstance(node, yaml.MappingNode) or node.tag != MAP:
        raise YamlError(f"{here}: the tag {node.tag} is not supported; write a plain value")
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        here = _line(place, key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlError(f"{here}: a key must be a plain name, got a list or mapping")
        key = prefix + key_node.value
        if key_node.value in mapping:
            raise YamlError(f"{here}: {key} is given twice (first at {origins.get(key, here)}); keep one of the two")
        origins[key] = here
        mapping[key_node.value] = _build(value_node, place, f"{key}.", origins)
    return mapping


def _line(place: str, node: yaml.Node) -> str:
    return f"{place}{node.start_mark.line + 1}" if place.endswith(":") else place


def _scalar(tag: str, text: str, here: str) -> Any:
    try:
        if tag == STR:
            return text
        if tag == NULL:
            return None
        if tag == BOOL:
            return {"true": True, "false": False}[text.lower()]
        if tag == INT:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if tag == FLOAT:
            return float(re.sub(r"\.(inf|nan)\Z", r"\1", text.lower()))
    except (KeyError, ValueError) as error:
        raise YamlError(
            f"{here}: {text[:40]!r} cannot be read as {tag.rpartition(':')[2]}; write a plain value"
        ) from error
    raise YamlError(f"{here}: the tag {tag} is not supported; write a plain value")
