from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.coco_ap import CocoAp
from pipeline.evaluation.colours import class_colour, text_colour
from pipeline.evaluation.curves import pr_curves
from pipeline.evaluation.instances import Instances
from pipeline.evaluation.pictures import draw_comparison, draw_predictions, draw_sample, gallery
from pipeline.evaluation.protocols import PROTOCOLS


def square(height: int, width: int, box: tuple[int, int, int, int]) -> Instances:
    x0, y0, x1, y1 = box
    mask = (y0, x0, np.ones((y1 - y0, x1 - x0), dtype=np.uint8))
    return Instances(np.array([box], dtype=np.float64), np.array([2]), np.array([0.87]), [mask])


def read(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_small_image_is_enlarged_and_masks_lie_where_they_belong(tmp_path: Path) -> None:
    image = np.full((160, 160, 3), 100, dtype=np.uint8)
    draw_predictions(image, square(160, 160, (40, 60, 120, 100)), ["a", "b"], tmp_path / "p.png")
    picture = read(tmp_path / "p.png")
    assert picture.shape == (480, 480, 3)
    changed = (picture != 100).any(axis=2)
    assert changed[60 * 3 : 100 * 3, 40 * 3 : 120 * 3].all()
    assert not changed[100 * 3 + 1 :].any()
    assert not changed[:, : 40 * 3 - 1].any()
    assert not changed[:, 120 * 3 + 1 :].any()
    middle = 0.55 * 100 + 0.45 * np.array(class_colour(2))
    assert np.abs(picture[290, 350] - middle).max() <= 1  # beside the label: image and colour mixed
    assert np.abs(picture[240, 120].astype(int) - class_colour(2)).max() <= 60  # the outline


def test_a_crowd_region_is_hatched_in_grey(tmp_path: Path) -> None:
    image = np.full((480, 480, 3), (200, 40, 40), dtype=np.uint8)
    mask = (0, 100, np.ones((400, 300), dtype=np.uint8))
    box = np.array([[100, 0, 400, 400]], dtype=np.float64)
    draw_sample(image, Instances(box, np.array([1]), None, [mask], np.array([True])), ["a"], tmp_path / "c.png")
    inside = read(tmp_path / "c.png")[100:300, 200:300]
    stripes, counts = np.unique(inside.reshape(-1, 3), axis=0, return_counts=True)
    light, dark = 0.85 * np.array([200, 40, 40]) + 0.15 * 150, 0.25 * np.array([200, 40, 40]) + 0.75 * 150
    assert sorted(stripes.tolist()) == sorted([light.round().tolist(), dark.round().tolist()])
    assert abs(int(counts[0]) - int(counts[1])) < 0.02 * inside.size


def test_keypoints_lie_on_their_pixels(tmp_path: Path) -> None:
    image = np.full((480, 480, 3), 120, dtype=np.uint8)
    points = np.array([[100, 200, 2], [300, 200, 1], [0, 0, 0], [300, 400, 2]], dtype=np.float64)
    nothing = np.zeros((0, 3))
    person = Instances(
        np.array([[90, 90, 410, 410], [440, 440, 460, 460]], dtype=np.float64),
        np.array([1, 1]),
        keypoints=[points, nothing],
    )
    draw_sample(image, person, ["a"], tmp_path / "k.png", [(0, 1), (1, 2), (2, 3)])
    picture = read(tmp_path / "k.png")
    assert picture[200, 100].tolist() == picture[400, 300].tolist() == list(class_colour(1))  # seen
    assert picture[200, 300].tolist() == [255, 255, 255]  # hidden
    assert picture[200, 200].tolist() == list(class_colour(1))  # 0 and 1 are joined
    assert (picture[1:70, 1:300] == 120).all()  # 2 is not labelled: neither it nor its lines
    draw_sample(image, person, ["a"], tmp_path / "points.png")
    assert (read(tmp_path / "points.png")[200, 150:250] == 120).all()


def test_comparison_is_two_panels_of_equal_size(tmp_path: Path) -> None:
    image = np.zeros((600, 800, 3), dtype=np.uint8)
    nothing = Instances(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), masks=[])
    draw_comparison(image, nothing, square(600, 800, (100, 100, 300, 300)), ["a", "b"], tmp_path / "c.png")
    picture = read(tmp_path / "c.png")
    assert picture.shape[1] == 800 + 12 + 800
    left, right = picture[-500:, :800], picture[-500:, 812:]
    assert left.any()
    assert not right.any()
    gallery([tmp_path / "c.png"] * 3, tmp_path / "sheet.jpg", columns=2, width_px=400)
    assert read(tmp_path / "sheet.jpg").shape[1] == 400


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 3), (31, 47), (2500, 1900)])
def test_odd_sizes_boxes_and_masks_do_not_fail(tmp_path: Path, size: tuple[int, int]) -> None:
    height, width = size
    rng = np.random.default_rng(height)
    masks = []
    for _ in range(12):
        y0, x0 = int(rng.integers(0, height)), int(rng.integers(0, width))
        h, w = int(rng.integers(1, height - y0 + 1)), int(rng.integers(1, width - x0 + 1))
        masks.append((y0, x0, (rng.random((h, w)) < 0.7).astype(np.uint8)))
    masks += [(0, 0, np.zeros((0, 0), dtype=np.uint8)), (0, 0, np.ones(size, dtype=np.uint8))]
    n = len(masks)
    boxes = rng.uniform(-20, max(size) + 20, (n, 4))
    boxes[3, 2:] = boxes[3, :2]
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    found = Instances(boxes, rng.integers(1, 40, n), rng.random(n), masks, rng.random(n) < 0.3)
    image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    draw_comparison(image, found, found, [f"class {i}" for i in range(40)], tmp_path / "odd.png")
    assert max(read(tmp_path / "odd.png").shape) <= 2 * 1600 + 12


def test_wrong_pictures_and_classes_are_refused(tmp_path: Path) -> None:
    one = square(10, 10, (1, 1, 5, 5))
    with pytest.raises(ValueError, match="convert it to RGB"):
        draw_predictions(np.zeros((10, 10), dtype=np.uint8), one, ["a", "b"], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"1\.\.1, got \[2\]"):
        draw_predictions(np.zeros((10, 10, 3), dtype=np.uint8), one, ["a"], tmp_path / "x.png")


def test_colours_are_stable_and_distinct() -> None:
    colours = [class_colour(c) for c in range(1, 101)]
    assert len(set(colours)) == 100
    assert class_colour(1) == (230, 57, 70)
    assert all(0 <= v <= 255 for colour in colours for v in colour)
    assert text_colour((255, 255, 0)) == (0, 0, 0)
    assert text_colour((0, 0, 120)) == (255, 255, 255)


def test_pr_curves_are_drawn_also_without_ground_truth(tmp_path: Path) -> None:
    falling = np.broadcast_to(np.linspace(1, 0, 101)[None, :, None, None, None], (10, 101, 2, 4, 3))
    some = CocoAp(PROTOCOLS["coco"]["box"], {}, {}, {}, falling, np.zeros((10, 2, 4, 3)))
    none = CocoAp(
        PROTOCOLS["coco"]["mask"], {}, {}, {}, np.full((10, 101, 2, 4, 3), -1.0), np.full((10, 2, 4, 3), -1.0)
    )
    pr_curves({"box": some, "mask": none}, tmp_path / "pr.png")
    assert read(tmp_path / "pr.png").std() > 5
