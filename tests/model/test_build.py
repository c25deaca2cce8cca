import dataclasses
from typing import get_args

import pytest
import torch
import torchvision
from tiny_model import CLASSES, TINY, without_masks
from torch import nn

from model.build import MASK_SCHEMES, build_model
from model.config import MaskSchemeName, ModelConfig


def test_every_mask_scheme_of_the_config_is_there() -> None:
    assert set(MASK_SCHEMES) == set(get_args(MaskSchemeName))


def test_classes_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"model\.classes is null"):
        build_model(dataclasses.replace(TINY, classes=None))


def test_seed_gives_the_weights() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build_model(TINY).state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_no_mask_is_faster_rcnn() -> None:
    whole, boxes = build_model(TINY), build_model(without_masks(TINY))
    assert boxes.mask is None
    assert set(whole.state_dict()) - set(boxes.state_dict()) == {n for n in whole.state_dict() if n.startswith("mask.")}


def test_shapes_follow_the_config() -> None:
    model = build_model(TINY)
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    assert shapes["box.fc.0.weight"] == [32, 16 * 7 * 7] and shapes["box.fc.1.weight"] == [32, 32]
    assert shapes["box.scores.weight"] == [CLASSES + 1, 32] and shapes["box.deltas.weight"] == [4 * CLASSES, 32]
    assert shapes["mask.layers.predictor.weight"] == [CLASSES, 16, 1, 1]
    assert shapes["rpn.objectness.weight"] == [3, 16, 1, 1] and shapes["rpn.deltas.weight"] == [12, 16, 1, 1]


def test_default_is_as_large_as_torchvisions() -> None:
    with torch.device("meta"):
        ours = build_model(ModelConfig(classes=90))
        theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)

    def size(model: nn.Module) -> int:
        return sum(v.numel() for name, v in model.state_dict().items() if not name.endswith("num_batches_tracked"))

    assert size(theirs) - size(ours) == 4 * 1025 + 257  # no boxes and no mask of the background


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(TINY, trunk=dataclasses.replace(TINY.trunk, fpn_channels=256), classes=80))
    assert model.mask is not None
    expected = {  # standard deviations of detectron2's recipe
        model.rpn.conv[0]: 0.01,
        model.rpn.objectness: 0.01,
        model.rpn.deltas: 0.01,
        model.box.scores: 0.01,
        model.box.deltas: 0.001,
        model.mask.layers.predictor: 0.001,
        model.box.fc[0]: (256 * 7 * 7) ** -0.5,  # Caffe2's XavierFill: 1 / sqrt(fan in)
        model.box.fc[1]: 32**-0.5,
        model.mask.layers.convs.conv[0]: (2 / (16 * 9)) ** 0.5,  # He, fan out
    }
    for layer, std in expected.items():
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1), layer
        assert layer.weight.mean().abs() < 5 * std / layer.weight.numel() ** 0.5
        assert layer.bias is not None and not layer.bias.any()
