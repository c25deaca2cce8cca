"""What a training sample costs the CPU: our collator against torchvision's reference loader and a detectron2-style one.

All read the same encoded pictures and COCO annotations from memory, with the same sizes and flips, in one process and
one thread, image batch by image batch in turn; CPU time is the process's.

- torchvision (references/detection with the "pil" backend): Pillow decodes, ConvertCocoPolysToMask draws each instance
  on the whole picture, flip, float tensor; then GeneralizedRCNNTransform, torchvision's own class, normalises, resizes
  (bilinear; masks nearest) and pads. In training that last step runs inside the model, on its device: the figure
  without it is given too.
- detectron2 (DatasetMapper, written anew with Pillow and NumPy, as detectron2 has no release for current torch):
  Pillow decodes and resizes, flip, BGR array, corners of boxes and polygons transformed, RLE masks resized, empty
  instances dropped. Padding and normalising run on the device there and are not counted; nor is the rasterising of
  polygons, which detectron2 does on the CPU in each step.
- ours: one padded uint8 batch with boxes and 112 x 112 crops. Normalising runs on the device.
"""

import copy
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision.transforms.functional as tv
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from model.types import Batch
from pipeline.config import AugmentConfig
from pipeline.data.augment import Recipe, draw_recipe
from pipeline.data.coco import read_coco
from pipeline.data.collate import Work, collate, resize_into
from pipeline.data.images import decode
from pipeline.data.quarantine import Quarantine
from pipeline.data.records import Record

Json = dict[str, Any]


class Input(NamedTuple):
    """One sample in memory."""

    record: Record
    annotations: list[Json]  # as in COCO's file
    recipe: Recipe


@dataclass(frozen=True)
class LoaderFigure:
    """What one loader costs."""

    loader: str
    cpu_ms: float  # an image, median over the rounds
    wall_ms: float


@dataclass(frozen=True)
class LoaderComparison:
    """All loaders on the same images."""

    images: int
    instances: int  # not crowd
    rounds: int
    figures: tuple[LoaderFigure, ...]
    decoder_equal: bool  # our decoder's pixels are Pillow's, on every image
    resize_levels: int  # the largest difference of our resize from Pillow's, 0..255


