"""Weights of a model of some classes for a model of other classes (Mask R-CNN appendix A: COCO -> Cityscapes).

Layers that end in the classes are mapped a class at a time, everything else is copied by name. Pure: state dicts in,
a state dict out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from model.config import ModelConfig, NewRows

# What weights mean, though their shapes need not tell: of the trunk, and of heads, which can learn another meaning.
TRUNK_MEANINGS = (
    *("input.mean", "input.std", "input.channels"),
    *("trunk.body", "trunk.width", "trunk.neck", "trunk.norm", "trunk.norm_eps", "trunk.stride_in", "trunk.non_local"),
    *("trunk.fpn_channels", "trunk.fpn_norm"),
)
HEAD_MEANINGS = ("rpn.anchors", "roi.operation", "roi.aligned", "box.weights", "box.norm", "mask.norm")
_BATCH_NORMS = ("frozen_bn", "bn", "sync_bn")  # one may go on from another's weights and statistics


class NoTransferError(ValueError):
    """The weights are of another network."""


@dataclass(frozen=True)
class ClassLayer:
    """A layer that ends in the classes: its output is blocks of `rows`, one a class."""

    rows: int  # outputs a class
    background: bool  # a block of the background before them
    shared: bool  # one block whatever the class


@dataclass(frozen=True)
class Transferred:
    """A state dict for the new model, and what became of each tensor (names)."""

    state: dict[str, Tensor]
    copied: tuple[str, ...]
    mapped: tuple[str, ...]  # a class at a time
    new: dict[str, str]  # kept as initialised -> why
    left: tuple[str, ...]  # of the source, without a place


def class_layers(config: ModelConfig) -> dict[str, ClassLayer]:
    """The class layers of a model, by module name."""
    layers = {}
    if config.box is not None:
        stages = 0 if config.box.cascade is None else len(config.box.cascade.foreground_ious)
        for head in ("box", *(f"cascade.stages.{i}" for i in range(stages))):
            layers[f"{head}.scores"] = ClassLayer(1, background=True, shared=False)
            layers[f"{head}.deltas"] = ClassLayer(4, background=False, shared=config.box.class_agnostic)
    if config.mask is not None:
        scheme = config.mask.scheme
        rows = config.mask.mlp_size**2 if config.mask.head == "mlp" else 1
        layers["mask.layers.predictor"] = ClassLayer(rows, scheme == "competing", scheme == "agnostic")
    return layers


def other_meanings(old: ModelConfig, new: ModelConfig, keys: Sequence[str]) -> dict[str, tuple[object, object]]:
    """Where the same weights would mean something else: key -> (value of `old`, value of `new`)."""
    found = {}
    for key in keys:
        section = key.split(".")[0]
        if getattr(old, section) is not None and getattr(new, section) is not None:
            pair = attrgetter(key)(old), attrgetter(key)(new)
            if pair[0] != pair[1] and not all(value in _BATCH_NORMS for value in pair):
                found[key] = pair
    return found


def transfer(
    source: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    old: ModelConfig,
    new: ModelConfig,
    classes: Sequence[int | None],
    new_rows: NewRows,
    generator: torch.Generator,
) -> Transferred:
    """What `source` is in the new model.

    Args:
        source: state dict of the old model.
        own: of the new one, as initialised.
        old, new: their configurations.
        classes: for each class 1..K of the new model the class of the old one; None: it has none.
        new_rows: of a class without a source. normal: each of its numbers is drawn from a normal distribution with the
            mean and the standard deviation of that tensor's rows of classes; initial: as initialised.
        generator: draws them.

    Raises:
        NoTransferError: a tensor does not fit where both configurations describe the same part.
    """
    before, after = class_layers(old), class_layers(new)
    heads = ("rpn", "box", "mask", "keypoint")
    changed = {head for head in heads if getattr(old, head) != getattr(new, head)}
    changed |= {"cascade"} if "box" in changed else set()
    fresh: dict[str, str] = {}  # module -> why all of it is: a bias is worth nothing without its weights
    for name, mine in own.items():
        module, head = name.rpartition(".")[0], name.split(".")[0]
        if _is_counter(name) or module in fresh:
            continue
        theirs = source.get(name)
        by_class = module in before and module in after
        if by_class and _rows(before[module], after[module], classes) is None:
            fresh[module] = "its outputs are of another kind in the weights"
        elif theirs is None:
            fresh[module] = "the weights have no such layer"
            if head not in changed:
                raise NoTransferError(f"the weights have no {name}, which model.{head} of this configuration has")
        elif by_class and len(theirs) != _outputs(before[module], old.classes or 0):
            raise NoTransferError(f"{name} has {len(theirs)} rows, which is not what {old.classes} classes have")
        elif theirs.shape[by_class:] != mine.shape[by_class:]:  # the first axis is the outputs
            fresh[module] = f"{list(theirs.shape)} in the weights, {list(mine.shape)} here"
            if head not in changed:
                raise NoTransferError(f"{name} is {list(theirs.shape)} in the weights and {list(mine.shape)} here")
    result, copied, mapped, new_tensors = dict(own), [], [], {}
    for name, mine in own.items():
        module = name.rpartition(".")[0]
        if module in fresh:
            new_tensors[name] = fresh[module]
        elif name not in source:
            continue  # a counter of batches
        elif module in before and module in after:
            rows = _rows(before[module], after[module], classes)
            assert rows is not None
            theirs = source[name].to(mine.dtype)
            result[name] = _map_rows(theirs, mine, before[module], after[module], rows, new_rows, generator)
            mapped.append(name)
        else:
            result[name] = source[name].to(mine.dtype)
            copied.append(name)
    left = tuple(name for name in source if name not in own and not _is_counter(name))
    return Transferred(result, tuple(copied), tuple(mapped), new_tensors, left)


def _outputs(layer: ClassLayer, classes: int) -> int:
    return layer.rows * (1 if layer.shared else classes + layer.background)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _rows(old: ClassLayer, new: ClassLayer, classes: Sequence[int | None]) -> list[int | None] | None:
    """For each block of the new layer the block of the old one, None where there is none; None: they do not compare."""
    if old.rows != new.rows or old.background != new.background:
        return None
    if new.shared:
        return [0] if old.shared else None
    if old.shared:  # the one box or mask of any class becomes that of each
        return [0] * len(classes)
    first = int(old.background)
    return [0] * first + [None if one is None else one - 1 + first for one in classes]


def _map_rows(
    theirs: Tensor,
    mine: Tensor,
    old: ClassLayer,
    new: ClassLayer,
    rows: Sequence[int | None],
    new_rows: NewRows,
    generator: torch.Generator,
) -> Tensor:
    """Blocks of `theirs` in the order of `rows`, [blocks * rows a class, ...] as `mine`."""
    blocks = theirs.reshape(-1, old.rows, *theirs.shape[1:])
    result = mine.reshape(-1, new.rows, *mine.shape[1:]).clone()
    of_classes = blocks[int(old.background) :].double()
    mean, std = of_classes.mean(), of_classes.std(correction=0)
    for number, row in enumerate(rows):
        if row is not None:
            result[number] = blocks[row]
        elif new_rows == "normal":
            drawn = torch.randn(result[number].shape, generator=generator, dtype=torch.float64)
            result[number] = (mean + std * drawn).to(result.dtype)
    return result.reshape(mine.shape)
