"""Sizes and flips."""

import random

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.augment import draw_geometry, resized


def detectron2(h: int, w: int, size: int, max_size: int) -> tuple[int, int]:
    """ResizeShortestEdge.get_output_shape, as in detectron2/data/transforms/augmentation_impl.py."""
    scale = size * 1.0 / min(h, w)
    new_h, new_w = (size, scale * w) if h < w else (scale * h, size)
    if max(new_h, new_w) > max_size:
        scale = max_size * 1.0 / max(new_h, new_w)
        new_h, new_w = new_h * scale, new_w * scale
    return int(new_h + 0.5), int(new_w + 0.5)


@given(st.integers(20, 3000), st.integers(20, 3000), st.integers(16, 1000), st.integers(1000, 2000))
@example(83, 166, 800, 1333)  # halves: the order of the roundings decides
@example(50, 172, 736, 1333)
@example(110, 620, 672, 1333)
@settings(max_examples=1000)
def test_sizes_are_detectron2s(height: int, width: int, shorter: int, longest: int) -> None:
    expected = detectron2(height, width, shorter, longest)
    if min(expected) > 0:
        assert resized(height, width, shorter, longest) == expected


@pytest.mark.parametrize(
    ("image", "limits", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),  # COCO's usual sizes, as in every log of that recipe
        ((640, 480), (800, 1333), (1067, 800)),
        ((427, 640), (800, 1333), (800, 1199)),
        ((300, 640), (800, 1333), (625, 1333)),  # the longer side decides
        ((640, 300), (800, 1333), (1333, 625)),
        ((1024, 2048), (1024, 2048), (1024, 2048)),
        ((500, 500), (800, 1333), (800, 800)),
        ((1, 5000), (800, 1333), (1, 1333)),  # never 0
    ],
)
def test_known_sizes(image: tuple[int, int], limits: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized(*image, *limits) == expected


def test_the_flip_comes_from_seed_epoch_and_sample_alone() -> None:
    def flips(seed: int, epochs: range, samples: range) -> list[bool]:
        return [draw_geometry(40, 60, 30, 99, 0.5, seed, e, s).flip for e in epochs for s in samples]

    first = flips(5, range(3), range(50))
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    torch.manual_seed(1)
    backwards = [draw_geometry(90, 20, 64, 99, 0.5, 5, e, s).flip for e in range(2, -1, -1) for s in range(49, -1, -1)]
    assert backwards[::-1] == first  # nor the order, nor the picture's size
    assert flips(6, range(3), range(50)) != first
    assert first[:50] != first[50:100] != first[100:]  # epochs
    assert 0.4 < np.mean(flips(0, range(10), range(200))) < 0.6


@pytest.mark.parametrize(("probability", "flipped"), [(0.0, {False}), (1.0, {True})])
def test_never_and_always(probability: float, flipped: set[bool]) -> None:
    assert {draw_geometry(40, 60, 30, 99, probability, 0, 0, s).flip for s in range(200)} == flipped


def test_a_geometry_says_what_happens() -> None:
    geometry = draw_geometry(480, 640, 800, 1333, 1.0, 0, 0, 1)
    assert (geometry.height, geometry.width, geometry.new_height, geometry.new_width) == (480, 640, 800, 1067)


def test_any_64_bit_sample_id_works() -> None:
    draws = {s: [draw_geometry(4, 6, 3, 9, 0.5, 0, e, s).flip for e in range(64)] for s in (0, 2**63 - 1, -1, -(2**63))}
    assert all(any(flips) and not all(flips) for flips in draws.values())
