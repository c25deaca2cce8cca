import copy
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_coco import jpeg
from tiny_records import blob, box_of, record

from pipeline.data import rle
from pipeline.data.records import Record
from pipeline.data.row_check import BOX_TOLERANCE_PX, check_row


def whats(made: Record, classes: int = 3, keypoints: int | None = None) -> list[str]:
    return [finding.what for finding in check_row(made, classes, keypoints).faults]


def two() -> Record:
    return record(7, 50, 70, [blob(50, 70, 5, 6, 20, 30), blob(50, 70, 30, 40, 20, 30)])


@pytest.mark.parametrize(
    "masks",
    [
        [],
        [blob(40, 60, 0, 0, 40, 60)],
        [blob(40, 60, 39, 59, 1, 1)],
        [np.ones((40, 60), np.uint8), blob(40, 60, 0, 10, 1, 50), blob(40, 60, 0, 59, 40, 1)],
    ],
)
def test_right_rows_pass(masks: list[np.ndarray]) -> None:
    made = record(1, 40, 60, masks)
    assert check_row(made, 3, None) == ([], [], False)
    made["crowd"] = [True] * len(masks)
    assert check_row(made, 3, None) == ([], [], False)


def test_300_objects_and_a_grey_picture() -> None:
    rng = np.random.default_rng(0)
    masks = [blob(90, 80, *rng.integers(0, 60, 2), *rng.integers(1, 20, 2)) for _ in range(300)]
    made = record(1, 90, 80, masks, image=jpeg(90, 80, "L"))
    made["classes"] = [1] * 300
    assert check_row(made, 1, None) == ([], [], True)
    made["crops"][299] = made["crops"][298]
    (fault,) = check_row(made, 1, None).faults
    assert fault.what == "crop is not that of the RLE in its box" and fault.got.startswith("annotation 399: ")


def spoilt(name: str, value: Any, position: int | None = 1) -> Record:
    made = copy.deepcopy(two())
    if position is None:
        made[name] = value  # type: ignore[literal-required]
    else:
        made[name][position] = value  # type: ignore[literal-required]
    return made


PICTURE = two()["image"]


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("classes", 0, "class is not in 1..K"),
        ("classes", 4, "class is not in 1..K"),
        ("areas", float("nan"), "area is not a number of pixels"),
        ("areas", -1.0, "area is not a number of pixels"),
        ("boxes", [40, 30, 70.01, 50], "box leaves the picture"),
        ("boxes", [-0.01, 30, 70, 50], "box leaves the picture"),
        ("boxes", [40, 30, 40, 50], "box is degenerate"),
        ("boxes", [40, 50, 70, 30], "box is degenerate"),
        ("boxes", [40, float("inf"), 70, 50], "box is not four finite numbers"),
        ("boxes", [40, 30, 69, 50], "crop is not that of the RLE in its box"),
        ("rles", rle.from_mask(blob(50, 69, 30, 40, 20, 29)), "RLE is not valid"),
        ("rles", b"", "RLE is not valid"),
        ("rles", b"\x00\x01", "RLE is not valid"),
        ("rles", rle.from_mask(np.zeros((50, 70), np.uint8)), "mask is empty"),
        ("rles", rle.from_mask(blob(50, 70, 30, 40, 20, 29)), "crop is not that of the RLE in its box"),
        ("crops", bytes(112 * 112 // 8), "crop is not that of the RLE in its box"),
        ("crops", b"", "crop is not that of the RLE in its box"),
        ("keypoints", [1.0, 2.0, 2.0], "keypoints in a data set that declares none"),
    ],
)
def test_one_wrong_object_is_named(name: str, value: Any, what: str) -> None:
    faults = check_row(spoilt(name, value), 3, None).faults
    assert [fault.what for fault in faults] == [what]
    assert faults[0].got.startswith("annotation 701: ")


@pytest.mark.parametrize(
    ("name", "value", "whole"),
    [
        ("height", 0, ["the row's size is not positive", "the picture's size is not the row's"]),
        ("height", 51, ["the picture's size is not the row's", "RLE is not valid", "RLE is not valid"]),
        ("file_name", "", ["the row has no file name"]),
        ("image", PICTURE[: len(PICTURE) // 2], ["the picture does not decode"]),
        ("image", b"", ["the picture does not decode"]),
        ("areas", [1.0], ["the row's lists differ in length"]),
        ("keypoints", [], ["the row's lists differ in length"]),
        ("negative_classes", [0], ["negative or partial classes are not in 1..K"]),
        ("partial_classes", [1, 4], ["negative or partial classes are not in 1..K"]),
        ("semantic", b"label ids", ["the label picture does not decode"]),
        ("semantic", PICTURE, ["the label picture is not the picture's size in grey"]),
    ],
)
def test_a_wrong_row_is_named(name: str, value: Any, whole: list[str]) -> None:
    assert whats(spoilt(name, value, None)) == whole


@pytest.mark.parametrize(
    ("points", "what"),
    [
        ([1.0, 2.0, 2.0, 0.0, 0.0, 0.0], None),
        ([], None),
        ([1.0, 2.0, 2.0], "keypoints are not 3 numbers each"),
        ([1.0, 2.0, 3.0, 0.0, 0.0, 0.0], "a keypoint's visibility is not 0, 1 or 2"),
        ([1.0, 2.0, 0.5, 0.0, 0.0, 0.0], "a keypoint's visibility is not 0, 1 or 2"),
        ([float("nan"), 2.0, 1.0, 0.0, 0.0, 0.0], "a keypoint's place is not a finite number"),
    ],
)
def test_keypoints(points: list[float], what: str | None) -> None:
    assert whats(spoilt("keypoints", points), keypoints=2) == ([] if what is None else [what])


def test_federated_classes_and_label_ids(tmp_path: Any) -> None:
    Image.fromarray(np.full((50, 70), 24, np.uint8)).save(tmp_path / "ids.png")
    made = spoilt("semantic", (tmp_path / "ids.png").read_bytes(), None)
    made["negative_classes"], made["partial_classes"] = [3], [1]
    assert check_row(made, 3, None) == ([], [], False)
    made["negative_classes"] = [3, 2]
    (note,) = check_row(made, 3, None).notes
    assert note == ("a class is annotated and said to be absent", "class 2")


def test_a_box_far_from_its_mask_is_noted_only() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        mask = (rng.random((30, 40)) < 0.02).astype(np.uint8)
        mask[15, 20] = 1
        box = np.clip(np.array(box_of(mask)) + rng.uniform(-4, 4, 4), 0, [40, 30, 40, 30])
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        made = record(1, 30, 40, [mask])
        made["boxes"] = [box.tolist()]
        made["crops"] = [rle.crop(rle.parse_counts(made["rles"][0]), 30, 40, box.tolist())]
        checked = check_row(made, 1, None)
        assert not checked.faults
        assert bool(checked.notes) == (np.abs(box - box_of(mask)).max() > BOX_TOLERANCE_PX)
