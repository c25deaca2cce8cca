"""Non-maximum suppression of many groups at once, with an output whose shape does not depend on the data."""

import torch
import torchvision
from torch import Tensor


@torch.library.custom_op("maskrcnn::nms_keep", mutates_args=())
def nms_keep(boxes: Tensor, scores: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS inside each group.

    Args:
        boxes: float32 [S, N, 4] xyxy of S groups (an image, or an image's level or class).
        scores: float32 [S, N].
        valid: bool [S, N]; the rest neither is kept nor suppresses.
        iou_threshold: a box that overlaps a kept, better one by more than this is dropped.

    Returns:
        bool [S, N], True where a box is kept. (A mask instead of indices: its shape is static.)
    """
    keep = torch.zeros_like(valid)
    for group in range(boxes.shape[0]):
        candidates = valid[group].nonzero().squeeze(1)
        kept = torchvision.ops.nms(boxes[group, candidates], scores[group, candidates], iou_threshold)
        keep[group, candidates[kept]] = True
    return keep


@nms_keep.register_fake
def _(boxes: Tensor, scores: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(valid)


@nms_keep.register_kernel("cuda")
def _(boxes: Tensor, scores: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    # One launch for all groups: moved apart by more than the largest coordinate, groups cannot overlap.
    groups, count, _ = boxes.shape
    flat = torch.where(valid[..., None], boxes, torch.zeros_like(boxes))
    offset = torch.arange(groups, device=boxes.device, dtype=boxes.dtype) * (flat.max() - flat.min().clamp(max=0) + 1)
    # An invalid box is an empty one at its group's corner: IoU 0 with everything.
    flat = (flat + offset[:, None, None]).reshape(-1, 4)
    kept = torchvision.ops.nms(flat, torch.where(valid, scores, -torch.inf).reshape(-1), iou_threshold)
    keep = torch.zeros(groups * count, dtype=torch.bool, device=boxes.device)
    keep[kept] = True
    return keep.reshape(groups, count) & valid
