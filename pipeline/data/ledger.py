"""What was really trained, step by step: each worker appends a line a step, and the lineage is rebuilt from them.

RUN/ledger/0000040-attempt003-rank1of4.jsonl is what worker 1 of 4 wrote in the third attempt, which began at step 40:

    {"step": 40, "rank": 1, "world": 4, "samples": [139, 9, 61, 25], "skipped": false}

An attempt begins when workers start, be it a new command or a restart after a failure. It supersedes what earlier ones
recorded from its first step on: their work after the checkpoint was lost.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pipeline.errors import UserError

_NAME = re.compile(r"(?P<start>\d+)-attempt(?P<attempt>\d+)-rank(?P<rank>\d+)of(?P<world>\d+)\.jsonl")


class LedgerError(UserError):
    """The ledger does not show what it should."""


@dataclass(frozen=True)
class Line:
    """What one worker trained in one step."""

    samples: tuple[int, ...]  # sample ids
    skipped: bool  # the gradient was not finite: the step changed nothing


@dataclass(frozen=True)
class Attempt:
    """What the workers of one start recorded."""

    number: int  # from 1, in the order of time
    start: int  # its first step
    world: int  # workers
    lines: tuple[dict[int, Line], ...]  # [world], by step; a worker that wrote nothing has none

    @property
    def end(self) -> int:
        """The step after the last that any worker recorded; `start` where there is none."""
        return max((step + 1 for lines in self.lines for step in lines), default=self.start)


def next_attempt(run_dir: Path) -> int:
    """The number of the attempt that begins now."""
    names = (_NAME.fullmatch(path.name) for path in ledger_dir(run_dir).glob("*.jsonl"))
    return 1 + max((int(name["attempt"]) for name in names if name), default=0)


def ledger_dir(run_dir: Path) -> Path:
    """Where a run's ledger lies."""
    return run_dir / "ledger"


class LedgerWriter:
    """Appends the lines of one worker, each in one write: they outlive a kill of the process."""

    def __init__(self, run_dir: Path, attempt: int, start: int, rank: int, world: int) -> None:
        self._rank, self._world = rank, world
        directory = ledger_dir(run_dir)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{start:07d}-attempt{attempt:03d}-rank{rank}of{world}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)

    def write(self, step: int, samples: Sequence[int], skipped: bool) -> None:
        """Record a step that has been made."""
        line = {"step": step, "rank": self._rank, "world": self._world, "samples": list(samples), "skipped": skipped}
        content = json.dumps(line).encode() + b"\n"
        written = os.write(self._file, content)
        if written != len(content):
            raise OSError(
                f"only {written} of {len(content)} bytes of a line of the ledger were written: is a disk full?"
            )

    def __enter__(self) -> "LedgerWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        os.close(self._file)


def read_ledger(run_dir: Path) -> list[Attempt]:
    """All attempts in the order of time. Raises LedgerError for what no worker can have written.

    The last line of a file may be torn (its writer was killed, or the machine went down) and then does not count.
    """
    found: dict[int, dict[int, Path]] = {}
    shapes: dict[int, tuple[int, int]] = {}
    for path in sorted(ledger_dir(run_dir).glob("*.jsonl")):
        name = _NAME.fullmatch(path.name)
        if name is None:
            raise LedgerError(f"{path} is no file of a ledger; move it elsewhere")
        number, shape = int(name["attempt"]), (int(name["start"]), int(name["world"]))
        if shapes.setdefault(number, shape) != shape:
            raise LedgerError(
                f"{path}: attempt {number} begins at step {shape[0]} with {shape[1]} workers here, elsewhere at step "
                f"{shapes[number][0]} with {shapes[number][1]}: two commands trained in {run_dir} at the same time"
            )
        found.setdefault(number, {})[int(name["rank"])] = path
    attempts = []
    for number in sorted(found):
        start, world = shapes[number]
        files = (found[number].get(rank) for rank in range(world))
        attempts.append(
            Attempt(number, start, world, tuple(dict(_lines(path, start)) if path else {} for path in files))
        )
    return attempts


def _lines(path: Path, start: int) -> Iterator[tuple[int, Line]]:
    *whole, torn = path.read_bytes().split(b"\n")
    if _parsed(torn) is not None:  # nothing is missing but the end of the line: the step had been made
        whole.append(torn)
    for number, content in enumerate(whole):
        parsed = _parsed(content)
        if parsed is None:
            raise LedgerError(f"{path}: line {number + 1} is damaged: {content[:80]!r}; only a last line may be torn")
        step, line = parsed
        if step != start + number:
            raise LedgerError(f"{path}: line {number + 1} should be of step {start + number}, got step {step}")
        yield step, line


def _parsed(content: bytes) -> tuple[int, Line] | None:
    try:
        values = json.loads(content)
        samples = tuple(values["samples"])
        if not all(type(sample) is int for sample in samples):
            return None
        return int(values["step"]), Line(samples, bool(values["skipped"]))
    except (ValueError, KeyError, TypeError):
        return None
