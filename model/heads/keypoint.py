"""Keypoint head: one heatmap a keypoint for every RoI (Mask R-CNN 5, "Mask R-CNN for Human Pose Estimation").

Legend: R RoIs, C channels, P side of a crop, J keypoints, m heatmap side (4 P).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import KeypointConfig
from model.heads.conv_stack import ConvStack
from model.ops.masked_mean import masked_mean
from model.types import Losses


class KeypointHead(nn.Module):
    """Crops -> heatmap logits; each keypoint is one of m x m cells."""

    def __init__(self, channels: int, count: int, config: KeypointConfig) -> None:
        super().__init__()
        self.config = config
        self.count = count
        self.convs = ConvStack(channels, config.channels, config.convs, None)
        self.deconv = nn.ConvTranspose2d(self.convs.channels, count, 4, 2, 1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.deconv.bias)  # type: ignore[arg-type]

    def forward(self, crops: Tensor) -> Tensor:
        """crops [R, C, P, P] -> logits float32 [R, J, m, m]."""
        maps = self.deconv(self.convs(crops)).float()
        return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)

    def losses(self, logits: Tensor, rois: Tensor, truth: Tensor, positive: Tensor) -> Losses:
        """Cross-entropy over the cells, the mean over the keypoints of positive RoIs that are labelled and inside.

        The mean (torchvision, detectron2's default) keeps the loss's size where few keypoints are labelled;
        detectron2's other normaliser, a constant, would need a loss weight of its own for each data set.

        Args:
            logits: [R, J, m, m].
            rois: [R, 4] xyxy.
            truth: [R, J, 3] x, y and visibility of the object a RoI answers for, pixels of the input.
            positive: bool [R].
        """
        cell, inside = cells_of_keypoints(truth, rois, logits.shape[-1])
        inside = inside & positive[:, None]
        entropy = F.cross_entropy(
            logits.flatten(0, 1).flatten(1), torch.where(inside, cell, 0).flatten(), reduction="none"
        )
        return {"keypoint/keypoint": masked_mean(entropy, inside.flatten(), inside.sum())}


def cells_of_keypoints(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The cell of a size x size grid over its box that each keypoint lies in.

    Args:
        keypoints: float32 [R, J, 3] x, y, visibility (0: not labelled).
        boxes: float32 [R, 4] xyxy; empty ones hold no keypoint.
        size: cells an axis.

    Returns:
        cell: int64 [R, J], row * size + column where `inside`.
        inside: bool [R, J], labelled and in the box; on its far edge counts as in it (torchvision, detectron2).
    """
    corner, far = boxes[:, None, :2], boxes[:, None, 2:]  # [R, 1, 2]
    side = far - corner
    point = keypoints[..., :2]
    position = torch.where(point == far, size - 1.0, torch.floor((point - corner) * (size / side)))
    # [R, J, 2] x, y; 0 / 0 is in no cell
    within = ((position >= 0) & (position < size) & (side > 0)).all(-1)
    inside = within & (keypoints[..., 2] > 0)
    column, row = torch.where(inside[..., None], position, 0.0).to(torch.int64).unbind(-1)
    return row * size + column, inside


@torch.no_grad()
def keypoints_of_heatmaps(logits: Tensor, boxes: Tensor) -> Tensor:
    """Where each heatmap is highest, at the resolution of the box's pixels (detectron2's and torchvision's rule).

    A heatmap is resized to its box (bicubic); the centre of the highest pixel is the keypoint.

    Args:
        logits: float32 [N, J, m, m].
        boxes: float32 [N, 4] xyxy.

    Returns:
        float32 [N, J, 3] x, y and the score, which is the resized heatmap's logit there.
    """
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    found = logits.new_zeros(*logits.shape[:2], 3)
    for i, (width, height) in enumerate(size.ceil().to(torch.int64).tolist()):
        resized = F.interpolate(logits[i][None], size=(height, width), mode="bicubic", align_corners=False)[0]
        score, place = resized.flatten(1).max(1)
        pixel = torch.stack([place % width, place // width], 1) + 0.5  # [J, 2]
        step = size[i] / size[i].ceil()
        found[i] = torch.cat([pixel * step + boxes[i, :2], score[:, None]], 1)
    return found
