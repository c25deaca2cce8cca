"""Trunks of one level: C4, whose fifth stage is the first part of the heads, and C5 (Mask R-CNN 3, table 2)."""

import torch
from torch import Tensor, nn

from model.config import RoIConfig, TrunkConfig
from model.ops.roi import RoIs, crop_rois
from model.trunks.bodies import make_body
from model.trunks.trunk import Pyramid


class C4(nn.Module):
    """The fourth stage (stride 16) is the pyramid; every crop of it goes through the fifth."""

    def __init__(self, config: TrunkConfig, roi: RoIConfig) -> None:
        super().__init__()
        self.roi = roi
        self.body = make_body(config)
        self.channels, self.crop_channels = self.body.channels[2], self.body.channels[3]

    def forward(self, images: Tensor) -> Pyramid:
        """images float [B, 3, H, W] -> {4: C4}."""
        return {4: self.body(images, 3)[-1]}

    def crop(self, pyramid: Pyramid, boxes: Tensor, image_index: Tensor, size: int) -> Tensor:
        """Features [R, C, size / 2, size / 2] after the fifth stage."""
        crops = _read(self.roi, pyramid[4], 16, boxes, image_index, size)
        crops = crops.contiguous(memory_format=torch.channels_last)
        return self.body.stage(4)(crops)  # type: ignore[no-any-return]

    def crop_side(self, size: int) -> int:
        """The fifth stage has a stride of 2."""
        return -(-size // 2)


class C5(nn.Module):
    """The fifth stage (stride 32) is the pyramid, and crops are read from it as they are."""

    def __init__(self, config: TrunkConfig, roi: RoIConfig) -> None:
        super().__init__()
        self.roi = roi
        self.body = make_body(config)
        self.channels = self.crop_channels = self.body.channels[3]

    def forward(self, images: Tensor) -> Pyramid:
        """images float [B, 3, H, W] -> {5: C5}."""
        return {5: self.body(images)[-1]}

    def crop(self, pyramid: Pyramid, boxes: Tensor, image_index: Tensor, size: int) -> Tensor:
        """Features [R, C, size, size]."""
        return _read(self.roi, pyramid[5], 32, boxes, image_index, size)

    def crop_side(self, size: int) -> int:
        """As it is read."""
        return size


def _read(roi: RoIConfig, level: Tensor, stride: int, boxes: Tensor, image_index: Tensor, size: int) -> Tensor:
    rois = RoIs(boxes, image_index, torch.zeros_like(image_index))
    return crop_rois(roi.operation, [level], (stride,), rois, size, roi.sampling_ratio, roi.aligned)
