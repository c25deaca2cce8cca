"""Instances move with their picture: boxes, crops, whole masks and keypoints against naive geometry."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moving import FLIP_ORDER, geometries, naive_mask, naive_window, scenes
from tiny_records import blob, box_of, record

from model.ops.masks import paste_full
from pipeline.data import rle
from pipeline.data.augment import Geometry, whole_picture
from pipeline.data.collate import resize_into
from pipeline.data.ground_truth import move
from pipeline.data.records import Record


def decoded(own: Record) -> list[np.ndarray]:
    return [rle.to_mask(counts, own["height"], own["width"]) for counts in own["rles"]]


def scene_and_geometry() -> st.SearchStrategy[tuple[Record, Geometry]]:
    return scenes().flatmap(lambda own: st.tuples(st.just(own), geometries(own["height"], own["width"])))


@given(scene_and_geometry())
@settings(max_examples=300, deadline=None)
def test_boxes_and_crops_are_those_of_the_masks_in_the_window(case: tuple[Record, Geometry]) -> None:
    own, geometry = case
    truth = move(own, geometry, "crop", None)
    scales = np.array(geometry.scales * 2)
    slot = 0
    for i, mask in enumerate(decoded(own)):
        seen = naive_window(mask, geometry)
        if own["crowd"][i] or not seen.any():
            assert i not in truth.source
            continue
        assert truth.source[slot] == i and truth.classes[slot] == own["classes"][i]
        box = box_of(seen)
        np.testing.assert_allclose(truth.boxes[slot], box * scales, rtol=1e-5, atol=1e-4)
        counts = rle.parse_counts(rle.from_mask(seen))
        expected = rle.unpack_crops([rle.crop(counts, *seen.shape, box)])[0]
        # A cell that is covered to exactly one half may round either way in a mirrored picture.
        assert (truth.masks[slot] != expected).mean() < 0.002
        slot += 1
    assert slot == len(truth.classes) == len(truth.boxes) == len(truth.masks)


@given(scene_and_geometry())
@settings(max_examples=150, deadline=None)
def test_pasted_crops_are_the_transformed_masks(case: tuple[Record, Geometry]) -> None:
    own, geometry = case
    truth = move(own, geometry, "crop", None)
    size = (geometry.new_height, geometry.new_width)
    pasted = paste_full(torch.from_numpy(truth.masks.copy()).float(), torch.from_numpy(truth.boxes), size).numpy()
    masks = decoded(own)
    for slot, i in enumerate(truth.source):
        expected = naive_mask(masks[i], geometry)
        sure = np.ones(size, bool)  # the mask is the same all around the pixel's centre
        for dy, dx in itertools.product((-0.75, 0.0, 0.75), repeat=2):
            sure &= naive_mask(masks[i], geometry, dy, dx) == expected
        assert np.array_equal(pasted[slot][sure], expected[sure])


@given(scene_and_geometry())
@settings(max_examples=150, deadline=None)
def test_whole_masks_lie_in_their_boxes(case: tuple[Record, Geometry]) -> None:
    own, geometry = case
    truth = move(own, geometry, "image", None)
    crops = move(own, geometry, "crop", None)
    assert truth.source == crops.source and np.array_equal(truth.boxes, crops.boxes)
    assert truth.masks.shape == (len(truth.source), geometry.new_height, geometry.new_width)
    for box, mask in zip(truth.boxes, truth.masks, strict=True):
        if mask.any():  # a small one may fall between the pixels
            assert (np.array(box_of(mask))[:2] >= box[:2] - 1).all()
            assert (np.array(box_of(mask))[2:] <= box[2:] + 1).all()


@pytest.mark.parametrize("flip", [False, True])
def test_an_instance_inside_the_window_keeps_its_annotated_box_and_crop(flip: bool) -> None:
    own = record(1, 40, 60, [blob(40, 60, 10, 20, 8, 12)])
    own["boxes"][0] = [19.6, 9.7, 32.3, 18.2]  # as polygons have them: not the pixels' box
    own["crops"][0] = np.packbits(np.random.default_rng(0).random((112, 112)) < 0.5).tobytes()  # told from a new one
    truth = move(own, Geometry(40, 60, 15, 5, 20, 30, 40, 60, flip), "crop", None)
    x = [4.6 * 2, 17.3 * 2]
    assert truth.boxes[0].tolist() == pytest.approx(
        [60 - x[1], 9.4, 60 - x[0], 26.4] if flip else [x[0], 9.4, x[1], 26.4]
    )
    kept = rle.unpack_crops(own["crops"])[0]
    assert np.array_equal(truth.masks[0], kept[:, ::-1] if flip else kept)


def test_a_cut_instance_stays_within_its_annotated_box() -> None:
    own = record(1, 40, 60, [blob(40, 60, 10, 20, 8, 12)])
    own["boxes"][0] = [20.4, 9.7, 32.3, 17.5]
    truth = move(own, Geometry(40, 60, 0, 0, 40, 30, 40, 30, False), "crop", None)  # columns 20..30 are left
    assert truth.boxes[0].tolist() == pytest.approx([20.4, 10.0, 30.0, 17.5])


def test_awkward_scenes() -> None:
    whole = whole_picture(40, 60, 20, 30, True)
    window = Geometry(40, 60, 30, 0, 10, 10, 50, 50, False)
    pixel = np.zeros((40, 60), np.uint8)
    pixel[5, 31] = 1
    many = [blob(40, 60, i % 30, i % 50, 6, 9) for i in range(300)]
    for own, counts in (
        (record(1, 40, 60), (0, 0)),
        (record(1, 40, 60, [blob(40, 60, 0, 0, 40, 60)] * 3, crowd=[True] * 3), (0, 0)),
        (record(1, 40, 60, [pixel]), (1, 1)),
        (record(1, 40, 60, many), (300, sum(bool(m[:10, 30:40].any()) for m in many))),
        (record(1, 40, 60, [blob(40, 60, 20, 0, 20, 60)]), (1, 0)),  # below the window
        (record(1, 40, 60, [np.ones((40, 60), np.uint8)]), (1, 1)),
    ):
        for geometry, count in zip((whole, window), counts, strict=True):
            for target in ("crop", "image"):
                truth = move(own, geometry, target, FLIP_ORDER)  # type: ignore[arg-type]
                assert len(truth.classes) == len(truth.boxes) == len(truth.masks) == count
                assert truth.keypoints is not None and truth.keypoints.shape == (count, 4, 3)
                assert (truth.boxes[:, 2:] > truth.boxes[:, :2]).all()
    truth = move(record(1, 40, 60, [pixel]), window, "crop", None)
    assert truth.boxes.tolist() == [[5.0, 25.0, 10.0, 30.0]] and truth.masks.all()


def test_a_mask_outside_its_annotated_box_gives_nothing_where_it_is_cut() -> None:
    own = record(1, 40, 60, [blob(40, 60, 10, 20, 8, 12)])
    own["boxes"][0] = [2.0, 2.0, 9.0, 9.0]
    assert move(own, Geometry(40, 60, 5, 0, 40, 55, 40, 55, False), "crop", None).source == []


# --- keypoints


@given(scene_and_geometry(), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_keypoints_stay_on_the_mark_they_were_put_on(case: tuple[Record, Geometry], which: int) -> None:
    own, geometry = case
    truth = move(own, geometry, "crop", FLIP_ORDER)
    assert truth.keypoints is not None
    for slot, i in enumerate(truth.source):
        moved = truth.keypoints[slot]
        if not own["keypoints"][i]:
            assert not moved.any()
            continue
        x, y, visibility = own["keypoints"][i][3 * which : 3 * which + 3]
        found = moved[FLIP_ORDER.index(which) if geometry.flip else which]
        inside = (
            geometry.left <= x < geometry.left + geometry.window_width
            and geometry.top <= y < geometry.top + geometry.window_height
        )
        assert found[2] == (visibility if inside else 0)
        if not found[2]:
            assert not found.any()
            continue
        picture = np.zeros((own["height"], own["width"], 3), np.uint8)
        picture[int(y), int(x)] = 255  # the mark
        enlarged = replace(geometry, new_height=geometry.window_height * 4, new_width=geometry.window_width * 4)
        slotted = torch.zeros(enlarged.new_height, enlarged.new_width, 3, dtype=torch.uint8)
        resize_into(slotted, picture, enlarged)  # large, so that the mark is not lost; the geometry is the same
        light = slotted[..., 0].double().numpy()
        rows, columns = np.nonzero(light > 0.9 * light.max())
        mark = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
        scale = np.array([geometry.new_width / enlarged.new_width, geometry.new_height / enlarged.new_height])
        assert (np.abs(found[:2] / scale - mark) <= 2.0).all()  # 4 pixels are one of the picture: within half of one


def test_keypoints_of_a_known_flip() -> None:
    own = record(1, 40, 60, [blob(40, 60, 0, 0, 40, 60)] * 2)
    own["keypoints"][0] = [10, 5, 2, 20, 6, 1, 0, 0, 0, 59, 39, 2]
    plain = move(own, whole_picture(40, 60, 80, 120), "crop", FLIP_ORDER).keypoints
    assert plain is not None
    assert plain[0].tolist() == [[21, 11, 2], [41, 13, 1], [0, 0, 0], [119, 79, 2]]
    assert not plain[1].any()  # this one has none
    flipped = move(own, whole_picture(40, 60, 80, 120, True), "crop", FLIP_ORDER).keypoints
    assert flipped is not None and flipped[0].tolist() == [[99, 11, 2], [0, 0, 0], [79, 13, 1], [1, 79, 2]]
    cut = move(own, Geometry(40, 60, 15, 0, 20, 30, 20, 30, False), "crop", FLIP_ORDER).keypoints
    assert cut is not None and cut[0].tolist() == [[0, 0, 0], [5.5, 6.5, 1], [0, 0, 0], [0, 0, 0]]
