import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from spoiled_shards import Rows, sha256, spoil_index, spoil_manifest, spoil_rows
from tiny_coco import TinyCoco

from pipeline.data.coco import read_coco
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.sharding import shard_dataset
from pipeline.data.verify import Report, verify_shards


@pytest.fixture
def shards(shapes: Path, tmp_path: Path) -> Path:
    """A copy to spoil: 24 images, 3 shards of 10, 10 and 4 rows in row groups of 4."""
    return Path(shutil.copytree(shapes / "train", tmp_path / "train"))


def found(directory: Path) -> dict[str, int]:
    return dict(verify_shards(directory, workers=1).faults.counts)


def test_good_shards_pass(shapes: Path) -> None:
    for split, images in (("train", 24), ("val", 8)):
        seen: list[int] = []
        report = verify_shards(shapes / split, workers=1, progress=seen.append)
        assert report.sound and not report.faults.first and not report.notes.counts
        assert report.rows == report.statistics.summary()["images"] == images == seen[-1]
        assert seen == sorted(seen)
        assert report.statistics.class_objects.sum() == report.manifest.counts["instances"]


def test_parallel_is_serial(shards: Path) -> None:
    spoil_rows(shards, lambda rows: [row.update(height=row["height"] + 1) for row in rows], shard=1)
    spoil_rows(shards, lambda rows: rows[0].update(sample_id=rows[1]["sample_id"]))
    (shards / "shard-00002.parquet").write_bytes(b"PAR1 not")
    one, two = (verify_shards(str(shards), workers=workers) for workers in (1, 3))
    assert one.faults == two.faults and len(one.faults.first) > 20
    assert one.statistics.summary() == two.statistics.summary()
    assert (one.rows, two.rows) == (20, 20)


