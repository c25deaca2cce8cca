"""A network small enough for a test, and scenes of ellipses and rectangles to feed it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from model.config import AnchorConfig, BoxConfig, MaskConfig, ModelConfig, RoIConfig, RPNConfig, TrunkConfig
from model.types import CROP_SIZE, Batch, Proposals, Targets

CLASSES = 3

TINY = ModelConfig(
    classes=CLASSES,
    trunk=TrunkConfig("resnet18", norm="gn", freeze_stages=0, fpn_channels=16),
    rpn=RPNConfig(
        anchors=AnchorConfig(sizes_px=(8.0, 16.0, 32.0, 64.0, 128.0)),
        batch_per_image=64,
        pre_nms_train=100,
        pre_nms_test=100,
        post_nms_train=60,
        post_nms_test=60,
    ),
    roi=RoIConfig(batch_per_image=32, sampling_ratio=2, canonical_size_px=56.0),
    box=BoxConfig(hidden=32),
    mask=MaskConfig(roi_size=7, channels=16, convs=1),
)


def without_masks(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, mask=None)


def with_sampling(config: ModelConfig, samples: int) -> ModelConfig:
    return dataclasses.replace(config, roi=dataclasses.replace(config.roi, sampling_ratio=samples))


def scene(counts: Sequence[int], seed: int = 0, height: int = 96, width: int = 128, slots: int | None = None) -> Batch:
    """Images with `counts` objects each on noise: class 1 a red rectangle, 2 a green ellipse, 3 a blue ellipse."""
    rng = np.random.default_rng(seed)
    slots = max(*counts, 1, 2) if slots is None else slots
    images = rng.integers(60, 100, (len(counts), height, width, 3), dtype=np.uint8)
    boxes, classes = np.zeros((len(counts), slots, 4), np.float32), np.zeros((len(counts), slots), np.int64)
    valid, masks = np.zeros((len(counts), slots), bool), np.zeros((len(counts), slots, CROP_SIZE, CROP_SIZE), np.uint8)
    row, column = (np.mgrid[:CROP_SIZE, :CROP_SIZE] + 0.5) / CROP_SIZE
    disk = (row - 0.5) ** 2 + (column - 0.5) ** 2 <= 0.25
    y, x = np.mgrid[:height, :width] + 0.5
    for image, count in enumerate(counts):
        for slot in range(count):
            side = rng.uniform(18, 50, 2)
            corner = rng.uniform(0, [width - side[0], height - side[1]])
            box = np.concatenate([corner, corner + side])
            kind = 1 + (slot + image) % CLASSES
            u, v = (x - box[0]) / side[0] - 0.5, (y - box[1]) / side[1] - 0.5
            inside = (abs(u) <= 0.5) & (abs(v) <= 0.5) if kind == 1 else u**2 + v**2 <= 0.25
            colour = np.full(3, 40)
            colour[kind - 1] = 230
            images[image][inside] = colour
            boxes[image, slot], classes[image, slot], valid[image, slot] = box, kind, True
            masks[image, slot] = 1 if kind == 1 else disk
    sizes = torch.tensor([[height, width]] * len(counts))
    targets = Targets(*(torch.from_numpy(a) for a in (boxes, classes, valid, masks)))
    return Batch(torch.from_numpy(images), sizes, sizes, torch.arange(len(counts)), targets)


def with_keypoints(batch: Batch, count: int = 4, seed: int = 0) -> Batch:
    """Each object gets keypoints in and around its box, about a quarter of them not labelled."""
    targets, rng = batch.targets, np.random.default_rng(seed)
    assert targets is not None
    place = torch.from_numpy(rng.uniform(-0.1, 1.1, (*targets.classes.shape, count, 2)).astype(np.float32))
    corner, side = targets.boxes[..., None, :2], (targets.boxes[..., 2:] - targets.boxes[..., :2])[..., None, :]
    visibility = torch.from_numpy(rng.choice([0, 1, 2, 2], (*targets.classes.shape, count, 1)).astype(np.float32))
    points = torch.cat([corner + place * side, visibility], -1) * (visibility > 0)
    return dataclasses.replace(batch, targets=dataclasses.replace(targets, keypoints=points))


def with_proposals(batch: Batch, count: int = 40, seed: int = 0) -> Batch:
    """Boxes of another system: near the objects and anywhere, fewer in every other image."""
    targets, rng = batch.targets, np.random.default_rng(seed)
    assert targets is not None
    images, height, width = batch.images.shape[:3]
    corner = rng.uniform(0, 0.7, (images, count, 2)) * [width, height]
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.3, (images, count, 2)) * [width, height]], -1)
    boxes = torch.from_numpy(boxes.astype(np.float32))
    slots = targets.boxes.shape[1]
    near = targets.boxes + torch.from_numpy(rng.normal(0, 2, targets.boxes.shape).astype(np.float32))
    boxes[:, :slots] = torch.where(targets.valid[..., None], near.clamp(min=0), boxes[:, :slots])
    real = (
        torch.arange(count)
        < torch.tensor([count if image % 2 == 0 else count // 2 for image in range(images)])[:, None]
    )
    scores = torch.linspace(1, 0, count).expand(images, count)
    return dataclasses.replace(batch, proposals=Proposals(boxes, scores, real))


def anchor_count(height: int, width: int) -> int:
    """Anchors of a padded image over P2..P6, three a cell."""
    return sum(3 * -(-height // s) * -(-width // s) for s in (4, 8, 16, 32, 64))
