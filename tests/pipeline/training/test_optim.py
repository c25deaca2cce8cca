"""The learning rate of every step, and which weights decay how much."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from model.build import build_model
from model.config import ModelConfig, TrunkConfig
from pipeline.config import OptimConfig
from pipeline.training.optim import lr_at, make_sgd, peak_lr, set_lr

COCO_1X = OptimConfig()  # lr 0.02 for 16 images, warm-up of 1000 steps from 0.001, 60000 and 80000


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.02 * 0.001),
        (500, 0.02 * (0.001 * 0.5 + 0.5)),  # detectron2: _get_warmup_factor_at_iter
        (999, 0.02 * (0.001 * 0.001 + 0.999)),
        (1000, 0.02),
        (59999, 0.02),
        (60000, 0.002),
        (79999, 0.002),
        (80000, 0.0002),
        (10**7, 0.0002),
    ],
)
def test_the_coco_schedule(step: int, lr: float) -> None:
    assert lr_at(COCO_1X, 16, step) == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(("batch", "lr"), [(8, 0.01), (16, 0.02), (2, 0.0025), (64, 0.08)])
def test_the_peak_is_linear_in_the_batch(batch: int, lr: float) -> None:
    assert peak_lr(COCO_1X, batch) == pytest.approx(lr)
    assert lr_at(COCO_1X, batch, 5000) == pytest.approx(lr)
    assert lr_at(COCO_1X, batch, 0) == pytest.approx(lr * 0.001)


def test_without_warm_up_or_milestones_it_is_constant() -> None:
    config = OptimConfig(warmup_steps=0, milestones=(), lr_batch_images=4)
    assert {lr_at(config, 4, step) for step in (0, 1, 1000, 10**6)} == {0.02}


def test_a_milestone_inside_the_warm_up_counts_too() -> None:
    config = OptimConfig(warmup_steps=100, warmup_factor=0.0, milestones=(50,), lr_batch_images=16)
    assert lr_at(config, 16, 60) == pytest.approx(0.02 * 0.6 * 0.1)


def test_set_lr_reaches_every_group() -> None:
    optimiser = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 1.0}, {"params": [torch.zeros(1)]}], lr=2.0)
    set_lr(optimiser, 0.5)
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.5]


@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "gn"])
@pytest.mark.parametrize("freeze", [0, 2, 5])
def test_each_trainable_parameter_is_in_one_group_with_its_decay(norm: str, freeze: int) -> None:
    trunk = TrunkConfig(body="resnet18", norm=norm, freeze_stages=freeze, fpn_channels=32)  # type: ignore[arg-type]
    model = build_model(ModelConfig(classes=3, trunk=trunk))
    config = replace(OptimConfig(), weight_decay=0.1, weight_decay_norm=0.2, weight_decay_bias=0.3)
    optimiser = make_sgd(model, config)
    grouped = [id(p) for group in optimiser.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}
    norms = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm)
        for own, _ in module.named_parameters()
    }
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = 0.2 if name in norms else 0.3 if name.endswith("bias") else 0.1
            assert decay[id(parameter)] == expected, name
    assert freeze == 0 or any(not p.requires_grad for p in model.parameters())
    assert (norm == "frozen_bn" or freeze == 5) or norms  # the test would else not see 0.2


def test_the_groups_do_not_depend_on_the_decays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    equal = make_sgd(model, OptimConfig(momentum=0.7, weight_decay=0.1, weight_decay_norm=0.1, weight_decay_bias=0.1))
    other = make_sgd(model, OptimConfig(weight_decay=0.1, weight_decay_norm=0.2, weight_decay_bias=0.0))
    for a, b in zip(equal.param_groups, other.param_groups, strict=True):
        assert [id(p) for p in a["params"]] == [id(p) for p in b["params"]]
    assert [group["weight_decay"] for group in other.param_groups] == [0.1, 0.2, 0.0]
    assert {group["momentum"] for group in equal.param_groups} == {0.7}
    assert {group["lr"] for group in equal.param_groups} == {0.0}  # the loop sets it before every step


def test_a_step_is_sgd_with_momentum_by_hand() -> None:
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.fill_(1.0)
    optimiser = make_sgd(model, OptimConfig(momentum=0.5, weight_decay=0.1, weight_decay_bias=0.0))
    for gradient in (1.0, 3.0):
        set_lr(optimiser, 0.1)
        model.weight.grad = torch.full_like(model.weight, gradient)
        model.bias.grad = torch.full_like(model.bias, gradient)
        optimiser.step()
    first = 1.0 + 0.1 * 2.0
    weight = 2.0 - 0.1 * first
    second = 0.5 * first + 3.0 + 0.1 * weight
    assert model.weight.item() == pytest.approx(weight - 0.1 * second)
    assert model.bias.item() == pytest.approx(1.0 - 0.1 * 1.0 - 0.1 * 3.5)
