"""The visits that are drawn are those that a run trains on."""

from pathlib import Path

import pyarrow.compute as pc
import pytest

from pipeline.config import AugmentConfig, DataConfig, RunConfig, TrainConfig
from pipeline.data.loader import make_recipes
from pipeline.data.plan import plan_of
from pipeline.data.quarantine import DataError
from pipeline.data.shard_rows import read_rows
from pipeline.data.shards import to_records
from pipeline.evaluation.visits import planned_visits


@pytest.mark.parametrize("repeat_threshold", [None, 1.0])
def test_visits_are_those_of_the_batches(shapes: Path, repeat_threshold: float | None) -> None:
    config = RunConfig(
        data=DataConfig(
            train=str(shapes / "train"),
            train_sizes_px=(48, 64),
            train_max_size_px=100,
            augment=AugmentConfig(copy_paste_probability=0.6),
            repeat_threshold=repeat_threshold,
        ),
        train=TrainConfig(batch_images=5, seed=3),
    )
    plan, recipes = plan_of(config), make_recipes(config)
    number = plan.index["sample_id"][4].as_py()
    expected = []
    for step in range(60):  # every batch as training makes it, whole
        batch = plan.batch(step)
        records = to_records(read_rows(shapes / "train", plan.index.take(batch.all_rows)))
        for work in recipes.work(batch, records):
            if work.record["sample_id"] == number:
                title = f"step {step}, {batch.size_px} px"
                title += "" if work.partner is None else f", pasted from {work.partner['sample_id']}"
                expected.append((title, work))
    found = planned_visits(plan, recipes, shapes / "train", number, 6)
    assert found == expected[:6] and len(expected) > 6
    assert {work.partner is None for _, work in found} == {True, False}


def test_a_sample_that_does_not_train(shapes: Path) -> None:
    config = RunConfig(data=DataConfig(train=str(shapes / "train")))
    plan, recipes = plan_of(config), make_recipes(config)
    gone = plan.index["sample_id"][0].as_py()
    plan.index = plan.index.filter(pc.not_equal(plan.index["sample_id"], gone))
    with pytest.raises(DataError, match=f"sample {gone} does not train: .*add data.drop_empty=false"):
        planned_visits(plan, recipes, shapes / "train", gone, 2)
