"""Keypoints of one instance, joined: a seen one is a disc, a hidden one a ring."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import ImageDraw

from pipeline.evaluation.colours import Colour

_DARK, _LIGHT = (20, 20, 20), (255, 255, 255)


def draw_skeleton(
    draw: ImageDraw.ImageDraw,
    points: npt.NDArray[np.float64],
    skeleton: Sequence[tuple[int, int]],
    colour: Colour,
    scale: float,
) -> None:
    """Draw the labelled ones of `points` [J, 3] (x, y of a pixel of the image, visibility), enlarged by `scale`.

    Lines are joined where both ends are labelled. No points, nothing drawn.
    """
    if not len(points):
        return
    labelled = points[points[:, 2] > 0]
    extent = float(np.ptp(labelled[:, :2], axis=0).max(initial=0)) * scale if len(labelled) else 0.0
    radius = min(5.0, max(2.0, extent / 40))  # small people keep their shape
    places = [((float(x) + 0.5) * scale, (float(y) + 0.5) * scale) for x, y, _ in points]
    for width, ink in ((radius + 2, _DARK), (radius, colour)):  # a dark rim stands out from any picture
        for a, b in skeleton:
            if points[a, 2] > 0 and points[b, 2] > 0:
                draw.line((places[a], places[b]), fill=ink, width=round(width))
    for (x, y), visibility in zip(places, points[:, 2], strict=True):
        if visibility > 0:
            fill = _LIGHT if visibility == 1 else colour
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline=_DARK)
