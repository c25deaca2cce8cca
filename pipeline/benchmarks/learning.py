"""Variants of a table trained for a few steps each in one process: do they learn?"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from model.build import build_model
from model.types import Losses
from pipeline.benchmarks.in_process import planned_batches, predict_with, score, train, with_data
from pipeline.config import RunConfig
from pipeline.data.mixture import join_manifests


@dataclass(frozen=True)
class Learning:
    """What a variant learnt."""

    first: dict[str, float]  # each loss, mean over the first tenth of the steps
    last: dict[str, float]  # and over the last
    aps: dict[str, float]  # "box" and perhaps "mask", "mask_small" (objects under 32 x 32 px), "keypoint": AP, 0..1
    cpu_seconds_a_step: float


def learn(config: RunConfig, on_step: Callable[[int], None]) -> Learning:
    """Train a configuration from its seed on this process's threads, and evaluate on data.val."""
    config = with_data(config)
    torch.manual_seed(config.train.seed)
    model = build_model(config.model).to(memory_format=torch.channels_last).train()
    history: list[dict[str, float]] = []

    def record(step: int, losses: Losses) -> None:
        history.append({name: loss.item() for name, loss in losses.items()})
        on_step(step)

    seconds = train(model, model, planned_batches(config, config.train.seed, "crop"), config, record)
    aps = score(predict_with(model, config, join_manifests(config.data.train or ()).category_ids), config)
    some = max(1, len(history) // 10)
    return Learning(
        first=_means(history[:some]),
        last=_means(history[-some:]),
        aps={task: ap.stats["AP"] for task, ap in aps.items()}
        | ({"mask_small": aps["mask"].stats["AP_small"]} if "mask" in aps else {}),
        cpu_seconds_a_step=seconds,
    )


def _means(history: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.mean(losses[name] for losses in history) for name in history[0]}
