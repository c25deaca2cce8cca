"""Box head: class scores and class-specific boxes of RoIs (Fast R-CNN 2; FPN 4.2's two fully connected layers).

Legend: R RoIs, C channels, K object classes, N detections.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from model.config import BoxConfig
from model.heads.conv_stack import ConvStack
from model.ops.boxes import clip_boxes, decode_boxes, encode_boxes, giou_loss, smooth_l1
from model.ops.masked_mean import masked_mean
from model.ops.soft_nms import soft_nms
from model.types import Losses


class Found(NamedTuple):
    """Boxes of one image that hold something."""

    boxes: Tensor  # float32 [N, 4] xyxy, pixels of the input
    scores: Tensor  # float32 [N]
    classes: Tensor  # int64 [N], 1..K


class BoxHead(nn.Module):
    """Crops -> class logits (background first) and box deltas."""

    weights: Tensor

    def __init__(self, channels: int, side: int, classes: int, config: BoxConfig) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.register_buffer("weights", torch.tensor(config.weights), False)
        self.convs = ConvStack(channels, config.conv_channels, config.convs, config.norm)
        cells = 1 if config.average else side**2
        widths = [self.convs.channels * cells] + [config.hidden] * config.layers
        self.fc = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.scores = nn.Linear(widths[-1], classes + 1)
        self.deltas = nn.Linear(widths[-1], 4 if config.class_agnostic else classes * 4)
        for layer in self.fc:
            nn.init.kaiming_uniform_(layer.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.scores.bias)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, crops: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """crops [R, C, P, P] -> logits float32 [R, K + 1], deltas float32 [R, K, 4] ([R, 1, 4] class-agnostic).

        `real` bool [R]: which RoIs count in a batch norm; None: all.
        """
        x = self.convs(crops, real)
        x = x.mean((2, 3)) if self.config.average else x.flatten(1)
        for layer in self.fc:
            x = F.relu(layer(x), inplace=True)
        return self.scores(x).float(), self.deltas(x).float().reshape(len(x), -1, 4)

    def losses(
        self, logits: Tensor, deltas: Tensor, rois: Tensor, classes: Tensor, truth: Tensor, valid: Tensor
    ) -> Losses:
        """Fast R-CNN eq. 1, averaged over the real RoIs.

        Args:
            logits: [R, K + 1].
            deltas: [R, K, 4], or [R, 1, 4] class-agnostic.
            rois: [R, 4] xyxy.
            classes: int64 [R], 0 for background.
            truth: [R, 4], the ground-truth box a positive RoI answers for.
            valid: bool [R], which slots are real.
        """
        positive = valid & (classes > 0)
        safe = torch.where(positive[:, None], rois, _unit(rois))
        wanted = torch.where(positive[:, None], truth, safe)
        if self.config.class_agnostic:
            own = deltas[:, 0]
        else:
            own = deltas.gather(1, (classes - 1).clamp(min=0)[:, None, None].expand(-1, 1, 4))[:, 0]
        if self.config.box_loss == "giou":
            # A GIoU is one number a box, L1 a sum of four: no factor makes up for it, the weight of the loss does.
            distance = giou_loss(decode_boxes(own, safe, self.weights), wanted)
        else:
            distance = smooth_l1(own, encode_boxes(wanted, safe, self.weights), self.config.box_beta).sum(1)
        number = valid.sum()
        return {
            "box/class": masked_mean(self._class_loss(logits, classes), valid, number),
            "box/box": masked_mean(distance, positive, number),
        }

    def _class_loss(self, logits: Tensor, classes: Tensor) -> Tensor:
        entropy = F.cross_entropy(logits, classes, reduction="none")
        if self.config.focal_gamma == 0:
            return entropy
        return (1 - torch.exp(-entropy)) ** self.config.focal_gamma * entropy  # Lin et al. 2017 eq. 4

    @torch.no_grad()
    def refine(self, deltas: Tensor, rois: Tensor) -> Tensor:
        """Boxes [R, K, 4] ([R, 1, 4] class-agnostic) that deltas of that shape make of RoIs [R, 4]."""
        return decode_boxes(deltas, rois[:, None], self.weights)

    @torch.no_grad()
    def candidates(self, probabilities: Tensor, boxes: Tensor, valid: Tensor, sizes: Tensor) -> list[Found]:
        """What passes the score threshold in each image, in no order, before NMS.

        Args:
            probabilities: [B, P, K + 1], background first.
            boxes: [B, P, K, 4] xyxy, or [B, P, 1, 4] class-agnostic.
            valid: bool [B, P].
            sizes: int64 [B, 2] (height, width) before padding.
        """
        config = self.config
        probabilities = probabilities[..., 1:]
        boxes = clip_boxes(boxes, sizes).expand(-1, -1, self.classes, 4)  # [B, P, K, 4]
        smallest = (boxes[..., 2:] - boxes[..., :2]).amin(-1)
        large = smallest >= config.min_size_px if config.min_size_px > 0 else smallest > 0
        wanted = (probabilities > config.score_threshold) & large & valid[..., None]
        found = []
        for image in range(len(boxes)):  # prediction may wait for the device: its output has no fixed shape
            proposal, own = wanted[image].nonzero(as_tuple=True)
            found.append(Found(boxes[image, proposal, own], probabilities[image, proposal, own], own + 1))
        return found

    @torch.no_grad()
    def suppress(self, found: Found) -> Found:
        """NMS, a class at a time; the best `detections_per_image` of what is left, best first."""
        config = self.config
        boxes, scores, classes = found
        if config.nms == "hard":
            # It moves classes apart by adding to coordinates: float32 would lose up to 1/128 px of 80 classes that way,
            # which changes what is kept in one of some hundred images.
            keep = torchvision.ops.batched_nms(boxes.double(), scores.double(), classes, config.nms_iou)
            keep = keep[: config.detections_per_image]
            scores = scores[keep]
        else:
            sigma = config.soft_sigma if config.nms == "soft_gaussian" else None
            keep, scores = soft_nms(
                boxes, scores, classes, config.nms_iou, sigma, config.score_threshold, config.detections_per_image
            )
        return Found(boxes[keep], scores, classes[keep])


def _unit(boxes: Tensor) -> Tensor:
    """The box (0, 0, 1, 1) on the device of `boxes`: a harmless stand-in where there is none."""
    return (torch.arange(4, device=boxes.device) >= 2).to(boxes.dtype)
