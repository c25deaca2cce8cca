"""AP of resamples, against pycocotools on data sets that really hold images several times."""

from typing import Any

import numpy as np
import pytest
from official import official
from test_coco_ap import random_data
from test_keypoint_ap import posed
from test_lvis_ap import federated

from pipeline.errors import UserError
from pipeline.evaluation.bootstrap import Sampled, check_bootstrap, draw, interval, resample
from pipeline.evaluation.coco_ap import evaluate_coco
from pipeline.evaluation.coco_results import check_results
from pipeline.evaluation.coco_truth import check_truth
from pipeline.evaluation.matches import find_matches
from pipeline.evaluation.protocols import CITYSCAPES, PROTOCOLS

Json = dict[str, Any]
IOU_TYPES = {"box": "bbox", "mask": "segm", "keypoint": "keypoints"}


def sampled(truth: Json, results: list[Json], task: Any, weights: Any, style: Any = "coco") -> Sampled:
    checked = check_truth(truth, task, style)
    found, _ = check_results(results, checked)
    matches = find_matches(checked, found)
    return resample(matches, checked.protocol, checked.frequencies, len(checked.category_ids), weights)


def repeated(truth: Json, results: list[Json], weights: Any) -> tuple[Json, list[Json]]:
    """Each image as often as its weight says, under ids of its own; copies follow each other."""
    images, annotations, copies = [], [], []
    for image, weight in zip(sorted(truth["images"], key=lambda i: i["id"]), weights, strict=True):
        for _ in range(weight):
            number = len(images) + 1
            images.append({**image, "id": number})
            annotations += [{**a, "image_id": number} for a in truth["annotations"] if a["image_id"] == image["id"]]
            copies += [{**r, "image_id": number} for r in results if r["image_id"] == image["id"]]
    return {**truth, "images": images, "annotations": annotations}, copies


def crowded(seed: int) -> tuple[Json, list[Json]]:
    """More than 100 detections of one image and class, scores of many ties, one image of crowds alone."""
    truth, results = random_data(seed, images=6, crowd=0.3)
    rng = np.random.default_rng(seed)
    for _ in range(130):
        box = [float(v) for v in rng.uniform(1, 90, 4)]
        results.append({**results[0], "bbox": box, "score": round(float(rng.random()), 1)})
    for annotation in truth["annotations"]:
        annotation["iscrowd"] |= int(annotation["image_id"] == 5)
    return truth, results


def scenes(task: str, seed: int) -> tuple[Json, list[Json]]:
    if task == "keypoint":
        return posed(seed)
    return crowded(seed) if seed % 2 else random_data(seed)


@pytest.mark.parametrize("task", ["box", "mask", "keypoint"])
@pytest.mark.parametrize("seed", range(4))
def test_a_resample_is_the_data_set_with_its_images_repeated(task: str, seed: int) -> None:
    truth, results = scenes(task, seed)
    weights = draw(len(truth["images"]), 3, seed)
    weights[:, 0] = 1
    weights[:-1, 2] = 0  # one image, again and again
    weights[-1, 2] = len(weights)
    found = sampled(truth, results, task, weights)
    for column in range(weights.shape[1]):
        stats, precision, _ = official(*repeated(truth, results, weights[:, column]), IOU_TYPES[task])
        names = [stat.name for stat in PROTOCOLS["coco"][task].stats]  # type: ignore[index]
        for name, values in found.stats.items():
            assert np.nan_to_num(values[column], nan=-1) == pytest.approx(stats[names.index(name)], abs=1e-12)
        for category in range(precision.shape[2]):
            for area in range(precision.shape[3]):
                expected = precision[:, :, category, area, -1].mean()
                own = found.per_area[column, category, area]
                assert np.nan_to_num(own, nan=-1) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_lvis(seed: int) -> None:
    """Against the engine, which knows LVIS's rules; pycocotools does not."""
    truth, results = federated(seed)
    results = [r for r in results if r["image_id"] != 3][:300]
    weights = draw(len(truth["images"]), 4, seed)
    weights[:, 0] = 1
    found = sampled(truth, results, "box", weights, "lvis")
    for column in range(4):
        ap = evaluate_coco(*repeated(truth, results, weights[:, column]), "box", style="lvis")
        for name, values in found.stats.items():
            np.testing.assert_allclose(values[column], ap.stats[name], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.per_class[column], [*ap.per_class.values()], rtol=0, atol=1e-12)


def test_awkward_data() -> None:
    truth, results = random_data(0)
    ones = np.ones((len(truth["images"]), 1), np.int32)
    assert sampled(truth, [], "box", ones).stats["AP"] == [0]
    assert np.isnan(sampled({**truth, "annotations": []}, results, "box", ones).stats["AP"]).all()
    assert np.isnan(sampled(truth, results, "box", 0 * ones).stats["AP"]).all()
    perfect = [{**a, "score": 0.5} for a in truth["annotations"] if not a["iscrowd"]]
    assert sampled(truth, perfect, "box", ones).stats["AP"] == pytest.approx(1)


def test_blocks_and_tiles_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, results = random_data(2)
    weights = draw(len(truth["images"]), 70, 1)
    whole = sampled(truth, results, "box", weights)
    monkeypatch.setattr("pipeline.evaluation.bootstrap._CELLS", 1)  # 32 resamples at once
    monkeypatch.setattr("pipeline.evaluation.bootstrap._TILE", 70)  # two rows
    parts = sampled(truth, results, "box", weights)
    np.testing.assert_allclose(parts.per_area, whole.per_area, rtol=0, atol=1e-13)


def test_draws_are_of_as_many_images_and_of_the_seed() -> None:
    weights = draw(50, 200, 3)
    assert (weights.sum(axis=0) == 50).all() and weights.min() == 0
    assert np.array_equal(weights, draw(50, 200, 3)) and not np.array_equal(weights, draw(50, 200, 4))
    assert abs(weights.mean(axis=1) - 1).max() < 0.35


def test_an_interval_is_the_middle_95_percent() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
    assert interval(np.array([1.0, np.nan, 1.0])) == (1, 1)
    assert np.isnan(interval(np.array([np.nan]))).all()


@pytest.mark.parametrize(
    ("protocol", "words"), [(PROTOCOLS["coco"]["proposal"], "recall alone"), (CITYSCAPES, "Cityscapes")]
)
def test_what_has_no_ap_of_cocos_is_refused(protocol: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_bootstrap(protocol)
    check_bootstrap(PROTOCOLS["lvis"]["mask"])
