"""Which class of one data set is which of another: by name, by synonym, or as the user says."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

How = Literal["name", "synonym", "map", "new"]

# Names that COCO, LVIS, Pascal VOC, Cityscapes, BDD100K, Objects365 and Open Images have for one thing; the first of a
# line stands for all. Only what means the same: a rider is no person in Cityscapes' sense.
_SYNONYMS = (
    ("airplane", "aeroplane", "plane"),
    ("baseball glove", "baseball mitt"),
    ("bicycle", "bike", "cycle", "pushbike"),
    ("car", "automobile", "motorcar", "auto"),
    ("cell phone", "cellphone", "mobile phone", "cellular telephone", "cellular phone", "smartphone"),
    ("couch", "sofa"),
    ("cow", "cattle"),
    ("cup", "mug"),
    ("dining table", "diningtable"),
    ("donut", "doughnut"),
    ("frisbee", "flying disc"),
    ("hair drier", "hair dryer", "hairdryer", "blow dryer"),
    ("motorcycle", "motorbike", "motor", "motor cycle", "motor bike"),
    ("person", "pedestrian", "human", "people"),
    ("potted plant", "pottedplant", "houseplant"),
    ("refrigerator", "fridge"),
    ("remote", "remote control"),
    ("skis", "ski"),
    ("teddy bear", "teddy"),
    ("traffic light", "traffic signal", "stoplight"),
    ("truck", "lorry"),
    ("tv", "television", "television set", "tvmonitor", "tv monitor"),
)
_FIRST = {name: line[0] for line in _SYNONYMS for name in line}


@dataclass(frozen=True)
class Match:
    """Where a class comes from."""

    name: str
    source: int | None  # class 1..K of the other data set; None: it has no such class
    how: How


class UnknownClassError(ValueError):
    """A map names a class that is not there."""


def match_classes(names: Sequence[str], sources: Sequence[str], wanted: Mapping[str, str | None]) -> list[Match]:
    """For each class of `names` the class of `sources` that it is.

    Args:
        names: of classes 1..K.
        sources: of classes 1..K of the data set that weights come from.
        wanted: what goes before any name: a name of `names` -> a name of `sources`, or None for a class that is new.

    Raises:
        UnknownClassError: `wanted` names what is in neither.
    """
    for name, source in wanted.items():
        for one, known, whose in ((name, names, "the data"), (source, sources, "the weights")):
            if one is not None and one not in known:
                near = difflib.get_close_matches(one, known, 3) or known[:10]
                raise UnknownClassError(f"{one!r} is no class of {whose}; did you mean {', '.join(near)}?")
    plain = {_plain(source): number for number, source in reversed(list(enumerate(sources, 1)))}
    meant = {_meaning(source): number for number, source in reversed(list(enumerate(sources, 1)))}
    exact = {source: number for number, source in enumerate(sources, 1)}
    found = []
    for name in names:
        if name in wanted:
            source = wanted[name]
            found.append(Match(name, None, "new") if source is None else Match(name, exact[source], "map"))
        elif (number := exact.get(name, plain.get(_plain(name)))) is not None:
            found.append(Match(name, number, "name"))
        elif (number := meant.get(_meaning(name))) is not None:
            found.append(Match(name, number, "synonym"))
        else:
            found.append(Match(name, None, "new"))
    return found


def _plain(name: str) -> str:
    """Without case, separators and LVIS's explanations: Traffic_Light -> traffic light, mug_(cup) -> mug."""
    return " ".join(re.split(r"[\s_\-]+", re.sub(r"_?\([^)]*\)", "", name.casefold()))).strip() or name


def _meaning(name: str) -> str:
    return _FIRST.get(_plain(name), _plain(name))
