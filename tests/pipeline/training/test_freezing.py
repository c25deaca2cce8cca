"""Frozen means bit for bit, thawed means as if it had just begun, on one worker and on two; and who learns how fast."""

import io
import socket
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_loop import Events, batch, make_loop, run_dir  # noqa: F401 - fixtures
from tiny_training import META, tiny_config, tiny_run

from model.build import build_model
from model.mask_rcnn import MaskRCNN
from model.types import Batch
from pipeline.config import OptimConfig
from pipeline.configure import ConfigError
from pipeline.training.checkpoint import load_optimiser, load_weights, save_checkpoint
from pipeline.training.freezing import changes, check_names, describe, frozen_until, lr_factor, outputs_of
from pipeline.training.loop import _Loop
from pipeline.training.optim import make_sgd, set_lr

OUTPUTS = ("box.scores", "box.deltas", "mask.layers.predictor")


def open_model(seed: int = 0) -> MaskRCNN:
    """The tiny model with a trunk that trains, and batch norm in it."""
    config = tiny_config()
    torch.manual_seed(seed)
    return build_model(replace(config, trunk=replace(config.trunk, freeze_stages=0)))


def everything(loop: _Loop) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in loop.model.state_dict().items()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_which_step_a_parameter_begins_to_train_at() -> None:
    config = OptimConfig(freeze={"trunk": 5, "trunk.body.layer1": 9, "rpn": None, "box": 0}, probe_steps=3)
    for name, step in {
        "trunk.lateral.0.weight": 5,
        "trunk.body.layer1.0.conv1.weight": 9,
        "trunk.body.layer10.weight": 5,
        "rpn.conv.0.weight": None,
        "box.fc.0.weight": 3,
        "box.scores.weight": 0,
        "mask.layers.predictor.bias": 0,
        "mask.layers.deconvs.0.bias": 3,
    }.items():
        assert frozen_until(name, config, OUTPUTS) == step, name
    assert changes(config) == [0, 3, 5, 9]
    assert describe(config, OUTPUTS) == [
        "to step 3: all but box.scores, box.deltas, mask.layers.predictor",
        "to step 5: trunk",
        "to step 9: trunk.body.layer1",
        "to the end: rpn",
    ]
    assert describe(OptimConfig(), OUTPUTS) == []
    assert outputs_of(tiny_config()) == OUTPUTS


def test_frozen_parts_stay_bit_for_bit_and_then_train(batch: Batch) -> None:  # noqa: F811
    loop, _ = make_loop(open_model(), optim={"freeze": {"trunk": 2, "rpn": None}, "probe_steps": 1})
    states = [everything(loop)]
    for step in range(4):
        assert loop.step(step, batch) is not None
        states.append(everything(loop))
    first, second, third, fourth = (moved(a, b) for a, b in pairwise(states))
    assert first and all(name.startswith(OUTPUTS) for name in first)
    assert {name.split(".")[0] for name in second} == {"box", "mask"} and second > first
    assert {name.split(".")[0] for name in third} == {name.split(".")[0] for name in fourth} == {"trunk", "box", "mask"}
    assert any(name.endswith("running_mean") for name in third)  # batch norm of the trunk was frozen too
    everywhere = {name for name, _ in loop.model.named_parameters() if not name.startswith("rpn.")}
    assert everywhere - third <= {name for name in everywhere if name.startswith("box.deltas") or "bias" in name}


def test_what_thaws_makes_the_steps_that_sgd_would_make_from_there(batch: Batch) -> None:  # noqa: F811
    frozen, _ = make_loop(open_model(), optim={"freeze": {"trunk": 1}})
    frozen.step(0, batch)
    other, _ = make_loop(open_model())
    other.model.load_state_dict(frozen.model.state_dict())
    for parameter in frozen.parameters:  # the same momentum, where there is some
        if "momentum_buffer" in frozen.optimiser.state[parameter]:
            own = dict(frozen.model.named_parameters())
            name = next(name for name, value in own.items() if value is parameter)
            buffer = frozen.optimiser.state[parameter]["momentum_buffer"].clone()
            other.optimiser.state[other.model.get_parameter(name)]["momentum_buffer"] = buffer
    for parameter in other.parameters:
        other.optimiser.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
    for step in (1, 2):
        frozen.step(step, batch)
        other.step(step, batch)
    assert not moved(everything(frozen), everything(other))


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_run_that_is_cut_anywhere_goes_on_bit_for_bit(batch: Batch, tmp_path: Path, cut: int) -> None:  # noqa: F811
    optim: dict[str, Any] = {"freeze": {"trunk": 2}, "probe_steps": 1, "lr_factors": {"trunk": 0.1, "mask": 2.0}}
    whole, _ = make_loop(open_model(), optim=dict(optim))
    for step in range(4):
        whole.step(step, batch)
    begun, _ = make_loop(open_model(), optim=dict(optim))
    for step in range(cut):
        begun.step(step, batch)
    save_checkpoint(tmp_path / "cut", begun.model, begun.optimiser, tiny_run(), META)
    resumed = open_model(seed=1)
    load_weights(resumed, tmp_path / "cut")
    again, _ = make_loop(resumed, optim=dict(optim))
    load_optimiser(again.optimiser, tmp_path / "cut")
    for step in range(cut, 4):
        again.step(step, batch)
    assert not moved(everything(whole), everything(again))


