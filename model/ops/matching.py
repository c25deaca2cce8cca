"""Which ground truth an anchor or a RoI answers for (Faster R-CNN 3.1.2)."""

import torch
from torch import Tensor


def match(
    iou: Tensor, valid: Tensor, foreground_iou: float, background_iou: float, low_quality: bool
) -> tuple[Tensor, Tensor]:
    """Assign every candidate to ground truth by IoU.

    Args:
        iou: [B, G, N] of ground truth and candidates.
        valid: bool [B, G], which ground-truth slots are real.
        foreground_iou: at or above it a candidate is positive.
        background_iou: below it a candidate is negative; in between it is ignored.
        low_quality: also make positive every candidate that ties for the best IoU of some ground truth.

    Returns:
        index: int64 [B, N], the slot of the ground truth with the highest IoU (any slot where there is none).
        label: int8 [B, N], 1 positive, 0 negative, -1 ignored.
    """
    iou = iou.masked_fill(~valid[..., None], -1.0)
    best, index = iou.max(1)  # [B, N]
    positive = best >= foreground_iou
    if low_quality:
        # torchvision and detectron2 also promote *everything* for a ground truth that no anchor touches; we do not.
        best_of_truth = iou.amax(2, keepdim=True)  # [B, G, 1]
        positive = positive | ((iou == best_of_truth) & (best_of_truth > 0)).any(1)
    ignored = ~positive & (best >= background_iou)
    return index, positive.to(torch.int8) - ignored.to(torch.int8)
