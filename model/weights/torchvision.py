"""Weights of torchvision: ImageNet ResNets and its Mask / Faster R-CNN R50-FPN (v1), by a table of names.

`TORCHVISION_V1` is the set of conventions those detectors were trained under; with another their AP drops in silence.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import (
    AnchorConfig,
    BoxConfig,
    InputConfig,
    MaskConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
    TrunkConfig,
)

TORCHVISION_V1 = ModelConfig(
    classes=90,  # COCO's category ids 1..90, of which 80 occur
    input=InputConfig(),
    trunk=TrunkConfig(body="resnet50", norm="frozen_bn", stride_in="3x3", freeze_stages=2),
    rpn=RPNConfig(
        anchors=AnchorConfig(rounded=True, stride_from_grid=True),
        post_nms_train=2000,
        min_size_px=1e-3,
        box_beta=1 / 9,
        normaliser="sampled",
    ),
    roi=RoIConfig(sampling_ratio=2, aligned=False),
    box=BoxConfig(box_beta=1 / 9, min_size_px=1e-2),
    mask=MaskConfig(target="image", paste="integer"),
)

# COCO's 80 category ids in order: which of torchvision's 91 rows are real classes.
# fmt: off
COCO_CATEGORY_IDS = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 27, 28, 31, 32, 33, 34,
    35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63,
    64, 65, 67, 70, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 84, 85, 86, 87, 88, 89, 90,
)
# fmt: on

_NAMES = (  # torchvision -> ours; the first that matches the start of a name
    (r"^(conv1|bn1|layer[1-4])\b", r"trunk.body.\1"),  # an ImageNet classifier's file
    (r"^backbone\.body\.", r"trunk.body."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.", r"trunk.lateral.\1."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.", r"trunk.output.\1."),
    (r"^rpn\.head\.conv(?:\.0\.0)?\.", r"rpn.conv."),
    (r"^rpn\.head\.cls_logits\.", r"rpn.objectness."),
    (r"^rpn\.head\.bbox_pred\.", r"rpn.deltas."),
    (r"^roi_heads\.box_head\.fc6\.", r"box.fc.0."),
    (r"^roi_heads\.box_head\.fc7\.", r"box.fc.1."),
    (r"^roi_heads\.box_predictor\.cls_score\.", r"box.scores."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", r"box.deltas."),
    (r"^roi_heads\.mask_head\.(\d)\.0\.", r"mask.layers.convs.conv.\1."),
    (r"^roi_heads\.mask_head\.mask_fcn1\.", r"mask.layers.convs.conv.0."),  # files from before torchvision 0.13
    (r"^roi_heads\.mask_head\.mask_fcn2\.", r"mask.layers.convs.conv.1."),
    (r"^roi_heads\.mask_head\.mask_fcn3\.", r"mask.layers.convs.conv.2."),
    (r"^roi_heads\.mask_head\.mask_fcn4\.", r"mask.layers.convs.conv.3."),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", r"mask.layers.deconvs.0."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", r"mask.layers.predictor."),
)


def from_torchvision(state: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
    """A torchvision state dict under our names, for a model of `classes` object classes.

    Class layers lose the background where we have none (boxes, masks), and with 91 COCO rows and 80 classes the 11
    category ids that never occur. Names that belong to no layer of ours are kept as they are.
    """
    converted = {}
    for name, value in state.items():
        for pattern, replacement in _NAMES:
            ours, hits = re.subn(pattern, replacement, name)
            if hits:
                converted[ours] = _class_rows(ours, value, classes)
                break
        else:
            converted[name] = value
    return converted


def _class_rows(name: str, value: Tensor, classes: int) -> Tensor:
    layer = name.rsplit(".", 1)[0]
    per_class = {"box.scores": 1, "box.deltas": 4, "mask.layers.predictor": 1}.get(layer)
    if per_class is None:
        return value
    rows = value.reshape(-1, per_class, *value.shape[1:])
    objects = rows[1:]  # background first
    if len(rows) == 91 and classes == len(COCO_CATEGORY_IDS):
        objects = rows[torch.tensor(COCO_CATEGORY_IDS)]
    kept = torch.cat([rows[:1], objects]) if layer == "box.scores" else objects
    return kept.flatten(0, 1)


@dataclass(frozen=True)
class LoadReport:
    """What a state dict did to a model, by parameter name."""

    matched: tuple[str, ...]
    missing: tuple[str, ...]  # of the model, not in the file: left as initialised
    left: tuple[str, ...]  # of the file, without a place in the model
    mismatched: tuple[str, ...]  # "name: [file shape] into [model shape]": left as initialised

    def __str__(self) -> str:
        return (
            f"{len(self.matched)} tensors loaded, {len(self.missing)} missing, "
            f"{len(self.mismatched)} of another shape, "
            f"{len(self.left)} not used"
        )


def load_matching(model: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    """Copy every tensor of `state` that fits a parameter or buffer of `model` by name and shape.

    Raises:
        ValueError: nothing fits. The model is then unchanged.
    """
    own = model.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    matched = [name for name in own if name in state and own[name].shape == state[name].shape]
    mismatched = [
        f"{name}: {list(state[name].shape)} into {list(own[name].shape)}"
        for name in own
        if name in state and own[name].shape != state[name].shape
    ]
    if not any(name not in counters for name in matched):
        some = ", ".join(list(state)[:3])
        raise ValueError(
            f"no tensor of the weights fits the model; the file has {len(state)} tensors such as {some}; "
            "give a checkpoint of this project, or a torchvision ResNet or Mask R-CNN state dict of the model's depth"
        )
    model.load_state_dict({name: state[name] for name in matched}, strict=False)
    missing = [name for name in own if name not in state and name not in counters]
    left = [name for name in state if name not in own and not name.endswith("num_batches_tracked")]
    return LoadReport(tuple(matched), tuple(missing), tuple(left), tuple(mismatched))
