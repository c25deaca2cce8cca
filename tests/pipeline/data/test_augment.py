"""What is drawn: sizes, flips, windows; from (seed, epoch, sample) alone, each kind on its own."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import AugmentConfig
from pipeline.data.augment import Geometry, Recipe, cut_to, draw_recipe, plain_recipe, resized, whole_picture

EVERYTHING = AugmentConfig(
    resize="jitter",
    crop_share=(0.3, 1.0),
    crop_probability=0.7,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    colour_probability=0.7,
)


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


def draw(
    sample_id: int = 0, epoch: int = 0, seed: int = 0, size: tuple[int, int] = (40, 60), **options: object
) -> Recipe:
    return draw_recipe(*size, 32, 99, AugmentConfig(**options), seed, epoch, sample_id)  # type: ignore[arg-type]


def test_the_flip_comes_from_seed_epoch_and_sample_alone() -> None:
    def flips(seed: int, epochs: range, samples: range) -> list[bool]:
        return [draw(s, e, seed).geometry.flip for e in epochs for s in samples]

    first = flips(5, range(3), range(50))
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator must not matter
    torch.manual_seed(1)
    backwards = [draw(s, e, 5, (90, 20)).geometry.flip for e in range(2, -1, -1) for s in range(49, -1, -1)]
    assert backwards[::-1] == first  # nor the order, nor the picture's size
    assert flips(6, range(3), range(50)) != first
    assert first[:50] != first[50:100] != first[100:]  # epochs
    assert 0.4 < np.mean(flips(0, range(10), range(200))) < 0.6


@pytest.mark.parametrize(("probability", "flipped"), [(0.0, {False}), (1.0, {True})])
def test_never_and_always(probability: float, flipped: set[bool]) -> None:
    assert {draw(s, flip_probability=probability).geometry.flip for s in range(200)} == flipped


def test_the_default_is_a_resize_and_a_flip() -> None:
    recipe = draw_recipe(480, 640, 800, 1333, AugmentConfig(flip_probability=1.0), 0, 0, 1)
    assert replace(recipe, paste_seed=None) == Recipe(whole_picture(480, 640, 800, 1067, True), (800, 1067), None, None)
    assert plain_recipe(480, 640, 800, 1333) == Recipe(whole_picture(480, 640, 800, 1067), (800, 1067), None, None)


def test_any_64_bit_sample_id_works() -> None:
    draws = {s: [draw(s, e).geometry.flip for e in range(64)] for s in (0, 2**63 - 1, -1, -(2**63))}
    assert all(any(flips) and not all(flips) for flips in draws.values())


# --- each kind on its own


def kinds(recipe: Recipe) -> dict[str, object]:
    geometry = recipe.geometry
    window = (geometry.left, geometry.top, geometry.window_height, geometry.window_width)
    return {"flip": geometry.flip, "window": window, "colour": recipe.colour, "paste": recipe.paste_seed}


OFF: dict[str, dict[str, object]] = {
    "flip": {"flip_probability": 0.0},
    "colour": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
    "window": {"crop_share": None, "resize": "shortest"},
}


@pytest.mark.parametrize("off", OFF)
def test_turning_one_off_changes_no_other(off: str) -> None:
    some = replace(EVERYTHING, **OFF[off])  # type: ignore[arg-type]
    changed = 0
    for sample in range(100):
        full, less = (kinds(draw_recipe(40, 60, 32, 99, o, 7, 3, sample)) for o in (EVERYTHING, some))
        changed += full.pop(off) != less.pop(off)
        assert full == less
    assert changed > 20


def test_setting_one_colour_changes_no_other() -> None:
    for sample in range(100):
        full = draw_recipe(40, 60, 32, 99, EVERYTHING, 7, 3, sample).colour
        less = draw_recipe(40, 60, 32, 99, replace(EVERYTHING, hue=0.0), 7, 3, sample).colour
        assert (full is None) == (less is None)
        if full is not None and less is not None:
            assert tuple(step for step in full.steps if step[0] != 3) == less.steps


def test_it_happens_as_often_as_asked() -> None:
    recipes = [draw_recipe(40, 60, 32, 99, EVERYTHING, 0, 0, s) for s in range(1000)]
    assert 0.65 < np.mean([r.colour is not None for r in recipes]) < 0.75
    cropped = [draw(s, size=(400, 600), crop_share=(0.3, 0.9), crop_probability=0.7).geometry for s in range(1000)]
    assert 0.65 < np.mean([not g.whole for g in cropped]) < 0.75
    assert len({r.paste_seed for r in recipes}) == 1000


def test_a_recipe_is_drawn_again_the_same() -> None:
    draws = [(s, e) for e in range(3) for s in range(50)]
    first = {d: draw_recipe(40, 60, 32, 99, EVERYTHING, 1, d[1], d[0]) for d in draws}
    assert {d: draw_recipe(40, 60, 32, 99, EVERYTHING, 1, d[1], d[0]) for d in reversed(draws)} == first
    assert len(set(first.values())) == 150


# --- windows

SIDE = st.integers(1, 900)
SHARES = st.tuples(st.floats(0.05, 1.0), st.floats(0.05, 1.0)).map(sorted).map(tuple)


def check(geometry: Geometry) -> None:
    assert geometry.left >= 0 and geometry.left + geometry.window_width <= geometry.width
    assert geometry.top >= 0 and geometry.top + geometry.window_height <= geometry.height
    assert min(geometry.window_width, geometry.window_height, geometry.new_width, geometry.new_height) >= 1


@given(SIDE, SIDE, SHARES, st.integers(0, 10**6))
def test_a_crop_keeps_the_asked_share_of_each_side(
    height: int, width: int, share: tuple[float, float], sample: int
) -> None:
    geometry = draw(sample, size=(height, width), crop_share=share).geometry
    check(geometry)
    for side, window in ((height, geometry.window_height), (width, geometry.window_width)):
        assert share[0] * side - 0.5 - 1e-9 <= window <= max(1.0, share[1] * side + 0.5)
    assert (geometry.new_height, geometry.new_width) == resized(geometry.window_height, geometry.window_width, 32, 99)


def test_crops_reach_every_border() -> None:
    drawn = [draw(s, size=(40, 60), crop_share=(0.5, 0.9)).geometry for s in range(500)]
    assert min(g.left for g in drawn) == min(g.top for g in drawn) == 0
    assert max(g.left + g.window_width for g in drawn) == 60 and max(g.top + g.window_height for g in drawn) == 40
    assert len({g.window_width / g.window_height for g in drawn}) > 50  # each side is drawn for itself


@given(SIDE, SIDE, st.integers(8, 300), st.integers(0, 10**6), st.none() | SHARES)
def test_jitter_fits_the_canvas_and_keeps_the_shape(
    height: int, width: int, canvas: int, sample: int, share: tuple[float, float] | None
) -> None:
    options = AugmentConfig(resize="jitter", crop_share=share)
    recipe = draw_recipe(height, width, canvas, 5, options, 0, 0, sample)
    geometry = recipe.geometry
    check(geometry)
    assert recipe.canvas == (canvas, canvas) and max(geometry.new_height, geometry.new_width) <= canvas
    assert max(geometry.new_height, geometry.new_width) >= 0.1 * canvas - 0.5
    # The scales of x and y agree but for the roundings of window and size.
    scales = geometry.scales
    slack = [
        scale * (0.5 / window + 0.5 / new)
        for scale, window, new in zip(
            scales,
            (geometry.window_width, geometry.window_height),
            (geometry.new_width, geometry.new_height),
            strict=True,
        )
    ]
    if min(geometry.window_width, geometry.window_height, geometry.new_width, geometry.new_height) > 1:
        assert abs(scales[0] - scales[1]) <= 1.5 * sum(slack)


def test_jitter_spreads_over_the_asked_scales() -> None:
    options = AugmentConfig(resize="jitter", jitter_scale=(0.5, 2.0))
    drawn = [draw_recipe(300, 400, 128, 5, options, 0, 0, s).geometry for s in range(2000)]
    factors = np.array([400 * g.scales[0] / 128 for g in drawn])
    assert factors.min() < 0.53 and factors.max() > 1.95 and abs(factors.mean() - 1.25) < 0.05
    cut = [g for g in drawn if g.window_width < 400]
    assert {g.new_width for g in cut} == {128} and 0.6 < len(cut) / len(drawn) < 0.73  # two thirds are above 1
    assert min(g.left for g in cut) == 0 and max(g.left + g.window_width for g in cut) == 400


@given(SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, st.booleans())
def test_what_is_cut_to_a_canvas_fits_and_keeps_its_scale(
    height: int, width: int, new_height: int, new_width: int, canvas_height: int, canvas_width: int, flip: bool
) -> None:
    whole = whole_picture(height, width, new_height, new_width, flip)
    cut = cut_to(whole, (canvas_height, canvas_width))
    check(cut)
    assert (cut.left, cut.top, cut.flip) == (0, 0, flip)
    assert (cut.new_height, cut.new_width) == (min(new_height, canvas_height), min(new_width, canvas_width))
    if new_height <= canvas_height and new_width <= canvas_width:
        assert cut == whole
    for new, window, scale in (
        (cut.new_height, cut.window_height, whole.scales[1]),
        (cut.new_width, cut.window_width, whole.scales[0]),
    ):
        assert abs(new / scale - window) <= 0.5 + 1e-6 or window == 1
