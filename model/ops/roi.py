"""RoIAlign over a feature pyramid (Mask R-CNN 3, FPN eq. 1), in fixed shapes.

Two implementations of the same operation: a gather with `embedding_bag` for a fixed number of samples a bin, and
torchvision's operator for a number that adapts to the RoI. Legend: R RoIs, L levels, C channels, P output side.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor


class RoIs(NamedTuple):
    """Boxes of interest, and where each is read."""

    boxes: Tensor  # float32 [R, 4] xyxy, pixels of the input
    image_index: Tensor  # int64 [R], which image of the batch
    level_index: Tensor  # int64 [R], which level, counted from the finest


def assign_levels(boxes: Tensor, canonical_size_px: float, canonical_level: int, lowest: int, highest: int) -> Tensor:
    """Pyramid level int64 [R] of each box [R, 4], counted from 0 at `lowest` (FPN eq. 1)."""
    side = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    # The small term keeps a box of exactly the canonical size on its level despite float32's log2 (as torchvision).
    level = torch.floor(canonical_level + torch.log2(side / canonical_size_px) + 1e-6)
    return level.clamp(lowest, highest).to(torch.int64) - lowest


def roi_align(
    levels: Sequence[Tensor], strides: Sequence[int], rois: RoIs, size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Bilinear features of every RoI from its level.

    Args:
        levels: L maps [B, C, H_l, W_l], finest first.
        strides: pixels a cell, a level.
        rois: R of them.
        size: output side P in bins.
        sampling_ratio: samples a bin and axis; 0 adapts as ceil(RoI side / P).
        aligned: pixel centres at +0.5 (True), or the older half-pixel shift (False).

    Returns:
        float32 [R, C, P, P].
    """
    if sampling_ratio > 0:
        return _gather(levels, strides, rois, size, sampling_ratio, aligned)
    return _adaptive(levels, strides, rois, size, aligned)


def _adaptive(levels: Sequence[Tensor], strides: Sequence[int], rois: RoIs, size: int, aligned: bool) -> Tensor:
    # Every RoI is read from every level, but as an empty box where it does not belong (next to no work there):
    # splitting by level would make shapes depend on the data.
    boxes, image_index, level_index = rois
    total: Tensor | None = None
    for index, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        member = (level_index == index)[:, None]
        own = torch.cat([image_index[:, None].to(boxes.dtype), torch.where(member, boxes, 0.0)], 1)
        crops = torchvision.ops.roi_align(level.float(), own, (size, size), 1.0 / stride, 0, aligned)
        crops = torch.where(member[..., None, None], crops, 0.0)
        total = crops if total is None else total + crops
    assert total is not None
    return total


def _of_level(values: Sequence[int], level_index: Tensor) -> Tensor:
    """values[level_index], int64 [R], without copying a table to the device (which would wait for it)."""
    total = torch.zeros_like(level_index)
    for index, value in enumerate(values):
        total = torch.where(level_index == index, value, total)
    return total


def _axis_taps(start: Tensor, length: Tensor, limit: Tensor, bins: int, samples: int) -> tuple[Tensor, Tensor]:
    """Cells int64 and weights float32, both [R, bins, 2 * samples], that interpolate along one axis."""
    step = torch.arange(bins * samples, device=start.device, dtype=start.dtype)
    position = start[:, None] + (step + 0.5) * (length / (bins * samples))[:, None]  # [R, bins * samples]
    end = limit[:, None].to(start.dtype)
    inside = (position >= -1) & (position <= end)
    position = torch.minimum(position.clamp(min=0), end - 1)  # at the last cell both taps are that cell
    low = position.floor()
    high_weight = position - low
    cells = torch.stack([low, torch.minimum(low + 1, end - 1)], -1).to(torch.int64)
    weights = torch.stack([1 - high_weight, high_weight], -1) * (inside / samples)[..., None]
    shape = (start.shape[0], bins, 2 * samples)
    return cells.reshape(shape), weights.reshape(shape)


def _gather(
    levels: Sequence[Tensor], strides: Sequence[int], rois: RoIs, size: int, samples: int, aligned: bool
) -> Tensor:
    # All cells of all levels as rows of one table; each output bin is a weighted sum of (2 samples)² of its rows.
    boxes, image_index, level_index = rois
    channels = levels[0].shape[1]
    table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in levels]).float()
    rows = [level.shape[0] * level.shape[2] * level.shape[3] for level in levels]
    height = _of_level([level.shape[2] for level in levels], level_index)  # [R]
    width = _of_level([level.shape[3] for level in levels], level_index)
    first_row = _of_level([sum(rows[:i]) for i in range(len(rows))], level_index)
    scale = 1.0 / _of_level(strides, level_index)[:, None]  # [R, 1]

    corners = boxes * scale - (0.5 if aligned else 0.0)
    side = corners[:, 2:] - corners[:, :2]
    if not aligned:
        side = side.clamp(min=1.0)  # Caffe2's malformed RoIs become one cell
    x_cells, x_weights = _axis_taps(corners[:, 0], side[:, 0], width, size, samples)
    y_cells, y_weights = _axis_taps(corners[:, 1], side[:, 1], height, size, samples)
    base = first_row + image_index * height * width  # [R]
    y_rows = base[:, None, None] + y_cells * width[:, None, None]

    bags, taps = len(boxes) * size * size, (2 * samples) ** 2
    # [R, P, 1, 2s, 1] + [R, 1, P, 1, 2s] -> [R * P * P, (2s)²]
    index = (y_rows[:, :, None, :, None] + x_cells[:, None, :, None, :]).reshape(bags, taps)
    weight = (y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]).reshape(bags, taps)
    crops = F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")
    return crops.reshape(len(boxes), size, size, channels).permute(0, 3, 1, 2)
