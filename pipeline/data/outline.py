"""A mask -> the polygon around it, in whole pixels: Pillow's filled polygon is the mask again, holes closed."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Bools = NDArray[np.bool_]
Polygon = list[list[int]]  # [x, y] of corner pixels, clockwise as one sees it

_AROUND = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))  # dx, dy, clockwise from the right


def outlines(mask: Bools) -> Iterator[tuple[Polygon, Bools]]:
    """Each connected part (corners connect) of a mask [H, W]: its outline, and its pixels with those of its holes."""
    left = mask.copy()
    while left.any():
        polygon = trace(left)
        inside = fill(polygon, *mask.shape)
        yield polygon, inside
        left &= ~inside


def trace(mask: Bools) -> Polygon:
    """The outline of the part that has the first pixel in reading order (Moore's neighbour tracing)."""
    height, width = mask.shape[0] + 2, mask.shape[1] + 2
    pixels = np.zeros((height, width), dtype=np.bool_)  # a frame of zeros: every neighbour exists
    pixels[1:-1, 1:-1] = mask
    flat = pixels.tobytes()
    offsets = [dx + dy * width for dx, dy in _AROUND]
    start = int(np.flatnonzero(pixels)[0])
    at, heading, first = start, 0, None
    corners: list[int] = []
    while True:
        for turn in range(-2, 6):  # keeping the outside on the left hand
            step = (heading + turn) % 8
            if flat[at + offsets[step]]:
                break
        else:
            return [[start % width - 1, start // width - 1]] * 2  # a pixel alone; a polygon has two points at least
        if at == start and step == first:
            break
        if first is None:
            first = step
        if step != heading or not corners:
            corners.append(at)
        at, heading = at + offsets[step], step
    return [[corner % width - 1, corner // width - 1] for corner in corners]


def whole_pixels(points: NDArray[np.float64], height: int, width: int) -> Polygon:
    """Corners [N, 2] x, y in pixels -> those of the part inside the picture; empty where there is none.

    Sutherland and Hodgman: cut at each of the picture's edges in turn.
    """
    corners = [(float(x) - 0.5, float(y) - 0.5) for x, y in points]  # a pixel's number is half a pixel off its centre
    for axis, limit, sign in ((0, 0, 1), (0, width - 1, -1), (1, 0, 1), (1, height - 1, -1)):
        kept: list[tuple[float, float]] = []
        for a, b in zip(corners, [*corners[1:], *corners[:1]], strict=True):
            inside_a, inside_b = sign * (a[axis] - limit) >= 0, sign * (b[axis] - limit) >= 0
            if inside_a:
                kept.append(a)
            if inside_a != inside_b:
                share = (limit - a[axis]) / (b[axis] - a[axis])
                kept.append((a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])))
        corners = kept
    polygon = [[round(x), round(y)] for x, y in corners]
    return polygon if len(polygon) >= 3 else []


def fill(polygon: Polygon, height: int, width: int) -> Bools:
    """The pixels [H, W] that Pillow fills for a polygon."""
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).polygon([(x, y) for x, y in polygon], fill=1)
    return np.asarray(image).astype(np.bool_)
