"""The parts of a report's page as HTML: numbers first, and below each chart a sentence on how to read it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from pipeline.evaluation.cityscapes_ap import CityscapesAp
from pipeline.evaluation.coco_results import NO_RESULT
from pipeline.evaluation.tables import Ap, percent, with_classes
from pipeline.html_page import figure, link, paragraph, picture, section, table
from pipeline.html_page import tiles as as_tiles
from pipeline.report.analysis import Analysis
from pipeline.report.confusion import most_confused
from pipeline.report.diagnosis import IGNORED, RIGHT, Ints
from pipeline.report.error_costs import ErrorCosts
from pipeline.report.galleries import Drawn
from pipeline.report.scores import Calibration, WorkingPoint
from pipeline.report.sizes import BySize
from pipeline.report.speed import Speed

CHARTS = ("errors.png", "precision-recall.png", "sizes.png", "scores.png", "calibration.png", "confusion.png")
_MEANING = {
    "class": "on an object, but named as another class",
    "place": "right class, but overlaps the object by .1 to .5 only",
    "class and place": "near an object of another class",
    "duplicate": "a better scored detection hit the object already",
    "background": "overlaps no object by .1",
    "missed": "objects that nothing hit, nor meant with a wrong class or place",
}
GALLERIES = {
    "best": (
        "Best images",
        "The images with the highest quality among those with at least as many objects as half of the images have.",
    ),
    "worst": (
        "Worst images",
        "The images with the lowest quality. Look for a kind of scene that they share, and for wrong annotations.",
    ),
    "false-alarms": (
        "Most confident false alarms",
        "The detections with the highest scores that hit nothing, one an image. "
        "Often it is the annotation that is missing or wrong.",
    ),
    "missed": (
        "Largest missed objects",
        "The largest objects that no detection of any score hit, one an image; what the annotators call a crowd is "
        "not among them.",
    ),
}
_QUALITY = (
    "The quality of an image is the sum of the overlaps of what was hit, divided by the hits and half of all that is "
    "false or missed (panoptic quality, in %)."
)


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    key: str
    title: str
    html: str


def _part(key: str, title: str, *html: str) -> Part:
    return Part(key, title, section(key, title, *html))


def links(parts: Sequence[Part]) -> str:
    """Links to the sections."""
    return f"<nav>{''.join(link(f'#{part.key}', part.title) for part in parts)}</nav>"


def tiles(aps: Mapping[str, Ap], main: Analysis, speed: Speed) -> str:
    """The numbers that are looked at first."""
    shown = []
    for task, ap in aps.items():
        heads = [name for name in ("AP", "AP50", "AP75") if name in ap.stats] or list(ap.stats)[:1]
        shown += [(f"{task} {name}", percent(ap.stats[name])) for name in heads]
    shown += [("images", f"{len(main.diagnosis.image_ids):,}"), ("objects", f"{len(main.diagnosis.annotations):,}")]
    rate = speed.worker_images_per_second
    return as_tiles([*shown, *([] if rate is None else [("images/s, a worker", _rate(rate))])])


def numbers(aps: Mapping[str, Ap], main: Analysis, all_predicted: bool) -> Part:
    """The official numbers, and what is odd about the results; where all was predicted, no result is nothing odd."""
    tables = []
    for stats, group in groupby(aps.items(), lambda item: item[1].protocol.stats):
        columns = dict(group)
        rows = [(stat.name, stat.meaning, *(percent(ap.stats[stat.name]) for ap in columns.values())) for stat in stats]
        tables.append(table(("%", "", *columns), rows, text=2))
    warned = dict.fromkeys(
        str(w) for ap in aps.values() for w in ap.warnings if not (all_predicted and w.what == NO_RESULT)
    )
    odd = [paragraph(f"Odd about the results, which were scored all the same: {text}.", "note") for text in warned]
    if not main.diagnosis.places.size:
        odd = [paragraph("There is not one detection.")]
    return _part("numbers", "Numbers", f"<div class=tables>{''.join(tables)}</div>", *odd)


def errors(aps: Mapping[str, Ap], costs: Mapping[str, ErrorCosts], chart: Path) -> Part:
    """What each kind of error costs."""
    kinds = list(next(iter(costs.values())).gains)
    head = ["error", "what it is"]
    rows: list[list[object]] = [[kind, _MEANING[kind]] for kind in kinds]
    rows += [
        ["all false alarms", "if there were none"],
        ["all not found", "if the objects that nothing hit were left out"],
    ]
    for task, cost in costs.items():
        named = f" {task}" if len(costs) > 1 else ""
        head += [f"how many{named}", f"AP lost{named}"]
        for line, kind in zip(rows, kinds, strict=False):
            line += [f"{cost.counts[kind]:,}", percent(cost.gains[kind])]
        false = sum(count for kind, count in cost.counts.items() if kind != "missed")
        rows[-2] += [f"{false:,}", percent(cost.without_false)]
        rows[-1] += ["", percent(cost.with_all)]
    base = ", ".join(f"{percent(cost.ap)} ({task})" for task, cost in costs.items())
    by_coco = not any(isinstance(aps[task], CityscapesAp) for task in costs)
    return _part(
        "errors",
        "Errors",
        figure(
            picture(chart, "AP lost to each kind of error"),
            "Each bar is how much AP at an overlap of .5 there would be more if errors of that kind alone were put "
            "right (TIDE, Bolya et al. 2020). The longest bar is what to work on first; the bars do not add up to what "
            f"is missing to 100. AP at .5 is {base}"
            + ("." if by_coco else ", by COCO's matching; the protocol of the numbers above matches differently."),
        ),
        table(head, rows, text=2),
    )


def curves(chart: Path) -> Part:
    """Precision over recall."""
    return _part(
        "curves",
        "Precision and recall",
        figure(
            picture(chart, "precision over recall"),
            "The mean over classes of the precision that is reached at each recall; the area below a line is its AP. "
            "A line that ends early says that objects are missed, one that starts low that sure detections are false. "
            "A wide gap between .50 and .75 says that things are found but placed roughly.",
        ),
    )


def sizes(found: Mapping[str, BySize], chart: Path) -> Part:
    """AP by size."""
    recall = all(by_size.ap is None for by_size in found.values())
    return _part(
        "sizes",
        "Size of objects",
        figure(
            picture(chart, "AP by size of objects"),
            f"{'Recall' if recall else 'AP'} over .50:.95 of the objects whose area has a square root in that range, "
            "by COCO's rules for its three sizes (there small ends at 32 pixels, medium at 96). Below: how many "
            "objects there are; what stands on a few says little.",
        ),
    )


def scores(point: WorkingPoint, bins: Calibration | None, directory: Path) -> Part:
    """What scores are worth."""
    pictures = figure(
        picture(directory / "scores.png", "precision and recall over the score"),
        f"What is kept if detections from a score on are, over all classes at an overlap of .5. F1 is best at "
        f"{point.score:.2f} (dashed): {percent(point.precision)} % of what is kept is right, and "
        f"{percent(point.recall)} % of the objects are found.",
    )
    if bins is None:
        note = paragraph("The scores are not in 0..1, so nothing can be said about how they agree with being right.")
    else:
        note = ""
        pictures += figure(
            picture(directory / "calibration.png", "share of right detections over the score"),
            "How often detections of a score are right; on the dashed line scores are probabilities, below it the "
            "model is too sure. The expected calibration error, the mean distance from that line over all detections, "
            f"is {percent(bins.error)} points. Below: how many detections there are (log scale).",
        )
    return _part("scores", "Scores", f"<div class=charts>{pictures}</div>", note)


def classes(aps: Mapping[str, Ap], main: Analysis) -> Part | None:
    """A row a class."""
    columns = with_classes(aps)
    if not columns:
        return None
    diagnosis, precise = main.diagnosis, main.precise
    head = ["class", "objects", *(f"{task} AP" for task in columns)]
    number = {name: k for k, name in enumerate(diagnosis.names)}
    rows: list[list[object]] = []
    kept, right = _at_working_point(main)
    if precise is not None:
        head += [f"{main.task} AP50", "found", "precision", "false alarms", "missed"]
    for name, objects in next(iter(columns.values())).instances.items():
        line: list[object] = [name, f"{objects:,}", *(percent(ap.per_class[name]) for ap in columns.values())]
        k = number.get(name)
        if precise is not None and k is not None:
            asked = int(diagnosis.counted[k])
            line += [
                percent(float(precise.costs.per_class[k])),
                f"{percent(right[k] / asked)} %" if asked else "-",
                f"{percent(right[k] / kept[k])} %" if kept[k] else "-",
                f"{kept[k] - right[k]:,}",
                f"{asked - right[k]:,}",
            ]
        elif precise is not None:
            line += ["-"] * 5
        rows.append(line)
    point = None if precise is None else precise.point
    said = "A click on the head of a column sorts by it. AP in %."
    if point is not None:
        said += (
            f" Found, precision, false alarms and missed are those of {main.task} from a score of {point.score:.2f} on."
        )
    listed = table(head, rows, sorts=True)
    return _part("classes", "Classes", paragraph(said), f"<div class=scroll>{listed}</div>")


def _at_working_point(main: Analysis) -> tuple[Ints, Ints]:
    """[K] detections that are kept, but those that COCO ignores, and hits among them."""
    diagnosis = main.diagnosis
    shown = (diagnosis.scores >= main.shown_score) & (diagnosis.verdicts != IGNORED)
    hits = shown & (diagnosis.verdicts == RIGHT)
    number = len(diagnosis.names)
    kept, right = (np.bincount(diagnosis.classes[chosen], minlength=number) for chosen in (shown, hits))
    return kept, right


def confusion(matrix: Ints, main: Analysis, chart: Path | None) -> Part:
    """Which classes are taken for which."""
    names, parts = main.diagnosis.names, []
    what = (
        f"Detections from a score of {main.shown_score:.2f} on, each given to the free object that it overlaps most, "
        "of whatever class, if by at least .5."
    )
    if chart is not None:
        parts.append(
            figure(
                picture(chart, "confusion matrix"),
                f"{what} A row is what is there, coloured by the share of the row; a column what it was taken for. The "
                "last column are objects that were missed, the last row detections where nothing is.",
            )
        )
    else:
        parts.append(
            paragraph(f"{what} {len(names)} classes are too many for a matrix; these are its largest numbers.")
        )
    if worst := most_confused(matrix, names):
        rows = [(c.object, c.taken_for, f"{c.count:,}", f"{percent(c.share)} %") for c in worst]
        parts.append(table(("is", "was taken for", "objects", "of the class"), rows, text=2))
    else:
        parts.append(paragraph("No object was taken for one of another class."))
    return _part("confusion", "Confused classes", *parts)


def gallery(name: str, pictures: Sequence[Drawn], score: float) -> Part:
    """Pictures with what they show."""
    title, said = GALLERIES[name]
    if name in ("best", "worst"):
        said += f" {_QUALITY} Detections from a score of {score:.2f} on count."
    figures = (
        figure(
            picture((".jpg", drawn.jpeg), drawn.example.text, "photo"),
            f"{drawn.example.text}. Image {drawn.image_id}{f', {drawn.file_name}' if drawn.file_name else ''}",
            drawn.example.headline,
        )
        for drawn in pictures
    )
    return _part(name, title, paragraph(said), f"<div class=gallery>{''.join(figures)}</div>")


def no_pictures(why: str) -> Part:
    """In place of the galleries."""
    return _part("pictures", "Pictures", paragraph(why))


def unread(images: Mapping[int, str]) -> Part:
    """Pictures that galleries lack."""
    some = "; ".join(f"image {number}: {why}" for number, why in list(images.items())[:5])
    return _part("unread", "Unread pictures", paragraph(f"{len(images)} could not be shown. {some}."))


def speed(measured: Speed) -> Part:
    """How long it took."""
    rows, note = [("images", f"{measured.images:,}")], ""
    if measured.prediction is None:
        note = paragraph("The results came from a file; predicting was not timed.")
    else:
        p, rate = measured.prediction, measured.worker_images_per_second
        rows += [
            ("workers", ", ".join((p.workers, *(device for device in p.devices if device not in ("", "CPU"))))),
            *([] if rate is None else [("images/s of one worker, from encoded picture to results", _rate(rate))]),
            ("predicting in all, with starting the workers and waiting", _seconds(p.seconds)),
        ]
    rows += [
        ("checking and scoring", _seconds(measured.score_seconds)),
        ("counting for this report", _seconds(measured.analysis_seconds)),
    ]
    return _part("speed", "Speed", table(("measured in this evaluation", ""), rows), note)


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
