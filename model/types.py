"""What flows into and out of the network. Background is class 0, objects are 1..K. Boxes are xyxy in pixels.

Shape legend: B images, G ground-truth slots, P proposals, H x W padded input, N detections, m mask size, C crop size
(112), J keypoints.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

CROP_SIZE = 112  # side of the ground-truth mask crops that training reads, in cells
Losses = dict[
    str, Tensor
]  # scalars: "rpn/objectness", "rpn/box", "box/class", "box/box", "mask/mask", "keypoint/keypoint"

_T = TypeVar("_T", "Targets", "Batch")


def _to(value: _T, device: torch.device | str) -> _T:
    moved: dict[str, Any] = {
        f.name: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v
        for f in fields(value)
        if (v := getattr(value, f.name)) is not None
    }
    return replace(value, **moved)


@dataclass(frozen=True)
class Targets:
    """Ground truth, padded to G slots an image; `valid` tells real from padding. Crowd regions are not in here."""

    boxes: Tensor  # float32 [B, G, 4] xyxy, pixels of the network's input
    classes: Tensor  # int64 [B, G], 1..K
    valid: Tensor  # bool [B, G]
    masks: Tensor | None  # uint8 [B, G, C, C] relative to its box, or [B, G, H, W] for mask.target "image"
    # float32 [B, G, J, 3] x, y (continuous pixels of the input) and visibility: 0 not labelled or not in the input,
    # 1 hidden, 2 seen. Zeros where the visibility is 0. None where the data has no keypoints.
    keypoints: Tensor | None = None

    def to(self, device: torch.device | str) -> "Targets":
        """The same targets on `device`."""
        return _to(self, device)


class Proposals(NamedTuple):
    """Boxes to look at, best first, padded to P slots an image: the RPN's, or another system's (Fast R-CNN)."""

    boxes: Tensor  # float32 [B, P, 4] xyxy, pixels of the input
    scores: Tensor  # float32 [B, P], more is better; the RPN's are logits
    real: Tensor  # bool [B, P], the rest fills up the slots


@dataclass(frozen=True)
class Batch:
    """Images of one padded shape, as the loader hands them over: uint8, normalised on the device."""

    images: Tensor  # uint8 [B, H, W, 3] RGB, zero padded at the right and the bottom
    sizes: Tensor  # int64 [B, 2] (height, width) before padding
    original_sizes: Tensor  # int64 [B, 2] (height, width) of the source image
    sample_ids: Tensor  # int64 [B]
    targets: Targets | None
    proposals: Proposals | None = None  # of another system, for a model without an RPN

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`, targets and proposals included."""
        moved = _to(replace(self, targets=None, proposals=None), device)
        given = self.proposals
        return replace(
            moved,
            targets=None if self.targets is None else self.targets.to(device),
            proposals=None if given is None else Proposals(*(t.to(device, non_blocking=True) for t in given)),
        )


@dataclass(frozen=True)
class Detections:
    """What was found in one image, in pixels of the ORIGINAL image, best score first."""

    boxes: Tensor  # float32 [N, 4] xyxy
    scores: Tensor  # float32 [N]
    classes: Tensor  # int64 [N], 1..K
    masks: Tensor | None  # float32 [N, m, m] probabilities inside each box; model/ops/masks.py pastes them
    size: tuple[int, int]  # (height, width) of the original image
    keypoints: Tensor | None = None  # float32 [N, J, 3] x, y and a score (a logit, comparable within a keypoint)
