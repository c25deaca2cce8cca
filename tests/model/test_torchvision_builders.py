"""Which builder a state dict is of, on names and shapes alone, and what goes back to torchvision."""

import dataclasses
import inspect
import re
from operator import attrgetter

import pytest
import torch
import torchvision
from test_torchvision_weights import numbered
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from model.build import build_model
from model.config import BodyName, CascadeConfig, KeypointConfig, ModelConfig
from model.trunks.resnet import SHAPES
from model.weights.loading import compare
from model.weights.torchvision import COCO_CATEGORY_IDS, COCO_ROWS, from_torchvision, rows_of_classes, to_torchvision
from model.weights.torchvision_builders import (
    BUILDERS,
    CONVENTIONS,
    FILES_WITHOUT_EPS,
    builder_of,
    empty_state,
    other_conventions,
    recognise,
)


def network(builder: str, classes: int | None = None) -> nn.Module:
    with torch.device("meta"):
        made: nn.Module = getattr(detection, builder)(
            weights=None, weights_backbone=None, num_classes=None if classes is None else classes + 1
        )
    return made


def fits(state: dict[str, Tensor], config: ModelConfig) -> bool:
    report = compare(empty_state(config), from_torchvision(state, config.classes or 0))
    return not report.missing and not report.left and not report.mismatched


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("classes", [None, 7])
def test_every_builder_is_recognised(builder: str, classes: int | None) -> None:
    state = network(builder, classes).state_dict()
    found = recognise(state)
    usual = 1 if builder.startswith("keypoint") else 80
    assert found.builder == builder
    assert found.config.classes == (classes or usual)
    assert found.config.trunk.norm == "bn"  # of a builder without weights
    assert fits(state, found.config)
    frozen = {name: v for name, v in state.items() if not re.match(r"backbone\.body.*num_batches_tracked", name)}
    assert recognise(frozen).config.trunk.norm == "frozen_bn"


@pytest.mark.parametrize("body", [body for body in SHAPES if hasattr(torchvision.models, body)])
def test_every_resnet_is_recognised(body: BodyName) -> None:
    with torch.device("meta"):
        trunk = resnet_fpn_backbone(backbone_name=body, weights=None)
        state = detection.FasterRCNN(trunk, num_classes=4).state_dict()
    found = recognise(state)
    assert (found.builder, found.config.trunk.body) == ("fasterrcnn_resnet50_fpn", body)
    assert fits(state, found.config)


def test_a_number_of_keypoints() -> None:
    with torch.device("meta"):
        state = detection.keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_keypoints=5).state_dict()
    assert recognise(state).config.keypoint == KeypointConfig(count=5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["conv1.weight", "layer1.0.conv1.weight", "fc.weight"],
            "it is a classifier's; start training from it with init",
        ),
        (["features.0.0.weight", "classifier.0.weight"], "it is a classifier's"),
        (["trunk.body.conv1.weight", "box.scores.weight"], "a checkpoint of this project, which needs no import"),
        (["backbone.bottom_up.stem.conv1.weight"], "it is detectron2's"),
        (["backbone.layer1.0.conv1.weight", "rpn_head.rpn_conv.weight"], "it is mmdetection's"),
        (["backbone.body.conv1.weight", "head.classification_head.conv.0.0.weight"], "a one-stage detector's"),
        (["backbone.body.0.0.weight", "roi_heads.box_predictor.cls_score.weight"], "its body is no ResNet"),
        (["a.weight", "b.bias"], r"its 2 tensors have names such as a\.weight, b\.bias"),
        ([], "it is empty"),
    ],
)
def test_other_files_are_named(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"this is no torchvision R-CNN detector: .*{message}"):
        recognise({name: torch.zeros(2, 2) for name in names})


def test_a_body_that_is_not_known() -> None:
    with torch.device("meta"):
        trunk = resnet_fpn_backbone(backbone_name="wide_resnet50_2", weights=None)
        state = detection.FasterRCNN(trunk, num_classes=4).state_dict()
    with pytest.raises(ValueError, match=r"its body is none that is known here: stages of \[3, 4, 6, 3\] blocks"):
        recognise(state)


def test_heads_that_no_builder_has() -> None:
    both = network("maskrcnn_resnet50_fpn").state_dict() | network("keypointrcnn_resnet50_fpn").state_dict()
    with pytest.raises(
        ValueError, match="no R-CNN builder with masks, with keypoints and without norms in the pyramid"
    ):
        recognise(both)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("classes", [80, 4])
def test_there_and_back(builder: str, classes: int) -> None:
    """Ours -> torchvision's -> ours is the same, and torchvision's builder takes it without a name over or missing."""
    config = dataclasses.replace(BUILDERS[builder], classes=classes)
    ours = numbered(empty_state(config))
    rows, count = rows_of_classes(classes, COCO_CATEGORY_IDS if classes == 80 else None)
    assert count == (COCO_ROWS if classes == 80 else classes + 1)
    theirs = to_torchvision(ours, rows, count)
    back = from_torchvision(theirs, classes)
    assert back.keys() == ours.keys() and all(torch.equal(back[name], value) for name, value in ours.items())
    network(builder, count - 1).load_state_dict(theirs, strict=True, assign=True)


