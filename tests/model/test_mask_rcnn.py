import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_model import CLASSES, TINY, anchor_count, scene, with_sampling, without_masks
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from model.build import build_model
from model.config import ModelConfig
from model.heads.rpn import RPN
from model.mask_rcnn import MaskRCNN, SamplingNoise
from model.ops.boxes import box_iou
from model.ops.mask_targets import targets_from_crops
from model.ops.masks import paste_full
from model.types import Batch, Losses, Proposals, Targets

RPN_NAMES, BOX_NAMES = ["rpn/objectness", "rpn/box"], ["box/class", "box/box"]
PROPOSALS = TINY.rpn.post_nms_train


def build(config: ModelConfig = TINY, seed: int = 0) -> MaskRCNN:
    torch.manual_seed(seed)
    return build_model(config).train()


def spread(model: MaskRCNN) -> MaskRCNN:
    """Scores and boxes that differ from place to place, as after training."""
    heads = [] if model.box is None else [model.box.scores, model.box.deltas]
    for layer in (*([model.rpn.objectness] if isinstance(model.rpn, RPN) else []), *heads):
        nn.init.normal_(layer.weight, std=0.3)
    return model


def noise_for(batch: Batch, seed: int = 0) -> SamplingNoise:
    assert batch.targets is not None
    generator = torch.Generator().manual_seed(seed)
    images, height, width = batch.images.shape[:3]
    padded = height + -height % 32, width + -width % 32
    slots = batch.targets.boxes.shape[1]
    return SamplingNoise(
        torch.rand(images, anchor_count(*padded), generator=generator),
        torch.rand(images, PROPOSALS + slots, generator=generator),
    )


def change(batch: Batch, targets: Callable[[Targets], Targets]) -> Batch:
    assert batch.targets is not None
    return dataclasses.replace(batch, targets=targets(batch.targets))


def gradients(model: MaskRCNN, losses: Losses) -> dict[str, Tensor]:
    model.zero_grad()
    sum(losses.values(), torch.zeros(())).backward()
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    missing = [name for name, p in trained if p.grad is None]
    assert not missing  # DDP would wait for them for ever
    return {name: p.grad.clone() for name, p in trained if p.grad is not None}


@pytest.fixture(scope="module")
def tiny() -> MaskRCNN:
    return spread(build())


# The loss


@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("masks", ["crop", "image", None])
def test_loss_has_fixed_shapes(samples: int, masks: str | None) -> None:
    """Fake tensors have shapes but no values: whatever asks for a value, or has a shape that needs one, raises."""
    config = with_sampling(TINY, samples)
    assert config.mask is not None
    config = dataclasses.replace(config, mask=None if masks is None else dataclasses.replace(config.mask, target=masks))
    with FakeTensorMode() as mode:
        model = build_model(config).train()
        batch = scene([2, 0])
        assert batch.targets is not None
        if masks == "image":
            batch = change(batch, lambda t: dataclasses.replace(t, masks=torch.zeros(2, 2, 96, 128, dtype=torch.uint8)))
        fake = Batch(
            *(mode.from_tensor(x) for x in (batch.images, batch.sizes, batch.original_sizes, batch.sample_ids)),
            Targets(*(mode.from_tensor(t) for t in every(batch.targets))),
        )
        losses = model(fake)
        assert list(losses) == RPN_NAMES + BOX_NAMES + ([] if masks is None else ["mask/mask"])
        assert all(loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())
        gradients(model, losses)
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            model.eval().predict(fake)  # so the mode does see what depends on data


@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("counts", [[0, 0], [2, 1]])
def test_every_parameter_gets_a_gradient(samples: int, counts: list[int]) -> None:
    model = build(with_sampling(TINY, samples))
    losses = model(scene(counts))
    assert all(loss.isfinite() for loss in losses.values())
    found = gradients(model, losses)
    assert all(g.isfinite().all() for g in found.values())
    if sum(counts):
        assert not [name for name, g in found.items() if not g.any()]
    else:
        assert losses["rpn/box"] == losses["box/box"] == losses["mask/mask"] == 0
        assert not any(g.any() for name, g in found.items() if name.startswith(("mask.", "box.deltas", "rpn.deltas")))
        assert found["box.scores.weight"].any() and found["rpn.objectness.weight"].any()


def test_frozen_parameters_get_none() -> None:
    model = build(dataclasses.replace(TINY, trunk=dataclasses.replace(TINY.trunk, norm="frozen_bn", freeze_stages=3)))
    gradients(model, model(scene([1, 1])))
    frozen = {name for name, p in model.named_parameters() if p.grad is None}
    assert {name.split(".")[2] for name in frozen} == {"conv1", "layer1", "layer2"}


