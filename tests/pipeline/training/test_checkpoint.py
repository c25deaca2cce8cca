"""Checkpoints: whole or absent, exact, and never a way to run somebody's code."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_training import CLASSES, META, stepped, tiny_config, tiny_model, tiny_run, write_tiny
from torch import Tensor
from torchvision.models import resnet18, resnet50

from model.build import build_model
from model.mask_rcnn import MaskRCNN
from pipeline.config import OptimConfig
from pipeline.training import checkpoint as module
from pipeline.training.checkpoint import (
    CONFIG,
    MODEL,
    STATE,
    CheckpointError,
    checkpoint_name,
    furthest,
    initialise,
    latest_checkpoint,
    load_model,
    load_optimiser,
    load_weights,
    read_meta,
    save_checkpoint,
)
from pipeline.training.optim import make_sgd, set_lr


def tensors(model: MaskRCNN) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class RunsCode:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.system, (f"touch {self.path}",)


# --- whole


def test_a_checkpoint_gives_back_everything(tmp_path: Path) -> None:
    config = tiny_run(name="tiny", steps=9)
    model = tiny_model()
    optimiser = stepped(model, config)
    directory = tmp_path / checkpoint_name(7)
    save_checkpoint(directory, model, optimiser, config, META)
    assert sorted(p.name for p in directory.iterdir()) == sorted([MODEL, CONFIG, STATE, module.META])
    assert [p.name for p in tmp_path.iterdir()] == ["step_0000007"]

    loaded, loaded_config, meta = load_model(directory)
    assert loaded_config == config and meta == META
    assert equal(tensors(loaded), tensors(model))

    other = tiny_model(seed=1)
    assert not equal(tensors(other), tensors(model))
    load_weights(other, directory)
    continued = make_sgd(other, config.optim)
    load_optimiser(continued, directory)
    for a, b in zip(optimiser.param_groups, continued.param_groups, strict=True):
        for mine, theirs in zip(a["params"], b["params"], strict=True):
            assert torch.equal(optimiser.state[mine]["momentum_buffer"], continued.state[theirs]["momentum_buffer"])
        assert {k: v for k, v in a.items() if k != "params"} == {k: v for k, v in b.items() if k != "params"}
    set_lr(optimiser, 0.1)
    set_lr(continued, 0.1)
    for both in (optimiser, continued):  # the next step is the same, bit for bit
        for group in both.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, 0.5)
        both.step()
    assert equal(tensors(other), tensors(model))


def test_momentum_comes_from_the_checkpoint_and_settings_from_the_configuration(tmp_path: Path) -> None:
    write_tiny(tmp_path / "c")
    model = tiny_model()
    changed = OptimConfig(momentum=0.5, weight_decay=0.25, weight_decay_bias=0.125)
    optimiser = make_sgd(model, changed)
    load_optimiser(optimiser, tmp_path / "c")
    assert {group["momentum"] for group in optimiser.param_groups} == {0.5}
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.25, 0.125]
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            buffer = optimiser.state[parameter]["momentum_buffer"]
            assert buffer.shape == parameter.shape and buffer.any()


def test_channels_last_weights_are_stored_too(tmp_path: Path) -> None:
    model = tiny_model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = tiny_run()
    save_checkpoint(tmp_path / "c", model, stepped(model, config), config, META)
    assert equal(tensors(load_model(tmp_path / "c")[0]), tensors(model))


def test_an_earlier_try_is_replaced(tmp_path: Path) -> None:
    directory = tmp_path / "step_0000007"
    write_tiny(directory, seed=0)
    (directory / "stray").write_text("x")
    second = write_tiny(directory, replace(META, run_name="second"), seed=1)
    assert equal(tensors(load_model(directory)[0]), tensors(second))
    assert read_meta(directory)[1].run_name == "second"
    assert not (directory / "stray").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["step_0000007"]


@pytest.mark.parametrize("broken", ["save_file", "to_yaml", "asdict", "torch.save"])
@pytest.mark.parametrize("before", [False, True])
def test_a_crash_while_writing_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, before: bool
) -> None:
    earlier = tmp_path / "step_0000006"
    write_tiny(earlier, replace(META, step=6))
    directory = tmp_path / "step_0000007"
    old = write_tiny(directory, seed=5) if before else None

    def crash(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.torch if "." in broken else module, broken.rpartition(".")[2], crash)
        with pytest.raises(OSError, match="no space"):
            write_tiny(directory, seed=9)
    if old is None:
        assert not directory.exists()
        assert latest_checkpoint(tmp_path) == earlier
    else:  # what was there is as it was
        assert equal(tensors(load_model(directory)[0]), tensors(old))
        assert latest_checkpoint(tmp_path) == directory
    for path in tmp_path.glob("step_*"):
        load_model(path)
    again = write_tiny(directory, seed=9)  # the rest of the crash is in nobody's way
    assert equal(tensors(load_model(directory)[0]), tensors(again))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_0000006", "step_0000007"]


def test_the_latest_has_the_most_steps_and_is_whole(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None
    for step in (90, 1000, 200):
        write_tiny(tmp_path / checkpoint_name(step))
    (tmp_path / checkpoint_name(5000)).mkdir()  # torn
    (tmp_path / ".step_0009999.tmp").mkdir()
    (tmp_path / "evaluation").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / checkpoint_name(1000)


# --- broken


def test_a_directory_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text("")
    with pytest.raises(
        CheckpointError, match=r"is no checkpoint: it lacks model\.safetensors, state\.pt, meta\.json; give one"
    ):
        read_meta(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere is no checkpoint"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta | {"format_version": 99}, "has format 99, this version reads format 2"),
        (lambda meta: {k: v for k, v in meta.items() if k != "format_version"}, "has format None"),
        (lambda meta: {k: v for k, v in meta.items() if k != "step"}, "cannot be read: .*step"),
        (lambda meta: meta | {"colour": 1}, "cannot be read: .*colour"),
        (lambda meta: [meta], "cannot be read"),
        (lambda meta: meta | {"class_names": None}, "cannot be read"),
    ],
)
def test_another_format(tmp_path: Path, change: Callable[[dict], object], message: str) -> None:  # type: ignore[type-arg]
    directory = tmp_path / "c"
    write_tiny(directory)
    path = directory / module.META
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(CheckpointError, match=message):
        read_meta(directory)


@pytest.mark.parametrize(("name", "content"), [(module.META, b"{"), (module.META, b"\xff\xfe"), (CONFIG, b"a: [")])
def test_garbage_in_the_description(tmp_path: Path, name: str, content: bytes) -> None:
    directory = tmp_path / "c"
    write_tiny(directory)
    (directory / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_meta(directory)


def test_an_unknown_key_of_the_configuration_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    write_tiny(directory)
    with (directory / CONFIG).open("a") as file:
        file.write("colour: red\n")
    with pytest.raises(CheckpointError, match="colour"):
        read_meta(directory)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(tmp_path: Path, keep: int) -> None:
    directory = tmp_path / "c"
    write_tiny(directory)
    content = (directory / MODEL).read_bytes()
    (directory / MODEL).write_bytes(content[:keep])
    model = tiny_model(seed=3)
    before = tensors(model)
    for use in (lambda: load_weights(model, directory), lambda: initialise(model, directory, CLASSES)):
        with pytest.raises(CheckpointError, match=r"model\.safetensors holds no readable tensors \(damaged"):
            use()
    assert equal(tensors(model), before)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda state: state.pop("box.scores.bias"),
            r"1 tensors differ in name or shape, the first is box\.scores\.bias",
        ),
        (lambda state: state.update(extra=torch.zeros(1)), "the first is extra"),
        (
            lambda state: state.update({"box.scores.bias": torch.zeros(3)}),
            r"the first is box\.scores\.bias; the model sec",
        ),
    ],
)
def test_weights_of_another_model(tmp_path: Path, spoil: Callable[[dict[str, Tensor]], object], message: str) -> None:
    directory = tmp_path / "c"
    write_tiny(directory)
    state = load_file(directory / MODEL)
    spoil(state)
    save_file(state, directory / MODEL)
    model = tiny_model(seed=3)
    before = tensors(model)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, directory)
    assert equal(tensors(model), before)


def spoiled_state(directory: Path, kind: str, marker: Path) -> None:
    path = directory / STATE
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("momentum")
    elif kind == "list":
        torch.save([1, 2], path)
    elif kind == "other keys":
        torch.save({"momentum": torch.zeros(1)}, path)
    elif kind == "fewer groups":
        state = torch.load(path, weights_only=True)
        torch.save(state | {"param_groups": state["param_groups"][:1]}, path)
    else:
        torch.save({"state": RunsCode(marker), "param_groups": []}, path)


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "list", "other keys", "fewer groups", "code"])
def test_a_broken_momentum_is_refused(tmp_path: Path, kind: str) -> None:
    directory, marker = tmp_path / "c", tmp_path / "marker"
    write_tiny(directory)
    spoiled_state(directory, kind, marker)
    with pytest.raises(CheckpointError, match=r"state\.pt cannot be used"):
        load_optimiser(make_sgd(tiny_model(), tiny_run().optim), directory)
    assert not marker.exists()


# --- weights from elsewhere


@pytest.mark.parametrize("protocol", ["torch", "plain", "legacy"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, protocol: str) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "marker"
    evil = {"conv1.weight": RunsCode(marker)}
    if protocol == "torch":
        torch.save(evil, path)
    elif protocol == "legacy":
        torch.save(evil, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(evil))
    model = tiny_model()
    before = tensors(model)
    with pytest.raises(
        CheckpointError, match=r"evil\.pth holds no readable tensors \(damaged, or a pickle with code\)"
    ):
        initialise(model, path, CLASSES)
    assert not marker.exists()
    assert equal(tensors(model), before)
    pickle.loads(pickle.dumps(RunsCode(marker)))  # the trap does work
    assert marker.exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "there is no weights file .*weights.pth"),
        (lambda path: path.write_bytes(b""), "holds no readable tensors"),
        (lambda path: path.write_bytes(b"PK\x03\x04 and so on"), "holds no readable tensors"),
        (
            lambda path: torch.save([torch.zeros(1)], path),
            "is no state dict: it must be a mapping from names to tensors",
        ),
        (lambda path: torch.save({"epoch": 3, "w": torch.zeros(1)}, path), "is no state dict"),
        (lambda path: torch.save({"w": torch.zeros(1)}, path), "no tensor of the weights fits .* such as w; give"),
        (lambda path: torch.save({}, path), "no tensor of the weights fits"),
    ],
)
def test_weights_that_cannot_be_used(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    model = tiny_model()
    before = tensors(model)
    with pytest.raises(CheckpointError, match=message):
        initialise(model, path, CLASSES)
    assert equal(tensors(model), before)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_initialise_from_a_torchvision_resnet18(tmp_path: Path, suffix: str, wrapped: bool) -> None:
    torch.manual_seed(4)
    source = resnet18().state_dict()
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save({"model": source, "epoch": 3} if wrapped else source, path)
    else:
        save_file(source, path)
    model = tiny_model()
    before = tensors(model)
    report = initialise(model, path, CLASSES)
    after = tensors(model)
    for name, value in source.items():
        if not name.startswith("fc."):
            assert torch.equal(after[f"trunk.body.{name}"], value), name
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all(name.startswith("trunk.body.") for name in changed)
    assert not report.mismatched
    assert all(not name.startswith("trunk.body.") for name in report.missing)
    assert {"fc.weight", "fc.bias"} == set(report.left)


def test_a_resnet_of_another_depth_is_reported_by_name(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.pth"
    torch.save(resnet50().state_dict(), path)
    report = initialise(tiny_model(), path, CLASSES)
    assert any("layer1.0.conv1.weight" in line for line in report.mismatched)
    assert "of another shape" in str(report)


def test_initialise_from_a_checkpoint_of_other_classes_keeps_the_class_layers_random(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "c")
    torch.manual_seed(8)
    model = build_model(tiny_config(classes=2))
    before = tensors(model)
    report = initialise(model, tmp_path / "c", 2)
    after, given = tensors(model), tensors(source)
    classed = {name for name in after if after[name].shape != given[name].shape}
    assert classed == {line.split(":")[0] for line in report.mismatched}
    assert {"box.scores.weight", "box.deltas.weight"} <= classed
    for name in after:
        assert torch.equal(after[name], before[name] if name in classed else given[name]), name


def test_initialise_from_a_directory_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        initialise(tiny_model(), tmp_path, CLASSES)


def test_the_furthest_of_those_that_are_there(tmp_path: Path) -> None:
    for step in (2, 6):
        write_tiny(tmp_path / checkpoint_name(step), replace(META, step=step))
    two, six, gone = (tmp_path / checkpoint_name(step) for step in (2, 6, 8))
    assert furthest(two, six) == furthest(six, two) == furthest(six, gone) == six
    assert furthest(None, two) == furthest(gone, two) == two
    assert furthest(None, None) is None and furthest(gone) is None
    again = tmp_path / "again"
    write_tiny(again, replace(META, step=6))
    assert furthest(six, again) == six and furthest(again, six) == again  # the first of equals
