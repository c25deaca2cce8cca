import copy
import math
from typing import Any, get_args

import numpy as np
import pytest
from official import official
from pycocotools import mask as coco_mask

from pipeline.config import Engine
from pipeline.evaluation import coco_ap, matches
from pipeline.evaluation.coco_ap import CocoAp, evaluate_coco
from pipeline.evaluation.protocols import STAT_NAMES

ENGINES = get_args(Engine)
HEIGHT, WIDTH = 200, 240
IOU_TYPES = {"box": "bbox", "mask": "segm"}


def rle(box: list[float], rng: np.random.Generator, height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
    image = np.zeros((height, width), dtype=np.uint8, order="F")
    x, y, w, h = (round(v) for v in box)
    part = image[y : y + h, x : x + w]
    part[:] = rng.random(part.shape) < 0.9
    code = coco_mask.encode(image)
    return {"size": [height, width], "counts": code["counts"].decode()}


def random_data(seed: int, images: int = 12, crowd: float = 0.15) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ties in the scores, crowds, images without objects, classes without objects, odd ids."""
    rng = np.random.default_rng(seed)
    categories = [{"id": c, "name": f"class {c}"} for c in (9, 3, 17, 1)]
    truth: dict[str, Any] = {
        "images": [{"id": 5 * i, "height": HEIGHT, "width": WIDTH} for i in range(images)],
        "categories": categories,
        "annotations": [],
    }
    results = []
    for i in range(0, images, 1):
        for _ in range(int(rng.integers(0, 9)) if i % 4 else 0):
            w, h = np.exp(rng.uniform(1, 5, 2)).tolist()
            x, y = rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h)
            box = [float(x), float(y), float(w), float(h)]
            category = int(rng.choice([9, 3, 17]))
            mask = rle(box, rng)
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]),
                    "image_id": 5 * i,
                    "category_id": category,
                    "bbox": box,
                    "area": float(coco_mask.area(mask)),
                    "iscrowd": int(rng.random() < crowd),
                    "segmentation": mask,
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                moved = (np.array(box) + rng.normal(0, 0.06, 4) * [w, h, w, h]).clip(0.5, None).tolist()
                results.append({"image_id": 5 * i, "category_id": category, "bbox": moved})
        for _ in range(int(rng.integers(0, 6))):
            box = [float(v) for v in rng.uniform(1, 90, 4)]
            results.append({"image_id": 5 * i, "category_id": int(rng.choice([9, 3, 17, 1])), "bbox": box})
    for result in results:
        result["score"] = round(float(rng.random()), 1)  # many ties
        result["segmentation"] = rle(result["bbox"], rng)
    return truth, results


def stats_array(ap: CocoAp) -> np.ndarray[Any, Any]:
    return np.nan_to_num(np.array(list(ap.stats.values())), nan=-1.0)


@pytest.mark.parametrize("task", ["box", "mask"])
@pytest.mark.parametrize("seed", range(4))
def test_engines_are_bit_equal(task: Any, seed: int) -> None:
    truth, results = random_data(seed)
    before = copy.deepcopy((truth, results))
    fast, slow, compiled = (evaluate_coco(truth, results, task, e) for e in ("columns", "pycocotools", "hotcoco"))
    assert np.array_equal(compiled.precision, fast.precision) and np.array_equal(compiled.recall, fast.recall)
    assert (truth, results) == before
    assert tuple(fast.stats) == STAT_NAMES
    assert np.array_equal(fast.precision, slow.precision)
    assert np.array_equal(fast.recall, slow.recall)
    assert np.array_equal(stats_array(fast), stats_array(slow))
    stats, precision, recall = official(truth, results, IOU_TYPES[task])
    assert np.array_equal(stats_array(fast), stats)
    assert np.array_equal(fast.precision, precision) and np.array_equal(fast.recall, recall)
    assert list(fast.per_class) == ["class 1", "class 3", "class 9", "class 17"]
    assert np.array_equal(list(fast.per_class.values()), list(slow.per_class.values()), equal_nan=True)
    assert math.isnan(fast.per_class["class 1"])
    assert fast.instances == slow.instances
    assert 0.05 < fast.stats["AP"] < 0.95


@pytest.mark.parametrize("task", ["box", "mask"])
def test_engines_are_bit_equal_on_a_crowded_image_and_on_boxes_without_area(task: Any) -> None:
    truth, results = random_data(8, images=3)
    rng = np.random.default_rng(8)
    crowded = truth["images"][1]["id"]
    for _ in range(1000):
        box = [float(v) for v in rng.uniform(1, 60, 4)]
        row = {"image_id": crowded, "category_id": int(rng.choice([9, 3])), "bbox": box}
        results.append(row | {"score": round(float(rng.random()), 1), "segmentation": rle(box, rng)})
    for box in ([10.0, 10.0, 0.0, 20.0], [5.0, 5.0, 0.0, 0.0]):
        for row in (*truth["annotations"][:1], *results[:1]):
            (truth["annotations"] if "area" in row else results).append({**row, "bbox": box})
    found = [evaluate_coco(truth, results, task, engine) for engine in ENGINES]
    stats, precision, recall = official(truth, results, IOU_TYPES[task])
    for ap in found:
        assert np.array_equal(stats_array(ap), stats)
        assert np.array_equal(ap.precision, precision) and np.array_equal(ap.recall, recall)
    assert any("beyond the best 100 of an image and category" in w.what for w in found[0].warnings)
    assert any("have no area" in w.what for w in found[0].warnings) == (task == "box")


@pytest.mark.parametrize("engine", ENGINES)
def test_some_categories_alone(engine: Engine) -> None:
    truth, results = random_data(3)
    ap = evaluate_coco(truth, results, "box", engine, categories=["class 17", "class 3"])
    stats, precision, _ = official(truth, results, "bbox", category_ids=[3, 17])
    assert list(ap.per_class) == ["class 3", "class 17"]
    assert np.array_equal(stats_array(ap), stats) and np.array_equal(ap.precision, precision)
    with pytest.raises(ValueError, match=r"no category 'clas 3'; did you mean 'class 3'\? It has class 1, class 3"):
        evaluate_coco(truth, results, "box", engine, categories=["clas 3"])


def tiny() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two cats, one image each; one found exactly, one missed, and a false alarm in between."""
    truth = {
        "images": [{"id": 1, "height": 100, "width": 100}, {"id": 2, "height": 100, "width": 100}],
        "categories": [{"id": 4, "name": "cat"}, {"id": 6, "name": "dog"}],
        "annotations": [
            {"id": 0, "image_id": 1, "category_id": 4, "bbox": [10, 10, 20, 20], "area": 400},
            {"id": 1, "image_id": 2, "category_id": 4, "bbox": [0, 0, 50, 50], "area": 2500},
        ],
    }
    results = [
        {"image_id": 1, "category_id": 4, "bbox": [10, 10, 20, 20], "score": 0.9},
        {"image_id": 1, "category_id": 4, "bbox": [60, 60, 20, 20], "score": 0.8},
        {"image_id": 2, "category_id": 4, "bbox": [0, 0, 50, 30], "score": 0.7},  # IoU .6
    ]
    return truth, results


@pytest.mark.parametrize("engine", ENGINES)
def test_a_case_computed_by_hand(engine: Engine) -> None:
    ap = evaluate_coco(*tiny(), "box", engine)
    # IoU .50, .55, .60: hit, miss, hit: precision 1 to recall .5 (51 of 101 points), then 2/3 (50 points).
    # .65 and above: precision 1 to recall .5, then 0.
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert ap.stats["AP50"] == pytest.approx(low)
    assert ap.stats["AP75"] == pytest.approx(high)
    assert ap.stats["AP"] == pytest.approx((3 * low + 7 * high) / 10)
    assert ap.stats["AP_small"] == pytest.approx(1.0)
    assert ap.stats["AP_medium"] == pytest.approx(0.3)  # the false alarm of 20 x 20 pixels is no medium object
    assert math.isnan(ap.stats["AP_large"])
    assert ap.stats["AR_1"] == pytest.approx((3 * 1.0 + 7 * 0.5) / 10)
    assert ap.per_class["cat"] == ap.stats["AP"]
    assert math.isnan(ap.per_class["dog"])
    assert ap.instances == {"cat": 2, "dog": 0}
    assert ap.precision.shape == (10, 101, 2, 4, 3)
    assert ap.precision_curve(0.5).mean() == pytest.approx(low)
    assert ap.precision_curve(None).mean() == pytest.approx(ap.stats["AP"])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("task", ["box", "mask"])
def test_no_results_no_objects_only_crowds(engine: Engine, task: Any) -> None:
    truth, results = random_data(1)
    nothing_found = evaluate_coco(truth, [], task, engine)
    assert nothing_found.stats["AP"] == 0.0
    no_objects = evaluate_coco({**truth, "annotations": []}, results, task, engine)
    assert all(math.isnan(v) for v in no_objects.stats.values())
    assert np.isnan(no_objects.precision_curve(0.5)).all()
    assert all(math.isnan(v) for v in evaluate_coco({**truth, "annotations": []}, [], task, engine).stats.values())
    crowds, results = random_data(2, crowd=1.0)
    ap = evaluate_coco(crowds, results, task, engine)
    assert all(math.isnan(v) for v in ap.stats.values())
    assert set(ap.instances.values()) == {0}


@pytest.mark.parametrize("engine", ENGINES)
def test_mask_areas_decide_the_size_range(engine: Engine) -> None:
    """A thin diagonal has a large box and a small mask: a result with a box must not change its size range."""
    image = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    image[np.arange(150), np.arange(150)] = 1
    mask = {"size": [HEIGHT, WIDTH], "counts": coco_mask.encode(image)["counts"]}
    common = {"image_id": 1, "category_id": 1, "bbox": [0.0, 0.0, 150.0, 150.0], "segmentation": mask}
    truth = {
        "images": [{"id": 1, "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 1, "name": "line"}],
        "annotations": [{**common, "id": 1, "area": 150.0, "iscrowd": 0}],
    }
    false_alarm = {**common, "segmentation": rle([160.0, 10.0, 70.0, 90.0], np.random.default_rng(0)), "score": 0.9}
    ap = evaluate_coco(truth, [false_alarm, {**common, "score": 0.5}], "mask", engine)
    assert ap.stats["AP_small"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 3}, r"of 4 results 1 have an image_id that .* does not have \(result 3: 3\)"),
        ({"category_id": 5}, r"category_id that .* \(result 3: 5\)\. Nothing was scored: .* own category ids \(4, 6"),
        ({"score": float("nan")}, r"no finite score \(result 3: nan\)"),
        ({"bbox": [1.0, float("inf"), 1.0, 1.0]}, r"finite pixels"),
        ({"bbox": [1.0, 1.0, -1.0, 1.0]}, r"finite pixels"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_bad_results_are_refused(engine: Engine, change: dict[str, Any], words: str) -> None:
    truth, results = tiny()
    with pytest.raises(ValueError, match=words):
        evaluate_coco(truth, [*results, {**results[0], **change}], "box", engine)


def test_bad_masks_and_bad_truth_are_refused() -> None:
    truth, results = random_data(0)
    small = rle([1.0, 1.0, 3.0, 3.0], np.random.default_rng(0), 50, 60)
    with pytest.raises(ValueError, match=r"size must be the image's \[200, 240\], got \[50, 60\]"):
        evaluate_coco(truth, [{**results[0], "segmentation": small}], "mask")
    with pytest.raises(ValueError, match="lack segmentation, which the mask task needs"):
        evaluate_coco(truth, [{k: v for k, v in results[0].items() if k != "segmentation"}], "mask")
    with pytest.raises(ValueError, match="has no area"):
        bad = [{k: v for k, v in a.items() if k != "area"} for a in truth["annotations"]]
        evaluate_coco({**truth, "annotations": bad}, results, "box")
    with pytest.raises(ValueError, match="must be unique"):
        evaluate_coco({**truth, "images": truth["images"] * 2}, results, "box")
    with pytest.raises(ValueError, match="got 0 and 4"):
        evaluate_coco({**truth, "images": []}, [], "box")
    with pytest.raises(ValueError, match=r"choose one of them"):
        evaluate_coco(truth, results, "box").precision_curve(0.52)


def test_every_engine_of_the_config_is_there_and_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    assert set(coco_ap._ENGINES) == set(ENGINES)
    for engine in ENGINES:
        evaluate_coco(*tiny(), "box", engine)
    out, err = capfd.readouterr()
    assert out == err == ""


def test_equal_class_names_stay_apart() -> None:
    truth, results = tiny()
    truth["categories"][1]["name"] = "cat"
    assert list(evaluate_coco(truth, results, "box").per_class) == ["cat (4)", "cat (6)"]


@pytest.mark.parametrize("task", ["box", "mask"])
@pytest.mark.parametrize("seed", range(3))
def test_columns_in_small_blocks_with_empty_shapes_among_the_objects(
    task: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, results = random_data(20 + seed, crowd=0.4)
    rng = np.random.default_rng(seed)
    for rows in (truth["annotations"][::3], results[::4]):
        for row in rows:
            row["bbox"] = [*row["bbox"][:2], 0.0, 0.0]
            row["segmentation"] = rle(row["bbox"], rng)
            if "area" in row:
                row["area"] = 0.0
    for found in results[1::3]:  # the object itself, or half of it: IoUs of 1 and of a half
        target = truth["annotations"][int(rng.integers(len(truth["annotations"])))]
        box = [*target["bbox"][:2], target["bbox"][2] / int(rng.integers(1, 3)), target["bbox"][3]]
        found |= {key: target[key] for key in ("image_id", "category_id", "segmentation")} | {"bbox": box}
    monkeypatch.setattr(matches, "_PAIRS", 5)
    ap = evaluate_coco(truth, results, task, "columns")
    stats, precision, recall = official(truth, results, IOU_TYPES[task])
    assert np.array_equal(ap.precision, precision) and np.array_equal(ap.recall, recall)
    assert np.array_equal(stats_array(ap), stats) and stats[0] > 0.02
