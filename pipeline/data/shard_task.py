"""The work of writing one shard, anywhere: a range of a data set's entries -> a shard and its slip.

A slip (.progress/shard-00000.json) says that a shard is finished: what it was made from and what is in it. Whoever
starts the same work again keeps a shard whose slip names the same input and whose file still has the slip's hash; so a
killed job goes on where it stopped. (A picture that was changed between the two is not noticed.)
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.data.manifest import Shard, shard_name
from pipeline.data.quarantine import BadSample, Quarantine
from pipeline.data.records import FORMAT_VERSION
from pipeline.data.shard_file import encode_shard
from pipeline.data.source import Entry, Reader, Sample
from pipeline.data.storage import Storage

PROGRESS = ".progress"  # directory of the slips
_READ_AHEAD = 2  # samples a thread


@dataclass(frozen=True)
class ShardTask:
    """What to write."""

    number: int
    entries: Sequence[Entry]


@dataclass(frozen=True)
class FinishedShard:
    """What was written, and what a slip holds."""

    made_from: str  # hash of all that decides the shard
    shard: Shard | None  # None where no entry is usable
    index: list[dict[str, Any]]  # rows of INDEX_SCHEMA
    counts: dict[str, int]  # manifest.COUNTS
    quarantine: list[BadSample]  # in the order of the entries


def write_shard(
    task: ShardTask,
    reader: Reader,
    out: Storage,
    rows_per_group: int,
    strict: bool,
    threads: int,
    on_image: Callable[[], None] | None = None,
    proposals: bool = False,
) -> FinishedShard:
    """Write one shard, unless it is finished already. Holds it in memory; decodes on `threads` threads.

    Raises:
        DataError: a sample is bad, and `strict`.
        StorageError: `out` cannot be written.
    """
    name = shard_name(task.number)
    made_from = _fingerprint(task, reader, rows_per_group)
    slips = out.child(PROGRESS)
    kept = _finished(slips, out, name, made_from)
    if kept is not None:
        if on_image is not None:
            for _ in task.entries:
                on_image()
        return kept
    bad: list[BadSample] = []

    def usable() -> Iterator[Sample]:
        for sample, found in _samples(task.entries, reader, strict, threads):
            bad.extend(found)
            if sample is not None:
                yield sample
            if on_image is not None:
                on_image()

    file = encode_shard(usable(), task.number, rows_per_group, proposals)
    if file is None:
        out.delete(name)
        finished = FinishedShard(made_from, None, [], {}, bad)
    else:
        out.write(name, file.content)
        digest = hashlib.sha256(file.content).hexdigest()
        shard = Shard(name, len(file.index), file.content.size, digest)
        finished = FinishedShard(made_from, shard, file.index, file.counts, bad)
    slips.write(_slip(name), json.dumps(asdict(finished)).encode())
    return finished


def _samples(
    entries: Sequence[Entry], reader: Reader, strict: bool, threads: int
) -> Iterator[tuple[Sample | None, list[BadSample]]]:
    """Samples in the order of `entries` with what is bad about each, read a little ahead."""

    def read(entry: Entry) -> tuple[Sample | None, list[BadSample]]:
        quarantine = Quarantine(strict)  # of its own: what threads find comes back in the order of the entries
        return reader.read(entry, quarantine), quarantine.samples

    if threads == 1:
        yield from map(read, entries)
        return
    waiting: deque[Future[tuple[Sample | None, list[BadSample]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for entry in entries:
                waiting.append(pool.submit(read, entry))
                if len(waiting) > _READ_AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _finished(slips: Storage, out: Storage, name: str, made_from: str) -> FinishedShard | None:
    """What the slip of a shard says, if it is of the same work and the shard is whole."""
    try:
        content = json.loads(slips.read(_slip(name)))
        if content["made_from"] != made_from:
            return None
        shard = None if content["shard"] is None else Shard(**content["shard"])
        bad = [BadSample(**line) for line in content["quarantine"]]
        if shard is not None and hashlib.sha256(out.read(name)).hexdigest() != shard.sha256:
            return None
    except OSError:  # there is none; what else stops us, stops us when we write
        return None
    except (ValueError, KeyError, TypeError):  # no slip of ours
        return None
    return FinishedShard(made_from, shard, content["index"], content["counts"], bad)


def _slip(name: str) -> str:
    return Path(name).with_suffix(".json").name


def _fingerprint(task: ShardTask, reader: Reader, rows_per_group: int) -> str:
    """Of all that decides a shard's bytes but the pictures themselves."""
    made_from = [FORMAT_VERSION, pa.__version__, task.number, rows_per_group, reader, list(task.entries)]
    return hashlib.sha256(json.dumps(made_from, default=_plain, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """What an entry or a reader holds, for JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    if hasattr(value, "tolist"):  # numpy's
        return value.tolist()
    return vars(value)
