"""The embedded data set: generated scenes (scenes.py) as JPEGs with exact masks, in COCO's layout.

Image i of a split depends on (seed, split, i) alone: the files are the same bytes whatever the number of processes.

Beside instances_*.json lies shape_keypoints_*.json, as person_keypoints_*.json does in COCO: the extreme points of each
visible mask (Papadopoulos et al. 2017), which every shape has and a mirror maps onto one another.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from pipeline.data import rle, scenes
from pipeline.data.generation import Progress, claim, run, write_whole
from pipeline.data.quarantine import DataError

GENERATOR_VERSION = 1  # counts every change of the pictures
SPLITS = ("train", "val")
_SETTINGS = "shapes.json"  # written first: says that the directory is ours
_CHUNK = 64  # images a task
KEYPOINTS = ("top", "right", "bottom", "left")
SKELETON = ((1, 2), (2, 3), (3, 4), (4, 1))  # from 1, as COCO counts


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a generated data set."""

    train: int  # images
    val: int
    seed: int
    size_px: int  # shorter side
    version: int = GENERATOR_VERSION


def generate_shapes(
    out: Path,
    *,
    train: int,
    val: int,
    seed: int = 0,
    size_px: int = 160,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Settings:
    """Write both splits below `out`, unless they are there already. Raises DataError where `out` is not ours."""
    settings = Settings(train=train, val=val, seed=seed, size_px=size_px)
    counts = {"train": train, "val": val}
    total = train + val
    if min(counts.values()) < 0 or size_px < 32:
        raise DataError(f"shapes need train >= 0, val >= 0 and size_px >= 32, got {train}, {val} and {size_px}")
    folders = ("annotations", *SPLITS)
    complete = claim(out, _SETTINGS, asdict(settings), folders)
    if complete and all(file.exists() for split in SPLITS for file in annotation_files(out, split)):
        if progress is not None:
            progress(total, total)
        return settings
    for name in folders:  # also what an interrupted call has left
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir()
    tasks = [
        (out / split, split, first, min(first + _CHUNK, counts[split]), settings)
        for split in SPLITS
        for first in range(0, counts[split], _CHUNK)
    ]
    parts: dict[tuple[str, int], list[dict[str, Any]]] = {}
    done = 0
    for (_, split, first, last, _), images in run(_write_images, tasks, workers):
        parts[split, first] = images
        done += last - first
        if progress is not None:
            progress(done, total)
    for split in SPLITS:
        images = [image for key in sorted(parts) if key[0] == split for image in parts[key]]
        instances, keypoints = annotation_files(out, split)
        content = _coco(images, settings)
        _write_json(keypoints, _keypoints_of(content))  # instances last: with them the split is whole
        for annotation in content["annotations"]:
            del annotation["keypoints"]
        _write_json(instances, content)
    return settings


def render(seed: int, split: str, index: int, size_px: int = 160) -> scenes.Scene:
    """Scene `index` of a split."""
    return scenes.render(np.random.default_rng([seed, SPLITS.index(split), index]), size_px)


Task = tuple[Path, str, int, int, Settings]  # directory, split, first image, last image (not included)


def _write_images(task: Task) -> list[dict[str, Any]]:
    """Write a range of pictures; returns their COCO image entries with their annotations, not numbered yet."""
    directory, split, first, last, settings = task
    images = []
    for index in range(first, last):
        scene = render(settings.seed, split, index, settings.size_px)
        name = f"{index + 1:012d}.jpg"
        jpeg = simplejpeg.encode_jpeg(scene.pixels, quality=90, colorspace="RGB", colorsubsampling="420")
        (directory / name).write_bytes(jpeg)
        height, width = scene.pixels.shape[:2]
        annotations = [_annotation(name, mask) for name, mask in zip(scene.names, scene.masks, strict=True)]
        images.append(
            {"id": index + 1, "file_name": name, "height": height, "width": width, "annotations": annotations}
        )
    return images


def _annotation(name: str, mask: scenes.Bools) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y, w, h = (int(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1))
    return {
        "category_id": scenes.CLASS_NAMES.index(name) + 1,
        "bbox": [x, y, w, h],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "keypoints": extreme_points(mask),
        "segmentation": {"size": list(mask.shape), "counts": rle.from_mask(mask).decode("ascii")},
    }


def extreme_points(mask: scenes.Bools) -> list[float]:
    """The middle of the top row, right column, bottom row and left column of a mask, as COCO has keypoints.

    x, y, visibility each; COCO's coordinates name a pixel. A mirrored mask has mirrored points, right and left swapped.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    points = (
        (np.median(np.flatnonzero(mask[top])), top),
        (right, np.median(np.flatnonzero(mask[:, right]))),
        (np.median(np.flatnonzero(mask[bottom])), bottom),
        (left, np.median(np.flatnonzero(mask[:, left]))),
    )
    return [float(number) for x, y in points for number in (x, y, 2)]


def _keypoints_of(content: dict[str, Any]) -> dict[str, Any]:
    kept = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "keypoints")
    named = {"keypoints": list(KEYPOINTS), "skeleton": [list(pair) for pair in SKELETON]}
    return content | {
        "annotations": [
            {key: annotation[key] for key in kept} | {"num_keypoints": len(KEYPOINTS)}
            for annotation in content["annotations"]
        ],
        "categories": [category | named for category in content["categories"]],
    }


def _coco(images: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    annotations = [
        {"id": 0, "image_id": image["id"], **annotation} for image in images for annotation in image["annotations"]
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation["id"] = number
    return {
        "info": {"description": "generated shapes", "generator": {"name": "shapes", **asdict(settings)}},
        "images": [{key: value for key, value in image.items() if key != "annotations"} for image in images],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(scenes.CLASS_NAMES, start=1)],
    }


def annotation_files(out: Path, split: str) -> tuple[Path, Path]:
    """Instances, and keypoints of the same annotations."""
    place = out / "annotations"
    return place / f"instances_{split}.json", place / f"shape_keypoints_{split}.json"


def _write_json(path: Path, content: object) -> None:
    write_whole(path, json.dumps(content).encode())
