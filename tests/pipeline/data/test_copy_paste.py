"""Copy-paste against naive loops at the input's resolution, alone and in a batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moving import FLIP_ORDER, geometries, naive_mask, scenes
from tiny_records import blob, box_of, record

from model.types import Batch
from pipeline.config import AugmentConfig
from pipeline.data import rle
from pipeline.data.augment import Geometry, Recipe, cut_to, draw_recipe, whole_picture
from pipeline.data.collate import Work, collate
from pipeline.data.copy_paste import choose, paste
from pipeline.data.ground_truth import move
from pipeline.data.records import Record

LSJ = AugmentConfig(resize="jitter")


def decoded(own: Record) -> list[np.ndarray]:
    return [rle.to_mask(counts, own["height"], own["width"]) for counts in own["rles"]]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Record, Geometry, Record, Geometry]:
    base, partner = draw(scenes(4, 1)), draw(scenes(4, 2))
    first = draw(geometries(base["height"], base["width"]))
    second = draw(geometries(partner["height"], partner["width"]))
    return base, first, partner, second


@given(pairs(), st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_what_is_pasted_hides_what_was_there(case: tuple[Record, Geometry, Record, Geometry], seed: int) -> None:
    base, first, partner, second = case
    truth, other = (move(r, g, "crop", FLIP_ORDER) for r, g in ((base, first), (partner, second)))
    chosen = choose(other, (seed,))
    size = max(first.new_height, second.new_height), max(first.new_width, second.new_width)
    covered, both = paste((base, first, truth), (partner, second, other), chosen, size, "crop")

    expected = np.zeros(size, bool)
    pasted = []
    for slot in chosen:
        mask = naive_mask(decoded(partner)[other.source[slot]], second)
        expected[: second.new_height, : second.new_width] |= mask
        pasted += [slot] if mask.any() else []
    assert np.array_equal(covered, expected)

    assert truth.keypoints is not None and other.keypoints is not None and both.keypoints is not None
    own = expected[: first.new_height, : first.new_width]
    slot = 0
    for old, i in enumerate(truth.source):
        mask = naive_mask(decoded(base)[i], first)
        seen = mask & ~own
        if mask.any() and not seen.any():
            continue  # hidden: gone
        if slot >= len(both.source) or both.source[slot] != i:
            box = np.array(box_of(seen))  # only a sliver beside the old box was left
            gap = np.minimum(box[2:], truth.boxes[old, 2:]) - np.maximum(box[:2], truth.boxes[old, :2])
            assert gap.min() < 0.01
            continue
        assert both.classes[slot] == truth.classes[old]
        if np.array_equal(seen, mask):
            assert np.array_equal(both.boxes[slot], truth.boxes[old])
            assert np.array_equal(both.masks[slot], truth.masks[old])
        else:
            box = box_of(seen)
            expected_box = [*np.maximum(box[:2], truth.boxes[old, :2]), *np.minimum(box[2:], truth.boxes[old, 2:])]
            np.testing.assert_allclose(both.boxes[slot], expected_box, atol=1e-4)
            runs = rle.parse_counts(rle.from_mask(seen))
            crop = rle.unpack_crops([rle.crop(runs, *seen.shape, both.boxes[slot].tolist())])[0]
            assert np.array_equal(both.masks[slot], crop)
        for (x, y, before), now in zip(truth.keypoints[old], both.keypoints[slot], strict=True):
            hidden = before == 2 and own[min(int(y), own.shape[0] - 1), min(int(x), own.shape[1] - 1)]
            assert now.tolist() == [x, y, 1 if hidden else before]
        slot += 1
    rest = slice(slot, None)
    assert both.source[rest] == [other.source[s] for s in pasted]
    assert np.array_equal(both.boxes[rest], other.boxes[pasted])
    assert np.array_equal(both.masks[rest], other.masks[pasted])
    assert np.array_equal(both.keypoints[rest], other.keypoints[pasted])
    assert np.array_equal(both.classes[rest], other.classes[pasted])


@given(pairs())
@settings(max_examples=75, deadline=None)
def test_whole_masks_never_overlap_what_was_pasted(case: tuple[Record, Geometry, Record, Geometry]) -> None:
    base, first, partner, second = case
    truth, other = (move(r, g, "image", None) for r, g in ((base, first), (partner, second)))
    size = max(first.new_height, second.new_height), max(first.new_width, second.new_width)
    chosen = list(range(len(other.classes)))
    covered, both = paste((base, first, truth), (partner, second, other), chosen, size, "image")
    assert both.masks.shape == (len(both.classes), *size)
    kept = sum(i in both.source for i in truth.source)
    partners = both.masks[len(both.classes) - len([s for s in chosen if _seen(partner, other.source[s], second)]) :]
    base_masks = both.masks[: len(both.classes) - len(partners)]
    assert len(base_masks) <= kept
    for i, mask in zip(both.source, base_masks, strict=False):
        whole = naive_mask(decoded(base)[i], first)
        if (whole & covered[: first.new_height, : first.new_width]).any():
            assert not (mask.astype(bool) & covered).any()


def _seen(own: Record, i: int, geometry: Geometry) -> bool:
    return bool(naive_mask(decoded(own)[i], geometry).any())


# --- in a batch


def batch_of(*work: Work, divisor: int = 32, target: str = "crop") -> Batch:
    def refuse(sample_id: int, reason: str) -> None:
        raise AssertionError((sample_id, reason))

    return collate(work, divisor, target, None, refuse)  # type: ignore[arg-type]


def drawn(own: Record, canvas: int, options: AugmentConfig = LSJ) -> Recipe:
    return draw_recipe(own["height"], own["width"], canvas, 99, options, 3, 1, own["sample_id"])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("target", ["crop", "image"])
def test_pixels_come_from_the_partner_where_it_covers_and_else_from_the_base(seed: int, target: str) -> None:
    masks = [blob(40, 60, 3, 5, 17, 30), blob(40, 60, 20, 30, 20, 30)]
    base, partner = (
        record(2 * seed, 40, 60, masks),
        record(2 * seed + 1, 40, 60, [*masks[::-1], blob(40, 60, 0, 0, 30, 30)]),
    )
    first, second = drawn(base, 64), drawn(partner, 64)
    got = batch_of(Work(base, first, partner, second), target=target)
    alone, other = batch_of(Work(base, first)), batch_of(Work(partner, second))
    height, width = got.sizes[0].tolist()
    assert first.paste_seed is not None
    truth = move(partner, second.geometry, "crop", None)
    covered = np.zeros((64, 64), bool)
    for slot in choose(truth, first.paste_seed):
        covered[: second.geometry.new_height, : second.geometry.new_width] |= naive_mask(
            decoded(partner)[truth.source[slot]], second.geometry
        )
    frames = [torch.zeros(64, 64, 3, dtype=torch.uint8) for _ in range(2)]
    for frame, batch in zip(frames, (alone, other), strict=True):
        frame[: batch.images.shape[1], : batch.images.shape[2]] = batch.images[0]
    expected = torch.where(torch.from_numpy(covered)[..., None], frames[1], frames[0])
    assert torch.equal(got.images[0], expected[: got.images.shape[1], : got.images.shape[2]])
    assert not got.images[0, height:].any() and not got.images[0, :, width:].any()
    assert got.targets is not None
    boxes = got.targets.boxes[0, got.targets.valid[0]]
    assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all() and (boxes >= 0).all()
    assert got.sample_ids.tolist() == [2 * seed] and got.original_sizes.tolist() == [[40, 60]]


def test_without_a_canvas_the_partner_is_cut_to_the_base() -> None:
    base, partner = record(1, 40, 60), record(2, 60, 40, [np.ones((60, 40), np.uint8)])
    options = AugmentConfig(flip_probability=0.0)
    first = replace(drawn(base, 32, options), paste_seed=(2,))  # chooses the first of one
    got = batch_of(Work(base, first, partner, drawn(partner, 32, options)))
    assert got.sizes.tolist() == [[32, 48]]
    assert got.targets is not None and got.targets.boxes[0, :1].tolist() == [[0.0, 0.0, 32.0, 32.0]]
    cut = cut_to(drawn(partner, 32, options).geometry, (32, 48))
    assert (cut.new_height, cut.new_width, cut.window_height, cut.window_width) == (32, 32, 40, 40)


def test_about_half_of_the_instances_are_chosen_and_the_same_ones_again() -> None:
    truth = move(record(1, 40, 60, [blob(40, 60, 3, 5, 17, 12)] * 300), whole_picture(40, 60, 40, 60), "crop", None)
    first = choose(truth, (1, 2))
    assert 120 < len(first) < 180 and choose(truth, (1, 2)) == first != choose(truth, (1, 3))


def test_awkward_pairs() -> None:
    full = np.ones((40, 60), np.uint8)
    pixel = np.zeros((40, 60), np.uint8)
    pixel[39, 59] = 1
    geometry = whole_picture(40, 60, 40, 60)
    empty, crowds = record(1, 40, 60), record(2, 40, 60, [full] * 3, crowd=[True] * 3)
    many = record(3, 40, 60, [blob(40, 60, i % 30, i % 50, 6, 9) for i in range(300)])
    covering, single = record(4, 40, 60, [full]), record(5, 40, 60, [pixel])

    def counts(base: Record, partner: Record, small: bool = False) -> tuple[int, int]:
        other_geometry = replace(geometry, new_height=4, new_width=6) if small else geometry
        truth, other = move(base, geometry, "crop", None), move(partner, other_geometry, "crop", None)
        everything = list(range(len(other.classes)))
        covered, both = paste((base, geometry, truth), (partner, other_geometry, other), everything, (40, 60), "crop")
        return int(covered.sum()), len(both.classes)

    assert counts(empty, empty) == (0, 0)
    assert counts(many, crowds) == (0, 300)
    assert counts(crowds, many)[1] == 300
    assert counts(many, covering) == (2400, 1)  # nothing of the base is left
    assert counts(covering, single) == (1, 2)
    assert counts(single, covering) == (2400, 1)
    assert counts(single, single) == (1, 1)
    assert counts(covering, single, small=True) == (0, 1)  # falls between the pixels: not pasted


def test_a_partner_that_does_not_decode_gives_nothing_and_is_told() -> None:
    base, partner = record(1, 40, 60, [blob(40, 60, 3, 5, 17, 12)]), record(2, 40, 60, image=b"nothing")
    told: list[int] = []
    first, second = drawn(base, 64), drawn(partner, 64)
    got = collate([Work(base, first, partner, second)], 32, "crop", None, lambda i, _: told.append(i))
    alone = batch_of(Work(base, first))
    assert told == [2] and got.sizes.tolist() == alone.sizes.tolist()
    height, width = alone.images.shape[1:3]
    assert torch.equal(got.images[:, :height, :width], alone.images)
    assert got.targets is not None and alone.targets is not None
    assert torch.equal(got.targets.boxes, alone.targets.boxes)
