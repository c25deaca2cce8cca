"""Ours and torchvision's model trained on the same batches in one process, then scored alike."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from model.build import build_model
from model.types import Losses
from pipeline.benchmarks.in_process import planned_batches, predict_with, score, train, with_data
from pipeline.benchmarks.torchvision_peer import build_peer, peer_losses, peer_results
from pipeline.config import RunConfig
from pipeline.data.images import decode
from pipeline.data.mixture import join_manifests
from pipeline.data.records import Record


@dataclass(frozen=True)
class Score:
    """One trained model."""

    model: str  # "ours" or "torchvision"
    seed: int
    box_ap: float  # 0..1
    mask_ap: float
    cpu_seconds_a_step: float  # of the process


def train_and_score(config: RunConfig, which: str, seed: int, on_step: Callable[[int], None]) -> Score:
    """Train "ours" or "torchvision" for train.steps on this process's threads and evaluate on data.val."""
    config = with_data(config)
    category_ids = join_manifests(config.data.train or ()).category_ids
    torch.manual_seed(seed)

    def told(step: int, losses: Losses) -> None:
        on_step(step)

    if which == "ours":
        ours = build_model(config.model).to(memory_format=torch.channels_last).train()
        seconds = train(ours, ours, planned_batches(config, seed, "crop"), config, told)
        predict = predict_with(ours, config, category_ids)
    else:
        peer = build_peer(config).to(memory_format=torch.channels_last).train()
        seconds = train(peer, partial(peer_losses, peer), planned_batches(config, seed, "image"), config, told)
        peer.eval()

        def predict(records: list[Record]) -> list[dict[str, Any]]:
            ids = [record["sample_id"] for record in records]
            return peer_results(peer, [decode(record["image"]) for record in records], ids, category_ids)

    aps = score(predict, config)
    return Score(which, seed, aps["box"].stats["AP"], aps["mask"].stats["AP"], seconds)
