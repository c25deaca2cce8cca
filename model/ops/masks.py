"""Pastes m x m mask probabilities into the image, computing only the pixels of each box.

Two rules, one a public implementation:

- "exact" (detectron2): the box keeps its sub-pixel corners; a pixel is set where the bilinear sample at its centre,
  with zeros outside the mask, is >= threshold.
- "integer" (torchvision): the mask gets one cell of zero padding, the grown box is cut to whole pixels, the mask is
  resized to it; a pixel is set where the value is > threshold.

Shape legend: N detections, m mask size, H x W image, h x w crop.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import Paste

Crop = tuple[int, int, Tensor]  # y0, x0 (pixels of the image), uint8 [h, w] of 0 and 1


@torch.no_grad()
def paste_crops(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], rule: Paste = "exact", threshold: float = 0.5
) -> list[Crop]:
    """Binary masks, each as a crop of the image: outside its crop a mask is zero.

    Args:
        masks: float [N, m, m], probabilities in 0..1 inside each box.
        boxes: float [N, 4] xyxy, pixels of the image; a box without width or height gives an empty crop.
        size: (H, W) of the image in pixels.
        rule: "exact" or "integer", see the module's docstring.
        threshold: probability, 0 < threshold < 1.

    Returns:
        N crops (y0, x0, uint8 [h, w]), inside the image; h or w is 0 where nothing of the box lies in it.
    """
    check_pasting(masks, boxes, threshold)
    return _RULES[rule](masks.float(), boxes.float(), size, threshold)


def check_pasting(masks: Tensor, boxes: Tensor, threshold: float) -> None:
    """Raises ValueError where masks float [N, m, m] and boxes float [N, 4] cannot be pasted."""
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or boxes.shape != (masks.shape[0], 4):
        raise ValueError(
            f"pasting needs masks [N, m, m] and boxes [N, 4], got {list(masks.shape)} and {list(boxes.shape)}; "
            "pass the masks of the detected class only, and one box a mask"
        )
    if not 0.0 < threshold < 1.0:
        raise ValueError(f"the mask threshold is a probability between 0 and 1, got {threshold}; 0.5 is the usual one")
    if not bool(torch.isfinite(boxes).all()):
        raise ValueError("boxes to paste masks in must be finite, got inf or nan; drop such detections first")


def paste_full(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], rule: Paste = "exact", threshold: float = 0.5
) -> Tensor:
    """The same masks as whole images: bool [N, H, W]. For pictures and tests; `paste_crops` is for many detections."""
    full = torch.zeros((masks.shape[0], *size), dtype=torch.bool, device=masks.device)
    for image, (y0, x0, crop) in zip(full, paste_crops(masks, boxes, size, rule, threshold), strict=True):
        image[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop.bool()
    return full


def _paste_exact(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> list[Crop]:
    crops: list[Crop] = []
    for mask, box, (x0, y0, x1, y1) in zip(masks, boxes, exact_extents(masks, boxes, size, threshold), strict=True):
        if x1 <= x0 or y1 <= y0:
            crops.append(_nothing(masks))
            continue
        every = torch.arange(x0, x1, dtype=torch.float32, device=masks.device)
        crops.append((y0, x0, exact_columns(mask, box, every, (y0, y1), threshold).t()))
    return crops


def exact_extents(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float
) -> list[tuple[int, int, int, int]]:
    """x0, y0, x1, y1 of the pixels that each of N masks can set by the exact rule; 0, 0 for a side without length."""
    height, width = size
    # Below one half, the fade-out to the zeros outside (half a cell wide) may pass the threshold too.
    reach = 0.0 if threshold >= 0.5 else 0.5 / masks.shape[-1]
    found = []
    for x0, y0, x1, y1 in boxes.tolist():
        (left, right), (top, bottom) = _span(x0, x1, reach, width), _span(y0, y1, reach, height)
        found.append((left, top, right, bottom))
    return found


def exact_columns(mask: Tensor, box: Tensor, columns: Tensor, rows: tuple[int, int], threshold: float) -> Tensor:
    """uint8 [C, h]: what the exact rule makes of columns float32 [C] (pixels) and rows first..last-1 of a mask [m, m].

    Laid out column by column: that is the order of COCO's RLE.
    """
    every = torch.arange(*rows, dtype=torch.float32, device=mask.device)
    grid = mask.new_empty((1, len(columns), len(every), 2))
    grid[0, :, :, 0] = _centres(columns, box[0], box[2])[:, None]  # [C, 1] -> [C, h]
    grid[0, :, :, 1] = _centres(every, box[1], box[3])  # [h] -> [C, h]
    values = F.grid_sample(mask[None, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (values[0, 0] >= threshold).to(torch.uint8)


def _span(low: float, high: float, reach: float, limit: int) -> tuple[int, int]:
    """First and last + 1 pixel that a side of a box can reach; (0, 0) for a side without length."""
    if high <= low:
        return 0, 0
    margin = reach * (high - low)
    return max(math.floor(low - margin), 0), min(math.ceil(high + margin), limit)


def _centres(pixels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Pixel centres in grid_sample's coordinates: -1 is the box's low side, 1 its high side."""
    return (pixels + 0.5 - low) / (high - low) * 2 - 1


def _paste_integer(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float) -> list[Crop]:
    height, width = size
    m = masks.shape[-1]
    scale = float(m + 2) / m
    half_w = (boxes[:, 2] - boxes[:, 0]) * 0.5 * scale
    half_h = (boxes[:, 3] - boxes[:, 1]) * 0.5 * scale
    centre_x = (boxes[:, 2] + boxes[:, 0]) * 0.5
    centre_y = (boxes[:, 3] + boxes[:, 1]) * 0.5
    grown = torch.stack((centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h), dim=1)
    # to int64 cuts toward zero, as torchvision does
    corners: list[list[int]] = grown.to(torch.int64).tolist()
    real = ((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])).tolist()
    crops: list[Crop] = []
    for mask, (x0, y0, x1, y1), has_area in zip(F.pad(masks, (1, 1, 1, 1)), corners, real, strict=True):
        left, right = max(x0, 0), min(x1 + 1, width)
        top, bottom = max(y0, 0), min(y1 + 1, height)
        if right <= left or bottom <= top or not has_area:
            crops.append(_nothing(masks))
            continue
        whole = F.interpolate(
            mask[None, None], size=(y1 - y0 + 1, x1 - x0 + 1), mode="bilinear", align_corners=False
        )  # [1, 1, h, w] of the grown box, also where it leaves the image
        part = whole[0, 0, top - y0 : bottom - y0, left - x0 : right - x0]
        crops.append((top, left, (part > threshold).to(torch.uint8)))
    return crops


def _nothing(like: Tensor) -> Crop:
    return 0, 0, torch.zeros((0, 0), dtype=torch.uint8, device=like.device)


_RULES: dict[Paste, Callable[[Tensor, Tensor, tuple[int, int], float], list[Crop]]] = {
    "exact": _paste_exact,
    "integer": _paste_integer,
}
