"""How mask logits of several classes compete (Mask R-CNN 3, table 2b): channels, loss and probabilities of a scheme."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class MaskScheme(Protocol):
    """One scheme. Legend: R RoIs, K classes, m mask side."""

    def channels(self, classes: int) -> int:
        """Output channels of the predictor."""

    def wanted(self, classes: Tensor) -> Tensor | None:
        """Which channel int64 [R] of the predictor RoIs of `classes` int64 [R] (0..K) need; None: all."""

    def loss(self, logits: Tensor, classes: Tensor, target: Tensor) -> Tensor:
        """Per-pixel loss [R, m, m].

        logits [R, 1 or channels, m, m] as `wanted`, classes int64 [R] (1..K), target float32 [R, m, m] in 0..1.
        """

    def probabilities(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Foreground probability [R, m, m] for each RoI's class."""


class Agnostic:
    """One sigmoid mask whatever the class."""

    def channels(self, classes: int) -> int:
        """One for all."""
        return 1

    def wanted(self, classes: Tensor) -> Tensor | None:
        """There is but one."""
        return None

    def loss(self, logits: Tensor, classes: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy."""
        return F.binary_cross_entropy_with_logits(logits.squeeze(1), target, reduction="none")

    def probabilities(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Sigmoid."""
        return torch.sigmoid(logits.squeeze(1))


class Independent(Agnostic):
    """A sigmoid a class; only the true class's mask is made and trained: masks do not compete with one another."""

    def channels(self, classes: int) -> int:
        """One mask a class."""
        return classes

    def wanted(self, classes: Tensor) -> Tensor | None:
        """The class's own; background, which counts for nothing, may have any."""
        return (classes - 1).clamp(min=0)


class Competing:
    """A softmax over the classes and background at every pixel, as FCNs have it (Mask R-CNN table 2b)."""

    def channels(self, classes: int) -> int:
        """Background first, then one a class."""
        return classes + 1

    def wanted(self, classes: Tensor) -> Tensor | None:
        """All."""
        return None

    def loss(self, logits: Tensor, classes: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy; a pixel of the object has its class, any other one is background."""
        own = logits.log_softmax(1).gather(1, _of_class(logits, classes))[:, 0]
        return -(target * own + (1 - target) * logits.log_softmax(1)[:, 0])

    def probabilities(self, logits: Tensor, classes: Tensor) -> Tensor:
        """The class's share of the softmax."""
        return logits.softmax(1).gather(1, _of_class(logits, classes))[:, 0]


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Index [R, 1, m, m] of each RoI's channel `classes` [R]."""
    return classes[:, None, None, None].expand(-1, 1, *logits.shape[-2:])
