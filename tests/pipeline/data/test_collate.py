"""Records -> batches: pixels, boxes, masks, padding, and what happens to a picture that does not decode."""

import threading
import time
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_records import blob, box_of, jpeg, picture, record

from model.config import MaskTarget
from model.types import Batch, Targets
from pipeline.config import AugmentConfig
from pipeline.data import rle
from pipeline.data.augment import Geometry, Recipe, draw_recipe, whole_picture
from pipeline.data.collate import SLOT_STEP, Collator, Work, collate, resize_into
from pipeline.data.images import decode
from pipeline.data.records import Record


def refuse(sample_id: int, reason: str) -> None:
    raise AssertionError(f"sample {sample_id}: {reason}")


def geometry(of: Record, height: int, width: int, flip: bool = False) -> Geometry:
    return whole_picture(of["height"], of["width"], height, width, flip)


def plain(of: Record, geometry: Geometry) -> Work:
    return Work(of, Recipe(geometry, (geometry.new_height, geometry.new_width), None, None))


def targets_of(
    records: list[Record], geometries: list[Geometry], target: MaskTarget = "crop", divisor: int = 32
) -> Targets:
    work = [plain(r, g) for r, g in zip(records, geometries, strict=True)]
    targets = collate(work, divisor, target, None, refuse).targets
    assert targets is not None
    return targets


def one_batch(work: list[Work], **changes: object) -> Batch:
    settings: dict[str, object] = {"threads": 2, "ahead": 1, "divisor": 32, "targets": "crop", "on_bad": refuse}
    (batch,) = Collator(**(settings | changes))([work])  # type: ignore[arg-type]
    return batch


# --- pixels


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(37, 53), (80, 120), (160, 240), (81, 90), (40, 200), (1, 1)])
def test_pixels_are_within_one_level_of_pillow(size: tuple[int, int], flip: bool) -> None:
    image = picture(80, 120)
    slot = torch.full((size[0] + 3, size[1] + 5, 3), 7, dtype=torch.uint8)
    resize_into(slot, image, whole_picture(80, 120, *size, flip))
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    if flip:
        expected = expected[:, ::-1]
    assert np.abs(slot[: size[0], : size[1]].numpy().astype(int) - expected).max() <= 1
    assert (slot[size[0] :] == 7).all() and (slot[:, size[1] :] == 7).all()  # the rest is not touched


def test_the_same_size_keeps_every_pixel() -> None:
    image = picture(20, 30)
    slot = torch.zeros(20, 30, 3, dtype=torch.uint8)
    resize_into(slot, image, whole_picture(20, 30, 20, 30))
    assert np.array_equal(slot.numpy(), image)


