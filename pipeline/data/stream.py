"""The rows of a plan, in its order, through Ray Data: tasks anywhere in the cluster read, one worker consumes.

Each worker runs a data set of its own over its share of every batch. Encoded images travel, not decoded ones: a decoded
frame is ten times larger, and moving it between processes costs more than decoding it (see collate.py).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, TaskPoolStrategy

from pipeline.data.plan import PlannedBatch
from pipeline.data.records import Record
from pipeline.data.shards import pick_rows, shard_name, to_records

CHUNK_BYTES = 256 << 20  # of encoded images in one data set; a long run is a sequence of data sets
READERS = 2  # read tasks at once, a data set


_KEYS = ("dataset", "shard", "row_group", "row")  # the index of a single data set lacks the first


def rows_dataset(tasks: Sequence[pa.Table], shards: Path | Sequence[Path]) -> ray.data.Dataset:
    """A data set of the rows of `shards` that each table of `tasks` names in (shard, row_group, row), in that order.

    With several directories of shards, its column `dataset` says which one, from 0.

    Each table is one Ray task. (`from_arrow` would start tasks of a whole CPU that no setting bounds, and wait forever
    for one on a machine whose CPUs are all at work.)

    Reading claims no CPU, it mostly copies bytes: Ray Data would get none where training has them all. A data set must
    fit the object store too. Where Ray Data has to hold a task back for either, its scheduler does not wait but spins,
    in this process, and training crawls.
    """
    items = [{key: task[key].to_pylist() for key in _KEYS if key in task.column_names} for task in tasks]
    places = [str(place) for place in ([shards] if isinstance(shards, Path) else shards)]
    return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        read_rows,
        fn_kwargs={"shards": places},
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=0,
        compute=TaskPoolStrategy(size=READERS),
    )


def read_rows(task: pa.Table, shards: Sequence[str]) -> pa.Table:
    """The rows of shards that `task` names in its lists of (dataset, shard, row_group, row), in that order."""
    columns = {key: task[key].combine_chunks().flatten().to_numpy() for key in _KEYS if key in task.column_names}
    columns.setdefault("dataset", np.zeros_like(columns["shard"]))
    keys = np.stack([columns[key] for key in _KEYS], 1)
    parts = []
    positions = np.empty(len(keys), dtype=np.int64)
    base = 0
    for dataset, shard in np.unique(keys[:, :2], axis=0).tolist():
        member = np.flatnonzero((keys[:, 0] == dataset) & (keys[:, 1] == shard))
        member = member[np.argsort(keys[member, 2], kind="stable")]  # a row group is read once
        parts.append(pick_rows(Path(shards[dataset]) / shard_name(shard), keys[member, 2], keys[member, 3]))
        positions[member] = base + np.arange(len(member))
        base += len(member)
    return pa.concat_tables(parts).take(positions)


def stream_records(
    batches: Iterator[PlannedBatch],
    index: pa.Table,
    shards: Path | Sequence[Path],
    task_rows: int,
    read_ahead_batches: int,
) -> Iterator[tuple[PlannedBatch, list[Record]]]:
    """The records of each (equally large) batch.

    Args:
        batches: this worker's shares.
        index: what `PlannedBatch.rows` counts in.
        shards: their directory, as every node of the cluster sees it; of a mixture all, in the order of `dataset`.
        task_rows: rows one Ray task reads, at least; whole batches.
        read_ahead_batches: batches fetched to this process ahead of use.
    """
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    keys, image_bytes = index.select([key for key in _KEYS if key in index.column_names]), index["bytes"].to_numpy()
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
    chunk: list[PlannedBatch],
    keys: pa.Table,
    shards: Path | Sequence[Path],
    task_rows: int,
    read_ahead_batches: int,
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
