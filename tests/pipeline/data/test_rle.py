import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.data import rle


def crop_of(mask: NDArray[np.uint8], box: list[float]) -> NDArray[np.uint8]:
    runs = rle.parse_counts(rle.from_mask(mask))
    return rle.unpack_crops([rle.crop(runs, *mask.shape, box)])[0]


def naive_crop(mask: NDArray[np.uint8], box: list[float]) -> NDArray[np.bool_]:
    """Area of each cell, pixel by pixel."""
    n = rle.CROP_SIZE
    out = np.zeros((n, n), dtype=bool)
    step_x, step_y = (box[2] - box[0]) / n, (box[3] - box[1]) / n
    for i in range(n):
        top, bottom = box[1] + i * step_y, box[1] + (i + 1) * step_y
        for j in range(n):
            left, right = box[0] + j * step_x, box[0] + (j + 1) * step_x
            area = 0.0
            for y in range(max(int(top), 0), min(math.ceil(bottom), mask.shape[0])):
                for x in range(max(int(left), 0), min(math.ceil(right), mask.shape[1])):
                    share = (min(bottom, y + 1) - max(top, y)) * (min(right, x + 1) - max(left, x))
                    area += mask[y, x] * share
            out[i, j] = area >= 0.5 * step_x * step_y - 1e-9
    return out


@given(st.data())
def test_a_box_as_a_mask(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    x1, x2 = sorted(data.draw(st.lists(st.floats(0, width), min_size=2, max_size=2)))
    y1, y2 = sorted(data.draw(st.lists(st.floats(0, height), min_size=2, max_size=2)))
    expected = np.zeros((height, width), dtype=np.uint8)
    for y in range(height):
        for x in range(width):
            expected[y, x] = min(x + 1, x2) > max(x, x1) and min(y + 1, y2) > max(y, y1)
    if expected.any():
        assert rle.from_box([x1, y1, x2, y2], height, width) == rle.from_mask(expected)


def test_crop_size_is_the_models() -> None:
    from model.types import CROP_SIZE

    assert rle.CROP_SIZE == CROP_SIZE


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 70), st.floats(0, 1))
def test_runs_and_masks_agree_with_pycocotools(seed: int, height: int, width: int, share: float) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    counts = rle.from_mask(mask)
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size])))
    expected = runs if flat[0] == 0 else np.concatenate(([0], runs))
    assert rle.parse_counts(counts).tolist() == expected.tolist()
    assert np.array_equal(rle.to_mask(counts, height, width), mask)
    assert np.array_equal(coco_mask.decode({"size": [height, width], "counts": counts}), mask)
    assert rle.area(counts, height, width) == mask.sum()
    assert rle.from_counts(expected.tolist(), height, width) == counts
    for given_counts in (counts, counts.decode(), expected.tolist()):
        assert rle.from_segmentation({"size": [height, width], "counts": given_counts}, height, width) == counts


