"""configs/paper/: every row of the paper's tables is a network that trains and detects.

Losses, gradients and numbers of parameters are of the networks as they are, on a whole image, by tensors without
numbers (FakeTensorMode: nothing is allocated, shapes that depend on the data raise). Numbers come from the same rows
with small bodies and widths (`SLIM`); the bodies by themselves are tested against torchvision's in tests/model/.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch._subclasses import FakeTensorMode
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork

from model.build import build_model
from model.config import ModelConfig
from model.mask_rcnn import MaskRCNN
from model.types import Batch, Targets
from pipeline.config import RunConfig
from pipeline.configure import to_yaml
from pipeline.variants import Row, Table, load_table, row_config, row_model

PAPER = Path(__file__).parents[2] / "configs/paper"
TABLES = ("1", "2a", "2b", "2c", "2d", "2e", "3", "4", "5", "6", "7", "8")
SLIM = (
    "model.trunk.body=resnet18",
    "model.trunk.norm=gn",
    "model.trunk.fpn_channels=32",
    "model.rpn.pre_nms_train=100",
    "model.rpn.pre_nms_test=50",
    "model.rpn.post_nms_train=50",
    "model.rpn.post_nms_test=20",
    "model.roi.batch_per_image=16",
    "model.box.hidden=32",
    "model.box.score_threshold=0.0",
    "model.box.detections_per_image=5",
)


@functools.cache
def table(name: str) -> Table:
    return load_table(PAPER / f"table_{name}.yaml")


VARIANTS: list[tuple[Table, Row, RunConfig]] = [
    (table(name), row, row_config(table(name), row)) for name in TABLES for row in table(name).variants
]


def distinct(models: Iterator[tuple[str, ModelConfig]]) -> dict[str, ModelConfig]:
    """The first name of each."""
    found: dict[ModelConfig, str] = {}
    for name, model in models:
        found.setdefault(model, name)
    return {name: model for model, name in found.items()}


FULL = distinct((f"{t.table} {row.name}", row_model(t, row)) for t, row, _ in VARIANTS)


def slim(model: ModelConfig, full: ModelConfig) -> ModelConfig:
    """Narrow heads too, where the row has them."""
    mask = full.mask and dataclasses.replace(full.mask, channels=16, hidden=16)
    keypoint = full.keypoint and dataclasses.replace(full.keypoint, channels=16)
    return dataclasses.replace(model, classes=full.classes, mask=mask, keypoint=keypoint)


SMALL = distinct(
    (f"{t.table} {row.name}", slim(row_config(t, row, SLIM).model, row_model(t, row))) for t, row, _ in VARIANTS
)


def batch(model: ModelConfig, height: int, width: int) -> Batch:
    """An image with three objects, another with none."""
    sizes = torch.tensor([[height, width]] * 2)
    corner = torch.tensor([[0.1, 0.1], [0.3, 0.2], [0.5, 0.4]]) * torch.tensor([width, height])
    boxes = torch.cat([corner, corner + 0.4 * torch.tensor([width, height])], 1)
    joints = 0 if model.keypoint is None else model.keypoint.count or 0
    points = torch.cat([boxes[:, None, :2] + 3 * torch.arange(joints)[:, None], torch.full((3, joints, 1), 2.0)], -1)
    targets = Targets(
        boxes=torch.stack([boxes, torch.zeros_like(boxes)]),
        classes=torch.ones(2, 3, dtype=torch.int64),
        valid=torch.tensor([[True], [False]]).expand(2, 3),
        masks=(torch.arange(112 * 112).reshape(112, 112) % 3 > 0).to(torch.uint8).expand(2, 3, 112, 112),
        keypoints=torch.stack([points, torch.zeros_like(points)]) if joints else None,
    )
    images = (torch.arange(2 * height * width * 3) % 251).to(torch.uint8).reshape(2, height, width, 3)
    return Batch(images, sizes, sizes, torch.arange(2), targets)


def names_of_losses(model: ModelConfig) -> set[str]:
    heads = {"mask/mask": model.mask, "keypoint/keypoint": model.keypoint}
    return {"rpn/objectness", "rpn/box", "box/class", "box/box"} | {name for name, head in heads.items() if head}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def by_torchvision(model: ModelConfig) -> int:
    """Parameters of the same network, made of torchvision's pieces (and for C4, C5 and MLPs counted by hand)."""
    assert model.box is not None and model.classes is not None
    with torch.device("meta"):
        if model.trunk.body == "resnext152_32x8d":
            bottleneck = torchvision.models.resnet.Bottleneck
            body = torchvision.models.ResNet(bottleneck, [3, 8, 36, 3], groups=32, width_per_group=8)
        else:
            body = torchvision.models.get_model(model.trunk.body, weights=None)
        pyramid = FeaturePyramidNetwork([256, 512, 1024, 2048], 256)
        channels = {"fpn": 256, "c4": 1024, "c5": 2048}[model.trunk.neck]
        crop = 256 if model.trunk.neck == "fpn" else 2048
        rpn = RPNHead(channels, 3 if model.trunk.neck == "fpn" else 15)
        total = parameters(body) - parameters(body.fc)
        total -= sum(parameters(m) for m in body.modules() if isinstance(m, nn.BatchNorm2d))  # frozen
        total += parameters(rpn) + (parameters(pyramid) if model.trunk.neck == "fpn" else 0)
        if model.trunk.non_local:
            total += 3 * (1024 * 512 + 512) + 512 * 1024 + 1024
        width = 1024
        if model.trunk.neck == "c4":
            width = 2048
        else:
            total += parameters(TwoMLPHead(crop * 7 * 7, 1024))
        predictor = FastRCNNPredictor(width, model.classes + 1)
        total += parameters(predictor) - 4 * (width + 1)  # it regresses a box of the background too
        if model.mask is not None and model.mask.head == "mlp":
            assert model.mask.scheme == "independent"
            hidden = [nn.Linear(crop * 14 * 14, 1024), *(nn.Linear(1024, 1024) for _ in range(model.mask.layers - 1))]
            total += sum(map(parameters, hidden)) + parameters(nn.Linear(1024, model.classes * 28**2))
        elif model.mask is not None:
            masks = {"independent": model.classes, "competing": model.classes + 1, "agnostic": 1}[model.mask.scheme]
            convolutions = MaskRCNNHeads(crop, [] if model.trunk.neck == "c4" else [256] * 4, 1)
            last = crop if model.trunk.neck == "c4" else 256
            total += parameters(convolutions) + parameters(MaskRCNNPredictor(last, 256, masks))
        if model.keypoint is not None:
            total += parameters(KeypointRCNNHeads(crop, [512] * 8)) + parameters(KeypointRCNNPredictor(512, 17))
    return total


