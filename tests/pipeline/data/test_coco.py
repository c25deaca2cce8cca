import gc
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_coco import TinyCoco, jpeg

from pipeline.data import rle
from pipeline.data.coco import read_coco
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.records import SCHEMA, Record
from pipeline.data.shard_rows import read_rows
from pipeline.data.sharding import shard_dataset
from pipeline.data.shards import load_index, to_records
from pipeline.data.source import Dataset


def records(dataset: Dataset) -> list[Record]:
    return [s.record for e in dataset.entries if (s := dataset.reader.read(e, dataset.quarantine)) is not None]


def only_bad(dataset: Dataset) -> tuple[str, int | None, int | None, str, str]:
    """Reads everything and returns the one sample in quarantine."""
    records(dataset)
    (bad,) = dataset.quarantine.samples
    return bad.kind, bad.sample_id, bad.annotation_id, bad.reason, bad.got


def test_record(tiny: TinyCoco) -> None:
    tiny.content["images"].reverse()
    runs = [0, 4, 40 * 60 - 4]
    tiny.content["annotations"] += [
        tiny.square(91, 2, category_id=3, bbox=[-5, -5.5, 100, 10.5], segmentation={"size": [40, 60], "counts": runs}),
        tiny.square(92, 2, iscrowd=1),
    ]
    del tiny.content["annotations"][-1]["area"]
    dataset = tiny.read(strict=True)
    assert dataset.class_names == ("dog", "cat") and dataset.category_ids == (3, 7)
    assert pickle.loads(pickle.dumps((dataset.entries, dataset.reader))) == (dataset.entries, dataset.reader)
    found = records(dataset)
    assert [record["sample_id"] for record in found] == [1, 2, 3]
    record = found[1]
    assert record["image"] == (tiny.images / "2.jpg").read_bytes()
    assert (record["height"], record["width"], record["file_name"]) == (40, 60, "2.jpg")
    assert record["boxes"] == [[10, 5, 30, 25], [0, 0, 60, 5], [10, 5, 30, 25]]
    assert record["classes"] == [2, 1, 2] and record["crowd"] == [False, False, True]
    assert record["annotation_ids"] == [20, 91, 92]
    assert record["areas"] == [400.0, 400.0, float(rle.area(record["rles"][2], 40, 60))]
    assert rle.to_mask(record["rles"][1], 40, 60).sum() == 4
    assert rle.unpack_crops(record["crops"]).mean(axis=(1, 2))[0] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON .* partial download"),
        (b'{"images": [', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[]", "has no list 'images' .it holds: list"),
        (b'{"images": [], "annotations": []}', "has no list 'categories' .it holds: images, annotations"),
        (b'{"images": [], "annotations": [], "categories": []}', "'categories' is empty; declare"),
        (b'{"images": [], "annotations": [], "categories": [{"id": "1"}]}', "needs an integer id and a name"),
        (
            b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "category id 1 is 'a' and 'b'; give each its own id",
        ),
        (
            b'{"images": [], "annotations": [], "categories": [{"id": true, "name": "a"}]}',
            "needs an integer id and a name, got {'id': True",
        ),
        (
            b'{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
            "'images' is empty; list the pictures",
        ),
        (b"[" * 100_000, "is not valid JSON .*recursion"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "is not valid JSON .*Exceeds the limit"),
    ],
)
def test_unusable_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_coco(tmp_path / "a.json", tmp_path, Quarantine())


