"""`maskrcnn compare A B`: what two systems differ by on the same images, and how sure that is."""

import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from rich.box import SIMPLE_HEAD
from rich.table import Table

from jobs.console import err, out
from pipeline.data import coco_json
from pipeline.data.results_json import load_results
from pipeline.errors import UserError
from pipeline.evaluation.coco_results import NO_RESULT
from pipeline.evaluation.coco_truth import style_of
from pipeline.evaluation.comparison import Comparison, Difference, compare_results
from pipeline.evaluation.protocols import Style, Task
from pipeline.evaluation.tables import percent

_CLASSES, _IMAGES = 20, 10  # rows of the tables
_EVALUATION = "evaluation"  # directory of a run, and folder of its artifacts


@dataclass(frozen=True)
class Options:
    """What `maskrcnn compare` was told."""

    annotations: Path | None
    data: str | None
    task: str | None
    categories: Sequence[str] | None
    resamples: int
    seed: int
    runs: Path
    uri: str | None


def compare(a: str, b: str, options: Options, *, as_json: bool) -> None:
    """Print the tables, or one JSON object; what is odd about the results is counted on stderr."""
    with tempfile.TemporaryDirectory(prefix="maskrcnn-compare-") as place:
        places = [_locate(text, options, Path(place) / name) for text, name in ((a, "a"), (b, "b"))]
        task = _task(places, options.task)
        truth, style, categories = _truth(places, options)
        results = [load_results(_results(found, task)) for found in places]
        found = compare_results(
            truth,
            results[0],
            results[1],
            task,
            style,
            options.categories or categories,
            options.resamples,
            options.seed,
        )
    for which, warnings in zip("AB", found.warnings, strict=True):
        for warned in warnings:
            if not (warned.what == NO_RESULT and options.annotations is None):  # an evaluation predicts all images
                err.print(f"warning: {which}: {warned}", highlight=False, markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(_content(found, style), allow_nan=False))
        return
    _show(found)


def _locate(text: str, options: Options, directory: Path) -> Path:
    """The file of results, or the directory of an evaluation."""
    path = Path(text)
    if path.is_file():
        return path
    if path.is_dir():
        for found in (path, path / _EVALUATION):
            if any(found.glob("results_*.json")):
                return found
        raise UserError(
            f"{path} holds no results_*.json, and neither does {path / _EVALUATION}; give the directory of an "
            "evaluation, or of a run that has been evaluated"
        )
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise UserError(f"{text} is no file, no directory and no MLflow run id; give the results to compare")
    from pipeline.tracking.mlflow_store import fetch_artifacts, store_uri

    directory.mkdir()
    return fetch_artifacts(store_uri(options.uri, options.runs), text, _EVALUATION, directory)


def _task(places: Sequence[Path], wanted: str | None) -> Task:
    known = [task for task in get_args(Task) if task != "proposal"]
    if wanted is not None:
        if wanted not in known:
            raise UserError(f"--task must be one of {', '.join(known)}, got {wanted}")
        return wanted  # type: ignore[return-value]
    masks = all(place.is_dir() and (place / "results_mask.json").exists() for place in places)
    return "mask" if masks else "box"


def _results(place: Path, task: Task) -> Path:
    if place.is_file():
        return place
    path = place / f"results_{task}.json"
    if not path.exists():
        tasks = sorted(found.stem.removeprefix("results_") for found in place.glob("results_*.json"))
        raise UserError(f"{place} has no results of the {task} task, but of {', '.join(tasks)}; choose with --task")
    return path


def _truth(places: Sequence[Path], options: Options) -> tuple[Mapping[str, Any], Style, Sequence[str] | None]:
    """Ground truth, by which rules it is scored, and the names of the classes that were (None: all)."""
    if options.annotations is not None:
        truth = coco_json.load(options.annotations)
        return truth, style_of(truth), None
    directories = [place for place in places if place.is_dir()]
    if not directories:
        raise UserError("files of results need the ground truth beside them: --annotations FILE")
    from pipeline.evaluation.evaluated import ground_truth, read_evaluated

    evaluated = [read_evaluated(place) for place in directories]
    if unlike := evaluated[0].differs_from(evaluated[-1]):
        raise UserError(
            f"A and B were not evaluated on the same: they differ in {'; '.join(unlike)}. Evaluate one of them again, "
            "or give --annotations that hold for both"
        )
    protocol = evaluated[0].protocol
    if protocol == "cityscapes":
        raise UserError(
            "A and B were scored by Cityscapes' protocol, and resampling is of COCO's and LVIS's AP; evaluate both "
            "with evaluate.protocol=coco"
        )
    return ground_truth(evaluated[0], options.data), protocol, evaluated[0].categories


