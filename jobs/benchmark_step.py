"""`maskrcnn benchmark train|infer|profile`: what a step costs, against torchvision's, and where the time goes."""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.table import Table

from jobs.console import out, progress
from pipeline.benchmarks.device import check_no_waiting, matmul_teraflops
from pipeline.benchmarks.stages import profile_stages
from pipeline.benchmarks.step import ENTRANTS, Figure, Setting, Task, build_entrants, measure, ratio
from pipeline.configure import load_config
from pipeline.errors import UserError

REFERENCE = "torchvision, float32"
# What our step computes, forward and backward, by torch's FlopCounterMode: R50-FPN with frozen stem and res2, 512 RoIs
# and 128 positives, at 800 x 1216 px. torchvision computes 191 more for the RPN and 12 for masks of other classes.
GFLOP, GFLOP_PIXELS = 1265, 800 * 1216


def make_setting(
    task: Task,
    config: Path | None,
    overrides: Sequence[str],
    *,
    size: str,
    images: int,
    objects: int,
    positives: int,
    threads: int,
) -> Setting:
    """From the command line's words."""
    height, _, width = size.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) >= 64 and int(width) >= 64):
        raise UserError(f"--size must be HEIGHTxWIDTH in pixels, at least 64 each, got {size}; for example 800x1216")
    run = load_config(config, overrides)
    run = replace(run, model=replace(run.model, classes=run.model.classes or 80))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Setting(task, run, images, (int(height), int(width)), objects, positives, device, threads)


def benchmark_step(setting: Setting, rounds: int, memory: bool) -> None:
    """Print the table of a training step or a prediction."""
    with progress(f"{setting.task}, entrants x rounds", (rounds + 1) * len(ENTRANTS)) as meter:
        figures = measure(setting, rounds, memory, meter.reach)
    on_gpu = setting.device != "cpu"
    reference = "torchvision, bf16" if on_gpu else REFERENCE
    table = Table(
        setting.task,
        "s" if on_gpu else "CPU s",
        "images/s",
        f"x {reference}",
        "peak MB",
        "did",
        title=_describe(setting, rounds),
    )
    for figure in figures:
        seconds = statistics.median(figure.seconds)
        table.add_row(
            figure.name,
            f"{seconds:.3f}",
            f"{setting.images / seconds:.2f}",
            f"{ratio(figures, figure.name, reference):.2f}",
            "-" if figure.peak_megabytes is None else f"{figure.peak_megabytes:.0f}",
            figure.did,
        )
    out.print(table)
    if on_gpu:
        _gpu(setting, figures)


def _gpu(setting: Setting, figures: list[Figure]) -> None:
    ceiling = matmul_teraflops()
    out.print(f"matrix multiplication, bf16 8192³, in this run: {ceiling:.0f} TFLOP/s", highlight=False)
    if setting.task == "train":
        seconds = min(statistics.median(figure.seconds) for figure in figures if figure.name.startswith("ours, bf16"))
        pixels = setting.size[0] * setting.size[1]
        needed = GFLOP * setting.images * pixels / GFLOP_PIXELS / 1e3  # heads do not grow with pixels: near 800 px only
        out.print(f"share of that ceiling: {100 * needed / seconds / ceiling:.0f} %", highlight=False)
        check_no_waiting(setting)
        out.print("loss and gradient never wait for the device: set_sync_debug_mode('error') passed", highlight=False)


def benchmark_profile(setting: Setting, precision: str) -> None:
    """Print the stages of our training step or prediction."""
    torch.set_num_threads(setting.threads)
    (entrant,) = build_entrants(setting, ("ours", precision))
    found = profile_stages(entrant.network, entrant.run, setting.device)
    total = sum(stage.forward + stage.backward for stage in found)
    table = Table("stage", "forward ms", "backward ms", "%", title=f"ours, {precision}: {_describe(setting, 1)}")
    for stage in found:
        share = 100 * (stage.forward + stage.backward) / total
        backward = f"{1e3 * stage.backward:.0f}" if stage.backward else ""
        table.add_row(stage.stage, f"{1e3 * stage.forward:.0f}", backward, f"{share:.1f}")
    forward, backward = sum(stage.forward for stage in found), sum(stage.backward for stage in found)
    table.add_row("all", f"{1e3 * forward:.0f}", f"{1e3 * backward:.0f}", "100")
    out.print(table)


def _describe(setting: Setting, rounds: int) -> str:
    height, width = setting.size
    where = (
        torch.cuda.get_device_name()
        if setting.device != "cpu"
        else f"{platform.machine()} CPU, {setting.threads} threads"
    )
    return (
        f"{setting.images} x {height} x {width} px, {setting.objects} objects, {setting.positives} positives, "
        f"{where}, torch {torch.__version__}, {rounds} rounds"
    )
