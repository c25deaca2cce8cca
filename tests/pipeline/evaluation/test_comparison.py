"""A difference of two systems: found where it is planted, not where it is chance, and zero where there is none."""

from typing import Any

import numpy as np
import pytest
from official import official
from test_bootstrap import crowded, repeated
from test_coco_ap import random_data

from pipeline.errors import UserError
from pipeline.evaluation.coco_ap import evaluate_coco
from pipeline.evaluation.coco_results import NO_RESULT, check_results
from pipeline.evaluation.coco_truth import check_truth
from pipeline.evaluation.comparison import Difference, _marked, compare_results, image_aps
from pipeline.evaluation.matches import find_matches

Json = dict[str, Any]


def street(seed: int, images: int = 30) -> Json:
    """Two classes of boxes."""
    rng = np.random.default_rng(seed)
    annotations = [
        {"id": 1, "image_id": image, "category_id": int(rng.integers(1, 3)), "area": float(w * h), "iscrowd": 0}
        | {"bbox": [float(v) for v in (*rng.uniform(0, 300, 2), w, h)]}
        for image in range(1, images + 1)
        for w, h in rng.uniform(20, 120, (int(rng.integers(1, 5)), 2))
    ]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 500, "width": 500} for i in range(1, images + 1)],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }


def detect(truth: Json, seed: int, noise: float, spoiled: tuple[int, ...] = (1, 2)) -> list[Json]:
    """Every object, moved by a share of its size; other classes than the spoiled ones are found more exactly."""
    rng = np.random.default_rng(seed)
    results = []
    for a in truth["annotations"]:
        x, y, w, h = a["bbox"]
        own = noise if a["category_id"] in spoiled else 0.02
        dx, dy, dw, dh = rng.normal(0, own, 4)
        box = [x + dx * w, y + dy * h, w * float(np.exp(dw)), h * float(np.exp(dh))]
        results.append({"image_id": a["image_id"], "category_id": a["category_id"], "bbox": box})
        results[-1]["score"] = float(rng.random())
    return results


def test_a_system_does_not_differ_from_itself() -> None:
    truth, results = random_data(1)
    for task in ("box", "mask"):
        found = compare_results(truth, results, results, task, resamples=50)  # type: ignore[arg-type]
        numbers = [*found.stats.values(), *found.per_class.values()]
        defined = [one for one in numbers if not np.isnan(one.p)]
        assert len(defined) >= 7
        for one in defined:
            assert (one.difference, one.low, one.high, one.p, one.better, one.holds) == (0, 0, 0, 1, 0.5, False)
        assert found.per_image == ()
        ap = evaluate_coco(truth, results, task)  # type: ignore[arg-type]
        assert found.stats["AP"].a == pytest.approx(ap.stats["AP"], abs=1e-12)
        assert [one.b for one in found.per_class.values()] == pytest.approx([*ap.per_class.values()], nan_ok=True)


def test_a_planted_improvement_is_found_in_its_class_alone() -> None:
    truth = street(0)
    a, b = detect(truth, 1, 0.12), detect(truth, 2, 0.12, spoiled=(2,))
    found = compare_results(truth, a, b, "box", resamples=400)
    best = found.stats["AP"]
    assert best.difference > 0.1 and best.low > 0 and best.p == found.least_p and best.better == 1 and best.holds
    assert found.per_class["car"].holds and not found.per_class["dog"].holds
    back = compare_results(truth, b, a, "box", resamples=400)
    assert back.stats["AP"].difference == -best.difference and back.stats["AP"].better == 0
    assert (back.stats["AP"].low, back.stats["AP"].high) == pytest.approx((-best.high, -best.low))
    assert back.stats["AP"].p == best.p
    gaps = [abs(image.b - image.a) for image in found.per_image]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] > 0 and found.per_image[0].file_name is not None


def test_chance_is_called_a_difference_no_more_often_than_it_says() -> None:
    """80 pairs of equal systems: about 5 % below 5 %, and p-values in every half."""
    values = []
    for seed in range(80):
        truth = street(seed)
        a, b = detect(truth, 1000 + seed, 0.1), detect(truth, 2000 + seed, 0.1)
        values.append(compare_results(truth, a, b, "box", resamples=100, seed=seed).stats["AP"].p)
    rejected = sum(p <= 0.05 for p in values)
    assert rejected <= 10  # 80 draws of 5 %: 11 or more in 0.3 % of the cases
    assert 25 <= sum(p <= 0.5 for p in values) <= 55


@pytest.mark.parametrize("seed", range(3))
def test_ap_of_one_image_is_that_of_a_data_set_of_it_alone(seed: int) -> None:
    truth, results = crowded(seed) if seed else random_data(seed)
    checked = check_truth(truth, "box")
    found = image_aps(find_matches(checked, check_results(results, checked)[0]), len(truth["images"]))
    for image in range(len(truth["images"])):
        alone, own = repeated(truth, results, np.eye(len(truth["images"]), dtype=int)[image])
        expected = official(alone, own, "bbox")[0][0] if own else 0.0
        if np.isnan(found[image]):
            assert expected == -1 or not own
        else:
            assert found[image] == pytest.approx(expected, abs=1e-12)


def test_many_classes_are_held_to_more() -> None:
    """Benjamini and Hochberg's own example (1995, 3.2): of 15 p-values the first four are left at 5 %."""
    values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.324, 0.4262, 0.5719, 0.6528]
    values += [0.759, 1.0, np.nan]
    marked = _marked([Difference(0, 1, 0, 1, p, 1, True) for p in reversed(values)])
    assert [one.p for one in marked if one.holds] == [0.0095, 0.0019, 0.0004, 0.0001]
    assert _marked([]) == []


def test_errors_and_warnings_say_whose_they_are() -> None:
    truth, results = random_data(0)
    with pytest.raises(UserError, match=r"^B: of 1 results 1 have no finite score"):
        compare_results(truth, results, [{**results[0], "score": float("nan")}], "box")
    with pytest.raises(UserError, match=r"^A: of 1 results 1 have an image_id"):
        compare_results(truth, [{**results[0], "image_id": 999}], results, "box")
    with pytest.raises(UserError, match="recall alone"):
        compare_results(truth, results, results, "proposal")
    found = compare_results(truth, results[:1], results, "box", resamples=10)
    assert NO_RESULT in {warned.what for warned in found.warnings[0]}
