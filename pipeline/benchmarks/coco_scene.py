"""Invented ground truth and detections with COCO's proportions, to measure scoring on: nothing of it is an accuracy.

About 7 objects an image of a few classes each, rare and frequent ones; sizes are lognormal, so that small, medium and
large ones are as many as in val2017. Of each object a detector finds some: near it and with a high score, further off
and with a low one, or as another class; the rest is false alarms. Masks are wavy ellipses, one run a column.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import rle

HEIGHT, WIDTH = 480, 640  # pixels
_OBJECTS = 7.3  # an image, val2017
_CLASSES = 2.9  # an image, val2017
_CROWDS = 0.01  # of objects
_SIDE_PX, _SIDE_SPREAD = 45.0, 1.05  # of a box: exp of the mean and deviation of log
_CHUNK = 4096  # masks that are drawn at once

Floats = NDArray[np.float64]
Json = dict[str, Any]


@dataclass(frozen=True)
class Things:
    """N objects or detections."""

    images: NDArray[np.int64]  # [N], from 1
    classes: NDArray[np.int64]  # [N], from 1
    boxes: Floats  # [N, 4] xywh, pixels, inside the image
    waves: Floats  # [N, 4], what makes the outline uneven: two heights (shares), two phases
    scores: Floats  # [N]; crowds have 0, other objects 1


def invent_objects(rng: np.random.Generator, images: int, classes: int) -> Things:
    """The ground truth."""
    share = 1 / np.arange(1, classes + 1)
    parts = []
    for image in range(1, images + 1):
        count = int(rng.geometric(1 / (_OBJECTS + 1))) - 1
        own = rng.choice(classes, size=min(classes, 1 + int(rng.poisson(_CLASSES - 1))), p=share / share.sum())
        parts.append(_things(rng, image, 1 + rng.choice(own, count), (rng.random(count) >= _CROWDS).astype(np.float64)))
    return _joined(parts)


def invent_detections(rng: np.random.Generator, objects: Things, images: int, classes: int, count: int) -> Things:
    """`count` detections of each image."""
    bounds = np.searchsorted(objects.images, np.arange(1, images + 2))
    parts = []
    for image in range(1, images + 1):
        own = np.arange(bounds[image - 1], bounds[image])
        found = np.repeat(own, rng.poisson(2.5, len(own)))[:count]
        off = abs(rng.normal(0, 0.12, len(found)))
        boxes = objects.boxes[found]
        moved = boxes + rng.normal(0, 1, (len(found), 4)) * off[:, None] * boxes[:, [2, 3, 2, 3]]
        confused = rng.random(len(found)) < 0.2
        labels = np.where(confused, rng.integers(1, classes + 1, len(found)), objects.classes[found])
        scores = 1 / (1 + np.exp(-(3 - 14 * off - 2 * confused + rng.normal(0, 1, len(found)))))
        waves = objects.waves[found] + rng.normal(0, 1, (len(found), 4)) * off[:, None]
        parts.append(Things(np.full(len(found), image), labels, _inside(moved), waves, scores))
        rest = count - len(found)
        near = objects.classes[rng.choice(own, rest)] if len(own) else rng.integers(1, classes + 1, rest)
        labels = np.where(rng.random(rest) < 0.5, near, rng.integers(1, classes + 1, rest))
        parts.append(_things(rng, image, labels, rng.beta(1, 8, rest)))
    return _joined(parts)


def truth_json(objects: Things, images: int, classes: int) -> Json:
    """COCO's annotation file in memory."""
    masks, areas = outlines(objects)
    return {
        "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)],
        "categories": [{"id": c, "name": f"class {c}"} for c in range(1, classes + 1)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": label,
                "bbox": box,
                "area": area,
                "iscrowd": int(real == 0),
            }
            | {"segmentation": {"size": [HEIGHT, WIDTH], "counts": mask.decode("ascii")}}
            for number, (image, label, box, area, real, mask) in enumerate(
                zip(*_columns(objects), areas.tolist(), objects.scores.tolist(), masks, strict=True), start=1
            )
        ],
    }


