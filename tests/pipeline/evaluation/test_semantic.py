"""Against cityscapesscripts, which read the same label maps."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official_labels
from PIL import Image
from tiny_street import CATEGORY_IDS, HEIGHT, WIDTH, Folder, random_ids

from pipeline.benchmarks.cityscapes_peer import official_iou
from pipeline.data.cityscapes import read_cityscapes
from pipeline.data.cityscapes_labels import LABELS, label_ids
from pipeline.data.quarantine import Quarantine
from pipeline.data.sharding import shard_dataset
from pipeline.errors import UserError
from pipeline.evaluation.cityscapes_truth import from_record, label_map
from pipeline.evaluation.semantic import (
    PixelCounts,
    SemanticScores,
    count_pixels,
    from_train_ids,
    iou_scores,
    score_label_maps,
    to_train_ids,
)

NEAR = 1e-12


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "cityscapes")


def officially(folder: Folder, predictions: list[np.ndarray]) -> dict[str, Any]:
    paths = []
    for number, predicted in enumerate(predictions):
        paths.append(folder.root / f"predicted_{number}.png")
        Image.fromarray(predicted).save(paths[-1])
    truth = [path.with_name(path.name.replace("instanceIds", "labelIds")) for path in folder.instance_ids]
    return official_iou(truth, paths)


def ours(folder: Folder, predictions: list[np.ndarray]) -> SemanticScores:
    pairs = zip(folder.records(), predictions, strict=True)
    parts = [count_pixels(label_map(record), predicted, from_record(record)) for record, predicted in pairs]
    return iou_scores(sum(parts, PixelCounts.none()))


def assert_equal(scores: SemanticScores, expected: dict[str, Any]) -> None:
    def near(mine: dict[str, float], theirs: dict[str, float]) -> None:
        assert mine == pytest.approx({name: theirs[name] for name in mine}, rel=0, abs=NEAR, nan_ok=True)
        assert all(math.isnan(value) for name, value in theirs.items() if name not in mine)

    near(scores.per_class, expected["classScores"])
    near(scores.per_class_instance, expected["classInstScores"])
    near(scores.per_category, expected["categoryScores"])
    near(scores.per_category_instance, expected["categoryInstScores"])
    means = [expected[f"averageScore{kind}"] for kind in ("Classes", "InstClasses", "Categories", "InstCategories")]
    assert list(scores.stats.values()) == pytest.approx(means, rel=0, abs=NEAR, nan_ok=True)


def noisy(rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    """The labels with holes, other labels and labels that are not scored."""
    predicted = label_ids(ids).copy()
    for _ in range(int(rng.integers(0, 12))):
        y, x = rng.integers(0, HEIGHT), rng.integers(0, WIDTH)
        predicted[y : y + rng.integers(1, 30), x : x + rng.integers(1, 40)] = rng.integers(0, 34)
    return predicted


@pytest.mark.parametrize("seed", range(6))
def test_random_pictures(folder: Folder, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = [random_ids(rng, CATEGORY_IDS) for _ in range(int(rng.integers(1, 5)))]
    for ids in pictures:
        folder.add(ids, [])
    predictions = [noisy(rng, ids) for ids in pictures]
    scores = ours(folder, predictions)
    assert 0 < scores.stats["IoU"] < 1
    assert_equal(scores, officially(folder, predictions))


FLAT = np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)
STREET = FLAT.copy()
STREET[:9, :9], STREET[:9, 20:40], STREET[20:30, :5], STREET[20:21, 60:61] = 26000, 26, 29000, 24003


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize(
    ("ids", "predicted"),
    [
        (FLAT, FLAT),
        (FLAT, np.zeros_like(FLAT)),
        (np.zeros_like(FLAT), FLAT),  # nothing is scored
        (STREET, FLAT),
        (STREET, label_ids(STREET)),
        (STREET, np.full_like(FLAT, 29)),  # of the right category, not scored
        (STREET, np.full_like(FLAT, 33)),
        (np.full_like(FLAT, 24000), np.full_like(FLAT, 25)),  # one object, another class of its category
    ],
)
def test_awkward_pictures(folder: Folder, ids: np.ndarray, predicted: np.ndarray) -> None:
    folder.add(ids, [])
    predicted = predicted.astype(np.uint8)
    assert_equal(ours(folder, [predicted]), officially(folder, [predicted]))


def test_without_objects_there_is_no_iiou() -> None:
    scores = iou_scores(count_pixels(label_ids(STREET), label_ids(STREET)))
    assert scores.stats["IoU"] == 1.0 and scores.per_class["car"] == 1.0
    assert math.isnan(scores.stats["iIoU"])
    assert all(math.isnan(value) for value in iou_scores(PixelCounts.none()).stats.values())


def test_shards_are_scored_whole(folder: Folder, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    pictures = [random_ids(rng, CATEGORY_IDS) for _ in range(5)]
    for ids in pictures:
        folder.add(ids, [])
    predictions = [noisy(rng, ids) for ids in pictures]
    dataset = read_cityscapes(folder.root, "val", Quarantine(strict=True))
    shard_dataset(dataset, tmp_path / "shards", rows_per_shard=3, rows_per_group=2)
    names = {record["file_name"]: predicted for record, predicted in zip(folder.records(), predictions, strict=True)}
    scores = score_label_maps(tmp_path / "shards", lambda record: names[record["file_name"]])
    assert_equal(scores, officially(folder, predictions))


def test_train_ids() -> None:
    to_train = {label.id: label.trainId for label in official_labels if label.id >= 0}
    ids = np.array([[label.id for label in LABELS if label.id >= 0]], dtype=np.uint8)
    assert to_train_ids(ids).tolist() == [[to_train[i] for i in ids[0]]]
    back = from_train_ids(to_train_ids(ids))
    assert back.tolist() == [[i if to_train[i] != 255 else 0 for i in ids[0].tolist()]]
    with pytest.raises(UserError, match=r"train ids must be 0..18 or 255, got \[19, 20\]"):
        from_train_ids(np.array([[3, 19, 20]], dtype=np.uint8))


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (np.zeros((WIDTH, HEIGHT), dtype=np.uint8), "must have the picture's size"),
        (np.full((HEIGHT, WIDTH), 255, dtype=np.uint8), r"predicted labels must be label ids 0..33, got 255..255"),
        (np.full((HEIGHT, WIDTH), -1), "got -1..-1; convert train ids"),
        (np.zeros((HEIGHT, WIDTH)), "got float64"),
    ],
)
def test_what_is_no_label_map_is_refused(predicted: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        count_pixels(label_ids(FLAT), predicted)
