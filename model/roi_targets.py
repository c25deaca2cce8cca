"""Which RoIs train the heads, and towards what (Mask R-CNN 3.1).

Legend: B images, G ground-truth slots, P proposals, S sampled RoIs an image, N RoIs of them, J keypoints, m mask side.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import MaskTarget
from model.ops.boxes import box_iou
from model.ops.mask_targets import targets_from_crops, targets_from_images
from model.ops.matching import match
from model.ops.sampling import gather_slots, sample_slots
from model.types import Targets


@dataclass(frozen=True)
class SampledRoIs:
    """RoIs that train the heads. The first `positives` slots of each image hold every positive one."""

    boxes: Tensor  # float32 [B, S, 4]
    classes: Tensor  # int64 [B, S], 0 background
    truth_index: Tensor  # int64 [B, S], which ground-truth slot a RoI answers for
    valid: Tensor  # bool [B, S]
    positives: int


@torch.no_grad()
def sample_rois(
    proposals: Tensor,
    real: Tensor,
    targets: Targets,
    noise: Tensor,
    foreground_iou: float,
    slots: int,
    positive_fraction: float,
) -> SampledRoIs:
    """RoIs for the heads from proposals and ground truth, by default 1 positive to 3 negatives.

    Args:
        proposals: float32 [B, P, 4].
        real: bool [B, P], which proposals are real.
        targets: ground truth.
        noise: float32 [B, P + G] in [0, 1), the randomness of the sample.
        foreground_iou: IoU with ground truth from which a RoI is positive.
        slots: RoIs an image at most.
        positive_fraction: of `slots`, at most.
    """
    boxes = torch.cat([proposals, targets.boxes], 1)  # [B, P + G, 4]
    usable = torch.cat([real, targets.valid], 1)
    truth_index, label = match(box_iou(targets.boxes, boxes), targets.valid, foreground_iou, foreground_iou, False)
    label = label.masked_fill(~usable, -1)
    index, valid = sample_slots(label, noise, slots, positive_fraction)
    positive = valid & (gather_slots(label, index) == 1)
    truth_index = gather_slots(truth_index, index)
    classes = torch.where(positive, gather_slots(targets.classes, truth_index), 0)
    positives = min(int(slots * positive_fraction), index.shape[1])
    return SampledRoIs(gather_slots(boxes, index), classes, truth_index, valid, positives)


def image_index_of(boxes: Tensor) -> Tensor:
    """int64 [B * N] for boxes [B, N, 4] flattened: which image each came from."""
    images, count = boxes.shape[:2]
    return torch.arange(images, device=boxes.device)[:, None].expand(images, count).flatten()


@torch.no_grad()
def mask_targets(targets: Targets, truth_index: Tensor, boxes: Tensor, size: int, kind: MaskTarget) -> Tensor:
    """float32 [B * N, size, size] for boxes [B, N, 4] that answer for slots `truth_index` int64 [B, N].

    Raises:
        ValueError: the ground truth has no masks.
    """
    if targets.masks is None:
        raise ValueError("the mask loss needs targets.masks, got None; set model.mask: null to train boxes only")
    flat_index = image_index_of(boxes) * targets.masks.shape[1] + truth_index.flatten()  # of [B * G]
    masks, flat = targets.masks.flatten(0, 1), boxes.flatten(0, 1)
    if kind == "image":
        return targets_from_images(masks, flat_index, flat, size)
    truth = gather_slots(targets.boxes, truth_index).flatten(0, 1)
    return targets_from_crops(masks[flat_index], truth, flat, size)


def keypoint_targets(targets: Targets, truth_index: Tensor, count: int) -> Tensor:
    """Keypoints float32 [B * N, J, 3] of the slots `truth_index` int64 [B, N].

    Raises:
        ValueError: the ground truth has no keypoints, or not `count` an object.
    """
    if targets.keypoints is None:
        raise ValueError(
            "the keypoint loss needs targets.keypoints, got None; shard from annotations with keypoints, or set "
            "model.keypoint: null"
        )
    if targets.keypoints.shape[2] != count:
        raise ValueError(
            f"the model has {count} keypoints an object, targets.keypoints {targets.keypoints.shape[2]}; "
            "leave model.keypoint.count null to take the data's number"
        )
    return gather_slots(targets.keypoints, truth_index).flatten(0, 1)
