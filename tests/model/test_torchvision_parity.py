"""With torchvision's weights, conventions, input and samples: its losses, gradients and detections, to round-off."""

import dataclasses

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from model.build import build_model
from model.mask_rcnn import MaskRCNN, SamplingNoise
from model.ops.masks import paste_full
from model.types import Batch, Targets
from model.weights.torchvision import TORCHVISION_V1, from_torchvision, load_matching

CLASSES = 7
HEIGHT, WIDTH = 160, 224
PRE_NMS, POST_NMS = 300, 120
CONFIG = dataclasses.replace(
    TORCHVISION_V1,
    classes=CLASSES,
    rpn=dataclasses.replace(
        TORCHVISION_V1.rpn,
        pre_nms_train=PRE_NMS,
        pre_nms_test=PRE_NMS,
        post_nms_train=POST_NMS,
        post_nms_test=POST_NMS,
    ),
    roi=dataclasses.replace(TORCHVISION_V1.roi, batch_per_image=64),
)


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


def ellipse(box: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    centre, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return (((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2 <= 1).astype(np.uint8)


def scene(counts: list[int], seed: int) -> tuple[Batch, list[dict[str, Tensor]]]:
    """The same images and ground truth as our padded batch and as torchvision's list."""
    rng = np.random.default_rng(seed)
    slots = max(*counts, 1) + 3
    shape = (len(counts), slots)
    boxes, classes = np.zeros((*shape, 4), np.float32), np.zeros(shape, np.int64)
    valid, masks = np.zeros(shape, bool), np.zeros((*shape, HEIGHT, WIDTH), np.uint8)
    theirs = []
    for image, count in enumerate(counts):
        corner = rng.uniform(0, [WIDTH - 24, HEIGHT - 24], (count, 2))
        side = np.exp(rng.uniform(np.log(20), np.log(140), (count, 2)))
        boxes[image, :count] = np.concatenate([corner, np.minimum(corner + side, [WIDTH, HEIGHT])], 1)
        classes[image, :count] = rng.integers(1, CLASSES + 1, count)
        valid[image, :count] = True
        for slot in range(count):
            masks[image, slot] = ellipse(boxes[image, slot])
        theirs.append(
            {
                "boxes": torch.from_numpy(boxes[image, :count].copy()),
                "labels": torch.from_numpy(classes[image, :count].copy()),
                "masks": torch.from_numpy(masks[image, :count].copy()),
            }
        )
    sizes = torch.tensor([[HEIGHT, WIDTH]] * len(counts))
    targets = Targets(*(torch.from_numpy(a) for a in (boxes, classes, valid, masks)))
    images = torch.from_numpy(rng.integers(0, 256, (len(counts), HEIGHT, WIDTH, 3), dtype=np.uint8))
    return Batch(images, sizes, sizes, torch.arange(len(counts)), targets), theirs


@pytest.fixture(scope="module")
def pair() -> tuple[MaskRCNN, torch.nn.Module]:
    torch.manual_seed(0)
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        trainable_backbone_layers=3,
        min_size=HEIGHT,
        max_size=WIDTH,
        rpn_pre_nms_top_n_train=PRE_NMS,
        rpn_pre_nms_top_n_test=PRE_NMS,
        rpn_post_nms_top_n_train=POST_NMS,
        rpn_post_nms_top_n_test=POST_NMS,
        box_batch_size_per_image=64,
        box_score_thresh=0.1,
    )
    frozen = torchvision.ops.FrozenBatchNorm2d

    def freeze(module: torch.nn.Module) -> None:  # as with pretrained weights, with statistics that are not trivial
        for name, child in module.named_children():
            if isinstance(child, torch.nn.BatchNorm2d):
                fixed = frozen(child.num_features)
                fixed.weight.uniform_(0.4, 0.8)
                fixed.bias.normal_(std=0.1)
                fixed.running_mean.normal_(std=0.1)
                fixed.running_var.uniform_(0.5, 1.5)
                setattr(module, name, fixed)
            else:
                freeze(child)

    freeze(theirs.backbone.body)
    for name, parameter in theirs.backbone.body.named_parameters():
        parameter.requires_grad_(not name.startswith(("conv1", "layer1")))
    for layer in (theirs.rpn.head.cls_logits, theirs.roi_heads.box_predictor.cls_score):
        torch.nn.init.normal_(layer.weight, std=0.1)  # spread scores: no ties, some detections
    torch.nn.init.normal_(theirs.roi_heads.mask_predictor.mask_fcn_logits.weight, std=0.1)
    config = dataclasses.replace(CONFIG, box=dataclasses.replace(CONFIG.box, score_threshold=0.1))
    ours = build_model(config)
    report = load_matching(ours, from_torchvision(theirs.state_dict(), CLASSES))
    assert not report.missing and not report.left and not report.mismatched
    return ours, theirs


def both_losses(
    pair: tuple[MaskRCNN, torch.nn.Module], counts: list[int], seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    ours, theirs = pair
    ours.train(), theirs.train()
    batch, targets = scene(counts, seed)
    assert batch.targets is not None
    generator = torch.Generator().manual_seed(seed)
    anchors = sum(3 * (HEIGHT // s) * (WIDTH // s) for s in (4, 8, 16, 32)) + 3 * 3 * 4
    rpn_noise = torch.rand(len(counts), anchors, generator=generator)
    roi_noise = torch.rand(len(counts), POST_NMS + batch.targets.boxes.shape[1], generator=generator)
    theirs.rpn.fg_bg_sampler = FixedSampler(list(rpn_noise), 256, 0.5)
    theirs.roi_heads.fg_bg_sampler = FixedSampler(list(roi_noise), 64, 0.25)
    images = [image.permute(2, 0, 1).float() / 255 for image in batch.images]
    return ours(batch, SamplingNoise(rpn_noise, roi_noise)), theirs(images, targets)


NAMES = {
    "rpn/objectness": "loss_objectness",
    "rpn/box": "loss_rpn_box_reg",
    "box/class": "loss_classifier",
    "box/box": "loss_box_reg",
    "mask/mask": "loss_mask",
}


@pytest.mark.parametrize("counts", [[3, 1], [0, 2], [0, 0], [1, 40]])
def test_losses_and_gradients(pair: tuple[MaskRCNN, torch.nn.Module], counts: list[int]) -> None:
    ours, theirs = pair
    mine, reference = both_losses(pair, counts, seed=len(counts) + sum(counts))
    for name, other in NAMES.items():
        torch.testing.assert_close(mine[name], reference[other], rtol=2e-5, atol=2e-6)
    ours.zero_grad()
    theirs.zero_grad()
    torch.stack(list(mine.values())).sum().backward()
    torch.stack([loss.float() for loss in reference.values()]).sum().backward()
    zero = torch.zeros(())
    gradients = {n: zero.expand(p.shape) if p.grad is None else p.grad for n, p in theirs.named_parameters()}
    expected = from_torchvision(gradients, CLASSES)
    for name, parameter in ours.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None, name
        scale = expected[name].abs().max().clamp(min=1e-6)
        assert (parameter.grad - expected[name]).abs().max() / scale < 2e-3, name


def test_detections(pair: tuple[MaskRCNN, torch.nn.Module]) -> None:
    ours, theirs = pair
    ours.eval(), theirs.eval()
    batch, _ = scene([2, 2], seed=3)
    with torch.no_grad():
        reference = theirs([image.permute(2, 0, 1).float() / 255 for image in batch.images])
    for mine, other in zip(ours.predict(batch), reference, strict=True):
        assert len(mine.boxes) > 10
        assert torch.equal(mine.classes, other["labels"])
        torch.testing.assert_close(mine.scores, other["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.boxes, other["boxes"], rtol=1e-4, atol=1e-3)
        assert mine.masks is not None
        pasted = paste_full(mine.masks, mine.boxes, mine.size, "integer", 0.5)
        assert (pasted != (other["masks"][:, 0] > 0.5)).float().mean() < 1e-4
        soft = paste_masks_in_image(mine.masks[:, None], mine.boxes, mine.size)
        torch.testing.assert_close(soft, other["masks"], rtol=1e-3, atol=1e-3)
