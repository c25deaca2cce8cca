"""Random pictures with objects, as our model and torchvision's take them, and proposals near the objects for both.

With random weights a proposal network finds nothing, and what a step costs depends on how many of the sampled RoIs are
positive. So boxes near the objects take the place of the last proposals, the same ones in both models.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.heads.rpn import RPN
from model.mask_rcnn import MaskRCNN
from model.types import CROP_SIZE, Batch, Proposals, Targets


@dataclass(frozen=True)
class Scene:
    """One batch. Legend: B images, G objects an image, N planted proposals an image."""

    batch: Batch  # for ours: masks as crops
    images: list[Tensor]  # for torchvision: B of float32 [3, H, W] in 0..1
    targets: list[dict[str, Tensor]]  # for torchvision: boxes, labels, full-resolution masks uint8 [G, H, W]
    planted: Tensor  # float32 [B, N, 4] xyxy


def make_scene(
    images: int, size: tuple[int, int], classes: int, objects: int, positives: int, device: torch.device, seed: int = 0
) -> Scene:
    """Noise with elliptic objects of 32 to 400 px in images of `size` (height, width), on `device`.

    Args:
        images: of the batch, B.
        size: pixels; nothing is padded.
        classes: object classes are drawn from 1..classes.
        objects: of each image, G.
        positives: RoIs of each image that train the mask head; boxes with an IoU above 0.7 with an object are planted
            for them, beside the objects themselves.
        device: of everything.
        seed: of the randomness.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    limit = torch.tensor([width, height], dtype=torch.float32)
    side = torch.rand(images, objects, 2, generator=generator) * torch.log(torch.tensor(12.5))
    side = torch.minimum(32 * side.exp(), limit * 0.9)
    corner = torch.rand(images, objects, 2, generator=generator) * (limit - side)
    boxes = torch.cat([corner, corner + side], -1)  # [B, G, 4]
    around = max(positives - objects, 0)
    owner = torch.arange(around) % objects
    # Corners move by at most 6 % of the side: the IoU stays above 0.7.
    shift = (torch.rand(images, around, 4, generator=generator) - 0.5) * 0.12
    planted = boxes[:, owner] + shift * side[:, owner].repeat(1, 1, 2)
    planted = torch.minimum(planted.clamp(min=0), limit.repeat(2))
    labels = torch.randint(1, classes + 1, (images, objects), generator=generator)
    pixels = torch.randint(0, 256, (images, height, width, 3), dtype=torch.uint8, generator=generator)
    cell = (torch.arange(CROP_SIZE) + 0.5) / CROP_SIZE - 0.5
    disk = (cell[:, None] ** 2 + cell**2 <= 0.25).to(torch.uint8)
    targets = Targets(
        boxes, labels, torch.ones(images, objects, dtype=torch.bool), disk.expand(images, objects, -1, -1).contiguous()
    )
    sizes = torch.tensor([size] * images)
    batch = Batch(pixels, sizes, sizes, torch.arange(images), targets)
    return Scene(
        batch.to(device),
        [(picture.permute(2, 0, 1).float() / 255).to(device) for picture in pixels],
        [
            {"boxes": b.to(device), "labels": c.to(device), "masks": _ellipses(b, size).to(device)}
            for b, c in zip(boxes, labels, strict=True)
        ],
        planted.to(device),
    )


def _ellipses(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [G, H, W]: the ellipse in each box."""
    y, x = torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5
    centre, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    across = ((x - centre[:, :1]) / radius[:, :1]) ** 2  # [G, W]
    down = ((y - centre[:, 1:]) / radius[:, 1:]) ** 2  # [G, H]
    return (across[:, None] + down[..., None] <= 1).to(torch.uint8)


def plant(ours: MaskRCNN, peer: nn.Module | None, planted: Tensor) -> None:
    """From now on training proposals end in `planted`; all the work of proposing is still done."""
    assert isinstance(ours.rpn, RPN)
    count, propose = planted.shape[1], ours.rpn.propose

    def ours_with(*arguments: Any) -> Proposals:
        boxes, logits, real = propose(*arguments)
        if not ours.training or count == 0:
            return Proposals(boxes, logits, real)
        real = torch.cat([real[:, :-count], torch.ones_like(real[:, -count:])], 1)
        return Proposals(torch.cat([boxes[:, :-count], planted], 1), logits, real)

    ours.rpn.propose = ours_with  # type: ignore[method-assign,assignment]
    if peer is None:
        return
    rpn: Any = peer.rpn
    filter_proposals = rpn.filter_proposals

    def theirs_with(*arguments: Any) -> tuple[list[Tensor], list[Tensor]]:
        boxes, scores = filter_proposals(*arguments)
        if peer.training and count:
            boxes = [torch.cat([own[:-count], more]) for own, more in zip(boxes, planted, strict=True)]
        return boxes, scores

    rpn.filter_proposals = theirs_with
