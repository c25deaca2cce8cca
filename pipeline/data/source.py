"""What every input format becomes before it is sharded: a list of entries and a reader that makes a Record of each.

The entries are cheap (numbers, names, annotations as read); the reader opens the picture, checks everything and
converts. Both are picklable, so that any task on any node can read any range of entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from pipeline.data.quarantine import Quarantine
from pipeline.data.records import Record

FACTS = ("masks", "other_files")  # keys of a Dataset's `source` that name nothing
Scoring = Literal["coco", "lvis", "cityscapes", "none"]  # the protocol by which detections on this data are scored


class Sample(NamedTuple):
    """A record, and what is only known while its picture is decoded."""

    record: Record
    grayscale: bool


class Entry(Protocol):
    """One image of a source, not read yet; a format adds what its reader needs."""

    @property
    def sample_id(self) -> int:
        """Unique in the data set."""

    @property
    def file_name(self) -> str:
        """Relative to the root of the pictures."""


class Reader(Protocol):
    """Reads entries; small, because it travels to every task."""

    def read(self, entry: Any, quarantine: Quarantine) -> Sample | None:
        """The sample of an entry, None when the whole image went to `quarantine`.

        A bad annotation goes there alone. Raises DataError when the quarantine is strict.
        """


@dataclass(frozen=True)
class Keypoints:
    """What the J keypoints of an instance are."""

    names: tuple[str, ...]  # J, such as left_eye
    flip: tuple[int, ...]  # J: keypoint j of a mirrored picture is keypoint flip[j] of the picture
    skeleton: tuple[tuple[int, int], ...]  # pairs of keypoints (from 0) that are joined when drawn
    sigmas: tuple[float, ...] | None = None  # J, how far annotators differ (OKS); None: the data does not say


@dataclass(frozen=True)
class Dataset:
    """A data set that can be sharded. Classes are 1..K in the order of `class_names`."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # of the source; class c is category_ids[c - 1]
    scoring: Scoring
    keypoints: Keypoints | None
    frequencies: tuple[str, ...]  # of classes, LVIS: "r", "c" or "f"; empty elsewhere
    entries: Sequence[Entry] = field(repr=False)  # in the order of their ids
    reader: Reader = field(repr=False)
    source: dict[str, str]  # for people: names (not paths) of what it was read from, and FACTS about it
    generator: dict[str, Any] | None  # settings of a generated data set, None for real pictures
    quarantine: Quarantine = field(repr=False)  # what was refused before any picture was opened
    proposals: bool = False  # whether the records have proposals of another system
