"""Boxes as xyxy in pixels: area, IoU, clipping, R-CNN's box deltas. Pure functions, float32, any leading shape."""

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000.0 / 16)  # a delta may enlarge a box 62.5 times at most (Detectron)


def box_area(boxes: Tensor) -> Tensor:
    """Areas [...] in pixels² of boxes [..., 4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU [..., N, M] of every pair of a [..., N, 4] and b [..., M, 4]; 0 where both are empty."""
    top_left = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])  # [..., N, M, 2]
    bottom_right = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    union = box_area(a)[..., :, None] + box_area(b)[..., None, :] - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B, ..., 4] cut to images of `sizes` [B, 2] (height, width)."""
    height, width = sizes.to(boxes.dtype).unbind(-1)
    limit = torch.stack([width, height, width, height], -1)  # [B, 4]
    limit = limit.reshape(limit.shape[0], *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limit)


def encode_boxes(targets: Tensor, references: Tensor, weights: Tensor) -> Tensor:
    """Deltas [..., 4] (dx, dy, dw, dh) that move `references` onto `targets` (R-CNN appendix C), times `weights` [4].

    Empty references or targets give deltas that are not finite: mask them, or pass any real box in their place.
    """
    ref_size = references[..., 2:] - references[..., :2]
    ref_centre = references[..., :2] + 0.5 * ref_size
    size = targets[..., 2:] - targets[..., :2]
    centre = targets[..., :2] + 0.5 * size
    return torch.cat([(centre - ref_centre) / ref_size, torch.log(size / ref_size)], -1) * weights


def decode_boxes(deltas: Tensor, references: Tensor, weights: Tensor) -> Tensor:
    """Boxes [..., 4] that `deltas` make of `references`: the inverse of `encode_boxes`."""
    deltas = deltas / weights
    ref_size = references[..., 2:] - references[..., :2]
    centre = deltas[..., :2] * ref_size + (references[..., :2] + 0.5 * ref_size)
    half = 0.5 * torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * ref_size
    return torch.cat([centre - half, centre + half], -1)


def smooth_l1(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
    """Smooth L1, elementwise; beta 0 is L1 (Fast R-CNN eq. 3 has beta 1)."""
    difference = (prediction - target).abs()
    if beta == 0:
        return difference
    return torch.where(difference < beta, 0.5 * difference**2 / beta, difference - 0.5 * beta)


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU [...] of pairs of boxes [..., 4] (Rezatofighi et al. 2019); 0 for equal boxes, up to 2."""
    low = torch.maximum(boxes[..., :2], targets[..., :2])
    high = torch.minimum(boxes[..., 2:], targets[..., 2:])
    sides = (high - low).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    union = box_area(boxes) + box_area(targets) - intersection
    hull = torch.maximum(boxes[..., 2:], targets[..., 2:]) - torch.minimum(boxes[..., :2], targets[..., :2])
    around = hull[..., 0] * hull[..., 1]
    tiny = 1e-7  # px²: two empty boxes
    return 1 - intersection / (union + tiny) + (around - union) / (around + tiny)
