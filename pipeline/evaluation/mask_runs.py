"""Masks -> run lengths of the image they are pasted into, without the pixels in between.

By the exact rule (model/ops/masks.py) a pixel is set where the bilinear sample at its centre is >= threshold. Down a
column of pixels that sample is a straight line from one row of mask cells to the next: where it crosses the threshold
is one division, not a sample for each pixel. Where a pixel is so near the threshold that rounding may decide, the whole
column is sampled, so the runs are those of the pasted mask bit for bit.

Shape legend: N masks, m mask side, C columns of pixels of all masks, F places where a column crosses the threshold,
H x W image.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.ops.masks import check_pasting, exact_columns, exact_extents

Integers = NDArray[np.int64]
# The sampler computes in float32: it places a pixel to less than 4e-7 m cells, across and down, and from cell to cell a
# probability changes by 1 at most.
_ROUNDING = 1e-6  # of a value, times m


@torch.no_grad()
def exact_runs(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> tuple[Integers, Integers]:
    """Lengths of the runs of each mask in the whole image, column by column, zeros first (the first may be 0).

    Args:
        masks: float [N, m, m] on the CPU, probabilities in 0..1 inside each box.
        boxes: float [N, 4] xyxy, pixels of the image.
        size: (H, W) of the image in pixels.
        threshold: probability, 0 < threshold < 1.

    Returns:
        All lengths, mask after mask, and how many each mask has [N].

    Raises:
        ValueError: as `paste_crops`.
    """
    check_pasting(masks, boxes, threshold)
    masks, boxes = masks.float(), boxes.float()
    height, pixels = size[0], size[0] * size[1]
    side, rounding = masks.shape[1], _ROUNDING * masks.shape[1]
    extents = np.array(exact_extents(masks, boxes, size, threshold), np.int64).reshape(-1, 4)
    widths = np.where(extents[:, 3] > extents[:, 1], np.maximum(extents[:, 2] - extents[:, 0], 0), 0)
    owner = np.repeat(np.arange(len(masks)), widths)  # [C] mask of a column
    columns = np.arange(len(owner)) + (extents[:, 0] - np.cumsum(widths) + widths)[owner]  # [C] x, pixels of the image

    corners = boxes.double().numpy()
    samples = _at_rows_of_cells(masks, corners, owner, columns)
    samples -= np.float32(threshold)  # [C, m + 2]
    unsure = np.asarray((np.abs(samples) < rounding).any(axis=1))
    inside = samples >= 0
    crossing, above = np.divmod(np.flatnonzero(inside[:, 1:] != inside[:, :-1]), side + 1)  # [F] column, row of cells
    low, high = samples[crossing, above].astype(np.float64), samples[crossing, above + 1].astype(np.float64)
    y0, y1 = corners[owner[crossing], 1], corners[owner[crossing], 3]
    exact = (above - 0.5 + low / (low - high)) / side * (y1 - y0) + y0 - 0.5  # the pixel, were there fractions of one
    row = np.ceil(exact)
    nearest = np.minimum(row - exact, exact - row + 1) * np.abs(high - low) * side / (y1 - y0)  # value less threshold
    unsure[crossing[nearest < rounding]] = True
    row = np.clip(row, extents[owner[crossing], 1], extents[owner[crossing], 3]).astype(np.int64)

    sure = ~unsure[crossing]
    keys = (owner[crossing] * (pixels + 1) + columns[crossing] * height + row)[sure]
    if unsure.any():
        again = _sampled(masks, boxes, extents, owner[unsure], columns[unsure], height, threshold)
        keys = np.sort(np.concatenate([keys, *(n * (pixels + 1) + places for n, places in again)]), kind="stable")
    # Two changes at one place are none: cells may be smaller than pixels, and runs go on from column to column.
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    keys = keys[first[np.diff(first, append=len(keys)) % 2 == 1]]
    mask, changes = np.divmod(keys, pixels + 1)
    mask, changes = mask[changes < pixels], changes[changes < pixels]
    counts = np.bincount(mask, minlength=len(masks))
    ends = np.cumsum(counts)
    return np.insert(changes, ends, pixels) - np.insert(changes, ends - counts, 0), counts + 1


def _at_rows_of_cells(
    masks: Tensor, corners: NDArray[np.float64], owner: Integers, columns: Integers
) -> NDArray[np.float32]:
    """Value of each column at the centres of the mask's rows of cells, with the zeros above and below: [C, m + 2].

    Beyond the zeros left and right of a mask, where it has no pixel set, values are below 0.
    """
    side = masks.shape[1]
    across = np.zeros((len(masks), side + 2, side + 2), np.float32)  # column of cells, row of cells
    across[:, 1:-1, 1:-1] = masks.numpy().transpose(0, 2, 1)
    x0, x1 = corners[owner, 0], corners[owner, 2]
    x = (columns + 0.5 - x0) / (x1 - x0) * side + 0.5  # in cells, that of zeros before the mask is 0..1
    left = np.clip(np.floor(x), 0, side).astype(np.int64)
    share = (x - left).astype(np.float32)[:, None]
    table = across.reshape(-1, side + 2)
    first = table.take(owner * (side + 2) + left, axis=0)
    second = table.take(owner * (side + 2) + left + 1, axis=0)
    second -= first
    second *= share
    second += first
    return np.asarray(second)


def _sampled(
    masks: Tensor, boxes: Tensor, extents: Integers, owner: Integers, columns: Integers, height: int, threshold: float
) -> list[tuple[int, Integers]]:
    """Of each mask that has some of these columns: its number, and where they change, as places in the image."""
    found = []
    for which in np.split(np.arange(len(owner)), np.flatnonzero(np.diff(owner)) + 1):
        number = int(owner[which[0]])
        top, bottom = extents[number, 1::2].tolist()
        at = torch.from_numpy(columns[which]).float()
        padded = np.zeros((len(which), bottom - top + 2), np.bool_)
        padded[:, 1:-1] = exact_columns(masks[number], boxes[number], at, (top, bottom), threshold).numpy()
        column, row = np.nonzero(padded[:, 1:] != padded[:, :-1])
        found.append((number, columns[which][column] * height + top + row))
    return found
