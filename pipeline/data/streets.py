"""The embedded street data set: generated streets (street_scenes.py) in Cityscapes' layout, names and file formats.

Picture i of a split depends on (seed, split, i) alone: the files are the same bytes whatever the number of processes.
An interrupted call goes on where it stopped: the polygons of a picture are written last, and say that it is complete.
"""

import json
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data import street_scenes
from pipeline.data.cityscapes import GENERATOR, GROUND_TRUTH, PICTURES
from pipeline.data.cityscapes_labels import LABELS, label_ids
from pipeline.data.generation import Progress, claim, run, write_whole
from pipeline.data.quarantine import DataError

GENERATOR_VERSION = 1  # counts every change of the pictures
CITIES = {"train": ("felsenbruck", "marienquell", "nordhaven"), "val": ("lindwerder", "obersand")}  # on no map
SPLITS = tuple(CITIES)
_CHUNK = 8  # pictures a task


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a generated data set."""

    train: int  # pictures
    val: int
    seed: int
    height_px: int  # a picture is twice as wide
    name: str = "streets"
    version: int = GENERATOR_VERSION


def generate_streets(
    out: Path,
    *,
    train: int,
    val: int,
    seed: int = 0,
    height_px: int = 256,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Settings:
    """Write what is missing of both splits below `out`. Raises DataError where `out` is not ours."""
    settings = Settings(train=train, val=val, seed=seed, height_px=height_px)
    counts = {"train": train, "val": val}
    if min(counts.values()) < 0 or height_px < 64:
        raise DataError(f"streets need train >= 0, val >= 0 and height_px >= 64, got {train}, {val} and {height_px}")
    claim(out, GENERATOR, asdict(settings), (PICTURES, GROUND_TRUTH))
    missing = [
        (split, index)
        for split in SPLITS
        for index in range(counts[split])
        if not _file(out, GROUND_TRUTH, split, index, "polygons.json").exists()
    ]
    for split, cities in CITIES.items():
        for city in cities[: counts[split]]:
            for kind in (PICTURES, GROUND_TRUTH):
                (out / kind / split / city).mkdir(parents=True, exist_ok=True)
    tasks = [(out, tuple(missing[first : first + _CHUNK]), settings) for first in range(0, len(missing), _CHUNK)]
    done, total = train + val - len(missing), train + val
    if progress is not None:
        progress(done, total)
    for (_, pictures, _), _ in run(_write_pictures, tasks, workers):
        done += len(pictures)
        if progress is not None:
            progress(done, total)
    return settings


def render(seed: int, split: str, index: int, height_px: int = 256) -> street_scenes.Street:
    """Street `index` of a split."""
    return street_scenes.render(np.random.default_rng([seed, SPLITS.index(split), index]), height_px)


Task = tuple[Path, tuple[tuple[str, int], ...], Settings]  # root, (split, index) of pictures


def _write_pictures(task: Task) -> None:
    out, pictures, settings = task
    for split, index in pictures:
        street = render(settings.seed, split, index, settings.height_px)
        labels = label_ids(street.instance_ids)
        height, width = labels.shape
        annotation = {"imgHeight": height, "imgWidth": width, "objects": street.objects}
        write_whole(_file(out, PICTURES, split, index), _png(street.pixels))
        write_whole(_file(out, GROUND_TRUTH, split, index, "instanceIds.png"), _png(street.instance_ids))
        write_whole(_file(out, GROUND_TRUTH, split, index, "labelIds.png"), _png(labels))
        write_whole(_file(out, GROUND_TRUTH, split, index, "color.png"), _png(_COLOURS[labels]))
        write_whole(_file(out, GROUND_TRUTH, split, index, "polygons.json"), json.dumps(annotation).encode())


def _file(out: Path, kind: str, split: str, index: int, ending: str | None = None) -> Path:
    """A file of picture `index`; the cities take turns."""
    city = CITIES[split][index % len(CITIES[split])]
    name = f"{city}_{index:06d}_000019_{kind}"  # frame 19 of a sequence is the one that Cityscapes annotates
    return out / kind / split / city / (f"{name}.png" if ending is None else f"{name}_{ending}")


def _png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=3)
    return file.getvalue()


_COLOURS = np.zeros((256, 4), dtype=np.uint8)  # of labels, RGBA as in the real files
_COLOURS[[label.id for label in LABELS if label.id >= 0]] = [(*label.colour, 255) for label in LABELS if label.id >= 0]
