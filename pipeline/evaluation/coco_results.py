"""Results before they are scored: checked, in columns.

What cannot be scored is refused with how much of it there is and which; what can, but is odd, is counted.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import rle
from pipeline.errors import UserError
from pipeline.evaluation.coco_truth import Json, Truth, checked_box

_SHOWN = 3  # examples of each kind
_OUTSIDE_PX = 1.0  # a box may leave its image by this
_MOST_EXACT = 2**53  # whole numbers up to it are floats too
NO_RESULT = "images have no result"


@dataclass(frozen=True)
class Warned:
    """Something odd about results that were scored all the same."""

    what: str
    count: int
    examples: tuple[str, ...]  # a few of them

    def __str__(self) -> str:
        return f"{self.count} {self.what} ({_and_more(self.examples, self.count)})"


class _BadError(Exception):
    """One result is bad, in a way that can be counted."""


@dataclass
class _Found:
    """Which results are bad, or odd, by kind."""

    count: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, example: str, times: int = 1) -> None:
        self.count[kind] += times
        if len(self.examples[kind]) < _SHOWN:
            self.examples[kind].append(example)

    def add_all(self, kind: str, examples: Sequence[str], times: int) -> None:
        """`times` of a kind at once, the first few named."""
        if times:
            self.count[kind] += times
            self.examples[kind] += examples


@dataclass(frozen=True)
class Results:
    """N results in columns, for arithmetic on all of them at once."""

    images: NDArray[np.int64]  # [N], place among the image ids in rising order
    categories: NDArray[np.int64]  # [N], place among the scored category ids in rising order; 0 without classes
    scores: NDArray[np.float64]  # [N]
    shapes: NDArray[np.float64]  # [N, 4] xywh or [N, 3J] keypoints, pixels; of masks [N, 0]
    masks: list[Json]  # N RLEs with compressed counts, of their image's size; without masks empty
    areas: NDArray[np.float64]  # [N] pixels², as cocoeval.py has them

    def take(self, rows: NDArray[Any]) -> "Results":
        """Some of them, by number or as a mask."""
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        masks = list(map(self.masks.__getitem__, rows.tolist())) if self.masks else []
        return Results(
            self.images[rows], self.categories[rows], self.scores[rows], self.shapes[rows], masks, self.areas[rows]
        )

    def as_json(self, truth: Truth) -> list[Json]:
        """COCO's results format, with the task's geometry alone.

        A box in a result of masks or keypoints is left out: pycocotools would take the box's area for the size ranges.
        """
        geometry = truth.protocol.geometry
        shapes = self.masks if geometry == "segmentation" else self.shapes.tolist()
        images = map(truth.image_ids.__getitem__, self.images.tolist())
        categories = map(truth.category_ids.__getitem__, self.categories.tolist())
        return [
            {"image_id": image, "category_id": category, "score": score, geometry: shape}
            for image, category, score, shape in zip(images, categories, self.scores.tolist(), shapes, strict=True)
        ]

    def as_rows(self, truth: Truth) -> NDArray[np.float64] | None:
        """[N, 7] image id, x, y, width, height, score, category id; None where an id is no float."""
        ids = [np.array(ids) for ids in (truth.image_ids, truth.category_ids)]
        if any(abs(i).max() > _MOST_EXACT for i in ids):
            return None
        rows = np.zeros((len(self.scores), 7))
        rows[:, 0], rows[:, 5], rows[:, 6] = ids[0][self.images], self.scores, ids[1][self.categories]
        if truth.protocol.geometry == "bbox":
            rows[:, 1:5] = self.shapes
        return rows


def check_results(source: Sequence[Any], truth: Truth) -> tuple[Results, list[Warned]]:
    """Results in columns, and what is odd about them.

    Raises:
        UserError: some cannot be scored; it says how many, why, and which.
    """
    bad, odd = _Found(), _Found()
    numbers: Sequence[int]
    results, numbers = _all_at_once(source, truth), range(len(source))
    if results is None:
        results, numbers = _one_by_one(source, truth, bad)
    for place in np.flatnonzero(results.areas < 0).tolist():
        try:
            rle.from_segmentation(results.masks[place], *results.masks[place]["size"])
        except ValueError as error:
            bad.add("have a malformed mask", f"result {numbers[place]}: {error}")
    if bad.count:
        raise _refusal(bad, len(source), truth)
    _look_at_repetitions(results, odd)
    _look_at_scores(results.scores, odd)
    if truth.protocol.geometry == "bbox":
        _look_at_boxes(results, truth, odd)
    if truth.protocol.federated:
        results = results.take(_best_of_images(results, truth.protocol.limits[-1]))
    if truth.protocol.classes:
        places = {category: place for place, category in enumerate(truth.category_ids)}
        scored = np.array([places.get(c, -1) for c in sorted(truth.categories)])[results.categories]
        kept = results if (scored >= 0).all() else results.take(scored >= 0)
        results = replace(kept, categories=scored[scored >= 0])
    else:
        results = results.take(np.argsort(results.categories, kind="stable"))  # as the annotations
        results = replace(results, categories=np.zeros_like(results.categories))
    _look_at_counts(results, truth, odd)
    return results, [Warned(kind, count, tuple(odd.examples[kind])) for kind, count in odd.count.items()]


def _all_at_once(source: Sequence[Any], truth: Truth) -> Results | None:
    """Columns, `categories` among all of the data set's; None where a result is not as nearly all are.

    (Half a million results of COCO's val2017: one by one they take longer to check than to score.)
    """
    protocol = truth.protocol
    if set(map(type, source)) - {dict}:
        return None
    try:
        scores = list(map(itemgetter("score"), source))
        if set(map(type, scores)) - {float, int}:
            return None
        images = _places(map(itemgetter("image_id"), source), truth.image_ids, len(source))
        if protocol.classes:
            ids = sorted(truth.categories)
            categories = _places(map(itemgetter("category_id"), source), ids, len(source))
        else:
            categories = np.fromiter((int(r.get("category_id", 1)) for r in source), np.int64, len(source))
        shapes = list(map(itemgetter(protocol.geometry), source))
        if protocol.geometry == "segmentation":
            sizes = [list(truth.sizes[i]) for i in truth.image_ids]
            if list(map(itemgetter("size"), shapes)) != list(map(sizes.__getitem__, images.tolist())):
                return None
            masks = shapes
            numbers = np.zeros((len(source), 0))
        else:
            masks = []
            width = 4 if protocol.geometry == "bbox" else 3 * len(truth.sigmas or ())
            if set(map(len, shapes)) - {width}:
                return None
            numbers = np.fromiter(chain.from_iterable(shapes), np.float64, width * len(source)).reshape(-1, width)
            if not np.isfinite(numbers).all():
                return None
            if protocol.geometry == "bbox" and (numbers[:, 2:] < 0).any():
                return None
        values = np.fromiter(scores, np.float64, len(source))
        areas = _areas(truth, images, numbers, masks)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    return Results(images, categories, values, numbers, masks, areas) if np.isfinite(values).all() else None


def _areas(
    truth: Truth, images: NDArray[np.int64], shapes: NDArray[np.float64], masks: Sequence[Json]
) -> NDArray[np.float64]:
    """[N] pixels², -1 of a mask that is not valid."""
    if truth.protocol.geometry == "bbox":
        return np.asarray(shapes[:, 2] * shapes[:, 3])
    if truth.protocol.geometry == "segmentation":
        pixels = np.array([truth.sizes[i] for i in truth.image_ids], np.int64).prod(axis=1)
        return rle.areas(masks, pixels[images]).astype(np.float64)
    xs, ys = shapes[:, 0::3], shapes[:, 1::3]
    return np.asarray(np.ptp(xs, axis=1) * np.ptp(ys, axis=1))


def _places(ids: Iterable[Any], known: Sequence[int], count: int) -> NDArray[np.int64]:
    """Of each id its place among the known ones. Raises KeyError, TypeError."""
    places = {number: place for place, number in enumerate(known)}
    return np.fromiter(map(places.__getitem__, ids), np.int64, count)


def _one_by_one(source: Sequence[Any], truth: Truth, bad: _Found) -> tuple[Results, list[int]]:
    """The same, whatever they are, of those that are not bad, and their numbers; what is bad about which."""
    places = {number: place for place, number in enumerate(truth.image_ids)}
    classes = {number: place for place, number in enumerate(sorted(truth.categories))}
    copies: list[tuple[int, int, float, Any]] = []
    numbers: list[int] = []  # of the copies, in the source
    for number, result in enumerate(source):
        try:
            image, category, score, shape = _result(result, truth)
        except _BadError as error:
            kind, got = error.args
            bad.add(kind, f"result {number}: {got}")
            continue
        copies.append((places[image], classes[category] if truth.protocol.classes else category, score, shape))
        numbers.append(number)
    columns = zip(*copies, strict=True) if copies else ((), (), (), ())
    images, categories, scores, shapes = map(list, columns)
    masks = shapes if truth.protocol.geometry == "segmentation" else []
    width = {"bbox": 4, "segmentation": 0, "keypoints": 3 * len(truth.sigmas or ())}[truth.protocol.geometry]
    found = np.array(images, np.int64)
    values = np.array([] if masks else shapes, np.float64).reshape(len(copies), width)
    areas = _areas(truth, found, values, masks)
    return (
        Results(found, np.array(categories, np.int64), np.array(scores, np.float64), values, masks, areas),
        numbers,
    )


def _result(result: Any, truth: Truth) -> tuple[int, Any, float, Any]:
    """Image id, category id, score and geometry. Raises _BadError(kind, got)."""
    protocol = truth.protocol
    try:
        image = result["image_id"]
        size = truth.sizes[image]
        score, shape = result["score"], result[protocol.geometry]
        category = result["category_id"] if protocol.classes else result.get("category_id", 1)
        known = not protocol.classes or category in truth.categories
    except (KeyError, TypeError, IndexError) as error:
        raise _BadError(*_why(result, truth)) from error
    if not protocol.classes and not isinstance(category, int):
        category = 1  # it is of no class anyway
    if not known:
        raise _BadError("have a category_id that the ground truth does not have", f"{category!r:.40}")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise _BadError("have no finite score", f"{score!r:.40}")
    try:
        if protocol.geometry == "segmentation":
            shape = _mask(shape, size)
        elif protocol.geometry == "keypoints":
            shape = _points(shape, len(truth.sigmas or ()))
        else:
            shape = checked_box(shape)
    except (TypeError, ValueError) as error:
        named = {"bbox": "bbox", "segmentation": "mask", "keypoints": "list of keypoints"}[protocol.geometry]
        raise _BadError(f"have a malformed {named}", str(error)) from error
    return image, category, float(score), shape


def _why(result: Any, truth: Truth) -> tuple[str, str]:
    """(kind, got) of a result in which something is missing."""
    if not isinstance(result, dict):
        return "are no objects", f"{result!r:.60}"
    keys = ["image_id", "score", truth.protocol.geometry, *(["category_id"] if truth.protocol.classes else [])]
    missing = [key for key in keys if key not in result]
    if missing:
        return f"lack {', '.join(missing)}, which the {truth.protocol.task} task needs", f"it has {', '.join(result)}"
    return "have an image_id that the ground truth does not have", f"{result['image_id']!r:.40}"


def _mask(shape: Any, size: tuple[int, int]) -> Json:
    """An RLE of an image's size. Whether compressed counts are valid is left to `_areas`."""
    counts = shape.get("counts") if isinstance(shape, dict) and shape.get("size") == list(size) else None
    if not isinstance(counts, str):
        counts = rle.from_segmentation(shape, *size).decode("ascii")
    return {"size": list(size), "counts": counts}


def _points(shape: Any, count: int) -> list[float]:
    points = list(map(float, shape))
    if len(points) != 3 * count:
        raise ValueError(f"{count} keypoints are {3 * count} numbers (x, y, visibility), got {len(points)}")
    if not all(map(math.isfinite, points)):
        raise ValueError("keypoints are finite numbers")
    return points


def _look_at_repetitions(results: Results, odd: _Found) -> None:
    """Equal rows, found by a mixture of their bits and then compared."""
    columns = [results.images, results.categories, (results.scores + 0.0).view(np.int64)]  # + 0: there is a -0
    columns += list((results.shapes + 0.0).view(np.int64).T)
    if results.masks:
        columns.append(results.areas.view(np.int64))
    mixed = np.zeros(len(results.scores), np.uint64)
    for column in columns:
        mixed = (mixed ^ (mixed >> np.uint64(29)) ^ column.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    order = np.argsort(mixed, kind="stable")
    same = mixed[order][1:] == mixed[order][:-1]
    suspects = np.sort(order[np.append(same, False) | np.insert(same, 0, False)]) if same.any() else order[:0]
    seen: set[tuple[Any, ...]] = set()
    for number, values in zip(
        suspects.tolist(), np.stack([c[suspects] for c in columns], axis=1).tolist(), strict=True
    ):
        row = (*values, results.masks[number]["counts"] if results.masks else None)
        if row in seen:
            odd.add(
                "results repeat an earlier one exactly; each repetition counts as a false alarm", f"result {number}"
            )
        seen.add(row)


def _look_at_scores(scores: NDArray[np.float64], odd: _Found) -> None:
    wild = np.flatnonzero((scores < 0) | (scores > 1))
    shown = [f"result {number}: {scores[number]}" for number in wild[:_SHOWN]]
    odd.add_all("scores are not in 0..1; only their order counts", shown, len(wild))


def _look_at_boxes(results: Results, truth: Truth, odd: _Found) -> None:
    boxes, sizes = results.shapes, np.array([truth.sizes[i] for i in truth.image_ids])[results.images]  # height, width
    known = (sizes > 0).all(axis=1)
    ends = boxes[:, :2] + boxes[:, 2:]
    out = ((boxes[:, :2] < -_OUTSIDE_PX) | (ends > sizes[:, ::-1] + _OUTSIDE_PX)).any(axis=1) & known
    shown = [
        f"result {number}: {boxes[number].round(1).tolist()} in {sizes[number, 1]} x {sizes[number, 0]}"
        for number in np.flatnonzero(out)[:_SHOWN]
    ]
    odd.add_all("boxes reach outside their image", shown, int(out.sum()))
    flat = np.flatnonzero((boxes[:, 2:] == 0).any(axis=1) & known)
    odd.add_all("boxes have no area", [f"result {number}" for number in flat[:_SHOWN]], len(flat))


def _look_at_counts(results: Results, truth: Truth, odd: _Found) -> None:
    ids, limit = truth.image_ids, truth.protocol.limits[-1]
    if not len(results.scores):
        odd.add("images, and not one result to score", "the list is empty", len(ids))
        return
    empty = np.flatnonzero(np.bincount(results.images, minlength=len(ids)) == 0)
    odd.add_all(NO_RESULT, [f"image {ids[image]}" for image in empty[:_SHOWN]], len(empty))
    if not truth.protocol.federated:
        keys, counts = np.unique(results.images * len(truth.category_ids) + results.categories, return_counts=True)
        many = np.flatnonzero(counts > limit)
        per = "image and category" if truth.protocol.classes else "image"
        odd.add_all(
            f"results are beyond the best {limit} of an {per} and do not count",
            [f"image {ids[key // len(truth.category_ids)]}" for key in keys[many[:_SHOWN]]],
            int((counts[many] - limit).sum()),
        )


def _best_of_images(results: Results, limit: int) -> NDArray[np.int64]:
    """Which are the best of their image over all classes (LVIS); equal scores in the file's order."""
    order = np.lexsort((-results.scores, results.images))
    ranks = np.arange(len(order)) - np.searchsorted(results.images[order], results.images[order])
    return np.sort(order[ranks < limit])


def _refusal(bad: _Found, total: int, truth: Truth) -> UserError:
    unknown = "have an image_id that the ground truth does not have"
    lines = [f"{count} {kind} ({_and_more(bad.examples[kind], count)})" for kind, count in bad.count.most_common()]
    fix = "mend or remove them"
    if bad.count[unknown] == total:
        fix = "not one result is of an image of the ground truth: these are results on another data set"
    elif bad.count[unknown]:
        fix = "score them on the annotations of the images that were predicted on"
    elif bad.count["have a category_id that the ground truth does not have"]:
        some = ", ".join(map(str, sorted(truth.categories)[:5]))
        fix = f"results need the data set's own category ids ({some}, ...), not the numbers of a network's outputs"
    return UserError(f"of {total} results {'; '.join(lines)}. Nothing was scored: {fix}")


def _and_more(examples: Sequence[str], count: int) -> str:
    return "; ".join(examples) + ("; ..." if count > len(examples) else "")
