"""Ground truth and features that a data set or a diverging run may bring: nothing ends in an error or in NaN."""

import dataclasses
from typing import Any

import pytest
import torch
from test_mask_rcnn import gradients, spread
from test_variants import CASCADE, KEYPOINT, build, variant
from tiny_model import CLASSES, scene, with_keypoints
from torch import Tensor

from model.config import ModelConfig
from model.types import CROP_SIZE, Batch, Targets
from model.views import View, predict_views

HEIGHT, WIDTH = 96, 128
BOXES: dict[str, Tensor] = {
    "a pixel": torch.tensor([[50.0, 40.0, 51.0, 41.0]]),
    "the corner pixels": torch.tensor(
        [
            [0.0, 0.0, 1.0, 1.0],
            [WIDTH - 1, 0, WIDTH, 1],
            [0, HEIGHT - 1, 1, HEIGHT],
            [WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT],
        ]
    ),
    "thin lines": torch.tensor([[0.0, 30.0, WIDTH, 30.02], [60.0, 0.0, 60.02, HEIGHT]]),
    "the whole image": torch.tensor([[0.0, 0.0, WIDTH, HEIGHT]]),
    "along the borders": torch.tensor(
        [[0.0, 0, 40, 5], [0, 0, 5, 40], [90, 91, WIDTH, HEIGHT], [WIDTH - 3, 50, WIDTH, 90]]
    ),
    "twenty times the same": torch.tensor([[20.0, 20.0, 60.0, 50.0]]).expand(20, 4),
    "three hundred": torch.cat(
        [c := torch.rand(300, 2, generator=torch.Generator().manual_seed(0)) * 80, c + 2 + c.flip(0) / 6], 1
    ),
}
CONFIGS = {
    "masks and keypoints": variant(keypoint=KEYPOINT),
    "cascade, giou": variant(box=CASCADE | {"box_loss": "giou"}),
    "adaptive, focal": variant(roi={"sampling_ratio": 0}, box={"focal_gamma": 2.0}),
}


def batch_of(boxes: Tensor) -> Batch:
    """An image with these boxes, every other mask of one cell, and one without any."""
    count = len(boxes)
    images = scene([2, 0], height=HEIGHT, width=WIDTH).images
    masks = torch.ones(2, count, CROP_SIZE, CROP_SIZE, dtype=torch.uint8)
    masks[:, 1::2] = 0
    masks[:, 1::2, 50, 60] = 1
    valid = torch.zeros(2, count, dtype=torch.bool)
    valid[0] = True
    classes = torch.arange(count).remainder(CLASSES).add(1).expand(2, -1)
    sizes = torch.tensor([[HEIGHT, WIDTH]] * 2)
    targets = Targets(torch.stack([boxes, torch.zeros_like(boxes)]), classes * valid, valid, masks)
    return with_keypoints(Batch(images, sizes, sizes, torch.arange(2), targets))


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> Any:
    return spread(build(CONFIGS[request.param])).train()


@pytest.mark.parametrize("name", BOXES)
def test_losses_and_gradients_are_numbers(model: Any, name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=model.cascade is not None):
        losses = model(batch_of(BOXES[name]))
    assert all(loss.isfinite() and loss >= 0 for loss in losses.values()), losses
    assert all(gradient.isfinite().all() for gradient in gradients(model, losses).values())
    assert losses["box/box"] > 0  # there are positives


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize(
    "config", [variant(keypoint=KEYPOINT), variant(box=CASCADE), variant(box={"nms": "soft_linear"})]
)
def test_features_that_are_no_numbers_end_nothing(config: ModelConfig, value: float) -> None:
    """A run that diverged is to be told by its loss, not by a crash; detections are finite or none."""
    model = build(config)
    with torch.no_grad():
        model.trunk.output[0].bias[3] = value
        model.trunk.output[2].bias[1] = value
    losses = model.train()(with_keypoints(scene([2, 1])))
    assert not torch.stack(list(losses.values())).sum().isfinite() or value == 1e30
    batch = dataclasses.replace(scene([2, 1]), targets=None)
    for found in (model.eval().predict(batch), predict_views(model, [View(batch), View(batch)])):
        for one in found:
            assert one.boxes.isfinite().all() and one.scores.isfinite().all()
            assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
