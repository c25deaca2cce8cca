"""What trains when: modules that stay as they are for some steps, and how fast the others learn.

Frozen means bit for bit: no gradient, no momentum, no weight decay, and batch norm in it uses and keeps its statistics.
A module is named by the first parts of its parameters' names: trunk, trunk.body.layer1, rpn, box, box.scores, mask.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.config import ModelConfig
from model.weights.transfer import class_layers
from pipeline.config import OptimConfig
from pipeline.configure import ConfigError


def outputs_of(config: ModelConfig) -> tuple[str, ...]:
    """The layers that a linear probe trains: those that end in classes or keypoints."""
    return (*class_layers(config), *(() if config.keypoint is None else ("keypoint.deconv",)))


def is_in(name: str, module: str) -> bool:
    """Whether a parameter is of a module."""
    return name == module or name.startswith(f"{module}.")


def frozen_until(name: str, config: OptimConfig, outputs: Sequence[str]) -> int | None:
    """The step from which a parameter trains, as far as optim.freeze and optim.probe_steps say; None: never."""
    until = 0 if any(is_in(name, module) for module in outputs) else config.probe_steps
    for module, steps in config.freeze.items():
        if is_in(name, module):
            if steps is None:
                return None
            until = max(until, steps)
    return until


def changes(config: OptimConfig) -> list[int]:
    """Steps, from 0 on, at which something may begin to train."""
    return sorted({0, config.probe_steps, *(steps for steps in config.freeze.values() if steps is not None)})


def describe(config: OptimConfig, outputs: Sequence[str]) -> list[str]:
    """Lines for people: what is frozen, and for how long."""
    lines = []
    if config.probe_steps:
        lines.append(f"to step {config.probe_steps}: all but {', '.join(outputs)}")
    for module, steps in sorted(config.freeze.items(), key=lambda item: (item[1] is None, item[1] or 0, item[0])):
        if steps != 0:
            lines.append(f"{'to the end' if steps is None else f'to step {steps}'}: {module}")
    return lines


def lr_factor(name: str, config: OptimConfig) -> float:
    """What a parameter's learning rate is multiplied by: optim.lr_factors and optim.layer_decay."""
    fitting = [module for module in config.lr_factors if is_in(name, module)]
    factor = config.lr_factors[max(fitting, key=len)] if fitting else 1.0
    return factor * config.layer_decay ** _stages_below_the_top(name)


def _stages_below_the_top(name: str) -> int:
    """0 outside the body, 1 in a ResNet's last stage, ... 4 in its first, 5 in its stem."""
    if not name.startswith("trunk.body."):
        return 0
    part = name.split(".")[2]
    return 5 - int(part.removeprefix("layer")) if part.startswith("layer") else 5


def check_names(model: nn.Module, config: OptimConfig, model_config: ModelConfig, steps: int) -> None:
    """Raises ConfigError where a module does not exist, or in some step nothing would train."""
    parameters = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    every = [name for name, _ in model.named_parameters()]
    for key, modules in (("lr_factors", config.lr_factors), ("freeze", config.freeze)):
        for module in modules:
            if not any(is_in(name, module) for name in every):
                level = module.count(".") + 1
                known = dict.fromkeys(".".join(name.split(".")[:level]) for name in every)
                raise ConfigError(f"optim.{key} names {module}, which the model does not have; it has {_few(known)}")
    if config.layer_decay != 1 and not model_config.trunk.body.startswith("res"):
        raise ConfigError(
            f"optim.layer_decay must be 1.0 with model.trunk.body={model_config.trunk.body}, got {config.layer_decay}; "
            "its stages are known of ResNets and ResNeXts; optim.lr_factors names modules of any body"
        )
    outputs = outputs_of(model_config)
    for step in changes(config):
        if step < steps and not any(_trains(frozen_until(name, config, outputs), step) for name in parameters):
            raise ConfigError(
                f"at step {step} everything is frozen, by optim.freeze {dict(config.freeze)} and optim.probe_steps "
                f"{config.probe_steps}; leave a module that trains"
            )


def _trains(until: int | None, step: int) -> bool:
    return until is not None and step >= until


def _few(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:12]) + (", ..." if len(shown) > 12 else "")


class Freezing:
    """Puts the schedule into effect on a model whose optimiser holds all that is ever to train."""

    def __init__(self, model: nn.Module, config: OptimConfig, outputs: Sequence[str]) -> None:
        self.model, self.config, self.outputs = model, config, outputs
        self.until = {
            name: frozen_until(name, config, outputs)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        self.active = any(until != 0 for until in self.until.values())
        self._state: dict[str, bool] | None = None

    def at(self, step: int, optimiser: torch.optim.Optimizer) -> bool:
        """Freeze and thaw for a step; whether that set anything (the first call does, if anything ever freezes)."""
        if not self.active:
            return False
        state = {name: _trains(until, step) for name, until in self.until.items()}
        if state == self._state:
            return False
        self._state = state
        self.model.train()
        for name, parameter in self.model.named_parameters():
            if name in state:
                parameter.requires_grad_(state[name])
                if not state[name]:
                    parameter.grad = None
        for name, module in self.model.named_modules():
            own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
            if isinstance(module, _BatchNorm) and own and not any(state.get(one, False) for one in own):
                module.eval()
        self._give_momentum(optimiser)
        return True

    def _give_momentum(self, optimiser: torch.optim.Optimizer) -> None:
        """Of 0 to what begins to train: torch's fused SGD takes groups where all have momentum, or none has."""
        for group in optimiser.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                if parameter.requires_grad and "momentum_buffer" not in optimiser.state[parameter]:
                    optimiser.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
