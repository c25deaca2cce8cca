"""COCO instance annotations + a directory of pictures -> Records, validated.

What makes the file unusable as a whole (broken JSON, no categories) is refused with a DataError; a single bad image or
annotation goes to quarantine with its reason, and the rest goes on.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data import images as pictures
from pipeline.data import rle
from pipeline.data.quarantine import BadSample, DataError, Quarantine
from pipeline.data.records import Record, empty_record
from pipeline.data.source import Dataset, Sample
from pipeline.data.storage import Location, Storage

Json = dict[str, Any]


@dataclass(frozen=True)
class ImageEntry:
    """One image of the JSON with its annotations, not read yet."""

    sample_id: int
    file_name: str
    height: int  # pixels, as the JSON says; the picture must agree
    width: int
    annotations: tuple[Json, ...] = field(repr=False)


@dataclass(frozen=True)
class CocoReader:
    """Reads the entries of a COCO file."""

    images: Storage  # that file_names are relative to
    category_ids: tuple[int, ...]

    def read(self, entry: ImageEntry, quarantine: Quarantine) -> Sample | None:
        """Read, check and convert one image; None when it went to quarantine."""
        try:
            data = read_inside(self.images, entry.file_name)
            checked = _check_picture(data, entry)
        except _BadError as bad:
            quarantine.add(BadSample("image", entry.sample_id, None, entry.file_name, bad.reason, bad.got))
            return None
        record = empty_record(entry.sample_id, entry.file_name, entry.height, entry.width, data)
        class_of = {category: index + 1 for index, category in enumerate(self.category_ids)}
        for annotation in entry.annotations:
            try:
                _append(record, annotation, class_of)
            except _BadError as bad:
                quarantine.add(
                    BadSample("annotation", entry.sample_id, annotation["id"], entry.file_name, bad.reason, bad.got)
                )
        return Sample(record, checked.grayscale)


def read_coco(annotations: Path, images: Location, quarantine: Quarantine) -> Dataset:
    """Read and check a COCO instances file; pictures are opened later, by the reader. Raises DataError."""
    content = _load_json(annotations)
    images = Storage.at(images)
    if images.local is not None and not images.local.is_dir():
        raise DataError(f"no directory of pictures at {images}; give the directory that the file_names are relative to")
    names = _categories(content["categories"], annotations)
    entries = _entries(content["images"], quarantine)
    by_image = _annotations(content["annotations"], entries, frozenset(names), quarantine)
    info = content.get("info")
    return Dataset(
        class_names=tuple(names.values()),
        category_ids=tuple(names),
        scoring="coco",
        keypoints=None,
        frequencies=(),
        entries=tuple(
            ImageEntry(number, entry["file_name"], entry["height"], entry["width"], tuple(by_image[number]))
            for number, entry in sorted(entries.items())
        ),
        reader=CocoReader(images, tuple(names)),
        source={"annotations": annotations.name, "images": images.name},
        generator=info.get("generator") if isinstance(info, dict) else None,
        quarantine=quarantine,
    )


class _BadError(Exception):
    """One sample is bad; caught where it is known which one."""

    def __init__(self, reason: str, got: object) -> None:
        super().__init__(reason)
        text = got if isinstance(got, str) else repr(got)
        self.reason, self.got = reason, text if len(text) <= 300 else text[:297] + "..."


def _load_json(path: Path) -> Json:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"no annotation file at {path}; give the path of an instances_*.json") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give the path of an instances_*.json") from error
    except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError
        raise DataError(f"{path} is not valid JSON ({error}); fetch it again, it may be a partial download") from error
    for key in ("images", "annotations", "categories"):
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list):
            got = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
            raise DataError(
                f"{path} has no list {key!r} (it holds: {got[:200] or 'nothing'}); "
                "COCO instances files have the lists images, annotations and categories"
            )
    return content  # type: ignore[no-any-return]  # the loop has shown that it is a dict


def _categories(categories: list[Any], path: Path) -> dict[int, str]:
    """Category id -> name, in ascending order of ids."""
    names: dict[int, str] = {}
    for category in categories:
        number: Any = category.get("id") if isinstance(category, dict) else None
        name = category.get("name") if isinstance(category, dict) else None
        if not _is_int(number) or not isinstance(name, str):
            raise DataError(f"{path}: a category needs an integer id and a name, got {category!r:.200}; mend it")
        if number in names:
            raise DataError(f"{path}: category id {number} is {names[number]!r} and {name!r}; give each its own id")
        names[number] = name
    if not names:
        raise DataError(f"{path}: the list 'categories' is empty; declare the classes that annotations refer to")
    return dict(sorted(names.items()))


def _entries(entries: list[Any], quarantine: Quarantine) -> dict[int, Json]:
    """Image id -> its JSON, checked."""
    found: dict[int, Json] = {}
    for entry in entries:
        number: Any = entry.get("id") if isinstance(entry, dict) else None
        name = entry.get("file_name") if isinstance(entry, dict) else None
        try:
            if not _is_int(number):
                raise _BadError("image id is not an integer", entry)
            if not isinstance(name, str) or not name:
                raise _BadError("image has no file_name", entry)
            if not all(_is_int(entry.get(key)) and entry[key] > 0 for key in ("height", "width")):
                raise _BadError("image has no height and width in pixels", entry)
            if number in found:
                raise _BadError(
                    "image id occurs twice (the first one is kept)", f"{found[number]['file_name']}, {name}"
                )
        except _BadError as bad:
            quarantine.add(BadSample("image", _int_or_none(number), None, _str_or_none(name), bad.reason, bad.got))
            continue
        found[number] = entry
    return found


def _annotations(
    annotations: list[Any], entries: Mapping[int, Json], categories: frozenset[int], quarantine: Quarantine
) -> dict[int, list[Json]]:
    """Image id -> its annotations, in the file's order. Masks and boxes are checked later, image by image."""
    found: dict[int, list[Json]] = {number: [] for number in entries}
    seen: set[int] = set()
    for annotation in annotations:
        number: Any = annotation.get("id") if isinstance(annotation, dict) else None
        image: Any = annotation.get("image_id") if isinstance(annotation, dict) else None
        try:
            if not _is_int(number):
                raise _BadError("annotation id is not an integer", annotation)
            if number in seen:
                raise _BadError("annotation id occurs twice (the first one is kept)", number)
            if not _is_int(image) or image not in entries:
                raise _BadError("annotation of an image that the file does not list", f"image_id {image!r}")
            category = annotation.get("category_id")
            if not _is_int(category) or category not in categories:
                raise _BadError("category id that the file does not declare", f"category_id {category!r}")
        except _BadError as bad:
            name = entries[image]["file_name"] if _is_int(image) and image in entries else None
            quarantine.add(
                BadSample("annotation", _int_or_none(image), _int_or_none(number), name, bad.reason, bad.got)
            )
            continue
        seen.add(number)
        found[image].append(annotation)
    return found


