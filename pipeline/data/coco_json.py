"""A file in COCO's JSON layout (COCO, LVIS and what people export): loaded, checked, and sorted by image.

What makes the file unusable as a whole (broken JSON, no categories) is refused with a DataError; a single bad image or
annotation goes to quarantine with its reason, and the rest goes on.
"""

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.data.quarantine import BadError, BadSample, DataError, Quarantine

Json = dict[str, Any]


def load(path: Path) -> Json:
    """A JSON object with the lists images, annotations and categories. Raises DataError."""
    try:
        with collector_paused():
            content = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"no annotation file at {path}; give the path of an instances_*.json") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give the path of an instances_*.json") from error
    except (ValueError, RecursionError) as error:  # ValueError: json.JSONDecodeError and UnicodeDecodeError
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


def categories(found: list[Any], path: Path) -> dict[int, Json]:
    """Category id -> its JSON, in ascending order of ids. Raises DataError."""
    if not found:
        raise DataError(f"{path}: the list 'categories' is empty; declare the classes that annotations refer to")
    checked: dict[int, Json] = {}
    for category in found:
        number: Any = category.get("id") if isinstance(category, dict) else None
        name = category.get("name") if isinstance(category, dict) else None
        if not is_int(number) or not isinstance(name, str):
            raise DataError(f"{path}: a category needs an integer id and a name, got {category!r:.200}; mend it")
        if number in checked:
            raise DataError(
                f"{path}: category id {number} is {checked[number]['name']!r} and {name!r}; give each its own id"
            )
        checked[number] = category
    return dict(sorted(checked.items()))


def images(
    found: list[Any],
    path: Path,
    quarantine: Quarantine,
    file_name_of: Callable[[Json], object] = lambda image: image.get("file_name"),
) -> dict[int, Json]:
    """Image id -> its JSON, with a checked file_name, height and width, in ascending order of ids. Raises DataError."""
    if not found:
        raise DataError(f"{path}: the list 'images' is empty; list the pictures that the annotations are of")
    checked: dict[int, Json] = {}
    for image in found:
        number: Any = image.get("id") if isinstance(image, dict) else None
        name = None
        try:
            if not is_int(number):
                raise BadError("image id is not an integer of 64 bits", image)
            name = file_name_of(image)
            if not isinstance(name, str) or not name:
                raise BadError("image has no file_name", image)
            if not all(is_int(image.get(key)) and 0 < image[key] < 2**31 for key in ("height", "width")):
                raise BadError("image has no height and width in pixels", image)
            if number in checked:
                raise BadError(
                    "image id occurs twice (the first one is kept)", f"{checked[number]['file_name']}, {name}"
                )
        except BadError as bad:
            name = name if isinstance(name, str) else None
            quarantine.add(BadSample("image", _int_or_none(number), None, name, bad.reason, bad.got))
            continue
        image["file_name"] = name
        checked[number] = image
    return dict(sorted(checked.items()))


def annotations(
    found: list[Any], entries: Mapping[int, Json], known: Mapping[int, Json], quarantine: Quarantine
) -> dict[int, list[Json]]:
    """Image id -> its annotations, in the file's order. Masks and boxes are checked later, image by image."""
    by_image: dict[int, list[Json]] = {number: [] for number in entries}
    seen: set[int] = set()
    for annotation in found:
        number: Any = annotation.get("id") if isinstance(annotation, dict) else None
        image: Any = annotation.get("image_id") if isinstance(annotation, dict) else None
        try:
            if not is_int(number):
                raise BadError("annotation id is not an integer of 64 bits", annotation)
            if number in seen:
                raise BadError("annotation id occurs twice (the first one is kept)", number)
            if not is_int(image) or image not in entries:
                raise BadError(
                    "annotation of an image that the file does not list, or that was set aside", f"image_id {image!r}"
                )
            category = annotation.get("category_id")
            if not is_int(category) or category not in known:
                raise BadError("category id that the file does not declare", f"category_id {category!r}")
        except BadError as bad:
            name = entries[image]["file_name"] if is_int(image) and image in entries else None
            quarantine.add(
                BadSample("annotation", _int_or_none(image), _int_or_none(number), name, bad.reason, bad.got)
            )
            continue
        seen.add(number)
        by_image[image].append(annotation)
    return by_image


def is_int(value: object) -> bool:
    """An integer that a shard can hold; JSON's true is none, though Python says so."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_number(value: object) -> bool:
    """A finite number of any sensible size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18  # false for NaN


@contextmanager
def collector_paused() -> Iterator[None]:
    """JSON makes millions of objects and no cycle: Python's search for cycles would take half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _int_or_none(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
