"""Results before they are scored: checked copies with just what the engines read.

What cannot be scored is refused with how much of it there is and which; what can, but is odd, is counted.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.data import rle
from pipeline.errors import UserError
from pipeline.evaluation.coco_truth import Json, Truth, checked_box

_SHOWN = 3  # examples of each kind
_OUTSIDE_PX = 1.0  # a box may leave its image by this
_MASKS = 4096  # that are checked at once
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


def check_results(source: Sequence[Any], truth: Truth) -> tuple[list[Json], list[Warned]]:
    """Copies of results with the task's geometry alone (the engines write into what they get), and what is odd.

    A box in a result of masks or keypoints is left out: pycocotools would take the box's area for the size ranges.

    Raises:
        UserError: some cannot be scored; it says how many, why, and which.
    """
    bad, odd = _Found(), _Found()
    images = {i: i for i in truth.sizes}
    copies: list[Json] = []
    numbers: list[int] = []  # of the copies, in the source
    seen: set[int] = set()
    for number, result in enumerate(source):  # half a million of them for COCO's val2017: nothing slow in here
        try:
            copy = _result(result, truth, images)
        except _BadError as error:
            kind, got = error.args
            bad.add(kind, f"result {number}: {got}")
            continue
        geometry = copy[truth.protocol.geometry]
        same = geometry["counts"] if isinstance(geometry, dict) else tuple(geometry)
        key = hash((copy["image_id"], copy["category_id"], copy["score"], same))
        if key in seen:
            odd.add(
                "results repeat an earlier one exactly; each repetition counts as a false alarm", f"result {number}"
            )
        seen.add(key)
        if not 0 <= copy["score"] <= 1:
            odd.add("scores are not in 0..1; only their order counts", f"result {number}: {copy['score']}")
        if isinstance(geometry, list) and len(geometry) == 4:
            _look_at_box(geometry, truth.sizes[copy["image_id"]], number, odd)
        copies.append(copy)
        numbers.append(number)
    if truth.protocol.geometry == "segmentation":
        _check_masks(copies, numbers, bad)
    if bad.count:
        raise _refusal(bad, len(source), truth)
    if truth.protocol.federated:
        copies = _best_of_images(copies, truth.protocol.limits[-1])
    elif not truth.protocol.classes:
        copies.sort(key=lambda r: int(r["category_id"]))  # as the annotations
    if truth.protocol.classes:
        scored = truth.scored
        copies = [r for r in copies if r["category_id"] in scored]
    else:
        copies = [{**r, "category_id": 1} for r in copies]
    _look_at_counts(copies, truth, odd)
    return copies, [Warned(kind, count, tuple(odd.examples[kind])) for kind, count in odd.count.items()]


def _result(result: Any, truth: Truth, images: Mapping[int, int]) -> Json:
    """A checked copy. Raises _BadError(kind, got)."""
    protocol = truth.protocol
    try:
        image = images[result["image_id"]]
        score, shape = result["score"], result[protocol.geometry]
        category = result["category_id"] if protocol.classes else result.get("category_id", 1)
    except (KeyError, TypeError, IndexError) as error:
        raise _BadError(*_why(result, truth)) from error
    if protocol.classes and category not in truth.categories:
        raise _BadError("have a category_id that the ground truth does not have", f"{category!r:.40}")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise _BadError("have no finite score", f"{score!r:.40}")
    try:
        if protocol.geometry == "segmentation":
            shape = _mask(shape, truth.sizes[image])
        elif protocol.geometry == "keypoints":
            shape = _points(shape, len(truth.sigmas or ()))
        else:
            shape = checked_box(shape)
    except (TypeError, ValueError) as error:
        named = {"bbox": "bbox", "segmentation": "mask", "keypoints": "list of keypoints"}[protocol.geometry]
        raise _BadError(f"have a malformed {named}", str(error)) from error
    return {"image_id": image, "category_id": category, "score": float(score), protocol.geometry: shape}


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
    """An RLE of an image's size. Whether compressed counts are valid is left to `_check_masks`."""
    counts = shape.get("counts") if isinstance(shape, dict) and shape.get("size") == list(size) else None
    if not isinstance(counts, str):
        counts = rle.from_segmentation(shape, *size).decode("ascii")
    return {"size": list(size), "counts": counts}


def _check_masks(copies: Sequence[Json], numbers: Sequence[int], bad: _Found) -> None:
    for start in range(0, len(copies), _MASKS):
        masks = [copy["segmentation"] for copy in copies[start : start + _MASKS]]
        counts = [mask["counts"].encode("ascii", errors="replace") for mask in masks]
        sound = rle.sound(counts, [mask["size"][0] * mask["size"][1] for mask in masks])
        for place, mask in enumerate(masks):
            if not sound[place]:
                try:
                    rle.from_segmentation(mask, *mask["size"])
                except ValueError as error:
                    bad.add("have a malformed mask", f"result {numbers[start + place]}: {error}")


def _points(shape: Any, count: int) -> list[float]:
    points = list(map(float, shape))
    if len(points) != 3 * count:
        raise ValueError(f"{count} keypoints are {3 * count} numbers (x, y, visibility), got {len(points)}")
    if not all(map(math.isfinite, points)):
        raise ValueError("keypoints are finite numbers")
    return points


def _look_at_box(box: Sequence[float], size: tuple[int, int], number: int, odd: _Found) -> None:
    x, y, width, height = box
    rows, columns = size
    if not (rows and columns):
        return
    if x < -_OUTSIDE_PX or y < -_OUTSIDE_PX or x + width > columns + _OUTSIDE_PX or y + height > rows + _OUTSIDE_PX:
        rounded = [round(v, 1) for v in box]
        odd.add("boxes reach outside their image", f"result {number}: {rounded} in {columns} x {rows}")
    if width == 0 or height == 0:
        odd.add("boxes have no area", f"result {number}")


def _look_at_counts(copies: Sequence[Json], truth: Truth, odd: _Found) -> None:
    limit = truth.protocol.limits[-1]
    if not copies:
        odd.add("images, and not one result to score", "the list is empty", len(truth.sizes))
        return
    found = Counter(r["image_id"] for r in copies)
    empty = [image for image in truth.sizes if image not in found]
    for image in empty:
        odd.add(NO_RESULT, f"image {image}")
    if not truth.protocol.federated:
        for (image, _), count in Counter((r["image_id"], r["category_id"]) for r in copies).items():
            if count > limit:
                per = "image and category" if truth.protocol.classes else "image"
                odd.add(
                    f"results are beyond the best {limit} of an {per} and do not count", f"image {image}", count - limit
                )


def _best_of_images(copies: Sequence[Json], limit: int) -> list[Json]:
    """The best of each image over all classes (LVIS), in their order; equal scores in the file's order."""
    members: dict[int, list[int]] = defaultdict(list)
    for place, result in enumerate(copies):
        members[result["image_id"]].append(place)
    kept = [
        place
        for places in members.values()
        for place in sorted(places, key=lambda place: -float(copies[place]["score"]))[:limit]
    ]
    return [copies[place] for place in sorted(kept)]


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