def results_json(found: Things, masks: bool) -> Iterator[Json]:
    """COCO's results format, of boxes or of masks."""
    shapes = outlines(found)[0] if masks else []
    for number, (image, label, box, score) in enumerate(zip(*_columns(found), found.scores.tolist(), strict=True)):
        shape: Json = {"bbox": box}
        if masks:
            shape = {"segmentation": {"size": [HEIGHT, WIDTH], "counts": shapes[number].decode("ascii")}}
        yield {"image_id": image, "category_id": label, **shape, "score": score}


def outlines(things: Things) -> tuple[list[bytes], NDArray[np.int64]]:
    """Compressed counts, and pixels, of a mask in each box."""
    counts: list[bytes] = []
    areas = []
    for start in range(0, len(things.boxes), _CHUNK):
        some, pixels = _outlines(things.boxes[start : start + _CHUNK], things.waves[start : start + _CHUNK])
        counts += some
        areas.append(pixels)
    return counts, np.concatenate(areas) if areas else np.zeros(0, np.int64)


def _outlines(boxes: Floats, waves: Floats) -> tuple[list[bytes], NDArray[np.int64]]:
    first = np.ceil(boxes[:, 0] - 0.5).astype(np.int64)
    columns = np.maximum(np.floor(boxes[:, 0] + boxes[:, 2] - 0.5).astype(np.int64) + 1 - first, 0)
    columns = np.minimum(columns, WIDTH - first)
    owner = np.repeat(np.arange(len(boxes)), columns)
    x = np.arange(len(owner)) - np.repeat(np.cumsum(columns) - columns, columns) + first[owner]
    box, wave = boxes[owner], waves[owner]
    along = np.clip((x + 0.5 - box[:, 0]) / box[:, 2] * 2 - 1, -1, 1)
    half = box[:, 3] / 2 * np.sqrt(1 - along**2)
    middle = box[:, 1] + box[:, 3] / 2
    top = np.ceil(middle - half * (1 - abs(wave[:, 0]) * (1 + np.sin(5 * along + wave[:, 2]))) - 0.5)
    bottom = np.ceil(middle + half * (1 - abs(wave[:, 1]) * (1 + np.sin(7 * along + wave[:, 3]))) - 0.5)
    top, bottom = (np.clip(edge, 1, HEIGHT - 1).astype(np.int64) for edge in (top, bottom))
    full = bottom > top
    owner, x, top, bottom = owner[full], x[full], top[full], bottom[full]
    pieces = np.bincount(owner, minlength=len(boxes))
    sizes = 2 * pieces + 1
    starts = np.cumsum(sizes) - sizes
    place = starts[owner] + 2 * (np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    ends = np.empty(sizes.sum(), np.int64)
    ends[place], ends[place + 1] = x * HEIGHT + top, x * HEIGHT + bottom
    ends[starts + sizes - 1] = HEIGHT * WIDTH
    runs = np.diff(ends, prepend=0)
    runs[starts] = ends[starts]
    areas = np.bincount(owner, weights=bottom - top, minlength=len(boxes)).astype(np.int64)
    return rle.compress_many(runs, sizes), areas


def _things(rng: np.random.Generator, image: int, labels: NDArray[np.int64], scores: Floats) -> Things:
    count = len(labels)
    side = np.exp(rng.normal(np.log(_SIDE_PX), _SIDE_SPREAD, count))
    shape = np.exp(rng.normal(0, 0.35, count))
    size = np.stack((side * shape, side / shape), axis=1)
    corner = rng.uniform(0, 1, (count, 2)) * np.maximum((WIDTH, HEIGHT) - size, 0)
    waves = np.concatenate((rng.uniform(0, 0.2, (count, 2)), rng.uniform(0, 6.3, (count, 2))), axis=1)
    return Things(np.full(count, image), labels, _inside(np.concatenate((corner, size), axis=1)), waves, scores)


def _inside(boxes: Floats) -> Floats:
    """Cut to the image; at least 2 pixels of each."""
    low = np.clip(boxes[:, :2], 0, (WIDTH - 2, HEIGHT - 2))
    high = np.clip(boxes[:, :2] + boxes[:, 2:], low + 2, (WIDTH, HEIGHT))
    cut: Floats = np.concatenate((low, high - low), axis=1).round(2)
    return cut


def _joined(parts: list[Things]) -> Things:
    names = ("images", "classes", "boxes", "waves", "scores")
    return Things(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _columns(things: Things) -> tuple[list[int], list[int], list[list[float]]]:
    return things.images.tolist(), things.classes.tolist(), things.boxes.tolist()
