"""Is B better than A, or are the images just kind to it? A paired bootstrap over images.

Both systems are scored on the same resamples (bootstrap.py), so what is hard about an image is hard for both and
cancels. The p-value is two-sided: twice the share of resamples on the side of zero that fewer are on. Of many classes
some differ by chance; `holds` says which are left when at most 5 % of what it marks may be chance (Benjamini and
Hochberg 1995).

Shape legend: I images, R resamples, K classes, A area ranges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.evaluation.bootstrap import (
    CONFIDENCE,
    Sampled,
    check_bootstrap,
    draw,
    interval,
    resample,
    thresholds_up_to,
)
from pipeline.evaluation.coco_ap import class_names
from pipeline.evaluation.coco_results import Results, Warned, check_results
from pipeline.evaluation.coco_truth import Truth, check_truth
from pipeline.evaluation.matches import Matches, find_matches
from pipeline.evaluation.protocols import EPS, RECALL_THRESHOLDS, Protocol, Style, Task

Floats = NDArray[np.float64]
_FALSE_DISCOVERIES = 1 - CONFIDENCE


@dataclass(frozen=True)
class Difference:
    """One number of A and of B, 0..1. NaN where there is nothing to find."""

    a: float
    b: float
    low: float  # of b - a, between which the middle 95 % of resamples lie
    high: float
    p: float  # two-sided
    better: float  # share of resamples in which B is better; ties are half
    holds: bool  # p is at most 5 %; of classes, with respect to how many there are

    @property
    def difference(self) -> float:
        """What B is better by."""
        return self.b - self.a


@dataclass(frozen=True)
class ImageDifference:
    """AP of one image alone, over the classes that it has."""

    image_id: int
    file_name: str | None
    a: float
    b: float


@dataclass(frozen=True)
class Comparison:
    """What came out."""

    protocol: Protocol
    images: int
    resamples: int
    stats: dict[str, Difference]  # official name; AP and its kin
    per_class: dict[str, Difference]  # class name, by rising category id
    per_image: tuple[ImageDifference, ...]  # by falling difference, whoever is better
    warnings: tuple[tuple[Warned, ...], tuple[Warned, ...]]  # of the results of A and of B

    @property
    def least_p(self) -> float:
        """The smallest p-value that so many resamples can show."""
        return 2 / (self.resamples + 1)


def compare_results(
    ground_truth: Mapping[str, Any],
    a: Sequence[Mapping[str, Any]],
    b: Sequence[Mapping[str, Any]],
    task: Task,
    style: Style = "coco",
    categories: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Two lists of results on the same ground truth; the arguments are those of `evaluate_coco`.

    Raises:
        UserError: one of them cannot be scored (it says which), or the task has no AP.
    """
    truth = check_truth(ground_truth, task, style, categories)
    check_bootstrap(truth.protocol)
    (found_a, odd_a), (found_b, odd_b) = _checked(a, truth, "A"), _checked(b, truth, "B")
    names = list(class_names(truth.coco["categories"]).values())
    # The first column is the data set as it is.
    weights = np.concatenate(
        (np.ones((len(truth.image_ids), 1), np.int32), draw(len(truth.image_ids), resamples, seed)), axis=1
    )
    files = {image["id"]: image.get("file_name") for image in ground_truth["images"]}
    sampled: list[Sampled] = []
    alone: list[Floats] = []
    for found in (found_a, found_b):
        matches = find_matches(truth, found)
        sampled.append(resample(matches, truth.protocol, truth.frequencies, len(names), weights))
        alone.append(image_aps(matches, len(truth.image_ids)))
    gap = np.nan_to_num(alone[1] - alone[0])
    order = np.argsort(-abs(gap), kind="stable")
    images = (
        ImageDifference(truth.image_ids[i], files[truth.image_ids[i]], float(alone[0][i]), float(alone[1][i]))
        for i in order[gap[order] != 0]
    )
    per_class = [_difference(*columns) for columns in zip(sampled[0].per_class.T, sampled[1].per_class.T, strict=True)]
    return Comparison(
        truth.protocol,
        len(truth.image_ids),
        resamples,
        {name: _difference(values, sampled[1].stats[name]) for name, values in sampled[0].stats.items()},
        dict(zip(names, _marked(per_class), strict=True)),
        tuple(images),
        (tuple(odd_a), tuple(odd_b)),
    )


