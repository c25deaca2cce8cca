"""The rows of a plan, in its order, through Ray Data: tasks anywhere in the cluster read, one worker consumes.

Each worker runs a data set of its own over its share of every batch. Encoded images travel, not decoded ones: a decoded
frame is ten times larger, and moving it between processes costs more than decoding it (see collate.py).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, TaskPoolStrategy

from pipeline.data.plan import PlannedBatch
from pipeline.data.records import Record
from pipeline.data.shard_rows import ROW_KEYS, read_rows
from pipeline.data.shards import to_records
from pipeline.data.storage import Location, Storage

CHUNK_BYTES = 256 << 20  # of encoded images in one data set; a long run is a sequence of data sets
READERS = 2  # read tasks at once, a data set


def rows_dataset(tasks: Sequence[pa.Table], shards: Location) -> ray.data.Dataset:
    """A data set of the rows of `shards` that each table of `tasks` names (shard_rows.ROW_KEYS), in that order.

    Each table is one Ray task. (`from_arrow` would start tasks of a whole CPU that no setting bounds, and wait forever
    for one on a machine whose CPUs are all at work.)

    Reading claims no CPU, it mostly copies bytes: Ray Data would get none where training has them all. A data set must
    fit the object store too. Where Ray Data has to hold a task back for either, its scheduler does not wait but spins,
    in this process, and training crawls.
    """
    items = [{key: task[key].to_pylist() for key in ROW_KEYS} for task in tasks]
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        read_task,
        fn_kwargs={"shards": Storage.at(shards)},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0,
        compute=TaskPoolStrategy(size=READERS),
    )


def read_task(task: pa.Table, shards: Storage) -> pa.Table:
    """The rows of shards that `task` names in its lists of ROW_KEYS, in that order."""
    return read_rows(shards, pa.table({key: task[key].combine_chunks().flatten() for key in ROW_KEYS}))


def stream_records(
    batches: Iterator[PlannedBatch],
    index: pa.Table,
    shards: Location,
    task_rows: int,
    read_ahead_batches: int,
) -> Iterator[tuple[PlannedBatch, list[Record]]]:
    """The records of each (equally large) batch.

    Args:
        batches: this worker's shares.
        index: what `PlannedBatch.rows` counts in.
        shards: their directory, as every node of the cluster sees it.
        task_rows: rows one Ray task reads, at least; whole batches.
        read_ahead_batches: batches fetched to this process ahead of use.
    """
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    keys, image_bytes = index.select(ROW_KEYS), index["bytes"].to_numpy()
    chunk: list[PlannedBatch] = []
    size = 0
    for batch in batches:
        chunk.append(batch)
        size += int(image_bytes[batch.rows].sum())
        if size >= CHUNK_BYTES:
            yield from _read(chunk, keys, shards, task_rows, read_ahead_batches)
            chunk, size = [], 0
    if chunk:
        yield from _read(chunk, keys, shards, task_rows, read_ahead_batches)


def _read(
    chunk: list[PlannedBatch], keys: pa.Table, shards: Location, task_rows: int, read_ahead_batches: int
) -> Iterator[tuple[PlannedBatch, list[Record]]]:
    share = len(chunk[0].rows)
    per_task = -(-task_rows // share)  # whole batches
    tasks = [
        keys.take(np.concatenate([batch.rows for batch in chunk[start : start + per_task]]))
        for start in range(0, len(chunk), per_task)
    ]
    tables = rows_dataset(tasks, shards).iter_batches(
        batch_size=share, batch_format="pyarrow", prefetch_batches=read_ahead_batches
    )
    for batch, table in zip(chunk, tables, strict=True):
        yield batch, to_records(table)
