"""COCO instance annotations + a directory of pictures -> Records, validated.

What makes the file unusable as a whole (broken JSON, no categories) is refused with a DataError; a single bad image or
annotation goes to quarantine with its reason, and the rest goes on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data import coco_json, rle
from pipeline.data import keypoints as joints
from pipeline.data.coco_json import Json, is_number
from pipeline.data.pictures import check_picture, read_inside
from pipeline.data.quarantine import BadError, BadSample, DataError, Quarantine
from pipeline.data.records import Record, empty_record
from pipeline.data.source import Dataset, Sample
from pipeline.data.storage import Storage


@dataclass(frozen=True)
class ImageEntry:
    """One image of the JSON with its annotations, not read yet."""

    sample_id: int
    file_name: str
    height: int  # pixels, as the JSON says; the picture must agree
    width: int
    annotations: tuple[Json, ...] = field(repr=False)
    negative_classes: tuple[int, ...] = ()  # as in records.py
    partial_classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class CocoReader:
    """Reads the entries of a COCO (or LVIS) file."""

    images: Storage  # that file_names are relative to
    category_ids: tuple[int, ...]
    keypoint_count: int = 0  # J; 0 where the data set has none

    def read(self, entry: ImageEntry, quarantine: Quarantine) -> Sample | None:
        """Read, check and convert one image; None when it went to quarantine."""
        try:
            data = read_inside(self.images, entry.file_name)
            checked = check_picture(data, entry.height, entry.width)
        except BadError as bad:
            quarantine.add(BadSample("image", entry.sample_id, None, entry.file_name, bad.reason, bad.got))
            return None
        record = empty_record(entry.sample_id, entry.file_name, entry.height, entry.width, data)
        record["negative_classes"] = list(entry.negative_classes)
        record["partial_classes"] = list(entry.partial_classes)
        class_of = {category: index + 1 for index, category in enumerate(self.category_ids)}
        for annotation in entry.annotations:
            try:
                _append(record, annotation, class_of, self.keypoint_count)
            except BadError as bad:
                quarantine.add(
                    BadSample("annotation", entry.sample_id, annotation["id"], entry.file_name, bad.reason, bad.got)
                )
        return Sample(record, checked.grayscale)


def read_coco(
    annotations: Path, images: Path | str | Storage, quarantine: Quarantine, keypoints: Path | None = None
) -> Dataset:
    """Read and check a COCO instances file; pictures are opened later, by the reader. Raises DataError.

    A person_keypoints_*.json is read as it is: persons with keypoints and nothing else. Given as `keypoints` beside the
    instances file, its keypoints go to the annotations of the same ids, and all classes stay.
    """
    root = picture_root(images)
    # First, because what is kept of it is small: the two files as read are never in memory together.
    named, labelled = (None, None) if keypoints is None else joints.load(keypoints, quarantine)
    content = coco_json.load(annotations)
    categories = coco_json.categories(content["categories"], annotations)
    entries = coco_json.images(content["images"], annotations, quarantine)
    by_image = coco_json.annotations(content["annotations"], entries, categories, quarantine)
    if labelled is None:
        named = joints.of_categories(categories, annotations)
    else:
        joints.attach(by_image, labelled, entries, quarantine)
    info = content.get("info")
    source = {"annotations": annotations.name, "images": root.name}
    return Dataset(
        class_names=tuple(category["name"] for category in categories.values()),
        category_ids=tuple(categories),
        scoring="coco",
        keypoints=named,
        frequencies=(),
        entries=tuple(
            ImageEntry(number, entry["file_name"], entry["height"], entry["width"], tuple(by_image[number]))
            for number, entry in entries.items()
        ),
        reader=CocoReader(root, tuple(categories), 0 if named is None else len(named.names)),
        source=source if keypoints is None else {**source, "keypoints": keypoints.name},
        generator=info.get("generator") if isinstance(info, dict) else None,
        quarantine=quarantine,
    )


def picture_root(images: Path | str | Storage) -> Storage:
    """Where the pictures lie. Raises DataError where a local directory is missing."""
    root = Storage.at(images)
    if root.local is not None and not root.local.is_dir():
        raise DataError(f"no directory of pictures at {root}; give the directory that the file_names are relative to")
    return root


def _append(record: Record, annotation: Json, class_of: Mapping[int, int], keypoint_count: int) -> None:
    """Check one annotation and add it to its record."""
    height, width = record["height"], record["width"]
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise BadError("iscrowd is neither 0 nor 1", crowd)
    box = _box(annotation.get("bbox"), height, width)
    try:
        counts = rle.from_segmentation(annotation.get("segmentation"), height, width)
    except ValueError as error:
        raise BadError("segmentation is not valid", str(error)) from error
    runs = rle.parse_counts(counts)
    pixels = int(runs[1::2].sum())
    if not pixels:
        raise BadError("mask is empty", f"0 of {height} x {width} pixels")
    area = annotation.get("area", pixels)
    if not is_number(area) or area < 0:
        raise BadError("area is not a number of pixels", area)
    points = joints.of_annotation(annotation.get("keypoints"), keypoint_count) if keypoint_count else []
    record["boxes"].append(box)
    record["classes"].append(class_of[annotation["category_id"]])
    record["crowd"].append(bool(crowd))
    record["areas"].append(float(area))
    record["annotation_ids"].append(annotation["id"])
    record["rles"].append(counts)
    record["crops"].append(rle.crop(runs, height, width, box))
    record["keypoints"].append(points)


def _box(bbox: object, height: int, width: int) -> list[float]:
    """COCO's [x, y, w, h] as xyxy, clipped to the picture."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(is_number(value) for value in bbox):
        raise BadError("box is not four finite numbers", bbox)
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        raise BadError("box is degenerate (width or height <= 0)", bbox)
    x1, y1 = float(min(max(x, 0), width)), float(min(max(y, 0), height))
    x2, y2 = float(min(max(x + w, 0), width)), float(min(max(y + h, 0), height))
    if x2 <= x1 or y2 <= y1:
        raise BadError("box lies outside the picture", f"{bbox} in height x width {height} x {width}")
    return [x1, y1, x2, y2]
