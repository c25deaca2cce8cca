"""Which tensors of a file fit a model, by name and shape, and loading those that do."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class LoadReport:
    """What a state dict does to a model, by parameter name."""

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


def compare(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> LoadReport:
    """What of `state` fits the state dict `own` of a model. Counters of batches are neither missing nor left."""
    return LoadReport(
        matched=tuple(name for name in own if name in state and own[name].shape == state[name].shape),
        missing=tuple(name for name in own if name not in state and not _is_counter(name)),
        left=tuple(name for name in state if name not in own and not _is_counter(name)),
        mismatched=tuple(
            f"{name}: {list(state[name].shape)} into {list(own[name].shape)}"
            for name in own
            if name in state and own[name].shape != state[name].shape
        ),
    )


def load_matching(model: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    """Copy every tensor of `state` that fits a parameter or buffer of `model` by name and shape.

    Raises:
        ValueError: nothing fits. The model is then unchanged.
    """
    report = compare(model.state_dict(), state)
    if all(_is_counter(name) for name in report.matched):
        some = ", ".join(list(state)[:3])
        raise ValueError(
            f"no tensor of the weights fits the model; the file has {len(state)} tensors such as {some}; "
            "give a checkpoint of this project, or a torchvision ResNet or Mask R-CNN state dict of the model's depth"
        )
    model.load_state_dict({name: state[name] for name in report.matched}, strict=False)
    return report


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")
