"""A checkpoint is a directory that rebuilds the model alone: model.safetensors, config.yaml, meta.json, state.pt.

It is written beside its place and renamed, so a torn one never looks whole. Nothing in it is unpickled: state.pt
(momentum) is read with weights_only=True.
"""

import json
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.build import build_model
from model.mask_rcnn import MaskRCNN
from model.weights.torchvision import LoadReport, from_torchvision, load_matching
from pipeline.config import RunConfig
from pipeline.configure import from_yaml_text, to_yaml
from pipeline.errors import UserError

MODEL, CONFIG, STATE, META = "model.safetensors", "config.yaml", "state.pt", "meta.json"
FORMAT_VERSION = 1
_UNUSABLE_STATE = (  # what torch raises on damaged files, and optimisers on those of something else
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError),
)


class CheckpointError(UserError):
    """A checkpoint or weights file that cannot be used."""


@dataclass(frozen=True)
class Meta:
    """What a checkpoint is of."""

    step: int  # steps trained; the next one is this
    class_names: tuple[str, ...]  # of classes 1..K
    category_ids: tuple[int, ...]  # of the data set, of classes 1..K
    dataset_fingerprint: str
    run_name: str
    mlflow_run_id: str | None
    versions: dict[str, str]  # of torch, torchvision, ray
    keypoint_flip: tuple[int, ...] | None = None  # source.Keypoints.flip of the data set, where it has keypoints
    format_version: int = FORMAT_VERSION


def checkpoint_name(step: int) -> str:
    """The directory name of a checkpoint in its run's directory; names sort by step."""
    return f"step_{step:07d}"


def save_checkpoint(
    directory: Path, model: MaskRCNN, optimiser: torch.optim.Optimizer, config: RunConfig, meta: Meta
) -> None:
    """Write a checkpoint to `directory`, whole or not at all."""
    beside = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, beside / MODEL)
    (beside / CONFIG).write_text(to_yaml(config), encoding="utf-8")
    torch.save(optimiser.state_dict(), beside / STATE)
    (beside / META).write_text(json.dumps(asdict(meta), indent=2) + "\n", encoding="utf-8")
    if directory.exists():  # an earlier try at this step, from before a restart
        old = directory.with_name(f".{directory.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        directory.rename(old)
        beside.rename(directory)
        shutil.rmtree(old)
    else:
        beside.rename(directory)


def read_meta(directory: Path) -> tuple[RunConfig, Meta]:
    """The configuration and the description of a checkpoint. Raises CheckpointError."""
    missing = [name for name in (MODEL, CONFIG, STATE, META) if not (directory / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} is no checkpoint: it lacks {', '.join(missing)}; give one such as runs/NAME/step_0001000"
        )
    try:
        content = json.loads((directory / META).read_bytes())
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{directory} has format {version}, this version reads format {FORMAT_VERSION}")
        content["class_names"] = tuple(content["class_names"])
        content["category_ids"] = tuple(content["category_ids"])
        if content.get("keypoint_flip") is not None:
            content["keypoint_flip"] = tuple(content["keypoint_flip"])
        return from_yaml_text((directory / CONFIG).read_text(encoding="utf-8")), Meta(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{directory}/{META} or {CONFIG} cannot be read: {error}") from error


def load_model(directory: Path, config: RunConfig | None = None) -> tuple[MaskRCNN, RunConfig, Meta]:
    """The model of a checkpoint with its weights, on the CPU. Raises CheckpointError.

    `config` may differ from the checkpoint's own (None) in all that the weights do not depend on.
    """
    own, meta = read_meta(directory)
    config = config or own
    model = build_model(config.model)
    load_weights(model, directory)
    return model, config, meta


def load_weights(model: MaskRCNN, directory: Path) -> None:
    """Copy a checkpoint's weights into `model`; every tensor must fit. Raises CheckpointError."""
    state = _read_tensors(directory / MODEL)
    own = model.state_dict()
    wrong = [n for n in own if n not in state or state[n].shape != own[n].shape] + [n for n in state if n not in own]
    if wrong:
        raise CheckpointError(
            f"{directory}/{MODEL} does not fit the model: {len(wrong)} tensors differ in name or shape, the first is "
            f"{wrong[0]}; the model section of the configuration must be that of the checkpoint"
        )
    model.load_state_dict(state)


def load_optimiser(optimiser: torch.optim.Optimizer, directory: Path) -> None:
    """Continue with a checkpoint's momentum, but with the optimiser's own settings. Raises CheckpointError."""
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimiser.param_groups]
    try:
        optimiser.load_state_dict(torch.load(directory / STATE, map_location="cpu", weights_only=True))
    except _UNUSABLE_STATE as error:
        raise CheckpointError(f"{directory}/{STATE} cannot be used: {error}") from error
    for group, settings in zip(optimiser.param_groups, own, strict=True):
        group.update(settings)


def initialise(model: MaskRCNN, path: Path, classes: int) -> LoadReport:
    """Start from a checkpoint directory, or from a torchvision state dict in a .pth or .safetensors file.

    Layers that do not fit (another number of classes, say) keep their random weights; the report names them.

    Raises:
        CheckpointError: the file cannot be read, or nothing in it fits. The model is then unchanged.
    """
    if path.is_dir():
        read_meta(path)
        state: Mapping[str, Tensor] = _read_tensors(path / MODEL)
    else:
        state = from_torchvision(_read_tensors(path), classes)
    try:
        return load_matching(model, state)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no weights file {path}") from error
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} holds no readable tensors (damaged, or a pickle with code): {error}") from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]  # torchvision's reference scripts save {"model": ..., "optimizer": ...}
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is no state dict: it must be a mapping from names to tensors")
    return state


def furthest(*checkpoints: Path | None) -> Path | None:
    """The one with the most steps of those that are there; the first of equals. Raises CheckpointError."""
    there = [path for path in checkpoints if path is not None and (path / META).is_file()]
    return max(there, key=lambda path: read_meta(path)[1].step, default=None)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint of a run with the most steps, if it has one."""
    found = sorted(path for path in run_dir.glob("step_*") if (path / META).is_file())
    return found[-1] if found else None
