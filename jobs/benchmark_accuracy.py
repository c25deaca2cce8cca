"""`maskrcnn benchmark accuracy CONFIG`: what our model learns against torchvision's, on the same batches."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from jobs.console import out, progress
from pipeline.benchmarks.accuracy import Score, train_and_score
from pipeline.configure import load_config


def benchmark_accuracy(config_path: Path, overrides: Sequence[str], seeds: int, threads: int) -> None:
    """Train both with each seed, interleaved; print the AP of every run, and mean and spread."""
    torch.set_num_threads(threads)
    config = load_config(config_path, overrides)
    scores: list[Score] = []
    for seed in range(seeds):
        for which in ("ours", "torchvision"):
            with progress(f"{which}, seed {seed}", config.train.steps) as meter:
                scores.append(train_and_score(config, which, seed, meter.reach))
            last = scores[-1]
            out.print(
                f"{which} seed {seed}: box AP {100 * last.box_ap:.1f}, mask AP {100 * last.mask_ap:.1f}, "
                f"{last.cpu_seconds_a_step:.2f} CPU s a step",
                highlight=False,
            )
    table = Table("model", "box AP", "mask AP", "CPU s a step", title=f"{config.train.steps} steps, {seeds} seeds")
    for which in ("ours", "torchvision"):
        own = [score for score in scores if score.model == which]
        table.add_row(
            which,
            _spread([100 * score.box_ap for score in own]),
            _spread([100 * score.mask_ap for score in own]),
            f"{statistics.median(score.cpu_seconds_a_step for score in own):.2f}",
        )
    out.print(table)


def _spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
