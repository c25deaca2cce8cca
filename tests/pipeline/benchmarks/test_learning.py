import math
from pathlib import Path

import pytest

from pipeline.benchmarks.accuracy import train_and_score
from pipeline.benchmarks.in_process import NotFiniteError, planned_batches, with_data
from pipeline.benchmarks.learning import learn
from pipeline.config import RunConfig
from pipeline.data.coco import read_coco
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.shapes import annotation_files
from pipeline.data.sharding import shard_dataset
from pipeline.variants import load_table, row_config

TABLE = load_table(Path(__file__).parents[3] / "configs/shapes/variants.yaml")
SMALL = (
    "train.steps=2",
    "train.batch_images=2",
    "data.train_sizes_px=[64]",
    "data.test_size_px=64",
    "model.rpn.pre_nms_train=50",
    "model.rpn.post_nms_train=30",
    "model.rpn.post_nms_test=20",
    "model.roi.batch_per_image=12",
    "model.box.detections_per_image=5",
    "optim.lr=1e-4",
    "evaluate.max_images=3",
)


@pytest.fixture(scope="module")
def shards(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """With keypoints."""
    place = tmp_path_factory.mktemp("keypoints")
    for split in ("train", "val"):
        instances, keypoints = annotation_files(shapes / "coco", split)
        dataset = read_coco(instances, shapes / "coco" / split, Quarantine(strict=True), keypoints)
        shard_dataset(dataset, place / split, rows_per_shard=10, rows_per_group=4)
    return {split: place / split for split in ("train", "val")}


def config(name: str, shards: dict[str, Path], *more: str) -> RunConfig:
    (row,) = (row for row in TABLE.variants if row.name == name)
    places = [f"data.{split}={path}" for split, path in shards.items()]
    return row_config(TABLE, row, [*SMALL, *places, *more])


@pytest.mark.parametrize("name", [row.name for row in TABLE.variants])
def test_every_kind_trains_and_is_scored(name: str, shards: dict[str, Path]) -> None:
    done: list[int] = []
    found = learn(config(name, shards), done.append)
    assert done == [1, 2]
    expected = {"rpn/objectness", "rpn/box", "box/class", "box/box", "mask/mask"}
    tasks = {"box", "mask", "mask_small"}
    if name == "keypoints":
        expected, tasks = expected | {"keypoint/keypoint"}, tasks | {"keypoint"}
    assert found.first.keys() == found.last.keys() == expected
    assert all(math.isfinite(loss) and loss > 0 for loss in found.first.values())
    assert found.first != found.last
    assert found.aps.keys() == tasks and all(0 <= ap <= 1 for ap in found.aps.values())
    assert found.cpu_seconds_a_step > 0


def test_the_same_seed_learns_the_same(shards: dict[str, Path]) -> None:
    boxes = config("FPN", shards, "model.mask=null")
    one, other = (learn(boxes, lambda step: None) for _ in range(2))
    assert one.last == other.last and one.aps == other.aps and set(one.aps) == {"box"}


def test_divergence_is_an_error(shards: dict[str, Path]) -> None:
    with pytest.raises(NotFiniteError, match=r"step 2: the gradient is not finite \(rpn/objectness .*lower optim\.lr"):
        learn(config("FPN", shards, "optim.lr=1e30", "optim.warmup_steps=0", "optim.clip_norm=null"), lambda step: None)


def test_keypoints_come_with_the_batches(shards: dict[str, Path], shapes: Path) -> None:
    filled = with_data(config("keypoints", shards))
    assert filled.model.classes == 8
    assert filled.model.keypoint is not None and filled.model.keypoint.count == 4
    targets = next(planned_batches(filled, 0, "crop")).targets
    assert targets is not None and targets.keypoints is not None
    assert targets.keypoints.shape == (*targets.classes.shape, 4, 3)
    boxes, points = targets.boxes[targets.valid], targets.keypoints[targets.valid]
    near = (points[..., :2] > boxes[:, None, :2] - 1) & (points[..., :2] < boxes[:, None, 2:] + 1)
    assert len(points) > 0 and near.all() and (points[..., 2] == 2).all()
    assert ((points[:, 0, 1] - boxes[:, 1]).abs() <= 1).all()  # top lies on the box's upper edge
    with pytest.raises(DataError, match=r"has no keypoints for model\.keypoint; shard it with --keypoints"):
        with_data(config("keypoints", {split: shapes / split for split in ("train", "val")}))


def test_both_of_accuracy_train(shards: dict[str, Path]) -> None:
    for which in ("ours", "torchvision"):
        done: list[int] = []
        score = train_and_score(config("FPN", shards), which, 1, done.append)
        assert (score.model, score.seed, done) == (which, 1, [1, 2])
        assert 0 <= score.box_ap <= 1 and 0 <= score.mask_ap <= 1 and score.cpu_seconds_a_step > 0
