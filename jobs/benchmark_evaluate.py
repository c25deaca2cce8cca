"""`maskrcnn benchmark evaluate`: what COCO AP costs, ours and pycocotools'."""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from jobs.console import out, progress
from pipeline.benchmarks.coco_scoring import Cost, Entrant, Kind, measure, measure_bootstrap, write_scene
from pipeline.benchmarks.pasting import measure_pasting

_KINDS: tuple[Kind, ...] = ("box", "mask")
_ENTRANTS: tuple[Entrant, ...] = ("ours", "pycocotools")
_PASTED = (100, 800, 1333)  # masks, height, width


def benchmark_evaluate(*, images: int, detections: int, classes: int, rounds: int, resamples: int) -> None:
    """Score invented results with both in turn, each in a process of its own; print the costs."""
    costs: dict[tuple[Kind, Entrant], list[Cost]] = {(kind, who): [] for kind in _KINDS for who in _ENTRANTS}
    with (
        tempfile.TemporaryDirectory(prefix="maskrcnn-benchmark-") as place,
        progress("scoring", rounds * len(costs) + 3) as meter,
    ):
        objects = write_scene(Path(place), images=images, detections=detections, classes=classes)
        for _ in range(rounds):
            for (kind, who), found in costs.items():
                found.append(measure(Path(place), kind, who))
                meter.advance()
        bootstraps = {}
        for kind in _KINDS:
            bootstraps[kind] = measure_bootstrap(Path(place), kind, resamples)
            meter.advance()
        pasting = measure_pasting(*_PASTED, rounds=20)
        meter.advance()
    table = Table(
        *("", "", "ours", "pycocotools", "ratio"),
        title=f"{images} images, {detections} detections each, {classes} classes, {objects} objects; rounds: {rounds}",
    )
    for kind in _KINDS:
        ours, theirs = (costs[kind, who] for who in _ENTRANTS)
        for what, name in (
            ("CPU s, from memory", "cpu_s"),
            ("wall s, from memory", "wall_s"),
            ("CPU s, loading files", "loading_s"),
            ("peak MB", "peak_mb"),
            ("MB above loaded files", "own_mb"),
        ):
            a, b = _median(ours, name), _median(theirs, name)
            digits = 2 if name.endswith("_s") else 0
            table.add_row(kind, what, f"{a:.{digits}f}", f"{b:.{digits}f}", f"{b / a:.1f}")
        a, b = (_median(found, "loading_s") + _median(found, "cpu_s") for found in (ours, theirs))
        table.add_row(kind, "CPU s, from files", f"{a:.2f}", f"{b:.2f}", f"{b / a:.1f}", end_section=True)
    out.print(table)
    for kind in _KINDS:
        one = _median(costs[kind, "ours"], "cpu_s")
        pairs = zip(*(costs[kind, who] for who in _ENTRANTS), strict=True)
        found = bootstraps[kind]
        out.print(
            f"{kind}: the official numbers differ by {max(_difference(*pair) for pair in pairs):.1e} at most; with "
            f"{resamples} resamples {found.cpu_s:.1f} CPU s, {found.cpu_s / one:.1f} times one evaluation, "
            f"{found.peak_mb:.0f} MB at most",
            highlight=False,
            soft_wrap=True,
        )
    masks, height, width = _PASTED
    out.print(
        f"{masks} masks pasted at {height} x {width} and written as run lengths: {pasting:.1f} ms of one thread",
        highlight=False,
    )


def _median(costs: Sequence[Cost], name: str) -> float:
    return float(statistics.median(getattr(cost, name) for cost in costs))


def _difference(ours: Cost, theirs: Cost) -> float:
    return max(abs(a - b) for a, b in zip(ours.stats, theirs.stats, strict=True))