def every(targets: Targets) -> list[torch.Tensor]:
    """Boxes, classes, valid and masks; these scenes have no keypoints."""
    assert targets.keypoints is None
    return [getattr(targets, f.name) for f in dataclasses.fields(Targets) if f.name != "keypoints"]


def pad_slots(more: int) -> Callable[[Targets], Targets]:
    """More slots that are not valid, full of what must not be read."""

    def padded(targets: Targets) -> Targets:
        assert targets.masks is not None
        images = len(targets.boxes)
        junk = torch.tensor([10.0, 10.0, 90.0, 80.0]).expand(images, more, 4)
        return Targets(
            torch.cat([targets.boxes, junk], 1),
            torch.cat([targets.classes, torch.full((images, more), CLASSES)], 1),
            torch.cat([targets.valid, torch.zeros(images, more, dtype=torch.bool)], 1),
            torch.cat([targets.masks, torch.ones(images, more, *targets.masks.shape[2:], dtype=torch.uint8)], 1),
        )

    return padded


@pytest.mark.parametrize("counts", [[3, 1], [0, 0]])
def test_padding_slots_change_nothing(tiny: MaskRCNN, counts: list[int]) -> None:
    batch = scene(counts)
    noise = noise_for(batch)
    losses = tiny(batch, noise)
    expected = gradients(tiny, losses)
    more = SamplingNoise(noise.anchors, torch.cat([noise.rois, torch.full((2, 7), 0.999)], 1))
    padded = tiny(change(batch, pad_slots(7)), more)
    assert {n: loss.item() for n, loss in padded.items()} == {n: loss.item() for n, loss in losses.items()}
    assert all(torch.equal(g, expected[name]) for name, g in gradients(tiny, padded).items())


def test_padding_pixels_change_nothing(tiny: MaskRCNN) -> None:
    batch = scene([2, 1], height=90, width=120)
    noise = noise_for(batch)
    wide = torch.full((2, 96, 128, 3), 255, dtype=torch.uint8)  # a loader pads with zeros; anything will do
    wide[:, :90, :120] = batch.images
    losses = tiny(batch, noise)
    for name, loss in tiny(dataclasses.replace(batch, images=wide), noise).items():
        assert torch.equal(loss, losses[name]), name


def test_order_of_images_changes_nothing(tiny: MaskRCNN) -> None:
    batch = scene([3, 0, 1])
    batch = dataclasses.replace(batch, sizes=torch.tensor([[96, 128], [70, 128], [96, 90]]))
    noise = noise_for(batch)
    losses = tiny(batch, noise)
    assert batch.targets is not None
    turned = Batch(
        *(x.flip(0) for x in (batch.images, batch.sizes, batch.original_sizes, batch.sample_ids)),
        Targets(*(t.flip(0) for t in every(batch.targets))),
    )
    again = tiny(turned, SamplingNoise(noise.anchors.flip(0), noise.rois.flip(0)))
    for name, loss in again.items():  # sums over images in another order: round-off only
        torch.testing.assert_close(loss, losses[name], rtol=1e-5, atol=1e-6)


