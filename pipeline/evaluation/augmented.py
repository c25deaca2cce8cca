"""Pictures of what training sees: a sample beside the inputs that augmentation makes of it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from model.ops.masks import paste_crops
from model.types import Batch
from pipeline.config import AugmentConfig
from pipeline.data.augment import Recipe, draw_recipe
from pipeline.data.collate import Work, collate
from pipeline.data.images import ImageError, decode
from pipeline.data.records import Record
from pipeline.data.source import Keypoints
from pipeline.evaluation.instances import Instances, from_record
from pipeline.evaluation.pictures import draw_panels

_PLAIN = AugmentConfig(flip_probability=0.0)
_EACH_KIND = {
    "resize": _PLAIN,
    "flip": replace(_PLAIN, flip_probability=1.0),
    "crop": replace(_PLAIN, crop_share=(0.4, 0.8)),
    "jitter, smaller": replace(_PLAIN, resize="jitter", jitter_scale=(0.3, 0.6)),
    "jitter, larger": replace(_PLAIN, resize="jitter", jitter_scale=(1.4, 2.0)),
    "colour": replace(_PLAIN, brightness=0.3, contrast=0.4, saturation=0.5, hue=0.1),
    "copy-paste": replace(_PLAIN, copy_paste_probability=1.0),
    "all": replace(
        AugmentConfig(crop_share=(0.7, 1.0), brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05),
        resize="jitter",
        jitter_scale=(0.5, 2.0),
        copy_paste_probability=1.0,
    ),
}


def each_kind(record: Record, partner: Record, size_px: int, seed: int = 0) -> list[tuple[str, Work]]:
    """(title, work) for each augmentation alone, and all together; `partner` gives instances to copy-paste."""
    return [
        (title, draw_work(record, partner if options.copy_paste_probability else None, size_px, options, seed, 0))
        for title, options in _EACH_KIND.items()
    ]


def draw_work(
    record: Record, partner: Record | None, size_px: int, options: AugmentConfig, seed: int, epoch: int
) -> Work:
    """What training does to a sample, perhaps with a partner, in an epoch; its longer side is at most 2 `size_px`."""

    def draw(one: Record) -> Recipe:
        size = one["height"], one["width"]
        return draw_recipe(*size, size_px, 2 * size_px, options, seed, epoch, one["sample_id"])

    return Work(record, draw(record), partner, None if partner is None else draw(partner))


def draw_inputs(
    record: Record,
    inputs: Sequence[tuple[str, Work]],
    class_names: Sequence[str],
    path: Path,
    keypoints: Keypoints | None,
) -> None:
    """The picture as it is, then each input as the network gets it, padding included, with its ground truth.

    Args:
        record: the sample.
        inputs: (title, work) on it.
        class_names: K names.
        path: file to write; its ending chooses the format.
        keypoints: of the data set, None without.

    Raises:
        ImageError: a picture cannot be decoded.
    """
    panels = [("picture", decode(record["image"]), from_record(record))]
    order = None if keypoints is None else keypoints.flip
    for title, work in inputs:
        batch = collate([work], 32, "crop", order, _refuse)
        panels.append((title, batch.images[0].numpy(), from_batch(batch, 0)))
    draw_panels(panels, class_names, path, () if keypoints is None else keypoints.skeleton)


def from_batch(batch: Batch, image: int) -> Instances:
    """The ground truth of one image of a batch with "crop" targets, in pixels of the input."""
    targets = batch.targets
    assert targets is not None and targets.masks is not None
    real = targets.valid[image]
    boxes = targets.boxes[image, real]
    size = (batch.images.shape[1], batch.images.shape[2])
    crops = paste_crops(targets.masks[image, real], boxes, size)
    keypoints = None
    if targets.keypoints is not None:
        keypoints = list(targets.keypoints[image, real].double().numpy())
        for points in keypoints:
            points[:, :2] -= 0.5  # a pixel's number, as in COCO's files
    return Instances(
        boxes=boxes.double().numpy(),
        classes=targets.classes[image, real].numpy(),
        masks=[(y, x, crop.numpy()) for y, x, crop in crops],
        crowd=np.zeros(len(boxes), dtype=np.bool_),
        keypoints=keypoints,
    )


def _refuse(sample_id: int, reason: str) -> None:
    raise ImageError(f"image {sample_id} cannot be decoded: {reason}; run `maskrcnn shard` again")
