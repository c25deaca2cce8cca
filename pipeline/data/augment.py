"""What is drawn for a sample before it trains: window, size, flip, colours, and what is pasted into it.

A recipe is drawn from (seed, epoch, sample_id) alone, and each kind of augmentation has a generator of its own: turning
one on does not change what another one does.
"""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.config import AugmentConfig
from pipeline.data.colour import ColourShift, draw_colour

# The second number of a generator's seed; the plan (order, scales, partners) has the other ones below 10.
_FLIP, _CROP, _JITTER, _COLOUR, _PASTE = 2, 10, 11, 12, 13


@dataclass(frozen=True)
class Geometry:
    """How a picture of (height, width) becomes an input: a window of it is resized, then perhaps flipped."""

    height: int  # of the picture, pixels
    width: int
    left: int  # the window, whole pixels of the picture; never empty and never outside
    top: int
    window_height: int
    window_width: int
    new_height: int  # of the input, pixels
    new_width: int
    flip: bool  # horizontally

    @property
    def whole(self) -> bool:
        """The window is the picture."""
        return (self.window_height, self.window_width) == (self.height, self.width)

    @property
    def scales(self) -> tuple[float, float]:
        """(x, y): pixels of the input a pixel of the picture."""
        return self.new_width / self.window_width, self.new_height / self.window_height


@dataclass(frozen=True)
class Recipe:
    """Everything that happens to one sample in one epoch."""

    geometry: Geometry
    canvas: tuple[int, int]  # (height, width), pixels: how large the input may become when something is pasted into it
    colour: ColourShift | None
    paste_seed: tuple[int, ...] | None  # draws the instances that a partner gives, where it has one; None: never


def whole_picture(height: int, width: int, new_height: int, new_width: int, flip: bool = False) -> Geometry:
    """The whole picture, resized."""
    return Geometry(height, width, 0, 0, height, width, new_height, new_width, flip)


def plain_recipe(height: int, width: int, shorter_px: int, longest_px: int) -> Recipe:
    """A resize and nothing else: evaluation and prediction."""
    size = resized(height, width, shorter_px, longest_px)
    return Recipe(whole_picture(height, width, *size), size, None, None)


def resized(height: int, width: int, shorter_px: int, longest_px: int) -> tuple[int, int]:
    """(height, width) with the shorter side at `shorter_px`, unless the longer one would pass `longest_px`.

    Rounds half up, with the roundings of detectron2's ResizeShortestEdge in their order: halves do occur, and another
    order puts some of them on the other side.
    """
    scale = shorter_px / min(height, width)
    new_height, new_width = (shorter_px, scale * width) if height < width else (scale * height, shorter_px)
    if max(new_height, new_width) > longest_px:
        scale = longest_px / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def draw_recipe(
    height: int,
    width: int,
    size_px: int,
    longest_px: int,
    options: AugmentConfig,
    seed: int,
    epoch: int,
    sample_id: int,
) -> Recipe:
    """The recipe of a sample in an epoch. Whether something is pasted into it, and from where, is the plan's to draw.

    Args:
        height: of the picture, pixels.
        width: of the picture, pixels.
        size_px: of the batch: the shorter side of the input (`resize: shortest`), or the side of the square canvas
            (`resize: jitter`).
        longest_px: the longer side at most (`resize: shortest`).
        options: what may happen, and how often.
        seed: of the run.
        epoch: of the sample; where one comes several times an epoch, the number of its visit.
        sample_id: any 64-bit integer.
    """

    def generator(kind: int) -> np.random.Generator:
        return np.random.default_rng((seed, kind, epoch, sample_id % 2**63))

    geometry = whole_picture(height, width, height, width, bool(generator(_FLIP).random() < options.flip_probability))
    if options.crop_share is not None:
        geometry = _draw_crop(generator(_CROP), geometry, options.crop_share, options.crop_probability)
    if options.resize == "jitter":
        geometry = _draw_jitter(generator(_JITTER), geometry, options.jitter_scale, size_px)
        canvas = (size_px, size_px)
    else:
        canvas = resized(geometry.window_height, geometry.window_width, size_px, longest_px)
        geometry = replace(geometry, new_height=canvas[0], new_width=canvas[1])
    colour = None
    strengths = (options.brightness, options.contrast, options.saturation, options.hue)
    if any(strengths):
        colour = draw_colour(generator(_COLOUR), strengths, options.colour_probability)
    return Recipe(geometry, canvas, colour, (seed, _PASTE, epoch, sample_id % 2**63))


def _draw_crop(
    generator: np.random.Generator, geometry: Geometry, share: tuple[float, float], probability: float
) -> Geometry:
    """A window with a share of each side, anywhere: detectron2's RandomCrop "relative_range" with an upper end."""
    chance, *sides, y, x = generator.random(5).tolist()
    if chance >= probability:
        return geometry
    height, width = (
        min(side, max(1, int(side * (share[0] + u * (share[1] - share[0])) + 0.5)))
        for side, u in zip((geometry.height, geometry.width), sides, strict=True)
    )
    top, left = int(y * (geometry.height - height + 1)), int(x * (geometry.width - width + 1))
    return replace(geometry, left=left, top=top, window_height=height, window_width=width)


def _draw_jitter(
    generator: np.random.Generator, geometry: Geometry, scale: tuple[float, float], canvas_px: int
) -> Geometry:
    """Large-scale jitter (Ghiasi et al. 2021; detectron2's ResizeScale + FixedSizeCrop).

    The picture is fitted into the canvas times a random scale; what is larger than the canvas is cut to a random
    window of it. The window is cut before resizing, in whole pixels of the picture, so a side that is cut is off by
    half a pixel of the picture at most. x and y are drawn apart (detectron2 places both with one number).
    """
    u, *places = generator.random(3).tolist()
    height, width = geometry.window_height, geometry.window_width
    factor = canvas_px * (scale[0] + u * (scale[1] - scale[0])) / max(height, width)
    starts, windows, sizes = [], [], []
    for side, place in zip((height, width), places, strict=True):
        window, new = side, max(1, round(side * factor))
        if new > canvas_px:
            window, new = min(side, max(1, round(canvas_px / factor))), canvas_px
        starts.append(int(place * (side - window + 1)))
        windows.append(window)
        sizes.append(new)
    return replace(
        geometry,
        top=geometry.top + starts[0],
        left=geometry.left + starts[1],
        window_height=windows[0],
        window_width=windows[1],
        new_height=sizes[0],
        new_width=sizes[1],
    )


def cut_to(geometry: Geometry, canvas: tuple[int, int]) -> Geometry:
    """The geometry without what would lie right of or below a canvas (height, width) before the flip."""
    height, width = min(geometry.new_height, canvas[0]), min(geometry.new_width, canvas[1])
    x_scale, y_scale = geometry.scales
    return replace(
        geometry,
        window_height=min(geometry.window_height, max(1, round(height / y_scale))),
        window_width=min(geometry.window_width, max(1, round(width / x_scale))),
        new_height=height,
        new_width=width,
    )
