"""What a variant of the model costs: parameters, multiply-adds, and the time of a training step beside torchvision's.

Parameters and multiply-adds are counted on tensors without numbers (FakeTensorMode): nothing is allocated, so that a
ResNeXt-152 at 800 x 1333 is counted in a second.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import MaskRCNN as PeerMaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

from model.build import build_model
from model.config import ModelConfig
from model.heads.rpn import RPN
from model.mask_rcnn import MaskRCNN
from model.types import CROP_SIZE, Batch, Losses, Targets
from pipeline.benchmarks.torchvision_peer import peer_losses
from pipeline.variants import Table, row_model

IMAGE = (800, 1333)  # pixels, what published counts are of
GIVEN_PROPOSALS = 1000  # of a model without an RPN, as one with it has


@dataclass(frozen=True)
class Size:
    """What a model is."""

    parameters: int  # all of them, frozen ones too; statistics of frozen norms are not parameters
    multiply_adds: int  # of predicting one image; half of what FlopCounterMode counts


def distinct_models(tables: Sequence[Table]) -> dict[str, ModelConfig]:
    """Each model of the tables once, under the name of the first row that has it."""
    found: dict[ModelConfig, str] = {}
    for table in tables:
        for row in table.variants:
            found.setdefault(row_model(table, row), f"{table.table} {row.name}")
    return {name: model for model, name in found.items()}


def measure_size(config: ModelConfig, height: int = IMAGE[0], width: int = IMAGE[1]) -> Size:
    """Count a model on an image of height x width pixels, with as many proposals and detections as it may have."""
    with FakeTensorMode(), torch.no_grad():
        model = build_model(config).eval()
        with FlopCounterMode(display=False) as counter:
            _look_and_detect(model, height, width)
    return Size(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def _look_and_detect(model: MaskRCNN, height: int, width: int) -> None:
    """What prediction computes in layers; which boxes are kept is no work for them."""
    images = torch.zeros(1, 3, height + -height % model.divisor, width + -width % model.divisor)
    pyramid = model.trunk(images)
    proposals = GIVEN_PROPOSALS
    if isinstance(model.rpn, RPN):
        model.rpn(pyramid)
        anchors = sum(level.shape[2] * level.shape[3] for level in pyramid.values()) * model.rpn.cells.shape[1]
        proposals = min(model.rpn.config.post_nms_test, anchors)
    if model.box is None:
        return

    def read(count: int, size: int) -> Tensor:
        return model.trunk.crop(pyramid, torch.zeros(count, 4), torch.zeros(count, dtype=torch.int64), size)

    stages = [model.box, *(() if model.cascade is None else model.cascade.stages)]
    for stage in stages:
        stage(read(proposals, model.box.config.roi_size))
    heads = [head for head in (model.mask, model.keypoint) if head is not None]
    crops = {head.config.roi_size: read(model.box.config.detections_per_image, head.config.roi_size) for head in heads}
    if model.mask is not None:
        count = model.box.config.detections_per_image
        model.mask(crops[model.mask.config.roi_size], torch.ones(count, dtype=torch.int64))
    if model.keypoint is not None:
        model.keypoint(crops[model.keypoint.config.roi_size])


@dataclass(frozen=True)
class StepTime:
    """CPU seconds of the process for a loss and its gradients, by turns."""

    ours: tuple[float, ...]
    torchvision: tuple[float, ...]  # maskrcnn_resnet50_fpn on the same image

    @property
    def ratio(self) -> float:
        """Ours over torchvision's: the median over the turns."""
        return statistics.median(a / b for a, b in zip(self.ours, self.torchvision, strict=True))


def measure_step(config: ModelConfig, rounds: int, height: int, width: int, rois: int) -> StepTime:
    """Time both on one image of height x width pixels with at most `rois` RoIs, after a warm-up.

    It holds as many objects as there may be positive RoIs, so that torchvision, which has heads look at those that
    there are, has as many to look at as ours, which have fixed slots.
    """
    torch.manual_seed(0)
    roi = replace(config.roi, batch_per_image=min(config.roi.batch_per_image, rois))
    ours, peer = build_model(replace(config, roi=roi)).train(), build_torchvision(height, width, rois)
    joints = 0 if config.keypoint is None else config.keypoint.count or 0
    batch, whole = random_batch(height, width, int(rois * config.roi.positive_fraction), joints)
    channels_last = [m.to(memory_format=torch.channels_last) for m in (ours, peer)]
    times: list[list[float]] = [[], []]
    for _ in range(1 + rounds):
        for which, model in enumerate(channels_last):
            model.zero_grad(set_to_none=True)
            started = time.process_time()
            losses: Losses = model(batch) if which == 0 else peer_losses(model, whole)
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            times[which].append(time.process_time() - started)
    return StepTime(tuple(times[0][1:]), tuple(times[1][1:]))


def build_torchvision(height: int, width: int, rois: int) -> nn.Module:
    """maskrcnn_resnet50_fpn as it comes with its COCO weights (frozen norms, stem and res2 frozen), for such images."""
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
    sizes = {"min_size": min(height, width), "max_size": max(height, width)}
    peer: nn.Module = PeerMaskRCNN(body, 91, **sizes, box_batch_size_per_image=rois)
    return peer.train()


def random_batch(height: int, width: int, objects: int, keypoints: int) -> tuple[Batch, Batch]:
    """One image with rectangles on noise: with masks as crops and with keypoints, and with whole masks instead."""
    extent = torch.tensor([width, height], dtype=torch.float32)
    corner = torch.rand(objects, 2) * 0.5 * extent
    boxes = torch.cat([corner, corner + (0.2 + 0.3 * torch.rand(objects, 2)) * extent], 1).round()
    whole = torch.zeros(objects, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(whole, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    place = boxes[:, None, :2] + torch.rand(objects, keypoints, 2) * (boxes[:, None, 2:] - boxes[:, None, :2])
    points = torch.cat([place, torch.full((objects, keypoints, 1), 2.0)], -1)
    targets = Targets(
        boxes=boxes[None],
        classes=torch.ones(1, objects, dtype=torch.int64),
        valid=torch.ones(1, objects, dtype=torch.bool),
        masks=torch.ones(1, objects, CROP_SIZE, CROP_SIZE, dtype=torch.uint8),
        keypoints=points[None] if keypoints else None,
    )
    sizes = torch.tensor([[height, width]])
    images = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)
    batch = Batch(images, sizes, sizes, torch.zeros(1, dtype=torch.int64), targets)
    return batch, replace(batch, targets=replace(targets, masks=whole[None], keypoints=None))
