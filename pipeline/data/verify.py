"""Is a directory of shards whole and right? Every hash, picture, row, index row and count is checked.

    report = verify_shards("data/coco/val", workers=8)
    report.sound, report.faults, report.statistics.summary()

Processes check a few row groups at a time and hold one of them in memory. Bit rot is told from wrong rows: a file whose
hash is not the manifest's is damaged, a wrong row in a file whose hash is right was written so.
"""

import json
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data import problems
from pipeline.data.group_check import Part, Task, run_task
from pipeline.data.manifest import (
    COUNTS,
    INDEX,
    MORE_COUNTS,
    QUARANTINE,
    QUARANTINE_COUNTS,
    Manifest,
    load_manifest,
    shard_number,
)
from pipeline.data.problems import Findings, Problem
from pipeline.data.quarantine import DataError
from pipeline.data.records import FULL_SCHEMA, INDEX_SCHEMA, SCHEMA
from pipeline.data.statistics import Statistics, merge
from pipeline.data.storage import Storage

GROUPS_A_TASK = 8  # row groups; small enough for a smooth progress bar and an even end


@dataclass(frozen=True)
class Report:
    """What was found out about a directory of shards."""

    manifest: Manifest
    rows: int  # that were checked
    faults: Findings  # what must be mended
    notes: Findings  # what is odd in the source; training and evaluation work
    statistics: Statistics  # of the rows without a fault
    megabytes: float  # of all shards

    @property
    def sound(self) -> bool:
        """Whether nothing must be mended."""
        return not self.faults.counts


def verify_shards(
    location: Path | str | Storage, workers: int | None = None, progress: Callable[[int], None] | None = None
) -> Report:
    """Check everything; the report is the same for any number of worker processes (1: in this one).

    `progress` gets the number of images done. Raises DataError where there are no complete shards, StorageError.
    """
    storage = Storage.at(location)
    manifest = load_manifest(storage)
    faults, classes = Findings(), len(manifest.class_names)
    tasks = list(_tasks(storage, manifest, faults))
    if workers is None:  # a process needs about a second to start, in which one checks about 100 images
        workers = min(os.cpu_count() or 1, 1 + manifest.images // 500)
    notes, counts, statistics = Findings(), Counter[str](), []
    places: list[npt.NDArray[np.int64]] = []
    annotations: list[npt.NDArray[np.int64]] = []
    for part in map(run_task, tasks) if workers == 1 else _parallel(tasks, workers):
        faults.extend(part.faults)
        notes.extend(part.notes)
        counts.update(part.counts)
        statistics += part.statistics
        if len(statistics) > 500:
            statistics = [merge(statistics, classes)]
        places.append(np.array(part.places, dtype=np.int64).reshape(-1, 4))
        annotations.append(np.array(part.annotations, dtype=np.int64).reshape(-1, 2))
        if progress is not None:
            progress(counts["images"])
    _check_unique(np.concatenate([np.zeros((0, 4), np.int64), *places]), manifest, faults)
    _check_annotations(np.concatenate([np.zeros((0, 2), np.int64), *annotations]), faults)
    _check_counts(storage, manifest, counts, faults)
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    return Report(manifest, counts["images"], faults, notes, merge(statistics, classes), megabytes)


def _tasks(storage: Storage, manifest: Manifest, faults: Findings) -> Iterator[Task]:
    """All work; what cannot be opened, or is not where the index says, becomes a fault here."""
    keypoints = None if manifest.keypoints is None else len(manifest.keypoints.names)
    base = Task(storage.uri, INDEX, 0, None, manifest.index_sha256, None, len(manifest.class_names), keypoints)
    yield base
    index = _read_index(storage, faults)
    claimed = 0
    for number, shard in enumerate(manifest.shards):
        mine = index.filter(pc.equal(index["shard"], shard_number(shard.name)))
        if storage.size(shard.name) is None:
            faults.add(Problem("the file is missing", "nothing", problems.COPY, shard.name))
            claimed += mine.num_rows
            continue
        yield base._replace(file=shard.name, shard=number, expected_sha256=shard.sha256)
        try:
            with storage.open(shard.name) as file, pq.ParquetFile(file) as parquet:
                groups, schema, rows = parquet.num_row_groups, parquet.schema_arrow, parquet.metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            faults.add(Problem("the file is not Parquet", str(error), problems.COPY, shard.name))
            claimed += mine.num_rows
            continue
        if not schema.equals(FULL_SCHEMA if manifest.has_proposals else SCHEMA):
            faults.add(Problem("the file has other columns", ", ".join(schema.names), problems.WRITE, shard.name))
            claimed += mine.num_rows
            continue
        if rows != shard.rows:
            faults.add(
                Problem("rows are not the manifest's", f"{rows}, expected {shard.rows}", problems.WRITE, shard.name)
            )
        for first in range(0, groups, GROUPS_A_TASK):
            part = tuple(range(first, min(first + GROUPS_A_TASK, groups)))
            found = mine.filter(pc.is_in(mine["row_group"], pa.array(part, pa.int32())))
            claimed += found.num_rows
            yield base._replace(file=shard.name, shard=number, groups=part, index_rows=found)
    if claimed < index.num_rows:
        got = f"{index.num_rows - claimed} rows of shards or row groups that are not there"
        faults.add(Problem("the index names rows that are not there", got, problems.INDEX, INDEX))


def _read_index(storage: Storage, faults: Findings) -> pa.Table:
    try:
        with storage.open(INDEX) as file:
            index = pq.read_table(file)
        if index.schema.equals(INDEX_SCHEMA):
            return index
        faults.add(Problem("the file has other columns", ", ".join(index.schema.names), problems.WRITE, INDEX))
    except (OSError, pa.ArrowException) as error:
        faults.add(Problem("the index cannot be read", str(error), problems.COPY, INDEX))
    return INDEX_SCHEMA.empty_table()


def _parallel(tasks: Iterable[Task], workers: int) -> Iterator[Part]:
    """Parts in the order of the tasks, made by processes that are a little ahead."""
    waiting: deque[Future[Part]] = deque()
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for task in tasks:
                waiting.append(pool.submit(run_task, task))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            f"a checking process ended ({error}); it was killed, perhaps for memory: use fewer --workers"
        ) from error


