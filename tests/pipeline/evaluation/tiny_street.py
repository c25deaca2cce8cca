"""Small pictures in Cityscapes' layout, as awkward as can be, and detections on them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data import rle
from pipeline.data.cityscapes import read_cityscapes
from pipeline.data.cityscapes_labels import CATEGORY_IDS, label_ids
from pipeline.data.quarantine import Quarantine
from pipeline.data.records import Record
from pipeline.evaluation.cityscapes_submission import write_picture

HEIGHT, WIDTH = 48, 96
Ids = np.ndarray  # uint16 [HEIGHT, WIDTH]


def result(mask: np.ndarray, label: int, score: float) -> dict[str, Any]:
    size = list(mask.shape)
    return {
        "image_id": 0,
        "category_id": label,
        "score": score,
        "segmentation": {"size": size, "counts": rle.from_mask(mask).decode()},
    }


def random_ids(rng: np.random.Generator, labels: Sequence[int]) -> Ids:
    """Rectangles of every kind: void, stuff, groups, objects, one pixel and more, over each other."""
    ids = np.full((HEIGHT, WIDTH), rng.choice([0, 7, 11]), dtype=np.uint16)
    for number in range(int(rng.integers(0, 25))):
        label = int(rng.choice(labels))
        kind = rng.random()
        thing = label * 1000 + number if kind < 0.6 else label if kind < 0.75 else int(rng.choice([0, 1, 4, 7, 9, 29]))
        if kind > 0.95:
            thing = int(rng.choice([29, 30])) * 1000 + number  # single caravans and trailers are no void
        ids[_window(rng)] = thing
    return ids


def random_results(rng: np.random.Generator, ids: Ids, labels: Sequence[int]) -> list[dict[str, Any]]:
    """Objects as they are, shifted, cut, doubled, of another class; groups and void too; anything else; ties."""
    found = []
    regions = [int(i) for i in np.unique(ids)]
    for _ in range(int(rng.integers(0, 30))):
        region = int(rng.choice(regions))
        mask, label = ids == region, int(label_ids(np.array(region, dtype=np.uint16)))
        kind = rng.random()
        if kind < 0.3:
            mask = np.roll(mask, rng.integers(-4, 5, 2), axis=(0, 1))
        elif kind < 0.5:
            mask = mask & (rng.random(mask.shape) < rng.uniform(0.4, 1))
        elif kind < 0.6:
            mask = np.zeros_like(mask)
            mask[_window(rng)] = True
        elif kind < 0.65:
            mask = np.zeros_like(mask)
        if label not in labels or rng.random() < 0.1:
            label = int(rng.choice([*labels, 7, 29]))
        score = float(rng.choice([0.25, 0.5, rng.random()]))
        found.append(result(mask, label, score))
    return found


def _window(rng: np.random.Generator) -> tuple[slice, slice]:
    height, width = rng.choice([1, 3, 9, 11, 20, HEIGHT]), rng.choice([1, 4, 10, 12, 30])
    y, x = rng.integers(0, HEIGHT), rng.integers(0, WIDTH)
    return slice(y, y + height), slice(x, x + width)


@dataclass
class Folder:
    """A Cityscapes directory, and a submission for it."""

    root: Path
    results: list[list[dict[str, Any]]] = field(default_factory=list)
    instance_ids: list[Path] = field(default_factory=list)

    def add(self, ids: Ids, results: list[dict[str, Any]]) -> None:
        name = f"ulm_{len(self.results):06d}_000019"
        for kind, ending, pixels in (
            ("leftImg8bit", "leftImg8bit", np.zeros((*ids.shape, 3), dtype=np.uint8)),
            ("gtFine", "gtFine_instanceIds", ids),
            ("gtFine", "gtFine_labelIds", label_ids(ids)),
        ):
            path = self.root / kind / "val" / "ulm" / f"{name}_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        self.instance_ids.append(path.with_name(f"{name}_gtFine_instanceIds.png"))
        write_picture(self.submission, f"{name}_leftImg8bit.png", results)
        self.results.append(results)

    @property
    def submission(self) -> Path:
        return self.root / "submission"

    def records(self) -> list[Record]:
        """As sharding makes them, in the order in which they were added."""
        dataset = read_cityscapes(self.root, "val", Quarantine(strict=True))
        read = [dataset.reader.read(entry, dataset.quarantine) for entry in dataset.entries]
        return sorted((sample.record for sample in read if sample), key=lambda record: record["file_name"])


def png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def travelled(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As they come back from a worker."""
    return json.loads(json.dumps(results))


__all__ = ["CATEGORY_IDS", "HEIGHT", "WIDTH", "Folder", "png", "random_ids", "random_results", "result", "travelled"]
