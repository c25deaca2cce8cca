"""`maskrcnn transfer` and `maskrcnn finetune` up to where training starts: what is shown, chosen and refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from jobs import finetune as job
from jobs.main import app
from model.build import build_model
from model.config import AnchorConfig, BoxConfig, KeypointConfig, MaskConfig, ModelConfig, RPNConfig, TrunkConfig
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.configure import from_yaml_text
from pipeline.data.manifest import load_manifest
from pipeline.training.checkpoint import Meta, save_checkpoint

ROOT = Path(__file__).parents[2]
THEIRS = ("star", "round thing", "heart")


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ModelConfig(
        classes=3,
        trunk=TrunkConfig(body="resnet18", fpn_channels=16, norm_eps=1e-3),
        rpn=RPNConfig(anchors=AnchorConfig(sizes_px=(8.0, 16.0, 32.0, 64.0, 96.0))),
        box=BoxConfig(hidden=16),
        mask=MaskConfig(channels=8, convs=1),
        keypoint=KeypointConfig(count=5, channels=8, convs=1),
    )
    data = DataConfig(train="elsewhere", val="gone", train_sizes_px=(64,), train_max_size_px=96, test_size_px=64)
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("from") / "checkpoint"
    config = RunConfig(model=model, data=data, train=TrainConfig(precision="float32"))
    save_checkpoint(place, build_model(model), None, config, Meta(0, THEIRS, (1, 2, 3), "", "x", None, {}))
    return place


def config_of(result: Result) -> RunConfig:
    """What --print has printed, after what it says."""
    assert result.exit_code == 0, result.output
    return from_yaml_text(result.stdout[re.search("^model:", result.stdout, re.M).start() :])  # type: ignore[union-attr]


def test_transfer_is_train_with_two_settings(checkpoint: Path) -> None:
    recipe = ROOT / "configs/cityscapes/from_coco.yaml"
    found = config_of(run("transfer", recipe, "--from", checkpoint, "--print", "train.steps=77"))
    plain = config_of(run("train", recipe, "--print", "train.steps=77"))
    assert found == replace(plain, init=replace(plain.init, weights=str(checkpoint)))
    assert found.init.transfer is not None and found.train.steps == 77
    assert (found.optim.milestones, found.optim.lr, found.data.train_sizes_px[0]) == ((3000,), 0.01, 800)


def test_the_network_of_the_checkpoint(checkpoint: Path) -> None:
    words = ("transfer", ROOT / "configs/shapes/quickstart.yaml", "--from", checkpoint, "--network", "checkpoint")
    found = config_of(run(*words, "--print", "model.mask.threshold=0.4"))
    assert found.model.trunk.norm_eps == 1e-3 and found.model.mask.threshold == 0.4  # type: ignore[union-attr]
    assert found.model.classes is None and found.model.keypoint.count is None  # type: ignore[union-attr]
    assert found.train.steps == 900  # all else is the recipe's


def test_a_map_from_a_file_and_a_line(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("circle: round thing\nstar: null\n")
    words = ("transfer", ROOT / "configs/base.yaml", "--from", checkpoint, "--map", "map.yaml", "--print")
    found = config_of(run(*words, "init.transfer.classes.bar=heart")).init.transfer
    assert found is not None and found.classes == {"circle": "round thing", "star": None, "bar": "heart"}


@pytest.mark.parametrize("text", ["- a\n- b\n", "circle: 3\n", "circle: [a]\n", "circle: {a\n", ""])
def test_a_file_that_is_no_map(checkpoint: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "map.yaml").write_text(text)
    words = ("transfer", ROOT / "configs/base.yaml", "--from", checkpoint, "--map", "map.yaml", "--print")
    result = run(*words)
    assert result.exit_code == 2 and "--map map.yaml" in result.stderr


def test_the_table_comes_before_anything_starts(
    checkpoint: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class StopError(Exception): ...

    def stop(*_: object) -> None:
        raise StopError

    import jobs.train

    monkeypatch.setattr(jobs.train, "fit", stop)
    monkeypatch.setattr(jobs.train, "start_ray", lambda *_: None)
    monkeypatch.setattr(jobs.train, "plan_workers", lambda *_: jobs.train.Layout(1, 0.0, 1.0))

    class Quiet:
        run_id = "x"

        @staticmethod
        def start(*_: object) -> "Quiet":
            return Quiet()

        def log_config(self, *_: object) -> dict[str, tuple[str, str]]:
            return {}

        def log_tags(self, tags: dict[str, str]) -> None:
            self.tags = tags

        def finish(self, *_: object) -> None: ...

    monkeypatch.setattr(jobs.train, "Tracker", Quiet)
    words = ("transfer", ROOT / "configs/base.yaml", "--from", checkpoint, "--network", "checkpoint")
    data = (
        f"data.train={shapes / 'train'}",
        f"data.val={shapes / 'val'}",
        "model.keypoint=null",
        "optim.probe_steps=9",
    )
    result = run(*words, *data, "init.transfer.classes.circle=round thing")
    assert isinstance(result.exception, StopError), result.output
    shown = " ".join(result.stdout.split())
    for part in (
        "frozen to step 9: all but box.scores, box.deltas, mask.layers.predictor",
        "circle round thing as the map says square - new",
        "star star same name",
        "transfer 3 of 8 classes transferred from",
        "by class box.scores, box.deltas, mask.layers.predictor",
        "new 5 classes: square, triangle, ring, bar, cross",
    ):
        assert part in shown, shown
    assert "keypoint.convs" not in shown  # a head that is gone is only counted
    result = run(*words, *data, "init.transfer.classes={star: null, heart: null}")
    assert (
        "none of the 8 classes is one of" in result.stderr and "init.transfer.classes={OURS: THEIRS}" in result.stderr
    )


def test_another_trunk_is_refused_before_anything_starts(checkpoint: Path, shapes: Path) -> None:
    result = run(
        *("transfer", ROOT / "configs/base.yaml", "--from", checkpoint),
        *(f"data.train={shapes / 'train'}", f"data.val={shapes / 'val'}"),
    )
    assert result.exit_code == 2
    assert "has another trunk: model.trunk.body is resnet50, the checkpoint's resnet18" in result.stderr
    assert not Path("runs").exists()


# --- finetune


def own_data(shapes: Path) -> tuple[str | Path, ...]:
    return ("--images", shapes / "coco/train", "--annotations", shapes / "coco/annotations/instances_train.json")


def test_finetune_says_what_it_would_do(checkpoint: Path, shapes: Path) -> None:
    result = run("finetune", *own_data(shapes), "--from", checkpoint, "--print", "train.steps=55", "--val-share", "0.3")
    config = config_of(result)
    shown = " ".join(result.stdout.split())
    train, val = (int(re.search(rf"{split} (\d+) images", shown)[1]) for split in ("train", "val"))  # type: ignore[index]
    assert train + val == 24 and 2 <= val <= 16
    assert "60 epochs, lr 0.005 for 16 images, the body frozen:" in shown
    assert "keypoints the annotations have none" in shown
    assert "2 of 8 classes transferred" in shown
    assert config.model.keypoint is None and config.model.mask is not None
    assert config.model.trunk.norm_eps == 1e-3 and config.data.train_sizes_px == (64,)
    assert (config.train.steps, config.train.batch_images, config.optim.freeze) == (55, 4, {"trunk.body": None})
    assert config.data.train == "finetune-instances_train/train" and config.train.name == "finetune"
    assert not Path("finetune-instances_train").exists()  # nothing was written


def test_boxes_alone_train_boxes_alone(checkpoint: Path, shapes: Path, tmp_path: Path) -> None:
    content = json.loads((shapes / "coco/annotations/instances_train.json").read_bytes())
    for annotation in content["annotations"]:
        annotation["segmentation"] = []
    Path("boxes.json").write_text(json.dumps(content))
    words = ("finetune", "--images", shapes / "coco/train", "--annotations", "boxes.json", "--from", checkpoint)
    result = run(*words, "--print")
    assert config_of(result).model.mask is None
    assert "no annotation has one: boxes are trained alone" in result.stdout


def test_finetune_shards_once_and_hands_on_to_train(
    checkpoint: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[RunConfig] = []
    monkeypatch.setattr(job, "train_config", lambda config, name: trained.append(config))
    monkeypatch.setattr(job, "start_ray", lambda config: None)
    words = ("finetune", *own_data(shapes), "--from", checkpoint, "--out", "mine", "--workers", "1")
    for _ in range(2):
        result = run(*words)
        assert result.exit_code == 0, result.output
    assert trained[0] == trained[1]
    train, val = (load_manifest(Path("mine") / split) for split in ("train", "val"))
    assert train.images + val.images == 24 and train.class_names == val.class_names
    Path("mine/val/manifest.json").unlink()  # as if it was killed there
    assert run(*words).exit_code == 0
    assert load_manifest(Path("mine/val")).fingerprint == val.fingerprint
    result = run(*words, "--val-share", "0.5")
    assert result.exit_code == 2 and "mine was made of other val_share; choose another --out" in result.stderr
    Path("full").mkdir()
    Path("full/x").touch()
    result = run(*words[:-3], "full")
    assert result.exit_code == 2 and "full holds something else; choose another --out" in result.stderr


def test_own_validation_data(checkpoint: Path, shapes: Path, tmp_path: Path) -> None:
    val = shapes / "coco/annotations/instances_val.json"
    words = ("finetune", *own_data(shapes), "--from", checkpoint, "--print", "--val-annotations")
    result = run(*words, val, "--val-images", shapes / "coco/val")
    shown = " ".join(result.stdout.split())
    assert "train 24 images" in shown and "val 8 images" in shown
    content = json.loads(val.read_bytes())
    content["categories"][0]["name"] = "unicorn"
    Path("val.json").write_text(json.dumps(content))
    result = run(*words, "val.json", "--val-images", shapes / "coco/val")
    assert result.exit_code == 2
    assert "have different classes: circle (train only), unicorn (val only)" in result.stderr
    result = run(*words[:-1], "--val-images", shapes / "coco/val")
    assert result.exit_code == 2 and "--val-images goes with --val-annotations" in result.stderr


def test_no_picture_is_trained_and_evaluated_unsaid(checkpoint: Path, shapes: Path) -> None:
    """Exports that number one file twice, and a user's own split with pictures in both."""
    annotations = shapes / "coco/annotations/instances_train.json"
    content = json.loads(annotations.read_bytes())
    again = [image | {"id": image["id"] + 5000} for image in content["images"]]
    for_them = [a | {"id": a["id"] + 90_000, "image_id": a["image_id"] + 5000} for a in content["annotations"]]
    doubled = {"images": content["images"] + again, "annotations": content["annotations"] + for_them}
    Path("twice.json").write_text(json.dumps(content | doubled))
    inputs = job.Inputs(shapes / "coco/train", Path("twice.json"), checkpoint, Path("out"), None, None, 0.3, 1)
    plan = job.make_plan(inputs, [])
    names = {split: {entry.file_name for entry in data.entries} for split, data in plan.splits.items()}
    assert len(plan.splits["train"].entries) + len(plan.splits["val"].entries) == 48
    assert not names["train"] & names["val"] and len(names["train"] | names["val"]) == 24
    words = ("finetune", *own_data(shapes), "--from", checkpoint, "--print", "--val-annotations", annotations)
    assert "24 of 24 images to evaluate are trained too, AP will be too high" in " ".join(run(*words).stdout.split())


def test_nothing_to_train_on(checkpoint: Path, shapes: Path) -> None:
    content = json.loads((shapes / "coco/annotations/instances_train.json").read_bytes())
    Path("none.json").write_text(json.dumps(content | {"annotations": []}))
    words = ("finetune", "--images", shapes / "coco/train", "--annotations", "none.json", "--from", checkpoint)
    result = run(*words, "--print")
    assert result.exit_code == 2 and "no image of none.json has an annotation to train on" in result.stderr
