from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.config import BoxConfig, CascadeConfig, ModelConfig
from pipeline.benchmarks.variants import build_torchvision, distinct_models, measure_size, measure_step, random_batch
from pipeline.variants import load_table

R50 = ModelConfig(classes=80)
CASCADE = BoxConfig(class_agnostic=True, cascade=CascadeConfig())
MASK = 28 * 28 * 256  # multiply-adds of one RoI's mask from its features
PAPER = Path(__file__).parents[3] / "configs/paper"


@pytest.mark.parametrize(
    ("config", "size", "published"),
    [
        # detectron2's own test of the convolutions of trunk and RPN: 117 and a bit; its stride is in the 1x1
        (replace(R50, box=None, mask=None, trunk=replace(R50.trunk, stride_in="1x1")), (800, 800), 117.5e9),
        # mmdetection's get_flops, which counts norms and ReLUs too: half a percent. It makes all 80 masks, we make one.
        (R50, (800, 1280), 260.14e9 - 79 * 100 * MASK),
        (replace(R50, mask=None), (800, 1280), 207.07e9),
        (replace(R50, mask=None, box=CASCADE), (800, 1280), 234.71e9),
    ],
    ids=["proposals", "Mask R-CNN", "Faster R-CNN", "Cascade R-CNN"],
)
def test_multiply_adds_are_the_published_ones(config: ModelConfig, size: tuple[int, int], published: float) -> None:
    assert measure_size(config, *size).multiply_adds == pytest.approx(published, rel=0.005)


def test_small_parts_count() -> None:
    """A second deconvolution after the mask head's first: its work, and four times that of the mask."""
    assert R50.mask is not None
    plain, larger = (measure_size(replace(R50, mask=replace(R50.mask, deconvs=n)), 256, 256) for n in (1, 2))
    assert larger.parameters - plain.parameters == 256 * 256 * 4 + 256
    deconvolution = 28 * 28 * 256 * 256 * 4
    assert larger.multiply_adds - plain.multiply_adds == 100 * (deconvolution + 3 * MASK)


def test_every_model_once() -> None:
    models = distinct_models([load_table(PAPER / f"table_{name}.yaml") for name in ("2b", "2c")])
    assert list(models) == [
        "2b softmax",
        "2b sigmoid",
        "2b sigmoid, class-agnostic",
        *(f"2c {name}" for name in ("RoIPool, max", "RoIWarp, max", "RoIWarp, ave", "RoIAlign, max")),
    ]


def test_both_are_given_the_same_objects() -> None:
    torch.manual_seed(0)
    batch, whole = random_batch(96, 128, 5, 3)
    assert batch.targets is not None and whole.targets is not None and whole.targets.masks is not None
    assert torch.equal(batch.targets.boxes, whole.targets.boxes)
    for box, mask, points in zip(
        batch.targets.boxes[0], whole.targets.masks[0], batch.targets.keypoints[0], strict=True
    ):
        rows, columns = mask.nonzero().unbind(1)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert mask.sum() == (box[2] - box[0]) * (box[3] - box[1])
        assert ((points[:, :2] >= box[:2]) & (points[:, :2] <= box[2:])).all()


def test_torchvisions_model_is_the_one_with_weights() -> None:
    peer = build_torchvision(192, 256, 64)
    assert sum(p.numel() for p in peer.parameters()) == 44_401_393  # torchvision's documentation
    assert peer.roi_heads.fg_bg_sampler.batch_size_per_image == 64
    frozen = {name.split(".")[2] for name, p in peer.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}


def test_steps_are_timed() -> None:
    narrow = replace(R50, trunk=replace(R50.trunk, body="resnet18", fpn_channels=32))
    found = measure_step(narrow, 2, 64, 96, 8)
    assert len(found.ours) == len(found.torchvision) == 2 and min(*found.ours, *found.torchvision) > 0
    assert 0 < found.ratio < 1  # a smaller one
