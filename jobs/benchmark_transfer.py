"""`maskrcnn benchmark transfer CONFIG`: a model that starts from other classes' weights against one from scratch."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.table import Table

from jobs.console import out, progress
from jobs.transfer_table import show_transfer
from pipeline.benchmarks.transfer import Trial, pretrain, started, trial
from pipeline.config import RunConfig
from pipeline.configure import load_config
from pipeline.training.checkpoint import META


def benchmark_transfer(
    config_path: Path,
    overrides: Sequence[str],
    *,
    source: str,
    targets: Sequence[str],
    checkpoint: Path,
    pretrain_steps: int,
    seeds: int,
    threads: int,
) -> None:
    """Pretrain on `source` (unless the checkpoint is there), then train both on each target with each seed."""
    torch.set_num_threads(threads)
    config = load_config(config_path, overrides)
    if not (checkpoint / META).is_file():
        longer = replace(
            config,
            data=replace(config.data, train=source),
            optim=replace(config.optim, milestones=(max(1, pretrain_steps * 3 // 4),)),
            train=replace(config.train, steps=pretrain_steps),
        )
        with progress("pretraining", pretrain_steps) as meter:
            pretrain(longer, checkpoint, meter.reach)
    configs: dict[str, RunConfig] = {
        target: replace(config, data=replace(config.data, train=target)) for target in targets
    }
    _, found = started(configs[targets[0]], 0, checkpoint)
    assert found is not None
    show_transfer(found)
    trials: list[Trial] = []
    for target, own in configs.items():
        for seed in range(seeds):
            for weights in (None, checkpoint):
                title = f"{target}, seed {seed}, {'scratch' if weights is None else 'transferred'}"
                with progress(title, own.train.steps) as meter:
                    trials.append(trial(own, seed, weights, meter.reach))
                said = ", ".join(f"{name} {100 * ap:.1f}" for name, ap in trials[-1].aps.items())
                out.print(f"{title}: {said}", highlight=False, soft_wrap=True)
    table = Table(title=f"AP after {config.train.steps} steps, mean ± deviation of {seeds} seeds", box=None)
    for head in ("trained on", "", "scratch", "transferred", "gain, seed by seed", "ahead"):
        table.add_column(head)
    for target in targets:
        for name in trials[0].aps:
            rows = {
                start: [100 * t.aps[name] for t in trials if (t.target, t.start) == (target, start)]
                for start in ("scratch", "transferred")
            }
            gains = [b - a for a, b in zip(rows["scratch"], rows["transferred"], strict=True)]
            ahead = f"{sum(gain > 0 for gain in gains)} of {seeds}"
            table.add_row(target, name, _spread(rows["scratch"]), _spread(rows["transferred"]), _spread(gains), ahead)
    out.print(table)


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"