def test_missing_file_and_directory(tiny: TinyCoco, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no annotation file at .*nothing\.json; give the path"):
        read_coco(tmp_path / "nothing.json", tmp_path, Quarantine())
    tiny.images = tmp_path / "nowhere"
    with pytest.raises(DataError, match=r"no directory of pictures at .*nowhere; give the directory"):
        tiny.read()


@pytest.mark.parametrize(
    ("changes", "reason", "got"),
    [
        ({"bbox": [10, 5, 0, 20]}, "box is degenerate (width or height <= 0)", "[10, 5, 0, 20]"),
        ({"bbox": [10, 5, 20, -1]}, "box is degenerate (width or height <= 0)", "[10, 5, 20, -1]"),
        ({"bbox": [10, 5, float("nan"), 20]}, "box is not four finite numbers", "[10, 5, nan, 20]"),
        ({"bbox": [float("-inf"), 5, 20, 20]}, "box is not four finite numbers", "[-inf, 5, 20, 20]"),
        ({"bbox": [10, 5, float("inf"), 20]}, "box is not four finite numbers", "[10, 5, inf, 20]"),
        ({"bbox": [10, 5, 1e300, 20]}, "box is not four finite numbers", "[10, 5, 1e+300, 20]"),
        ({"bbox": [True, 5, 20, 20]}, "box is not four finite numbers", "[True, 5, 20, 20]"),
        ({"bbox": ["10", 5, 20, 20]}, "box is not four finite numbers", "['10', 5, 20, 20]"),
        ({"bbox": [10, 5, 20]}, "box is not four finite numbers", "[10, 5, 20]"),
        ({"bbox": None}, "box is not four finite numbers", "None"),
        ({"bbox": [60, 5, 20, 20]}, "box lies outside the picture", "[60, 5, 20, 20] in height x width 40 x 60"),
        ({"bbox": [-9, 5, 8, 20]}, "box lies outside the picture", "[-9, 5, 8, 20] in height x width 40 x 60"),
        ({"category_id": 8}, "category id that the file does not declare", "category_id 8"),
        ({"id": 10}, "annotation id occurs twice (the first one is kept)", "10"),
        ({"id": "x"}, "annotation id is not an integer of 64 bits", None),
        ({"id": True}, "annotation id is not an integer of 64 bits", None),
        ({"id": 2**63}, "annotation id is not an integer of 64 bits", None),
        ({"category_id": True}, "category id that the file does not declare", "category_id True"),
        ({"category_id": [7]}, "category id that the file does not declare", "category_id [7]"),
        (
            {"image_id": 2.0},
            "annotation of an image that the file does not list, or that was set aside",
            "image_id 2.0",
        ),
        ({"image_id": None}, "annotation of an image that the file does not list, or that was set aside", None),
        ({"image_id": 99}, "annotation of an image that the file does not list, or that was set aside", "image_id 99"),
        ({"iscrowd": 2}, "iscrowd is neither 0 nor 1", "2"),
        ({"area": "big"}, "area is not a number of pixels", "big"),
        (
            {"segmentation": {"size": [60, 40], "counts": [2400]}},
            "segmentation is not valid",
            "the RLE's size must be the image's [40, 60], got [60, 40]",
        ),
        (
            {"segmentation": [[1, 2, 3, 4]]},
            "segmentation is not valid",
            "a polygon needs at least 3 points (6 numbers, an even count), got 4 numbers",
        ),
        ({"area": float("nan")}, "area is not a number of pixels", "nan"),
        ({"area": -1}, "area is not a number of pixels", "-1"),
        (
            {"segmentation": None},
            "segmentation is not valid",
            "a segmentation is a list of polygons or an RLE, got None",
        ),
        (
            {"segmentation": [[10, 5, 30, 5, 30, 25, 10]]},
            "segmentation is not valid",
            "a polygon needs at least 3 points (6 numbers, an even count), got 7 numbers",
        ),
        (
            {"segmentation": {"size": [40, 60], "counts": [100, 20]}},
            "segmentation is not valid",
            "the RLE's runs must add up to 40 x 60 = 2400, got 120",
        ),
        (
            {"segmentation": {"size": [40, 60], "counts": "not RLE at all"}},
            "segmentation is not valid",
            "not COCO's compressed counts: b'not RLE at all'",
        ),
        ({"segmentation": {"size": [40, 60], "counts": [2400]}}, "mask is empty", "0 of 40 x 60 pixels"),
        ({"segmentation": [[70, 5, 80, 5, 80, 9]]}, "mask is empty", "0 of 40 x 60 pixels"),
    ],
)
def test_bad_annotation_leaves_alone(tiny: TinyCoco, changes: dict[str, Any], reason: str, got: str | None) -> None:
    tiny.content["annotations"].append({**tiny.square(77, 2), **changes})
    dataset = tiny.read()
    kind, _, _, found_reason, found_got = only_bad(dataset)
    assert (kind, found_reason) == ("annotation", reason)
    assert got is None or found_got == got
    assert [record["annotation_ids"] for record in records(tiny.read())] == [[10], [20], [30]]
    with pytest.raises(DataError, match=r"^annotation .*; got .*Mend the source, or run without --strict"):
        records(tiny.read(strict=True))


def test_what_is_no_annotation(tiny: TinyCoco) -> None:
    tiny.content["annotations"] += [None, 3, []]
    tiny.content["images"] += [None, "x.jpg"]
    dataset = tiny.read()
    assert len(records(dataset)) == 3
    assert dataset.quarantine.reasons() == {
        "annotation: annotation id is not an integer of 64 bits": 3,
        "image: image id is not an integer of 64 bits": 2,
    }


def test_a_polygon_partly_outside_is_clipped(tiny: TinyCoco) -> None:
    tiny.content["annotations"][1] |= {"segmentation": [[50, 30, 80, 30, 80, 60, 50, 60]], "bbox": [50, 30, 30, 30]}
    record = records(tiny.read(strict=True))[1]
    expected = np.zeros((40, 60), np.uint8)
    expected[30:, 50:] = 1
    assert np.array_equal(rle.to_mask(record["rles"][0], 40, 60), expected)
    assert record["boxes"] == [[50, 30, 60, 40]] and rle.unpack_crops(record["crops"]).all()


def test_odd_ids_are_ids(tiny: TinyCoco) -> None:
    tiny.content["categories"] = [{"id": 0, "name": "cat"}, {"id": -4, "name": "dog"}, {"id": 2**62, "name": "cow"}]
    for number, category in ((1, 0), (2, -4), (3, 2**62)):
        image, annotation = tiny.content["images"][number - 1], tiny.content["annotations"][number - 1]
        image["id"] = annotation["image_id"] = {1: -1, 2: 0, 3: 2**63 - 1}[number]
        annotation |= {"id": 2**63 - number, "category_id": category}
    dataset = tiny.read(strict=True)
    assert dataset.category_ids == (-4, 0, 2**62) and dataset.class_names == ("dog", "cat", "cow")
    found = records(dataset)
    assert [r["sample_id"] for r in found] == [-1, 0, 2**63 - 1] and [r["classes"] for r in found] == [[2], [1], [3]]


def test_iscrowd_may_be_a_boolean(tiny: TinyCoco) -> None:  # as some tools export it
    tiny.content["annotations"][0]["iscrowd"] = True
    tiny.content["annotations"][1]["iscrowd"] = False
    assert [r["crowd"] for r in records(tiny.read(strict=True))] == [[True], [False], [False]]


def test_names_with_spaces_and_any_letters(tiny: TinyCoco) -> None:
    for number, name in ((1, "a b.jpg"), (2, "ünï/日本 1.jpg"), (3, " %20#?.jpg")):
        (tiny.images / name).parent.mkdir(exist_ok=True)
        (tiny.images / f"{number}.jpg").rename(tiny.images / name)
        tiny.content["images"][number - 1]["file_name"] = name
    assert [r["file_name"] for r in records(tiny.read(strict=True))] == ["a b.jpg", "ünï/日本 1.jpg", " %20#?.jpg"]


def test_byte_order_mark(tiny: TinyCoco) -> None:
    tiny.json.write_text(json.dumps(tiny.content), encoding="utf-8-sig")
    assert len(read_coco(tiny.json, tiny.images, Quarantine(strict=True)).entries) == 3


def test_the_collector_is_left_as_it_was(tiny: TinyCoco) -> None:
    for _ in range(2):
        assert gc.isenabled()
        tiny.read()
    gc.disable()
    try:
        tiny.read()
        assert not gc.isenabled()
    finally:
        gc.enable()


def spoil_picture(tiny: TinyCoco, how: str) -> None:
    path, entry = tiny.images / "2.jpg", tiny.content["images"][1]
    data = path.read_bytes()
    outside = tiny.images.parent / "outside.jpg"
    outside.write_bytes(data)
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[:-20])
    elif how == "text":
        path.write_bytes(b"<html>not found</html>")
    elif how == "size":
        path.write_bytes(jpeg(60, 40))
    elif how == "dots":
        entry["file_name"] = "../outside.jpg"
    elif how == "absolute":
        entry["file_name"] = str(outside)
    elif how == "symlink":
        path.unlink()
        path.symlink_to(outside)
    elif how == "null":
        entry["file_name"] = "a\0b"
    elif how == "half a character":
        entry["file_name"] = "\udcff.jpg"
    elif how == "long":
        entry["file_name"] = "x" * 300
    elif how == "circle":
        path.unlink()
        path.symlink_to(path)
    elif how == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        path.write_bytes(jpeg(60, 40, exif=exif))
    elif how == "rotated by 180":
        exif = Image.Exif()
        exif[0x0112] = 3
        path.write_bytes(jpeg(60, 40, exif=exif))
    elif how == "boolean size":
        entry["height"] = True
    elif how == "huge size":
        entry["height"] = 2**40
    elif how == "directory":
        path.unlink()
        path.mkdir()
    elif how == "no size":
        entry["height"] = 0
    elif how == "no name":
        del entry["file_name"]


