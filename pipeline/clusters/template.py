"""The files of configs/cluster, with <names> filled in."""

import re
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "configs/cluster"
_NAME = re.compile(r"^(?P<indent> *)<(?P<alone>[a-z_]+)>\n|<(?P<name>[a-z_]+)>", re.MULTILINE)


def fill(file: str, values: Mapping[str, str | int]) -> str:
    """The text of a file with each <name> replaced by its value, which must be safe where it stands.

    A name alone on its line stands for as many lines as its value has, none too, indented as it is. What a value holds
    is not looked at again.
    """

    def value(match: re.Match[str]) -> str:
        if match["name"]:
            return str(values[match["name"]])
        lines = str(values[match["alone"]]).splitlines()
        return "".join(f"{match['indent']}{line}\n" for line in lines)

    return _NAME.sub(value, (FOLDER / file).read_text(encoding="utf-8"))
