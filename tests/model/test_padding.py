"""What padding must not do: hold detections, or reach the losses. (test_mask_rcnn.py: slots of ground truth.)

What it does: an image alone is padded to a multiple of 32 pixels, in a batch to the size of the largest one.
Convolutions see zeros there at first, and what biases make of zeros later, so features near the border differ.
"""

import dataclasses
from typing import Any

import pytest
import torch
from test_mask_rcnn import gradients, noise_for, spread
from test_variants import build, variant
from tiny_model import TINY, scene
from torch import Tensor

from model import mask_rcnn as module
from model.mask_rcnn import MaskRCNN, SamplingNoise
from model.ops.masks import paste_crops
from model.roi_targets import SampledRoIs
from model.types import Batch, Proposals

SIZES = [(90, 120), (64, 96), (96, 60), (33, 128), (150, 200)]  # height, width; the last is the largest


def one(image: Tensor, size: tuple[int, int], height: int, width: int) -> Batch:
    """An image of `size` in the corner of [height, width], white around it: padding may hold anything."""
    canvas = torch.full((1, height, width, 3), 255, dtype=torch.uint8)
    canvas[0, : size[0], : size[1]] = image[: size[0], : size[1]]
    sizes = torch.tensor([size])
    return Batch(canvas, sizes, sizes, torch.zeros(1, dtype=torch.int64), None)


def together(batches: list[Batch]) -> Batch:
    fields = ("images", "sizes", "original_sizes", "sample_ids")
    return Batch(*(torch.cat([getattr(b, name) for b in batches]) for name in fields), None)


@pytest.fixture(scope="module")
def tiny() -> MaskRCNN:
    return spread(build(TINY))


def test_no_detection_lies_in_the_padding() -> None:
    """Boxes that want to leave the image, five sizes in a batch; what the padding's pixels are does not matter."""
    model = spread(build(TINY)).eval()
    torch.nn.init.normal_(model.box.deltas.weight, std=1.0)  # type: ignore[union-attr]
    pictures = [scene([4], seed=seed, height=160, width=224).images[0] for seed in range(len(SIZES))]
    batch = together([one(p, size, 160, 224) for p, size in zip(pictures, SIZES, strict=True)])
    found = model.predict(batch)
    cut = 0
    for image, (height, width) in zip(found, SIZES, strict=True):
        limit = torch.tensor([width, height] * 2)
        assert len(image.boxes) > 9
        assert (image.boxes >= 0).all() and (image.boxes <= limit).all()
        assert (image.boxes[:, 2:] > image.boxes[:, :2]).all()  # so some of it lies inside
        cut += int((image.boxes[:, 2:] == limit[2:]).sum())
        assert image.masks is not None
        assert all(  # and its mask, pasted
            y + mask.shape[0] <= height and x + mask.shape[1] <= width
            for y, x, mask in paste_crops(image.masks, image.boxes, image.size)
        )
    assert cut > 20
    black = dataclasses.replace(batch, images=batch.images.clone())
    for picture, (height, width) in zip(black.images, SIZES, strict=True):
        picture[height:], picture[:, width:] = 0, 0
    for image, other in zip(found, model.predict(black), strict=True):
        assert torch.equal(image.boxes, other.boxes) and torch.equal(image.scores, other.scores)


