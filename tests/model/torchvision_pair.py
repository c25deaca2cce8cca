"""A torchvision builder's network and ours with its weights, and the same scenes and samples for both."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from model.build import build_model
from model.config import ModelConfig
from model.mask_rcnn import MaskRCNN, SamplingNoise
from model.types import Batch, Targets
from model.weights.loading import load_matching
from model.weights.torchvision import from_torchvision
from model.weights.torchvision_builders import BUILDERS, recognise

CLASSES, JOINTS = 5, 4
HEIGHT, WIDTH = 64, 96
PRE_NMS, POST_NMS = 200, 80
ROIS = 16  # sampled an image
LOSSES = {
    "rpn/objectness": "loss_objectness",
    "rpn/box": "loss_rpn_box_reg",
    "box/class": "loss_classifier",
    "box/box": "loss_box_reg",
    "mask/mask": "loss_mask",
    "keypoint/keypoint": "loss_keypoint",
}


class Pair(NamedTuple):
    """Two networks with the same weights, conventions and budgets."""

    ours: MaskRCNN
    theirs: nn.Module
    config: ModelConfig
    start: dict[str, Tensor]  # torchvision's state dict, before running statistics move

    def begin(self) -> "Pair":
        """Both as they were at the start."""
        self.theirs.load_state_dict(self.start)
        report = load_matching(self.ours, from_torchvision(self.start, CLASSES))
        assert not report.missing and not report.left and not report.mismatched
        return self


class FixedSampler:
    """Stands in for torchvision's random sampler: of each kind it takes what has the largest noise, as ours does."""

    def __init__(self, noise: list[Tensor], slots: int, fraction: float) -> None:
        self.noise, self.slots, self.fraction = noise, slots, fraction

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        positives, negatives = [], []
        for label, noise in zip(labels, self.noise, strict=True):
            noise = noise[: len(label)]
            positive = torch.where(label >= 1)[0]
            negative = torch.where(label == 0)[0]
            positive = positive[noise[positive].argsort(descending=True)][: int(self.slots * self.fraction)]
            negative = negative[noise[negative].argsort(descending=True)][: self.slots - len(positive)]
            positives.append(torch.zeros_like(label, dtype=torch.uint8).index_fill(0, positive, 1))
            negatives.append(torch.zeros_like(label, dtype=torch.uint8).index_fill(0, negative, 1))
        return positives, negatives


def make_pair(builder: str) -> Pair:
    """Random weights that score apart, statistics of batch norm that are not trivial; frozen ones in v1, as trained.

    The last norm of a residual block has a small weight: a random ResNet-50 with batch statistics of a few pixels would
    make a float32 round-off of 1e-7 into 1e-1 (torchvision's against itself in float64 too).
    """
    torch.manual_seed(0)
    theirs = getattr(torchvision.models.detection, builder)(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        min_size=HEIGHT,
        max_size=WIDTH,
        rpn_pre_nms_top_n_train=PRE_NMS,
        rpn_pre_nms_top_n_test=PRE_NMS,
        rpn_post_nms_top_n_train=POST_NMS,
        rpn_post_nms_top_n_test=POST_NMS,
        box_batch_size_per_image=ROIS,
        box_score_thresh=0.1,
        box_detections_per_img=8,
        **({"num_keypoints": JOINTS} if builder.startswith("keypoint") else {}),
    )
    if not builder.endswith("_v2"):
        freeze(theirs.backbone.body)
        for name, parameter in theirs.backbone.body.named_parameters():
            parameter.requires_grad_(not name.startswith(("conv1", "layer1")))
    for name, module in theirs.named_modules():
        if isinstance(module, nn.BatchNorm2d | torchvision.ops.FrozenBatchNorm2d):
            with torch.no_grad():
                module.weight.uniform_(0.4, 0.8).mul_(0.1 if name.endswith("bn3") else 1)
                module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    heads = theirs.roi_heads
    for layer in (theirs.rpn.head.cls_logits, heads.box_predictor.cls_score):  # no ties, some detections
        nn.init.normal_(layer.weight, std=0.1)
    if heads.has_mask():
        nn.init.normal_(heads.mask_predictor.mask_fcn_logits.weight, std=0.1)
    recognised = recognise(theirs.state_dict())
    assert recognised.builder == builder
    config = with_budgets(recognised.config)
    start = {name: value.clone() for name, value in theirs.state_dict().items()}
    return Pair(build_model(config), theirs, config, start).begin()


def with_budgets(config: ModelConfig) -> ModelConfig:
    assert config.box is not None and config.rpn is not None
    budgets = {"pre_nms_train": PRE_NMS, "pre_nms_test": PRE_NMS, "post_nms_train": POST_NMS, "post_nms_test": POST_NMS}
    return dataclasses.replace(
        config,
        rpn=dataclasses.replace(config.rpn, **budgets),  # type: ignore[arg-type]
        roi=dataclasses.replace(config.roi, batch_per_image=ROIS),
        box=dataclasses.replace(config.box, score_threshold=0.1, detections_per_image=8),
    )


