"""What a check of shards finds: where it is, what it is, what to do; counted, and the first of each kind described."""

from collections import Counter
from dataclasses import dataclass, field

LISTED = 20  # problems of one kind that are described; all are counted
COPY = "copy the file again, or write the shards again"
WRITE = "write the shards again with `maskrcnn shard`; if it stays, mend the annotation that the row comes from"
INDEX = "write the shards again: index and rows come from different runs, or one of them was edited"
SOURCE = "look at the annotation in the source"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where."""

    what: str  # one of a few, so that they can be counted
    got: str
    fix: str
    file: str
    row_group: int | None = None
    row: int | None = None  # in its row group
    sample_id: int | None = None
    file_name: str | None = None

    @property
    def place(self) -> str:
        """Where it is: "shard-00000.parquet row group 3 row 2, sample 139 (000000000139.jpg)"."""
        place = self.file
        if self.row_group is not None:
            place += f" row group {self.row_group}"
        if self.row is not None:
            place += f" row {self.row}"
        if self.sample_id is not None:
            place += f", sample {self.sample_id}"
        return place + (f" ({self.file_name})" if self.file_name else "")


@dataclass
class Findings:
    """Problems counted by what they are; of many equal ones only the first are kept."""

    first: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, problem: Problem) -> None:
        """Count it."""
        self.counts[problem.what] += 1
        if self.counts[problem.what] <= LISTED:
            self.first.append(problem)

    def extend(self, other: "Findings") -> None:
        """Add those of another task."""
        for problem in other.first:
            if sum(p.what == problem.what for p in self.first) < LISTED:
                self.first.append(problem)
        self.counts.update(other.counts)
