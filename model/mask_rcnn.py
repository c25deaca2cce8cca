"""Mask R-CNN (He et al. 2017), figure 1 in code: trunk -> proposals -> box head -> mask and keypoint heads.

Legend: B images, G ground-truth slots, P proposals, S sampled RoIs an image, A anchors an image, K classes, m mask
side.
The loss has fixed shapes and asks nothing of the device; prediction has not and does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import InputConfig, LossWeightsConfig, RoIConfig
from model.heads.box import BoxHead, Found
from model.heads.cascade import Cascade, Crop
from model.heads.keypoint import KeypointHead, keypoints_of_heatmaps
from model.heads.mask import MaskHead
from model.heads.proposer import External, Proposed
from model.heads.rpn import RPN
from model.ops.boxes import clip_boxes
from model.ops.roi import RoIs, crop_rois
from model.ops.sampling import gather_slots
from model.roi_targets import SampledRoIs, image_index_of, keypoint_targets, mask_targets, sample_rois
from model.trunks.trunk import Pyramid, Trunk
from model.types import Batch, Detections, Losses, Targets


@dataclass(frozen=True)
class SamplingNoise:
    """The randomness of one step: which anchors and RoIs train. float32 in [0, 1)."""

    anchors: Tensor  # [B, A]
    rois: Tensor  # [B, P + G]: proposals, then ground truth


class Seen(NamedTuple):
    """A batch after the trunk and the proposer."""

    images: Tensor  # float32 [B, 3, H, W], normalised
    pyramid: Pyramid
    proposed: Proposed


class Heads(NamedTuple):
    """What is read of RoIs; what is absent is None. Without boxes there is nothing else, and the RPN is alone."""

    box: BoxHead | None
    cascade: Cascade | None = None  # stages after `box`
    mask: MaskHead | None = None
    keypoint: KeypointHead | None = None


class MaskRCNN(nn.Module):
    """`model(batch)` gives the losses, `model.predict(batch)` the detections. Without `mask` it is Faster R-CNN.

    Without an RPN it is Fast R-CNN (with masks or keypoints where it has those heads): proposals come with the batch.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        inputs: InputConfig,
        trunk: nn.Module,
        proposer: RPN | External,
        roi: RoIConfig,
        heads: Heads,
        loss_weights: LossWeightsConfig,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(inputs.mean), False)
        self.register_buffer("std", torch.tensor(inputs.std), False)
        self.divisor = inputs.divisor
        self.bgr = inputs.channels == "bgr"
        self.roi = roi
        self.trunk: Trunk = trunk  # type: ignore[assignment]  # a module that is a Trunk
        self.rpn = proposer  # so its weights are named, whether it has any or not
        self.box = heads.box
        self.cascade = heads.cascade
        self.mask = heads.mask
        self.keypoint = heads.keypoint
        self.loss_weights = {
            "rpn/objectness": loss_weights.objectness,
            "rpn/box": loss_weights.rpn_box,
            "box/class": loss_weights.box_class,
            "box/box": loss_weights.box_box,
            "mask/mask": loss_weights.mask,
            "keypoint/keypoint": loss_weights.keypoint,
        }

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """uint8 RGB [B, H, W, 3] -> float32 [B, 3, H', W'] (channels last in memory), zero outside `sizes` [B, 2]."""
        height, width = images.shape[1:3]
        rows = torch.arange(height, device=images.device)[None, :, None] < sizes[:, 0, None, None]
        columns = torch.arange(width, device=images.device)[None, None, :] < sizes[:, 1, None, None]
        x = (images.float() - self.mean) / self.std * (rows & columns)[..., None]
        x = F.pad(x.flip(3) if self.bgr else x, (0, 0, 0, -width % self.divisor, 0, -height % self.divisor))
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
        seen = self.look(batch)
        proposals = seen.proposed.proposals
        if noise is None:
            candidates = proposals.boxes.shape[1] + targets.boxes.shape[1]
            noise = self._draw(len(batch.images), seen.proposed.anchors, candidates)
        losses: Losses = seen.proposed.losses(targets, noise.anchors)
        if self.box is not None:
            rois = sample_rois(
                proposals.boxes,
                proposals.real,
                targets,
                noise.rois,
                self.roi.foreground_iou,
                self.roi.batch_per_image,
                self.roi.positive_fraction,
            )
            losses |= self._head_losses(self.box, seen, rois, targets, batch.sizes)
        return {name: loss * self.loss_weights[name] for name, loss in losses.items()}

    def _head_losses(self, box: BoxHead, seen: Seen, rois: SampledRoIs, targets: Targets, sizes: Tensor) -> Losses:
        images, positives = len(rois.boxes), rois.positives
        read = partial(self._crop, seen.pyramid)
        size = box.config.roi_size
        crops = read(rois.boxes, size)  # [B * S, C, P, P]
        losses = self._box_losses(box, partial(read, size=size), crops, rois, targets, sizes)
        # The first slots hold every positive RoI; heads that read as many bins share the crops.
        boxes = rois.boxes[:, :positives]
        shared = {size: crops.reshape(images, -1, *crops.shape[1:])[:, :positives].flatten(0, 1)}
        classes = rois.classes[:, :positives].flatten()
        index = rois.truth_index[:, :positives]
        for head in (self.mask, self.keypoint):
            if head is None:
                continue
            size = head.config.roi_size
            if size not in shared:
                shared[size] = read(boxes, size)
            if isinstance(head, MaskHead):
                pixels = self._pixels(head, seen.images, boxes.flatten(0, 1), image_index_of(boxes))
                target = mask_targets(targets, index, boxes, head.size, head.config.target)
                logits = head(shared[size], classes, pixels, classes > 0)
                losses |= head.losses(logits, classes, target, classes > 0)
            else:
                points = keypoint_targets(targets, index, head.count)
                losses |= head.losses(head(shared[size]), boxes.flatten(0, 1), points, classes > 0)
        return losses

    def look(self, batch: Batch) -> Seen:
        """What the trunk and the proposer see."""
        images = self.normalise(batch.images, batch.sizes)
        pyramid = self.trunk(images)
        return Seen(images, pyramid, self.rpn.look(pyramid, (images.shape[2], images.shape[3]), batch))

    def _crop(self, pyramid: Pyramid, boxes: Tensor, size: int) -> Tensor:
        """Crops [B * N, C, P, P] of boxes [B, N, 4]."""
        return self.trunk.crop(pyramid, boxes.flatten(0, 1), image_index_of(boxes), size)

    def _pixels(self, mask: MaskHead, images: Tensor, boxes: Tensor, image_index: Tensor) -> Tensor | None:
        """Crops [R, 3, m, m] of the input itself for boxes [R, 4], for a mask head that reads them."""
        if mask.config.pixel_channels is None:
            return None
        return crop_rois("align", [images], (1,), RoIs(boxes, image_index, image_index * 0), mask.size, 2, True)

    def _draw(self, images: int, anchors: int, candidates: int) -> SamplingNoise:
        device = self.mean.device
        return SamplingNoise(torch.rand(images, anchors, device=device), torch.rand(images, candidates, device=device))

    def _box_losses(
        self, box: BoxHead, crop: Crop, crops: Tensor, rois: SampledRoIs, targets: Targets, sizes: Tensor
    ) -> Losses:
        boxes, real = rois.boxes.flatten(0, 1), rois.valid.flatten()
        logits, deltas = box(crops if self.cascade is None else self.cascade.share(crops), real)
        truth = gather_slots(targets.boxes, rois.truth_index).flatten(0, 1)
        losses = box.losses(logits, deltas, boxes, rois.classes.flatten(), truth, real)
        if self.cascade is None:
            return losses
        refined = box.refine(deltas, boxes).reshape(rois.boxes.shape)
        later = self.cascade.losses(crop, refined, rois.valid, sizes, targets)
        return {name: loss + sum(stage[name] for stage in later) for name, loss in losses.items()}

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Detections]:
        """Detections of every image, in pixels of the original image (batch.original_sizes), best first.

        The model must be in eval mode: batch norm would otherwise use the batch's statistics.
        """
        self.check_eval()
        seen = self.look(batch)
        found = [self.suppress(candidates) for candidates in self.candidates(seen, batch.sizes)]
        return as_detections(found, *self.describe(seen, found), batch)

    def check_eval(self) -> None:
        """Raises RuntimeError in train mode."""
        if self.training:
            raise RuntimeError("predict() needs the model in eval mode; call model.eval() first")

    def candidates(self, seen: Seen, sizes: Tensor) -> list[Found]:
        """Boxes of each image before NMS, pixels of the input. sizes int64 [B, 2] (height, width) before padding."""
        rois, logits, real = seen.proposed.proposals
        if self.box is None:  # all that is known of a proposal is that it is something: class 1, its objectness
            objectness = logits.sigmoid()
            return [
                Found(b[r], s[r], torch.ones_like(s[r], dtype=torch.int64))
                for b, s, r in zip(rois, objectness, real, strict=True)
            ]
        crop = partial(self._crop, seen.pyramid, size=self.box.config.roi_size)
        scores, deltas = self.box(crop(rois))
        probabilities = scores.softmax(-1).reshape(*rois.shape[:2], -1)
        boxes = self.box.refine(deltas, rois.flatten(0, 1)).reshape(*rois.shape[:2], -1, 4)  # [B, P, K or 1, 4]
        if self.cascade is not None:
            refined, probabilities = self.cascade.refine(crop, boxes[:, :, 0], probabilities, sizes)
            boxes = refined[:, :, None]
        return self.box.candidates(probabilities, boxes, real, sizes)

    def suppress(self, candidates: Found) -> Found:
        """The boxes of an image that are left, best first. Proposals have been through NMS already."""
        return candidates if self.box is None else self.box.suppress(candidates)

    def describe(self, seen: Seen, found: Sequence[Found]) -> tuple[Tensor | None, Tensor | None]:
        """Masks (probabilities) [N, m, m] and keypoint heatmaps [N, J, h, h] of N boxes, image after image."""
        boxes, classes = torch.cat([one.boxes for one in found]), torch.cat([one.classes for one in found])
        counts = torch.tensor([len(one.boxes) for one in found], device=boxes.device)
        image_index = torch.arange(len(found), device=boxes.device).repeat_interleave(counts)
        sides = {head.config.roi_size for head in (self.mask, self.keypoint) if head is not None}
        crops = {side: self.trunk.crop(seen.pyramid, boxes, image_index, side) for side in sides}
        masks = heatmaps = None
        if self.mask is not None:
            pixels = self._pixels(self.mask, seen.images, boxes, image_index)
            logits = self.mask(crops[self.mask.config.roi_size], classes, pixels)
            masks = self.mask.probabilities(logits, classes)
        if self.keypoint is not None:
            heatmaps = self.keypoint(crops[self.keypoint.config.roi_size])
        return masks, heatmaps


def as_detections(
    found: Sequence[Found], masks: Tensor | None, heatmaps: Tensor | None, batch: Batch
) -> list[Detections]:
    """What `describe` says of boxes of each image of `batch` (pixels of the input), in pixels of the original one."""
    counts = [len(one.boxes) for one in found]
    masks_of: Sequence[Tensor | None] = [None] * len(found) if masks is None else torch.split(masks, counts)
    points_of: Sequence[Tensor | None] = [None] * len(found)
    if heatmaps is not None:
        points_of = torch.split(keypoints_of_heatmaps(heatmaps, torch.cat([one.boxes for one in found])), counts)
    scale = (batch.original_sizes / batch.sizes).flip(1).float()  # [B, 2]: x, y
    detections = []
    for image, (boxes, scores, classes) in enumerate(found):
        original = clip_boxes((boxes * scale[image].repeat(2))[None], batch.original_sizes[image : image + 1])[0]
        height, width = batch.original_sizes[image].tolist()
        points = points_of[image]
        if points is not None:
            points = torch.cat([points[..., :2] * scale[image], points[..., 2:]], -1)
        detections.append(Detections(original, scores, classes, masks_of[image], (height, width), points))
    return detections
