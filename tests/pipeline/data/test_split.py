"""Who is held out: by name alone, but for what makes both sides of use."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.quarantine import DataError
from pipeline.data.split import hold_out


def place(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest()[:14], 16) / 16**14


def test_the_hash_of_the_name_decides() -> None:
    images = {f"{number:012d}.jpg": {1} for number in range(1, 2001)}
    held = hold_out(images, 0.2)
    assert held == {name for name in images if place(name) < 0.2}
    assert 350 < len(held) < 450


def test_an_image_stays_on_its_side_when_others_come_in_whatever_order() -> None:
    few = {str(number): {1} for number in range(300)}
    many = {str(number): {1, number % 3} for number in range(999, -1, -1)}
    assert hold_out(few, 0.3) == {name for name in hold_out(many, 0.3) if int(name) < 300}


@pytest.mark.parametrize("seed", range(20))
def test_each_class_of_two_images_is_on_both_sides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = {str(number): {int(rng.integers(1, 30))} for number in rng.permutation(10**6)[:120]}
    held = hold_out(images, 0.05)
    for number in range(1, 30):
        own = {image for image, classes in images.items() if number in classes}
        assert len(own) < 2 or (own & held and own - held), number
    assert 0 < len(held) < 60


@pytest.mark.parametrize("seed", range(10))
def test_where_classes_share_images_none_loses_its_last_one_to_another(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = {str(number): set(rng.integers(1, 40, rng.integers(0, 6)).tolist()) for number in range(60)}
    held = hold_out(images, 0.1)
    by_hash = {name for name in images if place(name) < 0.1}
    every = set().union(*images.values())
    several = {n for n in every if sum(n in classes for classes in images.values()) > 1}

    def missing(side: set[str], of: set[int]) -> int:
        return sum(not any(number in images[image] for image in side) for number in of)

    assert missing(set(held), several) <= missing(by_hash, several)
    assert missing(set(images) - held, every) == 0  # a class that is evaluated was trained
    assert missing(set(held), several) < missing(by_hash, several) or missing(by_hash, several) == 0


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=6), st.sets(st.integers(1, 5), max_size=3), min_size=2, max_size=9),
    st.floats(0.001, 0.999),
)
def test_either_side_is_of_use(images: dict[str, set[int]], share: float) -> None:
    filled = {name for name, classes in images.items() if classes}
    if len(filled) < 2:
        with pytest.raises(DataError, match=f"{len(filled)} images with annotations cannot be split .*val-annotations"):
            hold_out(images, share)
        return
    held = hold_out(images, share)
    assert held == hold_out(dict(reversed(images.items())), share)
    assert held & filled and filled - held
    trained = set().union(*(images[name] for name in filled - held))
    only = {n for n in range(1, 6) if sum(n in classes for classes in images.values()) == 1}
    if not all(images[name] & only for name in filled):  # else one class must be given away
        assert only <= trained
