"""The files of configs/cluster, with <names> filled in."""

import re
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "configs/cluster"
_ALONE = re.compile(r"^( *)<([a-z_]+)>\n", re.MULTILINE)
_NAME = re.compile(r"<([a-z_]+)>")


def fill(file: str, values: Mapping[str, str | int]) -> str:
    """The text of a file with each <name> replaced by its value, which must be safe where it stands.

    A name alone on its line stands for as many lines as its value has, indented as it is.
    """

    def lines(match: re.Match[str]) -> str:
        text = str(values[match[2]])
        return "".join(f"{match[1]}{line}\n" if line else "\n" for line in text.splitlines())

    # One pass: what a value holds is never looked at.
    text = (FOLDER / file).read_text(encoding="utf-8")
    both = re.compile(f"{_ALONE.pattern}|{_NAME.pattern}", re.MULTILINE)
    return both.sub(lambda match: lines(match) if match[2] else str(values[match[3]]), text)
