"""How mask logits of several classes compete (Mask R-CNN 3, table 2b): channels, loss and probabilities of a scheme."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class MaskScheme(Protocol):
    """One scheme. Legend: R RoIs, K classes, m mask side."""

    def channels(self, classes: int) -> int:
        """Output channels of the predictor."""

    def loss(self, logits: Tensor, classes: Tensor, target: Tensor) -> Tensor:
        """Per-pixel loss [R, m, m].

        logits [R, channels, m, m], classes int64 [R] (1..K), target float32 [R, m, m] in 0..1.
        """

    def probabilities(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Foreground probability [R, m, m] for each RoI's class."""


class Independent:
    """A sigmoid a class; only the true class's mask is trained: masks do not compete with one another."""

    def channels(self, classes: int) -> int:
        """One mask a class."""
        return classes

    def _own(self, logits: Tensor, classes: Tensor) -> Tensor:
        return logits.gather(1, _of_class(logits, (classes - 1).clamp(min=0)))[:, 0]

    def loss(self, logits: Tensor, classes: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy on the true class's mask."""
        return F.binary_cross_entropy_with_logits(self._own(logits, classes), target, reduction="none")

    def probabilities(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Sigmoid of the class's own mask."""
        return torch.sigmoid(self._own(logits, classes))


class Competing:
    """A softmax over the classes and background at every pixel, as FCNs have it (Mask R-CNN table 2b)."""

    def channels(self, classes: int) -> int:
        """Background first, then one a class."""
        return classes + 1

    def loss(self, logits: Tensor, classes: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy; a pixel of the object has its class, any other one is background."""
        own = logits.log_softmax(1).gather(1, _of_class(logits, classes))[:, 0]
        return -(target * own + (1 - target) * logits.log_softmax(1)[:, 0])

    def probabilities(self, logits: Tensor, classes: Tensor) -> Tensor:
        """The class's share of the softmax."""
        return logits.softmax(1).gather(1, _of_class(logits, classes))[:, 0]


class Agnostic:
    """One sigmoid mask whatever the class."""

    def channels(self, classes: int) -> int:
        """One for all."""
        return 1

    def loss(self, logits: Tensor, classes: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy."""
        return F.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")

    def probabilities(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Sigmoid."""
        return torch.sigmoid(logits[:, 0])


def _of_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Index [R, 1, m, m] of each RoI's channel `classes` [R]."""
    return classes[:, None, None, None].expand(-1, 1, *logits.shape[-2:])
