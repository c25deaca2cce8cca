"""From shards to AP by the `maskrcnn` command on a real Ray: a whole run, a killed one, evaluate, predict, errors.

One image of either split has spoiled on disk since sharding, as it does happen: no run may stop for it.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import time
from collections import defaultdict
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from maskrcnn_process import Maskrcnn, has_proc, run
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner

from jobs.main import app
from pipeline.data.shapes import render
from pipeline.data.shards import annotations, load_index, shard_name
from pipeline.evaluation.protocols import STAT_NAMES
from pipeline.tracking.mlflow_store import default_uri
from pipeline.training.checkpoint import MODEL, load_model, read_meta

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), has_proc]

STEPS, EVERY = 12, 2
CONFIG = f"""
model:
  trunk: {{body: resnet18, norm: bn, freeze_stages: 0, fpn_channels: 32}}
  rpn:
    anchors: {{sizes_px: [8.0, 16.0, 32.0, 64.0, 96.0]}}
    batch_per_image: 32
    pre_nms_train: 60
    pre_nms_test: 200
    post_nms_train: 40
    post_nms_test: 150
  roi: {{batch_per_image: 16, sampling_ratio: 2}}
  box: {{hidden: 32, layers: 1, score_threshold: 0.0, detections_per_image: 100}}
  mask: {{channels: 16, convs: 1}}
data: {{train_sizes_px: [64, 80], train_max_size_px: 128, test_size_px: 64, test_max_size_px: 128, task_rows: 8}}
optim: {{lr: 0.01, lr_batch_images: 4, warmup_steps: 4, milestones: [10], clip_norm: 10.0}}
train:
  steps: {STEPS}
  batch_images: 4
  seed: 5
  precision: float32
  log_every_steps: 1
  checkpoint_every_steps: {EVERY}
evaluate: {{batch_images: 4, pictures: 3}}
cluster: {{workers: 2}}
"""
TASKS = {"box": "bbox", "mask": "segm"}


@dataclass(frozen=True)
class Room:
    """Where the commands run."""

    root: Path
    data: Path
    spoiled: dict[str, int]  # split -> sample id

    @property
    def words(self) -> list[str | Path]:
        return ["train", "tiny.yaml", f"data.train={self.data / 'train'}", f"data.val={self.data / 'val'}"]


@dataclass(frozen=True)
class Done:
    """A run that has ended."""

    directory: Path
    code: int
    stdout: str
    stderr: str

    @property
    def checkpoint(self) -> Path:
        return self.directory / f"step_{STEPS:07d}"


def spoil(shards: Path) -> int:
    """Overwrite the begin of one image that can train, in its shard; returns its sample id."""
    (row,) = load_index(shards).slice(5, 1).to_pylist()
    assert row["instances"] > 0
    with (shards / shard_name(row["shard"])).open("r+b") as file:
        file.seek(row["offset"])
        file.write(bytes(row["bytes"] // 2))
    return int(row["sample_id"])


@pytest.fixture(scope="module")
def room(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Room:
    root = tmp_path_factory.mktemp("room")
    spoiled = {}
    for split in ("train", "val"):
        shutil.copytree(shapes / split, root / "data" / split)
        spoiled[split] = spoil(root / "data" / split)
    (root / "tiny.yaml").write_text(CONFIG)
    return Room(root, root / "data", spoiled)


@pytest.fixture(scope="module")
def whole(room: Room) -> Done:
    """A run that nothing happens to."""
    code, stdout, stderr = run(*room.words, "train.name=whole", "cluster.runs_dir=runs", cwd=room.root)
    return Done(room.root / "runs/whole", code, stdout, stderr)


@dataclass(frozen=True)
class Killed(Done):
    """A run that was killed as a whole, started again, and then lost one worker."""

    known: int  # steps of the newest checkpoint that was known when all was killed
    written: int  # steps of the newest that lay there


@pytest.fixture(scope="module")
def killed(room: Room) -> Killed:
    words = [*room.words, "train.name=killed", "cluster.runs_dir=killed-runs"]
    words += ["evaluate.max_images=2", "evaluate.pictures=0", "evaluate.report=false"]
    directory = room.root / "killed-runs/killed"

    def newest() -> int:
        """Steps of the newest checkpoint that Ray Train knows."""
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            known = json.loads((directory / "checkpoint_manager_snapshot.json").read_bytes())["checkpoint_results"]
            return max((checkpoint["metrics"]["step"] for checkpoint in known), default=0)
        return 0

    with Maskrcnn(*words, cwd=room.root) as first:
        first.wait_until(lambda: newest() >= 2 * EVERY)
        time.sleep(0.6)  # the driver hears of a checkpoint a little later, and then sends what is logged
        first.kill()
        assert not first.pids()
    known = newest()
    written = max(int(path.name[5:]) for path in directory.glob("step_*"))
    with Maskrcnn(*words, cwd=room.root) as second:
        second.wait_until(lambda: newest() > known)
        workers = second.pids("ray::RayTrainWorker")
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        code = second.wait()
        return Killed(directory, code, second.stdout, second.stderr, known, written)


def logged(done: Done) -> dict[tuple[str, int], set[float]]:
    """Every value of every metric of training that depends on nothing but the configuration, by step."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(done.directory.parent))
    (experiment,) = client.search_experiments(filter_string="name = 'maskrcnn'")
    (found,) = client.search_runs([experiment.experiment_id])
    values: dict[tuple[str, int], set[float]] = defaultdict(set)
    for name in found.data.metrics:
        if name.startswith("train/") and name not in ("train/images_per_second", "train/data_wait"):
            for metric in client.get_metric_history(found.info.run_id, name):
                values[name, metric.step].add(metric.value)
    return dict(values)


