"""init.transfer: a checkpoint of other classes as the start of a run, and what is refused before anything starts."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import META, tiny_config, write_tiny

from model.build import build_model
from model.config import ModelConfig, Norm
from pipeline.benchmarks.transfer import pretrain, started, trial
from pipeline.config import (
    ClusterConfig,
    DataConfig,
    EvaluateConfig,
    InitConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    TransferConfig,
)
from pipeline.configure import ConfigError, from_yaml_text, to_yaml
from pipeline.data.manifest import load_manifest
from pipeline.training.checkpoint import MODEL, CheckpointError, checkpoint_name, read_meta, read_tensors
from pipeline.training.cluster import Layout
from pipeline.training.run import prepare, tags
from pipeline.training.transfer import transfer_weights

THEIRS = ("star", "dog", "Circle", "person", "heart", "cat", "cow", "van")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("source") / "checkpoint"
    write_tiny(place, replace(META, class_names=THEIRS))
    return place


@pytest.fixture
def config(shapes: Path, tmp_path: Path, checkpoint: Path) -> RunConfig:
    return RunConfig(
        model=tiny_config(classes=None),
        init=InitConfig(weights=str(checkpoint), transfer=TransferConfig()),
        data=DataConfig(
            train=str(shapes / "train"),
            val=str(shapes / "val"),
            train_sizes_px=(64,),
            train_max_size_px=96,
            test_size_px=64,
            test_max_size_px=96,
        ),
        optim=OptimConfig(lr=0.001, warmup_steps=0, milestones=()),
        train=TrainConfig(name="mine", steps=2, batch_images=2, precision="float32", seed=3),
        evaluate=EvaluateConfig(max_images=2, batch_images=2),
        cluster=ClusterConfig(runs_dir=str(tmp_path / "runs")),
    )


def with_transfer(config: RunConfig, **changes: Any) -> RunConfig:
    assert config.init.transfer is not None
    return replace(config, init=replace(config.init, transfer=replace(config.init.transfer, **changes)))


def test_a_run_is_prepared_with_what_the_checkpoint_gives(config: RunConfig, shapes: Path, checkpoint: Path) -> None:
    run = prepare(config, "x")
    found = run.transfer
    assert found is not None and run.done == 0
    names = load_manifest(shapes / "train").class_names
    assert [match.name for match in found.matches] == list(names)
    sources = {match.name: match.source for match in found.matches if match.source is not None}
    assert sources == {"circle": 3, "star": 1, "heart": 5}
    assert found.shared == 3 and set(found.unused) == {"dog", "person", "cat", "cow", "van"}
    assert found.class_layers == ("box.scores", "box.deltas", "mask.layers.predictor")
    assert not found.tensors.new and not found.tensors.left
    assert from_yaml_text(to_yaml(run.config)) == run.config and run.config.init.transfer == TransferConfig()
    told = tags(run, Layout(1, 0.0, 1.0))
    assert told["transfer"].startswith(f"3 of 8 classes transferred from {checkpoint}; ") and "frozen" not in told


def test_the_weights_of_the_model_are_those(config: RunConfig, shapes: Path, checkpoint: Path) -> None:
    names = load_manifest(shapes / "train").class_names
    model_config = replace(config.model, classes=8)
    theirs = read_tensors(checkpoint / MODEL)

    def rows(seed: int | None, train_seed: int = 3) -> dict[str, torch.Tensor]:
        model = build_model(model_config)
        changed = with_transfer(config, seed=seed)
        changed = replace(changed, model=model_config, train=replace(config.train, seed=train_seed))
        transfer_weights(model, changed, names)
        return model.state_dict()

    one = rows(None)
    assert torch.equal(one["box.scores.weight"][names.index("star") + 1], theirs["box.scores.weight"][1])
    assert torch.equal(one["trunk.output.0.weight"], theirs["trunk.output.0.weight"])
    new = names.index("cross") + 1
    assert torch.equal(one["box.scores.weight"][new], rows(None)["box.scores.weight"][new])
    assert torch.equal(one["box.scores.weight"][new], rows(3, 9)["box.scores.weight"][new])  # null is train.seed
    assert not torch.equal(one["box.scores.weight"][new], rows(4)["box.scores.weight"][new])


def test_a_map_goes_before_names(config: RunConfig) -> None:
    found = prepare(with_transfer(config, classes={"square": "van", "star": None}), "x").transfer
    assert found is not None
    assert {match.name: match.source for match in found.matches if match.source} == {
        "circle": 3,
        "square": 8,
        "heart": 5,
    }


def other(config: RunConfig, change: Callable[[ModelConfig], ModelConfig]) -> RunConfig:
    return replace(config, model=change(config.model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: other(c, lambda m: replace(m, trunk=replace(m.trunk, body="resnet34"))),
            r"has another trunk: model\.trunk\.body is resnet34, the checkpoint's resnet18; take its network "
            r"\(`maskrcnn transfer --network checkpoint`\)",
        ),
        (
            lambda c: other(c, lambda m: replace(m, trunk=replace(m.trunk, norm_eps=0.0))),
            r"another trunk: model\.trunk\.norm_eps is 0\.0, the checkpoint's 1e-05",
        ),
        (
            lambda c: other(c, lambda m: replace(m, trunk=replace(m.trunk, norm="gn"))),
            r"another trunk: model\.trunk\.norm is gn, the checkpoint's bn",
        ),
        (
            lambda c: other(c, lambda m: replace(m, input=replace(m.input, channels="bgr"))),
            r"another trunk: model\.input\.channels is bgr, the checkpoint's rgb",
        ),
        (
            lambda c: with_transfer(c, classes={"sqare": "van"}),
            r"init\.transfer\.classes: 'sqare' is no class of the data; did you mean square",
        ),
        (
            lambda c: with_transfer(c, classes={"square": "vann"}),
            r"init\.transfer\.classes: 'vann' is no class of the weights; did you mean van",
        ),
        (
            lambda c: replace(c, init=replace(c.init, weights=str(Path(str(c.init.weights)) / MODEL))),
            r"model\.safetensors is no checkpoint directory: .* make one .* `maskrcnn import FILE --out CHECKPOINT`",
        ),
        (lambda c: replace(c, init=replace(c.init, weights="/nowhere")), "/nowhere is no checkpoint directory"),
    ],
)
def test_what_is_refused(config: RunConfig, change: Callable[[RunConfig], RunConfig], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        prepare(change(config), "x")


def test_without_weights(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"init\.transfer is set, but init\.weights is not; give init\.weights=CHECK"):
        prepare(replace(config, init=replace(config.init, weights=None)), "x")


def test_other_conventions_of_heads_are_told_and_allowed(config: RunConfig) -> None:
    changed = other(config, lambda m: replace(m, roi=replace(m.roi, aligned=False)))
    found = prepare(changed, "x").transfer
    assert found is not None and found.notes == ("model.roi.aligned is True in the checkpoint, False here",)


@pytest.mark.parametrize("norm", ["frozen_bn", "sync_bn"])
def test_one_batch_norm_goes_on_from_another(config: RunConfig, norm: Norm, checkpoint: Path) -> None:
    changed = other(config, lambda m: replace(m, trunk=replace(m.trunk, norm=norm)))
    found = prepare(changed, "x").transfer
    assert found is not None and not found.tensors.new and not found.tensors.left
    name = "trunk.body.bn1.running_var"
    assert torch.equal(found.tensors.state[name], read_tensors(checkpoint / MODEL)[name])


def test_no_class_in_common_is_no_error(config: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(str(config.init.weights), tmp_path / "others")
    meta = tmp_path / "others/meta.json"
    meta.write_text(meta.read_text().replace('"star"', '"a"').replace('"Circle"', '"b"').replace('"heart"', '"c"'))
    found = prepare(replace(config, init=replace(config.init, weights=str(tmp_path / "others"))), "x").transfer
    assert found is not None and found.shared == 0 and len(found.tensors.mapped) == 6


def test_it_is_not_done_again_when_the_run_goes_on(config: RunConfig) -> None:
    run = prepare(config, "x")
    meta = replace(META, step=1, dataset_fingerprint=run.manifest.fingerprint, run_name="mine")
    write_tiny(run.directory / checkpoint_name(1), meta)
    text = to_yaml(run.config)
    (run.directory / checkpoint_name(1) / "config.yaml").write_text(text)
    gone = replace(config, init=replace(config.init, weights="/not/there/any/more"))
    again = prepare(gone, "x")
    assert again.done == 1 and again.transfer is None


def test_frozen_modules_are_told_and_checked(config: RunConfig) -> None:
    frozen = replace(config, optim=replace(config.optim, freeze={"rpn": 1}, probe_steps=1))
    told = tags(prepare(frozen, "x"), Layout(1, 0.0, 1.0))["frozen"]
    assert told == "to step 1: all but box.scores, box.deltas, mask.layers.predictor; to step 1: rpn"
    with pytest.raises(ConfigError, match=r"optim\.freeze names rnp, which the model does not have"):
        prepare(replace(config, optim=replace(config.optim, freeze={"rnp": 1})), "x")


def test_the_benchmark(config: RunConfig, tmp_path: Path, shapes: Path) -> None:
    done: list[int] = []
    plain = replace(config, init=InitConfig())
    pretrain(plain, tmp_path / "pre", done.append)
    assert done == [1, 2]
    assert read_meta(tmp_path / "pre")[1].class_names == load_manifest(shapes / "train").class_names
    model, found = started(plain, 5, tmp_path / "pre")
    assert found is not None and found.shared == 8
    theirs = read_tensors(tmp_path / "pre" / MODEL)
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())
    mapped = replace(plain, init=InitConfig(transfer=TransferConfig(classes={"star": None})))
    _, less = started(mapped, 5, tmp_path / "pre")
    assert less is not None and less.shared == 7
    scratch, transferred = (trial(plain, 5, place, done.append) for place in (None, tmp_path / "pre"))
    assert (scratch.start, transferred.start, scratch.seed) == ("scratch", "transferred", 5)
    assert scratch.target == str(shapes / "train")
    assert list(scratch.aps) == ["box AP", "box AP50", "mask AP", "mask AP50"] and all(
        0 <= ap <= 1 for ap in transferred.aps.values()
    )