def test_padding_reaches_no_further_than_the_network_sees() -> None:
    """Features far from the padding are those of the image alone; near it they are not (a bias of zeros is none)."""
    model = build(variant(trunk={"norm": "bn"})).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.bias, std=0.2)
    height, width, reach = (
        64,
        1024,
        320,
    )  # pixels; ResNet-18 sees 218 px to each side, the pyramid's convolutions 64 more
    picture = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.no_grad():
        alone, padded = (model.look(one(picture, (height, width), height, w)).pyramid for w in (width, width + 160))
    for level in (2, 3, 4, 5):
        cells = width // 2**level
        difference = (alone[level] - padded[level][..., :cells]).abs().amax((0, 1, 2)) / alone[level].std()
        assert difference[: cells - reach // 2**level].max() < 1e-4
        assert difference[-1] > 0.01


def all_losses(model: MaskRCNN, batch: Batch, noise: SamplingNoise) -> tuple[dict[str, float], dict[str, Tensor]]:
    losses = model(batch, noise)
    return {name: loss.item() for name, loss in losses.items()}, gradients(model, losses)


def same(one: Any, other: Any) -> bool:
    return one[0] == other[0] and all(torch.equal(g, other[1][name]) for name, g in one[1].items())


@pytest.mark.parametrize("counts", [[3, 1], [0, 2]])
@pytest.mark.parametrize("more", [1, 40])
def test_losses_do_not_see_padded_proposals(
    monkeypatch: pytest.MonkeyPatch, tiny: MaskRCNN, counts: list[int], more: int
) -> None:
    """More slots of proposals that are not real, full of what would be a perfect proposal: bit-equal losses."""
    batch = scene(counts)
    noise = noise_for(batch)
    expected = all_losses(tiny, batch, noise)
    propose = tiny.rpn.propose

    def padded(*arguments: Any) -> Proposals:
        boxes, logits, real = propose(*arguments)
        assert batch.targets is not None
        junk = batch.targets.boxes[:, :1].expand(-1, more, 4)
        return Proposals(
            torch.cat([boxes, junk], 1),
            torch.cat([logits, torch.full((2, more), -torch.inf)], 1),
            torch.cat([real, torch.zeros(2, more, dtype=torch.bool)], 1),
        )

    monkeypatch.setattr(tiny.rpn, "propose", padded)
    assert batch.targets is not None
    count = noise.rois.shape[1] - batch.targets.boxes.shape[1]
    rois = torch.cat([noise.rois[:, :count], torch.full((2, more), 0.9999), noise.rois[:, count:]], 1)
    assert same(all_losses(tiny, batch, SamplingNoise(noise.anchors, rois)), expected)


@pytest.mark.parametrize("counts", [[3, 1], [0, 2], [0, 0]])
def test_losses_do_not_see_padded_rois(monkeypatch: pytest.MonkeyPatch, tiny: MaskRCNN, counts: list[int]) -> None:
    """Slots for which there was no RoI hold anything, such as ground truth: bit-equal losses."""
    batch = scene(counts)
    noise = noise_for(batch)
    propose = tiny.rpn.propose

    def few(*arguments: Any) -> Proposals:  # so that slots stay empty
        boxes, logits, real = propose(*arguments)
        return Proposals(boxes, logits, real & (torch.arange(real.shape[1]) < 9))

    monkeypatch.setattr(tiny.rpn, "propose", few)
    expected = all_losses(tiny, batch, noise)
    sample = module.sample_rois
    empty = 0

    def filled(*arguments: Any) -> SampledRoIs:
        nonlocal empty
        rois = sample(*arguments)
        targets = batch.targets
        assert targets is not None
        empty += int((~rois.valid).sum())
        return dataclasses.replace(
            rois,
            boxes=torch.where(rois.valid[..., None], rois.boxes, targets.boxes[:, :1] + 3),
            truth_index=torch.where(rois.valid, rois.truth_index, 1),
        )

    monkeypatch.setattr(module, "sample_rois", filled)
    assert same(all_losses(tiny, batch, noise), expected)
    assert empty > 10


@pytest.mark.parametrize("counts", [[3, 1], [0, 2], [0, 0]])
@pytest.mark.parametrize("more", [1, 40])
def test_losses_do_not_see_more_slots_of_rois(
    monkeypatch: pytest.MonkeyPatch, tiny: MaskRCNN, counts: list[int], more: int
) -> None:
    """Slots added behind the positives and at the end, full of ground truth."""
    batch = scene(counts)
    noise = noise_for(batch)
    expected = all_losses(tiny, batch, noise)
    sample = module.sample_rois

    def padded(*arguments: Any) -> SampledRoIs:
        rois = sample(*arguments)
        targets = batch.targets
        assert targets is not None
        junk = SampledRoIs(
            targets.boxes[:, :1].expand(-1, more, 4) + 3,
            torch.zeros(2, more, dtype=torch.int64),
            torch.ones(2, more, dtype=torch.int64),
            torch.zeros(2, more, dtype=torch.bool),
            0,
        )
        cut = rois.positives
        fields = ("boxes", "classes", "truth_index", "valid")
        return SampledRoIs(
            *(
                torch.cat([getattr(rois, f)[:, :cut], getattr(junk, f), getattr(rois, f)[:, cut:], getattr(junk, f)], 1)
                for f in fields
            ),
            positives=cut + more,
        )

    monkeypatch.setattr(module, "sample_rois", padded)
    losses, gradient = all_losses(tiny, batch, noise)
    assert losses == expected[0]
    for name, wanted in expected[1].items():  # a weight's gradient is a float32 sum over RoIs in the order of the slots
        assert (gradient[name] - wanted).abs().max() <= 1e-6 * wanted.abs().max(), name
