"""3x3 convolutions with ReLU, on which heads are built; with a norm they have no bias."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import HeadNorm
from model.heads.roi_norm import RoIBatchNorm
from model.trunks.resnet import conv_norm, make_norm


class ConvStack(nn.Module):
    """`count` convolutions of `width` channels; none is the identity."""

    def __init__(self, channels: int, width: int, count: int, norm: HeadNorm | None) -> None:
        super().__init__()
        widths = [channels] + [width] * count
        self.channels = widths[-1]
        self.conv = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=norm is None) for a, b in pairwise(widths))
        self.norm = nn.ModuleList(_norm_of_rois(norm, width) for _ in range(count))
        for layer in self.conv:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """x [R, C, H, W] -> [R, width, H, W]. real: bool [R], which RoIs count in a batch norm; None: all."""
        for conv, norm in zip(self.conv, self.norm, strict=True):
            counts = isinstance(norm, RoIBatchNorm) and norm.training  # else it is folded, or of each RoI alone
            x = F.relu(norm(conv(x), real) if counts else conv_norm(conv, norm, x), inplace=True)  # type: ignore[arg-type]
        return x


def _norm_of_rois(norm: HeadNorm | None, channels: int) -> nn.Module:
    if norm is None:
        return nn.Identity()
    return make_norm(norm, channels, 1e-5) if norm == "gn" else RoIBatchNorm(channels, 1e-5, norm == "sync_bn")
