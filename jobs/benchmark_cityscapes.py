"""`maskrcnn benchmark cityscapes`: what scoring by Cityscapes' protocols costs, ours and cityscapesscripts'."""

import tempfile
from pathlib import Path

from rich.table import Table

from jobs.console import out, progress
from pipeline.benchmarks.cityscapes_scoring import measure_scoring


def benchmark_cityscapes(*, pictures: int, height_px: int, detections: int, rounds: int) -> None:
    """Score generated streets with both in turn; print CPU time a picture."""
    with (
        tempfile.TemporaryDirectory(prefix="maskrcnn-benchmark-") as place,
        progress("scoring", rounds) as meter,
    ):
        found = measure_scoring(
            Path(place),
            pictures=pictures,
            height_px=height_px,
            detections=detections,
            rounds=rounds,
            on_round=meter.reach,
        )
    size = f"{found.pictures} pictures of {2 * height_px} x {height_px}"
    table = Table(
        "CPU ms a picture",
        "ours",
        "cityscapesscripts",
        "ratio",
        title=f"{size}, {found.detections:.0f} detections each, {rounds} rounds",
    )
    for what, ours, theirs in (
        ("instance AP", found.ap_ms, found.official_ap_ms),
        ("mean IoU", found.iou_ms, found.official_iou_ms),
    ):
        table.add_row(what, f"{ours:.1f}", f"{theirs:.1f}", f"{theirs / ours:.1f}")
    out.print(table)
    out.print(
        f"of the official {found.official_ap_ms:.0f} ms, decoding its masks is {found.decoding_ms:.0f}; before that, "
        f"writing them is {found.writing_ms:.0f} more. Largest difference of a number: {found.difference:.1e}",
        highlight=False,
        soft_wrap=True,
    )
