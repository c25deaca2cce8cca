"""Mask head: a small network on every RoI, fully convolutional or not (Mask R-CNN figure 4, table 2e)."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import MaskConfig
from model.heads.conv_stack import ConvStack
from model.heads.mask_scheme import MaskScheme
from model.ops.masked_mean import masked_mean
from model.types import Losses


class FCN(nn.Module):
    """Convolutions keep the layout of the crop; each deconvolution doubles its side."""

    def __init__(self, channels: int, side: int, masks: int, config: MaskConfig) -> None:
        super().__init__()
        self.size = side * 2**config.deconvs
        self.convs = ConvStack(channels, config.channels, config.convs, config.norm)
        widths = [self.convs.channels] + [config.channels] * config.deconvs
        self.deconvs = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairwise(widths))
        self.pixels = None if config.pixel_channels is None else Pixels(config.pixel_channels, widths[-1])
        self.predictor = nn.Conv2d(widths[-1], masks, 1)
        for layer in self.deconvs:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def forward(self, crops: Tensor, wanted: Tensor | None, pixels: Tensor | None, real: Tensor | None) -> Tensor:
        """crops [R, C, P, P] and perhaps pixels [R, 3, m, m] -> logits [R, masks, m, m].

        wanted: int64 [R], the one mask to make of each RoI: logits are [R, 1, m, m] then.
        real: bool [R], which RoIs count in a batch norm; None: all.
        """
        x = self.convs(crops, real)
        for deconv in self.deconvs:
            x = F.relu(deconv(x), inplace=True)
        if self.pixels is not None:
            x = self.pixels(x, pixels)
        if wanted is None:
            return self.predictor(x)  # type: ignore[no-any-return]
        # 79 of COCO's 80 masks would be thrown away: at 28 x 28 they are the largest tensor of the head but one.
        assert self.predictor.bias is not None
        weight = self.predictor.weight.flatten(1).index_select(0, wanted)[:, :, None]  # [R, C, 1]
        bias = self.predictor.bias.index_select(0, wanted)[:, None, None]
        pixelwise = x.permute(0, 2, 3, 1).flatten(1, 2)  # [R, m * m, C], a view where channels are last
        return torch.baddbmm(bias, pixelwise, weight).reshape(-1, 1, self.size, self.size)


class Pixels(nn.Module):
    """Mixes what the picture itself shows of a RoI into the features, at the resolution of the mask (ours).

    The finest features have a stride of 4 pixels: a small object is a handful of cells, however many bins are read of
    them, and its outline is in the pixels.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.look = nn.Conv2d(3, width, 3, padding=1)
        self.lift = nn.Conv2d(width, channels, 3, padding=1)
        self.mix = nn.Conv2d(channels, channels, 3, padding=1)
        for layer in (self.look, self.lift, self.mix):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, pixels: Tensor) -> Tensor:
        """x [R, C, m, m], pixels [R, 3, m, m] of the normalised input -> [R, C, m, m]."""
        seen = self.lift(F.relu(self.look(pixels), inplace=True))
        return F.relu(self.mix(F.relu(x + seen, inplace=True)), inplace=True)


class MLP(nn.Module):
    """Fully connected layers, which know nothing of the crop's layout (Mask R-CNN table 2e)."""

    def __init__(self, channels: int, side: int, masks: int, config: MaskConfig) -> None:
        super().__init__()
        self.size = config.mlp_size
        widths = [channels * side**2] + [config.hidden] * config.layers
        self.fc = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.predictor = nn.Linear(widths[-1], masks * self.size**2)
        for layer in self.fc:
            nn.init.kaiming_uniform_(layer.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, crops: Tensor, wanted: Tensor | None, pixels: Tensor | None, real: Tensor | None) -> Tensor:
        """crops [R, C, P, P] -> logits [R, masks, m, m], or [R, 1, m, m] of those `wanted` int64 [R].

        No pixels are read, and there is no norm for `real`.
        """
        x = crops.flatten(1)
        for layer in self.fc:
            x = F.relu(layer(x), inplace=True)
        logits = self.predictor(x).unflatten(1, (-1, self.size, self.size))
        if wanted is None:
            return logits  # type: ignore[no-any-return]
        index = wanted[:, None, None, None].expand(-1, 1, self.size, self.size)
        return logits.gather(1, index)  # type: ignore[no-any-return]


class MaskHead(nn.Module):
    """Crops -> mask logits. Legend: R RoIs, K classes, m mask side."""

    def __init__(self, layers: FCN | MLP, config: MaskConfig, scheme: MaskScheme) -> None:
        super().__init__()
        self.config = config
        self.layers = layers
        self.scheme = scheme

    @property
    def size(self) -> int:
        """Mask side m."""
        return self.layers.size

    def forward(
        self, crops: Tensor, classes: Tensor, pixels: Tensor | None = None, real: Tensor | None = None
    ) -> Tensor:
        """crops [R, C, P, P] of classes int64 [R] (0..K) -> logits float32 [R, channels, m, m].

        All channels of the scheme, or the one that the class wants. With config.pixel_channels it reads pixels
        [R, 3, m, m] of the normalised input too. `real` bool [R]: which RoIs count in a batch norm; None: all.
        """
        return self.layers(crops, self.scheme.wanted(classes), pixels, real).float()  # type: ignore[no-any-return]

    def losses(self, logits: Tensor, classes: Tensor, target: Tensor, positive: Tensor) -> Losses:
        """Mean over the pixels of positive RoIs. Logits as `forward` has them for `classes` int64 [R].

        target [R, m, m], positive bool [R].
        """
        loss = self.scheme.loss(logits, classes, target).mean((1, 2))
        return {"mask/mask": masked_mean(loss, positive, positive.sum())}

    def probabilities(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Foreground probability [R, m, m]. Logits as `forward` has them for `classes` int64 [R], the detected ones."""
        return self.scheme.probabilities(logits, classes)
