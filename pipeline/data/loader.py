"""The batches that a worker trains on: plan -> Ray Data -> recipes -> Batch, ahead of the step.

`data.decode` says where pictures are decoded: by threads of the worker (`worker`: encoded pictures travel, which are
ten times smaller), or by Ray tasks on any node of the cluster (`cluster`: for machines whose CPUs cannot keep up with
their GPUs).
"""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Generic, TypeVar

from model.types import Batch
from pipeline.config import RunConfig
from pipeline.data.collate import Collator
from pipeline.data.mixture import locations
from pipeline.data.plan import Plan
from pipeline.data.recipes import Recipes
from pipeline.data.records import PROPOSAL_COLUMNS
from pipeline.data.shard_rows import COLUMNS
from pipeline.data.shards import load_manifest
from pipeline.data.stream import Reading, stream_batches, stream_records

_T = TypeVar("_T")


def training_batches(
    config: RunConfig,
    plan: Plan,
    steps: range,
    rank: int,
    world: int,
    threads: int,
    decode_cpus: float,
    on_bad: Callable[[int, str], None],
) -> Iterator[Batch]:
    """The share of worker `rank` of `world` in the batches of `steps`.

    Args:
        config: its `data`, `train` and `model` sections.
        plan: of the run.
        steps: which batches, in order.
        rank: of this worker.
        world: workers.
        threads: that decode in this process (`data.decode: worker`).
        decode_cpus: of the cluster, for the tasks that decode for this worker (`data.decode: cluster`).
        on_bad: told (sample_id, reason) of pictures that cannot be decoded.
    """
    data = config.data
    assert data.train is not None
    places = locations(data.train)
    recipes = make_recipes(config)
    shares = (plan.batch(step).share(rank, world) for step in steps)
    reading = make_reading(config)
    if data.decode == "cluster":
        reading = replace(reading, tasks=max(1, int(decode_cpus)), task_cpus=min(1.0, decode_cpus))
        with closing(Ahead(stream_batches(shares, plan.index, places, recipes, reading, on_bad), 1)) as ready:
            yield from ready
        return
    collate = Collator(
        threads, data.prefetch_batches, recipes.divisor, recipes.targets, on_bad, recipes.keypoints, recipes.proposals
    )
    with closing(Ahead(stream_records(shares, plan.index, places, reading), data.prefetch_batches)) as streamed:
        yield from collate(recipes.work(batch, records) for batch, records in streamed)


def make_recipes(config: RunConfig) -> Recipes:
    """What a configuration does to its samples. Raises DataError."""
    data, mask = config.data, config.model.mask
    assert data.train is not None
    keypoints = load_manifest(locations(data.train)[0]).keypoints
    return Recipes(
        seed=config.train.seed,
        longest_px=data.train_max_size_px,
        augment=data.augment,
        divisor=config.model.input.divisor,
        targets=mask.target if mask is not None else "crop",
        keypoints=None if keypoints is None else keypoints.flip,
        proposals=data.proposals_train if config.model.rpn is None else None,
    )


def make_reading(config: RunConfig) -> Reading:
    """How a configuration's workers read, and which columns its model needs."""
    data = config.data
    columns = COLUMNS if config.model.rpn is not None else (*COLUMNS, *PROPOSAL_COLUMNS)
    return Reading(data.task_rows, data.read_tasks, 0.0, data.chunk_mb << 20, data.prefetch_batches, columns)


class Ahead(Generic[_T]):
    """Iterates in a thread of its own, up to `ahead` items before they are asked for."""

    def __init__(self, source: Iterator[_T], ahead: int) -> None:
        self._items: queue.Queue[tuple[bool, _T | BaseException | None]] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(source,), name="ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> "Ahead[_T]":
        return self

    def __next__(self) -> _T:
        real, item = self._items.get()
        if real:
            return item  # type: ignore[return-value]
        self._items.put((False, item))  # the end stays the end
        if item is None:
            raise StopIteration
        assert isinstance(item, BaseException)
        raise item

    def close(self) -> None:
        """Stop the thread and its source."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._items.get(timeout=0.05)  # it may wait for room
            except queue.Empty:
                continue

    def _run(self, source: Iterator[_T]) -> None:
        end: BaseException | None = None
        try:
            for item in source:
                self._items.put((True, item))
                if self._stopped.is_set():
                    break
        except BaseException as error:  # raised again by __next__, in the consumer's thread
            end = error
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()
        self._items.put((False, end))
