"""Mask targets of RoIs (Mask R-CNN 3.1: the intersection of a RoI and its ground-truth mask, at m x m)."""

import torch
import torchvision
from torch import Tensor


def targets_from_crops(crops: Tensor, truth_boxes: Tensor, rois: Tensor, size: int) -> Tensor:
    """Binary targets from masks kept in the frame of their own box.

    The area of the mask in a cell is an integral that is separable: with the share of each row and column of the crop
    in each row and column of the target it is two small products, exact for any RoI.

    Args:
        crops: uint8 [R, C, C], the ground truth's mask inside `truth_boxes`.
        truth_boxes: float32 [R, 4] xyxy.
        rois: float32 [R, 4] xyxy, same pixels.
        size: target side m.

    Returns:
        float32 [R, m, m] of 0 and 1: which cells are mask in at least half of their area (the crops' own rule; there is
        none outside its box).
    """
    cells = crops.shape[-1]
    columns = _shares(rois[:, 0::2], truth_boxes[:, 0::2], size, cells)  # [R, m, C]
    rows = _shares(rois[:, 1::2], truth_boxes[:, 1::2], size, cells)
    with torch.autocast(rois.device.type, enabled=False):  # bf16 would move edges by a cell of the crop
        covered = rows @ crops.to(rois.dtype) @ columns.transpose(1, 2)
    return (covered >= 0.5 - 1e-5).to(rois.dtype)  # the tolerance is float32's: a half stays a half


def _shares(roi: Tensor, truth: Tensor, size: int, cells: int) -> Tensor:
    """Shares [R, m, C] that the cells of a crop have in each of m parts of a RoI, along one axis.

    roi and truth [R, 2] (low, high), pixels; the crop lies in `truth`.
    """
    parts = torch.arange(size + 1, device=roi.device, dtype=roi.dtype) / size
    edges = roi[:, :1] + parts * (roi[:, 1:] - roi[:, :1])  # [R, m + 1] pixels
    edges = (edges - truth[:, :1]) * (cells / (truth[:, 1:] - truth[:, :1]).clamp(min=1e-6))  # cells of the crop
    low, high = edges[:, :-1, None], edges[:, 1:, None]
    cell = torch.arange(cells, device=roi.device, dtype=roi.dtype)
    both = torch.minimum(high, cell + 1) - torch.maximum(low, cell)  # [R, m, C]
    return both.clamp(min=0) / (high - low).clamp(min=1e-6)


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
