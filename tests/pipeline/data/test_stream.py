"""Rows come through Ray Data in the order of the plan, whatever the tasks are."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data import stream
from pipeline.data.plan import Plan, PlannedBatch
from pipeline.data.records import Record
from pipeline.data.shard_rows import COLUMNS, ROW_KEYS
from pipeline.data.shards import load_index, load_manifest, read_groups, shard_name, to_records
from pipeline.data.storage import Storage
from pipeline.data.stream import stream_records

STEPS, BATCH = 17, 4  # more than two epochs of the 24 images


@pytest.fixture(scope="module")
def train(shapes: Path) -> Path:
    return shapes / "train"


@pytest.fixture(scope="module")
def index(train: Path) -> pa.Table:
    return load_index(train)


@pytest.fixture(scope="module")
def plan(index: pa.Table) -> Plan:
    return Plan(index, seed=1, batch_images=BATCH, sizes_px=(64, 96), window_groups=4, aspect_buckets=2)


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
    task = pa.table({key: [keys[key].to_pylist()] for key in ROW_KEYS})
    found = to_records(stream.read_task(task, Storage.at(train)))
    ids = index["sample_id"].to_numpy()[rows].tolist()
    assert found == [everything[sample_id] for sample_id in ids]


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
    monkeypatch: pytest.MonkeyPatch,
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
    monkeypatch.setattr(stream, "CHUNK_BYTES", chunk_bytes)
    shares = [plan.batch(step).share(rank, world) for step in range(start, STEPS)]
    streamed = list(stream_records(iter(shares), index, train, task_rows, 2))
    assert [batch.step for batch, _ in streamed] == list(range(start, STEPS))
    for (batch, records), share in zip(streamed, shares, strict=True):
        assert batch is share
        assert records == expected(share, index, everything)


@pytest.mark.slow
def test_an_endless_plan_is_read_as_it_is_used(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, train: Path, index: pa.Table, plan: Plan
) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", 1)
    asked = []

    def endless() -> Iterator[PlannedBatch]:
        step = 0
        while True:
            asked.append(step)
            yield plan.batch(step)
            step += 1

    records = stream_records(endless(), index, train, 8, 1)
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
    plan = Plan(kept, 0, 4, (64,), 4, 2)
    shares = [plan.batch(step) for step in range(6)]
    for batch, records in stream_records(iter(shares), kept, train, 64, 2):
        assert records == expected(batch, kept, everything)
        assert all(len(record["classes"]) > 3 for record in records)


@pytest.mark.slow
def test_a_lost_shard_is_named(local_ray: None, index: pa.Table, plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"shard-0000\d\.parquet"):
        list(stream_records(iter([plan.batch(0)]), index, tmp_path, 64, 2))
