import dataclasses
from typing import get_args

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from model.config import BodyName, Norm, TrunkConfig
from model.trunks.bodies import OTHERS
from model.trunks.resnet import SHAPES, FrozenBatchNorm2d, ResNet, make_norm
from model.weights.loading import load_matching

STAGES = ("layer1", "layer2", "layer3", "layer4")


def reference(depth: BodyName, seed: int = 0) -> nn.Module:
    """torchvision's classifier with batch norms that do something."""
    torch.manual_seed(seed)
    network = torchvision.models.get_model(depth, weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.4, 0.8)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network


def features(network: nn.Module, images: Tensor) -> list[Tensor]:
    return list(IntermediateLayerGetter(network, {name: name for name in STAGES})(images).values())


def ours(network: nn.Module, config: TrunkConfig) -> ResNet:
    body = ResNet(config)
    report = load_matching(body, network.state_dict())
    assert not report.missing and not report.mismatched
    assert set(report.left) == {"fc.weight", "fc.bias"}
    return body


def assert_equal(got: list[Tensor], expected: list[Tensor]) -> None:
    assert len(got) == len(expected) == 4
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("depth", ["resnet18", "resnet50"])
@pytest.mark.parametrize("norm", ["frozen_bn", "bn"])
@pytest.mark.parametrize("shape", [(64, 96), (75, 51)])
def test_eval_equals_torchvision(depth: BodyName, norm: Norm, shape: tuple[int, int]) -> None:
    network = reference(depth).eval()
    body = ours(network, TrunkConfig(depth, norm=norm)).eval()
    images = torch.randn(2, 3, *shape)
    with torch.no_grad():
        got, expected = body(images), features(network, images)
    assert_equal(got, expected)
    assert [f.shape[1] for f in got] == body.channels
    assert [f.shape[2:] for f in got] == [tuple(-(-side // s) for side in shape) for s in (4, 8, 16, 32)]
    if norm == "frozen_bn":
        body.train()
        assert_equal(body(images), expected)


@pytest.mark.parametrize("depth", ["resnet18", "resnet50"])
def test_train_equals_torchvision(depth: BodyName) -> None:
    network = reference(depth).train()
    body = ours(network, TrunkConfig(depth, norm="bn", freeze_stages=0)).train()
    images = torch.randn(3, 3, 64, 64)
    got, expected = body(images), features(network, images)
    assert_equal(got, expected)
    (got[3] * expected[3].detach()).mean().backward()
    (expected[3] * expected[3].detach()).mean().backward()
    statistics, gradients = dict(network.named_buffers()), dict(network.named_parameters())
    for name, value in body.named_buffers():
        torch.testing.assert_close(value, statistics[name], rtol=1e-3, atol=1e-4)
    for name, parameter in body.named_parameters():
        other = gradients[name].grad
        assert parameter.grad is not None and other is not None
        assert (parameter.grad - other).norm() <= 1e-3 * other.norm(), name


def test_gradients_through_folded_norms() -> None:
    network = reference("resnet18").eval()
    body = ours(
        network, TrunkConfig("resnet18", norm="bn", freeze_stages=0)
    ).eval()  # affine parameters train in eval too
    images = torch.randn(1, 3, 64, 64)
    got, expected = body(images)[3], features(network, images)[3]
    (got * expected.detach()).mean().backward(), (expected * expected.detach()).mean().backward()
    gradients = dict(network.named_parameters())
    for name, parameter in body.named_parameters():
        other = gradients[name].grad
        assert parameter.grad is not None and other is not None
        assert (parameter.grad - other).norm() <= 1e-3 * other.norm(), name


def test_stride_in_the_first_convolution() -> None:
    network = reference("resnet50").eval()
    for name in STAGES[1:]:
        block = network.get_submodule(f"{name}.0")
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)
    config = TrunkConfig("resnet50", stride_in="1x1")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        got, expected = ours(network, config).eval()(images), features(network, images)
        other = ours(network, dataclasses.replace(config, stride_in="3x3")).eval()(images)
    assert_equal(got, expected)
    assert (other[1] - got[1]).abs().max() > 0.1 * got[1].abs().max()


@pytest.mark.parametrize("depth", list(SHAPES))
def test_names_and_shapes_are_torchvisions(depth: BodyName) -> None:
    with torch.device("meta"):
        body = ResNet(TrunkConfig(depth, norm="bn"))
        if depth == "resnext152_32x8d":  # torchvision names no such model, its parts make one
            bottleneck = torchvision.models.resnet.Bottleneck
            theirs = torchvision.models.ResNet(bottleneck, [3, 8, 36, 3], groups=32, width_per_group=8)
        else:
            theirs = torchvision.models.get_model(depth, weights=None)
    shapes = {name: value.shape for name, value in body.state_dict().items()}
    expected = {name: value.shape for name, value in theirs.state_dict().items() if not name.startswith("fc.")}
    assert shapes == expected


@pytest.mark.parametrize("width", [32, 96])
@pytest.mark.parametrize("depth", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_width_scales_every_layer(depth: BodyName, width: int) -> None:
    """As torchvision's, whose inputs and outputs of every convolution are width / 64 of the usual."""
    with torch.device("meta"):
        body = ResNet(TrunkConfig(depth, width=width, norm="gn"))
        usual = ResNet(TrunkConfig(depth, norm="gn"))
    assert body.channels == [channels * width // 64 for channels in usual.channels]
    for name, module in body.named_modules():
        if isinstance(module, nn.Conv2d):
            other = usual.get_submodule(name)
            assert isinstance(other, nn.Conv2d) and module.groups == other.groups
            assert module.out_channels == other.out_channels * width // 64
            assert name == "conv1" or module.in_channels == other.in_channels * width // 64


@pytest.mark.parametrize(
    ("body", "width", "said"),
    [
        ("resnet50", 48, "width must be a multiple of 32, got 48"),
        ("resnet50", 0, "width must be at least 1, got 0"),
        ("convnext_tiny", 32, "width must be 64 with body convnext_tiny, got 32"),
    ],
)
def test_widths_that_cannot_be(body: BodyName, width: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TrunkConfig(body, width=width)


def test_every_depth_of_the_config_is_there() -> None:
    assert set(SHAPES) | set(OTHERS) == set(get_args(BodyName))


def test_every_norm_of_the_config_is_there() -> None:
    for norm in get_args(Norm):
        layer = make_norm(norm, 64, 1e-3)
        assert layer.eps == 1e-3
        assert layer.weight.shape == layer.bias.shape == (64,)


def test_group_norm_by_hand() -> None:
    layer, x = make_norm("gn", 64, 1e-5), torch.randn(2, 64, 5, 7) * 3 + 1
    groups = x.reshape(2, 32, -1)  # 32 groups
    expected = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(x), expected.reshape(x.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["bn", "gn", "frozen_bn"])
@pytest.mark.parametrize("stages", range(6))
def test_frozen_stages(stages: int, norm: Norm) -> None:
    with torch.device("meta"):
        body = ResNet(TrunkConfig("resnet50", norm=norm, freeze_stages=stages))
    frozen = {name.split(".")[0] for name, p in body.named_parameters() if not p.requires_grad}
    trained = {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad}
    stem = {"conv1"} if norm == "frozen_bn" else {"conv1", "bn1"}
    assert frozen == ((stem if stages > 0 else set()) | set(STAGES[: max(0, stages - 1)]))
    assert trained == (stem | set(STAGES)) - frozen


@pytest.mark.parametrize("stages", [0, 1, 2, 5])
def test_batch_norm_of_frozen_stages_keeps_its_statistics(stages: int) -> None:
    body = ResNet(TrunkConfig("resnet18", norm="bn", freeze_stages=stages)).eval().train()
    before = {name: value.clone() for name, value in body.named_buffers()}
    body(torch.randn(2, 3, 64, 64))
    moved = {name.split(".")[0] for name, value in body.named_buffers() if not torch.equal(value, before[name])}
    assert moved == {*STAGES, "bn1"} - ({"bn1"} if stages else set()) - set(STAGES[: max(0, stages - 1)])


def test_frozen_norm_has_no_parameters() -> None:
    layer = FrozenBatchNorm2d(8, 1e-5)
    assert not list(layer.parameters())
    assert set(layer.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


def test_small_epsilon_matters() -> None:
    network = reference("resnet18").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        small = ours(network, TrunkConfig("resnet18", norm_eps=1e-5)).eval()(images)[3]
        large = ours(network, TrunkConfig("resnet18", norm_eps=0.3)).eval()(images)[3]
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.3
        expected = features(network, images)[3]
    assert (small - large).abs().max() > 1e-2
    torch.testing.assert_close(large, expected, rtol=1e-3, atol=1e-4)


def test_initialisation() -> None:
    torch.manual_seed(0)
    body = ResNet(TrunkConfig("resnet18", norm="bn"))
    for name, module in body.named_modules():
        if isinstance(module, nn.Conv2d):  # He et al. 2015, fan out, for ReLU
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03), name
            assert module.bias is None