def read_inside(root: Storage, file_name: str) -> bytes:
    """The bytes of a picture that must lie below `root`, symlinks followed."""
    try:
        local = root.local
        if local is not None:
            path = (local / file_name).resolve()
            if not path.is_relative_to(local.resolve()):
                raise _BadError("file_name leaves the picture directory", file_name)
            return path.read_bytes()
        if file_name.startswith("/") or ".." in file_name.split("/"):
            raise _BadError("file_name leaves the picture directory", file_name)
        return root.read(file_name)
    except FileNotFoundError as error:
        raise _BadError("picture is missing", file_name) from error
    except OSError as error:
        raise _BadError("picture cannot be read", f"{file_name}: {error.strerror or error}") from error
    except ValueError as error:  # a null byte in the name
        raise _BadError("file_name is no path", f"{file_name!r}: {error}") from error


def _check_picture(data: bytes, entry: ImageEntry) -> pictures.Checked:
    try:
        checked = pictures.check(data)
    except pictures.ImageError as error:
        raise _BadError("picture does not decode", str(error)) from error
    if (checked.height, checked.width) != (entry.height, entry.width):
        raise _BadError(
            "picture's size differs from the JSON's",
            f"{checked.height} x {checked.width} in the file, {entry.height} x {entry.width} in the JSON",
        )
    return checked


def _append(record: Record, annotation: Json, class_of: Mapping[int, int]) -> None:
    """Check one annotation and add it to its record."""
    height, width = record["height"], record["width"]
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise _BadError("iscrowd is neither 0 nor 1", crowd)
    box = _box(annotation.get("bbox"), height, width)
    try:
        counts = rle.from_segmentation(annotation.get("segmentation"), height, width)
    except ValueError as error:
        raise _BadError("segmentation is not valid", str(error)) from error
    runs = rle.parse_counts(counts)
    pixels = int(runs[1::2].sum())
    if not pixels:
        raise _BadError("mask is empty", f"0 of {height} x {width} pixels")
    area = annotation.get("area", pixels)
    if not _is_number(area) or area < 0:
        raise _BadError("area is not a number of pixels", area)
    record["boxes"].append(box)
    record["classes"].append(class_of[annotation["category_id"]])
    record["crowd"].append(bool(crowd))
    record["areas"].append(float(area))
    record["annotation_ids"].append(annotation["id"])
    record["rles"].append(counts)
    record["crops"].append(rle.crop(runs, height, width, box))
    record["keypoints"].append([])


def _box(bbox: object, height: int, width: int) -> list[float]:
    """COCO's [x, y, w, h] as xyxy, clipped to the picture."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        raise _BadError("box is not four finite numbers", bbox)
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        raise _BadError("box is degenerate (width or height <= 0)", bbox)
    x1, y1 = float(min(max(x, 0), width)), float(min(max(y, 0), height))
    x2, y2 = float(min(max(x + w, 0), width)), float(min(max(y + h, 0), height))
    if x2 <= x1 or y2 <= y1:
        raise _BadError("box lies outside the picture", f"{bbox} in height x width {height} x {width}")
    return [x1, y1, x2, y2]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63  # what a shard can hold


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18  # false for NaN


def _int_or_none(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _str_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None
