"""What is checked before a run starts, and what a run of the same name may change."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tiny_training import CLASSES, META, stepped, tiny_config, untouched_model, write_tiny

from model.config import KeypointConfig
from pipeline.config import ClusterConfig, DataConfig, InitConfig, RunConfig, TrainConfig
from pipeline.configure import ConfigError
from pipeline.data.quarantine import DataError
from pipeline.data.shards import load_manifest
from pipeline.training import run as module
from pipeline.training.checkpoint import CheckpointError, checkpoint_name, save_checkpoint
from pipeline.training.cluster import Layout
from pipeline.training.run import Run, fit, prepare, tags, versions


@pytest.fixture
def config(shapes: Path, tmp_path: Path) -> RunConfig:
    return RunConfig(
        model=tiny_config(classes=None),
        data=DataConfig(train=str(shapes / "train"), val=str(shapes / "val")),
        train=TrainConfig(name="mine", steps=8, batch_images=4, seed=3),
        cluster=ClusterConfig(runs_dir=str(tmp_path / "runs")),
    )


def checkpointed(config: RunConfig, step: int) -> Run:
    """A run that has a checkpoint."""
    run = prepare(config, "x")
    model, resolved = untouched_model(0), run.config
    meta = replace(META, step=step, dataset_fingerprint=run.manifest.fingerprint, run_name=run.name)
    save_checkpoint(run.directory / checkpoint_name(step), model, stepped(model, resolved), resolved, meta)
    return run


def copied(shards: Path, to: Path, change: Callable[[dict], None]) -> str:  # type: ignore[type-arg]
    """Shards with another manifest."""
    shutil.copytree(shards, to)
    content = json.loads((to / "manifest.json").read_text())
    change(content)
    (to / "manifest.json").write_text(json.dumps(content))
    return str(to)


def test_a_new_run_is_resolved(
    config: RunConfig, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shapes.parent)
    relative = replace(config.data, train=f"{shapes.name}/train")
    run = prepare(replace(config, data=relative), "x")
    assert (run.name, run.resume, run.done) == ("mine", None, 0)
    assert run.directory == tmp_path / "runs/mine" and not run.directory.exists()  # nothing is written yet
    assert run.config.data.train == str(shapes / "train")
    assert run.config.cluster.runs_dir == str(tmp_path / "runs")
    assert run.config.model.classes == len(run.manifest.class_names) == CLASSES
    assert run.manifest == load_manifest(shapes / "train")
    untouched = replace(run.config, model=config.model, data=config.data, cluster=config.cluster)
    assert untouched == config


def test_a_run_without_a_name_gets_the_configs_and_the_time(config: RunConfig) -> None:
    run = prepare(replace(config, train=replace(config.train, name=None)), "quickstart")
    assert run.name.startswith("quickstart-20") and run.config.train.name == run.name
    assert len(run.name) == len("quickstart-20260101-000000")


@pytest.mark.parametrize("which", ["train", "val"])
def test_data_that_is_not_set_or_not_there(config: RunConfig, tmp_path: Path, which: str) -> None:
    message = rf"data\.{which} is not set; give a directory that `maskrcnn shard` wrote: data\.{which}=DIRECTORY"
    with pytest.raises(ConfigError, match=message):
        prepare(replace(config, data=replace(config.data, **{which: None})), "x")
    missing = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"nowhere has no manifest\.json: it holds no shards; run `maskrcnn shard`"):
        prepare(replace(config, data=replace(config.data, **{which: missing})), "x")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (lambda old: [*old[:-1], "unicorn"], r"different classes: .* \(train only\), unicorn \(val only\); shard both"),
        (lambda old: old[::-1], r"different classes: the same names in another order; shard both"),
    ],
)
def test_other_classes_in_val(
    config: RunConfig, shapes: Path, tmp_path: Path, names: Callable[[list[str]], list[str]], message: str
) -> None:
    val = copied(shapes / "val", tmp_path / "val", lambda m: m.update(class_names=names(m["class_names"])))
    with pytest.raises(ConfigError, match=f"data.train and data.val have {message}"):
        prepare(replace(config, data=replace(config.data, val=val)), "x")


def test_keypoints_are_those_of_the_data(config: RunConfig, shapes: Path, tmp_path: Path) -> None:
    def with_keypoints(count: int | None) -> RunConfig:
        return replace(config, model=replace(config.model, keypoint=KeypointConfig(count=count)))

    with pytest.raises(ConfigError, match=r"model\.keypoint is set, but .*/train has no keypoints; shard from"):
        prepare(with_keypoints(None), "x")
    keypoints = {"names": ["top", "left", "right"], "flip": [0, 2, 1], "skeleton": []}
    train = copied(shapes / "train", tmp_path / "train", lambda m: m.update(keypoints=keypoints))
    config = replace(config, data=replace(config.data, train=train))
    with pytest.raises(ConfigError, match=r"model\.keypoint is set, but .*/val has no keypoints; shard from"):
        prepare(with_keypoints(None), "x")
    val = copied(shapes / "val", tmp_path / "val", lambda m: m.update(keypoints=keypoints))
    config = replace(config, data=replace(config.data, val=val))
    for count in (None, 3):
        resolved = prepare(with_keypoints(count), "x").config.model.keypoint
        assert resolved is not None and resolved.count == 3
    with pytest.raises(ConfigError, match=r"model\.keypoint\.count is 17, .*/train has 3; leave it null"):
        prepare(with_keypoints(17), "x")


def test_categories_to_score_are_those_of_the_data(config: RunConfig) -> None:
    def scoring(*names: str) -> RunConfig:
        return replace(config, evaluate=replace(config.evaluate, categories=names))

    known = load_manifest(str(config.data.val)).class_names
    assert prepare(scoring(*known[:2]), "x").config.evaluate.categories == known[:2]
    with pytest.raises(ConfigError, match=r"evaluate\.categories names unicorn, which .*/val does not have; it has "):
        prepare(scoring(known[0], "unicorn"), "x")


def test_a_model_without_an_rpn_needs_proposals_in_both_data_sets(
    config: RunConfig, shapes: Path, tmp_path: Path
) -> None:
    config = replace(config, model=replace(config.model, rpn=None))

    def proposed(split: str) -> str:
        return copied(shapes / split, tmp_path / split, lambda m: m["counts"].update(proposals=5))

    with pytest.raises(DataError, match=r"/train has no proposals, and model\.rpn is null .* --proposals FILE"):
        prepare(config, "x")
    config = replace(config, data=replace(config.data, train=proposed("train")))
    with pytest.raises(DataError, match="/val has no proposals"):
        prepare(config, "x")
    config = replace(config, data=replace(config.data, val=proposed("val")))
    assert prepare(config, "x").config.model.rpn is None


def test_data_without_an_image_to_train_on(config: RunConfig, shapes: Path, tmp_path: Path) -> None:
    train = copied(shapes / "train", tmp_path / "train", lambda m: None)
    path = Path(train) / "index.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(DataError, match="no image to train on"):
        prepare(replace(config, data=replace(config.data, train=train)), "x")


def test_several_data_sets_are_one(config: RunConfig, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shapes)
    mixed = replace(config, data=replace(config.data, train=("train", "val"), mix_weights=(1.0, 2.0)))
    run = prepare(mixed, "x")
    assert run.config.data.train == (str(shapes / "train"), str(shapes / "val"))
    one, other = load_manifest(shapes / "train"), load_manifest(shapes / "val")
    assert run.manifest.images == 24 + 8
    assert run.manifest.counts == {key: one.counts[key] + other.counts[key] for key in one.counts}
    assert run.manifest.fingerprint not in (one.fingerprint, other.fingerprint)
    turned = replace(mixed.data, train=("val", "train"))
    assert prepare(replace(mixed, data=turned), "x").manifest.fingerprint != run.manifest.fingerprint
    assert prepare(replace(config, data=replace(config.data, train=("train",))), "x").manifest == one


def test_data_sets_of_a_mixture_with_other_classes(config: RunConfig, shapes: Path, tmp_path: Path) -> None:
    other = copied(shapes / "val", tmp_path / "other", lambda m: m.update(class_names=[*m["class_names"][:-1], "gnu"]))
    data = replace(config.data, train=(str(shapes / "train"), other))
    message = r"the data sets of data\.train have different classes: .*/train only\), gnu \(.*/other only\); shard all"
    with pytest.raises(ConfigError, match=message):
        prepare(replace(config, data=data), "x")


def test_a_wrong_number_of_classes(config: RunConfig) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.classes is 80, .*train has 8; leave it null to take the data's number"
    ):
        prepare(replace(config, model=tiny_config(classes=80)), "x")
    assert prepare(replace(config, model=tiny_config(CLASSES)), "x").config.model.classes == CLASSES


def test_a_hidden_name(config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"train\.name must be the name of a directory, got '\.hidden'"):
        prepare(replace(config, train=replace(config.train, name=".hidden")), "x")


def test_initial_weights_are_tried_before_anything_starts(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_weights(path: str) -> RunConfig:
        return replace(config, init=InitConfig(weights=path))

    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no weights file .*nowhere\.pth"):
        prepare(with_weights("nowhere.pth"), "x")
    torch.save({"w": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no tensor of the weights fits the model"):
        prepare(with_weights("other.pth"), "x")
    write_tiny(tmp_path / "earlier")
    assert prepare(with_weights("earlier"), "x").config.init.weights == str(tmp_path / "earlier")


def test_the_same_name_continues_at_its_newest_checkpoint(config: RunConfig) -> None:
    checkpointed(config, 2)
    first = checkpointed(config, 6)
    run = prepare(config, "x")
    assert (run.resume, run.done) == (first.directory / checkpoint_name(6), 6)


def test_weights_to_start_from_may_be_gone_when_a_run_continues(config: RunConfig, tmp_path: Path) -> None:
    checkpointed(config, 2)
    assert prepare(replace(config, init=InitConfig(weights=str(tmp_path / "gone.pth"))), "x").done == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, train=replace(c.train, batch_images=8)), r"train\.batch_images: 4 before, 8 now"),
        (lambda c: replace(c, train=replace(c.train, seed=4)), r"train\.seed: 3 before, 4 now"),
        (lambda c: replace(c, data=replace(c.data, drop_empty=False)), r"data\.drop_empty: True before, False now"),
        (
            lambda c: replace(c, data=replace(c.data, repeat_threshold=0.1)),
            r"data\.repeat_threshold: None before, 0\.1",
        ),
        (
            lambda c: replace(c, data=replace(c.data, mix_weights=(1.0,))),
            r"data\.mix_weights: None before, \(1\.0,\) now",
        ),
        (lambda c: replace(c, data=replace(c.data, window_groups=9)), r"data\.window_groups: 512 before, 9 now"),
        (lambda c: replace(c, data=replace(c.data, aspect_buckets=1)), r"data\.aspect_buckets: 2 before, 1 now"),
        (
            lambda c: replace(c, optim=replace(c.optim, lr_factors={"box": 2.0})),
            r"optim\.lr_factors: \{\} before, \{'box': 2\.0\} now",
        ),
        (lambda c: replace(c, optim=replace(c.optim, layer_decay=0.5)), r"optim\.layer_decay: 1\.0 before, 0\.5 now"),
        (lambda c: replace(c, model=replace(c.model, roi=replace(c.model.roi, aligned=False))), "model"),
        (lambda c: replace(c, model=replace(c.model, mask=None)), "model"),
    ],
)
def test_a_run_does_not_continue_as_another(
    config: RunConfig, change: Callable[[RunConfig], RunConfig], message: str
) -> None:
    checkpointed(config, 2)
    with pytest.raises(ConfigError, match=rf"run mine exists and has another {message}.*choose another train\.name"):
        prepare(change(config), "x")


def test_a_run_does_not_continue_on_other_data(config: RunConfig, shapes: Path, tmp_path: Path) -> None:
    checkpointed(config, 2)
    other = copied(shapes / "train", tmp_path / "train", lambda m: m.update(fingerprint="0" * 64))
    with pytest.raises(ConfigError, match=r"another the data in data\.train: \w{12} before, 0{12} now; it can only"):
        prepare(replace(config, data=replace(config.data, train=other)), "x")
    same = copied(shapes / "train", tmp_path / "moved", lambda m: None)  # the same data at another place is the same
    assert prepare(replace(config, data=replace(config.data, train=same)), "x").done == 2


def test_what_may_change_when_a_run_continues(config: RunConfig) -> None:
    checkpointed(config, 2)
    longer = replace(
        config,
        train=replace(config.train, steps=100, log_every_steps=1, checkpoint_every_steps=9),
        optim=replace(config.optim, lr=0.5),
        cluster=replace(config.cluster, workers=4),
    )
    assert prepare(longer, "x").done == 2


def test_a_broken_newest_checkpoint_is_named(config: RunConfig) -> None:
    run = checkpointed(config, 2)
    (run.directory / checkpoint_name(2) / "meta.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"step_0000002/meta\.json or config\.yaml cannot be read"):
        prepare(config, "x")


@pytest.mark.parametrize("steps", [8, 6])
def test_a_finished_run_does_not_train_again(config: RunConfig, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    checkpointed(config, 8)
    run = prepare(replace(config, train=replace(config.train, steps=steps)), "x")

    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("it trains")

    monkeypatch.setattr(module, "TorchTrainer", started)
    monkeypatch.setattr(module, "Queue", started)
    assert fit(run, Layout(1, 0.0, 1.0), None, started) == run.directory / checkpoint_name(8)


def test_tags_say_what_decides_a_runs_numbers(config: RunConfig) -> None:
    run = prepare(config, "x")
    found = tags(run, Layout(2, 0.0, 1.0))
    assert found["dataset"] == run.manifest.fingerprint
    assert found["workers"] == "2 x 1 CPU"
    assert tags(run, Layout(8, 1.0, 4.0))["workers"] == "8 x GPU"
    assert found["version.torch"] == versions()["torch"] and "version.ray" in found
    assert len(found.get("mlflow.source.git.commit", "0" * 40)) == 40
