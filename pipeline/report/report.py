"""The report of an evaluation: report.html, which opens offline with all in it, and its charts and pictures as PNGs.

    write_report(Subject(...), Path("report"))

What a task does not have is left out: curves of precision by Cityscapes' protocol, errors of proposals, a confusion
matrix of one class.
"""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.evaluation.coco_ap import CocoAp, Prepared
from pipeline.evaluation.curves import pr_curves
from pipeline.evaluation.tables import Ap
from pipeline.html_page import page
from pipeline.report import charts, sections
from pipeline.report.analysis import Analysis
from pipeline.report.examples import (
    Example,
    best_images,
    large_missed_objects,
    sure_false_alarms,
    worst_images,
)
from pipeline.report.galleries import Source, draw_galleries
from pipeline.report.speed import Speed

PICTURES_BYTES = 3_500_000  # of all JPEGs in the page; base64 makes a third more of it
NAME, GALLERIES = "report.html", "galleries"


@dataclass(frozen=True)
class Subject:
    """What a report is of."""

    title: str
    facts: str  # one line below it
    aps: Mapping[str, Ap]
    analyses: Mapping[str, Analysis]  # of tasks of `aps`, at least one; by COCO's matching
    prepared: Prepared  # of the main task, of which pictures are drawn
    speed: Speed
    source: Source | str  # of pictures, or why there are none
    pictures: int  # in each gallery


def main_task(tasks: Mapping[str, object]) -> str:
    """The task whose classes, scores and images a report looks at more closely: masks, else the last one."""
    return "mask" if "mask" in tasks else list(tasks)[-1]


def write_report(subject: Subject, directory: Path) -> Path:
    """Write it; what an earlier report left in `directory` goes. Returns the page."""
    remove_report(directory)
    directory.mkdir(parents=True, exist_ok=True)
    main = subject.analyses[main_task(subject.analyses)]
    parts = [
        sections.numbers(subject.aps, main, subject.speed.prediction is not None),
        _errors(subject, directory),
        _curves(subject, directory),
        _sizes(subject, directory),
        _scores(main, directory),
        sections.classes(subject.aps, main),
        _confusion(main, directory),
        *_galleries(subject, main, directory / GALLERIES),
        sections.speed(subject.speed),
    ]
    shown = [part for part in parts if part is not None]
    body = [sections.tiles(subject.aps, main, subject.speed), sections.links(shown), *(part.html for part in shown)]
    path = directory / NAME
    path.write_text(page(subject.title, subject.facts, body), encoding="utf-8")
    return path


def remove_report(directory: Path) -> None:
    """Remove what `write_report` wrote there, and nothing else."""
    for old in (*sections.CHARTS, NAME):
        (directory / old).unlink(missing_ok=True)
    for name in sections.GALLERIES:
        for old_picture in (directory / GALLERIES).glob(f"{name}-[0-9]*-[0-9]*.png"):
            old_picture.unlink()
    for place in (directory / GALLERIES, directory):
        with contextlib.suppress(OSError):  # it is not there, or holds something else
            place.rmdir()


def _errors(subject: Subject, directory: Path) -> sections.Part | None:
    costs = {task: a.precise.costs for task, a in subject.analyses.items() if a.precise is not None}
    if all(math.isnan(cost.ap) for cost in costs.values()) or not any(sum(c.counts.values()) for c in costs.values()):
        return None  # nothing to find, or nothing wrong
    charts.draw_errors(subject.analyses, directory / "errors.png")
    return sections.errors(subject.aps, costs, directory / "errors.png")


def _curves(subject: Subject, directory: Path) -> sections.Part | None:
    curves = {t: ap for t, ap in subject.aps.items() if isinstance(ap, CocoAp) and any(ap.instances.values())}
    curves = {task: ap for task, ap in curves.items() if ap.per_class}
    if not curves:
        return None
    pr_curves(curves, directory / "precision-recall.png")
    return sections.curves(directory / "precision-recall.png")


def _sizes(subject: Subject, directory: Path) -> sections.Part | None:
    sizes = {task: a.sizes for task, a in subject.analyses.items() if a.sizes.edges}
    if not sizes:
        return None
    charts.draw_sizes(sizes, directory / "sizes.png")
    return sections.sizes(sizes, directory / "sizes.png")


def _scores(main: Analysis, directory: Path) -> sections.Part | None:
    precise = main.precise
    if precise is None or precise.point is None:
        return None
    charts.draw_scores(main.diagnosis, precise.point, directory / "scores.png")
    if precise.calibration is not None:
        charts.draw_calibration(precise.calibration, directory / "calibration.png")
    return sections.scores(precise.point, precise.calibration, directory)


def _confusion(main: Analysis, directory: Path) -> sections.Part | None:
    precise = main.precise
    if precise is None or precise.confusion is None:
        return None
    chart = None
    if len(main.diagnosis.names) <= charts.MATRIX_CLASSES:
        chart = directory / "confusion.png"
        charts.draw_confusion(precise.confusion, main.diagnosis.names, chart)
    return sections.confusion(precise.confusion, main, chart)


def _galleries(subject: Subject, main: Analysis, directory: Path) -> list[sections.Part]:
    if isinstance(subject.source, str):
        return [sections.no_pictures(subject.source)]
    if not subject.pictures:
        return []
    score, count, diagnosis = main.shown_score, subject.pictures, main.diagnosis
    chosen: dict[str, list[Example]] = {"missed": large_missed_objects(diagnosis, count)}
    if main.precise is not None:
        chosen = {
            "best": best_images(diagnosis, score, count),
            "worst": worst_images(diagnosis, score, count),
            "false-alarms": sure_false_alarms(diagnosis, count),
        } | chosen
    directory.mkdir(exist_ok=True)
    drawn, unread = draw_galleries(
        chosen, subject.prepared, diagnosis, score, subject.source, directory, PICTURES_BYTES
    )
    parts = [sections.gallery(name, pictures, score) for name, pictures in drawn.items() if pictures]
    if unread:
        parts.append(sections.unread(unread))
    return parts
