"""`maskrcnn verify SHARDS`: are they whole and right, and what is in them; 0 when nothing must be mended, else 1."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import typer
from rich.table import Table

from jobs.console import out, progress
from pipeline.data.problems import Findings
from pipeline.data.shards import load_manifest
from pipeline.data.storage import Storage
from pipeline.data.verify import Report, verify_shards

SHOWN = 10  # classes, and problems


def verify(location: str, *, workers: int | None, as_json: bool) -> None:
    """Check shards and show what was found."""
    storage = Storage.at(location)
    images = load_manifest(storage).images
    begin = time.monotonic()
    with progress(f"verifying {storage.name}", images) as meter:
        report = verify_shards(storage, workers, meter.reach)
    if as_json:
        out.print_json(json.dumps(_content(report), ensure_ascii=False))
    else:
        out.print(_summary(location, report))
        _list("odd, but as the source has it", report.notes, with_fix=False)
        _list("to be mended", report.faults, with_fix=True)
        seconds = time.monotonic() - begin
        verdict = "nothing to mend" if report.sound else f"{report.faults.counts.total()} faults"
        _say(f"{report.rows} images of {location} checked in {seconds:.1f} s: {verdict}")
    if not report.sound:
        raise typer.Exit(1)


def _summary(location: str, report: Report) -> Table:
    """What is in the shards, in words and numbers."""
    said = report.statistics.summary()
    sides, objects = said["side_px"], said["objects_an_image"]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("shards", f"{location}: {len(report.manifest.shards)} files, {report.megabytes:.1f} MB")
    if said["images"] < report.rows:
        table.add_row("images", f"{report.rows}, of which {said['images']} are sound; what follows is of those")
    else:
        table.add_row("images", str(said["images"]))
    table.add_row("  without annotations", str(said["empty"]))
    if sides is not None:
        table.add_row("  sides", f"{sides['min']} to {sides['max']} pixels, median {sides['median']:g}")
    table.add_row("objects", str(said["objects"]))
    if objects is not None:
        table.add_row("  an image", f"{objects['mean']:.1f}, at most {objects['max']}")
    by_area = said["objects_by_area"]
    table.add_row("  by area", ", ".join(f"{count} {name}" for name, count in by_area.items()))
    if said["with_keypoints"]:
        table.add_row("  with keypoints", str(said["with_keypoints"]))
    table.add_row("crowd regions", str(said["crowd"]))
    counts = _by_class(report)
    table.add_row("classes", f"{len(counts)}, {sum(not count for count in counts.values())} without an object")
    most = sorted(counts.items(), key=lambda item: -item[1])
    for name, count in most[:SHOWN]:
        table.add_row(f"  {name}", str(count))
    if len(most) > SHOWN:
        table.add_row(f"  {len(most) - SHOWN} others", str(sum(count for _, count in most[SHOWN:])))
    set_aside = report.manifest.quarantined
    table.add_row("in quarantine", str(sum(set_aside.values())))
    for reason, count in set_aside.items():
        table.add_row(f"  {reason}", str(count))
    return table


def _list(title: str, findings: Findings, *, with_fix: bool) -> None:
    """How many of each kind, then the first ones."""
    if not findings.counts:
        return
    _say(f"\n{title}:")
    for what, count in findings.counts.items():
        _say(f"  {count} x {what}")
        first = [problem for problem in findings.first if problem.what == what]
        for problem in first[: SHOWN if with_fix else 3]:
            _say(f"      {problem.place}: {problem.got}")
        for fix in dict.fromkeys(problem.fix for problem in first) if with_fix else ():
            _say(f"    fix: {fix}")
    _say("")


def _content(report: Report) -> Mapping[str, Any]:
    """All that is printed, every class, and every problem that is kept."""
    return {
        "sound": report.sound,
        "rows": report.rows,
        **report.statistics.summary(),
        "megabytes": report.megabytes,
        "classes": _by_class(report),
        "quarantined": report.manifest.quarantined,
        **{
            name: {"counts": findings.counts, "first": [asdict(problem) for problem in findings.first]}
            for name, findings in (("faults", report.faults), ("notes", report.notes))
        },
    }


def _by_class(report: Report) -> dict[str, int]:
    """Objects of each class, in the order of the classes."""
    return dict(zip(report.manifest.class_names, report.statistics.class_objects.tolist(), strict=True))


def _say(text: str) -> None:
    out.print(text, highlight=False, markup=False, soft_wrap=True)
