"""SGD and its learning rate, as functions of the step (nothing to save but momentum)."""

import torch
from torch import nn

from model.trunks.resnet import FrozenBatchNorm2d
from pipeline.config import OptimConfig
from pipeline.training.freezing import lr_factor

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, FrozenBatchNorm2d)


def peak_lr(config: OptimConfig, batch_images: int) -> float:
    """The learning rate for this batch: linear in its size (Goyal et al. 2017)."""
    return config.lr * batch_images / config.lr_batch_images


def lr_at(config: OptimConfig, batch_images: int, step: int) -> float:
    """The learning rate of `step`, counted from 0: linear warm-up, then a factor at each milestone."""
    lr = peak_lr(config, batch_images) * config.gamma ** sum(step >= milestone for milestone in config.milestones)
    if step < config.warmup_steps:
        share = step / config.warmup_steps
        lr *= config.warmup_factor * (1 - share) + share
    return lr


def make_sgd(model: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """SGD over what is meant to train, with the weight decay of each kind of parameter.

    One group a kind and a factor of the learning rate, also where decays are equal: a checkpoint's momentum is stored
    by position in the groups.
    """
    decay = {"weight": config.weight_decay, "norm": config.weight_decay_norm, "bias": config.weight_decay_bias}
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for kind in decay:
        for prefix, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                own = "norm" if isinstance(module, _NORMS) else "bias" if name == "bias" else "weight"
                if parameter.requires_grad and own == kind:
                    factor = lr_factor(f"{prefix}.{name}", config)
                    groups.setdefault((kind, factor), []).append(parameter)
    return torch.optim.SGD(
        [
            {"params": parameters, "weight_decay": decay[kind], "lr_factor": factor}
            for (kind, factor), parameters in groups.items()
        ],
        lr=0.0,
        momentum=config.momentum,
        fused=True,
    )


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr`, times each group's factor, from now on."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
