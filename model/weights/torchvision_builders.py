"""torchvision's R-CNN builders as configurations, and which of them a state dict is of.

A builder's configuration is the set of conventions its weights were trained under; with others AP drops in silence.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models import resnet

from model.build import build_model
from model.config import (
    AnchorConfig,
    BodyName,
    BoxConfig,
    InputConfig,
    KeypointConfig,
    MaskConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
    TrunkConfig,
)
from model.trunks.resnet import SHAPES
from model.weights.loading import compare
from model.weights.torchvision import COCO_CATEGORY_IDS, COCO_ROWS, from_torchvision

_RPN = RPNConfig(
    anchors=AnchorConfig(order="ratio_major", rounded=True, stride_from_grid=True),
    post_nms_train=2000,
    min_size_px=1e-3,
    box_beta=1 / 9,
    normaliser="sampled",
)
TORCHVISION_V1 = ModelConfig(
    classes=90,  # COCO's category ids 1..90, of which 80 occur
    input=InputConfig(),
    trunk=TrunkConfig(body="resnet50", norm="frozen_bn", stride_in="3x3", freeze_stages=2),
    rpn=_RPN,
    roi=RoIConfig(sampling_ratio=2, aligned=False),
    box=BoxConfig(box_beta=1 / 9, min_size_px=1e-2),
    mask=MaskConfig(target="image", paste="integer"),
)
TORCHVISION_V2 = replace(
    TORCHVISION_V1,
    trunk=TrunkConfig(body="resnet50", norm="bn", stride_in="3x3", freeze_stages=0, fpn_norm="bn"),
    rpn=replace(_RPN, convs=2),
    box=BoxConfig(convs=4, norm="bn", layers=1, box_beta=1 / 9, min_size_px=1e-2),
    mask=MaskConfig(norm="bn", target="image", paste="integer"),
)
BUILDERS: dict[str, ModelConfig] = {
    "fasterrcnn_resnet50_fpn": replace(TORCHVISION_V1, mask=None),
    "maskrcnn_resnet50_fpn": TORCHVISION_V1,
    "keypointrcnn_resnet50_fpn": replace(TORCHVISION_V1, classes=1, mask=None, keypoint=KeypointConfig(count=17)),
    "fasterrcnn_resnet50_fpn_v2": replace(TORCHVISION_V2, mask=None),
    "maskrcnn_resnet50_fpn_v2": TORCHVISION_V2,
}

# torchvision reads these weights with a BN eps of 0 (`overwrite_eps`); nothing in them says so. The first 8 digits of
# the file's SHA-256, which are in its name too: fasterrcnn, maskrcnn and keypointrcnn, COCO_V1.
FILES_WITHOUT_EPS = ("258fb6c6", "bf2d0c1e", "fc266e95")

# What detections depend on beside the weights, and the builder's argument for it where it has one.
CONVENTIONS: dict[str, str | None] = {
    "input.mean": "image_mean",
    "input.std": "image_std",
    "input.channels": None,
    "input.divisor": None,
    "trunk.norm_eps": None,
    "trunk.stride_in": None,
    "rpn.anchors.sizes_px": None,
    "rpn.anchors.ratios": None,
    "rpn.anchors.rounded": None,
    "rpn.anchors.stride_from_grid": None,
    "rpn.pre_nms_test": "rpn_pre_nms_top_n_test",
    "rpn.post_nms_test": "rpn_post_nms_top_n_test",
    "rpn.nms_iou": "rpn_nms_thresh",
    "rpn.min_size_px": None,
    "roi.operation": None,
    "roi.sampling_ratio": None,
    "roi.aligned": None,
    "roi.canonical_size_px": None,
    "roi.canonical_level": None,
    "box.roi_size": None,
    "box.weights": "bbox_reg_weights",
    "box.score_threshold": "box_score_thresh",
    "box.nms": None,
    "box.nms_iou": "box_nms_thresh",
    "box.min_size_px": None,
    "box.detections_per_image": "box_detections_per_img",
    "mask.roi_size": None,
    "mask.paste": None,
    "mask.threshold": None,
    "keypoint.roi_size": None,
}


class Recognised(NamedTuple):
    """What a state dict is of."""

    builder: str
    config: ModelConfig


def recognise(state: Mapping[str, Tensor]) -> Recognised:
    """The builder that a state dict is of, and the model that it needs; 91 rows are COCO's 80 classes.

    Raises:
        ValueError: it is of something else; the message says of what, where that can be told.
    """
    scores = state.get("roi_heads.box_predictor.cls_score.weight")
    if scores is None or not any(name.startswith("backbone.body.layer") for name in state):
        raise ValueError(f"this is no torchvision R-CNN detector: {_kind(state)}")
    rows = len(scores)
    classes = len(COCO_CATEGORY_IDS) if rows == COCO_ROWS else rows - 1
    names = from_torchvision(state, classes)
    traits = ("mask.layers.predictor.weight", "keypoint.deconv.weight", "trunk.lateral_norm.0.weight")
    builder = _builder(*(trait in names for trait in traits))
    config = BUILDERS[builder]
    # FrozenBatchNorm2d counts no batches.
    counts = any(name.startswith("trunk.body.") and name.endswith("num_batches_tracked") for name in names)
    trunk = replace(config.trunk, body=_body(names), norm="bn" if counts else "frozen_bn")
    keypoint = config.keypoint
    if keypoint is not None:
        keypoint = replace(keypoint, count=names["keypoint.deconv.weight"].shape[1])
    return Recognised(builder, replace(config, classes=classes, trunk=trunk, keypoint=keypoint))


def builder_of(config: ModelConfig) -> Recognised:
    """The builder whose network has the parameters of `config`, with its own conventions.

    Raises:
        ValueError: torchvision has no such network; the message says where it differs.
    """
    for key, value, there in (
        ("trunk.body", config.trunk.body, config.trunk.body in SHAPES and hasattr(resnet, config.trunk.body)),
        ("trunk.norm", config.trunk.norm, config.trunk.norm != "gn"),
        ("rpn", config.rpn, config.rpn is not None),
        ("box", config.box, config.box is not None),
    ):
        if not there:
            raise ValueError(f"torchvision has no R-CNN builder with model.{key}={value or 'null'}")
    builder = _builder(config.mask is not None, config.keypoint is not None, config.trunk.fpn_norm is not None)
    like = BUILDERS[builder]
    keypoint = like.keypoint
    if keypoint is not None and config.keypoint is not None:
        keypoint = replace(keypoint, count=config.keypoint.count)
    trunk = replace(
        like.trunk, body=config.trunk.body, norm=config.trunk.norm, freeze_stages=config.trunk.freeze_stages
    )
    like = replace(like, classes=config.classes, trunk=trunk, keypoint=keypoint)
    report = compare(empty_state(like), empty_state(config))
    differing = [
        *report.mismatched,
        *(f"{name}, which {builder} does not have" for name in report.left),
        *(f"{name}, which only {builder} has" for name in report.missing),
    ]
    if differing:
        raise ValueError(
            f"torchvision's {builder} has other parameters: {len(differing)} differ, the first is {differing[0]}"
        )
    return Recognised(builder, like)


def empty_state(config: ModelConfig) -> dict[str, Tensor]:
    """The state dict of a model without memory for it."""
    with torch.device("meta"):
        return build_model(config).state_dict()


def other_conventions(config: ModelConfig, like: ModelConfig) -> dict[str, tuple[object, object]]:
    """Where detections differ with the same weights: key -> (value of `config`, value of `like`)."""
    found = {}
    for key in CONVENTIONS:
        section = getattr(config, key.split(".")[0])
        if section is not None and attrgetter(key)(config) != attrgetter(key)(like):
            found[key] = (attrgetter(key)(config), attrgetter(key)(like))
    return found


def _builder(mask: bool, keypoint: bool, norms: bool) -> str:
    """The builder with these heads, and with norms in the pyramid or without. Raises ValueError."""
    heads = {(False, False): "faster", (True, False): "mask", (False, True): "keypoint"}.get((mask, keypoint))
    builder = f"{heads}rcnn_resnet50_fpn{'_v2' if norms else ''}"
    if builder not in BUILDERS:
        said = ("with" if has else "without" for has in (mask, keypoint, norms))
        raise ValueError(
            "torchvision has no R-CNN builder {} masks, {} keypoints and {} norms in the pyramid".format(*said)
        )
    return builder


def _body(names: Mapping[str, Tensor]) -> BodyName:
    """Which ResNet a state dict under our names has. Raises ValueError."""
    stages = [{n.split(".")[3] for n in names if n.startswith(f"trunk.body.layer{stage}.")} for stage in (1, 2, 3, 4)]
    middle = names.get("trunk.body.layer1.0.conv2.weight")
    found = (
        tuple(map(len, stages)),
        "trunk.body.layer1.0.conv3.weight" in names,
        None if middle is None else tuple(middle.shape[:2]),
    )
    for body, shape in SHAPES.items():
        width = shape.group_width * shape.groups  # in the first stage
        if found == (shape.blocks, shape.bottleneck, (width, shape.group_width)):
            return body
    raise ValueError(
        f"its body is none that is known here: stages of {list(found[0])} blocks, the first {found[2]} channels wide; "
        f"known are {', '.join(SHAPES)}"
    )


_KINDS = (
    (r"trunk\.", "it is the model.safetensors of a checkpoint of this project, which needs no import"),
    (
        r"(fc\.weight|classifier\.|features\.\d+\.)",
        "it is a classifier's; start training from it with init.weights=FILE",
    ),
    (r"backbone\.bottom_up\.", "it is detectron2's, whose names are not known yet"),
    (r"(neck\.|rpn_head\.|roi_head\.|bbox_head\.)", "it is mmdetection's, whose names are not known yet"),
    (r"head\.(classification|regression)_head\.", "it is a one-stage detector's (RetinaNet, SSD, FCOS)"),
    (r"backbone\.(body\.)?(features\.)?\d+\.", "its body is no ResNet"),
)


def _kind(state: Mapping[str, Tensor]) -> str:
    for pattern, kind in _KINDS:
        if any(re.match(pattern, name) for name in state):
            return kind
    some = ", ".join(list(state)[:3])
    return f"its {len(state)} tensors have names such as {some}" if state else "it is empty"
