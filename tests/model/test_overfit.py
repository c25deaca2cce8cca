"""A tiny network learns two images by heart: the loss, the detections and the masks fit together."""

import dataclasses

import pytest
import torch
from tiny_model import TINY, scene
from torch import Tensor, nn

from model.build import build_model
from model.mask_rcnn import MaskRCNN
from model.ops.boxes import box_iou
from model.ops.masks import paste_full
from model.types import Batch, Detections

STEPS = 120
CONFIG = dataclasses.replace(
    TINY,
    trunk=dataclasses.replace(TINY.trunk, norm="bn", freeze_stages=5, fpn_channels=32),  # random features are enough
    box=dataclasses.replace(TINY.box, hidden=64),
)


def the_images() -> Batch:
    return scene([2, 1], height=64, width=96)


def on_canvas(batch: Batch, height: int, width: int) -> Batch:
    """The same images, as a loader pads them for a batch with a larger one."""
    images = torch.zeros(len(batch.images), height, width, 3, dtype=torch.uint8)
    images[:, : batch.images.shape[1], : batch.images.shape[2]] = batch.images
    return dataclasses.replace(batch, images=images)


@pytest.fixture(scope="module")
def learned() -> tuple[MaskRCNN, list[dict[str, float]]]:
    torch.manual_seed(0)
    model, batch = build_model(CONFIG).train(), the_images()
    for module in model.trunk.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.momentum = None  # statistics: the mean over all that it sees
    with torch.no_grad():
        model.trunk.body(model.normalise(batch.images, batch.sizes))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.0)
    padded = on_canvas(batch, 96, 128)
    history = []
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 10) * (0.2 if step > 0.75 * STEPS else 1)
        losses: dict[str, Tensor] = model((batch, padded)[step % 2])
        optimiser.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimiser.step()
        history.append({name: loss.item() for name, loss in losses.items()})
    return model.eval(), history


def check(found: Detections, batch: Batch, image: int) -> None:
    """The best detections are the objects, each with its class, its box and its mask."""
    targets = batch.targets
    assert targets is not None and targets.masks is not None and found.masks is not None
    real = targets.valid[image]
    iou = box_iou(targets.boxes[image, real], found.boxes[: int(real.sum())])
    best, which = iou.max(1)
    assert best.min() > 0.5, iou
    assert sorted(which.tolist()) == list(range(int(real.sum())))
    assert torch.equal(found.classes[which], targets.classes[image, real])
    assert found.scores[which].min() > 0.5
    masks = paste_full(found.masks[which], found.boxes[which], found.size)
    truth = paste_full(targets.masks[image, real].float(), targets.boxes[image, real], found.size)
    overlap = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
    assert overlap.min() > 0.5, overlap


def test_every_loss_falls(learned: tuple[MaskRCNN, list[dict[str, float]]]) -> None:
    _, history = learned
    assert sum(history[-1].values()) < 0.5 * sum(history[0].values())
    first, last = history[0], {name: sum(losses[name] for losses in history[-5:]) / 5 for name in history[0]}
    for name in ("rpn/objectness", "rpn/box", "box/class"):
        assert last[name] < 0.3 * first[name], name
    assert last["mask/mask"] < 0.7 * first["mask/mask"]


def test_objects_are_found(learned: tuple[MaskRCNN, list[dict[str, float]]]) -> None:
    model, _ = learned
    batch = the_images()
    for image, found in enumerate(model.predict(batch)):
        check(found, batch, image)


def test_objects_are_found_in_a_larger_padded_batch(learned: tuple[MaskRCNN, list[dict[str, float]]]) -> None:
    model, _ = learned
    batch = the_images()
    canvas = on_canvas(batch, 96, 128)
    other = torch.randint(0, 256, (1, 96, 128, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    sizes = torch.tensor([[64, 96], [64, 96], [96, 128]])
    together = model.predict(Batch(torch.cat([canvas.images, other]), sizes, sizes, torch.arange(3), None))
    for image, alone in enumerate(model.predict(batch)):
        found, count = together[image], (2, 1)[image]
        check(found, batch, image)
        # Not equal: at the border convolutions see features of the padding, which are not zero after a bias.
        assert torch.equal(found.classes[:count].sort()[0], alone.classes[:count].sort()[0])
        assert (box_iou(found.boxes[:count], alone.boxes[:count]).amax(1) > 0.5).all()
        assert (found.boxes <= torch.tensor([96.0, 64.0, 96.0, 64.0])).all()