def _content(found: Comparison, style: Style) -> dict[str, Any]:
    """What --json prints; null where there is nothing to find."""

    def numbers(differences: Mapping[str, Difference]) -> dict[str, Any]:
        return {
            name: {
                "a": _defined(one.a),
                "b": _defined(one.b),
                "difference": _defined(one.difference),
                "interval": None if math.isnan(one.low) else [one.low, one.high],
                "p": _defined(one.p),
                "b_better": _defined(one.better),
                "holds": one.holds,
            }
            for name, one in differences.items()
        }

    return {
        "task": found.protocol.task,
        "protocol": style,
        "images": found.images,
        "resamples": found.resamples,
        "least_p": found.least_p,
        "stats": numbers(found.stats),
        "per_class": numbers(found.per_class),
        "per_image": [asdict(image) for image in found.per_image[:_IMAGES]],
        "warnings": {which: [asdict(w) for w in odd] for which, odd in zip("ab", found.warnings, strict=True)},
    }


def _show(found: Comparison) -> None:
    shown = sorted(found.per_class.items(), key=lambda item: -abs(_or_zero(item[1].difference)))
    rest = len(shown) - _CLASSES
    if len(shown) > 1:
        out.print(_table("AP a class, %, by difference; * holds among so many", dict(shown[:_CLASSES])))
        if rest > 0:
            out.print(f"and {rest} more classes: --json", style="dim")
    if found.per_image:
        out.print(_image_table(found))
    title = f"average precision of {found.protocol.task}, %: {found.images} images, {found.resamples} resamples"
    out.print(_table(title, found.stats))
    out.print(_verdict(found), highlight=False, soft_wrap=True)
    defined = sum(not math.isnan(one.p) for one in found.per_class.values())
    if defined * found.least_p > 0.05:
        err.print(
            f"note: {found.resamples} resamples show no p-value below {found.least_p:.1g}, too few to tell one "
            f"of {defined} classes alone from chance; for that, --resamples {40 * defined}",
            highlight=False,
            soft_wrap=True,
        )


def _table(title: str, differences: Mapping[str, Difference]) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for heading in ("A", "B", "B - A", "95 %", "p", "B better, %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, one in differences.items():
        interval = "-" if math.isnan(one.low) else f"{100 * one.low:+.1f} to {100 * one.high:+.1f}"
        p = "-" if math.isnan(one.p) else f"{one.p:.3f}{'*' if one.holds else ' '}"
        table.add_row(
            *(name, percent(one.a), percent(one.b), _signed(one.difference), interval, p, percent(one.better)),
            style="bold" if name == "AP" else None,
        )
    return table


def _image_table(found: Comparison) -> Table:
    table = Table(box=SIMPLE_HEAD, title="AP of single images, %", title_justify="left", title_style="bold")
    for heading in ("image", "A", "B", "B - A"):
        table.add_column(heading, justify="left" if heading == "image" else "right")
    for image in found.per_image[:_IMAGES]:
        name = f"{image.image_id}" if image.file_name is None else f"{image.image_id}  {image.file_name}"
        table.add_row(name, percent(image.a), percent(image.b), _signed(image.b - image.a))
    return table


def _verdict(found: Comparison) -> str:
    ap = found.stats["AP"]
    if math.isnan(ap.p):
        return "there is nothing to find in these images"
    said = f"AP {_signed(ap.difference)} ({100 * ap.low:+.1f} to {100 * ap.high:+.1f}), p = {ap.p:.3f}"
    if ap.holds:
        return f"B is {'better' if ap.difference > 0 else 'worse'} than A: {said}"
    return f"no difference is shown: {said}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:+.1f}"


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
