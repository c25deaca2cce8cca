"""How many images a second reach the training loop: Ray Data against a bare loop and a PyTorch DataLoader.

All make the same batches with the same code (recipes, collator) on as many threads, tasks or processes. A rate is taken
in the middle of a run, where as much is kept ready at its end as at its beginning.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from torch.utils.data import DataLoader, Dataset

from model.types import Batch
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data.collate import Collator, collate
from pipeline.data.loader import make_recipes, training_batches
from pipeline.data.mixture import locations
from pipeline.data.plan import Plan, plan_of
from pipeline.data.read_task import read_keys
from pipeline.data.shards import to_records

Way = Literal["bare loop", "Ray, decoded in the worker", "Ray, decoded in tasks", "PyTorch DataLoader"]
EDGE = 8  # batches at each end of a run that are not timed


@dataclass(frozen=True)
class Delivery:
    """What one way delivered."""

    way: Way
    images_per_second: tuple[float, ...]  # a round


def delivery_config(shards: str, batch_images: int, shorter_px: int) -> RunConfig:
    """One size, flips, no other augmentation."""
    data = DataConfig(train=shards, val=shards, train_sizes_px=(shorter_px,), prefetch_batches=2)
    return RunConfig(data=data, train=TrainConfig(batch_images=batch_images))


def measure_delivery(
    config: RunConfig, steps: int, threads: int, rounds: int, on_round: Callable[[int], None]
) -> list[Delivery]:
    """Images a second of every way, in turn, `rounds` times. Ray must run."""
    plan = plan_of(config)
    in_tasks = replace(config, data=replace(config.data, decode="cluster"))
    ways: dict[Way, Callable[[], Iterator[Batch]]] = {
        "bare loop": lambda: _bare(config, plan, steps, threads),
        "Ray, decoded in the worker": lambda: _on_ray(config, plan, steps, threads),
        "Ray, decoded in tasks": lambda: _on_ray(in_tasks, plan, steps, threads),
        "PyTorch DataLoader": lambda: _data_loader(config, steps, threads),
    }
    found: dict[Way, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, batches in ways.items():
            found[way].append(_rate(batches(), steps, config.train.batch_images))
        on_round(number + 1)
    return [Delivery(way, tuple(rates)) for way, rates in found.items()]


def _rate(batches: Iterator[Batch], steps: int, batch_images: int) -> float:
    started = ended = 0.0
    count = 0
    for count, _ in enumerate(batches, start=1):
        if count == EDGE:
            started = time.perf_counter()
        if count == steps - EDGE:
            ended = time.perf_counter()
    assert count == steps
    return (steps - 2 * EDGE) * batch_images / (ended - started)


def _bare(config: RunConfig, plan: Plan, steps: int, threads: int) -> Iterator[Batch]:
    """The transforms alone: records lie in memory."""
    recipes, places = make_recipes(config), locations(config.data.train or ())
    work = []
    for step in range(steps):
        batch = plan.batch(step)
        work.append(recipes.work(batch, to_records(read_keys(plan.index.take(batch.all_rows), places))))
    collator = Collator(threads, config.data.prefetch_batches, recipes.divisor, recipes.targets, _refuse)
    return collator(work)


def _on_ray(config: RunConfig, plan: Plan, steps: int, threads: int) -> Iterator[Batch]:
    return training_batches(config, plan, range(steps), 0, 1, threads, float(threads), _refuse)


class _Steps(Dataset[Batch]):
    """Batch `step` of the plan, made in the process that asks."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.plan: Plan | None = None

    def __getitem__(self, step: int) -> Batch:
        if self.plan is None:
            self.plan, self.recipes = plan_of(self.config), make_recipes(self.config)
        batch = self.plan.batch(step)
        rows = read_keys(self.plan.index.take(batch.all_rows), locations(self.config.data.train or ()))
        work = self.recipes.work(batch, to_records(rows))
        return collate(work, self.recipes.divisor, self.recipes.targets, self.recipes.keypoints, _refuse)


def _data_loader(config: RunConfig, steps: int, workers: int) -> Iterator[Batch]:
    """Batches made whole in the loader's processes: less travels than with single samples."""
    return iter(
        DataLoader(
            _Steps(config),
            batch_size=None,
            sampler=range(steps),
            num_workers=workers,
            multiprocessing_context="spawn",  # this process has threads of Ray's
        )
    )


def _refuse(sample_id: int, reason: str) -> None:
    raise ValueError(f"sample {sample_id} cannot be decoded: {reason}; run `maskrcnn shard` again")
