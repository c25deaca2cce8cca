"""Ours and torchvision's model trained on the same batches in one process, then scored alike."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from model.build import build_model
from model.config import MaskTarget
from model.types import Batch
from pipeline.benchmarks.torchvision_peer import build_peer, peer_losses, peer_results
from pipeline.config import RunConfig
from pipeline.data.augment import plain_recipe
from pipeline.data.collate import Collator, Work, collate
from pipeline.data.images import decode
from pipeline.data.loader import make_recipes
from pipeline.data.mixture import join_manifests, locations
from pipeline.data.plan import plan_of
from pipeline.data.read_task import read_keys
from pipeline.data.records import Record
from pipeline.data.shard_rows import read_rows
from pipeline.data.shards import annotations, load_index, to_records
from pipeline.evaluation.coco_ap import evaluate_coco
from pipeline.evaluation.coco_rle import detections_to_results
from pipeline.training.optim import lr_at, make_sgd, set_lr


@dataclass(frozen=True)
class Score:
    """One trained model."""

    model: str  # "ours" or "torchvision"
    seed: int
    box_ap: float  # 0..1
    mask_ap: float
    cpu_seconds_a_step: float  # of the process


def planned_batches(config: RunConfig, seed: int, targets: MaskTarget) -> Iterator[Batch]:
    """The batches that a run with this seed trains on, read without Ray."""
    data, train = replace(config.data, drop_empty=True), replace(config.train, seed=seed)
    config = replace(config, data=data, train=train)
    plan, places = plan_of(config), locations(data.train or ())
    recipes = replace(make_recipes(config), targets=targets)

    def work() -> Iterator[list[Work]]:
        for step in range(train.steps):
            batch = plan.batch(step)
            yield recipes.work(batch, to_records(read_keys(plan.index.take(batch.all_rows), places)))

    return Collator(1, 2, recipes.divisor, targets, _refuse, recipes.keypoints)(work())


def train_and_score(config: RunConfig, which: str, seed: int, on_step: Callable[[int], None]) -> Score:
    """Train "ours" or "torchvision" for train.steps on this process's threads and evaluate on data.val."""
    manifest = join_manifests(config.data.train or ())
    config = replace(config, model=replace(config.model, classes=len(manifest.class_names)))
    torch.manual_seed(seed)
    ours = which == "ours"
    model = (build_model(config.model) if ours else build_peer(config)).to(memory_format=torch.channels_last).train()
    optimiser = make_sgd(model, config.optim)
    bf16 = config.train.precision == "bf16"
    started = time.process_time()
    for step, batch in enumerate(planned_batches(config, seed, "crop" if ours else "image")):
        set_lr(optimiser, lr_at(config.optim, config.train.batch_images, step))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            losses = model(batch) if ours else peer_losses(model, batch)
        optimiser.zero_grad()
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        on_step(step + 1)
    cpu_seconds = (time.process_time() - started) / config.train.steps
    model.eval()
    results = []
    shards = config.data.val or ""
    rows = load_index(shards)
    size = config.evaluate.batch_images
    paste = config.model.mask
    for start in range(0, rows.num_rows, size):
        records = to_records(read_rows(shards, rows.slice(start, size)))
        ids = [record["sample_id"] for record in records]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if ours:
                assert paste is not None
                for sample_id, found in zip(ids, model.predict(_plain(config, records)), strict=True):  # type: ignore[operator]
                    results += detections_to_results(
                        found, sample_id, manifest.category_ids, paste.paste, paste.threshold
                    )
            else:
                results += peer_results(model, [decode(r["image"]) for r in records], ids, manifest.category_ids)
    truth = annotations(shards)
    box, mask = evaluate_coco(truth, results, "box"), evaluate_coco(truth, results, "mask")
    return Score(which, seed, box.stats["AP"], mask.stats["AP"], cpu_seconds)


def _plain(config: RunConfig, records: list[Record]) -> Batch:
    data = config.data
    work = [Work(r, plain_recipe(r["height"], r["width"], data.test_size_px, data.test_max_size_px)) for r in records]
    return collate(work, config.model.input.divisor, None, None, _refuse)


def _refuse(sample_id: int, reason: str) -> None:
    raise ValueError(f"sample {sample_id} cannot be decoded: {reason}; run `maskrcnn shard` again")
