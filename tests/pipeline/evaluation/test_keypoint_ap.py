"""Keypoint AP: both engines bit-equal to the official call, and to a case computed by hand."""

import copy
import json
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from official import official

from pipeline.config import Engine
from pipeline.errors import UserError
from pipeline.evaluation.coco_ap import CocoAp, evaluate_coco
from pipeline.evaluation.protocols import default_sigmas

ENGINES = get_args(Engine)
SMALL = Path(__file__).parents[3].parent / "shared/data/coco-small/annotations/person_keypoints_val2017.json"


def posed(seed: int, count: int = 17, images: int = 10) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ties, crowds, objects without a labelled keypoint, images without objects or without results."""
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": i, "height": 300, "width": 400} for i in range(1, images + 1)],
        "categories": [{"id": 4, "name": "animal"}, {"id": 1, "name": "person"}],
        "annotations": [],
    }
    results = []
    for image in range(1, images + 1):
        for _ in range(int(rng.integers(0, 6)) if image % 4 else 0):
            w, h = np.exp(rng.uniform(2.5, 5.2, 2))
            x, y = rng.uniform(0, 400 - w), rng.uniform(0, 300 - h)
            points = np.stack(
                [rng.uniform(x, x + w, count), rng.uniform(y, y + h, count), rng.integers(0, 3, count)], axis=1
            ).round()
            if rng.random() < 0.2:
                points[:, 2] = 0
            points[points[:, 2] == 0] = 0
            truth["annotations"].append(
                {
                    "image_id": image,
                    "category_id": int(rng.choice([1, 1, 4])),
                    "bbox": [float(x), float(y), float(w), float(h)],
                    "area": float(w * h * rng.uniform(0.3, 1)),
                    "iscrowd": int(rng.random() < 0.1),
                    "keypoints": points.reshape(-1).tolist(),
                    "num_keypoints": int((points[:, 2] > 0).sum()),
                }
            )
            for _ in range(int(rng.integers(0, 5))):
                found = points + rng.normal(0, 0.05, points.shape) * [w, h, 0]
                results.append(
                    {"image_id": image, "category_id": truth["annotations"][-1]["category_id"]} | keys(found)
                )
        for _ in range(int(rng.integers(0, 4)) if image != 5 else 0):
            results.append({"image_id": image, "category_id": 1} | keys(rng.uniform(0, 300, (count, 3))))
    for _ in range(30):  # more than 20 of one image and class
        results.append({"image_id": 2, "category_id": 1} | keys(rng.uniform(0, 300, (count, 3))))
    for result in results:
        result["score"] = round(float(rng.random()), 1)
    return truth, results


def keys(points: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"keypoints": points.reshape(-1).tolist(), "bbox": [0.0, 0.0, 1.0, 1.0]}  # a box must not matter


def stats(ap: CocoAp) -> np.ndarray[Any, Any]:
    return np.nan_to_num(np.array(list(ap.stats.values())), nan=-1.0)


def check_against_official(truth: dict[str, Any], results: list[dict[str, Any]], **options: Any) -> CocoAp:
    """Both engines' stats, precision and recall, bit for bit."""
    before = copy.deepcopy((truth, results))
    expected = official(truth, results, "keypoints", **options)
    for engine in ENGINES:
        ap = evaluate_coco(truth, results, "keypoint", engine)
        assert ap.precision is not None
        for ours, theirs in zip((stats(ap), ap.precision, ap.recall), expected, strict=True):
            assert np.array_equal(ours, theirs)
    assert (truth, results) == before
    return ap


@pytest.mark.parametrize("seed", range(4))
def test_engines_are_bit_equal_to_the_official_ten_numbers(seed: int) -> None:
    truth, results = posed(seed)
    ap = check_against_official(truth, results)
    assert list(ap.stats) == [
        *("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large")
    ]
    assert 0.02 < ap.stats["AP"] < 0.9
    assert list(ap.per_class) == ["person", "animal"] and ap.sigmas == default_sigmas(17)
    counted = [a for a in truth["annotations"] if a["num_keypoints"] and not a["iscrowd"]]
    assert ap.instances == {n: sum(a["category_id"] == c for a in counted) for c, n in ((1, "person"), (4, "animal"))}


