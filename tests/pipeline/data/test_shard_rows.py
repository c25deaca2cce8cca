"""Single rows: the same as whole files give, in the order asked for, for few bytes more than their own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from object_store import ObjectStore
from tiny_coco import TinyCoco, grow

from pipeline.data import shard_rows
from pipeline.data.coco import ImageEntry, read_coco
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.records import SCHEMA
from pipeline.data.shard_rows import COLUMNS, ROW_KEYS, Traffic, read_rows
from pipeline.data.sharding import shard_dataset
from pipeline.data.shards import load_index, load_manifest, read_groups, shard_name
from pipeline.data.source import Sample


@pytest.fixture(scope="module")
def train(shapes: Path) -> Path:
    return shapes / "train"


@pytest.fixture(scope="module")
def index(train: Path) -> pa.Table:
    return load_index(train)


@pytest.fixture(scope="module")
def everything(train: Path) -> pa.Table:
    """All rows in the order of the index, by Parquet alone."""
    parts = [read_groups(train, s.name, range(-(-s.rows // 4))) for s in load_manifest(train).shards]
    return pa.concat_tables(parts)


@pytest.mark.parametrize("count", [0, 1, 5, 24, 60])
def test_rows_are_those_of_the_whole_files(train: Path, index: pa.Table, everything: pa.Table, count: int) -> None:
    assert load_manifest(train).shards[0].rows > 4
    generator = np.random.default_rng(count)
    rows = generator.integers(0, 24, count) if count > 24 else generator.permutation(24)[:count]
    found = read_rows(train, index.take(rows))
    assert found.schema.equals(pa.schema([SCHEMA.field(name) for name in COLUMNS]))
    assert found.equals(everything.take(rows).select(COLUMNS))


def test_columns(train: Path, index: pa.Table, everything: pa.Table) -> None:
    rows = index.slice(3, 9)
    assert read_rows(train, rows, SCHEMA.names).equals(everything.slice(3, 9))
    without, whole = Traffic(), Traffic()
    some = read_rows(train, rows.select(ROW_KEYS), ["boxes", "sample_id"], without)  # they come in SCHEMA's order
    assert some.equals(everything.slice(3, 9).select(["sample_id", "boxes"]))
    assert read_rows(train, rows, ["image"]).equals(everything.slice(3, 9).select(["image"]))
    read_rows(train, rows, traffic=whole)
    assert without.picture_bytes == 0 and without.read_bytes < whole.read_bytes / 3


def test_label_ids_are_read_only_when_asked(tiny: TinyCoco, tmp_path: Path) -> None:
    dataset = tiny.read()

    class WithLabels:
        def read(self, entry: object, quarantine: Quarantine) -> object:
            sample = dataset.reader.read(entry, quarantine)
            assert sample is not None
            sample.record["semantic"] = bytes(range(256)) * 400
            return sample

    shard_dataset(replace(dataset, reader=WithLabels()), tmp_path)  # type: ignore[arg-type]
    rows = load_index(tmp_path)
    few, many = Traffic(), Traffic()
    assert "semantic" not in read_rows(tmp_path, rows, traffic=few).column_names
    found = read_rows(tmp_path, rows, SCHEMA.names, many)
    assert found["semantic"].to_pylist() == [bytes(range(256)) * 400] * 3
    assert few.read_bytes < 20_000 < 300_000 < many.read_bytes


def test_traffic_is_what_is_read_from_the_file(train: Path, index: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = shard_rows.Storage.read_at

    def read_at(self: shard_rows.Storage, file: pa.NativeFile, offset: int, count: int) -> bytes:
        content = original(self, file, offset, count)
        seen.append(len(content))
        return content

    monkeypatch.setattr(shard_rows.Storage, "read_at", read_at)
    shard_rows._cache.clear()
    first, second = Traffic(), Traffic()
    rows = index.take([0, 23, 11])
    read_rows(train, rows, traffic=first)
    assert sum(seen) == first.read_bytes + first.metadata_bytes and first.metadata_bytes > 0
    seen.clear()
    read_rows(train, rows, traffic=second)
    assert (sum(seen), len(seen)) == (second.read_bytes, second.requests)
    assert (second.metadata_bytes, second.rows) == (0, 3)  # it is kept
    assert second.picture_bytes == sum(rows["bytes"].to_pylist())


def test_a_long_footer(train: Path, index: pa.Table, everything: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_rows, "FOOTER_BYTES", 8)
    shard_rows._cache.clear()
    assert read_rows(train, index).equals(everything.select(COLUMNS))


def test_the_cache_is_bounded_and_sees_a_file_that_was_replaced(
    tiny: TinyCoco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_rows, "OPEN_SHARDS", 2)
    shard_rows._cache.clear()
    grow(tiny, 8)
    for seed in (0, 1):
        shard_dataset(tiny.read(), tmp_path, seed=seed, rows_per_shard=2, overwrite=True)
        rows = load_index(tmp_path)
        assert read_rows(tmp_path, rows)["sample_id"].equals(rows["sample_id"])
        assert len(shard_rows._cache) == 2


def test_lost_damaged_and_foreign_shards_are_named(tiny: TinyCoco, tmp_path: Path) -> None:
    grow(tiny, 8)
    shard_dataset(tiny.read(), tmp_path / "a", rows_per_shard=4)
    rows = load_index(tmp_path / "a")
    for column, add in (("row_group", 9), ("row", 7), ("offset", 1), ("offset", 10**9), ("offset", -(10**9))):
        moved = rows.set_column(
            rows.column_names.index(column),
            rows.schema.field(column),
            pc.add(rows[column], add).cast(rows.schema.field(column).type),
        )
        with pytest.raises(DataError, match=r"shard-0000\d\.parquet does not have the rows that the index names"):
            read_rows(tmp_path / "a", moved)
    path = tmp_path / "a" / shard_name(1)
    path.write_bytes(b"PAR1 and so on, but torn PAR1")
    with pytest.raises(DataError, match=r"shard-00001\.parquet is damaged"):
        read_rows(tmp_path / "a", rows)
    path.unlink()
    with pytest.raises(DataError, match=r"shard-00001\.parquet is missing; copy it again"):
        read_rows(tmp_path / "a", rows)


def test_rows_of_an_object_store(object_store: ObjectStore, train: Path, index: pa.Table, everything: pa.Table) -> None:
    uri = object_store.upload(train, "rows")
    chosen = np.random.default_rng(1).permutation(24)[:10]
    traffic = Traffic()
    object_store.requests.clear()
    object_store.fail_every = 10
    try:
        assert read_rows(uri, index.take(chosen), traffic=traffic).equals(everything.take(chosen).select(COLUMNS))
    finally:
        object_store.fail_every = None
    served = sum(r.bytes for r in object_store.requests if r.method == "GET" and r.path.endswith(".parquet"))
    assert served == traffic.read_bytes + traffic.metadata_bytes


def test_random_rows_of_real_pictures_cost_little_more_than_the_pictures(coco_small: Path, tmp_path: Path) -> None:
    """Tasks of 64 rows drawn from windows of 2048, as training reads; ten ids a picture make the windows full."""
    dataset = read_coco(coco_small / "annotations/instances_train2017.json", coco_small / "train2017", Quarantine())
    samples = {entry.sample_id: dataset.reader.read(entry, dataset.quarantine) for entry in dataset.entries}

    class Again:
        def read(self, entry: ImageEntry, quarantine: Quarantine) -> Sample:
            sample = samples[entry.sample_id % 10**7]
            assert sample is not None
            return Sample(sample.record | {"sample_id": entry.sample_id}, sample.grayscale)  # type: ignore[typeddict-item]

    entries = tuple(replace(e, sample_id=e.sample_id + 10**7 * i) for i in range(10) for e in dataset.entries)  # type: ignore[type-var]
    shard_dataset(replace(dataset, entries=entries, reader=Again()), tmp_path)
    rows = load_index(tmp_path)
    window = np.random.default_rng(0).permutation(2048)
    traffic = Traffic()
    shard_rows._cache.clear()
    for start in range(0, 2048, 64):
        read_rows(tmp_path, rows.take(window[start : start + 64]), traffic=traffic)
    assert traffic.read_bytes <= 1.2 * traffic.picture_bytes
    assert traffic.metadata_bytes <= 0.005 * traffic.picture_bytes
