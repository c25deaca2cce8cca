"""What a trunk is to the heads: it makes a pyramid of an image, and crops of RoIs from it. They never know which."""

from typing import Protocol

from torch import Tensor

Pyramid = dict[int, Tensor]  # level l -> [B, C, H / 2^l, W / 2^l]


class Trunk(Protocol):
    """FPN, C4 or C5. Legend: R RoIs, C channels."""

    channels: int  # of every level of the pyramid, which the RPN sees
    crop_channels: int  # of a crop, which the heads see

    def __call__(self, images: Tensor) -> Pyramid:
        """images float [B, 3, H, W], H and W multiples of 32 -> the levels, finest first."""

    def crop(self, pyramid: Pyramid, boxes: Tensor, image_index: Tensor, size: int) -> Tensor:
        """Features [R, C, side, side] of boxes [R, 4] (input pixels) in images [R], read at `size` bins an axis."""

    def crop_side(self, size: int) -> int:
        """Side of the crops that are read at `size` bins an axis."""
