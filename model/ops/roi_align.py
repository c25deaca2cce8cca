"""RoIAlign (Mask R-CNN 3) on a CPU: a bin is a weighted sum of the cells around it, read by `embedding_bag`.

Samples of a bin that lie at most a cell apart share cells: n of them along an axis touch n + 1, not 2 n. RoIs of one
level with as many samples go together. The gradient is the same sum the other way round: the bins that each cell went
into, weighted. Shapes inside depend on the data, those outside do not: to torch this is one operator.

Legend: R RoIs of a group, B images, C channels, P output side, n samples an axis, K cells an axis, T cells of all bins.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class _Taps(NamedTuple):
    """Which cells each bin of some RoIs is made of."""

    rois: Tensor  # int64 [R]
    cells: Tensor  # int32 [R * P * P, K_y * K_x], rows of a level's [B * H * W, C]
    weights: Tensor  # [R * P * P, K_y * K_x]


@torch.library.custom_op("maskrcnn::roi_align_cpu", mutates_args=())
def roi_align_cpu(
    levels: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Features of every RoI from its level.

    Args:
        levels: L maps [B, C, H_l, W_l] of float32 or float64.
        strides: pixels a cell, a level.
        boxes: [N, 4] xyxy in pixels, of the maps' type.
        image_index: int64 [N].
        level_index: int64 [N].
        size: output side P in bins.
        sampling_ratio: samples a bin and axis; 0 adapts as ceil(RoI side / P).
        aligned: pixel centres at +0.5, or the older half-pixel shift.

    Returns:
        [N, C, P, P], channels last in memory.
    """
    channels = levels[0].shape[1]
    crops = levels[0].new_zeros(len(boxes), size * size * channels)
    grids = [side for level in levels for side in level.shape[2:]]
    for level, taps in _taps(grids, strides, boxes, image_index, level_index, size, sampling_ratio, aligned):
        table = levels[level].permute(0, 2, 3, 1).reshape(-1, channels)
        bins = F.embedding_bag(taps.cells, table, per_sample_weights=taps.weights, mode="sum")
        crops[taps.rois] = bins.reshape(len(taps.rois), -1)
    return crops.reshape(-1, size, size, channels).permute(0, 3, 1, 2)


@torch.library.custom_op("maskrcnn::roi_align_cpu_backward", mutates_args=())
def _backward_cpu(
    gradient: Tensor,
    images: int,
    grids: Sequence[int],
    strides: Sequence[int],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> list[Tensor]:
    """Gradients of the levels, whose rows and columns are `grids` [2 L], from that of the crops."""
    channels = gradient.shape[1]
    bins = gradient.permute(0, 2, 3, 1).reshape(-1, channels)  # [N * P * P, C]
    parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in strides]  # cells, bins and weights, each [T]
    for level, taps in _taps(grids, strides, boxes, image_index, level_index, size, sampling_ratio, aligned):
        own = (taps.rois[:, None] * size**2 + torch.arange(size**2)).to(torch.int32).reshape(-1, 1)
        parts[level].append((taps.cells.flatten(), own.expand_as(taps.cells).flatten(), taps.weights.flatten()))
    gradients = []
    for height, width, found in zip(grids[::2], grids[1::2], parts, strict=True):
        rows = images * height * width
        if found:
            cells, source, weights = (torch.cat(part) for part in zip(*found, strict=True))
            order = cells.argsort(stable=True)
            ends = torch.bincount(cells, minlength=rows).cumsum(0)
            offsets = F.pad(ends, (1, 0)).to(torch.int32)
            table = F.embedding_bag(
                source[order], bins, offsets, per_sample_weights=weights[order], mode="sum", include_last_offset=True
            )
        else:
            table = bins.new_zeros(rows, channels)
        gradients.append(table.reshape(images, height, width, channels).permute(0, 3, 1, 2))
    return gradients