def pycocotools_stats(shards: Path, results: Path, task: str, only: set[int] | None = None) -> list[float]:
    truth = COCO()
    truth.dataset = annotations(shards)
    if only is not None:
        for key, name in (("images", "id"), ("annotations", "image_id")):
            truth.dataset[key] = [entry for entry in truth.dataset[key] if entry[name] in only]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(str(results)), TASKS[task])
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(value) for value in evaluator.stats]


# --- a whole run


def test_training_ends_well_and_says_where_everything_is(whole: Done) -> None:
    assert whole.code == 0, whole.stdout + whole.stderr
    assert "Traceback" not in whole.stderr
    for line in (
        f"run         whole in {whole.directory}",
        "data        24 images, ",
        "8 classes",
        "workers     2 x ",
        "2 images each, float32, peak lr 0.01",
        f"checkpoint  {whole.checkpoint}",
        f"results     {whole.directory / 'evaluation'}",
        f"pictures    {whole.directory / 'evaluation/pictures/overview.png'}",
        "MLflow      maskrcnn ui",
    ):
        assert line in whole.stdout
    assert "AP50" in whole.stdout and "triangle" in whole.stdout
    assert f"training {STEPS}/{STEPS}" in whole.stderr.replace("\r", "\n")
    assert sorted(p.name for p in whole.directory.glob("step_*")) == [f"step_{STEPS - EVERY:07d}", f"step_{STEPS:07d}"]


def test_spoiled_images_are_named_and_stop_nothing(whole: Done, room: Room) -> None:
    assert f"sample {room.spoiled['train']} could not be decoded and did not train" in whole.stderr
    assert f"sample {room.spoiled['val']} could not be decoded:" in whole.stderr
    results = json.loads((whole.directory / "evaluation/results_box.json").read_text())
    assert not [r for r in results if r["image_id"] == room.spoiled["val"]]  # nothing is found in black


@pytest.mark.parametrize("task", TASKS)
def test_ap_is_pycocotools(whole: Done, room: Room, task: str) -> None:
    directory = whole.directory / "evaluation"
    expected = pycocotools_stats(room.data / "val", directory / f"results_{task}.json", task)
    own = json.loads((directory / "ap.json").read_text())[task]
    for name, value in zip(STAT_NAMES, expected, strict=True):
        if value == -1:
            assert own[name] is None, name
        else:
            assert own[name] == pytest.approx(value, abs=1e-12), name
    assert json.loads((directory / f"results_{task}.json").read_text())  # something was scored, if not yet well


