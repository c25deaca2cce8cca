"""`maskrcnn benchmark learning TABLE`: every variant of a table, trained for a few steps."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from jobs.console import out, progress
from pipeline.benchmarks.learning import learn
from pipeline.variants import load_table, row_config

LOSSES = ("rpn/objectness", "rpn/box", "box/class", "box/box", "mask/mask", "keypoint/keypoint")


def benchmark_learning(path: Path, overrides: Sequence[str], threads: int) -> None:
    """Print the losses of the first and of the last tenth of the steps of each variant, and its AP."""
    torch.set_num_threads(threads)
    table = load_table(path)
    variants = {row.name: row_config(table, row, overrides) for row in table.variants}
    shown = Table("variant", "loss", *LOSSES, "box AP", "mask AP", "CPU s a step", title=table.title)
    for name, config in variants.items():
        with progress(name, config.train.steps) as meter:
            found = learn(config, meter.reach)
        cells = [_change(found.first.get(loss), found.last.get(loss)) for loss in LOSSES]
        aps = [f"{100 * found.aps[task]:.1f}" if task in found.aps else "" for task in ("box", "mask")]
        total = _change(sum(found.first.values()), sum(found.last.values()))
        shown.add_row(name, total, *cells, *aps, f"{found.cpu_seconds_a_step:.2f}")
    out.print(shown)


def _change(first: float | None, last: float | None) -> str:
    return "" if first is None or last is None else f"{first:.2f} → {last:.2f}"
