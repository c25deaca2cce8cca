"""LVIS annotations (v1, https://www.lvisdataset.org) + COCO's pictures -> Records, validated.

The layout is COCO's, but the data are federated: in each image only some classes were looked for. `neg_category_ids` of
an image are the classes that were and are absent, `not_exhaustive_category_ids` those whose instances are not all
annotated. A category's `frequency` says in how many training images it is: r(are) 1-10, c(ommon) 11-100, f(requent).
"""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.data import coco_json
from pipeline.data.coco import CocoReader, ImageEntry, picture_root
from pipeline.data.coco_json import Json
from pipeline.data.quarantine import BadError, BadSample, DataError, Quarantine
from pipeline.data.source import Dataset
from pipeline.data.storage import Storage


def read_lvis(annotations: Path, images: Path | str | Storage, quarantine: Quarantine) -> Dataset:
    """Read and check an LVIS file; pictures are opened later, by the reader. Raises DataError.

    `images` holds COCO's train2017/ and val2017/, because a split of LVIS has pictures of both.
    """
    root = picture_root(images)
    content = coco_json.load(annotations)
    categories = coco_json.categories(content["categories"], annotations)
    frequencies = tuple(_frequency(category, annotations) for category in categories.values())
    listed = coco_json.images(content["images"], annotations, quarantine, _file_name)
    by_image = coco_json.annotations(content["annotations"], listed, categories, quarantine)
    class_of = {category: index + 1 for index, category in enumerate(categories)}
    entries = []
    for number, image in listed.items():
        name = image["file_name"]
        try:
            negative = _classes(image, "neg_category_ids", class_of)
            partial = _classes(image, "not_exhaustive_category_ids", class_of)
        except BadError as bad:
            quarantine.add(BadSample("image", number, None, name, bad.reason, bad.got))
            continue
        entries.append(
            ImageEntry(number, name, image["height"], image["width"], tuple(by_image[number]), negative, partial)
        )
    return Dataset(
        class_names=tuple(category["name"] for category in categories.values()),
        category_ids=tuple(categories),
        scoring="lvis",
        keypoints=None,
        frequencies=frequencies,
        entries=tuple(entries),
        reader=CocoReader(root, tuple(categories)),
        source={"annotations": annotations.name, "images": root.name},
        generator=None,
        quarantine=quarantine,
    )


def _frequency(category: Json, path: Path) -> str:
    frequency = category.get("frequency")
    if frequency not in ("r", "c", "f"):
        raise DataError(
            f"{path}: category {category['name']!r} has the frequency {frequency!r}, which LVIS gives as r, c or f; "
            "shard it as COCO if it is a COCO file"
        )
    return str(frequency)


def _file_name(image: Json) -> object:
    """The last two parts of the URL, such as train2017/000000391895.jpg; v1 has no file_name."""
    url = image.get("coco_url")
    if not isinstance(url, str):
        return image.get("file_name")
    try:
        parts = unquote(urlsplit(url).path).split("/")
    except ValueError:  # brackets that are no IPv6 address
        return None
    return "/".join(parts[-2:]).lstrip("/")


def _classes(image: Json, key: str, class_of: Mapping[int, int]) -> tuple[int, ...]:
    """The categories listed under a key of an image, as classes in ascending order."""
    found = image.get(key, [])
    if not isinstance(found, list) or not all(coco_json.is_int(category) for category in found):
        raise BadError(f"{key} is not a list of category ids", found)
    unknown = [category for category in found if category not in class_of]
    if unknown:
        raise BadError(f"{key} names categories that the file does not declare", unknown)
    return tuple(sorted({class_of[category] for category in found}))
