"""Mask targets of RoIs (Mask R-CNN 3.1: the intersection of a RoI and its ground-truth mask, at m x m)."""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor


def targets_from_crops(crops: Tensor, truth_boxes: Tensor, rois: Tensor, size: int) -> Tensor:
    """Binary targets from masks kept in the frame of their own box.

    Args:
        crops: uint8 [R, C, C], the ground truth's mask inside `truth_boxes`.
        truth_boxes: float32 [R, 4] xyxy.
        rois: float32 [R, 4] xyxy, same pixels.
        size: target side m.

    Returns:
        float32 [R, m, m] of 0 and 1: the mask at the centre of each cell, 0 outside its box.
    """
    cells = (torch.arange(size, device=rois.device, dtype=rois.dtype) + 0.5) / size  # [m]
    position = rois[:, None, :2] + cells[None, :, None] * (rois[:, 2:] - rois[:, :2])[:, None]  # [R, m, 2] pixels
    extent = (truth_boxes[:, 2:] - truth_boxes[:, :2]).clamp(min=1e-6)
    grid = 2 * (position - truth_boxes[:, None, :2]) / extent[:, None] - 1  # [R, m, 2] in -1..1 of the crop
    x = grid[:, None, :, 0].expand(-1, size, -1)
    y = grid[:, :, None, 1].expand(-1, -1, size)
    sampled = F.grid_sample(crops[:, None].to(rois.dtype), torch.stack([x, y], -1), align_corners=False)
    return (sampled[:, 0] >= 0.5).to(rois.dtype)


def targets_from_images(masks: Tensor, index: Tensor, rois: Tensor, size: int) -> Tensor:
    """Soft targets from full-resolution masks, as torchvision makes them.

    Args:
        masks: uint8 [M, H, W].
        index: int64 [R], which mask a RoI answers for.
        rois: float32 [R, 4] xyxy, pixels of the masks.
        size: target side m.

    Returns:
        float32 [R, m, m] in 0..1: RoIAlign (aligned False, adaptive) of the mask.
    """
    numbered = torch.cat([index[:, None].to(rois.dtype), rois], 1)
    target: Tensor = torchvision.ops.roi_align(masks[:, None].to(rois.dtype), numbered, (size, size), 1.0, -1, False)
    return target[:, 0]
