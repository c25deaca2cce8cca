"""The batches of a worker: the same wherever they are decoded, each worker by itself, and nothing left running."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.types import Batch, Targets
from pipeline.config import AugmentConfig, DataConfig, RunConfig, TrainConfig
from pipeline.data.coco import read_coco
from pipeline.data.collate import collate
from pipeline.data.loader import Ahead, make_reading, make_recipes, training_batches
from pipeline.data.plan import plan_of
from pipeline.data.proposals import with_proposals
from pipeline.data.quarantine import Quarantine
from pipeline.data.read_task import read_keys
from pipeline.data.shard_rows import read_rows
from pipeline.data.sharding import shard_dataset
from pipeline.data.shards import to_records

AUGMENT = AugmentConfig(copy_paste_probability=0.5, brightness=0.2, crop_share=(0.5, 1.0))


@pytest.fixture(scope="module")
def config(shapes: Path) -> RunConfig:
    data = DataConfig(
        train=(str(shapes / "train"), str(shapes / "val")),
        val=str(shapes / "val"),
        train_sizes_px=(64, 96),
        train_max_size_px=160,
        augment=AUGMENT,
        task_rows=8,
        prefetch_batches=2,
    )
    return RunConfig(data=data, train=TrainConfig(batch_images=4, steps=9, seed=3))


def refuse(sample_id: int, reason: str) -> None:
    raise AssertionError((sample_id, reason))


def load(config: RunConfig, steps: range, rank: int, world: int) -> Iterator[Batch]:
    return training_batches(config, plan_of(config), steps, rank, world, 2, 0.5, refuse)


def assert_same(a: Batch, b: Batch) -> None:
    assert a.targets is not None and b.targets is not None
    for one, other, names in ((a, b, fields(Batch)), (a.targets, b.targets, fields(Targets))):
        for f in names:
            x, y = getattr(one, f.name), getattr(other, f.name)
            assert type(x) is type(y)
            if isinstance(x, torch.Tensor):
                assert torch.equal(x, y), f.name
    assert all(torch.equal(x, y) for x, y in zip(a.proposals or (), b.proposals or (), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("decode", ["worker", "cluster"])
@pytest.mark.parametrize(("rank", "world", "start"), [(0, 1, 0), (1, 2, 4)])
def test_batches_are_those_of_the_plan(
    local_ray: None, config: RunConfig, decode: Any, rank: int, world: int, start: int
) -> None:
    config = replace(config, data=replace(config.data, decode=decode))
    plan, recipes = plan_of(config), make_recipes(config)
    places = (config.data.train or ()) if not isinstance(config.data.train, str) else (config.data.train,)
    steps = range(start, 9)
    loaded = list(load(config, steps, rank, world))
    assert len(loaded) == len(steps)
    for step, batch in zip(steps, loaded, strict=True):
        planned = plan.batch(step).share(rank, world)
        records = to_records(read_keys(plan.index.take(planned.all_rows), places))
        expected = collate(recipes.work(planned, records), recipes.divisor, recipes.targets, recipes.keypoints, refuse)
        assert_same(batch, expected)


@pytest.mark.slow
@pytest.mark.parametrize("decode", ["worker", "cluster"])
def test_a_model_without_an_rpn_gets_the_proposals_of_the_shards(
    local_ray: None, config: RunConfig, proposed: Path, decode: Any
) -> None:
    data = replace(
        config.data, train=str(proposed), decode=decode, proposals_train=20, augment=AugmentConfig(flip_probability=0.5)
    )
    config = replace(config, data=data, model=replace(config.model, rpn=None))
    plan, recipes = plan_of(config), make_recipes(config)
    for step, batch in enumerate(load(config, range(3), 0, 1)):
        planned = plan.batch(step)
        records = to_records(read_rows(proposed, plan.index.take(planned.all_rows), make_reading(config).columns))
        assert batch.proposals is not None and batch.proposals.boxes.shape == (4, 20, 4)
        assert batch.proposals.real.sum(1).tolist() == [min(20, len(r["proposals"])) for r in records]
        work = recipes.work(planned, records)
        expected = collate(work, recipes.divisor, recipes.targets, recipes.keypoints, refuse, 20)
        assert_same(batch, expected)


@pytest.fixture(scope="module")
def proposed(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training scenes with up to 40 random proposals each."""
    place = tmp_path_factory.mktemp("proposed")
    rng = np.random.default_rng(0)
    file = shapes / "coco/annotations/instances_train.json"
    images = [image["id"] for image in json.loads(file.read_text())["images"]]
    results = [
        {"image_id": image, "bbox": [*rng.uniform(0, 40, 2), *rng.uniform(2, 24, 2)], "score": rng.random()}
        for number, image in enumerate(images)
        for _ in range(40 if number % 3 else number)
    ]
    (place / "proposals.json").write_text(json.dumps(results))
    dataset = with_proposals(
        read_coco(file, shapes / "coco/train", Quarantine(strict=True)), [place / "proposals.json"]
    )
    shard_dataset(dataset, place / "shards", rows_per_shard=10, rows_per_group=4)
    return place / "shards"


@pytest.mark.slow
@pytest.mark.parametrize("decode", ["worker", "cluster"])
def test_a_worker_that_ends_early_holds_nobody_up(local_ray: None, config: RunConfig, decode: Any) -> None:
    config = replace(config, data=replace(config.data, decode=decode))
    first, second = load(config, range(9), 0, 2), load(config, range(9), 1, 2)
    next(first)
    next(second)
    first.close()  # type: ignore[attr-defined]
    assert len(list(second)) == 8
    for _ in range(100):
        if not any(thread.name == "ahead" for thread in threading.enumerate()):
            break
        time.sleep(0.05)
    assert not [thread.name for thread in threading.enumerate() if thread.name in ("ahead",)]


def test_ahead_gives_all_in_order_and_then_ends() -> None:
    ahead = Ahead(iter(range(50)), 3)
    assert list(ahead) == list(range(50))
    with pytest.raises(StopIteration):
        next(ahead)
    ahead.close()


def test_ahead_is_not_further_ahead_than_told() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    ahead = Ahead(source(), 4)
    time.sleep(0.2)
    assert len(taken) == 5  # four kept, one in the hand
    assert next(ahead) == 0
    ahead.close()
    assert len(taken) < 12


def test_an_error_of_the_source_comes_in_its_place() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("no disk")

    ahead = Ahead(source(), 2)
    assert next(ahead) == 1
    for _ in range(2):  # and stays
        with pytest.raises(OSError, match="no disk"):
            next(ahead)


def test_closing_closes_the_source() -> None:
    closed = []

    def source() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    ahead = Ahead(source(), 1)
    next(ahead)
    ahead.close()
    assert closed == [True]
