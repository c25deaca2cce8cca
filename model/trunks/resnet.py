"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017) with the parameter names of torchvision, so that its ImageNet
weights load by name.
"""

from collections import OrderedDict
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import BodyName, Norm, StrideIn, TrunkConfig
from model.trunks.non_local import NonLocal


class Shape(NamedTuple):
    """What tells one of the family from another."""

    blocks: tuple[int, int, int, int]  # of the four stages
    bottleneck: bool = True  # 1x1-3x3-1x1 blocks, else 3x3-3x3
    groups: int = 1  # of the 3x3 convolution (ResNeXt: its cardinality)
    group_width: int = 64  # channels a group in the first stage of a body of width 64


SHAPES: dict[BodyName, Shape] = {
    "resnet18": Shape((2, 2, 2, 2), bottleneck=False),
    "resnet34": Shape((3, 4, 6, 3), bottleneck=False),
    "resnet50": Shape((3, 4, 6, 3)),
    "resnet101": Shape((3, 4, 23, 3)),
    "resnet152": Shape((3, 8, 36, 3)),
    "resnext50_32x4d": Shape((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": Shape((3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": Shape((3, 4, 23, 3), groups=64, group_width=4),
    "resnext152_32x8d": Shape((3, 8, 36, 3), groups=32, group_width=8),
}


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with constant statistics and affine parameters: a scale and a shift a channel."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))


def make_norm(norm: Norm, channels: int, eps: float) -> nn.Module:
    """A normalisation layer over `channels`."""
    match norm:
        case "frozen_bn":
            return FrozenBatchNorm2d(channels, eps)
        case "bn":
            return nn.BatchNorm2d(channels, eps)
        case "sync_bn":
            return nn.SyncBatchNorm(channels, eps)
        case "gn":
            return nn.GroupNorm(32, channels, eps)  # Wu & He 2018: 32 groups


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """norm(conv(x)); with constant statistics the norm is folded into the convolution on the fly."""
    if not (isinstance(norm, FrozenBatchNorm2d) or (isinstance(norm, nn.BatchNorm2d) and not norm.training)):
        return norm(conv(x))  # type: ignore[no-any-return]
    assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return F.conv2d(
        x, conv.weight * scale[:, None, None, None], shift, conv.stride, conv.padding, conv.dilation, conv.groups
    )


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


class Block(nn.Module):
    """A residual block: 3x3-3x3 ("basic") or 1x1-3x3-1x1 ("bottleneck"). `planes` is its width in a plain ResNet,
    64 in the first stage of the usual one.
    """

    def __init__(self, inputs: int, planes: int, stride: int, shape: Shape, config: TrunkConfig) -> None:
        super().__init__()
        basic = not shape.bottleneck
        outputs = planes if basic else planes * 4
        width = planes * shape.group_width * shape.groups // 64
        norm = partial(make_norm, config.norm, eps=config.norm_eps)
        if basic:
            self.conv1, self.conv2 = _conv(inputs, width, 3, stride), _conv(width, width, 3)
        else:
            first: StrideIn = "1x1"
            self.conv1 = _conv(inputs, width, 1, stride if config.stride_in == first else 1)
            self.conv2 = _conv(width, width, 3, 1 if config.stride_in == first else stride, shape.groups)
        self.bn1, self.bn2 = norm(channels=width), norm(channels=width)
        self.conv3 = None if basic else _conv(width, outputs, 1)
        self.bn3 = None if basic else norm(channels=outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), norm(channels=outputs))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> [B, C', H / stride, W / stride]."""
        shortcut = x if self.downsample is None else conv_norm(self.downsample[0], self.downsample[1], x)  # type: ignore[arg-type]
        x = F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        x = conv_norm(self.conv2, self.bn2, x)
        if self.conv3 is not None and self.bn3 is not None:
            x = conv_norm(self.conv3, self.bn3, F.relu(x, inplace=True))
        return F.relu(x + shortcut, inplace=True)


class ResNet(nn.Module):
    """The body: stem, then four stages at strides 4, 8, 16, 32."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, config.width, 7, 2, 3, bias=False)
        self.bn1 = make_norm(config.norm, config.width, config.norm_eps)
        shape = SHAPES[config.body]
        inputs = config.width
        self.channels: list[int] = []  # of the four stages
        for stage, blocks in enumerate(shape.blocks):
            planes = config.width * 2**stage
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers[str(block)] = Block(inputs, planes, stride, shape, config)
                inputs = planes * 4 if shape.bottleneck else planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(layers))
            self.channels.append(inputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if config.non_local:  # after the initialisation above: it has one of its own
            *blocks_before, last = self.stage(3).named_children()
            added: tuple[str, nn.Module] = ("non_local", NonLocal(self.channels[2]))
            self.add_module("layer3", nn.Sequential(OrderedDict([*blocks_before, added, last])))
        frozen: list[nn.Module] = [self.conv1, self.bn1, *(self.stage(i) for i in range(1, config.freeze_stages))]
        for module in frozen if config.freeze_stages > 0 else []:
            module.requires_grad_(False)
        self._frozen_stages = config.freeze_stages

    def stage(self, number: int) -> nn.Module:
        """Stage 1..4."""
        return self.get_submodule(f"layer{number}")

    def train(self, mode: bool = True) -> "ResNet":
        """As nn.Module.train, but batch norm of frozen stages keeps its statistics."""
        super().train(mode)
        if self._frozen_stages > 0:
            self.bn1.train(False)
        for number in range(1, self._frozen_stages):
            self.stage(number).train(False)
        return self

    def forward(self, images: Tensor, stages: int = 4) -> list[Tensor]:
        """images float [B, 3, H, W] -> C2..C5 at H / 4, H / 8, H / 16 and H / 32; or the first `stages` of them."""
        x = F.relu(conv_norm(self.conv1, self.bn1, images), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for number in range(1, stages + 1):
            x = self.stage(number)(x)
            features.append(x)
        return features
