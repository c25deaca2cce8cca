"""A stable colour for each class: the same in every picture of every run."""

import colorsys

Colour = tuple[int, int, int]  # RGB, 0..255

CROWD: Colour = (150, 150, 150)
_FIRST: tuple[Colour, ...] = (  # told apart by eye, also by most who see fewer colours
    (230, 57, 70),
    (0, 150, 255),
    (46, 204, 64),
    (255, 195, 0),
    (177, 60, 220),
    (255, 127, 14),
    (0, 206, 201),
    (255, 105, 180),
    (154, 205, 50),
    (95, 90, 255),
    (178, 101, 50),
    (0, 128, 96),
)
_GOLDEN = 0.61803398875  # steps of the golden ratio around the colour circle never come close to each other


def class_colour(class_index: int) -> Colour:
    """Colour of class 1..K."""
    if class_index <= len(_FIRST):
        return _FIRST[class_index - 1]
    hue = class_index * _GOLDEN % 1.0
    lightness = (0.45, 0.58, 0.7)[class_index % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.85)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever reads better on `background` (Rec. 601 luma)."""
    red, green, blue = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
