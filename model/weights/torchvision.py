"""torchvision's weights under our names, and ours under its: ImageNet classifiers and the R-CNN builders, v1 and v2.

The names alone: which network and which conventions go with them is in torchvision_builders.py.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# COCO's 80 category ids in order: which of torchvision's 91 rows are real classes.
# fmt: off
COCO_CATEGORY_IDS = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 27, 28, 31, 32, 33, 34,
    35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63,
    64, 65, 67, 70, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 84, 85, 86, 87, 88, 89, 90,
)
# fmt: on
COCO_ROWS = 91  # of torchvision's class layers: the background and category ids 1..90

_LONGEST = 16  # convolutions in a row of one head, more than any builder has
_PER_CLASS = {"box.scores": 1, "box.deltas": 4, "mask.layers.predictor": 1}  # outputs a class
_NEVER = -1e4  # class logit of a row that is no class: its probability is 0 in every precision


def _layers(box_convs: int) -> dict[str, str]:
    """torchvision's layers -> ours, after the body. `box_convs`: how many the box head has; its fc layers follow."""
    layers = {
        "rpn.head.cls_logits": "rpn.objectness",
        "rpn.head.bbox_pred": "rpn.deltas",
        "roi_heads.box_predictor.cls_score": "box.scores",
        "roi_heads.box_predictor.bbox_pred": "box.deltas",
        "roi_heads.mask_predictor.conv5_mask": "mask.layers.deconvs.0",
        "roi_heads.mask_predictor.mask_fcn_logits": "mask.layers.predictor",
        "roi_heads.keypoint_predictor.kps_score_lowres": "keypoint.deconv",
    }
    for i in range(_LONGEST):
        layers |= {
            f"backbone.fpn.inner_blocks.{i}.0": f"trunk.lateral.{i}",
            f"backbone.fpn.inner_blocks.{i}.1": f"trunk.lateral_norm.{i}",
            f"backbone.fpn.layer_blocks.{i}.0": f"trunk.output.{i}",
            f"backbone.fpn.layer_blocks.{i}.1": f"trunk.output_norm.{i}",
            f"rpn.head.conv.{i}.0": f"rpn.conv.{i}",
            f"roi_heads.box_head.{i}.0": f"box.convs.conv.{i}",
            f"roi_heads.box_head.{i}.1": f"box.convs.norm.{i}",
            f"roi_heads.mask_head.{i}.0": f"mask.layers.convs.conv.{i}",
            f"roi_heads.mask_head.{i}.1": f"mask.layers.convs.norm.{i}",
            f"roi_heads.keypoint_head.{2 * i}": f"keypoint.convs.conv.{i}",  # a ReLU after each
        }
        fc = f"box_head.{box_convs + 1 + 2 * i}" if box_convs else f"box_head.fc{6 + i}"  # a flatten, then ReLUs too
        layers[f"roi_heads.{fc}"] = f"box.fc.{i}"
    return layers


def _old_layers() -> dict[str, str]:
    """The same of files from before torchvision 0.13, where they differ."""
    layers = {"rpn.head.conv": "rpn.conv.0"}
    for i in range(_LONGEST):
        layers |= {
            f"backbone.fpn.inner_blocks.{i}": f"trunk.lateral.{i}",
            f"backbone.fpn.layer_blocks.{i}": f"trunk.output.{i}",
            f"roi_heads.mask_head.mask_fcn{i + 1}": f"mask.layers.convs.conv.{i}",
        }
    return layers


def from_torchvision(state: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
    """A torchvision state dict under our names, for a model of `classes` object classes.

    Class layers lose the background where we have none (boxes, masks), and with 91 COCO rows and 80 classes the 10
    rows that are no class. Names that belong to no layer of ours are kept as they are.
    """
    box_convs = sum(bool(re.fullmatch(r"roi_heads\.box_head\.\d+\.0\.weight", name)) for name in state)
    layers = _old_layers() | _layers(box_convs)
    converted = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if re.match(r"(conv1|bn1|layer[1-4]|features)\b", name):  # an ImageNet classifier's file
            name = f"trunk.body.{name}"
        elif name.startswith("backbone.body."):
            name = f"trunk.body.{name.removeprefix('backbone.body.')}"
        elif layer in layers:
            layer = layers[layer]
            name = f"{layer}.{kind}"
            if layer in _PER_CLASS:
                value = _rows_of(layer, value, classes)
        converted[name] = value
    return converted


def to_torchvision(state: Mapping[str, Tensor], rows: Sequence[int], count: int) -> dict[str, Tensor]:
    """Our state dict under torchvision's names: `from_torchvision` undone. Names without a place there are kept.

    Rows that we do not have are made up: boxes and masks of the background, which torchvision never reads, are 0, and
    rows that are no class (10 of COCO's 91) have a logit that makes them impossible.

    Args:
        state: of a model.
        rows: of classes 1..K in torchvision's class layers.
        count: rows of those, the background included.
    """
    box_convs = sum(bool(re.fullmatch(r"box\.convs\.conv\.\d+\.weight", name)) for name in state)
    layers = {ours: theirs for theirs, ours in _layers(box_convs).items()}
    converted = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if name.startswith("trunk.body."):
            name = f"backbone.body.{name.removeprefix('trunk.body.')}"
        elif layer in layers:
            name = f"{layers[layer]}.{kind}"
            if layer in _PER_CLASS:
                value = _rows_into(layer, kind, value, rows, count)
        converted[name] = value
    return converted


def rows_of_classes(classes: int, category_ids: Sequence[int] | None) -> tuple[tuple[int, ...], int]:
    """Rows of classes 1..K in torchvision's class layers, and how many it has: COCO's are its category ids."""
    if category_ids is not None and tuple(category_ids) == COCO_CATEGORY_IDS:
        return COCO_CATEGORY_IDS, COCO_ROWS
    return tuple(range(1, classes + 1)), classes + 1


def _rows_of(layer: str, value: Tensor, classes: int) -> Tensor:
    rows = value.reshape(-1, _PER_CLASS[layer], *value.shape[1:])
    objects = rows[1:]  # background first
    if len(rows) == COCO_ROWS and classes == len(COCO_CATEGORY_IDS):
        objects = rows[torch.tensor(COCO_CATEGORY_IDS)]
    kept = torch.cat([rows[:1], objects]) if layer == "box.scores" else objects
    return kept.flatten(0, 1)


def _rows_into(layer: str, kind: str, value: Tensor, rows: Sequence[int], count: int) -> Tensor:
    own = value.reshape(-1, _PER_CLASS[layer], *value.shape[1:])
    scores = layer == "box.scores"
    full = own.new_full((count, *own.shape[1:]), _NEVER if scores and kind == "bias" else 0.0)
    full[[0, *rows] if scores else list(rows)] = own
    return full.flatten(0, 1)
