"""Rows come through Ray Data in the order of the plan, whatever the tasks are."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.mixture import load_mixture
from pipeline.data.plan import Plan, PlannedBatch
from pipeline.data.records import Record
from pipeline.data.shard_rows import COLUMNS, read_rows
from pipeline.data.shards import load_manifest, read_groups, shard_name, to_records
from pipeline.data.stream import KEYS, Reading, chunks, in_tasks, read_task, stream_records

STEPS, BATCH = 17, 4  # more than two epochs of the 24 images
READING = Reading(task_rows=64, tasks=2, task_cpus=0.0, chunk_bytes=1 << 20, ahead=2)


@pytest.fixture(scope="module")
def train(shapes: Path) -> Path:
    return shapes / "train"


@pytest.fixture(scope="module")
def index(train: Path) -> pa.Table:
    return load_mixture(str(train))


@pytest.fixture(scope="module")
def plan(index: pa.Table) -> Plan:
    return Plan(index, seed=1, batch_images=BATCH, sizes_px=(64, 96), longest_px=200, window_groups=4, aspect_buckets=2)


@pytest.fixture(scope="module")
def everything(train: Path) -> dict[int, Record]:
    """Every record, read without any of the code under test's order."""
    records: dict[int, Record] = {}
    for shard in load_manifest(train).shards:
        for record in to_records(read_groups(train, shard.name, range(-(-shard.rows // 4)), COLUMNS)):
            records[record["sample_id"]] = record
    assert len(records) == 24
    return records


def expected(batch: PlannedBatch, index: pa.Table, everything: dict[int, Record]) -> list[Record]:
    return [everything[sample_id] for sample_id in index["sample_id"].to_numpy()[batch.rows].tolist()]


def test_rows_are_read_in_the_order_asked_for_also_twice(
    train: Path, index: pa.Table, everything: dict[int, Record]
) -> None:
    rows = np.random.default_rng(0).integers(0, 24, 60)  # across shards and groups, many of them again
    keys = index.take(rows)
    task = pa.table({key: [keys[key].to_pylist()] for key in KEYS})
    found = to_records(read_task(task, [str(train)]))
    ids = index["sample_id"].to_numpy()[rows].tolist()
    assert found == [everything[sample_id] for sample_id in ids]


def test_rows_of_a_mixture_come_from_their_own_data_set(shapes: Path, train: Path) -> None:
    """Both splits count their sample ids from the same number: only the location tells them apart."""
    places = [train, shapes / "val", train]
    index = load_mixture(tuple(str(place) for place in places))
    rows = np.random.default_rng(0).integers(0, 24 + 8 + 24, 80)
    keys = index.take(rows)
    task = pa.table({key: [keys[key].to_pylist()] for key in KEYS})
    found = to_records(read_task(task, [str(place) for place in places]))
    for number, (row, record) in enumerate(zip(keys.to_pylist(), found, strict=True)):
        place = places[row["dataset"]]
        (expected,) = to_records(read_rows(place, keys.slice(number, 1)))
        assert record == expected and record["sample_id"] == row["sample_id"]
    assert set(index["dataset"].to_numpy()[rows].tolist()) == {0, 1, 2}


@pytest.mark.slow
def test_a_mixture_streams(local_ray: None, shapes: Path, train: Path) -> None:
    places = [shapes / "val", train]
    index = load_mixture(tuple(str(place) for place in places))
    plan = Plan(index, seed=0, batch_images=4, sizes_px=(64,), longest_px=200, window_groups=9, aspect_buckets=1)
    shares = [plan.batch(step).share(1, 2) for step in range(8)]
    seen = 0
    reading = replace(READING, task_rows=8)
    for batch, records in stream_records(iter(shares), plan.index, [str(place) for place in places], reading):
        for row, record in zip(batch.rows.tolist(), records, strict=True):
            own = index.slice(row, 1)
            assert [record] == to_records(read_rows(places[own["dataset"][0].as_py()], own))
            seen += 1
    assert seen == 16


def test_the_shards_have_what_these_tests_need(index: pa.Table) -> None:
    places = set(zip(index["shard"].to_pylist(), index["row_group"].to_pylist(), strict=True))
    assert {shard for shard, _ in places} == {0, 1, 2}
    assert {group for _, group in places} == {0, 1, 2}
    assert shard_name(2) == "shard-00002.parquet"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "world", "start", "task_rows", "chunk_bytes"),
    [
        (0, 1, 0, 64, 1 << 20),  # one task
        (0, 1, 0, 1, 1 << 20),  # a task a batch
        (0, 1, 0, 6, 1 << 20),  # not a multiple of the batch
        (1, 2, 0, 3, 1 << 20),  # the second of two workers
        (3, 4, 0, 5, 1 << 20),
        (0, 1, 9, 8, 1 << 20),  # resumed in the middle of an epoch
        (1, 2, 11, 4, 15_000),  # a long run: several data sets
    ],
)
def test_records_come_in_the_order_of_the_plan_with_their_bytes(
    local_ray: None,
    train: Path,
    index: pa.Table,
    plan: Plan,
    everything: dict[int, Record],
    rank: int,
    world: int,
    start: int,
    task_rows: int,
    chunk_bytes: int,
) -> None:
    reading = replace(READING, task_rows=task_rows, chunk_bytes=chunk_bytes)
    shares = [plan.batch(step).share(rank, world) for step in range(start, STEPS)]
    streamed = list(stream_records(iter(shares), index, [str(train)], reading))
    assert [batch.step for batch, _ in streamed] == list(range(start, STEPS))
    for (batch, records), share in zip(streamed, shares, strict=True):
        assert batch is share
        assert records == expected(share, index, everything)


@pytest.mark.slow
def test_an_endless_plan_is_read_as_it_is_used(local_ray: None, train: Path, index: pa.Table, plan: Plan) -> None:
    asked = []

    def endless() -> Iterator[PlannedBatch]:
        step = 0
        while True:
            asked.append(step)
            yield plan.batch(step)
            step += 1

    records = stream_records(endless(), index, [str(train)], replace(READING, chunk_bytes=1))
    for _ in range(3):
        next(records)
    records.close()  # type: ignore[attr-defined]
    assert len(asked) == 3  # a data set a batch


@pytest.mark.slow
def test_a_filtered_index_counts_its_own_rows(
    local_ray: None, train: Path, index: pa.Table, everything: dict[int, Record]
) -> None:
    kept = index.filter(pa.compute.greater(index["instances"], 3))
    assert 4 < kept.num_rows < 24
    plan = Plan(kept, seed=0, batch_images=4, sizes_px=(64,), longest_px=200, window_groups=4, aspect_buckets=2)
    shares = [plan.batch(step) for step in range(6)]
    for batch, records in stream_records(iter(shares), kept, [str(train)], READING):
        assert records == expected(batch, kept, everything)
        assert all(len(record["classes"]) > 3 for record in records)


@pytest.mark.slow
def test_a_lost_shard_is_named(local_ray: None, index: pa.Table, plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"shard-0000\d\.parquet"):
        list(stream_records(iter([plan.batch(0)]), index, [str(tmp_path)], READING))


def test_chunks_and_tasks_are_whole_batches_in_order(index: pa.Table, plan: Plan) -> None:
    batches = [plan.batch(step) for step in range(STEPS)]
    size = index["bytes"].to_numpy()
    parts = list(chunks(iter(batches), index, 15_000))
    assert [batch for part in parts for batch in part] == batches and len(parts) > 2
    for part in parts[:-1]:  # the last batch of each is the one that fills it
        sizes = [int(size[batch.rows].sum()) for batch in part]
        assert sum(sizes[:-1]) < 15_000 <= sum(sizes)
    for rows, count in ((1, 1), (4, 1), (5, 2), (64, 16)):
        tasks = in_tasks(batches, rows)
        assert [batch for task in tasks for batch in task] == batches
        assert {len(task) for task in tasks[:-1]} <= {count} and len(tasks[-1]) <= count


@pytest.mark.slow
def test_partners_come_after_the_samples(local_ray: None, train: Path, index: pa.Table, everything: Any) -> None:
    plan = Plan(
        index,
        seed=1,
        batch_images=6,
        sizes_px=(64,),
        longest_px=200,
        window_groups=4,
        aspect_buckets=1,
        copy_paste_probability=0.5,
    )
    shares = [plan.batch(step).share(1, 2) for step in range(6)]
    ids = index["sample_id"].to_numpy()
    with_partners = 0
    for batch, records in stream_records(iter(shares), index, [str(train)], replace(READING, task_rows=4)):
        assert len(batch.all_rows) == 3 + int((batch.partners >= 0).sum())
        assert records == [everything[ids[row]] for row in batch.all_rows]
        with_partners += len(records) - 3
    assert with_partners > 3
