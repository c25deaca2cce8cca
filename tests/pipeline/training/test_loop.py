"""One step in one process: what it depends on, and what happens where the gradient is not finite."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import META, tiny_config, tiny_model, tiny_run

from model.build import build_model
from model.config import Norm
from model.mask_rcnn import MaskRCNN
from model.types import Batch
from pipeline.config import OptimConfig, RunConfig
from pipeline.configure import to_yaml
from pipeline.data.augment import plain_recipe
from pipeline.data.collate import Work, collate
from pipeline.data.ledger import LedgerWriter, next_attempt, read_ledger
from pipeline.data.shard_rows import read_rows
from pipeline.data.shards import load_index, to_records
from pipeline.training.loop import Job, NotFiniteError, _Loop
from pipeline.training.optim import make_sgd, peak_lr


class Events(list[dict[str, Any]]):
    """What workers send, kept."""

    put = list.append


@pytest.fixture(scope="module")
def batch(shapes: Path) -> Batch:
    records = to_records(read_rows(shapes / "train", load_index(shapes / "train").slice(0, 2)))
    work = [Work(r, plain_recipe(r["height"], r["width"], min(r["height"], r["width"]), 999)) for r in records]
    return collate(work, 32, "crop", None, lambda *_: None)


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_loop(model: MaskRCNN | None = None, rank: int = 0, **changes: Any) -> tuple[_Loop, Events]:
    optim = OptimConfig(warmup_steps=0, milestones=(), lr_batch_images=2, **changes.pop("optim", {}))
    config: RunConfig = replace(
        tiny_run(**{"batch_images": 2, "precision": "float32", "max_bad_steps": 3, **changes}), optim=optim
    )
    model, events = model or tiny_model(), Events()
    model.train()
    job = Job(to_yaml(config), "", META, 1, 0.0, events, None)  # type: ignore[arg-type]
    ledger = LedgerWriter(Path(), next_attempt(Path()), 0, rank, 1)
    return _Loop(config, job, model, make_sgd(model, optim), torch.device("cpu"), rank, 1, ledger), events


def numbers(losses: dict[str, torch.Tensor] | None) -> dict[str, float]:
    assert losses is not None
    return {name: value.item() for name, value in losses.items()}


def weights(loop: _Loop) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in loop.model.named_parameters()}


def test_a_step_depends_on_seed_step_and_rank_and_on_no_generator(batch: Batch) -> None:
    first = numbers(make_loop()[0].step(5, batch))
    torch.rand(17)
    assert numbers(make_loop()[0].step(5, batch)) == first
    assert numbers(make_loop()[0].step(6, batch)) != first
    assert numbers(make_loop(rank=1)[0].step(5, batch)) != first
    assert numbers(make_loop(seed=1)[0].step(5, batch)) != first


def test_a_step_moves_what_trains_and_nothing_else_and_says_the_norm(batch: Batch) -> None:
    loop, events = make_loop(optim={"weight_decay": 0.0, "weight_decay_bias": 0.0})  # it moves weights without gradient
    before = weights(loop)
    losses = numbers(loop.step(0, batch))
    assert set(losses) == {"rpn/objectness", "rpn/box", "box/class", "box/box", "mask/mask", "gradient_norm"}
    own = torch.cat([p.grad.flatten() for p in loop.parameters if p.grad is not None]).norm().item()
    assert losses["gradient_norm"] == pytest.approx(own, rel=1e-5)
    moved = {name for name, parameter in loop.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, p in loop.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.split(".")[0] for name in moved} == {"trunk", "rpn", "box", "mask"}
    assert not any(name.startswith("trunk.body.") for name in moved)  # frozen
    assert not events


def test_clipping_limits_the_step(batch: Batch) -> None:
    optim = {"clip_norm": 0.01, "weight_decay": 0.0, "weight_decay_bias": 0.0, "momentum": 0.0}
    loop, _ = make_loop(optim=optim)
    before = weights(loop)
    losses = numbers(loop.step(0, batch))
    assert losses["gradient_norm"] > 0.1  # as it was before
    after = weights(loop)
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before]).double().norm().item()
    assert moved == pytest.approx(0.01 * peak_lr(loop.config.optim, 2), rel=1e-2)


def test_bf16_is_used_where_asked_for(batch: Batch) -> None:
    exact = numbers(make_loop()[0].step(0, batch))
    rough = numbers(make_loop(precision="bf16")[0].step(0, batch))
    assert rough != exact
    assert rough["rpn/objectness"] == pytest.approx(exact["rpn/objectness"], rel=0.05)


def test_a_step_that_is_not_finite_changes_nothing_and_is_told(batch: Batch) -> None:
    loop, events = make_loop()
    loop.step(0, batch)  # there is momentum now
    poisoned = loop.model.box.scores.bias
    kept = poisoned.detach().clone()
    with torch.no_grad():
        poisoned[0] = float("nan")
    before = weights(loop)
    momentum = [loop.optimiser.state[p]["momentum_buffer"].clone() for p in loop.parameters]
    assert loop.step(1, batch) is None
    after = weights(loop)
    assert all(torch.equal(before[name].nan_to_num(), after[name].nan_to_num()) for name in before)
    assert all(
        torch.equal(loop.optimiser.state[p]["momentum_buffer"], m)
        for p, m in zip(loop.parameters, momentum, strict=True)
    )
    (event,) = events
    assert (event["kind"], event["step"], event["rank"]) == ("bad_step", 1, 0)
    assert event["sample_ids"] == batch.sample_ids.tolist()
    assert event["losses"]["box/class"] != event["losses"]["box/class"]  # NaN
    with torch.no_grad():
        poisoned.copy_(kept)
    assert loop.step(2, batch) is not None  # and training goes on
    assert loop.bad_steps == 0


def test_too_many_such_steps_in_a_row_end_the_run(batch: Batch) -> None:
    loop, events = make_loop()
    with torch.no_grad():
        loop.model.box.scores.bias[0] = float("inf")
    assert loop.step(0, batch) is None and loop.step(1, batch) is None
    message = r"not finite for 3 steps in a row \(to step 2\); losses of rank 0: .*; lower optim\.lr, lengthen"
    with pytest.raises(NotFiniteError, match=message):
        loop.step(2, batch)
    assert [event["step"] for event in events] == [0, 1, 2]


@pytest.mark.parametrize("norm", ["bn", "sync_bn", "gn", "frozen_bn"])
def test_running_statistics_survive_a_step_that_is_not_finite(batch: Batch, norm: Norm) -> None:
    config = tiny_config()
    torch.manual_seed(0)
    model = build_model(replace(config, trunk=replace(config.trunk, norm=norm, freeze_stages=0)))
    loop, _ = make_loop(model)
    buffers = dict(model.named_buffers())
    moves = {name for name in buffers if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    at_first = {name: value.clone() for name, value in buffers.items()}
    assert loop.step(0, batch) is not None
    before = {name: value.clone() for name, value in buffers.items()}
    changed = {name for name in buffers if not torch.equal(before[name], at_first[name])}
    assert changed == (moves if norm in ("bn", "sync_bn") else set())
    with torch.no_grad():
        model.box.scores.bias[0] = float("nan")
    assert loop.step(1, batch) is None  # its forward pass went through the trunk before that was known
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_each_step_is_in_the_ledger_also_one_that_changed_nothing(
    batch: Batch, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _ = make_loop(steps=3, checkpoint_every_steps=3)
    steps = loop.step
    saved: list[int] = []
    monkeypatch.setattr(loop, "_checkpoint", saved.append)

    def step(number: int, given: Batch) -> dict[str, torch.Tensor] | None:
        (attempt,) = read_ledger(run_dir)
        assert attempt.end == number  # those before are written, this one is not
        return None if number == 1 else steps(number, given)

    monkeypatch.setattr(loop, "step", step)
    loop.run(0, iter([batch] * 3))
    (attempt,) = read_ledger(run_dir)
    (lines,) = attempt.lines
    assert [line.skipped for line in lines.values()] == [False, True, False]
    assert all(line.samples == tuple(batch.sample_ids.tolist()) for line in lines.values())
    assert saved == [3]


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_features_that_are_not_finite_skip_the_step_too(batch: Batch, value: float, sampling_ratio: int) -> None:
    config = tiny_config()
    torch.manual_seed(0)
    model = build_model(replace(config, roi=replace(config.roi, sampling_ratio=sampling_ratio)))
    loop, events = make_loop(model)
    with torch.no_grad():
        model.trunk.body.conv1.weight[0, 0, 0, 0] = value
        model.rpn.conv[0].weight[0, 0, 0, 0] = value
    assert loop.step(0, batch) is None
    assert [event["kind"] for event in events] == ["bad_step"]
