"""Verdicts, what errors cost, confusion and scores: against loops, pycocotools, hotcoco and cases counted by hand."""

import contextlib
import io
from typing import Any

import hotcoco
import numpy as np
import pytest
from naive_report import KINDS, Naive, scene
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.evaluation.coco_ap import evaluate_coco
from pipeline.evaluation.coco_results import check_results
from pipeline.evaluation.coco_truth import check_truth
from pipeline.evaluation.protocols import Style, Task
from pipeline.report import diagnosis as verdict
from pipeline.report.confusion import confusion_matrix, most_confused
from pipeline.report.diagnosis import Diagnosis, diagnose
from pipeline.report.error_costs import error_costs, missed_objects
from pipeline.report.scores import calibration, working_point
from pipeline.report.sizes import by_size

NAMES = ("right", "class", "place", "class and place", "duplicate", "background", "ignored")


def diagnosed(truth: Any, results: Any, task: Task = "box", style: Style = "coco") -> Diagnosis:
    checked = check_truth(truth, task, style)
    return diagnose(checked, check_results(results, checked)[0].as_json(checked))


def annotation(number: int, category: int, box: list[float], crowd: int = 0, image: int = 1) -> dict[str, Any]:
    area = box[2] * box[3]
    return {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}


def result(category: int, box: list[float], score: float, image: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def truth_of(annotations: list[Any], classes: int = 2, images: int = 1) -> dict[str, Any]:
    return {
        "images": [{"id": i + 1, "width": 200, "height": 200} for i in range(images)],
        "categories": [{"id": k + 1, "name": "ab"[k]} for k in range(classes)],
        "annotations": annotations,
    }


@pytest.mark.parametrize("seed", range(12))
def test_verdicts_and_costs_are_those_of_plain_loops(seed: int) -> None:
    truth, results = scene(seed, grid=seed % 3 == 0)
    found, naive = diagnosed(truth, results), Naive(truth, results)
    assert len(found.places) == len(naive.order)
    for place, got in zip(found.places.tolist(), found.verdicts.tolist(), strict=True):
        assert NAMES[got] == naive.verdict[place]
    ids = [a["id"] for a in truth["annotations"]]
    assert {ids[i] for i in found.annotations[found.finders >= 0].tolist()} == naive.found
    expected = [a["id"] for a in naive.missed()]
    assert sorted(ids[i] for i in found.annotations[missed_objects(found)].tolist()) == sorted(expected)
    costs, plain = error_costs(found), naive.costs()
    assert costs.ap == pytest.approx(plain.pop("ap"), abs=1e-12)
    assert costs.gains == pytest.approx(plain, abs=1e-12)
    assert sum(costs.counts[kind] for kind in KINDS) == sum(v in KINDS for v in naive.verdict.values())


def test_all_kinds_occur_in_these_scenes() -> None:
    seen = {v for seed in range(12) for v in Naive(*scene(seed, grid=seed % 3 == 0)).verdict.values()}
    assert seen == set(NAMES)


@pytest.mark.parametrize("seed", range(6))
def test_confusion_is_that_of_plain_loops(seed: int) -> None:
    truth, results = scene(seed)
    found, naive = diagnosed(truth, results), Naive(truth, results)
    for score in (0.0, 0.45):
        matrix = confusion_matrix(found, score)
        np.testing.assert_array_equal(matrix, naive.confusion(score, list(found.category_ids)))
        assert matrix[:-1].sum() == len(found.annotations)


@pytest.mark.parametrize("seed", range(4))
def test_hotcoco_counts_the_same(seed: int) -> None:
    truth, results = scene(seed, images=20, ties=False, crowds=0.0)
    source = hotcoco.COCO(truth)
    evaluator = hotcoco.COCOeval(source, source.load_res(results), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    theirs, found = evaluator.tide_errors(), diagnosed(truth, results)
    costs = error_costs(found)
    words = dict(zip((*KINDS, "missed"), ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True))
    assert costs.counts == {ours: theirs["counts"][word] for ours, word in words.items()}
    assert costs.gains == pytest.approx({ours: theirs["delta_ap"][word] for ours, word in words.items()}, abs=1e-9)
    assert costs.without_false == pytest.approx(theirs["delta_ap"]["FP"], abs=1e-9)
    assert costs.with_all == pytest.approx(theirs["delta_ap"]["FN"], abs=1e-9)
    matrix = evaluator.confusion_matrix(min_score=0.35)["matrix"]
    np.testing.assert_array_equal(confusion_matrix(found, 0.35), matrix.astype(np.int64))
    bins = evaluator.calibration()
    ours = calibration(found)
    assert ours is not None and ours.error == pytest.approx(bins["ece"], abs=1e-9)
    assert ours.counts.tolist() == [b["count"] for b in bins["bins"]]


def official(truth: dict[str, Any], results: list[Any], iou_type: str) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        source = COCO()
        source.dataset = truth
        source.createIndex()
        evaluator = COCOeval(source, source.loadRes(results), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator


def masked(truth: dict[str, Any], results: list[Any]) -> None:
    """The boxes as masks, in place."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in truth["images"]}
    for row in [*truth["annotations"], *results]:
        height, width = sizes[row["image_id"]]
        x, y, w, h = row["bbox"]
        mask = np.zeros((height, width), dtype=np.uint8, order="F")
        mask[int(y) : max(int(y + h), int(y) + 1), int(x) : max(int(x + w), int(x) + 1)] = 1
        code = hotcoco.mask.encode(mask)
        counts = code["counts"]
        row["segmentation"] = {
            "size": [height, width],
            "counts": counts if isinstance(counts, str) else counts.decode("ascii"),
        }


def posed(truth: dict[str, Any], results: list[Any], rng: np.random.Generator) -> None:
    """Seventeen keypoints in every box, some not labelled, in place."""
    for row in [*truth["annotations"], *results]:
        x, y, w, h = row["bbox"]
        points = np.stack([x + w * np.linspace(0, 1, 17), y + h * np.linspace(1, 0, 17), np.full(17, 2.0)], axis=1)
        if "id" in row:
            points[rng.random(17) < 0.3, 2] = 0
            if rng.random() < 0.2:
                points[:] = 0
            row["num_keypoints"] = int((points[:, 2] > 0).sum())
        row["keypoints"] = points.reshape(-1).tolist()


@pytest.mark.parametrize(("task", "iou_type"), [("box", "bbox"), ("mask", "segm"), ("keypoint", "keypoints")])
@pytest.mark.parametrize("seed", range(3))
def test_matches_are_cocos(task: Task, iou_type: str, seed: int) -> None:
    truth, results = scene(seed, images=15)
    if task == "mask":
        masked(truth, results)
    if task == "keypoint":
        posed(truth, results, np.random.default_rng(seed))
    found = diagnosed(truth, results, task)
    # without boxes: pycocotools would take them for the sizes of masks
    bare = [{k: v for k, v in r.items() if k != "bbox" or task == "box"} for r in results]
    evaluator = official(truth, bare, iou_type)
    precision = evaluator.eval["precision"][0, :, :, 0, -1]
    expected = [float(p.mean()) if p.min() > -1 else np.nan for p in precision.T]
    np.testing.assert_allclose(error_costs(found).per_class, expected, rtol=0, atol=1e-15)
    hits = sum(
        int(((e["dtMatches"][0] > 0) & ~e["dtIgnore"][0].astype(bool)).sum())
        for e in evaluator.evalImgs
        if e is not None and e["aRng"] == evaluator.params.areaRng[0]
    )
    ignored = sum(
        int(e["dtIgnore"][0].sum())
        for e in evaluator.evalImgs
        if e is not None and e["aRng"] == evaluator.params.areaRng[0]
    )
    assert (found.verdicts == verdict.RIGHT).sum() == hits > 0
    assert (found.verdicts == verdict.IGNORED).sum() == ignored > 0


def test_each_kind_by_hand() -> None:
    """One object of each class, 10 x 10; AP of class a and b with one hit of one is 1."""
    a, b = annotation(1, 1, [0, 0, 10, 10]), annotation(2, 2, [100, 100, 10, 10])
    hit_b = result(2, [100, 100, 10, 10], 0.5)
    cases = {  # a detection that scores more than hit_b -> verdict, what is gained
        "class": ([result(2, [0, 0, 10, 10], 0.9)], {"class": 0.75}),  # a found (.5), b's precision 1/2 -> 1 (.25)
        "place": ([result(1, [0, 5, 10, 10], 0.9)], {"place": 0.5}),
        "class and place": ([result(2, [0, 5, 10, 10], 0.9)], {"class and place": 0.25, "missed": 0.5}),
        "background": ([result(2, [50, 50, 10, 10], 0.9)], {"background": 0.25, "missed": 0.5}),
    }
    for kind, (extra, expected) in cases.items():
        found = diagnosed(truth_of([a, b]), [*extra, hit_b])
        assert [NAMES[v] for v in found.verdicts.tolist()] == [kind, "right"]
        costs = error_costs(found)
        assert {k: v for k, v in costs.gains.items() if abs(v) > 1e-12} == pytest.approx(expected)
        assert costs.counts[kind] == 1 and costs.counts["missed"] == ("missed" in expected)
    # two hits of a's object, then one of another a: precision at recall .5 .. 1 is 2/3, without the second hit 1
    far = annotation(2, 1, [100, 100, 10, 10])
    rows = [result(1, [0, 0, 10, 10], 0.9), result(1, [0, 0, 10, 10], 0.8), result(1, [100, 100, 10, 10], 0.7)]
    found = diagnosed(truth_of([a, far], classes=1), rows)
    assert [NAMES[v] for v in found.verdicts.tolist()] == ["right", "duplicate", "right"]
    assert error_costs(found).gains["duplicate"] == pytest.approx(50 / 101 / 3)


def test_of_two_that_mean_one_object_the_better_scored_is_put_right() -> None:
    rows = [result(1, [0, 5, 10, 10], 0.9), result(1, [5, 0, 10, 10], 0.8)]
    found = diagnosed(truth_of([annotation(1, 1, [0, 0, 10, 10])], classes=1), rows)
    costs = error_costs(found)
    assert costs.counts["place"] == 2 and costs.gains["place"] == pytest.approx(1.0) and costs.ap == 0


@pytest.mark.parametrize("rows", [[], [result(1, [50, 50, 10, 10], 0.5)]])
def test_without_a_hit_or_an_object(rows: list[Any]) -> None:
    empty = diagnosed(truth_of([], images=2), rows)
    costs = error_costs(empty)
    assert np.isnan(costs.ap) and costs.counts["background"] == len(rows) and working_point(empty) is None
    assert (
        confusion_matrix(empty, 0.0).sum() == len(rows) and most_confused(confusion_matrix(empty, 0), empty.names) == []
    )
    one = diagnosed(truth_of([annotation(1, 1, [0, 0, 10, 10])]), rows)
    assert error_costs(one).ap == 0 and error_costs(one).gains["missed"] == 1.0 and missed_objects(one).all()
    assert (calibration(one) is None) == (not rows)


def test_what_a_crowd_region_hides_is_no_error() -> None:
    crowd = annotation(1, 1, [0, 0, 100, 100], crowd=1)
    rows = [result(1, [10 * i, 0, 10, 10], 0.9 - i / 10) for i in range(3)] + [result(2, [0, 50, 10, 10], 0.9)]
    found = diagnosed(truth_of([crowd, annotation(2, 1, [150, 150, 10, 10])]), rows)
    assert sorted(found.verdicts.tolist()) == [verdict.BACKGROUND, *[verdict.IGNORED] * 3]
    assert confusion_matrix(found, 0.0).tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_lvis_leaves_out_classes_that_were_not_looked_for() -> None:
    truth = truth_of([annotation(1, 1, [0, 0, 10, 10])], images=2)
    for category in truth["categories"]:
        category["frequency"] = "c"
    for image, (negative, partial) in zip(truth["images"], [([2], [1]), ([], [])], strict=True):
        image |= {"neg_category_ids": negative, "not_exhaustive_category_ids": partial}
    rows = [
        result(1, [0, 0, 10, 10], 0.9),  # right
        result(1, [50, 50, 10, 10], 0.8),  # class 1 is not annotated in full in this image
        result(2, [50, 50, 10, 10], 0.7),  # class 2 is known to be absent
        result(2, [50, 50, 10, 10], 0.6, image=2),  # nobody looked for class 2 there
    ]
    found = diagnosed(truth, rows, style="lvis")
    assert dict(zip(found.places.tolist(), found.verdicts.tolist(), strict=True)) == {
        0: verdict.RIGHT,
        1: verdict.IGNORED,
        2: verdict.BACKGROUND,
    }
    ap = evaluate_coco(truth, rows, "box", style="lvis")
    assert error_costs(found).ap == pytest.approx(ap.stats["AP50"])


def test_calibration_and_working_point_by_hand() -> None:
    boxes = [[20.0 * i, 0.0, 10.0, 10.0] for i in range(4)]
    truth = truth_of([annotation(i + 1, 1, box) for i, box in enumerate(boxes[:3])], classes=1)
    rows = [result(1, boxes[0], 0.95), result(1, boxes[1], 0.95), result(1, boxes[3], 0.91), result(1, boxes[2], 0.2)]
    found = diagnosed(truth, rows)
    bins = calibration(found)
    assert bins is not None and bins.counts.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 3]
    assert bins.accuracy[[2, 9]] == pytest.approx([1, 2 / 3]) and bins.confidence[9] == pytest.approx(2.81 / 3)
    assert bins.error == pytest.approx(0.25 * 0.8 + 0.75 * (2.81 / 3 - 2 / 3))
    point = working_point(found)  # all four: 2 * 3 / (4 + 3); the first two alone: 4 / 5
    assert point is not None and (point.score, point.precision, point.recall) == pytest.approx((0.2, 0.75, 1.0))
    assert point.f1 == pytest.approx(6 / 7)
    assert calibration(diagnosed(truth, [result(1, boxes[0], 7.5)])) is None


@pytest.mark.parametrize("task", ["box", "mask"])
def test_sizes_are_cocos_own_with_its_ranges(task: Task) -> None:
    truth, results = scene(3, images=25)
    if task == "mask":
        masked(truth, results)
    checked = check_truth(truth, task)
    found = check_results(results, checked)[0].as_json(checked)
    sizes = by_size(checked, found, (0, 32, 96))
    stats = evaluate_coco(truth, results, task, "pycocotools").stats
    assert sizes.edges == ((0, 32), (32, 96))
    assert sizes.ap is not None and sizes.ap.tolist() == [stats["AP_small"], stats["AP_medium"]]
    assert sizes.recall.tolist() == [stats["AR_small"], stats["AR_medium"]]
    fine = by_size(checked, found)
    assert fine.counts.sum() >= len([a for a in truth["annotations"] if not a["iscrowd"]]) and fine.counts.min() > 0
