import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO
from tiny_coco import TinyCoco

from pipeline.data import shards
from pipeline.data.coco import read_coco
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.records import INDEX_SCHEMA, SCHEMA


def grow(tiny: TinyCoco, images: int) -> None:
    for number in range(4, images + 1):
        (tiny.images / f"{number}.jpg").write_bytes((tiny.images / "1.jpg").read_bytes())
        entry = {"id": number, "file_name": f"{number}.jpg", "height": 40, "width": 60}
        tiny.content["images"].append(entry)
        tiny.content["annotations"].append(tiny.square(10 * number, number, iscrowd=number % 2))


def test_everything_comes_back_through_the_index(tiny: TinyCoco, tmp_path: Path) -> None:
    grow(tiny, 23)
    (tiny.images / "5.jpg").unlink()
    dataset = tiny.read()
    calls: list[tuple[int, int]] = []
    manifest = shards.write_shards(
        dataset,
        tmp_path / "out",
        seed=3,
        rows_per_shard=8,
        rows_per_group=3,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(i, 23) for i in range(1, 24)]
    assert shards.load_manifest(tmp_path / "out") == manifest == shards.verify(tmp_path / "out")
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
    rows = index.to_pylist()
    seen = []
    for row in rows:
        path = tmp_path / "out" / shards.shard_name(row["shard"])
        (record,) = shards.read_rows(path, row["row_group"], [row["row"]])
        entry = next(e for e in dataset.entries if e.sample_id == row["sample_id"])
        sample = dataset.reader.read(entry, dataset.quarantine)
        expected = None if sample is None else sample.record
        assert record == expected
        assert (row["height"], row["width"], row["bytes"]) == (40, 60, len(record["image"]))
        assert (row["instances"], row["crowd"]) == (record["crowd"].count(False), record["crowd"].count(True))
        seen.append(row["sample_id"])
    assert sorted(seen) == [i for i in range(1, 24) if i != 5] and seen != sorted(seen)
    table = shards.read_groups(tmp_path / "out" / shards.shard_name(0), [1, 0])
    assert table.schema.equals(SCHEMA)
    assert [r["sample_id"] for r in shards.to_records(table)] == seen[3:6] + seen[:3]


def test_pictures_are_stored_as_they_are(tiny: TinyCoco, tmp_path: Path) -> None:
    shards.write_shards(tiny.read(), tmp_path)
    group = pq.ParquetFile(tmp_path / shards.shard_name(0)).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert columns["image"].compression == "UNCOMPRESSED"
    assert {c.compression for name, c in columns.items() if name != "image"} == {"ZSTD"}
    assert not any(c.is_stats_set or "DICTIONARY" in str(c.encodings) for c in columns.values())


def test_same_input_same_bytes_and_seed_matters(tiny: TinyCoco, tmp_path: Path) -> None:
    grow(tiny, 12)
    made = [
        shards.write_shards(tiny.read(), tmp_path / name, seed=seed, threads=threads)
        for name, seed, threads in (("a", 0, 1), ("b", 0, 4), ("c", 1, 2))
    ]
    assert made[0] == made[1] and made[0].fingerprint != made[2].fingerprint
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_complete_shards_are_not_overwritten_and_leftovers_are(tiny: TinyCoco, tmp_path: Path) -> None:
    first = shards.write_shards(tiny.read(), tmp_path / "out")
    with pytest.raises(DataError, match=r"already holds complete shards; choose another directory, or pass overwrite"):
        shards.write_shards(tiny.read(), tmp_path / "out")
    assert shards.write_shards(tiny.read(), tmp_path / "out", overwrite=True) == first
    (tmp_path / "out/manifest.json").unlink()
    (tmp_path / "out/shard-00009.parquet").write_bytes(b"old")
    (tmp_path / "out/.index.parquet.tmp").write_bytes(b"torn")
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"has no manifest\.json: sharding did not finish there; run"):
        shards.load_manifest(tmp_path / "out")
    shards.write_shards(tiny.read(), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", "index.parquet", "quarantine.jsonl", "shard-00000.parquet", "notes.txt"}


def test_an_interrupted_run_looks_incomplete(tiny: TinyCoco, tmp_path: Path) -> None:
    grow(tiny, 12)
    (tiny.images / "9.jpg").unlink()
    with pytest.raises(DataError, match="image 9"):
        shards.write_shards(tiny.read(strict=True), tmp_path / "out", rows_per_shard=2)
    assert not (tmp_path / "out/manifest.json").exists()
    shards.write_shards(tiny.read(), tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


def test_manifest_errors(tiny: TinyCoco, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it holds no shards; run `maskrcnn shard`"):
        shards.load_manifest(tmp_path)
    shards.write_shards(tiny.read(), tmp_path / "out")
    path = tmp_path / "out/manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(DataError, match="holds shards of format 99, this version reads format 2; write them again"):
        shards.load_manifest(tmp_path / "out")
    path.write_text(json.dumps({**content, "more": 1}))
    with pytest.raises(DataError, match="lacks or adds a field"):
        shards.load_manifest(tmp_path / "out")
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        shards.load_index(tmp_path / "out")


def test_damage_is_found(tiny: TinyCoco, tmp_path: Path) -> None:
    shards.write_shards(tiny.read(), tmp_path)
    path = tmp_path / shards.shard_name(0)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-00000\.parquet is damaged: sha256"):
        shards.verify(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="is missing; copy it again"):
        shards.verify(tmp_path)


def test_no_usable_image_names_the_reason(tiny: TinyCoco, tmp_path: Path) -> None:
    for path in tiny.images.iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"none of the 3 images .* 3 times: image: picture is missing\. See .*jsonl"):
        shards.write_shards(tiny.read(), tmp_path / "out")
    assert len((tmp_path / "out/quarantine.jsonl").read_text().splitlines()) == 3


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
    manifest = shards.write_shards(read_coco(source, coco_small / split, Quarantine()), tmp_path, rows_per_shard=64)
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
