"""Mask head: a small fully convolutional network on every RoI (Mask R-CNN figure 4, right)."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MaskConfig
from model.heads.mask_scheme import MaskScheme
from model.types import Losses


class MaskHead(nn.Module):
    """Crops -> mask logits at twice the crop's size. Legend: R RoIs, K classes, m mask side."""

    def __init__(self, channels: int, classes: int, config: MaskConfig, scheme: MaskScheme) -> None:
        super().__init__()
        self.config = config
        self.scheme = scheme
        widths = [channels] + [config.channels] * config.convs
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.deconv = nn.ConvTranspose2d(widths[-1], config.channels, 2, 2)
        self.predictor = nn.Conv2d(config.channels, scheme.channels(classes), 1)
        for layer in [*self.convs, self.deconv]:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    @property
    def size(self) -> int:
        """Mask side m."""
        return 2 * self.config.roi_size

    def forward(self, crops: Tensor) -> Tensor:
        """crops [R, C, P, P] -> logits float32 [R, channels of the scheme, 2P, 2P]."""
        x = crops
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        return self.predictor(F.relu(self.deconv(x), inplace=True)).float()  # type: ignore[no-any-return]

    def losses(self, logits: Tensor, classes: Tensor, target: Tensor, positive: Tensor) -> Losses:
        """Mean over the pixels of positive RoIs. classes int64 [R], target [R, m, m], positive bool [R]."""
        loss = self.scheme.loss(logits, classes, target).mean((1, 2))
        return {"mask/mask": (loss * positive).sum() / positive.sum().clamp(min=1)}

    def probabilities(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Foreground probability [R, m, m] for the detected classes int64 [R]."""
        return self.scheme.probabilities(logits, classes)
