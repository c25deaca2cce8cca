"""Feature pyramid network (Lin et al. 2017) over a body: the trunk of Mask R-CNN R50-FPN and its kin."""

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import RoIConfig, TrunkConfig
from model.ops.roi import RoIs, assign_levels, crop_rois
from model.trunks.bodies import make_body
from model.trunks.resnet import make_norm
from model.trunks.trunk import Pyramid


class FPN(nn.Module):
    """Trunk: `forward(images)` makes a pyramid P2..P6, `crop` reads RoIs from P2..P5."""

    def __init__(self, config: TrunkConfig, roi: RoIConfig) -> None:
        super().__init__()
        self.roi = roi
        width = config.fpn_channels
        self.channels = self.crop_channels = width
        self.body = make_body(config)
        bias = config.fpn_norm is None
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1, bias=bias) for c in self.body.channels)
        self.output = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=bias) for _ in self.body.channels)
        norms = [_norm_or_none(config) for _ in range(2 * len(self.body.channels))]
        self.lateral_norm, self.output_norm = nn.ModuleList(norms[0::2]), nn.ModuleList(norms[1::2])
        for conv in [*self.lateral, *self.output]:
            nn.init.kaiming_uniform_(conv.weight, a=1)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, images: Tensor) -> Pyramid:
        """images float [B, 3, H, W], H and W multiples of 32 -> {2: P2, ..., 6: P6}."""
        features = self.body(images)
        top: Tensor | None = None
        pyramid: Pyramid = {}
        for index in reversed(range(4)):
            lateral = self.lateral_norm[index](self.lateral[index](features[index]))
            top = lateral if top is None else lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
            pyramid[index + 2] = self.output_norm[index](self.output[index](top))
        pyramid[6] = F.max_pool2d(pyramid[5], 1, 2)  # a subsampled P5, for the largest anchors only (FPN 4.1)
        return dict(sorted(pyramid.items()))

    def crop(self, pyramid: Pyramid, boxes: Tensor, image_index: Tensor, size: int) -> Tensor:
        """Features float32 [R, C, size, size] of boxes [R, 4] (pixels of the input) in images [R]."""
        levels = assign_levels(boxes, self.roi.canonical_size_px, self.roi.canonical_level, 2, 5)
        return crop_rois(
            self.roi.operation,
            [pyramid[level] for level in (2, 3, 4, 5)],
            (4, 8, 16, 32),
            RoIs(boxes, image_index, levels),
            size,
            self.roi.sampling_ratio,
            self.roi.aligned,
        )

    def crop_side(self, size: int) -> int:
        """As it is read."""
        return size


def _norm_or_none(config: TrunkConfig) -> nn.Module:
    if config.fpn_norm is None:
        return nn.Identity()
    return make_norm(config.fpn_norm, config.fpn_channels, config.norm_eps)
