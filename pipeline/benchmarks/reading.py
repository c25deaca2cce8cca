"""What sharding, reading rows at random and a large index cost."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.coco import read_coco
from pipeline.data.plan import Plan, places_of
from pipeline.data.quarantine import Quarantine
from pipeline.data.records import INDEX_SCHEMA
from pipeline.data.shard_rows import Traffic, read_rows
from pipeline.data.sharding import shard_dataset
from pipeline.data.shards import load_index
from pipeline.data.shuffle import WindowFigures, measure_window


@dataclass(frozen=True)
class Sharding:
    """One core writing shards."""

    images: int
    images_per_cpu_second: float  # reading, checking and writing; the annotation file is read before


def measure_sharding(annotations: Path, images: Path, out: Path) -> Sharding:
    """Write shards in this process, one after the other."""
    dataset = read_coco(annotations, images, Quarantine())
    started = time.process_time()
    manifest = shard_dataset(dataset, out, workers=1)
    return Sharding(manifest.images, manifest.images / (time.process_time() - started))


@dataclass(frozen=True)
class Reading:
    """An epoch's reads of one worker."""

    bytes_a_used_byte: float  # requested / of the pictures asked for
    metadata_share: float  # of the shards' footers, once an epoch / of the pictures
    requests_a_row: float


def measure_reading(shards: Path, window_groups: int, task_rows: int) -> Reading:
    """Read an epoch in the order of a plan, task by task, and count bytes."""
    index = load_index(shards)
    plan = _plan(index, window_groups)
    order, traffic = plan.epoch_order(0), Traffic()
    for start in range(0, len(order), task_rows):
        read_rows(shards, index.take(order[start : start + task_rows]), traffic=traffic)
    used = traffic.picture_bytes
    return Reading(traffic.read_bytes / used, traffic.metadata_bytes / used, traffic.requests / traffic.rows)


@dataclass(frozen=True)
class LargeIndex:
    """An index as large as COCO's."""

    rows: int
    load_seconds: float
    megabytes: float  # in memory
    plan_seconds: float  # from the table to the first batch


def measure_index(directory: Path, rows: int = 118_287) -> LargeIndex:
    """Write a synthetic index (COCO's numbers of images and classes), read it, plan with it."""
    rng = np.random.default_rng(0)
    row = np.arange(rows)
    lengths = rng.integers(0, 8, rows)
    columns = {
        "sample_id": rng.permutation(600_000)[:rows],
        "shard": row // 512,
        "row_group": row % 512 // 8,
        "row": row % 8,
        "height": rng.choice([427, 480, 640], rows),
        "width": rng.choice([427, 480, 640], rows),
        "instances": rng.integers(1, 30, rows),
        "crowd": np.zeros(rows),
        "keypoints": rng.integers(0, 50, rows),
        "bytes": rng.integers(50_000, 300_000, rows),
        "offset": rng.integers(0, 80_000_000, rows),
    }
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    arrays = {name: pa.array(values).cast(INDEX_SCHEMA.field(name).type) for name, values in columns.items()}
    arrays["classes"] = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(rng.integers(1, 81, offsets[-1]), pa.int32())
    )
    path = directory / "index.parquet"
    pq.write_table(pa.table({name: arrays[name] for name in INDEX_SCHEMA.names}, schema=INDEX_SCHEMA), path)
    started = time.perf_counter()
    table = pq.read_table(path)
    loaded = time.perf_counter()
    _plan(table, 512).batch(0)
    return LargeIndex(rows, loaded - started, table.nbytes / 1e6, time.perf_counter() - loaded)


def measure_windows(rows: int = 118_287) -> list[WindowFigures]:
    """How random and how local windows of several sizes are, on a data set of COCO's size."""
    group = np.arange(rows) // 8
    index = pa.table({"shard": group // 64, "row_group": group % 64})
    bucket = (np.random.default_rng(0).random(rows) < 0.25).astype(np.int64)  # a quarter of COCO stands upright
    return [
        measure_window(places_of(index), bucket, window_groups=window, batch_images=16, task_rows=64, epochs=2)
        for window in (16, 64, 128, 256, 512, 1024)
    ]


def _plan(index: pa.Table, window_groups: int) -> Plan:
    return Plan(
        index,
        seed=0,
        batch_images=16,
        sizes_px=(800,),
        longest_px=1333,
        window_groups=window_groups,
        aspect_buckets=2,
    )