def test_the_rate_of_each_parameter() -> None:
    config = OptimConfig(lr_factors={"trunk": 0.1, "trunk.lateral": 0.5, "box.scores": 10.0}, layer_decay=0.5)
    for name, factor in {
        "trunk.body.conv1.weight": 0.1 / 32,
        "trunk.body.bn1.bias": 0.1 / 32,
        "trunk.body.layer1.0.conv1.weight": 0.1 / 16,
        "trunk.body.layer4.1.bn2.weight": 0.1 / 2,
        "trunk.lateral.0.weight": 0.5,
        "trunk.output.0.weight": 0.1,
        "box.scores.bias": 10.0,
        "box.deltas.bias": 1.0,
        "rpn.conv.0.weight": 1.0,
    }.items():
        assert lr_factor(name, config) == pytest.approx(factor), name
    model = open_model()
    optimiser = make_sgd(model, config)
    set_lr(optimiser, 0.02)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.02 * lr_factor(name, config)), name


def test_a_factor_of_0_leaves_what_has_it(batch: Batch) -> None:  # noqa: F811
    loop, _ = make_loop(optim={"lr_factors": {"box": 0.0}})
    before = everything(loop)
    loop.step(0, batch)
    parts = {name.split(".")[0] for name in moved(before, everything(loop)) if "running" not in name}
    assert parts >= {"rpn", "mask"} and "box" not in parts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": {"trunk.bodi": 5}}, r"optim\.freeze names trunk\.bodi, which .* it has trunk\.body, trunk\.lat"),
        (
            {"freeze": {"roi": 5}},
            r"optim\.freeze names roi, which the model .* it has trunk, rpn, box, mask",
        ),
        ({"lr_factors": {"head": 5.0}}, r"optim\.lr_factors names head, which the model does not have"),
        ({"freeze": {"rpn": 9, "box": 9, "mask": 5, "trunk": None}}, "at step 0 everything is frozen"),
        ({"freeze": {"box": None, "mask": 3}, "probe_steps": 5}, "at step 0 everything is frozen"),
    ],
)
def test_modules_that_are_not_there_and_nothing_left(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_names(open_model(), OptimConfig(**changes), tiny_config(), 100)


def test_layer_decay_needs_stages_that_are_known() -> None:
    config = tiny_config()
    other = replace(config, trunk=replace(config.trunk, body="convnext_tiny"))
    with pytest.raises(ConfigError, match=r"optim\.layer_decay must be 1\.0 with model\.trunk\.body=convnext_tiny"):
        check_names(open_model(), OptimConfig(layer_decay=0.7), other, 100)
    check_names(open_model(), OptimConfig(layer_decay=0.7, freeze={"rpn": 9}), config, 100)


# --- two workers


def _worker(place: int, port: int, content: bytes, out: str) -> None:
    """Three steps on the same batch: first with the same randomness on both workers, then each with its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=place, world_size=2)
    for name, rank in (("alike", 0), ("own", place)):
        loop, _ = make_loop(open_model(), optim={"freeze": {"trunk": 2}, "probe_steps": 1})
        loop = _Loop(loop.config, loop.job, loop.model, loop.optimiser, loop.device, rank, 2, loop.ledger)
        for step in range(3):
            loop.step(step, torch.load(io.BytesIO(content), weights_only=False))
        torch.save(everything(loop), f"{out}/{name}-{place}.pt")
    dist.destroy_process_group()


def test_two_workers(batch: Batch, tmp_path: Path) -> None:  # noqa: F811
    buffer = io.BytesIO()
    torch.save(batch, buffer)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_worker, (port, buffer.getvalue(), str(tmp_path)), nprocs=2)
    parameters = {name for name, _ in open_model().named_parameters()}
    for name in ("alike", "own"):  # gradients were averaged in every phase
        one, other = (torch.load(tmp_path / f"{name}-{place}.pt") for place in (0, 1))
        assert not moved(one, other) & parameters
    assert moved(one, torch.load(tmp_path / "alike-0.pt"))
    # The mean of two equal gradients is that gradient: two alike are as one alone.
    loop, _ = make_loop(open_model(), optim={"freeze": {"trunk": 2}, "probe_steps": 1})
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as the workers: sums of floats depend on it
        for step in range(3):
            loop.step(step, batch)
    finally:
        torch.set_num_threads(threads)
    assert not moved(torch.load(tmp_path / "alike-0.pt"), everything(loop))