def _check_unique(places: npt.NDArray[np.int64], manifest: Manifest, faults: Findings) -> None:
    """Sample ids [R, 4]: id, shard, row group, row."""
    for number, shard, group, row in places[_repeated(places[:, 0])].tolist():
        file = manifest.shards[shard].name
        faults.add(
            Problem("a sample id occurs twice", f"{number} again", problems.WRITE, file, group, row, sample_id=number)
        )


def _check_annotations(annotations: npt.NDArray[np.int64], faults: Findings) -> None:
    """Annotation ids [R, 2]: id, sample id."""
    for number, sample in annotations[_repeated(annotations[:, 0])].tolist():
        got = f"{number} again"
        faults.add(Problem("an annotation id occurs twice", got, problems.WRITE, "a shard", sample_id=sample))


def _repeated(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions of values that occurred before, ascending."""
    _, first = np.unique(values, return_index=True)
    return np.setdiff1d(np.arange(len(values)), first)


def _check_counts(storage: Storage, manifest: Manifest, counts: Counter[str], faults: Findings) -> None:
    """The manifest's numbers against those of the rows, and of quarantine.jsonl."""
    found = dict(counts)
    all_read = counts["images"] == sum(shard.rows for shard in manifest.shards)  # else it is said which rows are not
    by_reason: Counter[str] = Counter()
    try:
        for line in storage.read(QUARANTINE).splitlines():
            bad = json.loads(line)
            by_reason[f"{bad['kind']}: {bad['reason']}"] += 1
            found[f"quarantined_{bad['kind']}s"] = found.get(f"quarantined_{bad['kind']}s", 0) + 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        faults.add(Problem("the file cannot be read", str(error), problems.COPY, QUARANTINE))
    else:
        if by_reason != Counter(manifest.quarantined):
            got = f"{dict(by_reason)}, the manifest says {manifest.quarantined}"
            faults.add(Problem("reasons are not the manifest's", got, problems.COPY, QUARANTINE))
    wrong = [
        f"{manifest.counts.get(name, 0)} {name}, counted {found.get(name, 0)}"
        for name in (*((*COUNTS, *MORE_COUNTS) if all_read else ()), *QUARANTINE_COUNTS)
        if manifest.counts.get(name, 0) != found.get(name, 0)
    ]
    if wrong:
        faults.add(Problem("counts are not those of the rows", "; ".join(wrong), problems.WRITE, "manifest.json"))