def test_long_runs() -> None:
    mask = np.zeros((3000, 4000), np.uint8)
    mask[:, 1000:3900] = 1
    mask[7, 8] = 1
    assert rle.parse_counts(rle.from_mask(mask))[1::2].sum() == mask.sum()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "a list of polygons or an RLE, got None"),
        ({"size": [4, 5]}, "a list of polygons or an RLE"),
        ([], "no polygon in the segmentation"),
        ([[1, 1, 2, 2]], "at least 3 points .* got 4 numbers"),
        ([[1, 1, 2, 2, 3, 3, 4]], "at least 3 points .* got 7 numbers"),
        ([[1, 1, 3, 1, 3, 3], [0, 0]], "at least 3 points .* got 2 numbers"),
        ([3, 4, 5], "at least 3 points .* got 3"),
        ([[1, 1, 3, 1, 3, float("nan")]], "must be finite"),
        ([[1, 1, 3, 1, 3, 1e12]], "near the image"),
        ([[1, 1, 3, 1, 3, "x"]], "must be numbers"),
        ([["1", "1", "3", "1", "3", "3"]], "must be numbers"),
        ([[1, 1, 3, 1, 3, None]], "must be numbers"),
        ([[True, False, True, True, False, True]], "must be numbers"),
        ([[1, 1, 3, 1, 3, [3]]], "must be numbers"),
        ([[[1, 1], [3, 1], [3, 3], [1, 3], [2, 2], [1, 2]]], "must be finite"),
        ([[1, 1, 3, 1, 3, 10**30]], "must be numbers"),
        ([[1, 1, 3, 1, 3, -(2**63)]], "near the image"),
        ([[1, 1, 3, 1, 3, float("-inf")]], "must be finite"),
        ({"size": [5, 4], "counts": [20]}, r"must be the image's \[4, 5\], got \[5, 4\]"),
        ({"size": [4, 5], "counts": [8, 8]}, "must add up to 4 x 5 = 20, got 16"),
        ({"size": [4, 5], "counts": [8, -8, 20]}, "must not be negative"),
        ({"size": [4, 5], "counts": [8, 10**30]}, "must lie in 0..20"),
        ({"size": [4, 5], "counts": [8, 1.5]}, "must be integers"),
        ({"size": [4, 5], "counts": "h"}, "not COCO's compressed counts"),
        ({"size": [4, 5], "counts": "ooooooooo0"}, "a run has 10 characters"),
        ({"size": [4, 5], "counts": "d1"}, "must add up to 4 x 5 = 20, got 52"),
        ({"size": [4, 5], "counts": ""}, "must add up to 4 x 5 = 20, got 0"),
        ({"size": [4, 5], "counts": "\u00e9"}, "must add up|compressed counts"),
        ({"size": [4, 5], "counts": 7}, "are a list or a string, got 7"),
    ],
)
def test_bad_segmentation(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.from_segmentation(segmentation, 4, 5)


@pytest.mark.parametrize("box", [[2.0, 3.0, 22.0, 19.0], [0.3, 1.7, 29.9, 23.4], [5.5, 6.5, 7.25, 6.75]])
def test_crop_is_the_area_of_each_cell(box: list[float]) -> None:
    mask = (np.random.default_rng(1).random((24, 30)) < 0.5).astype(np.uint8)
    assert np.array_equal(crop_of(mask, box), naive_crop(mask, box))


def test_crop_of_a_box_larger_than_the_crop() -> None:
    y, x = np.mgrid[:230, :260]
    mask = ((x - 120) ** 2 + (y - 110) ** 2 < 95**2).astype(np.uint8)
    box = [20.4, 12.2, 218.1, 207.9]
    assert np.array_equal(crop_of(mask, box), naive_crop(mask, box))


def test_crop_of_one_pixel_and_of_everything() -> None:
    mask = np.zeros((10, 12), np.uint8)
    mask[9, 11] = 1
    assert crop_of(mask, [11, 9, 12, 10]).all()
    assert crop_of(mask, [0, 0, 1, 1]).sum() == 0
    assert crop_of(np.ones((10, 12), np.uint8), [0, 0, 12, 10]).all()
    assert np.argwhere(crop_of(mask, [10, 8, 12, 10])).min(axis=0).tolist() == [56, 56]  # the lower right quarter


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 12),
    st.integers(1, 12),
    st.tuples(st.floats(-9, 14), st.floats(-9, 14)),
    st.tuples(st.floats(0.01, 30), st.floats(0.01, 30)),
)
def test_crop_of_any_box(
    seed: int, height: int, width: int, corner: tuple[float, float], sides: tuple[float, float]
) -> None:
    """Boxes inside, partly outside and wholly outside the picture, and masks that go on beyond their box."""
    mask = (np.random.default_rng(seed).random((height, width)) < 0.5).astype(np.uint8)
    box = [*corner, corner[0] + sides[0], corner[1] + sides[1]]
    expected = naive_crop(mask, box)
    found = crop_of(mask, box).astype(bool)
    # Where a cell is half covered to the last bit, rounding decides; there are few such cells.
    assert (found != expected).mean() < 0.01


