import dataclasses
import re
from collections.abc import Iterator

import pytest
import torch
import torchvision
from tiny_model import TINY
from torch import Tensor

from model.build import build_model
from model.config import BodyName
from model.mask_rcnn import MaskRCNN
from model.weights.loading import load_matching
from model.weights.torchvision import COCO_CATEGORY_IDS, from_torchvision
from model.weights.torchvision_builders import TORCHVISION_V1


def numbered(empty: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the shapes of `empty`; each row holds its own number."""
    state = {}
    for name, value in empty.items():
        rows = torch.arange(value.shape[0] if value.ndim else 1, dtype=torch.float32)
        state[name] = rows.reshape(-1, *[1] * (value.ndim - 1)).expand(value.shape or (1,)).reshape(value.shape)
    return state


@pytest.fixture(scope="module")
def detector() -> dict[str, Tensor]:
    """Names and shapes of torchvision's COCO Mask R-CNN; each row of a class layer holds its own number."""
    with torch.device("meta"):
        network = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    return numbered(network.state_dict())


def meta(depth: BodyName, classes: int) -> MaskRCNN:
    with torch.device("meta"):
        return build_model(
            dataclasses.replace(
                TORCHVISION_V1, classes=classes, trunk=dataclasses.replace(TORCHVISION_V1.trunk, body=depth)
            )
        )


@pytest.mark.parametrize("depth", ["resnet18", "resnet50"])
@pytest.mark.parametrize("norm", ["frozen_bn", "bn"])
def test_imagenet_classifier(depth: BodyName, norm: str) -> None:
    torch.manual_seed(0)
    classifier = torchvision.models.get_model(depth, weights=None).state_dict()
    model = build_model(dataclasses.replace(TINY, trunk=dataclasses.replace(TINY.trunk, body=depth, norm=norm)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_matching(model, from_torchvision(classifier, 3))
    state = model.state_dict()
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    assert set(report.matched) | counters == {name for name in state if name.startswith("trunk.body.")} | counters
    assert set(report.left) == {"fc.weight", "fc.bias"} and not report.mismatched
    assert set(report.missing) == {name for name in state if not name.startswith("trunk.body.")}
    for name, value in state.items():
        if name.startswith("trunk.body."):
            assert torch.equal(value, classifier[name.removeprefix("trunk.body.")])
        else:
            assert torch.equal(value, before[name])
    counts = re.findall(r"\d+", str(report))
    assert [int(c) for c in counts] == [len(report.matched), len(report.missing), 0, 2]


def test_all_of_a_detector_fits(detector: dict[str, Tensor]) -> None:
    for classes in (90, 80):
        converted = from_torchvision(detector, classes)
        shapes = {name: value.shape for name, value in converted.items()}
        own = {name: value.shape for name, value in meta("resnet50", classes).state_dict().items()}
        assert {n: s for n, s in shapes.items() if not n.endswith("num_batches_tracked")} == own


def class_rows(state: dict[str, Tensor]) -> Iterator[tuple[str, list[float]]]:
    for layer in ("box.scores", "box.deltas", "mask.layers.predictor"):
        for kind in ("weight", "bias"):
            rows = state[f"{layer}.{kind}"].flatten(1) if kind == "weight" else state[f"{layer}.{kind}"][:, None]
            assert (rows == rows[:, :1]).all()
            yield layer, rows[:, 0].tolist()


def test_rows_of_the_80_coco_classes(detector: dict[str, Tensor]) -> None:
    ids = COCO_CATEGORY_IDS
    never = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # ids that COCO's detection set skips, and 91
    assert list(ids) == [i for i in range(1, 91) if i not in never] and len(ids) == 80
    expected = {
        "box.scores": [0, *ids],  # the background stays
        "box.deltas": [4 * i + j for i in ids for j in range(4)],
        "mask.layers.predictor": list(ids),
    }
    for layer, rows in class_rows(from_torchvision(detector, 80)):
        assert rows == expected[layer]


def test_all_91_rows_are_kept_for_90_classes(detector: dict[str, Tensor]) -> None:
    expected = {
        "box.scores": list(range(91)),
        "box.deltas": list(range(4, 364)),
        "mask.layers.predictor": list(range(1, 91)),
    }
    for layer, rows in class_rows(from_torchvision(detector, 90)):
        assert rows == expected[layer]


def test_names_from_before_torchvision_0_13(detector: dict[str, Tensor]) -> None:
    renames = [
        (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1."),
        (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    ]
    renames += [(rf"mask_head\.{i}\.0\.", f"mask_head.mask_fcn{i + 1}.") for i in range(4)]
    old = {}
    for name, value in detector.items():
        for new, before in renames:
            name = re.sub(new, before, name)
        old[name] = value
    assert sum(name not in detector for name in old) == 16 + 2 + 8
    new, converted = from_torchvision(detector, 80), from_torchvision(old, 80)
    assert set(converted) == set(new)
    assert all(torch.equal(value, new[name]) for name, value in converted.items())


def test_our_own_names_stay(detector: dict[str, Tensor]) -> None:
    ours = from_torchvision(detector, 80)
    again = from_torchvision(ours, 80)
    assert all(again[name] is value for name, value in ours.items())


def test_rows_of_another_number_of_classes_are_reported() -> None:
    torch.manual_seed(0)
    model = build_model(TINY)
    other = build_model(dataclasses.replace(TINY, classes=5)).state_dict()
    kept = model.box.scores.weight.detach().clone()
    report = load_matching(model, other)
    assert len(report.mismatched) == 6 and not report.missing and not report.left
    assert "box.scores.weight: [6, 32] into [4, 32]" in report.mismatched
    assert torch.equal(model.box.scores.weight, kept)
    assert torch.equal(model.box.fc[0].weight, other["box.fc.0.weight"])


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"blocks.0.attention.weight": torch.zeros(3, 3)},
        {"rpn.conv.weight": torch.zeros(1, 1, 3, 3)},  # the name, but not the shape
        {"trunk.body.bn1.num_batches_tracked": torch.tensor(7)},  # a counter is no weight
    ],
)
def test_weights_that_do_not_fit_at_all(state: dict[str, Tensor]) -> None:
    model = build_model(dataclasses.replace(TINY, trunk=dataclasses.replace(TINY.trunk, norm="bn")))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="no tensor of the weights fits the model; the file has") as error:
        load_matching(model, state)
    assert all(name in str(error.value) for name in state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
