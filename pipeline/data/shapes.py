"""The embedded data set: generated scenes (scenes.py) as JPEGs with exact masks, in COCO's layout.

Image i of a split depends on (seed, split, i) alone: the files are the same bytes whatever the number of processes.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from pipeline.data import rle, scenes
from pipeline.data.quarantine import DataError

Progress = Callable[[int, int], None]  # (images done, images in all)

GENERATOR_VERSION = 1  # counts every change of the pictures
SPLITS = ("train", "val")
_SETTINGS = "shapes.json"  # written first: says that the directory is ours
_CHUNK = 64  # images a task


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
    if _prepare(out, settings):
        if progress is not None:
            progress(total, total)
        return settings
    tasks = [
        (out / split, split, first, min(first + _CHUNK, counts[split]), settings)
        for split in SPLITS
        for first in range(0, counts[split], _CHUNK)
    ]
    parts: dict[tuple[str, int], list[dict[str, Any]]] = {}
    done = 0
    for (_, split, first, last, _), images in _run(tasks, workers or os.cpu_count() or 1):
        parts[split, first] = images
        done += last - first
        if progress is not None:
            progress(done, total)
    for split in SPLITS:
        images = [image for key in sorted(parts) if key[0] == split for image in parts[key]]
        _write_json(_annotation_file(out, split), _coco(images, settings))
    return settings


def render(seed: int, split: str, index: int, size_px: int = 160) -> scenes.Scene:
    """Scene `index` of a split."""
    return scenes.render(np.random.default_rng([seed, SPLITS.index(split), index]), size_px)


Task = tuple[Path, str, int, int, Settings]  # directory, split, first image, last image (not included)


def _run(tasks: list[Task], workers: int) -> Iterator[tuple[Task, list[dict[str, Any]]]]:
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            yield task, _write_images(task)
        return
    context = multiprocessing.get_context("spawn")  # fork would copy the caller's threads' locks
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        futures = {pool.submit(_write_images, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()


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
        "segmentation": {"size": list(mask.shape), "counts": rle.from_mask(mask).decode("ascii")},
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


def _annotation_file(out: Path, split: str) -> Path:
    return out / "annotations" / f"instances_{split}.json"


def _prepare(out: Path, settings: Settings) -> bool:
    """True when `out` holds exactly these scenes; else an empty layout to write into."""
    marker = out / _SETTINGS
    if marker.exists():
        same = json.loads(marker.read_bytes()) == asdict(settings)
        if same and all(_annotation_file(out, split).exists() for split in SPLITS):
            return True
        for name in ("annotations", *SPLITS):  # ours: the marker says so
            shutil.rmtree(out / name, ignore_errors=True)
    elif out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty and was not made by this generator; give an empty or a new directory")
    for name in ("annotations", *SPLITS):
        (out / name).mkdir(parents=True, exist_ok=True)
    _write_json(marker, asdict(settings))
    return False


def _write_json(path: Path, content: object) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(path)
