"""A data set -> a directory of shards: one task a shard, in this process or as Ray tasks all over a cluster.

A shard is a fixed range of the seeded order, so the bytes do not depend on who writes it or when. The manifest comes
last: a directory without one is incomplete, and the same call goes on with what is missing (shard_task.py).
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.manifest import (
    COUNTS,
    INDEX,
    MANIFEST,
    QUARANTINE,
    Manifest,
    fingerprint_of,
    save_manifest,
    shard_number,
)
from pipeline.data.quarantine import DataError
from pipeline.data.records import FORMAT_VERSION, INDEX_SCHEMA
from pipeline.data.shard_task import PROGRESS, FinishedShard, ShardTask, write_shard
from pipeline.data.source import FACTS, Dataset
from pipeline.data.storage import Location, Storage, StorageError

ROWS_PER_SHARD, ROWS_PER_GROUP = 512, 8
Progress = Callable[[int, int], None]  # (images done, images in all)


def shard_dataset(
    dataset: Dataset,
    out: Location,
    *,
    seed: int | None = 0,
    rows_per_shard: int = ROWS_PER_SHARD,
    rows_per_group: int = ROWS_PER_GROUP,
    workers: int | None = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write a data set into the directory `out`, or go on with what an interrupted call left there.

    Args:
        dataset: what to write. Its quarantine receives what is bad.
        out: a local directory (on a cluster: one that all nodes share) or a URI.
        seed: of the order of the rows; None keeps the order of the entries.
        rows_per_shard: entries of a shard. Each task holds one shard in memory.
        rows_per_group: rows of a Parquet row group.
        workers: Ray tasks at once; None: one a CPU of the cluster (or of this machine, where none runs). With more than
            there are CPUs each claims a part of one, which hides the waiting where pictures come from an object store.
            1 stays in this process, as does a data set of one shard, whose pictures are decoded on `workers` threads.
        overwrite: replace complete shards.
        progress: called as images are done.

    Raises:
        DataError: `out` holds complete shards, no image is usable, or (strict quarantine) one is bad.
        StorageError: `out` cannot be written. What is finished is kept.
    """
    out = Storage.at(out)
    total = len(dataset.entries)
    if not total and not dataset.quarantine.samples:
        raise DataError(f"{_named(dataset)} holds no images; check that it is the right one")
    order = range(total) if seed is None else np.random.default_rng(seed).permutation(total)
    starts = range(0, total, rows_per_shard)
    tasks = (
        ShardTask(number, [dataset.entries[position] for position in order[start : start + rows_per_shard]])
        for number, start in enumerate(starts)
    )
    work = {
        "reader": dataset.reader,
        "out": out,
        "rows_per_group": rows_per_group,
        "strict": dataset.quarantine.strict,
        "proposals": dataset.proposals,
    }
    finished: dict[int, FinishedShard] = {}
    index: dict[int, pa.Table] = {}
    try:
        _make_room(out, len(starts), overwrite)
        if workers == 1 or len(starts) < 2:
            threads = workers or os.cpu_count() or 1
            results = _here(tasks, work, threads, total, progress)
        else:
            results = _on_ray(tasks, work, workers, total, progress)
        for number, result in results:
            index[number] = pa.Table.from_pylist(result.index, schema=INDEX_SCHEMA)  # a fraction of the dicts' memory
            finished[number] = replace(result, index=[])
    except StorageError as error:
        raise StorageError(f"{error}. The shards that are finished are kept: the same command goes on") from error
    parts, tables = [finished[n] for n in range(len(starts))], [index[n] for n in range(len(starts))]
    options = {"seed": seed, "rows_per_shard": rows_per_shard, "rows_per_group": rows_per_group}
    return _conclude(dataset, out, parts, tables, options)


def _make_room(out: Storage, shards: int, overwrite: bool) -> None:
    """Leave nothing in `out` but what this work may go on with."""
    names = out.list()
    if MANIFEST in names:
        if not overwrite:
            raise DataError(f"{out} already holds complete shards; choose another directory, or pass --overwrite")
        out.child(PROGRESS).delete_all()  # before the manifest: all shards are to be written again
        out.delete(MANIFEST)  # from here on the directory is incomplete
    for name in names:
        number = shard_number(name)
        ours = name in (INDEX, QUARANTINE) or (name.startswith(".") and name.endswith(".tmp"))
        if ours or (number is not None and number >= shards):
            out.delete(name)


