"""Mask R-CNN (He et al. 2017), figure 1 in code: trunk -> proposals -> box head -> mask head.

Legend: B images, G ground-truth slots, P proposals, S sampled RoIs an image, A anchors an image, K classes, m mask
side.
The loss has fixed shapes and asks nothing of the device; prediction has not and does.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import InputConfig, RoIConfig
from model.heads.box import BoxHead
from model.heads.mask import MaskHead
from model.heads.rpn import RPN
from model.ops.boxes import box_iou, clip_boxes
from model.ops.mask_targets import targets_from_crops, targets_from_images
from model.ops.matching import match
from model.ops.sampling import gather_slots, sample_slots
from model.trunks.trunk import Pyramid, Trunk
from model.types import Batch, Detections, Losses, Targets


@dataclass(frozen=True)
class SamplingNoise:
    """The randomness of one step: which anchors and RoIs train. float32 in [0, 1)."""

    anchors: Tensor  # [B, A]
    rois: Tensor  # [B, P + G]: proposals, then ground truth


@dataclass(frozen=True)
class SampledRoIs:
    """RoIs that train the heads. The first `positives` slots of each image hold every positive one."""

    boxes: Tensor  # float32 [B, S, 4]
    classes: Tensor  # int64 [B, S], 0 background
    truth_index: Tensor  # int64 [B, S], which ground-truth slot a RoI answers for
    valid: Tensor  # bool [B, S]
    positives: int


class _Seen(NamedTuple):
    """A batch after the trunk and the RPN."""

    pyramid: Pyramid
    objectness: list[Tensor]  # [B, A_l] a level
    deltas: list[Tensor]  # [B, A_l, 4] a level
    anchors: list[Tensor]  # [A_l, 4] a level
    proposals: Tensor  # [B, P, 4]
    real: Tensor  # bool [B, P]


class MaskRCNN(nn.Module):
    """`model(batch)` gives the losses, `model.predict(batch)` the detections. Without `mask` it is Faster R-CNN."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, inputs: InputConfig, trunk: nn.Module, rpn: RPN, roi: RoIConfig, box: BoxHead, mask: MaskHead | None
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(inputs.mean), False)
        self.register_buffer("std", torch.tensor(inputs.std), False)
        self.divisor = inputs.divisor
        self.roi = roi
        self.trunk: Trunk = trunk  # type: ignore[assignment]  # a module that is a Trunk
        self.rpn = rpn
        self.box = box
        self.mask = mask

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float32 [B, 3, H', W'] (channels last in memory), zero outside `sizes` [B, 2]."""
        height, width = images.shape[1:3]
        rows = torch.arange(height, device=images.device)[None, :, None] < sizes[:, 0, None, None]
        columns = torch.arange(width, device=images.device)[None, None, :] < sizes[:, 1, None, None]
        x = (images.float() - self.mean) / self.std * (rows & columns)[..., None]
        x = F.pad(x, (0, 0, 0, -width % self.divisor, 0, -height % self.divisor))
        return x.permute(0, 3, 1, 2)

    def forward(self, batch: Batch, noise: SamplingNoise | None = None) -> Losses:
        """Losses of a batch with targets, as named scalars whose sum is to be minimised (Mask R-CNN 3).

        Args:
            batch: with targets.
            noise: the randomness of sampling; None draws it from torch's generator.
        """
        targets = batch.targets
        if targets is None:
            raise ValueError("the loss needs batch.targets, got None; call model.predict(batch) to detect")
        seen = self._look(batch)
        if noise is None:
            candidates = seen.proposals.shape[1] + targets.boxes.shape[1]
            noise = self._draw(len(batch.images), sum(map(len, seen.anchors)), candidates)
        losses: Losses = self.rpn.losses(seen.objectness, seen.deltas, seen.anchors, targets, noise.anchors)
        rois = self.sample(seen.proposals, seen.real, targets, noise.rois)
        crops = self._crop(seen.pyramid, rois.boxes, self.box.config.roi_size)  # [B, S, C, P, P]
        losses |= self._box_losses(crops, rois, targets)
        if self.mask is not None:
            shared = self.trunk.crops_are_costly and self.mask.config.roi_size == self.box.config.roi_size
            positive = rois.boxes[:, : rois.positives]
            own = (
                crops[:, : rois.positives] if shared else self._crop(seen.pyramid, positive, self.mask.config.roi_size)
            )
            losses |= self._mask_losses(self.mask, own, rois, targets)
        return losses

    def _look(self, batch: Batch) -> _Seen:
        images = self.normalise(batch.images, batch.sizes)
        pyramid = self.trunk(images)
        objectness, deltas = self.rpn(pyramid)
        anchors = self.rpn.anchors(pyramid, (images.shape[2], images.shape[3]))
        return _Seen(pyramid, objectness, deltas, anchors, *self.rpn.propose(objectness, deltas, anchors, batch.sizes))

    def _crop(self, pyramid: Pyramid, boxes: Tensor, size: int) -> Tensor:
        """Crops [B, N, C, P, P] of boxes [B, N, 4]."""
        crops = self.trunk.crop(pyramid, boxes.flatten(0, 1), _image_index(boxes), size)
        return crops.reshape(*boxes.shape[:2], *crops.shape[1:])

    def _draw(self, images: int, anchors: int, candidates: int) -> SamplingNoise:
        device = self.mean.device
        return SamplingNoise(torch.rand(images, anchors, device=device), torch.rand(images, candidates, device=device))

    @torch.no_grad()
    def sample(self, proposals: Tensor, real: Tensor, targets: Targets, noise: Tensor) -> SampledRoIs:
        """RoIs for the heads: proposals [B, P, 4] and ground truth, 1 positive to 3 negatives (Mask R-CNN 3.1)."""
        roi = self.roi
        boxes = torch.cat([proposals, targets.boxes], 1)  # [B, P + G, 4]
        usable = torch.cat([real, targets.valid], 1)
        truth_index, label = match(
            box_iou(targets.boxes, boxes), targets.valid, roi.foreground_iou, roi.foreground_iou, False
        )
        label = label.masked_fill(~usable, -1)
        index, valid = sample_slots(label, noise, roi.batch_per_image, roi.positive_fraction)
        positive = valid & (gather_slots(label, index) == 1)
        truth_index = gather_slots(truth_index, index)
        classes = torch.where(positive, gather_slots(targets.classes, truth_index), 0)
        positives = min(int(roi.batch_per_image * roi.positive_fraction), index.shape[1])
        return SampledRoIs(gather_slots(boxes, index), classes, truth_index, valid, positives)

    def _box_losses(self, crops: Tensor, rois: SampledRoIs, targets: Targets) -> Losses:
        logits, deltas = self.box(crops.flatten(0, 1))
        truth = gather_slots(targets.boxes, rois.truth_index).flatten(0, 1)
        boxes = rois.boxes.flatten(0, 1)
        return self.box.losses(logits, deltas, boxes, rois.classes.flatten(), truth, rois.valid.flatten())

    def _mask_losses(self, head: MaskHead, crops: Tensor, rois: SampledRoIs, targets: Targets) -> Losses:
        """`crops` [B, positives, C, P, P] are those of the first slots."""
        if targets.masks is None:
            raise ValueError("the mask loss needs targets.masks, got None; set model.mask: null to train boxes only")
        boxes = rois.boxes[:, : rois.positives]
        classes = rois.classes[:, : rois.positives].flatten()
        truth_index = rois.truth_index[:, : rois.positives]
        image_index = _image_index(boxes)
        flat = boxes.flatten(0, 1)
        logits = head(crops.flatten(0, 1))
        with torch.no_grad():
            slots = targets.masks.shape[1]
            flat_index = image_index * slots + truth_index.flatten()  # of [B * G]
            masks = targets.masks.flatten(0, 1)
            if head.config.target == "crop":
                truth = gather_slots(targets.boxes, truth_index).flatten(0, 1)
                target = targets_from_crops(masks[flat_index], truth, flat, head.size)
            else:
                target = targets_from_images(masks, flat_index, flat, head.size)
        return head.losses(logits, classes, target, classes > 0)

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Detections]:
        """Detections of every image, in pixels of the original image (batch.original_sizes), best first.

        The model must be in eval mode: batch norm would otherwise use the batch's statistics.
        """
        if self.training:
            raise RuntimeError("predict() needs the model in eval mode; call model.eval() first")
        seen = self._look(batch)
        rois, real = seen.proposals, seen.real
        crops = self._crop(seen.pyramid, rois, self.box.config.roi_size)
        logits, moves = (out.reshape(*rois.shape[:2], *out.shape[1:]) for out in self.box(crops.flatten(0, 1)))
        found = self.box.detect(logits, moves, rois, real, batch.sizes)
        counts = [len(boxes) for boxes, _, _ in found]
        masks: list[Tensor | None] = [None] * len(found)
        if self.mask is not None:
            boxes = torch.cat([boxes for boxes, _, _ in found])
            classes = torch.cat([classes for _, _, classes in found])
            image_index = torch.arange(len(found), device=boxes.device).repeat_interleave(
                torch.tensor(counts, device=boxes.device)
            )
            crops = self.trunk.crop(seen.pyramid, boxes, image_index, self.mask.config.roi_size)
            masks = list(torch.split(self.mask.probabilities(self.mask(crops), classes), counts))
        scale = (batch.original_sizes / batch.sizes).flip(1).repeat(1, 2).float()  # [B, 4]: x, y, x, y
        results = []
        for image, (boxes, scores, classes) in enumerate(found):
            original = clip_boxes((boxes * scale[image])[None], batch.original_sizes[image : image + 1])[0]
            height, width = batch.original_sizes[image].tolist()
            results.append(Detections(original, scores, classes, masks[image], (height, width)))
        return results


def _image_index(boxes: Tensor) -> Tensor:
    """int64 [B * N] for boxes [B, N, 4] flattened: which image each came from."""
    images, count = boxes.shape[:2]
    return torch.arange(images, device=boxes.device)[:, None].expand(images, count).flatten()
