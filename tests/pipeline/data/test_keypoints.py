"""COCO keypoints: in the file itself, or brought from a second one."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_coco import TinyCoco

from pipeline.data.coco import read_coco
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.records import Record
from pipeline.data.source import Dataset

NAMES = ["nose", "left_eye", "right_eye"]
POINTS = [12, 7, 2, 11.5, 6, 1, 0, 0, 0]


def records(dataset: Dataset) -> list[Record]:
    return [s.record for e in dataset.entries if (s := dataset.reader.read(e, dataset.quarantine)) is not None]


def named(tiny: TinyCoco, names: Any = NAMES, skeleton: Any = None, category: int = 0) -> None:
    tiny.content["categories"][category] |= {"keypoints": names, "skeleton": skeleton}


def test_keypoints_in_the_file(tiny: TinyCoco) -> None:
    named(tiny, skeleton=[[1, 2], [3, 1]])
    tiny.content["annotations"][0]["keypoints"] = POINTS
    tiny.content["annotations"][1]["keypoints"] = []
    tiny.content["annotations"].append(tiny.square(31, 3, keypoints=[0] * 9, iscrowd=1))
    dataset = tiny.read(strict=True)
    assert dataset.keypoints is not None
    assert dataset.keypoints.names == tuple(NAMES)
    assert dataset.keypoints.flip == (0, 2, 1)
    assert dataset.keypoints.skeleton == ((0, 1), (2, 0))
    assert [record["keypoints"] for record in records(dataset)] == [[POINTS], [[]], [[], [0] * 9]]


def test_keypoints_without_a_category_that_names_them_are_not_read(tiny: TinyCoco) -> None:
    tiny.content["annotations"][0]["keypoints"] = [float("nan")]
    dataset = tiny.read(strict=True)
    assert dataset.keypoints is None
    assert [record["keypoints"] for record in records(dataset)] == [[[]], [[]], [[]]]


def test_a_labelled_keypoint_may_lie_outside(tiny: TinyCoco) -> None:
    named(tiny)
    tiny.content["annotations"][0]["keypoints"] = [-3, 7, 2, 60, 40, 1, 5, 5, 0]
    assert records(tiny.read(strict=True))[0]["keypoints"] == [[-3, 7, 2, 60, 40, 1, 5, 5, 0]]


@pytest.mark.parametrize(
    ("points", "reason", "got"),
    [
        (POINTS[:8], "keypoints are not 3 x 3 numbers (x, y, visibility)", "8 numbers"),
        (POINTS + POINTS, "keypoints are not 3 x 3 numbers (x, y, visibility)", "18 numbers"),
        ("nose", "keypoints are not 3 x 3 numbers (x, y, visibility)", "nose"),
        ([float("nan"), *POINTS[1:]], "keypoints are not finite numbers", "[nan, 7"),
        ([float("inf"), *POINTS[1:]], "keypoints are not finite numbers", "[inf, 7"),
        (["12", *POINTS[1:]], "keypoints are not finite numbers", "['12', 7"),
        ([*POINTS[:8], True], "keypoints are not finite numbers", "True]"),
        ([*POINTS[:8], 3], "a keypoint's visibility is none of 0, 1 and 2", "[2, 1, 3]"),
        ([*POINTS[:8], 0.5], "a keypoint's visibility is none of 0, 1 and 2", "[2, 1, 0.5]"),
    ],
)
def test_bad_keypoints(tiny: TinyCoco, points: Any, reason: str, got: str) -> None:
    named(tiny)
    tiny.content["annotations"].append(tiny.square(77, 2, keypoints=points))
    dataset = tiny.read()
    assert [record["annotation_ids"] for record in records(dataset)] == [[10], [20], [30]]
    (bad,) = dataset.quarantine.samples
    assert (bad.kind, bad.sample_id, bad.annotation_id, bad.reason) == ("annotation", 2, 77, reason)
    assert got in bad.got


@pytest.mark.parametrize(
    ("names", "flip"),
    [
        (["left_eye", "right_eye"], (1, 0)),
        (["rightEye", "leftEye", "EyeLeft", "EyeRight"], (1, 0, 3, 2)),
        (["LEFT KNEE", "RIGHT KNEE", "neck"], (1, 0, 2)),
        (["L_Eye", "R_Eye", "L_F_Elbow", "R_F_Elbow", "Throat"], (1, 0, 3, 2, 4)),  # AP-10K
        (["ear.l", "ear.r", "eye-R", "eye-L"], (1, 0, 3, 2)),
        (["left_hand_l", "right_hand_r"], (1, 0)),
        (["bright_spot", "upright", "leftmost", "URL_corner", "r", "l", "barrel"], tuple(range(7))),
    ],
)
def test_flip_swaps_sides(tiny: TinyCoco, names: list[str], flip: tuple[int, ...]) -> None:
    named(tiny, names)
    found = tiny.read().keypoints
    assert found is not None and found.flip == flip
    assert [flip[j] for j in flip] == list(range(len(names)))


@pytest.mark.parametrize(
    ("names", "skeleton", "message"),
    [
        (["left_eye", "nose"], [], "keypoint 'left_eye' has no 'right_eye' beside it.*; name both sides, or rename"),
        (["nose", "nose"], [], "names occur twice: nose; give each keypoint its own name"),
        ("nose", [], "'keypoints' must be a list of names, got 'nose'"),
        (["nose", 3], [], "'keypoints' must be a list of names"),
        (NAMES, [[0, 1]], r"pairs of keypoints \(1..3\), got \[0, 1\]; mend it, or remove the skeleton"),
        (NAMES, [[1, 4]], r"pairs of keypoints \(1..3\), got \[1, 4\]"),
        (NAMES, [[1, 2, 3]], r"pairs of keypoints \(1..3\), got \[1, 2, 3\]"),
        (NAMES, "12", r"pairs of keypoints \(1..3\), got '12'"),
    ],
)
def test_bad_names(tiny: TinyCoco, names: Any, skeleton: Any, message: str) -> None:
    named(tiny, names, skeleton)
    with pytest.raises(DataError, match=message):
        tiny.read()


@pytest.mark.parametrize("sigmas", [[0.1, 0.1], [0.1, 0.1, 0], [0.1, 0.1, True], 0.1, ["a", 1, 1]])
def test_sigmas_of_the_data(tiny: TinyCoco, sigmas: Any) -> None:
    named(tiny)
    tiny.content["categories"][0]["sigmas"] = [0.1, 0.05, 1]
    found = tiny.read().keypoints
    assert found is not None and found.sigmas == (0.1, 0.05, 1.0)
    tiny.content["categories"][0]["sigmas"] = sigmas
    with pytest.raises(DataError, match=r"'sigmas' must be 3 numbers above 0, one a keypoint, got .*score with COCO's"):
        tiny.read()


def test_categories_may_share_keypoints_but_not_differ(tiny: TinyCoco) -> None:
    named(tiny)
    named(tiny, category=1)
    assert tiny.read().keypoints is not None
    named(tiny, ["tail"], category=1)
    with pytest.raises(
        DataError, match=r"categories dog, cat have different keypoints; .* keep the categories that share"
    ):
        tiny.read()


def merged(tiny: TinyCoco, annotations: list[Any], strict: bool = False) -> Dataset:
    """Instances without keypoints, and these annotations of a second file."""
    second = json.loads(json.dumps(tiny.content))
    second["categories"] = [{**second["categories"][0], "keypoints": NAMES, "skeleton": []}]
    second["annotations"] = annotations
    path = tiny.json.with_name("person_keypoints.json")
    path.write_text(json.dumps(second))
    tiny.json.write_text(json.dumps(tiny.content))
    return read_coco(tiny.json, tiny.images, Quarantine(strict), keypoints=path)


def test_keypoints_of_a_second_file(tiny: TinyCoco) -> None:
    dataset = merged(tiny, [tiny.square(20, 2, keypoints=POINTS), tiny.square(30, 3)], strict=True)
    assert dataset.class_names == ("dog", "cat")
    assert dataset.keypoints is not None and dataset.keypoints.names == tuple(NAMES)
    assert [record["keypoints"] for record in records(dataset)] == [[[]], [POINTS], [[]]]
    assert dataset.source["keypoints"] == "person_keypoints.json"


@pytest.mark.parametrize(
    ("changes", "reason", "got"),
    [
        ({"id": 99}, "keypoints of an annotation that the instances file does not have, or that was set aside", "99"),
        (
            {"image_id": 3},
            "keypoints are of another image than the annotation of that id",
            "image_id 3, in the instances file 2",
        ),
        (
            {"category_id": 3},
            "keypoints are of another category than the annotation of that id",
            "category_id 3, in the instances file 7",
        ),
        ({"image_id": [1]}, "keypoints are of another image than the annotation of that id", "image_id [1], in"),
        ({"id": "x"}, "keypoints without an annotation id of their own (the first one is kept)", "'id': 'x'"),
        ({"id": 10}, "keypoints without an annotation id of their own (the first one is kept)", "'id': 10"),
    ],
)
def test_keypoints_that_fit_nothing(tiny: TinyCoco, changes: dict[str, Any], reason: str, got: str) -> None:
    lines = [tiny.square(10, 1, keypoints=POINTS), {**tiny.square(20, 2, keypoints=POINTS), **changes}]
    dataset = merged(tiny, lines)
    assert [record["keypoints"] for record in records(dataset)] == [[POINTS], [[]], [[]]]
    (bad,) = dataset.quarantine.samples
    assert (bad.kind, bad.reason) == ("annotation", reason) and got in bad.got
    with pytest.raises(DataError, match="Mend the source"):
        merged(tiny, lines, strict=True)


def test_a_second_file_without_keypoints_is_refused(tiny: TinyCoco) -> None:
    tiny.json.write_text(json.dumps(tiny.content))
    with pytest.raises(DataError, match=r"no category names 'keypoints'; give the path of a person_keypoints_\*.json"):
        read_coco(tiny.json, tiny.images, Quarantine(), keypoints=tiny.json)


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_keypoints(coco_small: Path, split: str) -> None:
    instances = coco_small / f"annotations/instances_{split}2017.json"
    persons = coco_small / f"annotations/person_keypoints_{split}2017.json"
    pictures = coco_small / f"{split}2017"
    content = json.loads(persons.read_bytes())
    expected = {annotation["id"]: annotation["keypoints"] for annotation in content["annotations"]}
    both = read_coco(instances, pictures, Quarantine(strict=True), keypoints=persons)
    alone = read_coco(persons, pictures, Quarantine(strict=True))
    assert len(both.class_names) == 80 and alone.class_names == ("person",)
    assert both.keypoints == alone.keypoints and both.keypoints is not None
    assert both.keypoints.names == tuple(content["categories"][0]["keypoints"])
    assert both.keypoints.flip == (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)  # detectron2's
    assert both.keypoints.skeleton[0] == (15, 13)  # left ankle, left knee
    for dataset in (both, alone):
        found = {}
        for record in records(dataset):
            for number, points in zip(record["annotation_ids"], record["keypoints"], strict=True):
                if points:
                    found[number] = points
        assert found == expected
    listed = sum(len(entry.annotations) for entry in both.entries)
    assert listed == len(json.loads(instances.read_bytes())["annotations"])
