"""Against cityscapesscripts, which read the same pictures and the submission folder that we wrote."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_street import CATEGORY_IDS, HEIGHT, WIDTH, Folder, random_ids, random_results, result, travelled

from pipeline.benchmarks.cityscapes_peer import official_ap
from pipeline.data.cityscapes_labels import CLASS_NAMES
from pipeline.errors import UserError
from pipeline.evaluation.cityscapes_ap import CityscapesAp, evaluate_cityscapes, join, match
from pipeline.evaluation.cityscapes_truth import from_instance_ids, from_record

CAR, PERSON, BUS = 26, 24, 28
NEAR = 1e-12


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "cityscapes")


def ours(folder: Folder) -> CityscapesAp:
    """From what shards hold."""
    pairs = zip(folder.records(), folder.results, strict=True)
    return evaluate_cityscapes(join([match(from_record(record), travelled(found)) for record, found in pairs]))


def assert_equal(ap: CityscapesAp, expected: dict[str, Any]) -> None:
    assert ap.aps == pytest.approx(expected["matrix"], rel=0, abs=NEAR, nan_ok=True)
    assert ap.stats == pytest.approx(
        {"AP": expected["allAp"], "AP50": expected["allAp50%"]}, rel=0, abs=NEAR, nan_ok=True
    )
    for name in CLASS_NAMES:
        numbers = ap.per_class[name], ap.per_class_50[name]
        theirs = expected["classes"][name]
        assert numbers == pytest.approx((theirs["ap"], theirs["ap50%"]), rel=0, abs=NEAR, nan_ok=True)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 6, 7, 8, 9, 10])  # 5 is a case of test_all_detections_left_out
def test_random_pictures(folder: Folder, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice(CATEGORY_IDS, int(rng.integers(1, 9)), replace=False)
    for _ in range(int(rng.integers(1, 6))):
        ids = random_ids(rng, labels)
        folder.add(ids, random_results(rng, ids, labels))
    expected = official_ap(folder.instance_ids, folder.submission)
    assert np.nanmax(expected["matrix"]) > 0
    assert_equal(ours(folder), expected)


def picture(*rectangles: tuple[int, int, int, int, int], ground: int = 7) -> np.ndarray:
    """Ids of rectangles (id, x0, y0, x1, y1) on a ground."""
    ids = np.full((HEIGHT, WIDTH), ground, dtype=np.uint16)
    for number, x0, y0, x1, y1 in rectangles:
        ids[y0:y1, x0:x1] = number
    return ids


def box(x0: int, y0: int, x1: int, y1: int, label: int = CAR, score: float = 0.5) -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return result(mask, label, score)


ONE_CAR = picture((26000, 0, 0, 20, 20))
SMALL = picture((26000, 0, 0, 20, 20), (26001, 50, 0, 60, 9))  # of 90 pixels
GROUP = picture((26, 0, 0, 20, 20), (26003, 30, 0, 50, 20))
SMALL_GROUP = picture((26, 0, 0, 9, 11), (26003, 30, 0, 50, 20))
VOID = picture((26000, 0, 0, 20, 20), (4, 40, 0, 60, 20), (29000, 70, 0, 90, 20), (29, 70, 24, 90, 44))
HIT = box(0, 0, 20, 20)
CASES: dict[str, list[tuple[np.ndarray, list[dict[str, Any]]]]] = {
    "no detections": [(ONE_CAR, [])],
    "no objects": [(picture(), [HIT])],
    "nothing at all": [(picture(), [])],
    "only groups": [(picture((26, 0, 0, 20, 20)), [HIT])],
    "only small objects": [(picture((26000, 0, 0, 9, 11)), [HIT])],
    "another class": [(ONE_CAR, [box(0, 0, 20, 20, PERSON)])],
    "a label that is not scored": [(ONE_CAR, [HIT, box(0, 0, 20, 20, 29), box(0, 0, 20, 20, 7)])],
    "doubles": [(ONE_CAR, [HIT, HIT, box(0, 0, 20, 19, score=0.9), box(0, 0, 20, 18, score=0.1)])],
    "the best score overlaps least": [(ONE_CAR, [HIT, box(0, 0, 20, 11, score=0.9)])],
    "an overlap of exactly a half": [(ONE_CAR, [box(0, 0, 20, 10), box(60, 0, 80, 20, score=0.2)])],
    "an overlap just above a half": [(ONE_CAR, [box(0, 0, 20, 11)])],
    "half on void": [(VOID, [HIT, box(30, 0, 50, 20)])],
    "just more than half on void": [(VOID, [HIT, box(31, 0, 51, 20), box(40, 0, 60, 20)])],
    "on single and grouped caravans": [(VOID, [HIT, box(70, 0, 90, 20, score=0.7), box(70, 24, 90, 44, score=0.8)])],
    "on a group": [(GROUP, [box(0, 0, 20, 20), box(30, 0, 50, 20, score=0.1), box(10, 0, 30, 20, score=0.7)])],
    "partly on a small group": [(SMALL_GROUP, [box(0, 0, 20, 11), box(30, 0, 50, 20, score=0.1)])],
    "a group of another class": [(GROUP, [box(0, 0, 20, 20, BUS), box(30, 0, 50, 20, score=0.1)])],
    "a small object": [(SMALL, [HIT, box(50, 0, 60, 9, score=0.8), box(50, 0, 60, 20, score=0.9)])],
    "99 and 100 pixels": [(picture((26000, 0, 0, 9, 11), (26001, 30, 0, 40, 10)), [box(0, 0, 9, 11), HIT])],
    "one pixel": [(picture((26000, 3, 3, 4, 4), (26001, 30, 0, 50, 20)), [box(3, 3, 4, 4), box(60, 3, 61, 4)])],
    "an empty mask": [(ONE_CAR, [box(5, 5, 5, 5), HIT])],
    "the whole picture": [(picture(ground=26000), [box(0, 0, WIDTH, HEIGHT)])],
    "objects and detections in different pictures": [(ONE_CAR, []), (picture(), [HIT])],
    "a class in one picture only": [(ONE_CAR, [HIT]), (picture((28000, 0, 0, 20, 20)), [box(0, 0, 20, 20, BUS, 0.1)])],
    "all scores are the same": [
        (ONE_CAR, [HIT, box(40, 0, 60, 20)]),
        (GROUP, [box(30, 0, 50, 20), box(60, 0, 70, 20)]),
    ],
    "scores below 0 and above 1": [(ONE_CAR, [box(0, 0, 20, 20, CAR, -3.0), box(60, 0, 80, 20, CAR, 1e9)])],
    "one detection over two objects": [
        (picture((26000, 0, 0, 10, 20), (26001, 10, 0, 20, 20)), [HIT, box(0, 0, 10, 20, score=0.3)])
    ],
    "the object with number 0 of the first label": [(picture((24000, 0, 0, 20, 20)), [box(0, 0, 20, 20, PERSON)])],
}


@pytest.mark.filterwarnings("ignore:Mean of empty slice")  # the official script's
@pytest.mark.parametrize("case", CASES)
def test_awkward_pictures(folder: Folder, case: str) -> None:
    for ids, results in CASES[case]:
        folder.add(ids, results)
    assert_equal(ours(folder), official_ap(folder.instance_ids, folder.submission))


def test_all_detections_left_out(folder: Folder) -> None:
    """Where the official script fails, nothing was found."""
    folder.add(VOID, [box(40, 0, 60, 20)])
    with pytest.raises(IndexError):
        official_ap(folder.instance_ids, folder.submission)
    assert ours(folder).stats == {"AP": 0.0, "AP50": 0.0}


def test_instance_ids_and_shards_say_the_same(folder: Folder) -> None:
    rng = np.random.default_rng(5)
    pictures = [random_ids(rng, CATEGORY_IDS) for _ in range(8)]
    for ids in pictures:
        folder.add(ids, [])
    for ids, record in zip(pictures, folder.records(), strict=True):
        by_ids, by_record = from_instance_ids(ids), from_record(record)
        for name in ("classes", "groups"):
            assert np.array_equal(getattr(by_ids, name), getattr(by_record, name))
        for name in ("regions", "void"):
            for mine, other in zip(getattr(by_ids, name), getattr(by_record, name), strict=True):
                assert np.array_equal(mine, other)


def test_pictures_joined_in_any_way_are_the_same(folder: Folder) -> None:
    rng = np.random.default_rng(1)
    tables = []
    for _ in range(6):
        ids = random_ids(rng, [CAR, BUS])
        tables.append(match(from_instance_ids(ids), random_results(rng, ids, [CAR, BUS])))
    at_once = evaluate_cityscapes(join(tables))
    in_parts = evaluate_cityscapes(join([join(tables[3:]), join([]), join(tables[:3])]))
    assert at_once.stats["AP"] > 0
    assert np.array_equal(at_once.aps, in_parts.aps, equal_nan=True)
    assert at_once.instances == in_parts.instances
    assert all(math.isnan(value) for value in evaluate_cityscapes(join([])).stats.values())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: r | {"score": math.nan}, "needs a finite score, got nan"),
        (lambda r: r | {"category_id": 99}, "must be a label id of Cityscapes, got 99"),
        (lambda r: {k: v for k, v in r.items() if k != "segmentation"}, "set evaluate.protocol=coco"),
        (lambda r: r | {"segmentation": r["segmentation"] | {"size": [WIDTH, HEIGHT]}}, "mask of its picture's size"),
        (lambda r: r | {"segmentation": r["segmentation"] | {"counts": "5"}}, "mask is damaged: run lengths must be"),
        (lambda r: r | {"segmentation": r["segmentation"] | {"counts": "\x01"}}, "mask is damaged: not COCO's"),
    ],
)
def test_bad_detections_are_refused(spoil: Callable[[dict[str, Any]], dict[str, Any]], message: str) -> None:
    truth = from_instance_ids(ONE_CAR)
    assert len(match(truth, [HIT]).classes) == 1
    with pytest.raises(UserError, match=message):
        match(truth, [spoil(HIT)])
