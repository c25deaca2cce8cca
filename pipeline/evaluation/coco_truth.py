"""Ground truth before anything is scored on it: a checked copy with just what the engines read."""

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import rle
from pipeline.errors import UserError
from pipeline.evaluation.protocols import PROTOCOLS, Protocol, Style, Task, default_sigmas

Json = dict[str, Any]


@dataclass(frozen=True)
class Truth:
    """Ground truth of one task."""

    protocol: Protocol
    coco: Json  # images, categories and annotations, as the engines take them
    sizes: dict[int, tuple[int, int]]  # image id -> (height, width), (0, 0) where unknown
    categories: frozenset[int]  # all that the data set has; those that are scored are in `coco`
    frequencies: tuple[str, ...]  # LVIS: of the scored classes, by rising id
    sigmas: tuple[float, ...] | None  # OKS, of each keypoint
    pixels: NDArray[np.int64]  # of each annotation's mask; without masks empty

    @cached_property
    def image_ids(self) -> list[int]:
        """In rising order."""
        return sorted(self.sizes)

    @cached_property
    def category_ids(self) -> list[int]:
        """Of the categories that are scored, in rising order: axis K."""
        return sorted(c["id"] for c in self.coco["categories"])


def style_of(source: Mapping[str, Any]) -> Style:
    """LVIS's protocol where every category has a frequency and images name their absent classes; else COCO's."""
    categories, images = source["categories"], source["images"]
    federated = all(isinstance(c, dict) and "frequency" in c for c in categories) and bool(categories)
    return "lvis" if federated and any("neg_category_ids" in i for i in images if isinstance(i, dict)) else "coco"


def check_truth(
    source: Mapping[str, Any], task: Task, style: Style = "coco", names: Sequence[str] | None = None
) -> Truth:
    """Ground truth for a task.

    Args:
        source: COCO's annotation file in memory.
        task: what is scored.
        style: by which rules.
        names: of the categories that are scored; None: all.

    Raises:
        UserError: it cannot be scored.
    """
    protocol = PROTOCOLS[style].get(task)
    if protocol is None:
        raise UserError(f"LVIS has no {task} task; score boxes or masks, or shard the data as COCO's")
    try:
        images = [{"id": i["id"], "height": i.get("height", 0), "width": i.get("width", 0)} for i in source["images"]]
        categories = sorted(({"id": c["id"], "name": str(c["name"])} for c in source["categories"]), key=_id)
        image_ids = _unique([i["id"] for i in images], "image")
        category_ids = _unique([c["id"] for c in categories], "category")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"ground truth needs images with an id and categories with id and name, got {error!r}"
        ) from error
    if not image_ids or not category_ids:
        raise UserError(
            f"AP needs images and categories, got {len(images)} and {len(categories)}; check the validation data"
        )
    scored = category_ids if names is None else _chosen(categories, names)
    categories = [c for c in categories if c["id"] in scored]
    if protocol.federated:
        _federate(source, images, categories)
    sizes = {i["id"]: (i["height"], i["width"]) for i in images}
    annotations = []
    for number, given in enumerate(source["annotations"], start=1):
        what = f"annotation {given.get('id', number) if isinstance(given, dict) else number} of the ground truth"
        copy = _annotation(given, protocol, sizes, category_ids, what)
        if copy["category_id"] in scored:
            # pycocotools takes an annotation with id 0 for "no match", so ours count from 1.
            annotations.append({**copy, "id": number})
    pixels = np.zeros(0, np.int64)
    if protocol.geometry == "segmentation":
        pixels = _areas_of_masks(annotations, source["annotations"])
    sigmas = _pose(annotations, source["categories"]) if task == "keypoint" else None
    frequencies = tuple(c["frequency"] for c in categories) if protocol.federated else ()
    if not protocol.classes:
        annotations.sort(key=lambda a: int(a["category_id"]))  # the order in which pycocotools joins classes
        annotations = [{**a, "category_id": 1} for a in annotations]
        categories = [{"id": 1, "name": "object"}]
    coco = {"images": images, "categories": categories, "annotations": annotations}
    return Truth(protocol, coco, sizes, frozenset(category_ids), frequencies, sigmas, pixels)


