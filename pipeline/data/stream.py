"""The rows of a plan, in its order, through Ray Data: tasks anywhere in the cluster read (and decode), one worker
consumes.

Each worker runs data sets of its own over its share of every batch, so that workers never wait for each other.
"""

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.data import DataContext, TaskPoolStrategy

from model.types import Batch
from pipeline.data.batch_rows import from_row, to_row
from pipeline.data.collate import collate
from pipeline.data.plan import PlannedBatch
from pipeline.data.read_task import KEYS, read_task
from pipeline.data.recipes import Recipes
from pipeline.data.records import Record
from pipeline.data.shard_rows import COLUMNS
from pipeline.data.shards import to_records


@dataclass(frozen=True)
class Reading:
    """How a worker's data sets run."""

    task_rows: int  # rows one Ray task reads, at least; whole batches
    tasks: int  # at once
    task_cpus: float  # each claims. Reading claims none: Ray Data would get none where training has them all
    chunk_bytes: int  # of encoded images in one data set; a long run is a sequence of data sets
    ahead: int  # batches fetched to this process ahead of use
    columns: tuple[str, ...] = COLUMNS  # what is read of each row


def tasks_dataset(
    tasks: Sequence[dict[str, object]], run: Callable[..., object], arguments: dict[str, object], reading: Reading
) -> ray.data.Dataset:
    """A data set of what `run` makes of each of `tasks`, in their order; each is one Ray task.

    (`from_arrow` would start tasks of a whole CPU that no setting bounds, and wait forever for one on a machine whose
    CPUs are all at work.) A data set must fit the object store, and its tasks the CPUs: where Ray Data has to hold a
    task back for either, its scheduler does not wait but spins, in this process, and training crawls.
    """
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    return ray.data.from_items(list(tasks), override_num_blocks=len(tasks)).map_batches(
        run,
        fn_kwargs=arguments,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=reading.task_cpus,
        compute=TaskPoolStrategy(size=min(reading.tasks, len(tasks))),
    )


def rows_dataset(tasks: Sequence[pa.Table], locations: Sequence[str], reading: Reading) -> ray.data.Dataset:
    """A data set of the rows of shards that each table of `tasks` names (KEYS), in that order; see tasks_dataset."""
    arguments: dict[str, object] = {"locations": list(locations), "columns": reading.columns}
    return tasks_dataset([_lists(task) for task in tasks], read_task, arguments, reading)


def stream_records(
    batches: Iterator[PlannedBatch], index: pa.Table, locations: Sequence[str], reading: Reading
) -> Iterator[tuple[PlannedBatch, list[Record]]]:
    """The records of each batch: of its rows, then of its partners.

    Args:
        batches: this worker's shares.
        index: what `PlannedBatch.rows` counts in.
        locations: of the shards, as every node of the cluster sees them; index["dataset"] counts in them.
        reading: how.
    """
    for chunk in chunks(batches, index, reading.chunk_bytes):
        tasks = [_keys(index, part) for part in in_tasks(chunk, reading.task_rows)]
        tables = rows_dataset(tasks, locations, reading).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=reading.ahead
        )
        yield from zip(chunk, _regroup(tables, [len(b.all_rows) for b in chunk]), strict=True)


def stream_batches(
    batches: Iterator[PlannedBatch],
    index: pa.Table,
    locations: Sequence[str],
    recipes: Recipes,
    reading: Reading,
    on_bad: Callable[[int, str], None],
) -> Iterator[Batch]:
    """The collated batches, decoded by Ray tasks; each comes as one row of Arrow bytes. See stream_records."""
    arguments: dict[str, object] = {"locations": list(locations), "recipes": recipes, "columns": reading.columns}
    for chunk in chunks(batches, index, reading.chunk_bytes):
        parts = in_tasks(chunk, reading.task_rows)
        tasks = [{**_lists(_keys(index, part)), "batches": pickle.dumps(part)} for part in parts]
        tables = tasks_dataset(tasks, decode_task, arguments, reading).iter_batches(
            batch_size=1, batch_format="pyarrow", prefetch_batches=reading.ahead
        )
        for _, table in zip(chunk, tables, strict=True):
            batch, bad = from_row(table)
            for sample_id, reason in bad:
                on_bad(sample_id, reason)
            yield batch


def decode_task(
    task: pa.Table, locations: Sequence[str], recipes: Recipes, columns: Sequence[str] = COLUMNS
) -> Iterator[pa.Table]:
    """One row a batch: what `task` names, read, decoded and collated. (Its pickle is this run's own.)"""
    torch.set_num_threads(1)  # a task claims a CPU
    rows = read_task(task, locations, columns)
    start = 0
    for batch in pickle.loads(task["batches"][0].as_py()):
        count = len(batch.all_rows)
        records = to_records(rows.slice(start, count))
        start += count
        bad: list[tuple[int, str]] = []
        made = collate(
            recipes.work(batch, records),
            recipes.divisor,
            recipes.targets,
            recipes.keypoints,
            partial(_note, bad),
            recipes.proposals,
        )
        yield to_row(made, bad)


def _note(bad: list[tuple[int, str]], sample_id: int, reason: str) -> None:
    bad.append((sample_id, reason))


def chunks(batches: Iterator[PlannedBatch], index: pa.Table, most_bytes: int) -> Iterator[list[PlannedBatch]]:
    """Runs of batches whose encoded images make about `most_bytes`."""
    image_bytes = index["bytes"].to_numpy()
    chunk: list[PlannedBatch] = []
    size = 0
    for batch in batches:
        chunk.append(batch)
        size += int(image_bytes[batch.all_rows].sum())
        if size >= most_bytes:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def in_tasks(chunk: list[PlannedBatch], task_rows: int) -> list[list[PlannedBatch]]:
    """What each task does: whole batches, at least `task_rows` rows."""
    per_task = -(-task_rows // len(chunk[0].rows))
    return [chunk[start : start + per_task] for start in range(0, len(chunk), per_task)]


def _keys(index: pa.Table, batches: Sequence[PlannedBatch]) -> pa.Table:
    return index.select(KEYS).take(np.concatenate([batch.all_rows for batch in batches]))


def _lists(keys: pa.Table) -> dict[str, object]:
    return {key: keys[key].to_pylist() for key in KEYS}


def _regroup(tables: Iterable[pa.Table], counts: Sequence[int]) -> Iterator[list[Record]]:
    """Records in groups of `counts`, from tables of any length."""
    held: list[Record] = []
    left = iter(tables)
    for count in counts:
        while len(held) < count:
            held += to_records(next(left))
        yield held[:count]
        held = held[count:]
