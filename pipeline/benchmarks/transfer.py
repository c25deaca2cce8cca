"""Does a transferred model learn faster than one from scratch? The same batches, steps and recipe for both."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from model.build import build_model
from model.mask_rcnn import MaskRCNN
from model.types import Losses
from pipeline.benchmarks.in_process import planned_batches, predict_with, score, train, with_data
from pipeline.config import InitConfig, RunConfig, TransferConfig
from pipeline.data.mixture import join_manifests
from pipeline.training.checkpoint import Meta, save_checkpoint, versions
from pipeline.training.transfer import Transfer, transfer_weights

Start = Literal["scratch", "transferred"]
_STATS = ("AP", "AP50")  # AP alone says nothing where hardly anything is learnt


@dataclass(frozen=True)
class Trial:
    """One trained model."""

    target: str  # directory of the shards that it was trained on
    seed: int
    start: Start
    aps: dict[str, float]  # "box AP", "box AP50" and perhaps those of masks, 0..1


def pretrain(config: RunConfig, checkpoint: Path, on_step: Callable[[int], None]) -> None:
    """Train on data.train from scratch and write a checkpoint."""
    config = with_data(config)
    manifest = join_manifests(config.data.train or ())
    torch.manual_seed(config.train.seed)
    model = build_model(config.model).to(memory_format=torch.channels_last).train()

    def told(step: int, losses: Losses) -> None:
        on_step(step)

    train(model, model, planned_batches(config, config.train.seed, "crop"), config, told)
    # Step 0: weights to start from, as imported ones are; there is nothing to continue.
    meta = Meta(0, manifest.class_names, manifest.category_ids, manifest.fingerprint, "pretrained", None, versions())
    save_checkpoint(checkpoint, model, None, config, meta)


def started(config: RunConfig, seed: int, checkpoint: Path | None) -> tuple[MaskRCNN, Transfer | None]:
    """A model with this seed's random weights, and with a checkpoint's over them, as init.transfer maps classes."""
    config = with_data(config)
    torch.manual_seed(seed)
    model = build_model(config.model)
    found = None
    if checkpoint is not None:
        mapping = replace(config.init.transfer or TransferConfig(), seed=seed)
        init = InitConfig(weights=str(checkpoint), transfer=mapping)
        names = join_manifests(config.data.train or ()).class_names
        found = transfer_weights(model, replace(config, init=init), names)
    return model, found


def trial(config: RunConfig, seed: int, checkpoint: Path | None, on_step: Callable[[int], None]) -> Trial:
    """Train on data.train with a seed's batches, from scratch or from a checkpoint, and score on data.val."""
    config = with_data(config)
    place = config.data.train
    assert isinstance(place, str)
    model, _ = started(config, seed, checkpoint)
    model = model.to(memory_format=torch.channels_last).train()

    def told(step: int, losses: Losses) -> None:
        on_step(step)

    train(model, model, planned_batches(config, seed, "crop"), config, told)
    aps = score(predict_with(model, config, join_manifests(place).category_ids), config)
    start: Start = "scratch" if checkpoint is None else "transferred"
    return Trial(place, seed, start, {f"{task} {name}": ap.stats[name] for task, ap in aps.items() for name in _STATS})