@pytest.mark.parametrize("size", [(37, 53), (160, 240), (81, 90), (7, 300)])
def test_pixels_are_those_of_interpolate_also_after_a_larger_picture(size: tuple[int, int]) -> None:
    for seed, (height, width) in enumerate([(300, 400), (80, 120)]):  # the second finds the first one's scratch
        image = picture(height, width, seed)
        slot = torch.zeros(400, 400, 3, dtype=torch.uint8)
        target = size if seed else (400, 400)
        resize_into(slot, image, whole_picture(height, width, *target))
        planes = torch.from_numpy(image).permute(2, 0, 1)[None]
        expected = F.interpolate(planes, size=target, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
        assert torch.equal(slot[: target[0], : target[1]], expected)


@pytest.mark.parametrize("flip", [False, True])
def test_a_window_is_cut_before_it_is_resized(flip: bool) -> None:
    image = picture(80, 120)
    slot = torch.zeros(64, 64, 3, dtype=torch.uint8)
    resize_into(slot, image, Geometry(80, 120, 30, 11, 40, 50, 60, 61, flip))
    cut = Image.fromarray(image[11:51, 30:80]).resize((61, 60), Image.Resampling.BILINEAR)
    expected = np.asarray(cut).astype(int)[:, :: -1 if flip else 1]
    assert np.abs(slot[:60, :61].numpy() - expected).max() <= 1
    resize_into(slot, image, Geometry(80, 120, 30, 11, 40, 50, 40, 50, flip))
    assert np.array_equal(slot[:40, :50].numpy(), image[11:51, 30:80][:, :: -1 if flip else 1])


def test_a_batch_is_zero_padded_to_the_divisor_and_says_its_sizes() -> None:
    records = [record(5, 40, 60), record(6, 60, 40), record(7, 33, 33)]
    geometries = [geometry(records[0], 30, 45), geometry(records[1], 45, 30, True), geometry(records[2], 30, 30)]
    batch = one_batch([plain(r, g) for r, g in zip(records, geometries, strict=True)], divisor=16)
    assert batch.images.shape == (3, 48, 48, 3) and batch.images.dtype == torch.uint8
    assert batch.sizes.tolist() == [[30, 45], [45, 30], [30, 30]]
    assert batch.original_sizes.tolist() == [[40, 60], [60, 40], [33, 33]]
    assert batch.sample_ids.tolist() == [5, 6, 7]
    assert all(t.dtype == torch.int64 for t in (batch.sizes, batch.original_sizes, batch.sample_ids))
    for image, own, geo in zip(batch.images, records, geometries, strict=True):
        expected = torch.zeros_like(image)
        resize_into(expected, decode(own["image"]), geo)
        assert torch.equal(image, expected)
        assert not image[geo.new_height :].any() and not image[:, geo.new_width :].any()


# --- ground truth


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(40, 60), (60, 90), (27, 41), (133, 200), (20, 90)])
def test_boxes_are_those_of_the_transformed_masks(size: tuple[int, int], flip: bool) -> None:
    masks = [blob(40, 60, 3, 5, 17, 12), blob(40, 60, 20, 30, 20, 30), blob(40, 60, 0, 0, 40, 9)]
    own = record(1, 40, 60, masks)
    targets = targets_of([own], [geometry(own, *size, flip)], "image")
    assert targets.masks is not None
    for slot in range(len(masks)):
        found = box_of(targets.masks[0, slot].numpy())
        assert np.abs(np.array(found) - targets.boxes[0, slot].numpy()).max() <= 1.0


def test_a_flip_mirrors_boxes_exactly() -> None:
    own = record(1, 40, 60, [blob(40, 60, 3, 5, 17, 12)])
    plain = targets_of([own], [geometry(own, 80, 120)]).boxes[0, 0].tolist()
    flipped = targets_of([own], [geometry(own, 80, 120, True)]).boxes[0, 0].tolist()
    assert plain == [10.0, 6.0, 34.0, 40.0]
    assert flipped == [120.0 - 34.0, 6.0, 120.0 - 10.0, 40.0]


@pytest.mark.parametrize("flip", [False, True])
def test_crops_are_flipped_with_their_boxes(flip: bool) -> None:
    masks = [blob(40, 60, 3, 5, 28, 42), blob(40, 60, 10, 20, 14, 28)]
    own = record(1, 40, 60, masks)
    targets = targets_of([own], [geometry(own, 30, 45, flip)])
    assert targets.masks is not None and targets.masks.shape == (1, SLOT_STEP, 112, 112)
    for slot, mask in enumerate(masks):
        seen = mask[:, ::-1] if flip else mask  # the crop of the flipped picture
        runs = rle.parse_counts(rle.from_mask(np.ascontiguousarray(seen)))
        expected = rle.unpack_crops([rle.crop(runs, 40, 60, box_of(seen))])[0]
        assert np.array_equal(targets.masks[0, slot].numpy(), expected)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(27, 41), (40, 60), (66, 99), (80, 61)])
