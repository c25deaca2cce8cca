"""What is wrong with single samples: set aside with a reason and counted, so that one bad sample never stops a job."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal

from pipeline.errors import UserError

Kind = Literal["image", "annotation"]


class DataError(UserError):
    """The data set as a whole cannot be used, or (strict) a sample of it."""


@dataclass(frozen=True)
class BadSample:
    """One line of quarantine.jsonl."""

    kind: Kind  # an image leaves with its annotations; an annotation leaves alone
    sample_id: int | None  # None: the source gives none that is usable
    annotation_id: int | None
    file_name: str | None
    reason: str  # one of a few, so that they can be counted
    got: str  # what was found in this sample


class BadError(Exception):
    """One sample is bad, raised where that is found and caught where it is known which one."""

    def __init__(self, reason: str, got: object) -> None:
        super().__init__(reason)
        text = got if isinstance(got, str) else repr(got)
        self.reason, self.got = reason, text if len(text) <= 300 else text[:297] + "..."


class Quarantine:
    """Collects bad samples; with `strict` it refuses at the first one."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.samples: list[BadSample] = []  # list.append is atomic, so threads may share this

    def add(self, bad: BadSample) -> None:
        """Set a sample aside. Raises DataError when strict."""
        if self.strict:
            named = "" if bad.file_name is None else f" ({bad.file_name})"
            number = bad.sample_id if bad.kind == "image" else bad.annotation_id
            raise DataError(
                f"{bad.kind} {number}{named}: {bad.reason}; got {bad.got}. "
                "Mend the source, or run without --strict to leave such samples out"
            )
        self.samples.append(bad)

    def count(self, kind: Kind) -> int:
        """How many images, or annotations, were set aside."""
        return sum(bad.kind == kind for bad in self.samples)

    def reasons(self) -> dict[str, int]:
        """How often each reason occurred, most frequent first."""
        counts = Counter(f"{bad.kind}: {bad.reason}" for bad in self.samples)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def to_jsonl(self) -> str:
        """One JSON object a line, images first, in the order of their ids."""
        order = sorted(
            self.samples,
            key=lambda bad: (bad.kind != "image", bad.sample_id or 0, bad.annotation_id or 0, bad.file_name or ""),
        )
        return "".join(json.dumps(asdict(bad)) + "\n" for bad in order)
