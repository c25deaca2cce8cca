"""Every variant that build.py can compose: it learns, it detects, and its loss has fixed shapes."""

import dataclasses
from typing import Any, get_args

import pytest
import torch
from test_mask_rcnn import spread
from tiny_model import CLASSES, TINY, scene, with_keypoints, with_proposals
from torch import nn
from torch._subclasses import FakeTensorMode

from model.build import MASK_HEADS, MASK_SCHEMES, TRUNKS, build_model
from model.config import (
    BodyName,
    CascadeConfig,
    KeypointConfig,
    MaskHeadName,
    MaskSchemeName,
    ModelConfig,
    Neck,
    RoIOperation,
)
from model.types import Batch, Proposals, Targets


def variant(**changes: Any) -> ModelConfig:
    """TINY with keys of sections changed (trunk={"neck": "c4"}, ...), or without them (mask=None)."""
    sections = {
        name: dataclasses.replace(getattr(TINY, name), **keys) if isinstance(keys, dict) else keys
        for name, keys in changes.items()
    }
    return dataclasses.replace(TINY, **sections)


C4_HEADS: dict[str, Any] = {
    "roi": {"batch_per_image": 12},  # the fifth stage runs on each
    "box": {"average": True, "layers": 0, "roi_size": 14},
    "mask": {"roi_size": 14, "convs": 0},
}
KEYPOINT = KeypointConfig(count=4, roi_size=7, channels=8, convs=2)
CASCADE: dict[str, Any] = {"class_agnostic": True, "cascade": CascadeConfig()}
VARIANTS: dict[str, ModelConfig] = {
    "c4": variant(trunk={"neck": "c4"}, **C4_HEADS),
    "c4 with crops of its own for masks": variant(trunk={"neck": "c4"}, **{**C4_HEADS, "mask": {"roi_size": 7}}),
    "c4 cascade": variant(trunk={"neck": "c4"}, **{**C4_HEADS, "box": C4_HEADS["box"] | CASCADE}),
    "c5": variant(trunk={"neck": "c5"}),
    "mobilenet": variant(trunk={"body": "mobilenet_v3_large", "norm": "bn"}),
    "mobilenet c4": variant(trunk={"body": "mobilenet_v3_large", "norm": "bn", "neck": "c4"}, **C4_HEADS),
    "convnext": variant(trunk={"body": "convnext_tiny"}),
    "resnext": variant(trunk={"body": "resnext50_32x4d"}),
    "narrow": variant(trunk={"width": 32}),
    "narrow c4": variant(trunk={"neck": "c4", "width": 32}, **C4_HEADS),
    "narrow c5": variant(trunk={"neck": "c5", "width": 32}),
    "non-local": variant(trunk={"non_local": True}),
    "torchvision v2": variant(
        trunk={"norm": "bn", "fpn_norm": "bn"},
        rpn={"convs": 2},
        box={"convs": 2, "conv_channels": 32, "norm": "bn", "layers": 1},
        mask={"norm": "bn"},
    ),
    "group norm in the pyramid and the heads": variant(
        trunk={"fpn_norm": "gn", "fpn_channels": 32},
        box={"convs": 2, "conv_channels": 32, "norm": "gn", "layers": 1},
        mask={"norm": "gn", "channels": 32},
    ),
    "bgr": variant(input={"channels": "bgr"}),
    "ratio-major c4": variant(
        trunk={"neck": "c4"}, rpn={"anchors": dataclasses.replace(TINY.rpn.anchors, order="ratio_major")}, **C4_HEADS
    ),
    "competing": variant(mask={"scheme": "competing"}),
    "agnostic": variant(mask={"scheme": "agnostic"}),
    "mlp": variant(mask={"head": "mlp", "hidden": 24, "layers": 2}),
    "56 x 56": variant(mask={"roi_size": 14, "deconvs": 2}),
    "masks of pixels": variant(mask={"pixel_channels": 4}),
    "c4, masks of pixels": variant(
        trunk={"neck": "c4"}, **{**C4_HEADS, "mask": C4_HEADS["mask"] | {"pixel_channels": 4}}
    ),
    "class-agnostic boxes": variant(box={"class_agnostic": True}),
    "giou": variant(box={"box_loss": "giou"}),
    "focal": variant(box={"focal_gamma": 2.0}),
    "boxes": variant(mask=None),
    "keypoints": variant(mask=None, keypoint=KEYPOINT),
    "keypoints and masks": variant(keypoint=KEYPOINT),
    "proposals": variant(box=None, mask=None),
    "fast": variant(rpn=None),
    "fast cascade with keypoints": variant(rpn=None, box=CASCADE, mask=None, keypoint=KEYPOINT),
    "cascade": variant(box=CASCADE),
    "soft nms": variant(box={"nms": "soft_gaussian"}),
    **{op: variant(roi={"operation": op}) for op in get_args(RoIOperation)},
}


