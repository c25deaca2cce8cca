"""`maskrcnn evaluate --predictions R.json --annotations A.json --task mask`: any system's results, without Ray.

Nothing here imports torch: a file is scored in seconds.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, get_args

from jobs.console import err, out
from pipeline.config import Engine
from pipeline.data import coco_json
from pipeline.data.results_json import load_results
from pipeline.errors import UserError
from pipeline.evaluation.coco_ap import CocoAp, Prepared, prepare
from pipeline.evaluation.coco_ap import score as score_prepared
from pipeline.evaluation.coco_results import NO_RESULT
from pipeline.evaluation.coco_truth import style_of
from pipeline.evaluation.protocols import Style, Task
from pipeline.evaluation.tables import Ap, ap_tables, interval_json, per_class_table, with_classes


@dataclass(frozen=True)
class ReportWish:
    """A report of the scores."""

    directory: Path
    images: str | None  # directory of the pictures, for galleries
    pictures: int  # in each gallery


def score(
    predictions: Path,
    annotations: Path,
    task: str,
    categories: Sequence[str] | None,
    engine: str,
    *,
    bootstrap: int = 0,
    as_json: bool,
    report: ReportWish | None = None,
) -> None:
    """Score a file and print the tables, or one JSON object; what is odd about the results is counted on stderr."""
    checked_task = _one_of(task, get_args(Task), "--task")
    checked_engine = _one_of(engine, get_args(Engine), "--engine")
    results, truth = load_results(predictions), coco_json.load(annotations)
    style = style_of(truth)
    start = time.perf_counter()
    try:
        prepared = prepare(truth, results, checked_task, style, categories)
        ap = score_prepared(prepared, checked_engine, bootstrap)
    except UserError as error:
        raise UserError(f"{predictions} on {annotations}: {error}") from error
    seconds = time.perf_counter() - start
    page = None if report is None else _write_report(report, predictions, annotations, truth, prepared, ap, seconds)
    if as_json:
        print(json.dumps(_content(ap, style, checked_engine, len(results), len(truth["images"])), allow_nan=False))
        return
    show_ap({checked_task: ap})
    if page is not None:
        out.print(f"report      {page}", soft_wrap=True, highlight=False)


def _write_report(
    wish: ReportWish,
    predictions: Path,
    annotations: Path,
    truth: Mapping[str, Any],
    prepared: Prepared,
    ap: CocoAp,
    seconds: float,
) -> Path:
    from pipeline.report.analysis import analyse  # these need what scoring does not
    from pipeline.report.picture_source import of_directory
    from pipeline.report.report import Subject, write_report
    from pipeline.report.speed import Speed

    source = (
        "There are no galleries: --images says where the pictures of the annotations lie."
        if wish.images is None
        else of_directory(wish.images, truth)
    )
    start = time.perf_counter()
    analysis = analyse(prepared)
    return write_report(
        Subject(
            title=f"{predictions.name} on {annotations.name}",
            facts=f"{len(prepared.truth.sizes):,} images, {len(prepared.results.scores):,} results, "
            f"{'LVIS' if prepared.truth.protocol.federated else 'COCO'}'s protocol, {date.today().isoformat()}",
            aps={analysis.task: ap},
            analyses={analysis.task: analysis},
            prepared=prepared,
            speed=Speed(len(prepared.truth.sizes), seconds, time.perf_counter() - start, None),
            source=source,
            pictures=wish.pictures,
        ),
        wish.directory,
    )


def show_ap(aps: Mapping[str, Ap], all_predicted: bool = False) -> None:
    """Tables of AP a class and of the official numbers; warnings once, for they are of the same results.

    Where all images are known to be predicted (`all_predicted`), one without a result is nothing odd.
    """
    for warned in dict.fromkeys(warned for ap in aps.values() for warned in ap.warnings):
        if not (all_predicted and warned.what == NO_RESULT):
            err.print(f"warning: {warned}", highlight=False, markup=False, soft_wrap=True)
    if by_class := with_classes(aps):
        out.print(per_class_table(by_class, out.width))
    for table in ap_tables(aps):
        out.print(table)


def _content(ap: CocoAp, style: Style, engine: Engine, results: int, images: int) -> dict[str, Any]:
    """What --json prints. `stats` has the official numbers in their order, -1 where there is nothing to find."""
    return {
        "task": ap.protocol.task,
        "protocol": style,
        "engine": engine,
        "images": images,
        "results": results,
        "names": list(ap.stats),
        "stats": [-1.0 if math.isnan(value) else value for value in ap.stats.values()],
        "per_class": {name: None if math.isnan(value) else value for name, value in ap.per_class.items()},
        "instances": ap.instances,
        "oks_sigmas": ap.sigmas,
        "interval": None if ap.spread is None else interval_json(ap.spread),
        "warnings": [asdict(warned) for warned in ap.warnings],
    }


def _one_of(word: str, known: tuple[Any, ...], option: str) -> Any:
    if word not in known:
        raise UserError(f"{option} must be one of {', '.join(known)}, got {word}")
    return word