def test_the_files_are_the_papers_tables() -> None:
    assert {path.stem for path in PAPER.glob("table_*.yaml")} == {f"table_{name}" for name in TABLES}
    assert [table(name).table for name in TABLES] == list(TABLES)


def test_one_model_has_one_number() -> None:
    """A row that several tables repeat (R50-C4 in 2a, 2b and 2c) is the same run there, with the same numbers."""
    numbers: dict[tuple[object, ...], set[float]] = {}
    for t, row, config in VARIANTS:
        for column, number in zip(t.columns, row.paper or (), strict=True):
            if number is not None:
                run = (t.data, row.start or t.start, to_yaml(config), column.metric, column.split)
                numbers.setdefault(run, set()).add(number)
    assert sum(map(len, numbers.values())) > 100
    repeated = {run: found for run, found in numbers.items() if len(found) > 1}
    assert not repeated


def test_the_papers_recipe() -> None:
    for t, row, config in VARIANTS:
        batch_images = 8 if "X1" in row.name or t.data == "cityscapes" else 16
        rate = config.optim.lr * config.train.batch_images / config.optim.lr_batch_images
        assert (config.train.batch_images, rate) == (batch_images, 0.02 * batch_images / 16), row.name  # 3.1
        assert config.model.roi.batch_per_image == (64 if config.model.trunk.neck == "c4" else 512)  # 3.1
        assert config.model.rpn.post_nms_test == (300 if config.model.trunk.neck == "c4" else 1000)  # 3.1
        assert config.model.roi.sampling_ratio == 2
        assert config.optim.gamma == 0.1 and config.optim.momentum == 0.9 and config.optim.weight_decay == 1e-4


