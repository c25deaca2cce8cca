import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.data.outline import fill, outlines, trace, whole_pixels


def blob(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = Image.new("1", (50, 40))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 6)):
        x, y, r = rng.integers(50), rng.integers(40), rng.integers(1, 14)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=1)
        draw.line((x, y, *rng.integers(0, 40, 2)), fill=1, width=int(rng.integers(1, 4)))
    return np.asarray(image)


def components(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """8-connected, by flooding."""
    left = set(zip(*(a.tolist() for a in np.nonzero(mask)), strict=True))
    found = []
    while left:
        todo, part = [left.pop()], set()
        while todo:
            y, x = todo.pop()
            part.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo += near
        found.append(part)
    return found


def outside(part: set[tuple[int, int]], shape: tuple[int, int]) -> np.ndarray:
    """What can be reached from the frame without crossing the part, over edges."""
    height, width = shape
    todo, seen = [(-1, -1)], {(-1, -1)}
    while todo:
        y, x = todo.pop()
        for p in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if p not in seen and p not in part and -1 <= p[0] <= height and -1 <= p[1] <= width:
                seen.add(p)
                todo.append(p)
    return np.array([[(y, x) in seen for x in range(width)] for y in range(height)])


@pytest.mark.parametrize("seed", range(25))
def test_outlines_fill_each_part_and_its_holes(seed: int) -> None:
    mask = blob(seed)
    found = list(outlines(mask))
    covered = np.zeros_like(mask)
    for polygon, inside in found:
        assert np.array_equal(fill(polygon, *mask.shape), inside)
        covered |= inside
    assert not (mask & ~covered).any()
    for part in components(mask):
        solid = np.zeros_like(mask)
        solid[tuple(np.array(list(part)).T)] = True
        closed = ~outside(part, mask.shape)
        polygon = trace(solid)
        assert np.array_equal(fill(polygon, *mask.shape), closed)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (4, 6)])
def test_full_and_tiny_masks(shape: tuple[int, int]) -> None:
    mask = np.ones(shape, bool)
    ((polygon, inside),) = outlines(mask)
    assert inside.all() and len(polygon) >= 2
    assert list(outlines(np.zeros(shape, bool))) == []


def test_whole_pixels_are_cut_at_the_picture() -> None:
    square = np.array([(-100.0, -50.0), (6.5, -50.0), (6.5, 3.5), (-100.0, 3.5)])
    assert sorted(whole_pixels(square, 10, 20)) == [[0, 0], [0, 3], [6, 0], [6, 3]]
    everything = np.array([(-9.0, -9.0), (90.0, -9.0), (90.0, 90.0), (-9.0, 90.0)])
    assert fill(whole_pixels(everything, 10, 20), 10, 20).all()
    assert whole_pixels(square - (200, 0), 10, 20) == []
    inside = np.array([(2.5, 2.5), (8.5, 2.5), (5.5, 7.5)])
    assert whole_pixels(inside, 10, 20) == [[2, 2], [8, 2], [5, 7]]
