"""What happens to a sample before it trains: its new size and whether it is flipped."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Geometry:
    """How an image of (height, width) becomes an input of (new_height, new_width)."""

    height: int
    width: int
    new_height: int
    new_width: int
    flip: bool


def resized(height: int, width: int, shorter_px: int, longest_px: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `shorter_px`, unless the longer one would pass `longest_px`.

    Rounds half up, with the roundings of detectron2's ResizeShortestEdge in their order: halves do occur, and another
    order puts some of them on the other side.
    """
    scale = shorter_px / min(height, width)
    new_height, new_width = (shorter_px, scale * width) if height < width else (scale * height, shorter_px)
    if max(new_height, new_width) > longest_px:
        scale = longest_px / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def draw_geometry(
    height: int,
    width: int,
    shorter_px: int,
    longest_px: int,
    flip_probability: float,
    seed: int,
    epoch: int,
    sample_id: int,
) -> Geometry:
    """The geometry of a sample in an epoch: its randomness comes from (seed, epoch, sample_id) alone."""
    generator = np.random.default_rng((seed, 2, epoch, sample_id % 2**63))
    flip = bool(generator.random() < flip_probability)
    return Geometry(height, width, *resized(height, width, shorter_px, longest_px), flip)