def test_crop_of_a_box_that_is_no_box() -> None:
    mask = np.ones((10, 12), np.uint8)
    for box in (
        [3, 3, 3, 5],
        [3, 3, 5, 3],
        [3.5, 3, 3.5, 5],
        [3, 3.5, 5, 3.5],
        [5, 5, 3, 3],
        [-5, 0, -1, 5],
        [12, 0, 15, 5],
        [0, 10, 5, 12],
    ):
        assert crop_of(mask, box).sum() == 0
    assert np.argwhere(crop_of(mask, [-12, -10, 12, 10])).min(axis=0).tolist() == [56, 56]
    assert crop_of(mask, [-12, -10, 24, 20]).sum() == 38 * 38 - 4  # 112 / 3 cells a side; a corner's is 4 / 9 mask


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.integers(1, 30), st.integers(1, 30))
def test_garbage_counts(counts: bytes, height: int, width: int) -> None:
    """What passes is what pycocotools can decode; nothing else reaches its C code."""
    try:
        checked = rle.from_segmentation({"size": [height, width], "counts": counts}, height, width)
    except ValueError:
        return
    assert np.array_equal(
        coco_mask.decode({"size": [height, width], "counts": checked}), rle.to_mask(checked, height, width)
    )


numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.floats(-50, 50), st.booleans(), st.none(), st.text())


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(numbers, st.lists(st.floats(-60, 60), max_size=9), st.lists(numbers, max_size=9)), max_size=3)
)
def test_garbage_polygons(polygons: list[object]) -> None:
    try:
        counts = rle.from_segmentation(polygons, 9, 7)
    except ValueError:
        return
    assert np.array_equal(
        rle.to_mask(counts, 9, 7), coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, 9, 7)))
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 40), numbers), max_size=6))
def test_garbage_run_lengths(counts: list[object]) -> None:
    try:
        mask = rle.to_mask(rle.from_segmentation({"size": [9, 7], "counts": counts}, 9, 7), 9, 7)
    except ValueError:
        return
    values = [i % 2 for i, run in enumerate(counts) for _ in range(run)]  # type: ignore[arg-type]
    assert mask.ravel(order="F").tolist() == values


def test_crops_pack_and_unpack() -> None:
    assert rle.unpack_crops([]).shape == (0, 112, 112)
    bits = np.random.default_rng(0).integers(0, 2, (3, 112, 112), dtype=np.uint8)
    assert np.array_equal(rle.unpack_crops([np.packbits(b).tobytes() for b in bits]), bits)