@pytest.mark.parametrize("name", FULL)
def test_full_size(name: str) -> None:
    config = FULL[name]
    with FakeTensorMode():
        model = build_model(config).train()
        pyramids: list[dict[int, torch.Tensor]] = []
        model.trunk.register_forward_hook(lambda module, inputs, pyramid: pyramids.append(pyramid))
        losses = model(batch(config, 800, 1333))
        torch.stack(list(losses.values())).sum().backward()
        assert losses.keys() == names_of_losses(config)
        assert all(loss.shape == () for loss in losses.values())
        trains = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert [n for n, p in trains.items() if p.grad is None or p.grad.shape != p.shape] == []
        (pyramid,) = pyramids
        check_shapes(model, config, pyramid)
        frozen = {n.split(".")[2] for n, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {"conv1", "layer1"}  # the stem and res2
    assert parameters(model) == by_torchvision(config)


def check_shapes(model: MaskRCNN, config: ModelConfig, pyramid: dict[int, torch.Tensor]) -> None:
    """The levels, and what heads make of crops, have the paper's shapes (figure 4, section 5)."""
    grids = {level: (-(-800 // 2**level), -(-1344 // 2**level)) for level in config.trunk.levels}
    assert {level: tuple(feature.shape[2:]) for level, feature in pyramid.items()} == grids
    boxes, index = torch.zeros(7, 4), torch.zeros(7, dtype=torch.int64)
    assert config.box is not None and model.box is not None
    scores, deltas = model.box(model.trunk.crop(pyramid, boxes, index, config.box.roi_size))
    assert scores.shape == (7, config.classes + 1) and deltas.shape == (7, config.classes, 4)
    if config.mask is not None and model.mask is not None:
        masks = {"independent": config.classes, "competing": config.classes + 1, "agnostic": 1}[config.mask.scheme]
        side = 14 if config.trunk.neck == "c4" else 28
        crops = model.trunk.crop(pyramid, boxes, index, 14)
        assert model.mask.layers(crops, None, None, None).shape == (7, masks, side, side)
    if model.keypoint is not None:
        assert model.keypoint(model.trunk.crop(pyramid, boxes, index, 14)).shape == (7, 17, 56, 56)


@pytest.mark.parametrize("name", SMALL)
def test_small_ones_have_losses_and_detect(name: str) -> None:
    config = SMALL[name]
    torch.manual_seed(0)
    model = build_model(config).train()
    inputs = batch(config, 96, 128)
    losses = model(inputs)
    assert losses.keys() == names_of_losses(config)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    trains = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in trains.items() if p.grad is None or not p.grad.isfinite().all()] == []
    heads = [n for n in trains if n.startswith(("rpn.", "box.", "mask.", "keypoint.")) and n.endswith("weight")]
    assert [n for n in heads if not trains[n].grad.any()] == []
    for found in model.eval().predict(dataclasses.replace(inputs, targets=None)):
        count = len(found.scores)
        assert 0 < count <= 5 and found.boxes.shape == (count, 4) and found.size == (96, 128)
        side = 14 if config.trunk.neck == "c4" else 28
        assert (None if found.masks is None else found.masks.shape) == ((count, side, side) if config.mask else None)
        joints = (count, 17, 3) if config.keypoint else None
        assert (None if found.keypoints is None else found.keypoints.shape) == joints