def test_full_masks_are_torchvisions(size: tuple[int, int], flip: bool) -> None:
    generator = np.random.default_rng(0)
    masks = [(generator.random((40, 60)) < 0.5).astype(np.uint8) for _ in range(3)]
    own = record(1, 40, 60, masks)
    targets = targets_of([own], [geometry(own, *size, flip)], "image", divisor=128)
    source = torch.from_numpy(np.stack(masks))
    # torchvision/models/detection/transform.py: _resize_image_and_masks
    expected = F.interpolate(source[:, None].float(), size=size, mode="nearest")[:, 0].byte()
    if flip:
        expected = expected.flip(-1)
    assert targets.masks is not None and targets.masks.shape == (1, SLOT_STEP, 128, 128)
    assert torch.equal(targets.masks[0, :3, : size[0], : size[1]], expected)
    assert not targets.masks[0, :, size[0] :].any() and not targets.masks[0, :, :, size[1] :].any()


def test_crowds_are_left_out_and_the_rest_keeps_its_order() -> None:
    masks = [blob(40, 60, y, 5, 6, 12) for y in (0, 8, 16, 24)]
    own = record(1, 40, 60, masks, crowd=[True, False, True, False])
    targets = targets_of([own], [geometry(own, 40, 60)])
    assert targets.valid[0].tolist() == [True, True, *[False] * 6]
    assert targets.classes[0].tolist() == [2, 4, *[0] * 6]
    assert targets.boxes[0, :2].tolist() == [own["boxes"][1], own["boxes"][3]]
    assert not targets.boxes[0, 2:].any()
    assert targets.masks is not None
    assert np.array_equal(targets.masks[0, :2].numpy(), rle.unpack_crops([own["crops"][1], own["crops"][3]]))
    assert not targets.masks[0, 2:].any()


@pytest.mark.parametrize(("most", "slots"), [(0, 8), (1, 8), (8, 8), (9, 16), (17, 24)])
def test_slots_are_padded_to_the_fullest_image_in_steps(most: int, slots: int) -> None:
    many = record(1, 40, 60, [blob(40, 60, i, i, 6, 12) for i in range(most)])
    records = [record(0, 40, 60), many, record(2, 40, 60, [blob(40, 60, 0, 0, 9, 9)] * min(most, 1))]
    targets = targets_of(records, [geometry(r, 40, 60) for r in records])
    assert targets.valid.sum(1).tolist() == [0, most, min(most, 1)]
    assert targets.masks is not None
    assert targets.boxes.shape == (3, slots, 4) and targets.boxes.dtype == torch.float32
    assert targets.classes.shape == (3, slots) and targets.classes.dtype == torch.int64
    assert targets.valid.shape == (3, slots) and targets.valid.dtype == torch.bool
    assert targets.masks.shape == (3, slots, 112, 112) and targets.masks.dtype == torch.uint8


def test_images_without_objects_and_crowds_alone() -> None:
    records = [record(0, 40, 60), record(1, 40, 60, [blob(40, 60, 0, 0, 9, 9)], crowd=[True])]
    kinds: tuple[MaskTarget, ...] = ("crop", "image")
    for kind in kinds:
        targets = targets_of(records, [geometry(r, 40, 60) for r in records], kind)
        assert not targets.valid.any() and targets.masks is not None and not targets.masks.any()


def test_targets_are_made_only_where_asked_for() -> None:
    own = record(0, 40, 60, [blob(40, 60, 0, 0, 9, 9)])
    work = [plain(own, geometry(own, 40, 60))]
    assert one_batch(work, targets=None).targets is None
    crops, full = one_batch(work).targets, one_batch(work, targets="image").targets
    assert crops is not None and crops.masks is not None and crops.masks.shape[2:] == (112, 112)
    assert full is not None and full.masks is not None and full.masks.shape[2:] == (64, 64)  # as the padded images


# --- the stream of batches


def work_of(count: int, batch: int = 3, objects: int = 1) -> list[list[Work]]:
    work = []
    for number in range(count):
        records = [record(10 * number + i, 20 + i, 30, [blob(20 + i, 30, 2, 3, 9, 12)] * objects) for i in range(batch)]
        work.append(
            [Work(r, draw_recipe(r["height"], 30, 24, 99, AugmentConfig(), 0, 0, r["sample_id"])) for r in records]
        )
    return work