def test_crops_keep_real_masks(coco_small: Path) -> None:
    content = json.loads((coco_small / "annotations/instances_val2017.json").read_bytes())
    size_of = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    ious = []
    for annotation in content["annotations"][::5]:
        if annotation["area"] <= 32**2:
            continue
        height, width = size_of[annotation["image_id"]]
        counts = rle.from_segmentation(annotation["segmentation"], height, width)
        x, y, w, h = annotation["bbox"]
        crop = rle.unpack_crops([rle.crop(rle.parse_counts(counts), height, width, [x, y, x + w, y + h])])[0]
        row = np.floor((np.arange(height) + 0.5 - y) / h * 112).astype(int)  # the cell of each pixel's centre
        column = np.floor((np.arange(width) + 0.5 - x) / w * 112).astype(int)
        inside = ((row >= 0) & (row < 112))[:, None] & ((column >= 0) & (column < 112))
        back = crop[np.clip(row, 0, 111)][:, np.clip(column, 0, 111)].astype(bool) & inside
        truth = rle.to_mask(counts, height, width).astype(bool)
        ious.append((back & truth).sum() / (back | truth).sum())
    assert len(ious) > 100 and np.mean(ious) >= 0.98


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_masks_are_pycocotools(coco_small: Path, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    coco = COCO(str(coco_small / f"annotations/instances_{split}.json"))
    capsys.readouterr()
    for annotation in list(coco.anns.values())[::3]:
        image = coco.imgs[annotation["image_id"]]
        counts = rle.from_segmentation(annotation["segmentation"], image["height"], image["width"])
        assert counts == coco.annToRLE(annotation)["counts"]
        again = rle.parse_counts(counts)
        assert again[1::2].sum() == coco_mask.area(coco.annToRLE(annotation))


def test_many_at_once_are_the_same() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((h, w)) < p for h, w in ((1, 1), (7, 9), (40, 33)) for p in (0, 0.02, 0.5, 1)]
    for mask in masks[::3]:
        mask[-1, -1] = True  # ends in ones
    encoded = [b"", *(rle.from_mask(mask) for mask in masks), b"", rle.from_mask(np.zeros((600, 3000), dtype=np.bool_))]
    for chosen in (encoded, encoded[::-1], encoded[1:2], [], [b"", b""]):
        lengths, pairs = rle.parse_many(chosen)
        assert lengths.shape == (pairs.sum(), 2) and len(pairs) == len(chosen)
        for counts, found in zip(chosen, np.split(lengths, np.cumsum(pairs)[:-1]), strict=False):
            expected = rle.parse_counts(counts)
            assert found.reshape(-1)[: len(expected)].tolist() == expected.tolist()
            assert not found.reshape(-1)[len(expected) :].any() and len(found) == (len(expected) + 1) // 2
    for broken in (b"\x01", b"P1P", b"PPPPPPPP1"):
        with pytest.raises(ValueError, match="not COCO's compressed counts"):
            rle.parse_many([encoded[2], broken, encoded[3]])


def test_many_masks_are_checked_as_one_is() -> None:
    rng = np.random.default_rng(0)
    height, width = 40, 50
    counts = [
        rle.from_mask(rng.random((height, width)) < share) for share in (0, 0.001, 0.5, 0.9, 1) for _ in range(20)
    ]
    spoilt = [b"", b"0", b"~" * 5, b"o" * 9 + b"0", b"PPPP", b"nm", bytes([200, 48])]
    for code in counts:
        place = int(rng.integers(len(code)))
        spoilt += [code[:place], code[:place] + bytes([int(rng.integers(40, 120))]) + code[place + 1 :], code + b"1"]
    mixed = [code for pair in zip(counts * 4, spoilt, strict=False) for code in pair] + counts
    mixed = [mixed[i] for i in rng.permutation(len(mixed))]

    def area(mask: Any) -> int:
        try:
            code = rle.from_segmentation(mask, height, width)
        except ValueError:
            return -1
        return int(rle.to_mask(code, height, width).sum())

    masks = [{"size": [height, width], "counts": code.decode("latin-1")} for code in mixed]
    expected = [area(mask) for mask in masks]
    good = [mask for mask, pixels in zip(masks, expected, strict=True) if pixels >= 0]
    assert 100 < len(good) < len(mixed) - 100

    def areas(some: list[Any]) -> list[int]:
        return rle.areas(some, np.full(len(some), height * width)).tolist()

    assert areas(masks) == expected
    for mask, pixels in zip(masks, expected, strict=True):  # each alone, and in good company
        assert areas([mask]) == [pixels]
        assert areas([good[0], mask, good[-1]])[1] == pixels
    assert areas(good) == [pixels for pixels in expected if pixels >= 0] and -1 not in areas(good)
    assert areas([]) == []


def test_sound_masks_of_many_sizes_are_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    images = [rng.random((h, w)) < share for h, w in ((1, 1), (7, 9), (900, 1300)) for share in (0, 0.002, 0.5, 1)]
    masks = [{"size": list(image.shape), "counts": rle.from_mask(image).decode()} for image in images]
    monkeypatch.setattr(rle, "_area", None)
    found = rle.areas(masks, np.array([image.size for image in images]))
    assert found.tolist() == [image.sum() for image in images]
