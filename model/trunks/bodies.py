"""Bodies other than ResNets, from torchvision, and the one place that knows them all.

A body gives C2..C5, the last features at strides 4, 8, 16 and 32, and its parameters have torchvision's names.
"""

from functools import partial
from typing import Protocol

import torchvision
from torch import Tensor, nn

from model.config import BodyName, TrunkConfig
from model.trunks.resnet import SHAPES, ResNet, make_norm


class Body(Protocol):
    """What trunks ask of a body."""

    channels: list[int]  # of C2..C5

    def __call__(self, images: Tensor, stages: int = 4) -> list[Tensor]:
        """images float [B, 3, H, W] -> C2..C5, or the first `stages` of them."""

    def stage(self, number: int) -> nn.Module:
        """Stage 1..4, which ends in C2..C5."""


class FeatureBody(nn.Module):
    """A torchvision classifier whose `features` are a sequence: stage i ends before features[ends[i]]."""

    def __init__(
        self, features: nn.Sequential, ends: tuple[int, int, int, int], channels: list[int], freeze: int
    ) -> None:
        super().__init__()
        self.features = features[: ends[-1]]
        self.channels = channels
        self._starts = (0, *ends)
        self._frozen = (0, *ends)[max(freeze - 1, 0)]  # stage 1 holds the stem: freezing that alone freezes nothing
        self.features[: self._frozen].requires_grad_(False)

    def stage(self, number: int) -> nn.Sequential:
        """Stage 1 (with the stem) .. 4."""
        return self.features[self._starts[number - 1] : self._starts[number]]

    def train(self, mode: bool = True) -> "FeatureBody":
        """As nn.Module.train, but batch norm of frozen stages keeps its statistics."""
        super().train(mode)
        self.features[: self._frozen].train(False)
        return self

    def forward(self, images: Tensor, stages: int = 4) -> list[Tensor]:
        """images float [B, 3, H, W] -> C2..C5, or the first `stages`."""
        x, found = images, []
        for number in range(1, stages + 1):
            x = self.stage(number)(x)
            found.append(x)
        return found


def _mobilenet_v3_large(config: TrunkConfig) -> FeatureBody:
    # A stage is all blocks of one stride; the last convolution (960 channels) belongs to the fifth.
    norm = partial(make_norm, config.norm, eps=config.norm_eps)
    network = torchvision.models.mobilenet_v3_large(weights=None, norm_layer=lambda channels: norm(channels=channels))
    return FeatureBody(network.features, (4, 7, 13, 17), [24, 40, 112, 960], config.freeze_stages)


def _convnext_tiny(config: TrunkConfig) -> FeatureBody:
    # It has layer norms of its own, whatever trunk.norm is (Liu et al. 2022).
    network = torchvision.models.convnext_tiny(weights=None)
    return FeatureBody(network.features, (2, 4, 6, 8), [96, 192, 384, 768], config.freeze_stages)


BODIES: dict[BodyName, type[ResNet]] = dict.fromkeys(SHAPES, ResNet)
OTHERS = {"mobilenet_v3_large": _mobilenet_v3_large, "convnext_tiny": _convnext_tiny}


def make_body(config: TrunkConfig) -> Body:
    """The body of a configuration, randomly initialised."""
    return OTHERS[config.body](config) if config.body in OTHERS else BODIES[config.body](config)
