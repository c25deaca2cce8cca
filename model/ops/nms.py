"""Non-maximum suppression of many groups at once, with an output whose shape does not depend on the data."""

import importlib.util

import torch
import torchvision
from torch import Tensor

TOGETHER = 16384  # boxes in one launch of torchvision's kernel: 32 MiB of its working memory
PAIRS = 1 << 29  # of boxes in one launch of ours: one bit each, 64 MiB


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
def keep_on_gpu(boxes: Tensor, scores: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """The same without waiting for the device, by kernels of our own (nms_triton.py)."""
    if importlib.util.find_spec("triton") is None:
        return keep_together(boxes, scores, valid, iou_threshold)
    from model.ops.nms_triton import keep_sorted

    groups, count, _ = boxes.shape
    order = torch.where(valid, scores, -torch.inf).sort(dim=1, descending=True, stable=True).indices  # [S, N]
    ranked = boxes.gather(1, order[..., None].expand(-1, -1, 4)).contiguous()
    usable = valid.gather(1, order)
    step = max(1, PAIRS // max(1, count * count))
    kept = [
        keep_sorted(ranked[first : first + step], usable[first : first + step], iou_threshold)
        for first in range(0, groups, step)
    ]
    return torch.zeros_like(valid).scatter(1, order, torch.cat(kept)) if kept else torch.zeros_like(valid)


def keep_together(boxes: Tensor, scores: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """The same in few launches of torchvision's kernel, for a GPU without Triton; waits for the device each time.

    Groups are moved apart by more than the largest coordinate, so they cannot overlap. As many go together as make
    `TOGETHER` boxes: the kernel's memory grows with the square of that.
    """
    groups, count, _ = boxes.shape
    if count == 0:
        return torch.zeros_like(valid)
    # An invalid box is an empty one at its group's corner: IoU 0 with everything.
    boxes = torch.where(valid[..., None], boxes, torch.zeros_like(boxes))
    scores = torch.where(valid, scores, -torch.inf)
    extent = boxes.max() - boxes.min().clamp(max=0) + 1
    step = max(1, TOGETHER // count)
    keep = torch.zeros(groups * count, dtype=torch.bool, device=boxes.device)
    for first in range(0, groups, step):
        part = boxes[first : first + step]
        offset = torch.arange(len(part), device=boxes.device, dtype=boxes.dtype) * extent
        flat = (part + offset[:, None, None]).reshape(-1, 4)
        kept = torchvision.ops.nms(flat, scores[first : first + step].reshape(-1), iou_threshold)
        keep[first * count + kept] = True
    return keep.reshape(groups, count) & valid