@pytest.mark.parametrize(("threads", "ahead"), [(1, 0), (1, 3), (16, 2), (16, 50)])
def test_batches_keep_their_order_and_content_with_any_threads(threads: int, ahead: int) -> None:
    work = work_of(20)
    batches = list(Collator(threads, ahead, 32, "crop", refuse)(iter(work)))
    assert [b.sample_ids.tolist() for b in batches] == [[one.record["sample_id"] for one in batch] for batch in work]
    for batch, own in zip(batches, work, strict=True):
        same = collate(own, 32, "crop", None, refuse)
        assert torch.equal(batch.images, same.images) and torch.equal(batch.sizes, same.sizes)
        assert batch.targets is not None and same.targets is not None
        assert torch.equal(batch.targets.boxes, same.targets.boxes)
        assert torch.equal(batch.targets.masks, same.targets.masks)  # type: ignore[arg-type]
        for slot, one in zip(batch.images, own, strict=True):
            expected = torch.zeros_like(slot)
            resize_into(expected, decode(one.record["image"]), one.recipe.geometry)
            assert torch.equal(slot, expected)


def test_it_reads_no_further_ahead_than_asked() -> None:
    taken = []

    def work() -> Iterator[list[Work]]:
        for item in work_of(12):
            taken.append(item)
            yield item

    batches = Collator(2, 3, 32, "crop", refuse)(work())
    for number in range(1, 6):
        next(batches)
        assert len(taken) == number + 3
    batches.close()  # type: ignore[attr-defined]


def broken_images() -> dict[str, bytes]:
    whole = jpeg(picture(40, 60))
    png = BytesIO()
    Image.fromarray(picture(40, 60)).save(png, "PNG")
    return {
        "truncated": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"not a picture at all",
        "png": png.getvalue()[:-40],
    }


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "png"])
@pytest.mark.parametrize("target", ["crop", "image"])
def test_a_bad_image_does_not_stop_training_and_withdraws_its_ground_truth(kind: str, target: str) -> None:
    masks = [blob(40, 60, 3, 5, 17, 12), blob(40, 60, 20, 30, 20, 30)]
    records = [
        record(1, 40, 60, masks),
        record(2, 40, 60, masks, image=broken_images()[kind]),
        record(3, 40, 60, masks),
    ]
    work = [plain(r, geometry(r, 40, 60)) for r in records]
    told: list[tuple[int, str]] = []
    collator = Collator(2, 1, 32, target, lambda sample_id, reason: told.append((sample_id, reason)))  # type: ignore[arg-type]
    first, second = collator([work, work[:1]])
    assert len(told) == 1 and told[0][0] == 2 and told[0][1]
    assert first.sample_ids.tolist() == [1, 2, 3]  # it keeps its place
    assert not first.images[1].any()
    assert first.images[0].any() and first.images[2].any()
    assert first.targets is not None and first.targets.valid.sum(1).tolist() == [2, 0, 2]
    assert second.sample_ids.tolist() == [1]


def test_a_bug_while_decoding_is_not_taken_for_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(data: bytes) -> np.ndarray:
        raise KeyError("ours")

    monkeypatch.setattr("pipeline.data.collate.decode", bug)
    with pytest.raises(KeyError, match="ours"):
        list(Collator(2, 1, 32, "crop", refuse)(work_of(2)))


def test_a_consumer_that_stops_early_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    lock = threading.Lock()

    def slow(data: bytes) -> np.ndarray:
        with lock:
            started.append(data)
        time.sleep(0.05)
        return decode(data)

    monkeypatch.setattr("pipeline.data.collate.decode", slow)
    batches = Collator(1, 40, 32, "crop", refuse)(work_of(60))
    next(batches)
    begin = time.perf_counter()
    batches.close()  # type: ignore[attr-defined]
    assert time.perf_counter() - begin < 2  # 120 images wait: 6 s if they were decoded
    assert len(started) < 30
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_an_error_of_the_source_reaches_the_consumer() -> None:
    def work() -> Iterator[list[Work]]:
        yield from work_of(2)
        raise OSError("the shard is gone")

    with pytest.raises(OSError, match="the shard is gone"):
        list(Collator(2, 5, 32, "crop", refuse)(work()))
