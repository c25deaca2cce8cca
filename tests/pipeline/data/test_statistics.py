from typing import Any

import numpy as np
import pytest

from pipeline.data.statistics import HEAT_CELLS, Statistics, gather, merge


def row(height: int, width: int, *objects: tuple[list[float], int, bool, float]) -> dict[str, Any]:
    return {
        "height": height,
        "width": width,
        "boxes": [box for box, *_ in objects],
        "classes": [class_ for _, class_, *_ in objects],
        "crowd": [crowd for *_, crowd, _ in objects],
        "areas": [area for *_, area in objects],
        "keypoints": [[1, 2, 2, 0, 0, 0] if class_ == 1 else [0, 0, 0] for _, class_, *_ in objects],
    }


ROWS = [
    row(100, 200, ([0, 0, 10, 20], 1, False, 32.0**2 - 1), ([190, 90, 200, 100], 2, False, 32.0**2)),
    row(300, 50),
    row(80, 90, ([10, 10, 70, 20], 2, True, 5.0)),
    row(80, 90, *[([0, 0, 90, 80], 2, False, 96.0**2)] * 3),
]


def random_rows(images: int, classes: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(images):
        height, width = (int(side) for side in rng.integers(1, 500, 2))
        objects = []
        for _ in range(int(rng.integers(0, 9))):
            x, y = np.sort(rng.uniform(0, width, 2)), np.sort(rng.uniform(0, height, 2))
            box = [x[0], y[0], x[1], y[1]]
            objects.append(
                (box, int(rng.integers(1, classes + 1)), bool(rng.random() < 0.2), float(rng.uniform(0, 2e4)))
            )
        rows.append(row(height, width, *objects))
    return rows


def test_known_numbers() -> None:
    got = gather(ROWS, classes=3)
    assert got.sizes.tolist() == [[100, 200], [300, 50], [80, 90], [80, 90]]
    assert (got.objects.tolist(), got.crowd.tolist(), got.empty) == ([2, 0, 0, 3], [0, 0, 1, 0], 1)
    assert (got.class_objects.tolist(), got.class_images.tolist()) == ([1, 4, 0], [1, 2, 0])
    assert got.class_crowd.tolist() == [0, 1, 0]
    assert got.by_size() == {"small": 1, "medium": 1, "large": 3}
    assert got.box_sides[:2].tolist() == [[20, 10], [10, 10]]
    assert got.with_keypoints == 1
    assert got.centres.sum() == 5 and got.centres[HEAT_CELLS // 2, HEAT_CELLS // 2] == 3
    assert got.centres[int(0.1 * HEAT_CELLS), int(0.025 * HEAT_CELLS)] == 1
    assert got.summary() == {
        "images": 4,
        "objects": 5,
        "crowd": 1,
        "empty": 1,
        "with_keypoints": 1,
        "side_px": {"min": 50, "median": 90.0, "max": 300},
        "objects_an_image": {"mean": 1.25, "max": 3},
        "objects_by_area": {"small": 1, "medium": 1, "large": 3},
    }


@pytest.mark.parametrize("classes", [1, 7, 1203])
def test_parts_add_up_and_a_naive_loop_agrees(classes: int) -> None:
    rows = random_rows(40, classes, classes)
    whole = gather(rows, classes)
    parts = merge(
        [gather(rows[:1], classes), gather([], classes), gather(rows[1:30], classes), gather(rows[30:], classes)],
        classes,
    )
    for name in Statistics.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    objects, images, heat = [0] * classes, [0] * classes, np.zeros((HEAT_CELLS, HEAT_CELLS), int)
    for made in rows:
        there = set()
        for (x1, y1, x2, y2), class_, crowd in zip(made["boxes"], made["classes"], made["crowd"], strict=True):
            if crowd:
                continue
            objects[class_ - 1] += 1
            there.add(class_)
            heat[int((y1 + y2) / 2 / made["height"] * HEAT_CELLS), int((x1 + x2) / 2 / made["width"] * HEAT_CELLS)] += 1
        for class_ in there:
            images[class_ - 1] += 1
    assert whole.class_objects.tolist() == objects and whole.class_images.tolist() == images
    np.testing.assert_array_equal(whole.centres, heat)


def test_nothing() -> None:
    got = merge([], classes=2)
    assert got.class_objects.tolist() == [0, 0] and got.sizes.shape == (0, 2) and got.box_sides.shape == (0, 2)
    assert got.summary()["side_px"] is None and got.summary()["images"] == 0