def test_rows_without_a_class_never_win() -> None:
    config = dataclasses.replace(BUILDERS["maskrcnn_resnet50_fpn"], classes=80)
    theirs = to_torchvision(numbered(empty_state(config)), COCO_CATEGORY_IDS, COCO_ROWS)
    never = [row for row in range(1, COCO_ROWS) if row not in COCO_CATEGORY_IDS]
    bias = theirs["roi_heads.box_predictor.cls_score.bias"]
    assert not theirs["roi_heads.box_predictor.cls_score.weight"][never].any()
    for dtype in (torch.float16, torch.float32):
        assert not torch.softmax(bias.to(dtype).float(), 0)[never].any()
    logits = torch.randn(3, 81)
    full = logits.new_full((3, COCO_ROWS), bias[never[0]].item())
    full[:, [0, *COCO_CATEGORY_IDS]] = logits
    torch.testing.assert_close(full.softmax(1)[:, [0, *COCO_CATEGORY_IDS]], logits.softmax(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trunk": {"body": "convnext_tiny"}}, "no R-CNN builder with model.trunk.body=convnext_tiny"),
        ({"trunk": {"body": "resnext152_32x8d"}}, "no R-CNN builder with model.trunk.body=resnext152_32x8d"),
        ({"trunk": {"norm": "gn"}}, "no R-CNN builder with model.trunk.norm=gn"),
        ({"rpn": None}, "no R-CNN builder with model.rpn=null"),
        ({"box": None, "mask": None}, "no R-CNN builder with model.box=null"),
        ({"keypoint": KeypointConfig(count=17)}, "with masks, with keypoints and without norms"),
        ({"trunk": {"neck": "c4"}}, "has other parameters: .* the first is"),
        ({"rpn": {"convs": 2}}, r"1 differ|2 differ, the first is rpn\.conv\.1\.weight, which mask.* does not have"),
        ({"mask": {"convs": 2}}, r"the first is mask\.layers\.convs\.conv\.2\.weight, which only maskrcnn"),
        ({"box": {"hidden": 64}}, r"the first is box\.fc\.0\.weight: \[64, 12544\] into \[1024, 12544\]"),
        ({"box": {"class_agnostic": True, "cascade": CascadeConfig()}}, "has other parameters"),
        ({"mask": {"scheme": "competing"}}, r"the first is mask\.layers\.predictor\.weight: \[91,"),
        ({"trunk": {"fpn_norm": "gn"}}, r"maskrcnn_resnet50_fpn_v2 has other parameters"),
    ],
)
def test_networks_that_torchvision_does_not_have(changes: dict[str, object], message: str) -> None:
    config = BUILDERS["maskrcnn_resnet50_fpn"]
    sections = {
        name: dataclasses.replace(getattr(config, name), **keys) if isinstance(keys, dict) else keys
        for name, keys in changes.items()
    }
    with pytest.raises(ValueError, match=message):
        builder_of(dataclasses.replace(config, **sections))  # type: ignore[arg-type]


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_builders_network_goes_back_to_it(builder: str) -> None:
    config = BUILDERS[builder]
    config = dataclasses.replace(config, trunk=dataclasses.replace(config.trunk, body="resnet101", norm="sync_bn"))
    found = builder_of(config)
    assert found.builder == builder and not other_conventions(config, found.config)


def test_conventions_that_differ_are_found() -> None:
    defaults = ModelConfig(classes=90)  # detectron2's
    differing = other_conventions(defaults, builder_of(defaults).config)
    assert differing["roi.aligned"] == (True, False)
    assert differing["mask.paste"] == ("exact", "integer")
    expected = {"rpn.anchors.rounded", "rpn.anchors.stride_from_grid", "rpn.min_size_px", "roi.sampling_ratio"}
    assert set(differing) == expected | {"roi.aligned", "box.min_size_px", "mask.paste"}


def test_conventions_are_keys_of_ours_and_arguments_of_theirs() -> None:
    full = dataclasses.replace(BUILDERS["maskrcnn_resnet50_fpn"], keypoint=KeypointConfig(count=17))
    arguments = inspect.signature(detection.MaskRCNN.__init__).parameters
    for key, argument in CONVENTIONS.items():
        attrgetter(key)(full)  # raises where there is none
        assert argument is None or argument in arguments


def test_files_that_torchvision_reads_without_eps() -> None:
    weights = [
        getattr(detection, f"{name}_ResNet50_FPN_Weights").COCO_V1
        for name in ("FasterRCNN", "MaskRCNN", "KeypointRCNN")
    ]
    assert tuple(re.findall(r"-([0-9a-f]{8})\.pth", w.url)[0] for w in weights) == FILES_WITHOUT_EPS


def test_mobilenet_classifiers_fill_their_body() -> None:
    config = BUILDERS["maskrcnn_resnet50_fpn"]
    config = dataclasses.replace(config, trunk=dataclasses.replace(config.trunk, body="mobilenet_v3_large", norm="bn"))
    with torch.device("meta"):
        state = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
        own = build_model(config).state_dict()
    report = compare(own, from_torchvision(state, 3))
    assert not report.mismatched and not [name for name in report.missing if name.startswith("trunk.body.")]
    assert all("classifier" in name for name in report.left)
