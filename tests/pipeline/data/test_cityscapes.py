import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data import cityscapes, rle
from pipeline.data.cityscapes import read_cityscapes, sample_id
from pipeline.data.cityscapes_labels import CATEGORY_IDS, CLASS_NAMES, draw_instances, label_ids
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.records import SCHEMA, Record
from pipeline.data.source import Dataset

HEIGHT, WIDTH = 40, 80


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class TinyCity:
    """Two cities with a picture each in train/; tests spoil the files, then call `read`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for number, name in enumerate(("ahaus/ahaus_000000_000019", "bremen/bremen_000007_000019")):
            self.add(name, number)

    def add(self, name: str, seed: int, split: str = "train") -> None:
        self.write(
            self.picture(name, split), png(np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), "u1"))
        )
        objects = [
            {"label": "road", "polygon": [[0, 0], [79, 0], [79, 39], [0, 39]]},
            {"label": "cargroup", "polygon": [[2, 2], [20, 2], [20, 12], [2, 12]]},
            {"label": "car", "polygon": [[30, 5], [50, 5], [50, 25], [30, 25]]},
            {"label": "license plate", "polygon": [[38, 20], [42, 20], [42, 22], [38, 22]]},
            {"label": "car", "polygon": [[60, 0], [79, 0], [79, 39], [60, 39]], "deleted": 1},
            {"label": "rider", "polygon": [[40 + seed, 10], [60, 10], [60, 39]]},
            {"label": "caravan", "polygon": [[0, 30], [10, 30], [10, 39], [0, 39]]},
            {"label": "cargroup", "polygon": [[65, 30], [75, 30], [75, 38]]},
        ]
        content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
        self.write(self.truth(name, "polygons.json", split), json.dumps(content).encode())
        ids = draw_instances(json.dumps(content).encode(), HEIGHT, WIDTH)
        self.write(self.truth(name, "instanceIds.png", split), png(ids))
        self.write(self.truth(name, "labelIds.png", split), png(label_ids(ids)))

    def write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def picture(self, name: str, split: str = "train") -> Path:
        return self.root / "leftImg8bit" / split / f"{name}_leftImg8bit.png"

    def truth(self, name: str, kind: str, split: str = "train") -> Path:
        return self.root / "gtFine" / split / f"{name}_gtFine_{kind}"

    def read(self, split: str = "train", strict: bool = False, **options: Any) -> Dataset:
        return read_cityscapes(self.root, split, Quarantine(strict), **options)


@pytest.fixture
def city(tmp_path: Path) -> TinyCity:
    return TinyCity(tmp_path / "cityscapes")


FIRST = "ahaus/ahaus_000000_000019"


def records(dataset: Dataset) -> dict[str, Record]:
    found = [s.record for e in dataset.entries if (s := dataset.reader.read(e, dataset.quarantine)) is not None]
    return {record["file_name"].split("/")[2]: record for record in found}


def only_bad(dataset: Dataset) -> tuple[str, str, str]:
    records(dataset)
    (bad,) = dataset.quarantine.samples
    return bad.kind, bad.reason, bad.got


def test_record(city: TinyCity) -> None:
    dataset = city.read(strict=True)
    assert dataset.class_names == CLASS_NAMES and dataset.category_ids == CATEGORY_IDS == (
        24,
        25,
        26,
        27,
        28,
        31,
        32,
        33,
    )
    assert dataset.scoring == "cityscapes" and dataset.keypoints is None and dataset.generator is None
    assert dataset.source == {"root": "cityscapes", "split": "train"}
    assert [e.sample_id for e in dataset.entries] == sorted(e.sample_id for e in dataset.entries)
    record = records(dataset)["ahaus"]
    assert set(record) == set(SCHEMA.names)
    assert record["file_name"] == f"leftImg8bit/train/{FIRST}_leftImg8bit.png"
    assert record["image"] == city.picture(FIRST).read_bytes()
    assert record["semantic"] == city.truth(FIRST, "labelIds.png").read_bytes()  # a single caravan stays one
    ids = np.asarray(Image.open(city.truth(FIRST, "instanceIds.png")))
    assert record["sample_id"] == sample_id(FIRST)
    assert record["annotation_ids"] == [record["sample_id"] * 100000 + i for i in (26, 25000, 26000)]
    assert record["classes"] == [3, 2, 3] and record["crowd"] == [True, False, False]
    for i, number in enumerate((26, 25000, 26000)):
        mask = ids == number
        y, x = np.nonzero(mask)
        assert record["boxes"][i] == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert record["areas"][i] == mask.sum() > 0
        assert np.array_equal(rle.to_mask(record["rles"][i], HEIGHT, WIDTH), mask)
        runs = rle.parse_counts(rle.from_mask(mask))
        assert record["crops"][i] == rle.crop(runs, HEIGHT, WIDTH, record["boxes"][i])
    assert record["keypoints"] == [[], [], []]


@pytest.mark.parametrize("missing", [["instanceIds.png"], ["labelIds.png"], ["instanceIds.png", "labelIds.png"]])
def test_what_is_missing_is_drawn_from_what_is_there(city: TinyCity, missing: list[str]) -> None:
    before = records(city.read(strict=True))["ahaus"]
    for kind in missing:
        city.truth(FIRST, kind).unlink()
    after = records(city.read(strict=True))["ahaus"]
    labels = [np.asarray(Image.open(io.BytesIO(record.pop("semantic")))) for record in (before, after)]
    assert before == after
    assert np.array_equal(*labels) and labels[1].dtype == np.uint8


@pytest.mark.parametrize("missing", [[], ["labelIds.png"]])
def test_groups_of_what_is_not_scored_are_unlabeled(city: TinyCity, missing: list[str]) -> None:
    ids = np.asarray(Image.open(city.truth(FIRST, "instanceIds.png"))).astype(np.uint16)
    assert (ids == 29000).any()
    ids[0, :6], ids[1, :6] = 29, 30
    city.truth(FIRST, "instanceIds.png").write_bytes(png(ids))
    city.truth(FIRST, "labelIds.png").write_bytes(png(label_ids(ids)))
    for kind in missing:
        city.truth(FIRST, kind).unlink()
    found = np.asarray(Image.open(io.BytesIO(records(city.read(strict=True))["ahaus"]["semantic"])))
    expected = label_ids(ids)
    expected[:2, :6] = 0
    assert found.dtype == np.uint8 and np.array_equal(found, expected)


def test_ids_do_not_depend_on_what_else_is_there(city: TinyCity) -> None:
    everything = records(city.read())
    shutil.rmtree(city.root / "leftImg8bit/train/ahaus")
    shutil.rmtree(city.root / "gtFine/train/ahaus")
    city.add("aaa/aaa_000000_000019", 5)
    assert records(city.read())["bremen"] == everything["bremen"]
    chosen = city.read(cities=["bremen"])
    assert records(chosen) == {"bremen": everything["bremen"]}
    assert chosen.source["cities"] == "bremen"


def test_ids_fit_and_differ() -> None:
    names = [f"{c}/{c}_{s:06d}_{f:06d}" for c in ("aachen", "zürich") for s in range(100) for f in range(0, 60, 3)]
    ids = [sample_id(name) for name in names]
    assert len(set(ids)) == len(ids) and all(0 < number <= 2**46 for number in ids)
    assert cityscapes.annotation_id(2**46, 65535) < 2**63
    assert sample_id("aachen/aachen_000000_000019") == 27322532859776  # for ever (b2sum -l 64, its first 46 bits, + 1)


def test_collision_of_ids_is_set_aside(city: TinyCity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cityscapes, "sample_id", lambda name: 5)
    dataset = city.read()
    assert len(dataset.entries) == 1 and dataset.quarantine.reasons() == {
        "image: sample id is taken (a collision of hashes; rename one of the two)": 1
    }


def test_test_split_has_pictures_only(city: TinyCity) -> None:
    city.add("berlin/berlin_000000_000019", 3, split="test")
    for number, dummies in enumerate((True, False)):
        if not dummies:
            shutil.rmtree(city.root / "gtFine")
        dataset = city.read("test", strict=True)
        (record,) = records(dataset).values()
        assert dataset.scoring == "none", number
        assert record["boxes"] == [] and record["semantic"] == b"" and record["image"]


def test_unicode_and_links(city: TinyCity, tmp_path: Path) -> None:
    city.add("Zürich-北/Zürich-北_000001_000019", 4)
    away = tmp_path / "other disk"
    shutil.move(city.root / "gtFine/train/ahaus", away)
    (city.root / "gtFine/train/ahaus").symlink_to(away)
    assert set(records(city.read(strict=True))) == {"ahaus", "bremen", "Zürich-北"}


def test_dataset_travels(city: TinyCity) -> None:
    dataset = city.read()
    reader, entries = pickle.loads(pickle.dumps((dataset.reader, dataset.entries)))
    assert [reader.read(entry, Quarantine(strict=True)) for entry in entries] == [
        dataset.reader.read(entry, Quarantine(strict=True)) for entry in dataset.entries
    ]


def test_picture_without_ground_truth_and_the_other_way_round(city: TinyCity) -> None:
    for kind in ("instanceIds.png", "polygons.json"):
        city.truth(FIRST, kind).unlink()
    city.picture("bremen/bremen_000007_000019").unlink()
    city.add("calw/calw_000000_000019", 3)
    (city.root / "leftImg8bit/train/calw/._calw_000000_000019_leftImg8bit.png").write_bytes(b"macOS")
    dataset = city.read()
    assert set(records(dataset)) == {"calw"}
    assert dataset.quarantine.reasons() == {"image: ground truth has no picture": 1, "image: no ground truth": 1}
    assert {bad.sample_id for bad in dataset.quarantine.samples} == {
        sample_id(FIRST), sample_id("bremen/bremen_000007_000019")
    }  # fmt: skip
    with pytest.raises(DataError, match="no ground truth; got no gtFine/train/ahaus/ahaus_000000_000019_gtFine_inst"):
        city.read(strict=True)


def ids_png(height: int = HEIGHT, width: int = WIDTH, value: int = 26000, dtype: str = "u2") -> bytes:
    return png(np.full((height, width), value, dtype))


@pytest.mark.parametrize(
    ("kind", "content", "reason", "got"),
    [
        ("picture", b"", "picture does not decode", "the file is empty"),
        ("picture", ids_png()[:60], "picture does not decode", "bytes do not decode"),
        (
            "picture",
            png(np.zeros((10, 20, 3), "u1")),
            "instanceIds's size differs from the picture's",
            "40 x 80, the pict",
        ),
        ("instanceIds.png", b"", "instanceIds is no PNG", "0 bytes"),
        ("instanceIds.png", b"\x89PNG\r\n\x1a\n", "instanceIds is no PNG", "8 bytes"),
        ("instanceIds.png", ids_png()[:-30], "instanceIds does not decode", "bytes: "),
        ("instanceIds.png", ids_png(value=26, dtype="u1"), "instanceIds is not 16-bit grey", "8-bit grey"),
        ("instanceIds.png", png(np.zeros((40, 80, 3), "u1")), "instanceIds is not 16-bit grey", "8-bit RGB"),
        (
            "instanceIds.png",
            ids_png(80, 40),
            "instanceIds's size differs from the picture's",
            "80 x 40, the picture is 40",
        ),
        ("labelIds.png", ids_png(), "labelIds is not 8-bit grey", "16-bit grey"),
        ("labelIds.png", ids_png(3, 4, 7, "u1"), "labelIds's size differs from the picture's", "3 x 4, the picture is"),
        ("labelIds.png", ids_png(value=7, dtype="u1")[:-30], "labelIds does not decode", "bytes: "),
        ("labelIds.png", ids_png(value=99, dtype="u1"), "labelIds has labels that are unknown", "[99]"),
        ("labelIds.png", png(np.zeros((40, 80, 4), "u1")), "labelIds is not 8-bit grey", "8-bit RGB with alpha"),
    ],
)
def test_bad_file(city: TinyCity, kind: str, content: bytes, reason: str, got: str) -> None:
    (city.picture(FIRST) if kind == "picture" else city.truth(FIRST, kind)).write_bytes(content)
    dataset = city.read()
    assert set(records(dataset)) == {"bremen"}
    (bad,) = dataset.quarantine.samples
    assert (bad.kind, bad.reason, bad.sample_id) == ("image", reason, sample_id(FIRST))
    assert got in bad.got and bad.file_name == f"leftImg8bit/train/{FIRST}_leftImg8bit.png"


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"{", "polygons.json: not valid JSON"),
        (b'{"imgHeight": 9, "imgWidth": 80, "objects": []}', "the picture is 40 x 80"),
        (b'{"imgHeight": 40, "imgWidth": 80, "objects": [{"label": "ufo", "polygon": [[0, 0], [1, 1]]}]}', "'ufo'"),
    ],
)
def test_bad_polygons(city: TinyCity, content: bytes, got: str) -> None:
    city.truth(FIRST, "polygons.json").write_bytes(content)
    assert len(records(city.read(strict=True))) == 2  # nobody needs them
    city.truth(FIRST, "instanceIds.png").unlink()
    kind, reason, found = only_bad(city.read())
    assert (kind, reason) == ("image", "polygons are not valid") and got in found


def test_unknown_instance_id_leaves_alone(city: TinyCity) -> None:
    path = city.truth(FIRST, "instanceIds.png")
    ids = np.asarray(Image.open(path)).astype(np.uint16)
    expected = records(city.read())["ahaus"]
    ids[0, :5], ids[1, :2], ids[2, :2] = 34007, 500, 7003  # the last one is road, known and without annotations
    path.write_bytes(png(ids))
    city.truth(FIRST, "labelIds.png").unlink()
    dataset = city.read()
    record = records(dataset)["ahaus"]
    assert record["rles"][1:] == expected["rles"][1:] and record["classes"] == expected["classes"]
    assert [(bad.kind, bad.annotation_id, bad.reason, bad.got) for bad in dataset.quarantine.samples] == [
        ("annotation", sample_id(FIRST) * 100000 + 500, "label is unknown", "instance id 500 on 2 pixels"),
        ("annotation", sample_id(FIRST) * 100000 + 34007, "label is unknown", "instance id 34007 on 5 pixels"),
    ]
    semantic = np.asarray(Image.open(io.BytesIO(record["semantic"])))
    assert (semantic[0, :5] == 0).all() and (semantic[2, :2] == 7).all()


def test_file_that_went_away(city: TinyCity) -> None:
    dataset = city.read()
    city.truth(FIRST, "instanceIds.png").unlink()
    kind, reason, got = only_bad(dataset)
    assert (kind, reason) == ("image", "file is missing") and got.endswith("ahaus_000000_000019_gtFine_instanceIds.png")


def test_grayscale_picture(city: TinyCity) -> None:
    city.picture(FIRST).write_bytes(png(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), "u1")))
    dataset = city.read(strict=True)
    samples = [dataset.reader.read(entry, dataset.quarantine) for entry in dataset.entries]
    assert {sample.record["file_name"].split("/")[2]: sample.grayscale for sample in samples if sample is not None} == {
        "ahaus": True, "bremen": False
    }  # fmt: skip


def test_wrong_root(city: TinyCity, tmp_path: Path) -> None:
    def message(root: Path, split: str = "train") -> str:
        with pytest.raises(DataError) as error:
            read_cityscapes(root, split, Quarantine())
        return str(error.value)

    assert "no directory at" in message(tmp_path / "nowhere")
    assert "no directory at" in message(city.picture(FIRST))
    inside = message(city.root / "leftImg8bit")
    assert "has no pictures leftImg8bit/train/CITY/*_leftImg8bit.png (it holds: train); give the dir" in inside
    (tmp_path / "empty").mkdir()
    assert "(it is empty)" in message(tmp_path / "empty")
    assert "(leftImg8bit/ holds: train); name a split that is there" in message(city.root, "val")
    shutil.rmtree(city.root / "gtFine")
    assert "2 pictures in leftImg8bit/train but no ground truth in gtFine/train; unpack gtFine_" in message(city.root)


def test_wrong_cities(city: TinyCity) -> None:
    with pytest.raises(DataError, match="no pictures of ulm in leftImg8bit/train; choose from ahaus, bremen"):
        city.read(cities=["bremen", "ulm"])
    with pytest.raises(DataError, match=r"no pictures of no city in .* choose from ahaus, bremen"):
        city.read(cities=[])


@pytest.mark.parametrize("content", [b"{", b"[]"])
def test_broken_generator_settings(city: TinyCity, content: bytes) -> None:
    (city.root / "generator.json").write_bytes(content)
    with pytest.raises(DataError, match=r"generator\.json is .*generate the streets again"):
        city.read()