def _here(
    tasks: Iterator[ShardTask], work: dict[str, Any], threads: int, total: int, progress: Progress | None
) -> Iterator[tuple[int, FinishedShard]]:
    """One shard after the other, in this process."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    for task in tasks:
        yield task.number, write_shard(task, **work, threads=threads, on_image=advance)


def _on_ray(
    tasks: Iterator[ShardTask],
    work: dict[str, Any],
    workers: int | None,
    total: int,
    progress: Progress | None,
) -> Iterator[tuple[int, FinishedShard]]:
    """Shards as they are finished by Ray tasks, of which a few more are under way than run at once."""
    import ray
    from ray.exceptions import RayTaskError

    from pipeline.config import ClusterConfig
    from pipeline.ray_cluster import start_ray

    start_ray(ClusterConfig())
    cpus = ray.cluster_resources().get("CPU", 1.0)
    workers = workers or max(1, int(cpus))
    claim = 1.0 if workers <= cpus else max(0.01, int(100 * cpus / workers) / 100)
    write = ray.remote(num_cpus=claim)(write_shard)
    running: dict[ray.ObjectRef, ShardTask] = {}
    done = 0
    try:
        while True:
            while len(running) < workers + 2 and (task := next(tasks, None)) is not None:
                running[write.remote(task, **work, threads=1)] = task
            if not running:
                return
            (ready,), _ = ray.wait(list(running))
            task = running.pop(ready)
            try:
                result = ray.get(ready)
            except RayTaskError as error:
                raise error.cause from error
            done += len(task.entries)
            if progress is not None:
                progress(done, total)
            yield task.number, result
    finally:
        for ref in running:
            ray.cancel(ref)


def _conclude(
    dataset: Dataset,
    out: Storage,
    finished: Sequence[FinishedShard],
    tables: Sequence[pa.Table],
    options: dict[str, int | None],
) -> Manifest:
    """Index, quarantine, and last the manifest, from shards in their order."""
    quarantine = dataset.quarantine
    counts = dict.fromkeys((*COUNTS, "proposals") if dataset.proposals else COUNTS, 0)
    for part in finished:
        for bad in part.quarantine:
            quarantine.add(bad)
        for key, count in part.counts.items():
            counts[key] = counts.get(key, 0) + count
    out.write(QUARANTINE, quarantine.to_jsonl().encode())
    shards = tuple(part.shard for part in finished if part.shard is not None)
    if not shards:
        out.child(PROGRESS).delete_all()  # the user may mend the pictures, not the entries
        reason, times = next(iter(quarantine.reasons().items()))
        raise DataError(
            f"none of the {quarantine.count('image')} images of {_named(dataset)} can be used; "
            f"{times} times: {reason}. See {out.child(QUARANTINE)}, and check the directory that file_names are "
            "relative to"
        )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables).combine_chunks(), sink, compression="zstd")
    content = sink.getvalue()
    out.write(INDEX, content)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        class_names=dataset.class_names,
        category_ids=dataset.category_ids,
        scoring=dataset.scoring,
        keypoints=dataset.keypoints,
        frequencies=dataset.frequencies,
        counts=counts
        | {
            "quarantined_images": quarantine.count("image"),
            "quarantined_annotations": quarantine.count("annotation"),
        },
        quarantined=quarantine.reasons(),
        shards=shards,
        index_sha256=hashlib.sha256(content).hexdigest(),
        fingerprint=fingerprint_of(shards, dataset.class_names, dataset.category_ids),
        source=dataset.source,
        options=options,
        generator=dataset.generator,
    )
    save_manifest(manifest, out)
    out.child(PROGRESS).delete_all()
    return manifest


def _named(dataset: Dataset) -> str:
    return " and ".join(text for key, text in dataset.source.items() if key not in FACTS)