def test_the_files_of_an_evaluation(whole: Done, room: Room) -> None:
    directory = whole.directory / "evaluation"
    pictures = sorted(p.name for p in (directory / "pictures").glob("*.png"))
    assert len(pictures) == 4 and "overview.png" in pictures
    for path in [*(directory / "pictures").glob("*.png"), directory / "pr_curves.png"]:
        with Image.open(path) as image:
            assert image.width > 100 and len(image.convert("RGB").getcolors(1 << 24) or ()) > 10, path
    assert "triangle" in (directory / "per_class.csv").read_text()
    sizes = {image["id"]: [image["height"], image["width"]] for image in annotations(room.data / "val")["images"]}
    boxes = json.loads((directory / "results_box.json").read_text())
    masks = json.loads((directory / "results_mask.json").read_text())
    assert len(boxes) == len(masks) > 0
    for box, mask in zip(boxes, masks, strict=True):
        assert set(box) == {"image_id", "category_id", "score", "bbox"}
        height, width = sizes[box["image_id"]]
        x, y, w, h = box["bbox"]
        assert x >= 0 and y >= 0 and x + w <= width + 1e-3 and y + h <= height + 1e-3
        assert mask["segmentation"]["size"] == [height, width]
        assert coco_mask.decode(mask["segmentation"]).shape == (height, width)


