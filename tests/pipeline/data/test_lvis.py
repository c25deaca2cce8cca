"""LVIS v1: COCO's layout with federated classes, in files made by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_coco import TinyCoco

from pipeline.data.lvis import read_lvis
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.source import Dataset


class TinyLvis(TinyCoco):
    """The tiny data set as LVIS writes it: no file_name, no iscrowd, pictures of two of COCO's splits."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.content["categories"] = [
            {"id": 2, "name": "aerosol_can", "frequency": "c", "synonyms": ["aerosol_can"], "synset": "aerosol.n.02"},
            {"id": 9, "name": "zebra", "frequency": "f"},
            {"id": 7, "name": "cat", "frequency": "r"},
        ]
        for image, split in zip(self.content["images"], ("train2017", "val2017", "train2017"), strict=True):
            name = image.pop("file_name")
            (self.images / split).mkdir(exist_ok=True)
            (self.images / name).rename(self.images / split / name)
            image["coco_url"] = f"http://images.cocodataset.org/{split}/{name}"
            image["neg_category_ids"], image["not_exhaustive_category_ids"] = [], []
        for annotation in self.content["annotations"]:
            del annotation["iscrowd"]

    def read(self, strict: bool = False) -> Dataset:
        self.json.write_text(json.dumps(self.content))
        return read_lvis(self.json, self.images, Quarantine(strict))


@pytest.fixture
def lvis(tmp_path: Path) -> TinyLvis:
    return TinyLvis(tmp_path / "lvis")


def test_records(lvis: TinyLvis) -> None:
    lvis.content["images"][1] |= {"neg_category_ids": [9, 2, 9], "not_exhaustive_category_ids": [7]}
    del lvis.content["images"][2]["neg_category_ids"]
    dataset = lvis.read(strict=True)
    assert dataset.scoring == "lvis" and dataset.keypoints is None
    assert dataset.class_names == ("aerosol_can", "cat", "zebra") and dataset.category_ids == (2, 7, 9)
    assert dataset.frequencies == ("c", "r", "f")
    samples = [dataset.reader.read(entry, dataset.quarantine) for entry in dataset.entries]
    found = [sample.record for sample in samples if sample is not None]
    assert [r["file_name"] for r in found] == ["train2017/1.jpg", "val2017/2.jpg", "train2017/3.jpg"]
    assert [r["image"] for r in found] == [(lvis.images / r["file_name"]).read_bytes() for r in found]
    assert [r["negative_classes"] for r in found] == [[], [1, 3], []]
    assert [r["partial_classes"] for r in found] == [[], [2], []]
    assert [r["classes"] for r in found] == [[2], [2], [2]] and [r["crowd"] for r in found] == [[False]] * 3
    assert [r["boxes"] for r in found] == [[[10, 5, 30, 25]]] * 3


def test_file_name_serves_where_there_is_no_url(lvis: TinyLvis) -> None:  # exports of other tools
    for image in lvis.content["images"]:
        image["file_name"] = "/".join(image.pop("coco_url").split("/")[-2:])
    dataset = lvis.read(strict=True)
    assert all(dataset.reader.read(entry, dataset.quarantine) for entry in dataset.entries)


@pytest.mark.parametrize("frequency", [None, "common", "", 1, ["r"]])
def test_category_without_frequency(lvis: TinyLvis, frequency: Any) -> None:
    lvis.content["categories"][1]["frequency"] = frequency
    with pytest.raises(DataError, match=r"'zebra' has the frequency .* LVIS gives as r, c or f; shard it as COCO if"):
        lvis.read()


@pytest.mark.parametrize(
    ("changes", "reason", "got"),
    [
        (
            {"neg_category_ids": [9, 4]},
            "neg_category_ids names categories that the file does not declare",
            "[4]",
        ),
        (
            {"not_exhaustive_category_ids": [0]},
            "not_exhaustive_category_ids names categories that the file does not declare",
            "[0]",
        ),
        ({"neg_category_ids": [True]}, "neg_category_ids is not a list of category ids", "[True]"),
        ({"neg_category_ids": [[9]]}, "neg_category_ids is not a list of category ids", "[[9]]"),
        ({"neg_category_ids": None}, "neg_category_ids is not a list of category ids", "None"),
        ({"coco_url": None}, "image has no file_name", "'coco_url': None"),
        ({"coco_url": "http://[/a/b.jpg"}, "image has no file_name", "http://["),
        ({"coco_url": "http://images.cocodataset.org"}, "image has no file_name", "cocodataset"),
        ({"coco_url": "http://x/../2.jpg"}, "file_name leaves the picture directory", "../2.jpg"),
        ({"coco_url": "http://x/%2e%2e/2.jpg"}, "file_name leaves the picture directory", "../2.jpg"),
        ({"coco_url": "http://x/2.jpg"}, "picture is missing", "2.jpg"),
    ],
)
def test_bad_image(lvis: TinyLvis, changes: dict[str, Any], reason: str, got: str) -> None:
    (lvis.images.parent / "2.jpg").write_bytes((lvis.images / "val2017/2.jpg").read_bytes())
    lvis.content["images"][1] |= changes
    dataset = lvis.read()
    read = [dataset.reader.read(entry, dataset.quarantine) for entry in dataset.entries]
    assert [sample.record["sample_id"] for sample in read if sample is not None] == [1, 3]
    bad = dataset.quarantine.samples[0]
    assert (bad.kind, bad.sample_id, bad.reason) == ("image", 2, reason) and got in bad.got
