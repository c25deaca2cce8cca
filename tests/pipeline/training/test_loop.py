"""One step in one process: what it depends on, and what happens where the gradient is not finite."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import META, tiny_model, tiny_run

from model.mask_rcnn import MaskRCNN
from model.types import Batch
from pipeline.config import OptimConfig, RunConfig
from pipeline.configure import to_yaml
from pipeline.data.augment import Geometry
from pipeline.data.collate import Collator
from pipeline.data.shard_rows import read_rows
from pipeline.data.shards import load_index, to_records
from pipeline.training.loop import Job, _Loop
from pipeline.training.optim import make_sgd, peak_lr


class Events(list[dict[str, Any]]):
    """What workers send, kept."""

    put = list.append


@pytest.fixture(scope="module")
def batch(shapes: Path) -> Batch:
    records = to_records(read_rows(shapes / "train", load_index(shapes / "train").slice(0, 2)))
    geometries = [Geometry(r["height"], r["width"], r["height"], r["width"], False) for r in records]
    (made,) = Collator(1, 0, 32, "crop", lambda *_: None)([(records, geometries)])
    return made


def make_loop(model: MaskRCNN | None = None, rank: int = 0, **changes: Any) -> tuple[_Loop, Events]:
    optim = OptimConfig(warmup_steps=0, milestones=(), lr_batch_images=2, **changes.pop("optim", {}))
    config: RunConfig = replace(
        tiny_run(**{"batch_images": 2, "precision": "float32", "max_bad_steps": 3, **changes}), optim=optim
    )
    model, events = model or tiny_model(), Events()
    model.train()
    job = Job(to_yaml(config), "", META, 1, events)  # type: ignore[arg-type]
    return _Loop(config, job, model, make_sgd(model, optim), torch.device("cpu"), rank, 1), events


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
    with pytest.raises(FloatingPointError, match=message):
        loop.step(2, batch)
    assert [event["step"] for event in events] == [0, 1, 2]
