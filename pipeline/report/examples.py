"""Which images a report shows, and why: the best, the worst, sure false alarms and large objects that were missed.

Legend as in diagnosis.py: I images, D detections, G objects.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.report.diagnosis import (
    BACKGROUND,
    BOTH,
    CLASS,
    DUPLICATE,
    HIT,
    IGNORED,
    NEAR,
    PLACE,
    RIGHT,
    Diagnosis,
    Floats,
    Ints,
)


@dataclass(frozen=True)
class Example:
    """One picture of a gallery."""

    image: int  # 0..I-1
    headline: str
    text: str
    detection: int | None = None  # 0..D-1: shown alone beside the ground truth, in what surrounds it
    object: int | None = None  # 0..G-1: shown alone beside the detections, in what surrounds it


def image_quality(diagnosis: Diagnosis, min_score: float) -> Floats:
    """[I] panoptic quality of each image: the sum of the overlaps of hits, over hits + half of all other things.

    Those are detections that hit nothing and objects that nothing hit. Detections below `min_score` do not count. NaN
    where there is neither a detection nor an object. (Kirillov et al. 2019, eq. 1, over all classes of the image.)
    """
    images = len(diagnosis.image_ids)
    shown = diagnosis.scores >= min_score
    hits = shown & (diagnosis.verdicts == RIGHT)
    overlaps = np.bincount(diagnosis.images[hits], weights=diagnosis.overlaps[hits], minlength=images)
    detections = np.bincount(diagnosis.images[shown & (diagnosis.verdicts != IGNORED)], minlength=images)
    total = (detections + np.bincount(diagnosis.object_images, minlength=images)) / 2  # hits + (false + missed) / 2
    return np.asarray(np.divide(overlaps, total, out=np.full(images, np.nan), where=total > 0))


def best_images(diagnosis: Diagnosis, min_score: float, count: int) -> list[Example]:
    """Of the images that have as many objects as the median one, those of the highest quality."""
    objects = np.bincount(diagnosis.object_images, minlength=len(diagnosis.image_ids))
    if not objects.any():
        return []
    rich = objects >= np.median(objects[objects > 0])
    quality = np.where(rich, image_quality(diagnosis, min_score), np.nan)
    order = np.lexsort((-objects, -quality))[: int((quality > 0).sum())]
    return [_whole(diagnosis, min_score, i, quality) for i in order[:count].tolist()]


def worst_images(diagnosis: Diagnosis, min_score: float, count: int) -> list[Example]:
    """The images of the lowest quality; of equal ones first those with most errors."""
    quality, images = image_quality(diagnosis, min_score), len(diagnosis.image_ids)
    errors = np.bincount(diagnosis.object_images[~_found(diagnosis, min_score)], minlength=images)
    errors = errors + np.bincount(diagnosis.images[_false(diagnosis, min_score)], minlength=images)
    order = np.lexsort((-errors, quality))[: int((quality < 1).sum())]
    order = order[errors[order] > 0]
    return [_whole(diagnosis, min_score, i, quality) for i in order[:count].tolist()]


def sure_false_alarms(diagnosis: Diagnosis, count: int) -> list[Example]:
    """The false alarms with the highest scores, one an image."""
    false = np.flatnonzero(_false(diagnosis, -np.inf))
    false = false[np.argsort(-diagnosis.scores[false], kind="stable")]
    return [
        Example(
            image=int(diagnosis.images[d]),
            headline=f"{_name(diagnosis, int(diagnosis.classes[d]))} {diagnosis.scores[d]:.2f}",
            text=_why(diagnosis, d),
            detection=d,
        )
        for d in _one_an_image(false, diagnosis.images[false], count)
    ]


def large_missed_objects(diagnosis: Diagnosis, count: int) -> list[Example]:
    """The largest objects that no detection of any score hit, one an image."""
    missed = np.flatnonzero(diagnosis.finders < 0)
    missed = missed[np.argsort(-diagnosis.areas[missed], kind="stable")]
    return [
        Example(
            image=int(diagnosis.object_images[g]),
            headline=_name(diagnosis, int(diagnosis.object_classes[g])),
            text=f"{diagnosis.areas[g]:,.0f} pixels; {_nearest(diagnosis, g)}",
            object=g,
        )
        for g in _one_an_image(missed, diagnosis.object_images[missed], count)
    ]


def _false(diagnosis: Diagnosis, min_score: float) -> NDArray[np.bool_]:
    return (diagnosis.scores >= min_score) & ~np.isin(diagnosis.verdicts, (RIGHT, IGNORED))


def _found(diagnosis: Diagnosis, min_score: float) -> NDArray[np.bool_]:
    """[G] whether a detection of at least this score hit the object."""
    found = diagnosis.finders >= 0
    found[found] = diagnosis.scores[diagnosis.finders[found]] >= min_score
    return np.asarray(found)


def _whole(diagnosis: Diagnosis, min_score: float, image: int, quality: Floats) -> Example:
    here = diagnosis.object_images == image
    found = int(_found(diagnosis, min_score)[here].sum())
    false = int((_false(diagnosis, min_score) & (diagnosis.images == image)).sum())
    said = f"{found} of {_plural(int(here.sum()), 'object')} found, {_plural(false, 'false alarm')}"
    return Example(image, f"quality {100 * quality[image]:.0f}", said)


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _one_an_image(places: Ints, images: Ints, count: int) -> Iterable[int]:
    _, first = np.unique(images, return_index=True)
    chosen: list[int] = places[np.sort(first)[:count]].tolist()
    return chosen


def _name(diagnosis: Diagnosis, k: int) -> str:
    return diagnosis.names[k]


def _why(diagnosis: Diagnosis, d: int) -> str:
    """What is wrong with a detection."""
    g, overlap = int(diagnosis.objects[d]), f"overlap {diagnosis.overlaps[d]:.2f}"
    meant = "" if g < 0 else _name(diagnosis, int(diagnosis.object_classes[g]))
    match int(diagnosis.verdicts[d]):
        case verdict if verdict == CLASS:
            return f"wrong class: there is {meant} ({overlap})"
        case verdict if verdict == PLACE:
            return f"wrong place: {meant} is near ({overlap}, needs {HIT})"
        case verdict if verdict == BOTH:
            return f"wrong class and place: {meant} is near ({overlap})"
        case verdict if verdict == DUPLICATE:
            return f"duplicate: another detection hit this {meant} ({overlap})"
        case verdict:
            assert verdict == BACKGROUND
            return f"background: it overlaps no object by {NEAR}"


def _nearest(diagnosis: Diagnosis, g: int) -> str:
    """The surest detection that meant an object."""
    meant = np.flatnonzero((diagnosis.objects == g) & np.isin(diagnosis.verdicts, (CLASS, PLACE, BOTH)))
    if not meant.size:
        return "nothing was found there"
    d = int(meant[0])
    what = (
        f"{_name(diagnosis, int(diagnosis.classes[d]))} {diagnosis.scores[d]:.2f}, overlap {diagnosis.overlaps[d]:.2f}"
    )
    return f"{'taken for' if diagnosis.verdicts[d] == CLASS else 'nearest:'} {what}"
