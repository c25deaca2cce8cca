"""Shards of format 1, written here by hand as that version wrote them, become today's."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tiny_coco import TinyCoco, grow

from pipeline.data import shards
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.records import SCHEMA
from pipeline.data.shard_rows import read_rows
from pipeline.data.sharding import shard_dataset
from pipeline.data.shards_v1 import read_shards_v1

_NAMES = ["sample_id", "file_name", "height", "width", "image", "boxes", "classes", "crowd", "areas"]
_NAMES += ["annotation_ids", "rles", "crops"]
OLD_SCHEMA = pa.schema([SCHEMA.field(name) for name in _NAMES])  # the picture in the middle
OLD_INDEX = ["sample_id", "shard", "row_group", "row", "height", "width", "instances", "crowd", "bytes"]


def write_v1(new: Path, old: Path) -> None:
    """The shards in `new` as format 1 had them."""
    old.mkdir()
    manifest: dict[str, Any] = json.loads((new / "manifest.json").read_text())
    for field in ("scoring", "keypoints", "frequencies"):
        del manifest[field]
    manifest["format_version"] = 1
    for shard in manifest["shards"]:
        table = pq.read_table(new / shard["name"], columns=_NAMES).select(_NAMES)
        assert table.schema.equals(OLD_SCHEMA)
        compression = {pq.ParquetFile(new / shard["name"]).schema.column(i).path: "zstd" for i in range(16)}
        pq.write_table(
            table,
            old / shard["name"],
            row_group_size=manifest["options"]["rows_per_group"],
            compression={path: kind for path, kind in compression.items() if path.split(".")[0] in _NAMES}
            | {"image": "none"},
            use_dictionary=False,
            write_statistics=False,
        )
        content = (old / shard["name"]).read_bytes()
        shard |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    pq.write_table(shards.load_index(new).select(OLD_INDEX), old / "index.parquet", compression="zstd")
    manifest["index_sha256"] = hashlib.sha256((old / "index.parquet").read_bytes()).hexdigest()
    (old / "manifest.json").write_text(json.dumps(manifest))
    (old / "quarantine.jsonl").write_bytes((new / "quarantine.jsonl").read_bytes())


@pytest.fixture
def made(tiny: TinyCoco, tmp_path: Path) -> tuple[Path, Path]:
    """The same data set in both formats."""
    grow(tiny, 13)
    tiny.content["annotations"].append(tiny.square(999, 4, bbox=[1, 1, 0, 0]))
    new, old = tmp_path / "new", tmp_path / "old"
    shard_dataset(tiny.read(), new, seed=5, rows_per_shard=4, rows_per_group=3)
    write_v1(new, old)
    return new, old


def convert(old: Path, out: Path) -> shards.Manifest:
    dataset, options = read_shards_v1(old, Quarantine())
    seed = options.pop("seed")
    assert seed == 5
    return shard_dataset(dataset, out, seed=None, **options)


def test_the_result_is_what_sharding_again_gives(made: tuple[Path, Path], tmp_path: Path) -> None:
    new, old = made
    with pytest.raises(DataError, match=r"convert them with `maskrcnn shard migrate \S+/old --out NEW`"):
        shards.load_manifest(old)
    manifest = convert(old, tmp_path / "out")
    expected = shards.load_manifest(new)
    assert manifest.fingerprint == expected.fingerprint and manifest.counts == expected.counts
    assert manifest.quarantined == {"annotation: box is degenerate (width or height <= 0)": 1} == expected.quarantined
    for path in new.iterdir():
        if path.name != "manifest.json":
            assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    assert shards.verify(tmp_path / "out") == manifest


def test_a_shard_that_lacks_rows_and_a_picture_that_has_spoiled(tiny: TinyCoco, tmp_path: Path) -> None:
    grow(tiny, 9)
    (tiny.images / "2.jpg").unlink()
    new, old = tmp_path / "new", tmp_path / "old"
    shard_dataset(tiny.read(), new, seed=5, rows_per_shard=4, rows_per_group=3)
    index = shards.load_index(new)
    bad = index.slice(4, 1).to_pylist()[0]
    with (new / shards.shard_name(bad["shard"])).open("r+b") as file:
        file.seek(bad["offset"])
        file.write(bytes(100))
    write_v1(new, old)
    manifest = convert(old, tmp_path / "out")
    assert manifest.quarantined == {"image: picture does not decode": 1, "image: picture is missing": 1}
    assert (manifest.images, len(manifest.shards)) == (7, 2)
    kept = index.filter(pc.not_equal(index["sample_id"], bad["sample_id"]))
    found = read_rows(tmp_path / "out", shards.load_index(tmp_path / "out"), SCHEMA.names)
    assert found.equals(read_rows(new, kept, SCHEMA.names))


def test_what_is_no_whole_directory_of_format_1(made: tuple[Path, Path], tmp_path: Path) -> None:
    new, old = made
    with pytest.raises(DataError, match="holds shards of format 2; only those of format 1"):
        read_shards_v1(new, Quarantine())
    with pytest.raises(DataError, match="it holds no shards"):
        read_shards_v1(tmp_path / "nothing", Quarantine())
    first = (old / shards.shard_name(0)).read_bytes()
    (old / shards.shard_name(0)).write_bytes((old / shards.shard_name(1)).read_bytes())
    with pytest.raises(DataError, match=r"shard-00000\.parquet has other rows than the index"):
        read_shards_v1(old, Quarantine())
    (old / shards.shard_name(0)).write_bytes(first[:-20])
    with pytest.raises(DataError, match="no whole directory of shards of format 1"):
        read_shards_v1(old, Quarantine())
    (old / shards.shard_name(0)).unlink()
    with pytest.raises(DataError, match="no whole directory of shards of format 1"):
        read_shards_v1(old, Quarantine())
