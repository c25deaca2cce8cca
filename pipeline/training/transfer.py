"""`init.transfer`: a checkpoint of some classes starts a run on other classes.

Whatever a run does with it is decided here, once for the driver, which shows it, and for the workers, which do it.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from model.config import ModelConfig
from model.mask_rcnn import MaskRCNN
from model.weights.class_names import Match, UnknownClassError, match_classes
from model.weights.transfer import (
    HEAD_MEANINGS,
    TRUNK_MEANINGS,
    NoTransferError,
    Transferred,
    class_layers,
    other_meanings,
    transfer,
)
from pipeline.config import RunConfig
from pipeline.training.checkpoint import MODEL, CheckpointError, read_meta, read_tensors


@dataclass(frozen=True)
class Transfer:
    """What a checkpoint gives to a model."""

    checkpoint: Path
    matches: tuple[Match, ...]  # of the data's classes
    source_names: tuple[str, ...]  # of the checkpoint's
    unused: tuple[str, ...]  # of those, what no class comes from
    class_layers: tuple[str, ...]  # that exist in both
    tensors: Transferred
    notes: tuple[str, ...]  # conventions of heads that differ

    @property
    def shared(self) -> int:
        """Classes that both have."""
        return sum(match.source is not None for match in self.matches)

    def __str__(self) -> str:
        names = self.tensors
        return (
            f"{self.shared} of {len(self.matches)} classes transferred from {self.checkpoint}; {len(names.copied)} "
            f"tensors copied, {len(names.mapped)} by class, {len(names.new)} new, {len(names.left)} not used"
        )


def transfer_weights(model: MaskRCNN, config: RunConfig, class_names: tuple[str, ...]) -> Transfer:
    """Fill a model with the weights of init.weights, as init.transfer says, and say what became of what.

    Args:
        model: of `config`, as initialised: what is new keeps that.
        config: of the run.
        class_names: of its data.

    Raises:
        CheckpointError: no checkpoint, another trunk, or a map that names what is not there. The model is unchanged.
    """
    wanted, place = config.init.transfer, config.init.weights
    assert wanted is not None and place is not None
    path = Path(place)
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is no checkpoint directory: it does not say which classes it has; make one of a file of "
            "torchvision with `maskrcnn import FILE --out CHECKPOINT`"
        )
    earlier, meta = read_meta(path)
    check_same_trunk(path, earlier.model, config.model)
    try:
        matches = match_classes(class_names, meta.class_names, wanted.classes)
    except UnknownClassError as error:
        raise CheckpointError(f"init.transfer.classes: {error}") from error
    seed = config.train.seed if wanted.seed is None else wanted.seed
    try:
        found = transfer(
            read_tensors(path / MODEL),
            model.state_dict(),
            earlier.model,
            config.model,
            [match.source for match in matches],
            wanted.new_rows,
            torch.Generator().manual_seed(seed),
        )
    except NoTransferError as error:
        raise CheckpointError(
            f"{path}: {error}; give the model section of its config.yaml (`maskrcnn transfer --network checkpoint`)"
        ) from error
    model.load_state_dict(found.state)
    used = {match.source for match in matches}
    notes = other_meanings(earlier.model, config.model, HEAD_MEANINGS)
    layers = class_layers(config.model)
    return Transfer(
        path,
        tuple(matches),
        meta.class_names,
        tuple(name for number, name in enumerate(meta.class_names, 1) if number not in used),
        tuple(layer for layer in layers if f"{layer}.weight" in found.mapped),
        found,
        tuple(f"model.{key} is {old} in the checkpoint, {new} here" for key, (old, new) in notes.items()),
    )


def check_same_trunk(path: Path, old: ModelConfig, new: ModelConfig) -> None:
    """Raises CheckpointError where the weights of a trunk would not fit another, or mean something else there."""
    differing = other_meanings(old, new, TRUNK_MEANINGS)
    if differing:
        said = ", ".join(
            f"model.{key} is {mine}, the checkpoint's {theirs}" for key, (theirs, mine) in differing.items()
        )
        raise CheckpointError(
            f"{path} has another trunk: {said}; take its network (`maskrcnn transfer --network checkpoint`), set "
            "these keys as it has them, or give another checkpoint"
        )
