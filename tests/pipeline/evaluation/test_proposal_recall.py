"""AR@100/300/1000 of proposals, bit-equal to pycocotools without classes."""

import math
from typing import Any, get_args

import numpy as np
import pytest
from official import official

from pipeline.config import Engine
from pipeline.evaluation.coco_ap import evaluate_coco

ENGINES = get_args(Engine)
LIMITS = (100, 300, 1000)


def proposed(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of three classes, some of equal boxes, some crowds; up to 1,300 proposals an image, with ties."""
    rng = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": i, "height": 500, "width": 600} for i in (9, 4, 6, 2)],
        "categories": [{"id": c, "name": f"class {c}"} for c in (7, 3, 5)],
        "annotations": [],
    }
    results = []
    for image, count in ((9, 1300), (4, 350), (6, 0), (2, 40)):
        boxes = []
        for _ in range(25):
            w, h = np.exp(rng.uniform(1.5, 5.5, 2))
            boxes.append([float(rng.uniform(0, 600 - w)), float(rng.uniform(0, 500 - h)), float(w), float(h)])
        boxes += boxes[:3]  # the same box in another class
        for box in boxes:
            annotation = {"image_id": image, "category_id": int(rng.choice([7, 3, 5])), "bbox": box}
            crowd = int(rng.random() < 0.1)
            truth["annotations"].append(annotation | {"area": box[2] * box[3] * 0.7, "iscrowd": crowd})
        for _ in range(count):
            box = np.array(boxes[int(rng.integers(len(boxes)))])
            moved = box + rng.normal(0, 0.15, 4) * [box[2], box[3], box[2], box[3]]
            result = {"image_id": image, "category_id": 7, "bbox": [*moved[:2].tolist(), *abs(moved[2:]).tolist()]}
            results.append(result | {"score": round(float(rng.random()), 2)})
    return truth, results


@pytest.mark.parametrize("seed", range(2))
def test_both_engines_are_bit_equal_to_pycocotools_without_classes(seed: int) -> None:
    truth, results = proposed(seed)
    _, _, recall = official(truth, results, "bbox", limits=LIMITS, classes=False)
    for engine in ENGINES:
        found = evaluate_coco(truth, results, "proposal", engine)
        assert np.array_equal(found.recall, recall)
        means = [recall[:, 0, 0, m].mean() for m in range(3)] + [recall[:, 0, a, 2].mean() for a in (1, 2, 3)]
        assert list(found.stats) == ["AR_100", "AR_300", "AR_1000", "AR_small", "AR_medium", "AR_large"]
        assert list(found.stats.values()) == means
        assert found.stats["AR_100"] < found.stats["AR_300"] < found.stats["AR_1000"] < 1
        assert found.precision is None and found.per_class == {}  # it is no AP
        assert list(found.instances) == ["object"]
        (beyond,) = [w for w in found.warnings if "beyond the best 1000" in w.what]
        assert beyond.count == 300
        with pytest.raises(ValueError, match="has no precision"):
            found.precision_curve(0.5)


def test_classes_of_proposals_do_not_matter_but_those_of_objects_may_be_chosen() -> None:
    truth, results = proposed(5)
    expected = evaluate_coco(truth, results, "proposal")
    nameless = [{k: v for k, v in r.items() if k != "category_id"} for r in results]
    assert evaluate_coco(truth, nameless, "proposal").stats == expected.stats
    some = evaluate_coco(truth, results, "proposal", categories=["class 5"])
    only = [a for a in truth["annotations"] if a["category_id"] == 5]
    assert some.stats == evaluate_coco({**truth, "annotations": only}, results, "proposal").stats != expected.stats


def test_nothing_proposed_and_nothing_to_find() -> None:
    truth, results = proposed(1)
    assert set(evaluate_coco(truth, [], "proposal").stats.values()) == {0.0}
    assert all(math.isnan(v) for v in evaluate_coco({**truth, "annotations": []}, results, "proposal").stats.values())
