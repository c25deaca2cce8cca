"""Soft-NMS (Bodla et al. 2017): scores of overlapping boxes decay instead of the boxes being dropped."""

import torch
from torch import Tensor

from model.ops.boxes import box_iou


def soft_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, sigma: float | None, lowest: float, most: int
) -> tuple[Tensor, Tensor]:
    """The boxes that remain, best first, and what became of their scores.

    The best box is taken, the scores of the rest of its group decay by their IoU with it, and so on. A decay never
    makes a score larger, so scores come out in order and the first `most` of all groups are those of a full run.

    Args:
        boxes: float32 [N, 4] xyxy.
        scores: float32 [N], not negative.
        groups: int64 [N]; boxes of different groups (classes) do not touch one another.
        iou_threshold: linear decay by 1 - IoU, where the IoU is above this (eq. 4).
        sigma: Gaussian decay by exp(-IoU² / sigma) (eq. 5); None for the linear one.
        lowest: scores at or below end it.
        most: boxes at most.

    Returns:
        index int64 [M] into the boxes, scores float32 [M].
    """
    scores = scores.clone()
    index, found = [], []
    for _ in range(min(most, len(boxes))):
        best = scores.argmax()
        if scores[best] <= lowest:
            break
        index.append(best)
        found.append(scores[best].clone())
        iou = box_iou(boxes[best][None], boxes)[0]
        decay = torch.where(iou > iou_threshold, 1 - iou, 1.0) if sigma is None else torch.exp(-(iou**2) / sigma)
        scores = torch.where(groups == groups[best], scores * decay, scores)
        scores[best] = -1.0
    if not index:
        return groups[:0], scores[:0]
    return torch.stack(index), torch.stack(found)
