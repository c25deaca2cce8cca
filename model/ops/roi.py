"""What is read of a feature pyramid for every RoI (Mask R-CNN 3 and table 2c, FPN eq. 1), in fixed shapes.

| operation | corners of the RoI | samples | a bin is |
|---|---|---|---|
| align, align_max | as they are | bilinear | their mean, their maximum |
| warp, warp_max (RoIWarp, Dai et al. 2016) | rounded to whole cells | bilinear | their mean, their maximum |
| pool (RoIPool, Fast R-CNN 2.1) | rounded to whole cells, bins too | every cell | its maximum |

RoIAlign on a CPU is in roi_align.py. Elsewhere there are two: a gather with `embedding_bag` for a fixed number of
samples a bin, and torchvision's operator for a number that adapts to the RoI.

Legend: R RoIs, L levels, C channels, P output side, s samples an axis.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from model.config import RoIOperation
from model.ops.roi_align import roi_align_cpu


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


def crop_rois(
    operation: RoIOperation,
    levels: Sequence[Tensor],
    strides: Sequence[int],
    rois: RoIs,
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Features of every RoI from its level.

    Args:
        operation: see the table above.
        levels: L maps [B, C, H_l, W_l], finest first.
        strides: pixels a cell, a level.
        rois: R of them.
        size: output side P in bins.
        sampling_ratio: samples a bin and axis; 0 adapts as ceil(RoI side / P), for `align` alone. `pool` has none.
        aligned: pixel centres at +0.5 (True), or the older half-pixel shift (False). `pool` knows only the older one.

    Returns:
        float32 [R, C, P, P] (float64 of float64 maps and boxes).
    """
    match operation:
        case "pool":
            return _each_level(_pool, levels, strides, rois, size)
        case "align" if levels[0].device.type == "cpu":
            return _on_cpu(levels, strides, rois, size, sampling_ratio, aligned)
        case "align" if sampling_ratio == 0:
            return _each_level(partial(_adaptive, aligned=aligned), levels, strides, rois, size)
        case _:
            whole_cells, largest = operation.startswith("warp"), operation.endswith("_max")
            return _gather(levels, strides, rois, size, sampling_ratio, aligned, whole_cells, largest)


def _on_cpu(
    levels: Sequence[Tensor], strides: Sequence[int], rois: RoIs, size: int, sampling_ratio: int, aligned: bool
) -> Tensor:
    maps = [_precise(level) for level in levels]
    boxes, image_index, level_index = rois
    boxes = boxes.to(maps[0].dtype)
    crops: Tensor = roi_align_cpu(maps, strides, boxes, image_index, level_index, size, sampling_ratio, aligned)
    return crops


def _adaptive(level: Tensor, numbered: Tensor, size: int, scale: float, aligned: bool) -> Tensor:
    crops: Tensor = torchvision.ops.roi_align(_precise(level), numbered, (size, size), scale, 0, aligned)
    return crops


def _pool(level: Tensor, numbered: Tensor, size: int, scale: float) -> Tensor:
    crops: Tensor = torchvision.ops.roi_pool(_precise(level), numbered, (size, size), scale)
    return crops


def _each_level(
    operator: Callable[[Tensor, Tensor, int, float], Tensor],
    levels: Sequence[Tensor],
    strides: Sequence[int],
    rois: RoIs,
    size: int,
) -> Tensor:
    """Crops by one of torchvision's operators, which know one level."""
    # Every RoI is read from every level, but as an empty box where it does not belong (next to no work there):
    # splitting by level would make shapes depend on the data.
    boxes, image_index, level_index = rois
    total: Tensor | None = None
    for index, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        member = (level_index == index)[:, None]
        numbered = torch.cat([image_index[:, None].to(boxes.dtype), torch.where(member, boxes, 0.0)], 1)
        crops = torch.where(member[..., None, None], operator(level, numbered, size, 1.0 / stride), 0.0)
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
    """Cells int64 and weights float32, both [R, P, s, 2], that interpolate each sample along one axis."""
    step = torch.arange(bins * samples, device=start.device, dtype=start.dtype)
    position = start[:, None] + (step + 0.5) * (length / (bins * samples))[:, None]  # [R, P * s]
    end = limit[:, None].to(start.dtype)
    inside = (position >= -1) & (position <= end)
    position = torch.minimum(position.clamp(min=0), end - 1)  # at the last cell both taps are that cell
    low = position.floor()
    high_weight = position - low
    cells = torch.stack([low, torch.minimum(low + 1, end - 1)], -1).to(torch.int64)
    weights = torch.stack([1 - high_weight, high_weight], -1) * inside[..., None]
    shape = (start.shape[0], bins, samples, 2)
    return cells.reshape(shape), weights.reshape(shape)


def _gather(
    levels: Sequence[Tensor],
    strides: Sequence[int],
    rois: RoIs,
    size: int,
    samples: int,
    aligned: bool,
    whole_cells: bool,
    largest: bool,
) -> Tensor:
    # All cells of all levels as rows of one table; each output bin is a weighted sum of (2 s)² of its rows, or the
    # largest of s² sums of 4.
    boxes, image_index, level_index = rois
    channels = levels[0].shape[1]
    table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in map(_precise, levels)])
    rows = [level.shape[0] * level.shape[2] * level.shape[3] for level in levels]
    height = _of_level([level.shape[2] for level in levels], level_index)  # [R]
    width = _of_level([level.shape[3] for level in levels], level_index)
    first_row = _of_level([sum(rows[:i]) for i in range(len(rows))], level_index)
    scale = 1.0 / _of_level(strides, level_index)[:, None]  # [R, 1]

    corners = boxes * scale
    if whole_cells:  # RoIPool's rounding: from the first cell to the end of the last one, at least one cell
        first, last = _half_up(corners[:, :2]), _half_up(corners[:, 2:])
        corners = torch.cat([first, torch.maximum(last, first) + 1], 1)
    corners = corners - (0.5 if aligned else 0.0)
    side = corners[:, 2:] - corners[:, :2]
    if not aligned:
        side = side.clamp(min=1.0)  # Caffe2's malformed RoIs become one cell
    x_cells, x_weights = _axis_taps(corners[:, 0], side[:, 0], width, size, samples)
    y_cells, y_weights = _axis_taps(corners[:, 1], side[:, 1], height, size, samples)
    base = first_row + image_index * height * width  # [R]
    y_rows = base[:, None, None, None] + y_cells * width[:, None, None, None]

    # [R, P, 1, s, 1, 2, 1] + [R, 1, P, 1, s, 1, 2] -> [R, P, P, s, s, 2, 2]
    index = y_rows[:, :, None, :, None, :, None] + x_cells[:, None, :, None, :, None, :]
    weight = y_weights[:, :, None, :, None, :, None] * x_weights[:, None, :, None, :, None, :]
    if not largest:
        weight = weight / samples**2
    taps = 4 if largest else 4 * samples**2
    crops = F.embedding_bag(index.reshape(-1, taps), table, per_sample_weights=weight.reshape(-1, taps), mode="sum")
    if largest:
        crops = crops.reshape(-1, samples**2, channels).amax(1)
    return crops.reshape(len(boxes), size, size, channels).permute(0, 3, 1, 2)


def _precise(level: Tensor) -> Tensor:
    """Interpolation is in float32 at least."""
    return level if level.dtype == torch.float64 else level.float()


def _half_up(x: Tensor) -> Tensor:
    """Rounds halves away from zero, as C's round() does in RoIPool."""
    return torch.sign(x) * torch.floor(x.abs() + 0.5)