def freeze(module: nn.Module) -> None:
    """Batch norm as with pretrained weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, torchvision.ops.FrozenBatchNorm2d(child.num_features))
        else:
            freeze(child)


def ellipse(box: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    centre, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return (((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2 <= 1).astype(np.uint8)


def scene(counts: list[int], seed: int) -> tuple[Batch, list[dict[str, Tensor]]]:
    """The same images and ground truth as our padded batch and as torchvision's list."""
    rng = np.random.default_rng(seed)
    shape = (len(counts), max(*counts, 1) + 3)
    boxes, classes, valid = np.zeros((*shape, 4), np.float32), np.zeros(shape, np.int64), np.zeros(shape, bool)
    masks, points = np.zeros((*shape, HEIGHT, WIDTH), np.uint8), np.zeros((*shape, JOINTS, 3), np.float32)
    theirs = []
    for image, count in enumerate(counts):
        corner = rng.uniform(0, [WIDTH - 24, HEIGHT - 24], (count, 2))
        side = np.exp(rng.uniform(np.log(12), np.log(90), (count, 2)))
        boxes[image, :count] = np.concatenate([corner, np.minimum(corner + side, [WIDTH, HEIGHT])], 1)
        classes[image, :count] = rng.integers(1, CLASSES + 1, count)
        valid[image, :count] = True
        for slot in range(count):
            masks[image, slot] = ellipse(boxes[image, slot])
        place = rng.uniform(-0.1, 1.1, (count, JOINTS, 2))
        size = boxes[image, :count, None, 2:] - boxes[image, :count, None, :2]
        points[image, :count, :, :2] = boxes[image, :count, None, :2] + place * size
        points[image, :count, :, 2] = rng.choice([0, 1, 2, 2], (count, JOINTS))
        target = {"boxes": boxes, "labels": classes, "masks": masks, "keypoints": points}
        theirs.append({name: torch.from_numpy(value[image, :count].copy()) for name, value in target.items()})
    sizes = torch.tensor([[HEIGHT, WIDTH]] * len(counts))
    targets = Targets(*(torch.from_numpy(a) for a in (boxes, classes, valid, masks, points)))
    images = torch.from_numpy(rng.integers(0, 256, (len(counts), HEIGHT, WIDTH, 3), dtype=np.uint8))
    return Batch(images, sizes, sizes, torch.arange(len(counts)), targets), theirs


def as_theirs(batch: Batch) -> list[Tensor]:
    return [image.permute(2, 0, 1).float() / 255 for image in batch.images]  # float64 within `in_float64`


def both_losses(pair: Pair, counts: list[int], seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Our losses, and torchvision's under our names, on the same samples."""
    ours, theirs = pair.ours.train(), pair.theirs.train()
    batch, targets = scene(counts, seed)
    assert batch.targets is not None
    generator = torch.Generator().manual_seed(seed)
    anchors = sum(3 * (HEIGHT // s) * (WIDTH // s) for s in (4, 8, 16, 32)) + 3 * 1 * 2
    rpn_noise = torch.rand(len(counts), anchors, generator=generator)
    roi_noise = torch.rand(len(counts), POST_NMS + batch.targets.boxes.shape[1], generator=generator)
    theirs.rpn.fg_bg_sampler = FixedSampler(list(rpn_noise), 256, 0.5)
    theirs.roi_heads.fg_bg_sampler = FixedSampler(list(roi_noise), ROIS, 0.25)
    mine = ours(batch, SamplingNoise(rpn_noise, roi_noise))
    reference: dict[str, Any] = theirs(as_theirs(batch), targets)
    assert len(reference) == len(mine)
    return mine, {name: torch.as_tensor(reference[LOSSES[name]]).float() for name in mine}


def gradient_errors(pair: Pair, mine: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """How far each parameter's gradient is off, as a share of its layer's (L2 norms)."""
    pair.ours.zero_grad()
    pair.theirs.zero_grad()
    torch.stack(list(mine.values())).sum().backward()
    torch.stack(list(reference.values())).sum().backward()
    zero = torch.zeros(())
    gradients = {n: zero.expand(p.shape) if p.grad is None else p.grad for n, p in pair.theirs.named_parameters()}
    expected = from_torchvision(gradients, CLASSES)
    scale: dict[str, float] = {}  # a bias before a softmax over all cells has no gradient but round-off
    for name, value in expected.items():
        layer = name.rpartition(".")[0]
        scale[layer] = max(scale.get(layer, 1e-6), value.norm().item())
    errors = {}
    for name, parameter in pair.ours.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            errors[name] = (parameter.grad - expected[name]).norm().item() / scale[name.rpartition(".")[0]]
    return errors


@contextmanager
def in_float64(pair: Pair) -> Iterator[Pair]:
    """Both networks compute in float64, where ours otherwise asks for float32 too."""
    network, as_float = pair.ours, Tensor.float
    kept = network.mean.clone(), network.std.clone()
    try:
        torch.set_default_dtype(torch.float64)
        Tensor.float = Tensor.double  # type: ignore[method-assign]
        pair.begin().ours.double()
        pair.theirs.double()
        network.mean.copy_(torch.tensor([0.485, 0.456, 0.406]) * 255)  # torchvision's, to the last digit
        network.std.copy_(torch.tensor([0.229, 0.224, 0.225]) * 255)
        yield pair
    finally:
        torch.set_default_dtype(torch.float32)
        Tensor.float = as_float  # type: ignore[method-assign]
        network.to(torch.float32)
        pair.theirs.to(torch.float32)
        network.mean.copy_(kept[0])
        network.std.copy_(kept[1])


ALL = tuple(BUILDERS)