def _taps(
    grids: Sequence[int],
    strides: Sequence[int],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Iterator[tuple[int, _Taps]]:
    """(level, taps) of groups of RoIs; RoIs without a sample are in none."""
    scale = 1.0 / torch.tensor(strides, dtype=boxes.dtype)[level_index]
    corners = boxes * scale[:, None] - (0.5 if aligned else 0.0)
    start, side = corners[:, :2], corners[:, 2:] - corners[:, :2]  # [N, 2]: x, y
    if not aligned:
        side = side.clamp(min=1.0)  # Caffe2's malformed RoIs become one cell
    bins = side / size
    samples = torch.full_like(level_index[:, None].expand(-1, 2), sampling_ratio)
    if sampling_ratio == 0:
        samples = torch.ceil(bins).to(torch.int64).clamp(min=0)
    dense = (bins >= 0) & (bins <= samples)  # samples at most a cell apart
    usable = (samples > 0).all(1) & corners.isfinite().all(1)
    key = torch.cat([level_index[:, None], samples, dense], 1)
    for group in torch.unique(key[usable], dim=0):
        (rois,) = ((key == group).all(1) & usable).nonzero(as_tuple=True)
        level, n_x, n_y, dense_x, dense_y = group.tolist()
        height, width = grids[2 * level : 2 * level + 2]
        x, x_weights = _axis(start[rois, 0], bins[rois, 0], width, size, n_x, bool(dense_x))
        y, y_weights = _axis(start[rois, 1], bins[rois, 1], height, size, n_y, bool(dense_y))
        y = (y + (image_index[rois] * height)[:, None, None]) * width
        cells = y[:, :, None, :, None].to(torch.int32) + x[:, None, :, None, :].to(torch.int32)  # [R, P, P, K_y, K_x]
        weights = y_weights[:, :, None, :, None] * x_weights[:, None, :, None, :]
        count = cells.shape[3] * cells.shape[4]
        yield level, _Taps(rois, cells.reshape(-1, count), weights.reshape(-1, count))


def _axis(start: Tensor, step: Tensor, limit: int, size: int, n: int, dense: bool) -> tuple[Tensor, Tensor]:
    """Cells int64 and weights, both [R, P, K], that make each bin along one axis of `limit` cells.

    Args:
        start: [R], where the first bin begins, in cells.
        step: [R], length of a bin in cells.
        limit: cells of the axis.
        size: bins P.
        n: samples a bin; a bin's weights add up to 1 where all of them lie inside.
        dense: samples are at most a cell apart: K is n + 1, else 2 n.
    """
    sample = torch.arange(size * n, dtype=start.dtype)
    position = start[:, None] + (sample + 0.5) * (step / n)[:, None]
    inside = (position >= -1) & (position <= limit)
    position = position.clamp(0, limit - 1).reshape(-1, size, n)  # at the last cell there is no next one
    share = inside.reshape(-1, size, n).to(start.dtype) / n
    low = position.floor()
    if not dense:
        high = position - low
        cells = torch.stack([low, (low + 1).clamp(max=limit - 1)], -1).flatten(2)
        return cells.to(torch.int64), torch.stack([(1 - high) * share, high * share], -1).flatten(2)
    first = low[..., :1]
    low = torch.minimum(low, first + n - 1)  # rounding may have put the last sample on the next cell
    high = position - low
    offset = (low - first).to(torch.int64)
    weights = start.new_zeros(*offset.shape[:2], n + 1)
    weights.scatter_add_(2, offset, (1 - high) * share).scatter_add_(2, offset + 1, high * share)
    cells = first + torch.arange(n + 1, dtype=start.dtype)  # those beyond the map have no weight
    return cells.clamp(max=limit - 1).to(torch.int64), weights


@roi_align_cpu.register_fake
def _(
    levels: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    image_index: Tensor,
    level_index: Tensor,
    size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    return levels[0].new_empty(len(boxes), size, size, levels[0].shape[1]).permute(0, 3, 1, 2)


@_backward_cpu.register_fake
def _(gradient: Tensor, images: int, grids: Sequence[int], *_: Any) -> list[Tensor]:
    return [
        gradient.new_empty(images, height, width, gradient.shape[1]).permute(0, 3, 1, 2)
        for height, width in zip(grids[::2], grids[1::2], strict=True)
    ]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    levels, strides, boxes, image_index, level_index, size, sampling_ratio, aligned = inputs
    ctx.save_for_backward(boxes, image_index, level_index)
    ctx.images, ctx.grids = levels[0].shape[0], [side for level in levels for side in level.shape[2:]]
    ctx.strides, ctx.how = strides, (size, sampling_ratio, aligned)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[list[Tensor] | None, ...]:
    levels = _backward_cpu(gradient, ctx.images, ctx.grids, ctx.strides, *ctx.saved_tensors, *ctx.how)
    return (levels, *[None] * 7)


roi_align_cpu.register_autograd(_gradients, setup_context=_remember)
