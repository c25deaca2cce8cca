"""A tiny COCO data set that tests spoil."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.coco import read_coco
from pipeline.data.quarantine import Quarantine
from pipeline.data.source import Dataset


def jpeg(height: int, width: int, mode: str = "RGB", seed: int = 0, **options: Any) -> bytes:
    channels = {"RGB": (3,), "L": (), "CMYK": (4,)}[mode]
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, *channels), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small, mode).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", **options)
    return file.getvalue()


class TinyCoco:
    """Three 40 x 60 pictures with one square each; tests change `content` and the files, then call `read`."""

    def __init__(self, root: Path) -> None:
        self.json, self.images = root / "instances.json", root / "images"
        self.images.mkdir(parents=True)
        self.content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        self.content["categories"] = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
        for number in (1, 2, 3):
            name = f"{number}.jpg"
            (self.images / name).write_bytes(jpeg(40, 60, seed=number))
            self.content["images"].append({"id": number, "file_name": name, "height": 40, "width": 60})
            self.content["annotations"].append(self.square(10 * number, number))

    def square(self, annotation_id: int, image_id: int, **changes: Any) -> dict[str, Any]:
        polygon = [10, 5, 30, 5, 30, 25, 10, 25]
        return {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": 7,
            "bbox": [10, 5, 20, 20],
            "area": 400.0,
            "iscrowd": 0,
            "segmentation": [polygon],
            **copy.deepcopy(changes),
        }

    def read(self, strict: bool = False) -> Dataset:
        self.json.write_text(json.dumps(self.content))
        return read_coco(self.json, self.images, Quarantine(strict))


def grow(tiny: TinyCoco, images: int) -> None:
    """More pictures, up to so many; every other one has a crowd region."""
    for number in range(4, images + 1):
        (tiny.images / f"{number}.jpg").write_bytes((tiny.images / "1.jpg").read_bytes())
        entry = {"id": number, "file_name": f"{number}.jpg", "height": 40, "width": 60}
        tiny.content["images"].append(entry)
        tiny.content["annotations"].append(tiny.square(10 * number, number, iscrowd=number % 2))
