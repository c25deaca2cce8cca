"""Keypoints of a COCO file: what they are, which mirrors which, and how one file's come to another's annotations.

COCO keeps persons with keypoints in person_keypoints_*.json and all 80 classes in instances_*.json, with the same
annotation ids: `attach` brings the numbers of the one to the annotations of the other.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data import coco_json
from pipeline.data.coco_json import Json
from pipeline.data.quarantine import BadError, BadSample, DataError, Quarantine
from pipeline.data.source import Keypoints

# The side in a name: left_eye, LeftEye, eyeLeft, "right eye", L_Eye, eye.l; but not in bright_spot or in r alone.
_SIDE = re.compile(
    r"(?:(?<![A-Za-z])(?:left|right)|Left|Right|LEFT|RIGHT)(?![a-z])"
    r"|(?<![A-Za-z0-9])[lrLR](?=[ _.-])|(?<=[ _.-])[lrLR](?![A-Za-z0-9])"
)
_MIRROR = {"left": "right", "Left": "Right", "LEFT": "RIGHT", "l": "r", "L": "R"}
_MIRROR |= {right: left for left, right in _MIRROR.items()}


class Labelled(NamedTuple):
    """The keypoints of one annotation, as another file has them."""

    image_id: object
    category_id: object
    numbers: object  # 3J


def of_categories(categories: Mapping[int, Json], path: Path) -> Keypoints | None:
    """What the keypoints are by a file's categories (COCO's 80 classes have one list among them); None without any.

    Raises DataError.
    """
    found: dict[str, Keypoints] = {}
    for category in categories.values():
        if category.get("keypoints"):
            found[category["name"]] = _keypoints(category, path)
    if len(set(found.values())) > 1:
        raise DataError(
            f"{path}: the categories {', '.join(found)} have different keypoints; a model learns one list of "
            "keypoints: keep the categories that share one, and remove 'keypoints' from the others"
        )
    return next(iter(found.values()), None)


def load(path: Path, quarantine: Quarantine) -> tuple[Keypoints, dict[int, Labelled]]:
    """What the keypoints of a person_keypoints_*.json are, and annotation id -> its keypoints. Raises DataError."""
    content = coco_json.load(path)
    keypoints = of_categories(coco_json.categories(content["categories"], path), path)
    if keypoints is None:
        raise DataError(f"{path}: no category names 'keypoints'; give the path of a person_keypoints_*.json")
    labelled: dict[int, Labelled] = {}
    for annotation in content["annotations"]:
        number: Any = annotation.get("id") if isinstance(annotation, dict) else None
        if not coco_json.is_int(number) or number in labelled:
            reason = "keypoints without an annotation id of their own (the first one is kept)"
            quarantine.add(BadSample("annotation", None, None, None, reason, f"{annotation!r:.300}"))
        elif "keypoints" in annotation:
            found = (annotation.get(key) for key in ("image_id", "category_id", "keypoints"))
            labelled[number] = Labelled(*found)
    return keypoints, labelled


def attach(
    annotations: Mapping[int, Sequence[Json]],
    labelled: Mapping[int, Labelled],
    entries: Mapping[int, Json],
    quarantine: Quarantine,
) -> None:
    """Give annotations (by image id) the keypoints labelled under their ids.

    Keypoints that belong to none of them go to quarantine; the annotation of that id stays without keypoints.
    """
    by_id = {annotation["id"]: annotation for of_image in annotations.values() for annotation in of_image}
    for number, (image, category, numbers) in labelled.items():
        annotation = by_id.get(number)
        try:
            if annotation is None:
                raise BadError(
                    "keypoints of an annotation that the instances file does not have, or that was set aside", number
                )
            if image != annotation["image_id"]:
                raise BadError(
                    "keypoints are of another image than the annotation of that id",
                    f"image_id {image!r}, in the instances file {annotation['image_id']}",
                )
            if category != annotation["category_id"]:
                raise BadError(
                    "keypoints are of another category than the annotation of that id",
                    f"category_id {category!r}, in the instances file {annotation['category_id']}",
                )
        except BadError as bad:
            known: Any = image if coco_json.is_int(image) else None
            name = entries[known]["file_name"] if known in entries else None
            quarantine.add(BadSample("annotation", known, number, name, bad.reason, bad.got))
            continue
        annotation["keypoints"] = numbers


def of_annotation(found: object, count: int) -> list[float]:
    """The 3J numbers of an annotation as COCO has them, [] for none. Raises BadError.

    A labelled keypoint may lie outside the picture, as in pycocotools and in some data sets.
    """
    if found is None or found == []:
        return []
    if not isinstance(found, list) or len(found) != 3 * count:
        got = f"{len(found)} numbers" if isinstance(found, list) else found
        raise BadError(f"keypoints are not 3 x {count} numbers (x, y, visibility)", got)
    if not all(coco_json.is_number(value) for value in found):
        raise BadError("keypoints are not finite numbers", found)
    if not all(visibility in (0, 1, 2) for visibility in found[2::3]):
        raise BadError("a keypoint's visibility is none of 0, 1 and 2", found[2::3])
    return [float(value) for value in found]


def _keypoints(category: Json, path: Path) -> Keypoints:
    what = f"{path}: category {category['name']!r}"
    names = category["keypoints"]
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{what}: 'keypoints' must be a list of names, got {names!r:.200}; mend it")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DataError(f"{what}: keypoint names occur twice: {', '.join(twice)}; give each keypoint its own name")
    skeleton = category.get("skeleton") or []
    pairs = skeleton if isinstance(skeleton, list) else [skeleton]
    for pair in pairs:
        inside = isinstance(pair, list) and len(pair) == 2
        if not inside or not all(coco_json.is_int(end) and 1 <= end <= len(names) for end in pair):
            raise DataError(
                f"{what}: 'skeleton' must be a list of pairs of keypoints (1..{len(names)}), got {pair!r:.200}; "
                "mend it, or remove the skeleton (it is only for drawing)"
            )
    sigmas = category.get("sigmas")
    if sigmas is not None:
        numbers = sigmas if isinstance(sigmas, list) else [sigmas]
        if len(numbers) != len(names) or not all(coco_json.is_number(sigma) and sigma > 0 for sigma in numbers):
            raise DataError(
                f"{what}: 'sigmas' must be {len(names)} numbers above 0, one a keypoint, got {sigmas!r:.200}; mend it, "
                "or remove it to score with COCO's"
            )
        sigmas = tuple(map(float, numbers))
    joined = tuple((first - 1, second - 1) for first, second in pairs)
    return Keypoints(tuple(names), mirror_of(names, what), joined, sigmas)


def mirror_of(names: Sequence[str], what: str) -> tuple[int, ...]:
    """For each keypoint the one that a mirror makes of it: left_eye is right_eye then, and nose stays nose.

    Raises DataError, about `what`.
    """
    place = {name: index for index, name in enumerate(names)}
    flip = []
    for name in names:
        mirrored = _SIDE.sub(lambda side: _MIRROR[side.group()], name)
        if mirrored not in place:
            raise DataError(
                f"{what}: keypoint {name!r} has no {mirrored!r} beside it, so a mirrored picture would be labelled "
                "wrongly; name both sides, or rename it without a side"
            )
        flip.append(place[mirrored])
    return tuple(flip)