def _annotation(
    given: Any, protocol: Protocol, sizes: Mapping[int, tuple[int, int]], category_ids: Iterable[int], what: str
) -> Json:
    mask = protocol.geometry == "segmentation"
    needed = ["image_id", "category_id", "bbox", "area", *(["segmentation"] if mask else [])]
    missing = [key for key in needed if key not in given] if isinstance(given, dict) else needed
    if missing:
        raise UserError(f"{what} needs {', '.join(needed)}, but has no {', '.join(missing)}; add it to the data")
    for key, known in (("image_id", sizes), ("category_id", category_ids)):
        if given[key] not in known:
            some = ", ".join(map(str, sorted(known)[:5]))
            raise UserError(f"{what} needs a {key} of the ground truth (it has {some}, ...), got {given[key]}; mend it")
    copy = {key: given[key] for key in needed} | {"iscrowd": int(given.get("iscrowd", 0))}
    try:
        checked_box(copy["bbox"])
        if not math.isfinite(copy["area"]):
            raise ValueError(f"an area must be finite, got {copy['area']}")
        if mask:
            size, shape = list(sizes[copy["image_id"]]), copy["segmentation"]
            if not isinstance(shape, dict) or shape.get("size") != size or not isinstance(shape.get("counts"), str):
                shape = {"counts": rle.from_segmentation(shape, *size).decode("ascii")}
            copy["segmentation"] = {"size": size, "counts": shape["counts"]}
        if protocol.geometry == "keypoints":
            copy["keypoints"] = [float(v) for v in given.get("keypoints") or ()]
            labelled = sum(v > 0 for v in copy["keypoints"][2::3])
            copy["num_keypoints"] = int(given.get("num_keypoints", labelled))
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} cannot be used: {error}; mend it") from error
    return copy


def _areas_of_masks(annotations: Sequence[Json], given: Sequence[Any]) -> NDArray[np.int64]:
    """Pixels of each mask. Raises UserError where compressed counts are not valid."""
    masks = [a["segmentation"] for a in annotations]
    areas = rle.areas(masks, np.array([mask["size"] for mask in masks], np.int64).reshape(-1, 2).prod(axis=1))
    for place in np.flatnonzero(areas < 0).tolist():
        number = annotations[place]["id"]
        try:
            rle.from_segmentation(masks[place], *masks[place]["size"])
        except ValueError as error:
            what = f"annotation {given[number - 1].get('id', number)} of the ground truth"
            raise UserError(f"{what} cannot be used: {error}; mend it") from error
    return areas


def _federate(source: Mapping[str, Any], images: list[Json], categories: list[Json]) -> None:
    """Add what LVIS says of images and categories, of the scored categories alone."""
    frequency = {c["id"]: c.get("frequency") for c in source["categories"]}
    for category in categories:
        category["frequency"] = frequency[category["id"]]
    scored = {c["id"] for c in categories}
    for image, given in zip(images, source["images"], strict=True):
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [c for c in given.get(key, ()) if c in scored]


def _pose(annotations: list[Json], categories: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
    """Fill up annotations without keypoints; what the data set says, or COCO, of how far keypoints may be off."""
    lengths = {len(a["keypoints"]) for a in annotations if a["keypoints"]}
    lengths |= {3 * len(c["keypoints"]) for c in categories if c.get("keypoints")}
    declared = {tuple(map(float, c["sigmas"])) for c in categories if c.get("sigmas")}
    if not lengths:
        raise UserError(
            "keypoint AP needs annotations with keypoints, the ground truth has none; give a person_keypoints_*.json, "
            "or shard with --keypoints"
        )
    length = min(lengths)
    if len(lengths) > 1 or length % 3 or len(declared) > 1:
        raise UserError(
            "all objects must have the same keypoints, 3 numbers each, with one list of sigmas at most; got "
            f"{', '.join(map(str, sorted(lengths)))} numbers and {len(declared)} lists of sigmas; mend them"
        )
    sigmas = next(iter(declared), default_sigmas(length // 3))
    if 3 * len(sigmas) != length or min(sigmas) <= 0:
        raise UserError(f"{length // 3} keypoints need as many sigmas above 0, got {list(sigmas)!r:.80}; mend them")
    for annotation in annotations:
        if not annotation["keypoints"]:
            annotation["keypoints"], annotation["num_keypoints"] = [0.0] * length, 0
    return sigmas


def _chosen(categories: Sequence[Json], names: Sequence[str]) -> set[int]:
    known = [c["name"] for c in categories]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise UserError(
                f"the data has no category {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + f" It has {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}"
            )
    return {c["id"] for c in categories if c["name"] in names}


def _unique(ids: list[int], what: str) -> set[int]:
    repeated = sorted(i for i, uses in Counter(ids).items() if uses > 1)
    if repeated:
        raise UserError(f"{what} ids of the ground truth must be unique, got {repeated[:5]} twice; renumber them")
    return set(ids)


def _id(row: Mapping[str, Any]) -> int:
    return int(row["id"])


def checked_box(shape: Any) -> list[float]:
    """A bbox as four floats. Raises TypeError, ValueError."""
    x, y, width, height = map(float, shape)
    if not math.isfinite(x + y + width + height) or width < 0 or height < 0:
        raise ValueError(f"a bbox is [x, y, width, height] in finite pixels, got {shape!r:.80}")
    return [x, y, width, height]