def _checked(results: Sequence[Any], truth: Truth, which: str) -> tuple[Results, list[Warned]]:
    try:
        return check_results(results, truth)
    except UserError as error:
        raise UserError(f"{which}: {error}") from error


def _difference(a: Floats, b: Floats) -> Difference:
    """Of a number of the data set and then of its resamples: [1 + R] each."""
    gaps = (b - a)[1:]
    gaps = gaps[~np.isnan(gaps)]
    low, high = interval(gaps)
    p = better = np.nan
    if gaps.size and not np.isnan(a[0]):
        tail = min((gaps <= 0).sum(), (gaps >= 0).sum())
        p = min(1.0, 2 * (tail + 1) / (gaps.size + 1))  # + 1: the data set itself is one of the draws
        better = float((gaps > 0).mean() + (gaps == 0).mean() / 2)
    return Difference(float(a[0]), float(b[0]), low, high, float(p), better, bool(p <= 1 - CONFIDENCE))


def _marked(differences: Sequence[Difference]) -> list[Difference]:
    """With what Benjamini and Hochberg's procedure leaves of them."""
    defined = np.array([not np.isnan(one.p) for one in differences], np.bool_)
    values = np.sort([one.p for one in differences if not np.isnan(one.p)])
    limits = _FALSE_DISCOVERIES * np.arange(1, len(values) + 1) / max(len(values), 1)
    passed = np.flatnonzero(values <= limits)
    most = values[passed[-1]] if len(passed) else -1.0
    return [replace(one, holds=bool(known and one.p <= most)) for one, known in zip(differences, defined, strict=True)]


def image_aps(matches: Matches, images: int) -> Floats:
    """AP of each image alone, mean over the classes that it has: [I], NaN where it has nothing to find."""
    classes = 1 + max(matches.categories.max(initial=0), matches.object_categories.max(initial=0))
    keys = matches.images * classes + matches.categories
    order = np.argsort(keys, kind="stable")  # a group keeps its order of scores
    counted = matches.counted[0]
    groups, objects = np.unique(
        (matches.object_images * classes + matches.object_categories)[counted], return_counts=True
    )
    starts = np.searchsorted(keys[order], groups)
    ends = np.searchsorted(keys[order], groups, side="right")
    event = np.full(len(keys), -1)
    event[matches.matched] = np.arange(len(matches.matched))
    aps = np.zeros(len(groups))
    for group, (start, end, count) in enumerate(zip(starts.tolist(), ends.tolist(), objects.tolist(), strict=True)):
        rows = order[start:end]
        places = event[rows]
        hits = np.zeros((matches.hits.shape[1], len(rows)), np.bool_)
        wrong = np.broadcast_to(matches.alarms[0][rows], hits.shape).copy()
        some = places >= 0
        if not some.any():
            continue
        hits[:, some] = matches.hits[0][:, places[some]]
        wrong[:, some] &= ~(hits[:, some] | matches.idle[0][:, places[some]])
        right = np.cumsum(hits, axis=1)
        precision = right / (right + np.cumsum(wrong, axis=1) + EPS)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        steps = np.diff(thresholds_up_to(right / count), axis=1, prepend=0)
        aps[group] = (best * steps).sum() / len(RECALL_THRESHOLDS) / len(hits)
    owners = groups // classes
    have = np.bincount(owners, minlength=images)
    total = np.bincount(owners, weights=aps, minlength=images)
    return np.where(have > 0, total / np.maximum(have, 1), np.nan)
