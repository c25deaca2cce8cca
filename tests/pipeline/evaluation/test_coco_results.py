"""What is wrong with results: refused with how many and which, or scored and counted."""

from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluation.coco_ap import evaluate_coco
from pipeline.evaluation.coco_results import check_results
from pipeline.evaluation.coco_truth import check_truth

TRUTH: dict[str, Any] = {
    "images": [{"id": i, "height": 100, "width": 200} for i in (1, 2, 3)],
    "categories": [{"id": 18, "name": "dog"}, {"id": 44, "name": "bottle"}],
    "annotations": [
        {"image_id": 1, "category_id": 18, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
        | {"segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]]}
    ],
}
GOOD = {"image_id": 1, "category_id": 18, "bbox": [10, 10, 20, 20], "score": 0.9}


def refusal(*results: Any, task: Any = "box") -> str:
    with pytest.raises(UserError) as caught:
        evaluate_coco(TRUTH, list(results), task)
    return str(caught.value)


def warnings(*results: Any) -> dict[str, int]:
    _, found = check_results(list(results), check_truth(TRUTH, "box"))
    assert all(str(warned).startswith(f"{warned.count} ") for warned in found)
    return {warned.what: warned.count for warned in found}


def test_all_that_is_bad_is_counted_and_some_of_it_is_named() -> None:
    bad = [{**GOOD, "category_id": c} for c in (0, 1, 2, 3, 4)]
    text = refusal(GOOD, *bad, {**GOOD, "score": float("nan")}, [1, 2], {"image_id": 1, "score": 1})
    assert text.startswith(
        "of 9 results 5 have a category_id that the ground truth does not have (result 1: 0; result 2: 1; result 3: 2; "
        "...); 1 have no finite score (result 6: nan); 1 are no objects (result 7: [1, 2]); 1 lack bbox, category_id, "
        "which the box task needs (result 8: it has image_id, score). Nothing was scored: "
    )
    assert "results need the data set's own category ids (18, 44, ...), not the numbers of a network's outputs" in text


def test_another_data_sets_results_are_called_that() -> None:
    others = [{**GOOD, "image_id": i} for i in range(100, 150)]
    assert "of 50 results 50 have an image_id that" in refusal(*others)
    assert refusal(*others).endswith("these are results on another data set")
    assert refusal(GOOD, *others).endswith("score them on the annotations of the images that were predicted on")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": [1]}, "have an image_id that the ground truth does not have"),
        ({"image_id": None}, "have an image_id"),
        ({"score": "0.9"}, "have no finite score (result 0: '0.9')"),
        ({"score": True}, "have no finite score (result 0: True)"),
        ({"bbox": [1, 2, 3]}, "have a malformed bbox"),
        ({"bbox": None}, "have a malformed bbox"),
        ({"bbox": ["a", 2, 3, 4]}, "have a malformed bbox"),
        ({"bbox": [1, 2, -3, 4]}, "a bbox is [x, y, width, height] in finite pixels, got [1, 2, -3, 4]"),
    ],
)
def test_malformed_results(change: dict[str, Any], words: str) -> None:
    assert words in refusal({**GOOD, **change})


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"size": [100, 200], "counts": "garbage\x00"}, "not COCO's compressed counts"),
        ({"size": [100, 200], "counts": "0"}, "runs must add up to 100 x 200 = 20000, got 0"),
        ({"size": [200, 100], "counts": "PWb0"}, "size must be the image's [100, 200], got [200, 100]"),
        ({"counts": "PWb0"}, "size must be the image's"),
        ("PWb0", "a segmentation is a list of polygons or an RLE"),
        ({"size": [100, 200], "counts": [1, -1, 20000]}, "runs must not be negative"),
    ],
)
def test_malformed_masks(segmentation: Any, words: str) -> None:
    text = refusal({**GOOD, "segmentation": segmentation}, task="mask")
    assert "1 have a malformed mask (result 0: " in text and words in text