def compare_loaders(
    annotations: Path,
    images: Path,
    count: int = 64,
    rounds: int = 5,
    batch_images: int = 2,
    shorter_px: int = 800,
    longest_px: int = 1333,
    on_round: Callable[[int], None] = lambda _: None,
) -> LoaderComparison:
    """Measure all loaders.

    Args:
        annotations: COCO instances file.
        images: directory of its pictures.
        count: images, the first ones with a trainable instance.
        rounds: how often each loader reads all of them, after one round to warm up.
        batch_images: images a batch of ours and of torchvision's.
        shorter_px: of the input.
        longest_px: of the input, at most.
        on_round: told how many rounds are done.
    """
    inputs = _read(annotations, images, count, shorter_px, longest_px)
    transform = GeneralizedRCNNTransform(shorter_px, longest_px, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    loaders: dict[str, Callable[[Sequence[Input]], object]] = {
        "ours": load_ours,
        "torchvision": lambda batch: load_torchvision(batch, transform),
        "torchvision, resize left to the device": lambda batch: load_torchvision(batch, None),
        "detectron2-style": lambda batch: [map_detectron2(one) for one in batch],
    }
    batches = [inputs[i : i + batch_images] for i in range(0, len(inputs), batch_images)]
    cpu: dict[str, list[float]] = {name: [] for name in loaders}
    wall: dict[str, list[float]] = {name: [] for name in loaders}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(rounds + 1):
            spent = {name: [0.0, 0.0] for name in loaders}
            for batch in batches:
                for name, load in loaders.items():
                    before = time.process_time(), time.perf_counter()
                    load(batch)
                    spent[name][0] += time.process_time() - before[0]
                    spent[name][1] += time.perf_counter() - before[1]
            if number:
                for name, (cpu_seconds, wall_seconds) in spent.items():
                    cpu[name].append(1000 * cpu_seconds / len(inputs))
                    wall[name].append(1000 * wall_seconds / len(inputs))
                on_round(number)
    finally:
        torch.set_num_threads(threads)
    return LoaderComparison(
        images=len(inputs),
        instances=sum(not crowd for one in inputs for crowd in one.record["crowd"]),
        rounds=rounds,
        figures=tuple(LoaderFigure(n, statistics.median(cpu[n]), statistics.median(wall[n])) for n in loaders),
        decoder_equal=all(np.array_equal(decode(one.record["image"]), _pillow(one)) for one in inputs),
        resize_levels=max(_resize_difference(one) for one in inputs),
    )


def _read(annotations: Path, images: Path, count: int, shorter_px: int, longest_px: int) -> list[Input]:
    """The first `count` images with an instance, and what is drawn for them: a resize and perhaps a flip."""
    by_image: dict[int, list[Json]] = {}
    for annotation in json.loads(annotations.read_bytes())["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    quarantine = Quarantine(strict=False)
    dataset = read_coco(annotations, images, quarantine)
    inputs: list[Input] = []
    for entry in dataset.entries:
        if len(inputs) == count:
            break
        sample = dataset.reader.read(entry, quarantine)
        if sample is None or all(sample.record["crowd"]):
            continue
        record = sample.record
        kept = set(record["annotation_ids"])
        recipe = draw_recipe(
            record["height"], record["width"], shorter_px, longest_px, AugmentConfig(), 0, 0, record["sample_id"]
        )
        mine = [a for a in by_image[record["sample_id"]] if a["id"] in kept]
        inputs.append(Input(record, mine, recipe))
    return inputs


def load_ours(batch: Sequence[Input]) -> Batch:
    """A padded batch, as training gets it."""
    return collate([Work(one.record, one.recipe) for one in batch], 32, "crop", None, _refuse)


def load_torchvision(
    batch: Sequence[Input], transform: GeneralizedRCNNTransform | None
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Samples of torchvision's reference loader; with `transform` also what its model does before the trunk."""
    images, targets = [], []
    for one in batch:
        picture = Image.open(BytesIO(one.record["image"])).convert("RGB")
        width, height = picture.size
        kept = [a for a in one.annotations if a["iscrowd"] == 0]
        boxes = torch.as_tensor([a["bbox"] for a in kept], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes[:, 0::2].clamp_(min=0, max=width)
        boxes[:, 1::2].clamp_(min=0, max=height)
        labels = torch.tensor([a["category_id"] for a in kept], dtype=torch.int64)
        masks = _draw_masks([a["segmentation"] for a in kept], height, width)
        real = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
        boxes, labels, masks = boxes[real], labels[real], masks[real]
        if one.recipe.geometry.flip:
            picture = tv.hflip(picture)
            boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
            masks = masks.flip(-1)
        images.append(tv.convert_image_dtype(tv.pil_to_tensor(picture), torch.float32))
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    if transform is not None:
        padded, resized = transform(images, targets)
        assert resized is not None
        return list(padded.tensors), resized
    return images, targets


def _draw_masks(segmentations: Sequence[Any], height: int, width: int) -> Tensor:
    """uint8 [N, height, width]."""
    masks = []
    for segmentation in segmentations:
        decoded = coco_mask.decode(coco_mask.frPyObjects(segmentation, height, width))
        mask = torch.as_tensor(decoded, dtype=torch.uint8)
        masks.append(mask.any(dim=2) if mask.ndim == 3 else mask)
    return torch.stack(masks).to(torch.uint8) if masks else torch.zeros((0, height, width), dtype=torch.uint8)


def map_detectron2(one: Input) -> dict[str, Any]:
    """One sample as detectron2's mapper makes it: BGR image, boxes, classes, polygons or bit masks."""
    annotations = copy.deepcopy(one.annotations)
    geometry = one.recipe.geometry
    pixels = np.asarray(Image.open(BytesIO(one.record["image"])).convert("RGB"))[:, :, ::-1]
    size = (geometry.new_width, geometry.new_height)
    pixels = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR))
    if geometry.flip:
        pixels = np.flip(pixels, axis=1)
    image = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    scale = np.array([geometry.new_width / geometry.width, geometry.new_height / geometry.height])

    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        moved: NDArray[np.float64] = points * scale
        if geometry.flip:
            moved[:, 0] = geometry.new_width - moved[:, 0]
        return moved

    boxes, classes = [], []
    masks: list[Any] = []
    for annotation in annotations:
        if annotation["iscrowd"]:
            continue
        x, y, w, h = annotation["bbox"]
        corners = move(np.array([[x, y], [x + w, y], [x, y + h], [x + w, y + h]], dtype=np.float64))
        box = np.concatenate((corners.min(axis=0), corners.max(axis=0))).clip(min=0)
        boxes.append(np.minimum(box, [geometry.new_width, geometry.new_height] * 2))
        classes.append(annotation["category_id"])
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            masks.append([move(np.asarray(p, dtype=np.float64).reshape(-1, 2)).reshape(-1) for p in segmentation])
        else:
            rle = coco_mask.frPyObjects(segmentation, geometry.height, geometry.width)
            mask = np.asarray(Image.fromarray(coco_mask.decode(rle)).resize(size, Image.Resampling.NEAREST))
            masks.append(np.flip(mask, axis=1) if geometry.flip else mask)
    tensor = torch.as_tensor(np.array(boxes, dtype=np.float32).reshape(-1, 4))
    full = (tensor[:, 2:] - tensor[:, :2] > 1e-5).all(dim=1)
    keep = [i for i, mask in enumerate(masks) if full[i] and len(mask)]
    return {
        "image": image,
        "gt_boxes": tensor[keep],
        "gt_classes": torch.tensor(classes, dtype=torch.int64)[keep],
        "gt_masks": [masks[i] for i in keep],
    }


def _pillow(one: Input) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(one.record["image"])).convert("RGB"))


def _resize_difference(one: Input) -> int:
    geometry = replace(one.recipe.geometry, flip=False)
    slot = torch.zeros(geometry.new_height, geometry.new_width, 3, dtype=torch.uint8)
    resize_into(slot, decode(one.record["image"]), geometry)
    picture = Image.fromarray(_pillow(one))
    expected = np.asarray(picture.resize((geometry.new_width, geometry.new_height), Image.Resampling.BILINEAR))
    return int(np.abs(slot.numpy().astype(np.int16) - expected).max())


def _refuse(sample_id: int, reason: str) -> None:
    raise ValueError(f"image {sample_id} cannot be decoded: {reason}; leave it out of the comparison")