@pytest.mark.parametrize(
    ("how", "reason", "got"),
    [
        ("missing", "picture is missing", "2.jpg"),
        ("truncated", "picture does not decode", "bytes do not decode"),
        ("text", "picture does not decode", "not a picture: 22 bytes that begin with b'<html>no'"),
        ("size", "picture's size differs from the JSON's", "60 x 40 in the file, 40 x 60 in the JSON"),
        ("dots", "file_name leaves the picture directory", "../outside.jpg"),
        ("absolute", "file_name leaves the picture directory", "outside.jpg"),
        ("symlink", "file_name leaves the picture directory", "2.jpg"),
        ("null", "file_name is no path", "null"),
        ("half a character", "file_name is no path", "surrogates not allowed"),
        ("long", "picture cannot be read", "File name too long"),
        ("circle", "picture cannot be read", "Too many levels of symbolic links"),
        ("pipe", "picture cannot be read", "not a file"),
        ("empty", "picture does not decode", "the file is empty"),
        (
            "rotated",
            "picture has an EXIF rotation, and was annotated as rotated",
            "60 x 40 in the file, 40 x 60 in the JSON; store it upright",
        ),
        ("rotated by 180", "picture's size differs from the JSON's", "60 x 40 in the file, 40 x 60 in the JSON"),
        ("boolean size", "image has no height and width in pixels", "'height': True"),
        ("huge size", "image has no height and width in pixels", "'height': 1099511627776"),
        ("directory", "picture cannot be read", "directory"),
        ("no size", "image has no height and width in pixels", "'height': 0"),
        ("no name", "image has no file_name", "'id': 2"),
    ],
)
def test_bad_image_leaves_with_its_annotations(tiny: TinyCoco, how: str, reason: str, got: str) -> None:
    spoil_picture(tiny, how)
    dataset = tiny.read()
    assert [record["sample_id"] for record in records(dataset)] == [1, 3]
    bad = dataset.quarantine.samples[0]
    assert (bad.kind, bad.sample_id, bad.reason) == ("image", 2, reason) and got in bad.got
    with pytest.raises(DataError, match=r"^image 2.*Mend the source, or run without --strict"):
        records(tiny.read(strict=True))