def test_a_flipped_byte_is_damage(shards: Path) -> None:
    for name in ("shard-00001.parquet", "index.parquet"):
        data = bytearray((shards / name).read_bytes())
        data[len(data) // 2] ^= 1
        (shards / name).write_bytes(data)
    report = verify_shards(shards, workers=1)
    damaged = [problem for problem in report.faults.first if problem.what == "the file is damaged"]
    assert [problem.file for problem in damaged] == ["index.parquet", "shard-00001.parquet"]
    assert damaged[0].fix == "copy the file again, or write the shards again"
    assert damaged[1].got == (
        f"sha256 {sha256(shards / 'shard-00001.parquet')}, the manifest says {report.manifest.shards[1].sha256}"
    )


def first_with_objects(rows: Rows) -> dict[str, Any]:
    return next(row for row in rows if row["classes"])


ROW_DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], set[str]]] = {
    "class 0": (
        lambda row: row["classes"].__setitem__(0, 0),
        {"class is not in 1..K", "the index disagrees with the row"},
    ),
    "box outside": (lambda row: row["boxes"].__setitem__(0, [-5, 1, 9, 9]), {"box leaves the picture"}),
    "RLE of another total": (lambda row: row["rles"].__setitem__(0, b"PPYo1"), {"RLE is not valid"}),
    "another crop": (
        lambda row: row["crops"].__setitem__(0, bytes(1568)),
        {"crop is not that of the RLE in its box"},
    ),
    "half a picture": (
        lambda row: row.update(image=row["image"][: len(row["image"]) // 2]),
        {"the picture does not decode", "the index disagrees with the row"},
    ),
    "shorter list": (lambda row: row["areas"].pop(), {"the row's lists differ in length"}),
    "another id": (lambda row: row.update(sample_id=999), {"the index disagrees with the row"}),
    "keypoints": (
        lambda row: row["keypoints"].__setitem__(0, [1, 2, 2]),
        {"keypoints in a data set that declares none", "the index disagrees with the row"},
    ),
}


@pytest.mark.parametrize("damage", ROW_DAMAGE)
def test_a_wrong_row_is_found_and_placed(shards: Path, damage: str) -> None:
    change, expected = ROW_DAMAGE[damage]
    places: list[tuple[int, int, int, str]] = []

    def spoil(rows: Rows) -> None:
        row = first_with_objects(rows)
        place = rows.index(row)
        change(row)
        places.append((place // 4, place % 4, row["sample_id"], row["file_name"]))

    spoil_rows(shards, spoil, shard=1)
    report = verify_shards(shards, workers=1)
    assert set(report.faults.counts) == expected
    for problem in report.faults.first:
        assert (problem.row_group, problem.row, problem.sample_id, problem.file_name) == places[0]
        assert problem.file == "shard-00001.parquet"
        assert problem.got and problem.fix.startswith("write the shards again")
    group, row, number, name = places[0]
    assert problem.place == f"shard-00001.parquet row group {group} row {row}, sample {number} ({name})"


def test_a_wrong_row_is_left_out_of_the_statistics(shards: Path) -> None:
    spoil_rows(shards, lambda rows: first_with_objects(rows)["classes"].__setitem__(0, 99))
    report = verify_shards(shards, workers=1)
    assert (report.rows, report.statistics.summary()["images"]) == (24, 23)


def test_ids_are_unique_over_shards(shards: Path) -> None:
    spoil_rows(shards, lambda rows: rows[5].update(sample_id=12345), shard=0)
    spoil_rows(shards, lambda rows: rows[3].update(sample_id=12345), shard=2)
    spoil_rows(shards, lambda rows: first_with_objects(rows)["annotation_ids"].__setitem__(0, 77), shard=0)
    spoil_rows(shards, lambda rows: first_with_objects(rows)["annotation_ids"].__setitem__(0, 77), shard=1)
    report = verify_shards(shards, workers=1)
    assert report.faults.counts["a sample id occurs twice"] == 1
    assert report.faults.counts["an annotation id occurs twice"] >= 1
    (twice,) = [problem for problem in report.faults.first if problem.what == "a sample id occurs twice"]
    assert twice.place == "shard-00002.parquet row group 0 row 3, sample 12345" and twice.got == "12345 again"


@pytest.mark.parametrize(
    ("name", "value"), [("instances", 77), ("crowd", 1), ("keypoints", 3), ("classes", [1, 99]), ("bytes", 1)]
)
def test_an_index_that_disagrees(shards: Path, name: str, value: Any) -> None:
    spoil_index(shards, lambda rows: rows[7].update({name: value}))
    report = verify_shards(shards, workers=1)
    (problem,) = report.faults.first
    assert problem.what == "the index disagrees with the row"
    assert (problem.row_group, problem.row) == (1, 3)
    assert problem.got.startswith(f"{name} {value}, the row's is ")
    assert problem.fix.startswith("write the shards again: index and rows come from different runs")


def test_an_index_of_other_rows(shards: Path) -> None:
    spoil_index(shards, lambda rows: rows.pop(7))
    assert found(shards) == {"the index has no row for it": 1}
    spoil_index(shards, lambda rows: rows.append({**rows[0]}))
    assert found(shards) == {"the index has no row for it": 1, "the index names a row twice": 1}
    spoil_index(shards, lambda rows: rows[-1].update(row=50))
    assert found(shards) == {"the index has no row for it": 1, "the index names rows that are not there": 1}
    spoil_index(shards, lambda rows: rows[-1].update(shard=50))
    assert found(shards) == {"the index has no row for it": 1, "the index names rows that are not there": 1}


def test_the_index_places_each_picture(shards: Path) -> None:
    for shard in range(3):
        spoil_rows(shards, lambda rows: None, shard)
    index = pq.read_table(shards / "index.parquet").to_pylist()
    assert min(row["offset"] for row in index) > 0 and found(shards) == {}
    for wrong in (0, index[5]["offset"], index[4]["offset"] - 1, 4, 10**9):
        spoil_index(shards, lambda rows, wrong=wrong: rows[4].update(offset=wrong))
        assert found(shards) == {"the index places the picture elsewhere": 1}


def test_files_that_are_missing_or_no_parquet(shards: Path) -> None:
    (shards / "shard-00000.parquet").unlink()
    (shards / "shard-00001.parquet").write_bytes(b"nothing")
    (shards / "quarantine.jsonl").unlink()
    assert found(shards) == {
        "the file is missing": 1,
        "the file is damaged": 1,
        "the file is not Parquet": 1,
        "the file cannot be read": 1,
    }
    (shards / "index.parquet").unlink()
    assert found(shards)["the index cannot be read"] == 1
    (shards / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        verify_shards(shards)


def test_nulls_are_found(shards: Path) -> None:
    spoil_rows(shards, lambda rows: first_with_objects(rows)["boxes"].__setitem__(0, [1, None, 2, 3]))
    report = verify_shards(shards, workers=1)
    (problem,) = [problem for problem in report.faults.first if problem.what == "values are missing"]
    assert problem.got == "a null in boxes"


def test_counts_of_the_manifest(shards: Path) -> None:
    def lie(manifest: dict[str, Any]) -> None:
        manifest["counts"] |= {"instances": 5, "grayscale": 24, "quarantined_images": 1}
        manifest["quarantined"] = {"image: picture is missing": 1}

    right = json.loads((shards / "manifest.json").read_text())["counts"]["instances"]
    spoil_manifest(shards, lie)
    by_what = {problem.what: problem for problem in verify_shards(shards, workers=1).faults.first}
    assert by_what["counts are not those of the rows"].got == (
        f"5 instances, counted {right}; 24 grayscale, counted 0; 1 quarantined_images, counted 0"
    )
    assert by_what["reasons are not the manifest's"].file == "quarantine.jsonl"


def test_many_equal_faults_are_counted_and_few_are_kept(shards: Path) -> None:
    for shard in range(3):
        spoil_rows(shards, lambda rows: [row.update(file_name="") for row in rows], shard)
    report = verify_shards(shards, workers=1)
    assert report.faults.counts == {"the row has no file name": 24}
    assert len(report.faults.first) == 20


def test_quarantine_and_crowd(tiny: TinyCoco, tmp_path: Path) -> None:
    tiny.content["annotations"][0]["iscrowd"] = 1
    tiny.content["annotations"][1]["bbox"] = [0, 0, 0, 0]
    (tiny.images / "3.jpg").unlink()
    shard_dataset(tiny.read(), tmp_path / "out")
    report = verify_shards(tmp_path / "out", workers=1)
    assert report.sound and report.manifest.counts["quarantined_annotations"] == 1
    summary = report.statistics.summary()
    assert (summary["images"], summary["crowd"], summary["objects"], summary["empty"]) == (2, 1, 0, 1)


def test_real_coco(coco_small: Path, tmp_path: Path) -> None:
    source = coco_small / "annotations/instances_val2017.json"
    shard_dataset(read_coco(source, coco_small / "val2017", Quarantine()), tmp_path, rows_per_shard=64)
    report: Report = verify_shards(tmp_path, workers=2)
    assert report.sound
    assert sum(report.notes.counts.values()) == 21
    objects: dict[str, int] = {}
    content = json.loads(source.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    for annotation in content["annotations"]:
        objects[names[annotation["category_id"]]] = objects.get(names[annotation["category_id"]], 0) + (
            1 - annotation["iscrowd"]
        )
    counted = dict(zip(report.manifest.class_names, report.statistics.class_objects.tolist(), strict=True))
    assert {name: count for name, count in counted.items() if count} == {k: v for k, v in objects.items() if v}


MEMORY = """
import re, sys
from pathlib import Path
from pipeline.data.verify import verify_shards
assert verify_shards(sys.argv[1], workers=1).sound
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory in /proc")
def test_memory_is_a_row_group(tiny: TinyCoco, tmp_path: Path) -> None:
    """Ten times the pictures (60 MB more of them) need hardly more memory."""
    from PIL import Image

    peaks = []
    noise = np.random.default_rng(0).integers(0, 256, (1000, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tiny.images / "noise.png")
    for images in (3, 33):
        tiny.content["images"] = [
            {"id": number, "file_name": "noise.png", "height": 1000, "width": 700} for number in range(images)
        ]
        tiny.content["annotations"] = []
        shard_dataset(tiny.read(strict=True), tmp_path / str(images), rows_per_group=1)
        # Not ru_maxrss, in which a child begins with what its parent had.
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path / str(images))], capture_output=True, text=True, check=True
        )
        peaks.append(int(done.stdout))
    assert sum(path.stat().st_size for path in (tmp_path / "33").iterdir()) > 65e6
    assert peaks[1] - peaks[0] < 25, peaks
    assert peaks[0] > 50  # it was measured