def test_noise_decides(tiny: MaskRCNN) -> None:
    batch = scene([3, 1])
    first, again, other = (tiny(batch, noise_for(batch, seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first["rpn/objectness"] != other["rpn/objectness"] and first["box/class"] != other["box/class"]
    losses = []
    for _ in range(2):
        torch.manual_seed(5)
        losses.append(tiny(batch))
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in first)


@pytest.mark.parametrize("samples", [0, 2])
def test_gradient_is_the_slope(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Central differences of the whole loss along its gradient, in each part of the network."""
    model = build(with_sampling(TINY, samples))
    nn.init.normal_(model.box.deltas.weight, std=0.05)
    assert model.mask is not None
    nn.init.normal_(model.mask.layers.predictor.weight, std=0.1)
    batch = scene([2, 1], height=64, width=64)
    noise = noise_for(batch)
    proposals: list[Proposals] = []
    propose = model.rpn.propose

    def constant(*args: Any) -> Proposals:  # which boxes are proposed has no gradient, and jumps
        if not proposals:
            proposals.append(propose(*args))
        return proposals[0]

    monkeypatch.setattr(model.rpn, "propose", constant)

    def loss() -> float:
        with torch.no_grad():
            return sum(value.double().item() for value in model(batch, noise).values())

    found = gradients(model, model(batch, noise))
    parameters = dict(model.named_parameters())
    for part in ("trunk.body.layer2", "trunk.body.layer4", "trunk.lateral", "trunk.output", "rpn", "box", "mask"):
        names = [name for name in found if name.startswith(part)]
        length = sum(found[name].double().pow(2).sum().item() for name in names) ** 0.5
        assert length > 1e-3
        step = 4e-3 / length  # moves the loss by about 0.004 either way: far above round-off, still nearly straight
        step = min(step, 0.01)
        values = []
        for move in (step, -2 * step, step):
            with torch.no_grad():
                for name in names:
                    parameters[name].add_(found[name] * (move / length))
            values.append(loss())
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(length, rel=0.02), part


def test_loss_asks_for_what_it_needs(tiny: MaskRCNN) -> None:
    batch = scene([1])
    with pytest.raises(ValueError, match=r"batch\.targets.*predict"):
        tiny(dataclasses.replace(batch, targets=None))
    boxes_only = change(batch, lambda t: dataclasses.replace(t, masks=None))
    with pytest.raises(ValueError, match=r"targets\.masks.*model\.mask: null"):
        tiny(boxes_only)
    losses = build(without_masks(TINY))(boxes_only)
    assert list(losses) == RPN_NAMES + BOX_NAMES


def test_input_is_normalised(tiny: MaskRCNN) -> None:
    images = torch.randint(0, 256, (2, 50, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    got = tiny.normalise(images, torch.tensor([[50, 40], [33, 70]]))
    assert got.shape == (2, 3, 64, 96)
    assert got.is_contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(v)[:, None, None] for v in (TINY.input.mean, TINY.input.std))
    expected = torch.zeros(2, 3, 64, 96)
    expected[0, :, :50, :40] = (images[0, :50, :40].permute(2, 0, 1) - mean) / std
    expected[1, :, :33, :70] = (images[1, :33, :70].permute(2, 0, 1) - mean) / std
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_bgr_is_the_same_network_with_the_channels_turned_round() -> None:
    batch = scene([2, 1])
    rgb, bgr = build(), build(dataclasses.replace(TINY, input=dataclasses.replace(TINY.input, channels="bgr")))
    sizes = torch.tensor([[96, 128], [70, 101]])
    mine, theirs = bgr.normalise(batch.images, sizes), rgb.normalise(batch.images, sizes)
    assert torch.equal(mine, theirs[:, [2, 1, 0]]) and mine.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(mine, theirs)
    with torch.no_grad():
        bgr.trunk.body.conv1.weight.copy_(rgb.trunk.body.conv1.weight[:, [2, 1, 0]])
    noise = noise_for(batch)
    mine, theirs = bgr(batch, noise), rgb(batch, noise)
    for name, loss in theirs.items():
        torch.testing.assert_close(mine[name], loss, rtol=1e-5, atol=1e-6)


# Detections


def test_predict_refuses_train_mode() -> None:
    with pytest.raises(RuntimeError, match="eval"):
        build().predict(scene([1]))


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("samples", [0, 2])
def test_detections_are_in_the_original_image(samples: int, masks: bool) -> None:
    config = with_sampling(TINY if masks else without_masks(TINY), samples)
    model = spread(build(config)).eval()
    nn.init.normal_(model.box.deltas.weight, std=1.0)  # boxes that want to leave the image
    batch = scene([2, 1, 1], height=90, width=128)
    sizes = torch.tensor([[90, 128], [70, 128], [90, 60]])
    original = torch.tensor([[90, 128], [210, 256], [45, 90]])
    batch = dataclasses.replace(batch, sizes=sizes, original_sizes=sizes, targets=None)
    inputs = model.predict(batch)
    scaled = model.predict(dataclasses.replace(batch, original_sizes=original))
    cut = 0  # edges on the border
    for image, (small, large) in enumerate(zip(inputs, scaled, strict=True)):
        height, width = sizes[image].tolist()
        count = len(small.boxes)
        assert count > 2
        assert small.boxes.shape == (count, 4) and small.boxes.dtype == torch.float32
        assert small.scores.shape == (count,) and small.classes.shape == (count,)
        assert (small.boxes >= 0).all() and (small.boxes <= torch.tensor([width, height] * 2)).all()
        assert (small.boxes[:, 2:] > small.boxes[:, :2]).all()
        cut += int((small.boxes[:, :2] == 0).sum() + (small.boxes[:, 2:] == torch.tensor([width, height])).sum())
        assert (small.scores.diff() <= 0).all()
        assert (small.scores > TINY.box.score_threshold).all() and (small.scores <= 1).all()
        assert ((small.classes >= 1) & (small.classes <= CLASSES)).all()
        assert count <= TINY.box.detections_per_image
        for k in range(1, CLASSES + 1):
            own = small.boxes[small.classes == k]
            assert (box_iou(own, own) - torch.eye(len(own)) <= TINY.box.nms_iou + 1e-5).all()
        assert small.size == (height, width) and large.size == tuple(original[image].tolist())
        ratio = torch.tensor([large.size[1] / width, large.size[0] / height] * 2)
        torch.testing.assert_close(large.boxes, small.boxes * ratio, rtol=1e-5, atol=1e-4)
        assert (large.boxes <= torch.tensor([large.size[1], large.size[0]] * 2)).all()
        assert torch.equal(large.scores, small.scores) and torch.equal(large.classes, small.classes)
        assert (small.masks is not None) == (large.masks is not None) == masks
        if small.masks is not None and large.masks is not None:
            assert small.masks.shape == (count, 14, 14)
            assert ((small.masks >= 0) & (small.masks <= 1)).all()
            assert torch.equal(small.masks, large.masks)
    assert cut > 3


@pytest.mark.parametrize("samples", [0, 2])
def test_nothing_found(samples: int) -> None:
    config = with_sampling(TINY, samples)
    model = build(dataclasses.replace(config, box=dataclasses.replace(config.box, score_threshold=0.999))).eval()
    batch = dataclasses.replace(scene([0, 0]), images=torch.zeros(2, 96, 128, 3, dtype=torch.uint8))
    for found in model.predict(batch):
        assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.classes.shape == (0,)
        assert found.masks is not None and found.masks.shape == (0, 14, 14)


def test_images_do_not_mix(tiny: MaskRCNN) -> None:
    batch = scene([2, 0, 1])
    tiny.eval()
    together = tiny.predict(batch)
    for image, found in enumerate(together):
        one = slice(image, image + 1)
        (alone,) = tiny.predict(
            Batch(batch.images[one], batch.sizes[one], batch.original_sizes[one], batch.sample_ids[one], None)
        )
        assert len(found.boxes) > 10 and torch.equal(alone.classes, found.classes)
        torch.testing.assert_close(alone.boxes, found.boxes, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(alone.scores, found.scores, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.masks, found.masks, rtol=1e-3, atol=1e-3)
    tiny.train()


def test_pixels_are_read_in_the_frame_of_the_masks() -> None:
    """Where the picture is a mask, what the mask head reads of it is its own target."""
    assert TINY.mask is not None
    model = build(dataclasses.replace(TINY, mask=dataclasses.replace(TINY.mask, roi_size=14, pixel_channels=4)))
    batch = scene([3], height=96, width=128)
    targets = batch.targets
    assert targets is not None and targets.masks is not None and model.mask is not None
    generator = torch.Generator().manual_seed(0)
    boxes = targets.boxes[0] + (torch.rand(3, 4, generator=generator) - 0.5) * 6
    wanted = targets_from_crops(targets.masks[0], targets.boxes[0], boxes, 28)
    for i in range(3):
        image = paste_full(targets.masks[0, i : i + 1].float(), targets.boxes[0, i : i + 1], (96, 128)).float()
        pixels = model._pixels(model.mask, image[None].expand(-1, 3, -1, -1), boxes[i : i + 1], torch.tensor([0]))
        assert pixels is not None and pixels.shape == (1, 3, 28, 28)
        found, expected = pixels[0, 1] >= 0.5, wanted[i] > 0
        assert (found & expected).sum() / (found | expected).sum() > 0.95


def test_pixels_decide_masks_and_nothing_else() -> None:
    assert TINY.mask is not None
    config = dataclasses.replace(TINY, mask=dataclasses.replace(TINY.mask, pixel_channels=4))
    model = spread(build(config)).eval()
    assert model.mask is not None
    nn.init.normal_(model.mask.layers.predictor.weight, std=0.5)
    batch = dataclasses.replace(scene([2, 1]), targets=None)
    before = model.predict(batch)
    with torch.no_grad():
        model.mask.layers.pixels.look.weight.mul_(3)
    for one, other in zip(before, model.predict(batch), strict=True):
        assert torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)
        assert one.masks is not None and other.masks is not None and (one.masks - other.masks).abs().max() > 0.01