@pytest.fixture(params=list(VARIANTS))
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return VARIANTS[request.param]


def given(counts: list[int]) -> Batch:
    """All that a loader may hand over; what a variant has no use for it must not look at."""
    return with_proposals(with_keypoints(scene(counts)))


def build(config: ModelConfig) -> Any:
    torch.manual_seed(0)
    return build_model(config)


def test_every_word_of_the_config_is_there() -> None:
    assert set(TRUNKS) == set(get_args(Neck))
    assert set(MASK_SCHEMES) == set(get_args(MaskSchemeName))
    assert set(MASK_HEADS) == set(get_args(MaskHeadName))


def test_all_that_is_to_train_gets_a_gradient(config: ModelConfig) -> None:
    model = build(config).train()
    losses = model(given([3, 0, 2]))
    present = {"rpn": config.rpn, "box": config.box, "mask": config.mask, "keypoint": config.keypoint}
    assert {name.split("/")[0] for name in losses} == {name for name, section in present.items() if section}
    assert all(loss.ndim == 0 and loss.isfinite() and loss >= 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_loss_has_fixed_shapes(config: ModelConfig) -> None:
    """Under fake tensors whatever depends on the data raises."""
    model, batch = build(config).train(), given([3, 0, 2])
    assert batch.proposals is not None
    with FakeTensorMode() as mode:

        def fake(value: Any) -> Any:
            return type(value)(*(mode.from_tensor(getattr(value, f.name)) for f in dataclasses.fields(value)))

        targets: Targets = fake(batch.targets)
        inputs = Batch(
            *(mode.from_tensor(x) for x in (batch.images, batch.sizes, batch.original_sizes, batch.sample_ids)),
            targets,
            Proposals(*(mode.from_tensor(x) for x in batch.proposals)),
        )
        state = {n: mode.from_tensor(v) for n, v in (*model.named_parameters(), *model.named_buffers())}
        losses = torch.func.functional_call(model, state, (inputs,))
        torch.stack(list(losses.values())).sum().backward()
        assert all(state[name].grad is not None for name, p in model.named_parameters() if p.requires_grad)


def test_detects(config: ModelConfig) -> None:
    model = spread(build(config)).eval()
    found = model.predict(dataclasses.replace(given([2, 0]), targets=None))
    assert sum(len(one.boxes) for one in found) > 0
    for one in found:
        assert one.boxes.shape == (len(one.scores), 4) and ((one.classes >= 1) & (one.classes <= CLASSES)).all()
        assert (one.scores.diff() <= 0).all() and ((one.scores > 0) & (one.scores <= 1)).all()
        assert (one.masks is None) == (config.mask is None) and (one.keypoints is None) == (config.keypoint is None)
        if one.masks is not None:
            assert one.masks.shape == (len(one.scores), model.mask.size, model.mask.size)
            assert ((one.masks >= 0) & (one.masks <= 1)).all()
        if one.keypoints is not None:
            assert one.keypoints.shape == (len(one.scores), 4, 3)
            inside = (one.keypoints[..., :2] >= one.boxes[:, None, :2]) & (
                one.keypoints[..., :2] <= one.boxes[:, None, 2:]
            )
            wide = ((one.boxes[:, 2:] - one.boxes[:, :2]) >= 1).all(1)  # thinner boxes count as one pixel wide
            assert inside[wide].all()


@pytest.mark.parametrize("scheme", get_args(MaskSchemeName))
def test_a_few_steps_learn_the_masks(scheme: MaskSchemeName) -> None:
    model = build(variant(mask={"scheme": scheme, "convs": 2})).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    batch, first, last = scene([3, 2]), 0.0, 0.0
    for step in range(30):
        loss = model(batch)
        optimiser.zero_grad()
        torch.stack(list(loss.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        first, last = (loss["mask/mask"].item() if step == 0 else first), loss["mask/mask"].item()
    assert last < 0.75 * first


@pytest.mark.parametrize(
    ("body", "neck", "millions"),
    [  # of torchvision.models, without the classifier; and the paper's heads on top
        ("resnet50", "fpn", 44.4),
        ("resnet101", "fpn", 63.4),
        ("resnext101_32x8d", "fpn", 107.6),
    ],
)
def test_sizes_of_the_papers_models(body: BodyName, neck: Neck, millions: float) -> None:
    with torch.device("meta"):
        model = build_model(
            dataclasses.replace(
                ModelConfig(classes=91), trunk=dataclasses.replace(ModelConfig().trunk, body=body, neck=neck)
            )
        )
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