def test_duplicate_image_id(tiny: TinyCoco) -> None:
    tiny.content["images"].append({**tiny.content["images"][2], "id": 2})
    assert only_bad(tiny.read()) == ("image", 2, None, "image id occurs twice (the first one is kept)", "2.jpg, 3.jpg")


def test_root_may_be_a_symlink_and_names_may_have_directories(tiny: TinyCoco, tmp_path: Path) -> None:
    (tiny.images / "sub").mkdir()
    (tiny.images / "2.jpg").rename(tiny.images / "sub/2.jpg")
    tiny.content["images"][1]["file_name"] = "sub/../sub/2.jpg"
    (tmp_path / "link").symlink_to(tiny.images)
    tiny.images = tmp_path / "link"
    assert len(records(tiny.read(strict=True))) == 3


def test_images_without_annotations_and_exif(tiny: TinyCoco) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tiny.images / "1.jpg").write_bytes(jpeg(40, 60, exif=exif))
    tiny.content["annotations"] = [tiny.square(1, 2, iscrowd=1)]
    found = records(tiny.read(strict=True))
    assert [record["crowd"] for record in found] == [[], [True], []]


def test_quarantine_file(tiny: TinyCoco, tmp_path: Path) -> None:
    spoil_picture(tiny, "missing")
    tiny.content["annotations"] += [tiny.square(7, 3, bbox=[1, 1, 0, 0]), tiny.square(5, 1, bbox=[1, 1, 0, 0])]
    dataset = tiny.read()
    records(dataset)
    (tmp_path / "quarantine.jsonl").write_text(dataset.quarantine.to_jsonl())
    lines = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "kind": "image",
        "sample_id": 2,
        "annotation_id": None,
        "file_name": "2.jpg",
        "reason": "picture is missing",
        "got": "2.jpg",
    }
    assert [line["annotation_id"] for line in lines[1:]] == [5, 7]
    assert dataset.quarantine.reasons() == {
        "annotation: box is degenerate (width or height <= 0)": 2,
        "image: picture is missing": 1,
    }


def test_boxes_keep_float64(tiny: TinyCoco, tmp_path: Path) -> None:
    tiny.content["annotations"][0]["bbox"] = [10.1, 5.3, 20.7, 20.2]
    (record,) = (r for r in records(tiny.read()) if r["sample_id"] == 1)
    assert record["boxes"] == [[10.1, 5.3, 10.1 + 20.7, 5.3 + 20.2]]
    shard_dataset(tiny.read(), tmp_path)
    assert record in to_records(read_rows(tmp_path, load_index(tmp_path), SCHEMA.names))