def test_mlflow_has_the_run(whole: Done) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(whole.directory.parent))
    (experiment,) = client.search_experiments(filter_string="name = 'maskrcnn'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED" and found.info.run_name == "whole"
    assert {name for name, _ in logged(whole)} == {
        f"train/{name}"
        for name in ("rpn/objectness", "rpn/box", "box/class", "box/box", "mask/mask", "loss", "lr", "gradient_norm")
    }
    assert {step for _, step in logged(whole)} == set(range(1, STEPS + 1))
    assert found.data.metrics["train/images_per_second"] > 0
    ap = json.loads((whole.directory / "evaluation/ap.json").read_text())
    for task in TASKS:
        assert found.data.metrics[f"{task}/AR_100"] == pytest.approx(ap[task]["AR_100"])
    assert found.data.params["train.steps"] == str(STEPS)
    assert found.data.params["model.trunk.body"] == "resnet18"
    assert found.data.params["model.classes"] == "8"
    meta = read_meta(whole.checkpoint)[1]
    assert meta.mlflow_run_id == found.info.run_id
    assert found.data.tags["dataset"] == meta.dataset_fingerprint
    assert "version.torch" in found.data.tags and found.data.tags["workers"].startswith("2 x ")
    top = {artifact.path for artifact in client.list_artifacts(found.info.run_id)}
    assert {"config.yaml", "checkpoint", "evaluation"} <= top
    report = {artifact.path for artifact in client.list_artifacts(found.info.run_id, "evaluation/report")}
    assert {"evaluation/report/report.html", "evaluation/report/sizes.png"} <= report
    stored = {a.path for a in client.list_artifacts(found.info.run_id, f"checkpoint/{whole.checkpoint.name}")}
    assert f"checkpoint/{whole.checkpoint.name}/{MODEL}" in stored


def test_losses_are_finite_sums_and_the_learning_rate_is_the_schedule(whole: Done) -> None:
    values = {key: next(iter(found)) for key, found in logged(whole).items() if len(found) == 1}
    assert len(values) == 8 * STEPS  # each logged once
    for step in range(1, STEPS + 1):
        parts = [values[f"train/{n}", step] for n in ("rpn/objectness", "rpn/box", "box/class", "box/box", "mask/mask")]
        assert np.isfinite(parts).all() and values["train/loss", step] == pytest.approx(sum(parts))
    lr = [values["train/lr", step] for step in range(1, STEPS + 1)]
    assert lr[4:10] == pytest.approx([0.01] * 6) and lr[10:] == pytest.approx([0.001] * 2)
    assert lr[0] == pytest.approx(0.01 * 0.001) and lr[0] < lr[1] < lr[3] < lr[4]
    assert values["train/loss", STEPS] < values["train/loss", 1]


def test_the_checkpoint_rebuilds_the_model_alone(whole: Done) -> None:
    model, config, meta = load_model(whole.checkpoint)
    assert meta.step == STEPS and meta.run_name == "whole" and len(meta.class_names) == 8
    assert config.model.classes == 8 and config.train.steps == STEPS
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


# --- kill -9


def test_a_killed_run_continues_and_recovers_by_itself(killed: Killed) -> None:
    assert killed.code == 0, killed.stdout + killed.stderr
    assert killed.known >= 2 * EVERY and killed.known < STEPS
    assert f"run         killed in {killed.directory}, continues at step {killed.written}" in killed.stdout
    assert read_meta(killed.checkpoint)[1].step == STEPS


def test_its_losses_are_those_of_a_run_that_was_never_killed_bit_for_bit(whole: Done, killed: Killed) -> None:
    expected, found = logged(whole), logged(killed)
    wrong = {key: (expected.get(key), values) for key, values in found.items() if values != expected.get(key)}
    assert not wrong
    assert {step for _, step in found} >= set(range(killed.written + 1, STEPS + 1))


def test_no_step_is_missing_from_its_curves(killed: Killed) -> None:
    """But for what the driver had not heard of when it was killed, before the checkpoint that it continued from."""
    unheard = set(range(killed.known + 1, killed.written + 1))
    assert {step for _, step in logged(killed)} | unheard == set(range(1, STEPS + 1))


def test_its_weights_are_those_of_a_run_that_was_never_killed(whole: Done, killed: Killed) -> None:
    expected, found = load_model(whole.checkpoint)[0].state_dict(), load_model(killed.checkpoint)[0].state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_a_part_of_the_held_out_images_is_scored_as_such(killed: Killed, room: Room) -> None:
    directory = killed.directory / "evaluation"
    only = set(load_index(room.data / "val").slice(0, 2)["sample_id"].to_pylist())
    results = json.loads((directory / "results_box.json").read_text())
    assert {result["image_id"] for result in results} == only
    expected = pycocotools_stats(room.data / "val", directory / "results_box.json", "box", only)
    assert json.loads((directory / "ap.json").read_text())["box"]["AR_100"] == pytest.approx(expected[8])
    assert not (directory / "pictures/overview.png").exists()


# --- with the checkpoint


def test_evaluate_gives_the_same_ap(whole: Done, room: Room) -> None:
    words = ["evaluate", "runs/whole/" + whole.checkpoint.name, "--data", "data/val", "evaluate.engine=pycocotools"]
    words += ["--out", "again", "--report", "explained", "--report-pictures", "1"]
    code, stdout, stderr = run(*words, cwd=room.root)
    assert code == 0, stderr
    assert f"report      {room.root / 'explained/report.html'}" in stdout and not (room.root / "again/report").exists()
    page = (room.root / "explained/report.html").read_text()
    assert "2 x 1 CPU" in page and "images/s, a worker" in page
    before, again = (
        json.loads((directory / "ap.json").read_text())
        for directory in (whole.directory / "evaluation", room.root / "again")
    )
    assert again == before
    table, shown = (text[text.index("AP a class") : text.index("pictures ")] for text in (stdout, whole.stdout))
    assert table == shown and "AP50" in table


def test_predict_draws_what_it_can_read_and_names_what_it_cannot(whole: Done, room: Room, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "inside").mkdir(parents=True)
    for number in range(2):
        Image.fromarray(render(9, "val", number, 64).pixels).save(folder / f"inside/{number}.jpg")
    (folder / "notes.txt").write_text("not a picture, and not asked for")
    pixels = Image.fromarray(render(9, "val", 2, 64).pixels)
    pixels.convert("L").save(tmp_path / "grey.jpg")
    pixels.convert("CMYK").save(tmp_path / "cmyk.jpg")
    file = BytesIO()
    pixels.save(file, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(file.getvalue()[:400])
    images = [tmp_path / name for name in ("grey.jpg", "cut.jpg", "cmyk.jpg", "folder")]
    out = tmp_path / "out"
    code, stdout, stderr = run(
        "predict",
        whole.checkpoint,
        *images,
        "--out",
        out,
        "--score",
        "0.0",
        "--set",
        "evaluate.tta.sizes_px=[48,64]",
        cwd=room.root,
    )
    assert code == 0, stderr
    assert f"{tmp_path / 'cut.jpg'} could not be read" in stderr and "grey.jpg could" not in stderr
    assert "4 pictures with" in stdout and "1 files could not be read" in stdout
    listed = json.loads((out / "images.json").read_text())
    assert [Path(entry["file_name"]).name for entry in listed] == ["grey.jpg", "cmyk.jpg", "0.jpg", "1.jpg"]
    results = json.loads((out / "results.json").read_text())
    assert {result["image_id"] for result in results} == {entry["id"] for entry in listed}
    category_ids = read_meta(whole.checkpoint)[1].category_ids
    assert all(result["category_id"] in category_ids for result in results)
    for entry in listed:
        with Image.open(entry["file_name"]) as source, Image.open(out / entry["picture"]) as drawn:
            assert drawn.size[0] >= source.size[0]
            height_width = [source.height, source.width]
        sizes = [r["segmentation"]["size"] for r in results if r["image_id"] == entry["id"]]
        assert sizes and all(size == height_width for size in sizes)
    assert len(list(out.glob("*.png"))) == 4


def test_finetune_goes_from_annotations_to_ap(whole: Done, room: Room, shapes: Path) -> None:
    words: list[str | Path] = [
        "finetune",
        "--images",
        shapes / "coco/train",
        "--from",
        whole.checkpoint,
        "--out",
        "own",
    ]
    words += ["--annotations", shapes / "coco/annotations/instances_train.json", "--workers", "1"]
    words += ["train.steps=2", "train.checkpoint_every_steps=2", "evaluate.pictures=0", "cluster.workers=2"]
    code, stdout, stderr = run(*words, cwd=room.root)
    assert code == 0, stdout + stderr
    checkpoint = room.root / "own/runs/finetune/step_0000002"
    for part in ("the body frozen", "8 of 8 classes transferred", "frozen      to the end: trunk.body", "AP50"):
        assert part in stdout
    assert f"checkpoint  {checkpoint}" in stdout
    before, after = (load_model(path)[0].state_dict() for path in (whole.checkpoint, checkpoint))
    same = {name for name in before if torch.equal(before[name], after[name])}
    body = {name for name in before if name.startswith("trunk.body.")}
    assert body <= same and {"trunk.output.0.weight", "box.scores.weight"}.isdisjoint(same)


# --- errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "tiny.yaml", "train.stepz=3"], "train.stepz is not a key; did you mean train.steps?"),
        (["train", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["train", "tiny.yaml"], "data.train is not set; give a directory that `maskrcnn shard` wrote"),
        (
            ["train", "tiny.yaml", "data.train=data/train", "data.val=data/val", "train.batch_images=5"],
            "5 images do not divide over 2 workers; set train.batch_images to a multiple of 2",
        ),
        (["train", "tiny.yaml", "data.train=data/train", "data.val=gone"], "run `maskrcnn shard` into it"),
        (
            ["train", "tiny.yaml", "data.train=data/train", "data.val=data/val", "init.weights=gone.pth"],
            "there is no weights file",
        ),
        (["evaluate", "gone/step_0000001", "--data", "data/val"], "gone/step_0000001 is no checkpoint: it lacks"),
        (["predict", "gone/step_0000001", "tiny.yaml", "--out", "x"], "gone/step_0000001 is no checkpoint: it lacks"),
        (["predict", "gone/step_0000001", "gone.jpg", "--out", "x"], "there is no file or directory gone.jpg"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, room: Room, words: list[str], message: str
) -> None:
    monkeypatch.chdir(room.root)
    before = sorted(path.name for path in room.root.iterdir())
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert sorted(path.name for path in room.root.iterdir()) == before  # nothing was begun


def test_an_error_of_the_command_itself(room: Room) -> None:
    code, stdout, stderr = run("train", "tiny.yaml", "data.train=gone", "data.val=data/val", cwd=room.root)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and "run `maskrcnn shard` into it" in stderr
