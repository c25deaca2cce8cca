"""Anchors of an FPN: one size a level, a few aspect ratios, at every cell (Faster R-CNN 3.1.1, FPN 4.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_anchors(sizes_px: Sequence[float], ratios: Sequence[float], rounded: bool) -> Tensor:
    """Anchors [L, A, 4] around the origin, a size a level; ratio is height / width, the area stays size².

    On a trunk of one level all sizes lie on it: reshape to [1, L * A, 4].
    """
    ratio = torch.tensor(list(ratios), dtype=torch.float32)
    height = torch.sqrt(ratio)
    width = 1.0 / height
    size = torch.tensor(list(sizes_px), dtype=torch.float32)[:, None, None]
    anchors = torch.stack([-width, -height, width, height], 1) * size / 2
    return anchors.round() if rounded else anchors


def pyramid_anchors(
    cells: Tensor, grids: Sequence[tuple[int, int]], strides: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Anchors [height * width * A, 4] of each level, row-major over the grid, then ratios.

    Args:
        cells: float32 [L, A, 4] of `cell_anchors`; always float32: bf16 would move anchors by up to 7 px.
        grids: (rows, columns) a level.
        strides: (y, x) pixels a level.
    """
    levels = []
    for cell, (rows, columns), (stride_y, stride_x) in zip(cells, grids, strides, strict=True):
        y = torch.arange(rows, dtype=torch.float32, device=cells.device) * stride_y
        x = torch.arange(columns, dtype=torch.float32, device=cells.device) * stride_x
        y, x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)  # [rows * columns, 1, 4]
        levels.append((shifts + cell).reshape(-1, 4))
    return levels