def test_other_keypoints_have_uniform_or_declared_sigmas() -> None:
    truth, results = posed(7, count=5)
    ap = check_against_official(truth, results, sigmas=[0.067] * 5)
    assert ap.sigmas == (0.067,) * 5
    own = [0.02, 0.05, 0.1, 0.08, 0.03]
    truth["categories"][1]["sigmas"] = own
    declared = check_against_official(truth, results, sigmas=own)
    assert declared.sigmas == tuple(own) and declared.stats["AP"] != ap.stats["AP"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_case_computed_by_hand(engine: Engine) -> None:
    area, off = 10_000.0, 15.0
    truth = {
        "images": [{"id": 1, "height": 200, "width": 200}],
        "categories": [{"id": 1, "name": "stick"}, {"id": 2, "name": "stone"}],
        "annotations": [
            # Of three keypoints two are labelled; one is hit, the other is `off` pixels away.
            {"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "area": area}
            | {"keypoints": [10, 10, 2, 50, 50, 1, 0, 0, 0], "num_keypoints": 2},
            {"image_id": 1, "category_id": 2, "bbox": [0, 0, 100, 100], "area": area},  # has none, and is not missed
        ],
    }
    found = [{"image_id": 1, "category_id": 1, "score": 0.5, "keypoints": [10, 10, 9, 50, 50 + off, 9, 999, 999, 9]}]
    oks = (1 + math.exp(-(off**2) / (2 * area * (2 * 0.067) ** 2))) / 2
    assert 0.5 < oks < 0.95
    ap = evaluate_coco(truth, found, "keypoint", engine)
    assert ap.stats["AP"] == pytest.approx(np.mean([oks >= t for t in np.linspace(0.5, 0.95, 10)]))
    assert 0.5 < ap.stats["AP"] == pytest.approx(ap.stats["AR"]) == pytest.approx(ap.stats["AP_large"])
    assert math.isnan(ap.stats["AP_medium"]) and math.isnan(ap.per_class["stone"])
    assert ap.instances == {"stick": 1, "stone": 0}
    assert evaluate_coco(truth, [], "keypoint", engine).stats["AP"] == 0


def test_what_cannot_be_scored_is_refused() -> None:
    truth, results = posed(0)
    short = [{**results[0], "keypoints": results[0]["keypoints"][:-1]}, *results[1:]]
    with pytest.raises(
        UserError, match=r"1 have a malformed list of keypoints \(result 0: 17 keypoints are 51 numbers"
    ):
        evaluate_coco(truth, short, "keypoint")
    nan = [{**results[0], "keypoints": [math.nan, *results[0]["keypoints"][1:]]}]
    with pytest.raises(UserError, match="keypoints are finite numbers"):
        evaluate_coco(truth, nan, "keypoint")
    boxes = [{k: v for k, v in a.items() if "keypoints" not in k} for a in truth["annotations"]]
    with pytest.raises(UserError, match="needs annotations with keypoints, the ground truth has none"):
        evaluate_coco({**truth, "annotations": boxes}, results, "keypoint")
    mixed = [*truth["annotations"], {**truth["annotations"][0], "keypoints": [1, 1, 2]}]
    with pytest.raises(UserError, match=r"must have the same keypoints.* got 3, 51 numbers"):
        evaluate_coco({**truth, "annotations": mixed}, results, "keypoint")
    truth["categories"][0]["sigmas"] = [0.1] * 3
    with pytest.raises(UserError, match="17 keypoints need as many sigmas above 0"):
        evaluate_coco(truth, results, "keypoint")


@pytest.mark.skipif(not SMALL.exists(), reason="needs COCO's person_keypoints_val2017 of a few images")
def test_on_cocos_own_annotations() -> None:
    truth = json.loads(SMALL.read_text())
    rng = np.random.default_rng(0)
    results = []
    for annotation in truth["annotations"]:
        for _ in range(int(rng.integers(0, 4))):
            w, h = annotation["bbox"][2:]
            points = np.reshape(annotation["keypoints"], (-1, 3)) + rng.normal(0, 0.03, (17, 3)) * [w, h, 0]
            score = round(float(rng.random()), 2)
            results.append({"image_id": annotation["image_id"], "category_id": 1, "score": score} | keys(points))
    ap = check_against_official(truth, results)
    assert 0.2 < ap.stats["AP"] < 0.95
    assert sum(not a["num_keypoints"] for a in truth["annotations"]) > 20  # they are ignored
