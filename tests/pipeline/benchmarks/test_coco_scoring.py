from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from jobs.main import app
from pipeline.benchmarks.coco_scene import HEIGHT, WIDTH, invent_detections, invent_objects, outlines, truth_json
from pipeline.benchmarks.coco_scoring import measure, measure_bootstrap, write_scene
from pipeline.benchmarks.pasting import measure_pasting


def test_invented_objects_have_cocos_proportions() -> None:
    rng = np.random.default_rng(0)
    objects = invent_objects(rng, 400, 80)
    assert len(objects.images) / 400 == pytest.approx(7.3, abs=1)
    truth = truth_json(objects, 400, 80)
    areas = np.array([a["area"] for a in truth["annotations"]])
    assert 0.3 < (areas < 32**2).mean() < 0.6 and 0.1 < (areas > 96**2).mean() < 0.3
    found = invent_detections(rng, objects, 400, 80, 30)
    assert (np.bincount(found.images)[1:] == 30).all()
    assert found.scores.min() >= 0 and found.scores.max() <= 1 and set(found.classes) <= set(range(1, 81))
    assert (found.boxes[:, :2] >= 0).all() and (found.boxes[:, :2] + found.boxes[:, 2:] <= (WIDTH, HEIGHT)).all()


def test_outlines_are_valid_masks_inside_their_boxes() -> None:
    things = invent_objects(np.random.default_rng(1), 30, 5)
    counts, areas = outlines(things)
    for text, area, (x, y, w, h) in zip(counts, areas, things.boxes, strict=True):
        mask = coco_mask.decode({"size": [HEIGHT, WIDTH], "counts": text})
        assert coco_mask.encode(mask)["counts"] == text and mask.sum() == area
        left, top, width, height = coco_mask.toBbox({"size": [HEIGHT, WIDTH], "counts": text})
        if area:
            assert left >= x - 1 and top >= y - 1 and left + width <= x + w + 1 and top + height <= y + h + 1


def test_both_give_the_same_numbers_and_ours_are_faster(tmp_path: Path) -> None:
    assert write_scene(tmp_path, images=60, detections=50, classes=20) > 200
    ours, theirs = (measure(tmp_path, "mask", who) for who in ("ours", "pycocotools"))
    assert ours.stats == theirs.stats and ours.stats[0] > 0.05
    assert theirs.cpu_s > 2 * ours.cpu_s  # about 8 times
    assert all(0 < cost.own_mb < cost.peak_mb and cost.wall_s > 0 for cost in (ours, theirs))
    assert measure_bootstrap(tmp_path, "mask", 10).cpu_s > 0


def test_pasting_is_timed() -> None:
    assert 0 < measure_pasting(5, 80, 100, rounds=2) < 1000


def test_the_command_prints_costs_and_differences() -> None:
    words = ["benchmark", "evaluate", "--images", "8", "--detections", "10", "--classes", "5", "--resamples", "10"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("differ by 0.0e+00 at most") == 2
    assert done.stdout.count("CPU s, from memory") == 2 and "100 masks pasted at 800 x 1333" in done.stdout
