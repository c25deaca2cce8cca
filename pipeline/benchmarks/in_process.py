"""Training and scoring in this process, without Ray and checkpoints: the same batches, optimiser and AP as a run's."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from model.config import MaskTarget
from model.mask_rcnn import MaskRCNN
from model.types import Batch, Losses
from pipeline.config import RunConfig
from pipeline.data.augment import plain_recipe
from pipeline.data.collate import Collator, Work, collate
from pipeline.data.loader import make_recipes
from pipeline.data.mixture import join_manifests, locations
from pipeline.data.plan import plan_of
from pipeline.data.quarantine import DataError
from pipeline.data.read_task import read_keys
from pipeline.data.records import Record
from pipeline.data.shard_rows import read_rows
from pipeline.data.shards import annotations, load_index, to_records
from pipeline.errors import UserError
from pipeline.evaluation.coco_ap import CocoAp, evaluate_coco
from pipeline.evaluation.coco_rle import detections_to_results
from pipeline.evaluation.evaluate import tasks_of
from pipeline.training.freezing import Freezing, outputs_of
from pipeline.training.optim import lr_at, make_sgd, set_lr

Predict = Callable[[list[Record]], list[dict[str, Any]]]  # COCO results of some images


class NotFiniteError(UserError):
    """The training diverged."""


def with_data(config: RunConfig) -> RunConfig:
    """`config` with the number of classes, and of keypoints where they are learnt, of its training data.

    Raises:
        DataError: keypoints are to be learnt, and it has none.
    """
    manifest = join_manifests(config.data.train or ())
    model = replace(config.model, classes=len(manifest.class_names))
    if model.keypoint is not None:
        if manifest.keypoints is None:
            raise DataError(f"{config.data.train} has no keypoints for model.keypoint; shard it with --keypoints")
        model = replace(model, keypoint=replace(model.keypoint, count=len(manifest.keypoints.names)))
    return replace(config, model=model)


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


def train(
    model: nn.Module,
    losses_of: Callable[[Batch], Losses],
    batches: Iterator[Batch],
    config: RunConfig,
    on_step: Callable[[int, Losses], None],
) -> float:
    """Train on all batches on this process's threads; returns its CPU seconds a step, decoding included.

    `on_step` is told how many steps are done and the losses of the last one.

    Raises:
        NotFiniteError: a gradient was not finite. A run would skip the step; here it says that nothing was measured.
    """
    optimiser = make_sgd(model, config.optim)
    freezing = Freezing(model, config.optim, outputs_of(config.model))
    parameters = [p for p in model.parameters() if p.requires_grad]
    most = config.optim.clip_norm or float("inf")
    started, steps = time.process_time(), 0
    for step, batch in enumerate(batches):
        set_lr(optimiser, lr_at(config.optim, config.train.batch_images, step))
        freezing.at(step, optimiser)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
            losses = losses_of(batch)
        optimiser.zero_grad()
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(parameters, most)
        if not norm.isfinite():
            values = ", ".join(f"{name} {loss.item():.3g}" for name, loss in losses.items())
            raise NotFiniteError(f"step {step + 1}: the gradient is not finite ({values}); lower optim.lr")
        optimiser.step()
        steps = step + 1
        on_step(steps, losses)
    return (time.process_time() - started) / max(steps, 1)


def score(predict: Predict, config: RunConfig) -> dict[str, CocoAp]:
    """AP of what the model finds (boxes, masks, keypoints) on data.val, or its first evaluate.max_images."""
    shards = config.data.val or ""
    rows = load_index(shards)[: config.evaluate.max_images]
    results: list[dict[str, Any]] = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
        for start in range(0, rows.num_rows, config.evaluate.batch_images):
            results += predict(to_records(read_rows(shards, rows.slice(start, config.evaluate.batch_images))))
    seen, truth = set(rows["sample_id"].to_pylist()), annotations(shards)
    truth["images"] = [image for image in truth["images"] if image["id"] in seen]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in seen]
    return {task: evaluate_coco(truth, results, task) for task in tasks_of(config.model)}


def predict_with(model: MaskRCNN, config: RunConfig, category_ids: Sequence[int]) -> Predict:
    """Our model's detections as COCO results; it is put into eval mode."""
    model.eval()
    data, mask = config.data, config.model.mask

    def predict(records: list[Record]) -> list[dict[str, Any]]:
        work = [
            Work(r, plain_recipe(r["height"], r["width"], data.test_size_px, data.test_max_size_px)) for r in records
        ]
        found = model.predict(collate(work, config.model.input.divisor, None, None, _refuse))
        results = []
        for record, one in zip(records, found, strict=True):
            rule = () if mask is None else (mask.paste, mask.threshold)
            results += detections_to_results(one, record["sample_id"], category_ids, *rule)
        return results

    return predict


def _refuse(sample_id: int, reason: str) -> None:
    raise ValueError(f"sample {sample_id} cannot be decoded: {reason}; run `maskrcnn shard` again")
