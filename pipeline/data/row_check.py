"""What must hold for a row of a shard, whatever it was made from: one function that says what does not."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from pipeline.data import images, rle
from pipeline.data.records import Record

# A box whose edge is further than this from the tight box of its mask is reported. Rasterising a polygon moves an edge
# by up to 1 px, and a box may count its last pixel or not (COCO's crowd regions: always 1 px); more is another drawing.
# Of 3,781 COCO objects 50 % differ by less than 0.5 px, 90 % by 0.9, 99 % by 2.4, the worst by 10.
BOX_TOLERANCE_PX = 2.0

_OF_OBJECTS = ("boxes", "classes", "crowd", "areas", "annotation_ids", "rles", "crops", "keypoints")


class Finding(NamedTuple):
    """One thing that is wrong with a row."""

    what: str  # one of a few, so that they can be counted
    got: str


class RowCheck(NamedTuple):
    """What a check of one row gives."""

    faults: list[Finding]  # training or evaluation would fail, or be wrong
    notes: list[Finding]  # odd, but how the source has it
    grayscale: bool  # the picture; False where it does not decode


def check_row(record: Record, classes: int, keypoints: int | None) -> RowCheck:
    """Decode the picture and hold every value of a row against what records.py says.

    `classes` is K; `keypoints` is J, None where the data set has none.
    """
    faults = list(_row(record, classes))
    grayscale = False
    try:
        checked = images.check(record["image"])
        grayscale = checked.grayscale
        if (checked.height, checked.width) != (record["height"], record["width"]):
            got = f"{checked.height} x {checked.width}, the row says {record['height']} x {record['width']}"
            faults.append(Finding("the picture's size is not the row's", got))
    except images.ImageError as error:
        faults.append(Finding("the picture does not decode", str(error)))
    notes: list[Finding] = []
    both = sorted(set(record["negative_classes"]) & set(record["classes"]))
    if both:
        notes.append(Finding("a class is annotated and said to be absent", f"class {both[0]}"))
    lengths = {name: len(values) for name, values in record.items() if name in _OF_OBJECTS and isinstance(values, list)}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{length} {name}" for name, length in lengths.items())
        faults.append(Finding("the row's lists differ in length", got))
    elif record["height"] > 0 and record["width"] > 0:
        for position, number in enumerate(record["annotation_ids"]):
            found = list(_object(record, position, classes, keypoints))
            faults += (Finding(what, f"annotation {number}: {got}") for what, got in found)
            if not found and (odd := _box_off_mask(record, position)) is not None:
                notes.append(Finding(odd.what, f"annotation {number}: {odd.got}"))
    return RowCheck(faults, notes, grayscale)


def _row(record: Record, classes: int) -> Iterator[Finding]:
    if record["height"] < 1 or record["width"] < 1:
        yield Finding("the row's size is not positive", f"{record['height']} x {record['width']}")
    if not record["file_name"]:
        yield Finding("the row has no file name", "''")
    listed = [*record["negative_classes"], *record["partial_classes"]]
    if wrong := [c for c in listed if not 1 <= c <= classes]:
        yield Finding("negative or partial classes are not in 1..K", f"{wrong[:5]}, K is {classes}")
    if "proposals" in record:
        yield from _proposals(record)
    if record["semantic"]:
        try:
            labels = images.check(record["semantic"])
            if (labels.height, labels.width, labels.grayscale) != (record["height"], record["width"], True):
                got = f"{labels.height} x {labels.width}, {'grey' if labels.grayscale else 'in colour'}"
                yield Finding("the label picture is not the picture's size in grey", got)
        except images.ImageError as error:
            yield Finding("the label picture does not decode", str(error))


def _proposals(record: Record) -> Iterator[Finding]:
    boxes, scores = record["proposals"], record["proposal_scores"]
    if len(boxes) != len(scores):
        yield Finding("proposals and their scores differ in number", f"{len(boxes)} and {len(scores)}")
    wrong = [fault for box in boxes if (fault := _box_fault(box, record["height"], record["width"])) is not None]
    if wrong:
        yield Finding("a proposal is no box in its picture", f"{len(wrong)} of {len(boxes)}, one: {wrong[0]}")
    if not all(map(math.isfinite, scores)) or any(a < b for a, b in pairwise(scores)):
        yield Finding("scores of proposals do not fall", f"{scores[:5]}")


def _object(record: Record, position: int, classes: int, keypoints: int | None) -> Iterator[Finding]:
    """What is wrong with one object."""
    height, width = record["height"], record["width"]
    class_, area, box = record["classes"][position], record["areas"][position], record["boxes"][position]
    if not 1 <= class_ <= classes:
        yield Finding("class is not in 1..K", f"class {class_}, K is {classes}")
    if not (math.isfinite(area) and area >= 0):
        yield Finding("area is not a number of pixels", str(area))
    wrong_box = _box_fault(box, height, width)
    if wrong_box is not None:
        yield Finding(wrong_box, f"{box} in height x width {height} x {width}")
    wrong_points = _keypoints_fault(record["keypoints"][position], keypoints)
    if wrong_points is not None:
        yield wrong_points
    counts = record["rles"][position]
    try:
        rle.from_segmentation({"size": [height, width], "counts": counts}, height, width)
    except ValueError as error:
        yield Finding("RLE is not valid", str(error))
        return
    runs = rle.parse_counts(counts)
    if not runs[1::2].any():
        yield Finding("mask is empty", f"0 of {height} x {width} pixels")
    elif wrong_box is None and rle.crop(runs, height, width, box) != record["crops"][position]:
        got = f"{len(record['crops'][position])} bytes that are not what the mask is inside its box"
        yield Finding("crop is not that of the RLE in its box", got)


def _box_fault(box: Sequence[float], height: int, width: int) -> str | None:
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        return "box is not four finite numbers"
    if x2 <= x1 or y2 <= y1:
        return "box is degenerate"
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        return "box leaves the picture"
    return None


def _keypoints_fault(points: Sequence[float], keypoints: int | None) -> Finding | None:
    if not points:
        return None
    if keypoints is None:
        return Finding("keypoints in a data set that declares none", f"{len(points)} numbers")
    if len(points) != 3 * keypoints:
        return Finding("keypoints are not 3 numbers each", f"{len(points)} numbers for {keypoints} keypoints")
    if not all(map(math.isfinite, points)):
        return Finding("a keypoint's place is not a finite number", str(points)[:200])
    if not set(points[2::3]) <= {0, 1, 2}:
        return Finding("a keypoint's visibility is not 0, 1 or 2", str(sorted(set(points[2::3])))[:200])
    return None


def _box_off_mask(record: Record, position: int) -> Finding | None:
    """The box of a valid object, where it is further from its mask's than BOX_TOLERANCE_PX."""
    box = record["boxes"][position]
    size = [record["height"], record["width"]]
    x, y, w, h = coco_mask.toBbox({"size": size, "counts": record["rles"][position]}).tolist()
    off = float(np.abs(np.subtract(box, [x, y, x + w, y + h])).max())
    if off <= BOX_TOLERANCE_PX:
        return None
    got = f"{off:.1f} px; box {[round(v, 1) for v in box]}, mask's {[x, y, x + w, y + h]}"
    return Finding(f"an edge of the box is over {BOX_TOLERANCE_PX:g} px from the mask's", got)
