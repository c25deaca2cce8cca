"""Anchors: a few sizes and aspect ratios at every cell of a level (Faster R-CNN 3.1.1, FPN 4.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import AnchorOrder


def cell_anchors(
    sizes_px: Sequence[float], ratios: Sequence[float], levels: int, order: AnchorOrder, rounded: bool
) -> Tensor:
    """Anchors [L, A, 4] around the origin; ratio is height / width, the area stays size².

    Args:
        sizes_px: one a level, or all of them on one level.
        ratios: on every level.
        levels: L.
        order: of several sizes on one level. "size_major": all ratios of the first size, then of the second
            (detectron2); "ratio_major": all sizes of the first ratio, then of the second (torchvision, mmdetection).
        rounded: corners to whole pixels.
    """
    ratio = torch.tensor(list(ratios), dtype=torch.float32)
    height = torch.sqrt(ratio)
    width = 1.0 / height
    size = torch.tensor(list(sizes_px), dtype=torch.float32)[:, None, None]
    anchors = torch.stack([-width, -height, width, height], 1) * size / 2  # [sizes, ratios, 4]
    if levels == 1 and order == "ratio_major":
        anchors = anchors.transpose(0, 1)
    anchors = anchors.reshape(levels, -1, 4)
    return anchors.round() if rounded else anchors


def pyramid_anchors(
    cells: Tensor, grids: Sequence[tuple[int, int]], strides: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Anchors [height * width * A, 4] of each level, row-major over the grid, then the cell's A.

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
