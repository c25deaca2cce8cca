"""Who is held out: by id alone, and each class on both sides where that can be."""

import hashlib

import numpy as np
import pytest

from pipeline.data.quarantine import DataError
from pipeline.data.split import hold_out


def test_the_hash_of_the_id_decides() -> None:
    images = {number: {1} for number in range(1, 2001)}
    held = hold_out(images, 0.2)
    place = {number: int(hashlib.sha256(str(number).encode()).hexdigest()[:14], 16) / 16**14 for number in images}
    assert held == {number for number in images if place[number] < 0.2}
    assert 350 < len(held) < 450


def test_an_image_stays_on_its_side_when_others_come_in_whatever_order() -> None:
    few = {number: {1} for number in range(300)}
    many = {number: {1, number % 3} for number in range(999, -1, -1)}
    assert hold_out(few, 0.3) == {number for number in hold_out(many, 0.3) if number < 300}


@pytest.mark.parametrize("seed", range(20))
def test_each_class_of_two_images_is_on_both_sides(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = {int(number): {int(rng.integers(1, 30))} for number in rng.permutation(10**6)[:120]}
    held = hold_out(images, 0.05)
    for number in range(1, 30):
        own = {image for image, classes in images.items() if number in classes}
        assert len(own) < 2 or (own & held and own - held), number
    assert 0 < len(held) < 60


@pytest.mark.parametrize("seed", range(10))
def test_where_classes_share_images_none_loses_its_last_one_to_another(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = {number: set(rng.integers(1, 40, rng.integers(0, 6)).tolist()) for number in range(60)}
    held = hold_out(images, 0.1)
    by_hash = {n for n in images if int(hashlib.sha256(str(n).encode()).hexdigest()[:14], 16) / 16**14 < 0.1}

    def missing(side: set[int]) -> int:
        every = set().union(*images.values())
        return sum(not any(number in images[image] for image in side) for number in every)

    assert missing(set(held)) <= missing(by_hash)
    assert missing(set(images) - held) <= missing(set(images) - by_hash)
    assert missing(set(held)) < missing(by_hash) or missing(by_hash) == 0


@pytest.mark.parametrize(("images", "share"), [(2, 0.001), (2, 0.999), (3, 0.5), (5, 0.01)])
def test_either_side_has_an_image(images: int, share: float) -> None:
    for classes in (set(), {1}):
        held = hold_out({number: classes for number in range(7, 7 + images)}, share)
        assert 0 < len(held) < images


@pytest.mark.parametrize("images", [{}, {3: {1}}])
def test_too_few(images: dict[int, set[int]]) -> None:
    with pytest.raises(DataError, match=f"{len(images)} images cannot be split .* give --val-annotations"):
        hold_out(images, 0.1)
