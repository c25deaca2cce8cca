"""Records made by hand: pictures and masks that a test can reason about."""

from collections.abc import Sequence

import numpy as np
import simplejpeg

from pipeline.data import rle
from pipeline.data.records import Record, empty_record


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise with some structure: uint8 [H, W, 3]."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (height, width, 3))
    ramp = np.linspace(0, 255, width)[None, :, None]
    return ((noise + ramp) / 2).astype(np.uint8)


def jpeg(pixels: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95, colorspace="RGB")


def blob(height: int, width: int, y: int, x: int, h: int, w: int) -> np.ndarray:
    """An L-shaped mask [H, W] whose box is exactly (y, x, h, w): it has no symmetry that would hide a flip."""
    mask = np.zeros((height, width), np.uint8)
    mask[y : y + h, x : x + max(1, w // 3)] = 1
    mask[y + h - max(1, h // 3) : y + h, x : x + w] = 1
    return mask


def box_of(mask: np.ndarray) -> list[float]:
    """xyxy of what is set."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def record(
    sample_id: int,
    height: int,
    width: int,
    masks: Sequence[np.ndarray] = (),
    crowd: Sequence[bool] | None = None,
    image: bytes | None = None,
) -> Record:
    """A record whose n-th object is of class n + 1."""
    boxes = [box_of(mask) for mask in masks]
    rles = [rle.from_mask(mask) for mask in masks]
    made = empty_record(sample_id, f"{sample_id}.jpg", height, width, jpeg(picture(height, width, sample_id)))
    if image is not None:
        made["image"] = image
    made["boxes"] = boxes
    made["classes"] = list(range(1, len(masks) + 1))
    made["crowd"] = [False] * len(masks) if crowd is None else list(crowd)
    made["areas"] = [float(mask.sum()) for mask in masks]
    made["annotation_ids"] = [100 * sample_id + i for i in range(len(masks))]
    made["rles"] = rles
    made["crops"] = [
        rle.crop(rle.parse_counts(counts), height, width, box) for counts, box in zip(rles, boxes, strict=True)
    ]
    made["keypoints"] = [[] for _ in masks]
    return made
