"""Which images are shown, what is said of them, and which part of them."""

import numpy as np
import pytest
from naive_report import Naive, scene
from test_diagnosis import annotation, diagnosed, result, truth_of

from pipeline.report.examples import (
    best_images,
    image_quality,
    large_missed_objects,
    sure_false_alarms,
    worst_images,
)
from pipeline.report.galleries import around


@pytest.mark.parametrize("seed", range(4))
def test_the_quality_of_an_image_is_that_of_plain_loops(seed: int) -> None:
    truth, results = scene(seed, images=15)
    found, naive = diagnosed(truth, results), Naive(truth, results)
    for least in (0.0, 0.5):
        for place, quality in zip(found.image_ids.tolist(), image_quality(found, least).tolist(), strict=True):
            overlaps, false = [], 0
            for r in naive.order:
                if r["image_id"] == place and r["score"] >= least:
                    if naive.verdict[r["place"]] == "right":
                        overlaps.append(iou_of(r, naive.meant[r["place"]]))
                    false += naive.verdict[r["place"]] not in ("right", "ignored")
            objects = sum(a["image_id"] == place for a in naive.objects)
            total = len(overlaps) + false / 2 + (objects - len(overlaps)) / 2
            assert quality == pytest.approx(sum(overlaps) / total if total else np.nan, nan_ok=True)


def iou_of(a: dict, b: dict) -> float:
    from naive_report import iou

    return iou(a["bbox"], b["bbox"])


def test_the_order_of_galleries_and_what_is_said() -> None:
    truth = truth_of(
        [
            annotation(1, 1, [0, 0, 50, 50]),  # image 1: found
            annotation(2, 1, [0, 0, 60, 60], image=2),  # image 2: taken for b
            annotation(3, 2, [0, 0, 20, 20], image=3),  # image 3: nothing there
            annotation(4, 2, [100, 100, 10, 10], image=3),
            annotation(5, 2, [0, 0, 90, 90], crowd=1, image=4),  # image 4: a crowd, and an alarm elsewhere
        ],
        images=5,
    )
    rows = [
        result(1, [0, 0, 50, 50], 0.9),
        result(1, [0, 0, 50, 49], 0.3),
        result(2, [0, 0, 60, 60], 0.8, image=2),
        result(1, [0, 40, 60, 60], 0.7, image=2),
        result(2, [0, 0, 30, 30], 0.6, image=4),
        result(1, [150, 150, 30, 30], 0.95, image=4),
    ]
    found = diagnosed(truth, rows)
    alarms = sure_false_alarms(found, 5)
    assert [(a.headline, a.text) for a in alarms] == [
        ("a 0.95", "background: it overlaps no object by 0.1"),
        ("b 0.80", "wrong class: there is a (overlap 1.00)"),
        ("a 0.30", "duplicate: another detection hit this a (overlap 0.98)"),
    ]
    assert [found.image_ids[a.image] for a in alarms] == [4, 2, 1] and len(sure_false_alarms(found, 2)) == 2
    missed = large_missed_objects(found, 5)
    assert [(m.headline, m.text) for m in missed] == [
        ("a", "3,600 pixels; taken for b 0.80, overlap 1.00"),
        ("b", "400 pixels; nothing was found there"),
    ]
    (best,) = best_images(found, 0.5, 5)
    assert (found.image_ids[best.image], best.headline) == (1, "quality 100")
    assert best.text == "1 of 1 object found, 0 false alarms"
    worst = worst_images(found, 0.5, 5)
    assert [found.image_ids[w.image] for w in worst] == [2, 3, 4]  # by errors: 3, 2, 1
    assert worst[0].text == "0 of 1 object found, 2 false alarms"


@pytest.mark.parametrize("seed", range(30))
def test_what_surrounds_a_box_lies_in_the_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(1, 300, 2))
    x0, y0 = rng.uniform(0, width), rng.uniform(0, height)
    box = [x0, y0, rng.uniform(x0, width), rng.uniform(y0, height)]
    left, top, right, bottom = around(box, height, width)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert left <= box[0] and top <= box[1] and right >= np.floor(box[2]) and bottom >= np.floor(box[3])
