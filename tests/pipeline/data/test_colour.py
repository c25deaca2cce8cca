"""Colours: against Pillow, and nothing moves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from tiny_records import blob, picture, record

from pipeline.data.augment import Recipe, whole_picture
from pipeline.data.collate import Work, collate
from pipeline.data.colour import ColourShift, draw_colour, shift_colours

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def shifted(image: np.ndarray, *steps: tuple[int, float]) -> np.ndarray:
    planes = shift_colours(torch.from_numpy(image).permute(2, 0, 1), ColourShift(steps))
    return planes.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
def test_factors_are_pillows(which: int, factor: float) -> None:
    image = picture(50, 70)
    expected = np.asarray(ENHANCERS[which](Image.fromarray(image)).enhance(factor)).astype(int)
    assert np.abs(shifted(image, (which, factor)) - expected).max() <= 2


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.25])
def test_the_hue_turns(turn: float) -> None:
    image = picture(50, 70)
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] += np.uint8(round(turn * 255) % 256)
    expected = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB")).astype(int)
    assert np.abs(shifted(image, (3, turn)) - expected).mean() <= 2.5  # Pillow's HSV has 256 hues


def test_steps_come_in_their_order() -> None:
    image = picture(50, 70)
    one, other = (0, 1.8), (1, 0.5)
    assert np.array_equal(shifted(image, one, other), shifted(shifted(image, one), other))
    assert not np.array_equal(shifted(image, one, other), shifted(image, other, one))


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_colours_do_not_move_anything(draw: int, shuffle: int) -> None:
    shift = draw_colour(np.random.default_rng(draw), (0.5, 0.5, 0.5, 0.3), 1.0)
    assert shift is not None
    image = picture(20, 30)
    order = np.random.default_rng(shuffle).permutation(600)
    mixed = image.reshape(-1, 3)[order].reshape(20, 30, 3)
    expected = shifted(image, *shift.steps).reshape(-1, 3)[order].reshape(20, 30, 3)
    assert np.abs(shifted(mixed, *shift.steps).astype(int) - expected).max() <= 1  # contrast's mean rounds apart


def test_ground_truth_and_padding_are_not_coloured() -> None:
    own = record(1, 40, 60, [blob(40, 60, 3, 5, 17, 12)])
    plain = Recipe(whole_picture(40, 60, 30, 45, True), (30, 45), None, None)
    bright = Recipe(plain.geometry, plain.canvas, ColourShift(((0, 2.0), (3, 0.2))), None)
    first, second = (collate([Work(own, r)], 32, "crop", None, lambda *_: None) for r in (plain, bright))
    assert first.targets is not None and second.targets is not None
    assert torch.equal(first.targets.boxes, second.targets.boxes)
    assert torch.equal(first.targets.masks, second.targets.masks)  # type: ignore[arg-type]
    assert second.images.float().mean() > 1.2 * first.images.float().mean()
    assert not second.images[0, 30:].any() and not second.images[0, :, 45:].any()


def test_factors_are_drawn_from_their_ranges() -> None:
    seen: dict[int, list[float]] = {k: [] for k in range(4)}
    firsts = []
    for seed in range(500):
        shift = draw_colour(np.random.default_rng(seed), (0.2, 2.0, 0.5, 0.1), 1.0)
        assert shift is not None
        firsts.append(shift.steps[0][0])
        for which, amount in shift.steps:
            seen[which].append(amount)
    for which, (low, high) in enumerate([(0.8, 1.2), (0.0, 3.0), (0.5, 1.5), (-0.1, 0.1)]):
        assert len(seen[which]) == 500
        reach = high - low
        assert low <= min(seen[which]) < low + 0.02 * reach and high - 0.02 * reach < max(seen[which]) <= high
    assert set(firsts) == {0, 1, 2, 3}
    assert draw_colour(np.random.default_rng(0), (0.2, 0, 0, 0), 0.0) is None
