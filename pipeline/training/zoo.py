"""Detectors of torchvision as checkpoints of ours, and back.

found = read_torchvision(Path("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"))
write_import(found, Path("zoo/maskrcnn"))       # predict, evaluate, or train with init.weights=zoo/maskrcnn
export_torchvision(Path("zoo/maskrcnn"), Path("back.pth"))
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from model.build import build_model
from model.config import ModelConfig
from model.weights.loading import LoadReport, compare
from model.weights.torchvision import COCO_CATEGORY_IDS, COCO_ROWS, from_torchvision, rows_of_classes, to_torchvision
from model.weights.torchvision_builders import (
    CONVENTIONS,
    FILES_WITHOUT_EPS,
    builder_of,
    empty_state,
    other_conventions,
    recognise,
)
from pipeline.config import RunConfig, TrainConfig
from pipeline.configure import apply_overrides
from pipeline.data.keypoints import mirror_of
from pipeline.training.checkpoint import CheckpointError, Meta, load_model, read_tensors, save_checkpoint, versions

_PAIRS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_PERSON = ("person",)
_JOINTS = ("nose", *(f"{side}_{joint}" for joint in _PAIRS for side in ("left", "right")))  # COCO's 17


@dataclass(frozen=True)
class Import:
    """A file that is understood, and not yet written as a checkpoint."""

    source: Path
    builder: str  # of torchvision
    config: RunConfig
    meta: Meta
    state: Mapping[str, Tensor]  # under our names
    report: LoadReport
    notes: tuple[str, ...]  # what the file does not say, and what was assumed


@dataclass(frozen=True)
class Export:
    """What was written."""

    tensors: tuple[str, ...]  # torchvision's names
    call: str  # Python that builds the network it loads into
    notes: tuple[str, ...]  # where torchvision's detections are others with the same weights, and what was made up


def read_torchvision(path: Path, class_names: Sequence[str] | None = None, overrides: Sequence[str] = ()) -> Import:
    """Understand a state dict of a torchvision R-CNN builder; nothing is written.

    The network and its conventions are the builder's; precision is float32, as torchvision's. What the file cannot say
    (a BN eps, other anchors) is set by `overrides`, such as model.trunk.norm_eps=0.

    Args:
        path: .pth or .safetensors; the state dict, or what torchvision's reference scripts save.
        class_names: of the classes in the order of the file's rows, background not counted; None: COCO's, where the
            file has COCO's 91 rows (80 of them are classes) or is a keypoint detector's of one class (persons).
        overrides: `model.a.b=VALUE`.

    Raises:
        CheckpointError: the file cannot be read, is of something else, or has other classes.
    """
    state = read_tensors(path)
    try:
        builder, model = recognise(state)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    rows = len(state["roi_heads.box_predictor.cls_score.weight"])
    names, category_ids = _classes(path, rows, model, class_names)
    notes, flip = [], None
    if category_ids == COCO_CATEGORY_IDS:
        notes.append(
            f"rows of the file: {rows}, the background and COCO's ids 1..90; those of its 80 classes were taken"
        )
    if model.keypoint is not None and (names, model.keypoint.count) == (_PERSON, len(_JOINTS)):
        flip = mirror_of(_JOINTS, "torchvision")
    if model.trunk.norm == "frozen_bn":
        eps, why = _eps(path, model.trunk.norm_eps)
        model = replace(model, trunk=replace(model.trunk, norm_eps=eps))
        notes.append(why)
    model = replace(model, classes=len(names))
    config = apply_overrides(RunConfig(model=model, train=TrainConfig(precision="float32")), overrides)
    ours = from_torchvision(state, len(names))
    report = compare(empty_state(config.model), ours)
    meta = Meta(0, names, category_ids, "", path.stem, None, versions(), flip)
    return Import(path, builder, config, meta, ours, report, tuple(notes))


def write_import(found: Import, directory: Path) -> None:
    """Write a checkpoint that `load_model` reads; its step is 0.

    Raises:
        CheckpointError: `directory` exists, or the file lacks a part of the network: nothing is written then.
    """
    if directory.exists():
        raise CheckpointError(f"{directory} exists; give another --out, or delete it first")
    lacking = [*found.report.missing, *found.report.mismatched]
    if lacking:
        raise CheckpointError(
            f"{found.source} does not fill torchvision's {found.builder}: {len(found.report.missing)} tensors are "
            f"missing, {len(found.report.mismatched)} have another shape, the first is {lacking[0]}; nothing was "
            "written. Where the network is another one, say which with model.KEY=VALUE"
        )
    model = build_model(found.config.model)
    model.load_state_dict({name: found.state[name] for name in found.report.matched}, strict=False)
    save_checkpoint(directory, model, None, found.config, found.meta)


def export_torchvision(checkpoint: Path, path: Path) -> Export:
    """Write a checkpoint as a state dict of the torchvision builder that has the same network.

    It loads with strict=True. Where detections would be others, `notes` of the result say why.

    Args:
        checkpoint: directory.
        path: .pth or .safetensors, replaced if it exists.

    Raises:
        CheckpointError: torchvision has no such network, or the checkpoint cannot be read. Nothing is written then.
    """
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise CheckpointError(f"--out must end in .pth or .safetensors, got {path}")
    model, config, meta = load_model(checkpoint)
    try:
        builder, like = builder_of(config.model)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint}: {error}; it cannot be exported") from error
    rows, count = rows_of_classes(len(meta.class_names), meta.category_ids)
    state = {name: value.contiguous() for name, value in to_torchvision(model.state_dict(), rows, count).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".safetensors":
        save_file(state, beside)
    else:
        torch.save(state, beside)
    beside.replace(path)
    differing = other_conventions(config.model, like)
    notes = [
        f"model.{key} is {mine} here and {theirs} there, and the builder has no argument for it: detections differ"
        for key, (mine, theirs) in differing.items()
        if CONVENTIONS[key] is None and key != "trunk.norm_eps"
    ]
    if "trunk.norm_eps" in differing:
        eps = config.model.trunk.norm_eps
        notes.append(f"then set the BN eps: for module in model.backbone.body.modules(): module.eps = {eps}")
    if count > len(rows) + 1:
        notes.append(
            f"rows are COCO's ids as in torchvision's files; the {count - len(rows) - 1} without a class never win"
        )
    arguments: dict[str, object] = {"num_classes": count}
    if config.model.keypoint is not None:
        arguments["num_keypoints"] = config.model.keypoint.count
    for name, size, usual in (
        ("min_size", config.data.test_size_px, 800),
        ("max_size", config.data.test_max_size_px, 1333),
    ):
        if size != usual:
            arguments[name] = size
    for key, (mine, _) in differing.items():
        argument = CONVENTIONS[key]
        if isinstance(mine, tuple) and key.startswith("input."):
            mine = tuple(value / 255 for value in mine)
        if argument is not None:
            arguments[argument] = mine
    return Export(tuple(state), _call(builder, config.model.trunk.body, arguments), tuple(notes))


def _classes(
    path: Path, rows: int, model: ModelConfig, names: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and category ids of the classes to take from a file's rows. Raises CheckpointError."""
    if names is None:
        if rows == COCO_ROWS:
            coco = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
            return tuple(coco[i] for i in COCO_CATEGORY_IDS), COCO_CATEGORY_IDS
        if rows == 2 and model.keypoint is not None and model.keypoint.count == len(_JOINTS):
            return _PERSON, (1,)
        raise CheckpointError(
            f"{path} has {rows - 1} classes and not their names; name them with --classes, a file of a name a line or "
            f"a list: --classes {','.join('abc'[: min(rows - 1, 3)])}{',...' if rows > 4 else ''}"
        )
    wanted = (rows - 1, len(COCO_CATEGORY_IDS)) if rows == COCO_ROWS else (rows - 1,)
    if len(names) not in wanted:
        raise CheckpointError(
            f"--classes has {len(names)} names, {path} has {' or '.join(map(str, wanted))} classes "
            "(the background is not one of them)"
        )
    if len(set(names)) != len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise CheckpointError(f"--classes has {twice!r} twice; names must differ")
    ids = COCO_CATEGORY_IDS if len(names) < rows - 1 else tuple(range(1, rows))
    return tuple(names), ids


def _eps(path: Path, usual: float) -> tuple[float, str]:
    """Of frozen batch norm, which a file does not hold, and what to tell the user about it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest[:8] in FILES_WITHOUT_EPS:
        return 0.0, f"BN eps is 0, as torchvision sets it for this file of its own ({digest[:8]})"
    return usual, (
        f"BN eps {usual:g} is assumed, as nothing in the file tells; weights that come from torchvision's own COCO "
        "weights (v1) were trained with 0: then add model.trunk.norm_eps=0"
    )


def _call(builder: str, body: str, arguments: Mapping[str, object]) -> str:
    said = ", ".join(f"{name}={value}" for name, value in arguments.items())
    if body == "resnet50":
        return f"torchvision.models.detection.{builder}(weights=None, weights_backbone=None, {said})"
    network = {"f": "FasterRCNN", "m": "MaskRCNN", "k": "KeypointRCNN"}[builder[0]]
    heads = ", RPN, heads and norms as its v2 builder makes them" if builder.endswith("_v2") else ""
    trunk = f"resnet_fpn_backbone(backbone_name='{body}', weights=None)"
    return f"torchvision.models.detection.{network}({trunk}, {said}){heads}"
