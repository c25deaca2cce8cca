"""Reading a directory of shards: what is in it, what a manifest may say, what damage looks like."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO
from tiny_coco import TinyCoco, grow

from pipeline.data import shards
from pipeline.data.coco import read_coco
from pipeline.data.manifest import shard_number
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.records import INDEX_SCHEMA, SCHEMA
from pipeline.data.shard_rows import read_rows
from pipeline.data.sharding import shard_dataset
from pipeline.data.source import Keypoints


def test_everything_comes_back_through_the_index(tiny: TinyCoco, tmp_path: Path) -> None:
    grow(tiny, 23)
    (tiny.images / "5.jpg").unlink()
    dataset = tiny.read()
    calls: list[tuple[int, int]] = []
    manifest = shard_dataset(
        dataset,
        tmp_path / "out",
        seed=3,
        rows_per_shard=8,
        rows_per_group=3,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(i, 23) for i in range(1, 24)]
    assert shards.load_manifest(tmp_path / "out") == manifest == shards.verify(str(tmp_path / "out"))
    assert (manifest.scoring, manifest.keypoints, manifest.frequencies) == ("coco", None, ())
    assert manifest.options == {"seed": 3, "rows_per_shard": 8, "rows_per_group": 3}
    assert manifest.counts == {
        "images": 22,
        "instances": 13,
        "crowd": 9,
        "empty": 0,
        "grayscale": 0,
        "quarantined_images": 1,
        "quarantined_annotations": 0,
    }
    assert manifest.quarantined == {"image: picture is missing": 1}
    assert sum(shard.rows for shard in manifest.shards) == 22
    assert len((tmp_path / "out/quarantine.jsonl").read_text().splitlines()) == 1
    index = shards.load_index(tmp_path / "out")
    assert index.schema.equals(INDEX_SCHEMA)
    table = read_rows(tmp_path / "out", index, SCHEMA.names)
    assert table.schema.equals(SCHEMA)
    seen = []
    for row, record in zip(index.to_pylist(), shards.to_records(table), strict=True):
        entry = next(e for e in dataset.entries if e.sample_id == row["sample_id"])
        sample = dataset.reader.read(entry, dataset.quarantine)
        assert sample is not None and record == sample.record
        assert (row["height"], row["width"], row["bytes"]) == (40, 60, len(record["image"]))
        assert (row["instances"], row["crowd"]) == (record["crowd"].count(False), record["crowd"].count(True))
        assert (row["classes"], row["keypoints"]) == ([] if row["crowd"] else [2], 0)
        file = (tmp_path / "out" / shards.shard_name(row["shard"])).read_bytes()
        assert file[row["offset"] : row["offset"] + row["bytes"]] == record["image"]
        seen.append(row["sample_id"])
    assert sorted(seen) == [i for i in range(1, 24) if i != 5] and seen != sorted(seen)
    table = shards.read_groups(tmp_path / "out", shards.shard_name(0), [1, 0])
    assert table.schema.equals(SCHEMA)
    assert [r["sample_id"] for r in shards.to_records(table)] == seen[3:6] + seen[:3]


def test_pictures_are_stored_as_they_are(tiny: TinyCoco, tmp_path: Path) -> None:
    shard_dataset(tiny.read(), tmp_path)
    group = pq.ParquetFile(tmp_path / shards.shard_name(0)).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    as_is = ("image", "semantic")
    assert {columns[name].compression for name in as_is} == {"UNCOMPRESSED"}
    assert {c.compression for name, c in columns.items() if name not in as_is} == {"ZSTD"}
    assert not any(c.is_stats_set or "DICTIONARY" in str(c.encodings) for c in columns.values())
    assert list(columns)[-2:] == ["semantic", "image"]  # what is small lies together


def test_there_must_be_shards(tiny: TinyCoco, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it holds no shards; run `maskrcnn shard`"):
        shards.load_manifest(tmp_path)
    shard_dataset(tiny.read(), tmp_path / "out")
    (tmp_path / "out/manifest.json").unlink()
    with pytest.raises(DataError, match=r"has no manifest\.json: sharding did not finish there; run"):
        shards.load_manifest(tmp_path / "out")
    (tmp_path / "out/manifest.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        shards.load_index(tmp_path / "out")


@pytest.fixture
def manifest(tiny: TinyCoco, tmp_path: Path) -> Path:
    shard_dataset(tiny.read(), tmp_path / "out")
    return tmp_path / "out/manifest.json"


KEYPOINTS = {"names": ["nose", "left", "right"], "flip": [0, 2, 1], "skeleton": [[0, 1]]}


def test_a_manifest_of_keypoints_and_frequencies(manifest: Path) -> None:
    content = json.loads(manifest.read_text())
    more = {"scoring": "lvis", "keypoints": KEYPOINTS, "frequencies": ["r", "f"]}
    manifest.write_text(json.dumps(content | more))
    found = shards.load_manifest(manifest.parent)
    assert found.keypoints == Keypoints(("nose", "left", "right"), (0, 2, 1), ((0, 1),))
    assert (found.scoring, found.frequencies) == ("lvis", ("r", "f"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"format_version": 99}, "holds shards of format 99, this version reads format 2; write them"),
        (
            lambda m: m | {"format_version": 1},
            "format 1, .* convert them with `maskrcnn shard migrate .*out --out NEW`",
        ),
        (lambda m: [], "it is no object"),
        (lambda m: m | {"more": 1}, "is damaged: more: "),
        (lambda m: {key: value for key, value in m.items() if key != "scoring"}, "is damaged: scoring: Field required"),
        (lambda m: m | {"scoring": "voc"}, "scoring: .*'voc'"),
        (lambda m: m | {"class_names": "cat"}, "class_names: .*'cat'"),
        (lambda m: m | {"class_names": ["cat"]}, "1 class_names do not go with"),
        (lambda m: m | {"category_ids": [3, 3]}, "2 class_names do not go with"),
        (lambda m: m | {"category_ids": [3, True]}, r"category_ids\.1: "),
        (lambda m: m | {"frequencies": ["r"]}, "frequencies are not one of"),
        (lambda m: m | {"frequencies": ["r", "x"]}, "frequencies are not one of"),
        (lambda m: m | {"counts": m["counts"] | {"images": "3"}}, r"counts\.images: .*'3'"),
        (lambda m: m | {"counts": m["counts"] | {"crowd": -1}}, "counts are not"),
        (lambda m: m | {"counts": {"images": 3}}, "counts are not"),
        (lambda m: m | {"counts": m["counts"] | {"zebras": 4}}, "counts are not"),
        (lambda m: m | {"counts": m["counts"] | {"images": 4}}, "are not the 4 images"),
        (lambda m: m | {"class_names": [], "category_ids": []}, "there are annotations, but no class_names"),
        (lambda m: m | {"shards": []}, "shards are not named"),
        (lambda m: m | {"shards": m["shards"] * 2}, "shards are not named"),
        (lambda m: m | {"shards": [m["shards"][0] | {"name": "../secret.parquet"}]}, "shards are not named"),
        (lambda m: m | {"shards": [m["shards"][0] | {"rows": 3.5}]}, r"shards\.0\.rows: "),
        (lambda m: m | {"shards": [m["shards"][0] | {"sha256": "0" * 63}]}, "a sha256 is not 64"),
        (lambda m: m | {"keypoints": KEYPOINTS | {"flip": [1, 2, 0]}}, "flip does not swap 3 keypoints in pairs"),
        (lambda m: m | {"keypoints": KEYPOINTS | {"flip": [0, 1]}}, "flip does not swap"),
        (lambda m: m | {"keypoints": KEYPOINTS | {"skeleton": [[0, 3]]}}, "skeleton joins what is none"),
        (lambda m: m | {"keypoints": KEYPOINTS | {"sigmas": [0.1, 0.1]}}, "sigmas are not 3 numbers above 0"),
        (lambda m: m | {"keypoints": {"names": []}}, r"keypoints\.flip: Field required"),
    ],
)
def test_a_broken_manifest_is_refused(manifest: Path, change: Callable[[Any], Any], message: str) -> None:
    manifest.write_text(json.dumps(change(json.loads(manifest.read_text()))))
    with pytest.raises(DataError, match=message):
        shards.load_manifest(manifest.parent)


def test_names_of_shards() -> None:
    assert [shard_number(shards.shard_name(n)) for n in (0, 7, 99999, 100000)] == [0, 7, 99999, 100000]
    assert {shard_number(name) for name in ("shard-0.parquet", "shard-000001.parquet", "a/shard-00000.parquet")} == {
        None
    }


def test_damage_is_found(tiny: TinyCoco, tmp_path: Path) -> None:
    shard_dataset(tiny.read(), tmp_path)
    path = tmp_path / shards.shard_name(0)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-00000\.parquet is damaged: sha256"):
        shards.verify(tmp_path)
    path.unlink()
    for read in (shards.verify, shards.annotations, lambda at: shards.read_groups(at, path.name, [0])):
        with pytest.raises(DataError, match=r"shard-00000\.parquet is missing; copy it again"):
            read(tmp_path)
    index = tmp_path / "index.parquet"
    index.write_bytes(b"torn")
    with pytest.raises(DataError, match=r"index\.parquet is damaged"):
        shards.load_index(tmp_path)
    index.unlink()
    with pytest.raises(DataError, match=r"index\.parquet is missing"):
        shards.load_index(tmp_path)


@pytest.mark.parametrize(
    ("split", "images", "crowd", "total"), [("train2017", 215, 19, 2035), ("val2017", 206, 21, 1786)]
)
def test_real_coco(
    coco_small: Path,
    tmp_path: Path,
    split: str,
    images: int,
    crowd: int,
    total: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = coco_small / f"annotations/instances_{split}.json"
    manifest = shard_dataset(read_coco(source, coco_small / split, Quarantine()), tmp_path, rows_per_shard=64)
    assert manifest.counts["images"] == images and manifest.quarantined == {}
    assert (manifest.counts["crowd"], manifest.counts["instances"]) == (crowd, total - crowd)
    assert manifest.counts["grayscale"] > 0 and manifest.counts["empty"] > 0
    assert len(manifest.class_names) == 80 and manifest.category_ids[-1] == 90
    truth = COCO(str(source))
    rebuilt = COCO()
    rebuilt.dataset = shards.annotations(tmp_path)
    rebuilt.createIndex()
    capsys.readouterr()
    assert rebuilt.anns.keys() == truth.anns.keys() and rebuilt.imgs.keys() == truth.imgs.keys()
    assert {c["id"]: c["name"] for c in truth.cats.values()} == {c["id"]: c["name"] for c in rebuilt.cats.values()}
    for image in truth.imgs:
        assert [a["id"] for a in rebuilt.imgToAnns[image]] == [a["id"] for a in truth.imgToAnns[image]]
    for number, annotation in truth.anns.items():
        ours = rebuilt.anns[number]
        assert [ours[k] for k in ("image_id", "category_id", "area", "iscrowd")] == [
            annotation[k] for k in ("image_id", "category_id", "area", "iscrowd")
        ]
        assert ours["segmentation"]["counts"].encode() == truth.annToRLE(annotation)["counts"]
        x, y, w, h = annotation["bbox"]
        image = truth.imgs[annotation["image_id"]]
        x1, y1, x2, y2 = np.clip([x, y, x + w, y + h], 0, [image["width"], image["height"]] * 2)
        np.testing.assert_allclose(ours["bbox"], [x1, y1, x2 - x1, y2 - y1], atol=1e-9)
    for row in shards.load_index(tmp_path).to_pylist():  # each picture lies in one piece where the index says
        with (tmp_path / shards.shard_name(row["shard"])).open("rb") as file:
            file.seek(row["offset"])
            stored = file.read(row["bytes"])
        original = (coco_small / split / truth.imgs[row["sample_id"]]["file_name"]).read_bytes()
        assert hashlib.sha256(stored).digest() == hashlib.sha256(original).digest()
        categories = {a["category_id"] for a in truth.imgToAnns[row["sample_id"]] if not a["iscrowd"]}
        assert [manifest.category_ids[c - 1] for c in row["classes"]] == sorted(categories)
