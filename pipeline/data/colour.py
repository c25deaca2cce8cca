"""Random colours: brightness, contrast, saturation and hue, as torchvision's ColorJitter draws and applies them."""

from dataclasses import dataclass

import numpy as np
import torchvision.transforms.v2.functional as colours
from torch import Tensor

_ADJUST = (colours.adjust_brightness, colours.adjust_contrast, colours.adjust_saturation, colours.adjust_hue)


@dataclass(frozen=True)
class ColourShift:
    """What happens to the colours of a picture, in this order: (which, how much)."""

    steps: tuple[tuple[int, float], ...]  # 0 brightness, 1 contrast, 2 saturation (factors); 3 hue (turns, -0.5..0.5)


def draw_colour(
    generator: np.random.Generator, strengths: tuple[float, float, float, float], probability: float
) -> ColourShift | None:
    """Strength s of brightness, contrast and saturation: a factor in [max(0, 1 - s), 1 + s]; of hue: in [-s, s].

    All numbers are drawn whatever the strengths are, so that setting one does not change another.
    """
    chance, *uniform = generator.random(5).tolist()
    order = generator.permutation(4).tolist()
    if chance >= probability:
        return None
    lows = [*(max(0.0, 1.0 - s) for s in strengths[:3]), -strengths[3]]
    highs = [*(1.0 + s for s in strengths[:3]), strengths[3]]
    return ColourShift(tuple((k, lows[k] + uniform[k] * (highs[k] - lows[k])) for k in order if strengths[k] > 0))


def shift_colours(planes: Tensor, shift: ColourShift) -> Tensor:
    """uint8 [3, H, W] RGB -> the same with other colours; rounded to uint8 after each step, as torchvision does."""
    for which, amount in shift.steps:
        planes = _ADJUST[which](planes, amount)
    return planes
