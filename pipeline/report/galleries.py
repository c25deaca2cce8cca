"""Examples as pictures: the prediction beside the ground truth, whole images or what surrounds one object."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.evaluation.coco_ap import Prepared
from pipeline.evaluation.instances import Instances, Pixels, cut_out, from_annotations, from_results
from pipeline.evaluation.pictures import compare
from pipeline.report.diagnosis import Diagnosis
from pipeline.report.examples import Example

# Image ids -> each with its pixels [H, W, 3], or why there are none.
Reader = Callable[[Sequence[int]], Iterator[tuple[int, Pixels | str]]]
Window = tuple[int, int, int, int]  # x0, y0, x1, y1, pixels of the image

_PANEL_PX, _LETTERS_PX = 560, 18  # longer side of each of two panels, which a page shows at half of that or more
_MOST = 40  # detections drawn in one picture, the best ones
_CONTEXT = 0.6  # of the longer side of a box, on each side of it
_LEAST_PX = 32  # of context
_QUALITIES = (84, 72, 60, 48, 36, 24)  # JPEG's, tried until a picture is small enough


@dataclass(frozen=True)
class Source:
    """Where pictures come from."""

    read: Reader
    file_names: Mapping[int, str]  # image id -> name, for people
    skeleton: Sequence[tuple[int, int]] = ()  # pairs of keypoints (from 0) to join


@dataclass(frozen=True)
class Drawn:
    """An example with its picture."""

    example: Example
    image_id: int
    file_name: str
    jpeg: bytes  # small enough for a page
    png: Path


def draw_galleries(
    galleries: Mapping[str, Sequence[Example]],
    prepared: Prepared,
    diagnosis: Diagnosis,
    min_score: float,
    source: Source,
    directory: Path,
    most_bytes: int,
) -> tuple[dict[str, list[Drawn]], dict[int, str]]:
    """Draw each example; every image is read once.

    Args:
        galleries: name -> its examples. A picture is directory/NAME-NUMBER-IMAGE.png.
        prepared: what was scored.
        diagnosis: of it.
        min_score: detections below are drawn only where an example is about one.
        source: of the pictures.
        directory: that exists.
        most_bytes: of all JPEGs together.

    Returns:
        The pictures, and of images that could not be read their ids with the reason.
    """
    wanted: dict[int, list[tuple[str, int, Example]]] = {}
    for name, examples in galleries.items():
        for number, example in enumerate(examples, start=1):
            wanted.setdefault(int(diagnosis.image_ids[example.image]), []).append((name, number, example))
    total = sum(map(len, wanted.values()))
    drawn: dict[str, dict[int, Drawn]] = {name: {} for name in galleries}
    unread: dict[int, str] = {}
    for image_id, pixels in source.read(sorted(wanted)) if wanted else ():
        size = prepared.truth.sizes[image_id]
        if isinstance(pixels, str) or (all(size) and pixels.shape[:2] != size):
            unread[image_id] = pixels if isinstance(pixels, str) else f"it has {pixels.shape[:2]} pixels, not {size}"
            continue
        for name, number, example in wanted[image_id]:
            picture = _draw(example, pixels, prepared, diagnosis, min_score, source.skeleton)
            png = directory / f"{name}-{number:02d}-{image_id}.png"
            picture.save(png)
            jpeg = _jpeg(picture, most_bytes // total)
            drawn[name][number] = Drawn(example, image_id, source.file_names.get(image_id, ""), jpeg, png)
    return {name: [found[number] for number in sorted(found)] for name, found in drawn.items()}, unread


def _draw(
    example: Example,
    pixels: Pixels,
    prepared: Prepared,
    diagnosis: Diagnosis,
    min_score: float,
    skeleton: Sequence[tuple[int, int]],
) -> Image.Image:
    categories = diagnosis.category_ids
    annotations = prepared.truth.coco["annotations"]
    height, width = pixels.shape[:2]

    def truth(places: Sequence[int]) -> Instances:
        return from_annotations([_with_size(annotations[i], height, width) for i in places], categories, height, width)

    def found(detections: Sequence[int]) -> Instances:
        return from_results([prepared.found[i] for i in diagnosis.places[detections].tolist()], categories, -np.inf)

    image_id = int(diagnosis.image_ids[example.image])
    here = np.flatnonzero((diagnosis.images == example.image) & (diagnosis.scores >= min_score))[:_MOST]
    whole = truth([i for i, a in enumerate(annotations) if a["image_id"] == image_id])
    if example.detection is not None:
        left, right, titles = found([example.detection]), whole, ("this detection", "ground truth")
        window = around(left.boxes[0].tolist(), height, width)
    elif example.object is not None:
        left, right = found(here.tolist()), truth([int(diagnosis.annotations[example.object])])
        titles = (f"prediction, from {min_score:.2f} on", "what was missed")
        window = around(right.boxes[0].tolist(), height, width)
    else:
        left, right, window = found(here.tolist()), whole, (0, 0, width, height)
        titles = (f"prediction, from {min_score:.2f} on", "ground truth")
    x0, y0, x1, y1 = window
    return compare(
        np.ascontiguousarray(pixels[y0:y1, x0:x1]),
        cut_out(right, window),
        cut_out(left, window),
        diagnosis.names,
        skeleton,
        titles,
        _PANEL_PX,
        _LETTERS_PX,
    )


def around(box: Sequence[float], height: int, width: int) -> Window:
    """What surrounds a box xyxy in an image: never empty, never outside, no thin strip where the image is none."""
    x0, y0, x1, y1 = box
    context = max(_CONTEXT * max(x1 - x0, y1 - y0), _LEAST_PX)
    sides = [x1 - x0 + 2 * context, y1 - y0 + 2 * context]
    sides = [max(side, 0.6 * max(sides)) for side in sides]
    window = []
    for low, high, side, limit in ((x0, x1, sides[0], width), (y0, y1, sides[1], height)):
        start = min(max(0.0, (low + high - side) / 2), max(0.0, limit - side))
        window.append((int(start), min(limit, max(int(start) + 1, round(start + side)))))
    (left, right), (top, bottom) = window
    return min(left, width - 1), min(top, height - 1), right, bottom


def _with_size(annotation: Mapping[str, Any], height: int, width: int) -> Mapping[str, Any]:
    """For an image whose size the ground truth does not say there is no mask to draw."""
    code = annotation.get("segmentation")
    if code is None or code["size"] == [height, width]:
        return annotation
    return {key: value for key, value in annotation.items() if key != "segmentation"}


def _jpeg(picture: Image.Image, most_bytes: int) -> bytes:
    """The best quality that is small enough; else ever smaller pictures."""
    while True:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality, optimize=True)
            if len(buffer.getvalue()) <= most_bytes or min(picture.size) < 64:
                return buffer.getvalue()
        picture = picture.resize((picture.width // 2, picture.height // 2))
