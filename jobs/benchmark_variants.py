"""`maskrcnn benchmark variants TABLE...`: what each model of some tables costs."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.table import Table

from jobs.console import out, progress
from pipeline.benchmarks.variants import distinct_models, measure_size, measure_step
from pipeline.variants import load_table

HEIGHT, WIDTH, ROIS = 192, 256, 64  # of timed steps: small, and so many that one model does not wait for its heads


def benchmark_variants(tables: Sequence[Path], rounds: int, threads: int) -> None:
    """Print parameters, multiply-adds and (with rounds) times of each model that the tables have."""
    torch.set_num_threads(threads)
    models = distinct_models([load_table(path) for path in tables])
    shown = Table("model", "10⁶ par-\nameters", "10⁹ multi-\nply-adds", box=None)
    if rounds:
        shown.add_column("step, x\ntorchvision")
    with progress("models", len(models)) as meter:
        for done, (name, config) in enumerate(models.items(), start=1):
            size = measure_size(config)
            cells = [name, f"{size.parameters / 1e6:.1f}", f"{size.multiply_adds / 1e9:.0f}"]
            if rounds:
                cells.append(f"{measure_step(config, rounds, HEIGHT, WIDTH, ROIS).ratio:.2f}")
            shown.add_row(*cells)
            meter.reach(done)
    out.print(shown)
    out.print("multiply-adds: of predicting one image of 800 x 1333 pixels", highlight=False)
    if rounds:
        out.print(
            "step, beside torchvision's R50-FPN: CPU time of a loss and its gradients, one image of "
            f"{HEIGHT} x {WIDTH}, {ROIS} RoIs, {threads} threads, {rounds} turns each",
            highlight=False,
        )
