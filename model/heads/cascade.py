"""Cascade R-CNN (Cai & Vasconcelos 2018): box heads in a row, each trained on the boxes of the one before it.

Legend: B images, S RoIs an image, K object classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.heads.box import BoxHead
from model.ops.boxes import box_iou, clip_boxes
from model.ops.matching import match
from model.ops.sampling import gather_slots
from model.types import Losses, Targets

Crop = Callable[[Tensor], Tensor]  # boxes [B, S, 4] -> crops [B * S, C, P, P]


class Cascade(nn.Module):
    """The stages after the first, which is a box head as without a cascade."""

    def __init__(self, stages: list[BoxHead], foreground_ious: tuple[float, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.foreground_ious = foreground_ious

    def share(self, crops: Tensor) -> Tensor:
        """The same crops; their gradient is divided by the number of stages, or the trunk would get it as many times.

        (detectron2. Cai & Vasconcelos do not say.)
        """
        return crops.detach().lerp(crops, 1 / (len(self.stages) + 1))

    def losses(self, crop: Crop, boxes: Tensor, valid: Tensor, sizes: Tensor, targets: Targets) -> list[Losses]:
        """Losses of each stage. The same RoIs train every stage; which are positive is decided anew, by its IoU.

        Args:
            crop: reads features.
            boxes: [B, S, 4], what the first stage made of its RoIs.
            valid: bool [B, S].
            sizes: int64 [B, 2] (height, width) before padding.
            targets: ground truth.
        """
        losses = []
        for stage, iou in zip(self.stages, self.foreground_ious, strict=True):
            assert isinstance(stage, BoxHead)
            with torch.no_grad():
                boxes = clip_boxes(boxes, sizes).nan_to_num(nan=0.0)  # as in RPN.propose
                real = valid & ((boxes[..., 2:] - boxes[..., :2]) > 0).all(-1)
                index, label = match(box_iou(targets.boxes, boxes), targets.valid, iou, iou, False)
                classes = torch.where(real & (label == 1), gather_slots(targets.classes, index), 0)
                truth = gather_slots(targets.boxes, index)
            flat, counted = boxes.flatten(0, 1), real.flatten()
            logits, deltas = stage(self.share(crop(boxes)), counted)
            losses.append(stage.losses(logits, deltas, flat, classes.flatten(), truth.flatten(0, 1), counted))
            boxes = stage.refine(deltas, flat).reshape(boxes.shape)
        return losses

    def refine(self, crop: Crop, boxes: Tensor, probabilities: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [B, S, 4] of the last stage, and the mean over all stages of the probabilities [B, S, K + 1].

        `boxes` and `probabilities` are the first stage's.
        """
        for stage in self.stages:
            assert isinstance(stage, BoxHead)
            boxes = clip_boxes(boxes, sizes).nan_to_num(nan=0.0)
            logits, deltas = stage(crop(boxes))
            probabilities = probabilities + logits.softmax(-1).reshape(probabilities.shape)
            boxes = stage.refine(deltas, boxes.flatten(0, 1)).reshape(boxes.shape)
        return boxes, probabilities / (len(self.stages) + 1)