def test_odd_results_are_scored_and_counted() -> None:
    outside = [{**GOOD, "image_id": 2, "bbox": box} for box in ([-30, 5, 20, 20], [190, 5, 20, 20], [0, 0, 200.5, 100])]
    found = warnings(GOOD, GOOD, {**GOOD, "score": 0.8}, *outside, {**GOOD, "score": 7}, {**GOOD, "bbox": [1, 1, 0, 4]})
    assert found == {
        "results repeat an earlier one exactly; each repetition counts as a false alarm": 1,
        "boxes reach outside their image": 2,
        "scores are not in 0..1; only their order counts": 1,
        "boxes have no area": 1,
        "images have no result": 1,
    }
    ap = evaluate_coco(TRUTH, [GOOD, GOOD], "box")
    assert ap.stats["AP50"] == pytest.approx(1) and [w.count for w in ap.warnings] == [1, 2]


def test_an_empty_list_scores_zero_and_says_so() -> None:
    ap = evaluate_coco(TRUTH, [], "box")
    assert ap.stats["AP"] == 0
    assert [str(w) for w in ap.warnings] == ["3 images, and not one result to score (the list is empty; ...)"]


def test_polygons_of_annotations_and_results_are_masks() -> None:
    result = {**GOOD, "segmentation": TRUTH["annotations"][0]["segmentation"]}
    for engine in ("columns", "hotcoco", "pycocotools"):
        assert evaluate_coco(TRUTH, [result], "mask", engine).stats["AP"] == pytest.approx(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": [{"height": 5}]}, "needs images with an id"),
        ({"categories": ["dog"]}, "needs images with an id and categories with id and name"),
        ({"annotations": [{"id": 5, "image_id": 1}]}, "annotation 5 of the ground truth needs image_id, category_id"),
        ({"annotations": [7]}, "annotation 1 of the ground truth needs"),
        ({"annotations": [{**TRUTH["annotations"][0], "image_id": 9}]}, r"needs a image_id of .* got 9"),
        (
            {"annotations": [{**TRUTH["annotations"][0], "bbox": [1]}]},
            "annotation 1 of the ground truth cannot be used",
        ),
        ({"annotations": [{**TRUTH["annotations"][0], "segmentation": []}]}, "no polygon in the segmentation"),
        (
            {
                "annotations": [
                    {**TRUTH["annotations"][0], "id": 77, "segmentation": {"size": [100, 200], "counts": "0"}}
                ]
            },
            "annotation 77 of the ground truth cannot be used: the RLE's runs must add up to 100 x 200 = 20000, got 0",
        ),
    ],
)
def test_ground_truth_that_cannot_be_used(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate_coco({**TRUTH, **change}, [], "mask")


def test_ids_that_are_no_floats() -> None:
    """The engine takes columns of floats, where ids fit."""
    far = 2**60
    truth = {
        **TRUTH,
        "images": [{**image, "id": far + image["id"]} for image in TRUTH["images"]],
        "annotations": [{**a, "image_id": far + a["image_id"]} for a in TRUTH["annotations"]],
    }
    results = [{**GOOD, "image_id": far + 1}, {**GOOD, "image_id": far + 2}]
    for task in ("box", "proposal"):
        near = evaluate_coco(TRUTH, [{**r, "image_id": r["image_id"] - far} for r in results], task)  # type: ignore[arg-type]
        assert evaluate_coco(truth, results, task).stats == pytest.approx(near.stats, nan_ok=True)  # type: ignore[arg-type]


def test_a_proposal_may_have_any_category() -> None:
    ap = evaluate_coco(TRUTH, [{**GOOD, "category_id": "thing"}], "proposal")
    assert ap.stats["AR_100"] == pytest.approx(1)


def test_one_odd_result_does_not_change_how_the_others_are_read() -> None:
    """Numbers of numpy are no plain ones: then each is looked at by itself, with the same outcome."""
    results = [GOOD, {**GOOD, "image_id": 2, "score": 1}, {**GOOD, "category_id": 44, "score": 0.25}]
    plain, _ = check_results(results, check_truth(TRUTH, "box"))
    odd, _ = check_results([*results[:2], {**results[2], "score": np.float64(0.25)}], check_truth(TRUTH, "box"))
    for name in ("images", "categories", "scores", "shapes"):
        assert np.array_equal(getattr(plain, name), getattr(odd, name))
    assert plain.images.tolist() == [0, 1, 0] and plain.categories.tolist() == [0, 0, 1]
