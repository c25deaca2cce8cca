"""`maskrcnn benchmark learning TABLE`: every variant of a table, trained for a few steps."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from jobs.console import out, progress
from pipeline.benchmarks.learning import learn
from pipeline.variants import load_table, row_config

LOSSES = ("rpn/objectness", "rpn/box", "box/class", "box/box", "mask/mask", "keypoint/keypoint")
TASKS = ("box", "mask", "mask_small", "keypoint")
HEADS = ("all", "rpn\nclass", "rpn\nbox", "box\nclass", "box\nbox", "mask", "key-\npoint")


def benchmark_learning(path: Path, overrides: Sequence[str], threads: int) -> None:
    """Print the losses of the first and of the last tenth of the steps of each variant, and its AP."""
    torch.set_num_threads(threads)
    table = load_table(path)
    variants = {row.name: row_config(table, row, overrides) for row in table.variants}
    heads = ("variant", *HEADS, "AP\nbox", "AP\nmask", "AP\nsmall", "AP\npoint", "CPU s\na step")
    shown = Table(*heads, title=table.title, box=None, padding=(0, 1, 0, 0))
    for name, config in variants.items():
        with progress(name, config.train.steps) as meter:
            found = learn(config, meter.reach)
        losses = [_two(sum(found.first.values()), sum(found.last.values()))]
        losses += [_two(found.first[loss], found.last[loss]) if loss in found.first else "" for loss in LOSSES]
        aps = [f"{100 * found.aps[task]:.1f}" if task in found.aps else "" for task in TASKS]
        shown.add_row(name, *losses, *aps, f"{found.cpu_seconds_a_step:.2f}")
    out.print(shown)
    out.print(
        "losses: mean over the first tenth of the steps, below it over the last; AP small: masks under 32 x 32 px",
        highlight=False,
    )


def _two(first: float, last: float) -> str:
    return f"{first:.2f}\n{last:.2f}"
