"""Against cityscapesscripts, which made the released files."""

import json
from typing import Any

import numpy as np
import pytest
from cityscapesscripts.helpers import labels as official
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage

from pipeline.data.cityscapes_labels import (
    CATEGORY_IDS,
    CLASS_NAMES,
    LABEL_IDS,
    LABELS,
    Canvas,
    draw_instances,
    label_ids,
)


def drawn_officially(content: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Instance ids and label ids."""
    annotation = Annotation()
    annotation.fromJsonText(json.dumps(content))
    return np.asarray(createInstanceImage(annotation, "ids")), np.asarray(createLabelImage(annotation, "ids"))


def scribble(seed: int) -> dict[str, Any]:
    """Polygons of all labels and groups: crossing themselves, outside the picture, degenerate, fractional, deleted."""
    rng = np.random.default_rng(seed)
    names = [label.name for label in LABELS]
    names += [f"{name}group" for name in CLASS_NAMES] + ["skygroup", "caravangroup", "license plategroup"]
    objects = []
    for _ in range(60):
        points = rng.integers(-15, 75, (rng.integers(2, 9), 2)).astype(float)
        if rng.random() < 0.3:
            points += rng.uniform(0, 1, points.shape).round(2)
        else:
            points = points.astype(int)
        thing: dict[str, Any] = {"label": names[rng.integers(len(names))], "polygon": points.tolist()}
        if rng.random() < 0.3:
            thing["deleted"] = int(rng.random() < 0.5)
        objects.append(thing)
    return {"imgHeight": 45, "imgWidth": 60, "objects": objects}


@pytest.mark.parametrize("seed", range(20))
def test_drawn_as_cityscapesscripts_draws(seed: int) -> None:
    content = scribble(seed)
    instances, labels = drawn_officially(content)
    found = draw_instances(json.dumps(content).encode(), 45, 60)
    assert found.dtype == np.uint16 and len(np.unique(found)) > 5
    assert np.array_equal(found, instances)
    assert np.array_equal(label_ids(found), labels)


def test_nothing_drawn() -> None:
    content = {"imgHeight": 4, "imgWidth": 5, "objects": []}
    instances, labels = drawn_officially(content)
    found = draw_instances(json.dumps(content).encode(), 4, 5)
    assert found.shape == (4, 5) and not found.any() and not instances.any() and not labels.any()


def test_table_is_the_official_one() -> None:
    for label, theirs in zip(LABELS, official.labels, strict=True):
        train_id = None if theirs.trainId in (255, -1) else theirs.trainId
        assert label == (theirs.name, theirs.id, train_id, theirs.category, theirs.hasInstances, theirs.color)
        assert (label.train_id is None) == theirs.ignoreInEval
    scored = [(l.name, l.id) for l in official.labels if l.hasInstances and not l.ignoreInEval]  # noqa: E741
    assert scored == list(zip(CLASS_NAMES, CATEGORY_IDS, strict=True))
    assert len(LABEL_IDS) == 34
    assert [label.id for label in LABELS] == [*range(34), -1]


def test_label_of_every_id() -> None:
    ids = np.arange(65536, dtype=np.uint16)
    expected = np.where(ids < 1000, np.minimum(ids, 255), ids // 1000)
    assert np.array_equal(label_ids(ids), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "no list 'objects'"),
        (b'{"imgHeight": 4, "imgWidth": 5}', "no list 'objects'"),
        (b'{"imgHeight": 5, "imgWidth": 4, "objects": []}', "imgHeight x imgWidth is 5 x 4, the picture is 4 x 5"),
        (b'{"objects": []}', "imgHeight x imgWidth is None x None"),
        (b'{"imgHeight": 4, "imgWidth": 5, "objects": [7]}', "an object must be a dict, got 7"),
    ],
)
def test_broken_file(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_instances(content, 4, 5)


@pytest.mark.parametrize(
    ("label", "polygon", "message"),
    [
        ("spaceship", [[0, 0], [1, 1], [1, 0]], "label 'spaceship' is not one of Cityscapes'"),
        ("spaceshipgroup", [[0, 0], [1, 1], [1, 0]], "label 'spaceshipgroup'"),
        (None, [[0, 0], [1, 1], [1, 0]], "must be a string, got None"),
        ("car", None, "needs at least 2 points, got None"),
        ("car", [[0, 0]], "needs at least 2 points"),
        ("car", [[0, 0], [1]], "a point of a car must be"),
        ("car", [[0, 0], "xy"], "a point of a car must be"),
        ("car", [[0, 0], [float("nan"), 1]], "finite and near the image"),
        ("car", [[0, 0], [float("inf"), 1]], "finite and near the image"),
        ("car", [[0, 0], [True, 1]], "a point of a car must be"),
        ("car", [[0, 0], [10**9, 1]], "near the image, got .1000000000, 1."),
    ],
)
def test_broken_object(label: object, polygon: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Canvas(4, 5).draw(label, polygon)


def test_more_objects_than_ids() -> None:
    canvas = Canvas(4, 5)
    for number in range(1000):
        assert canvas.draw("bus", [[0, 0], [1, 1]]) == 28000 + number
    with pytest.raises(ValueError, match="more than 1000 objects of label 'bus'"):
        canvas.draw("bus", [[0, 0], [1, 1]])
    assert canvas.draw("busgroup", [[0, 0], [1, 1]]) == 28
