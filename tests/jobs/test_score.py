"""`maskrcnn evaluate --predictions`: any system's file, scored as the official tool does, without Ray or torch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner

from jobs.main import app
from jobs.score import show_ap
from pipeline.evaluation.coco_ap import evaluate_coco
from pipeline.evaluation.coco_results import NO_RESULT

ROOT = Path(__file__).parents[2]
SMALL = Path(__file__).parents[2].parent / "shared/data/coco-small/annotations"


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


@pytest.fixture
def files(shapes: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Moved and doubled ground truth of the generated scenes, and its annotations."""
    annotations = shapes / "coco/annotations/instances_val.json"
    rng = np.random.default_rng(0)
    results = []
    for a in json.loads(annotations.read_text())["annotations"]:
        for _ in range(int(rng.integers(0, 3))):
            box = (np.array(a["bbox"]) + rng.normal(0, 1.5, 4)).clip(0.5, None).tolist()
            score = round(float(rng.random()), 1)
            results.append({"image_id": a["image_id"], "category_id": a["category_id"], "bbox": box, "score": score})
    predictions = tmp_path / "results.json"
    predictions.write_text(json.dumps(results))
    return predictions, annotations


def official(predictions: Path, annotations: Path, iou_type: str, capsys: Any) -> list[float]:
    truth = COCO(str(annotations))
    evaluator = COCOeval(truth, truth.loadRes(str(predictions)), iou_type)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    capsys.readouterr()
    return [float(v) for v in evaluator.stats]


@pytest.mark.parametrize("engine", ["columns", "hotcoco", "pycocotools"])
def test_json_has_the_official_numbers_in_their_order(files: tuple[Path, Path], engine: str, capsys: Any) -> None:
    predictions, annotations = files
    expected = official(*files, "bbox", capsys)
    done = run("--predictions", predictions, "--annotations", annotations, "--json", "--engine", engine)
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["stats"] == expected and content["names"][:3] == ["AP", "AP50", "AP75"]
    assert (content["task"], content["protocol"], content["engine"]) == ("box", "coco", engine)
    assert content["results"] == len(json.loads(predictions.read_text()))


@pytest.mark.skipif(not SMALL.exists(), reason="needs COCO's annotations of a few images")
@pytest.mark.parametrize(("task", "iou_type"), [("mask", "segm"), ("keypoint", "keypoints")])
def test_on_cocos_own_files(task: str, iou_type: str, tmp_path: Path, capsys: Any) -> None:
    annotations = SMALL / ("instances_val2017.json" if task == "mask" else "person_keypoints_val2017.json")
    rng = np.random.default_rng(1)
    truth = COCO(str(annotations))
    results = []
    for a in truth.loadAnns(truth.getAnnIds())[:400]:
        score = round(float(rng.random()), 2)
        result: dict[str, Any] = {"image_id": a["image_id"], "category_id": a["category_id"], "score": score}
        if task == "mask":
            code = truth.annToRLE(a)
            result["segmentation"] = {"size": list(code["size"]), "counts": code["counts"].decode()}
        else:
            result["keypoints"] = (np.array(a["keypoints"]) + rng.normal(0, 2, 51)).tolist()
        results.append(result)
    predictions = tmp_path / "results.json"
    predictions.write_text(json.dumps(results))
    expected = official(predictions, annotations, iou_type, capsys)
    for engine in ("columns", "hotcoco", "pycocotools"):
        words = ("--predictions", predictions, "--annotations", annotations, "--task", task, "--engine", engine)
        content = json.loads(run(*words, "--json").stdout)
        assert content["stats"] == expected and len(expected) == {"mask": 12, "keypoint": 10}[task]
        assert (content["oks_sigmas"] is not None) == (task == "keypoint")


def test_tables_warnings_and_categories(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, annotations = files
    results = json.loads(predictions.read_text())
    predictions.write_text(json.dumps([*results, results[0]]))
    names = [c["name"] for c in json.loads(annotations.read_text())["categories"]]
    done = run("--predictions", predictions, "--annotations", annotations, "--categories", ", ".join(names[:2]))
    assert done.exit_code == 0
    assert "average precision, %" in done.stdout and names[0] in done.stdout and names[2] not in done.stdout
    done = run("--predictions", predictions, "--annotations", annotations, "--task", "proposal")
    assert "warning: 1 results repeat an earlier one exactly" in done.stderr
    assert "average recall of proposals, %" in done.stdout and "AR_1000" in done.stdout
    assert "precision" not in done.stdout and "AP" not in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--predictions {p}", "--predictions and --annotations go together"),
        ("ckpt --predictions {p} --annotations {a}", "without a checkpoint"),
        (
            "--predictions {p} --annotations {a} --task boxes",
            "--task must be one of box, mask, keypoint, proposal, got",
        ),
        (
            "--predictions {p} --annotations {a} --engine c",
            "--engine must be one of columns, hotcoco, pycocotools, got c",
        ),
        ("--predictions {p} --annotations {a} --task mask", "lack segmentation, which the mask task needs"),
        ("--predictions {p} --annotations {a} --task keypoint", "needs annotations with keypoints"),
        ("--predictions {p} --annotations {a} --categories unicorn", "the data has no category 'unicorn'"),
        ("--predictions none.json --annotations {a}", "no results at none.json"),
        ("--predictions {a} --annotations {a}", "is no list of results but holds"),
        ("--predictions {p} --annotations {p}", "has no list 'images'"),
        ("", "there is nothing to score"),
        ("ckpt", "there is nothing to score"),
        ("ckpt --data shards --json", "--task, --engine, --images and --json go with --predictions"),
        ("ckpt --data shards --images here", "--task, --engine, --images and --json go with --predictions"),
        ("--predictions {p} --annotations {a} --images here", "--images and --report-pictures are of the report"),
        ("ckpt --data shards --task mask", "--task, --engine, --images and --json go with --predictions"),
    ],
)
def test_bad_input_ends_with_code_2(files: tuple[Path, Path], words: str, message: str) -> None:
    done = run(*words.format(p=files[0], a=files[1]).split())
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_bootstrap_adds_intervals(files: tuple[Path, Path]) -> None:
    words = ("--predictions", files[0], "--annotations", files[1], "--bootstrap", 50)
    content = json.loads(run(*words, "--json").stdout)
    low, high = content["interval"]["AP"]
    assert low <= content["stats"][0] <= high and high - low > 0.01
    assert content["interval"]["per_class"].keys() == content["per_class"].keys()
    assert json.loads(run(*words[:4], "--json").stdout)["interval"] is None
    done = run(*words)
    assert done.exit_code == 0 and f"{100 * low:.1f}-{100 * high:.1f}" in done.stdout
    done = run(*words, "--task", "proposal")
    assert done.exit_code == 2 and "proposals have recall alone" in " ".join(done.stderr.split())


def test_cut_off_files_and_results_of_other_data(files: tuple[Path, Path]) -> None:
    predictions, annotations = files
    predictions.write_text(predictions.read_text()[:50])
    assert "is not valid JSON" in run("--predictions", predictions, "--annotations", annotations).stderr
    predictions.write_text('[{"image_id": 987, "category_id": 1, "bbox": [0, 0, 1, 1], "score": NaN}]')
    done = run("--predictions", predictions, "--annotations", annotations)
    assert done.exit_code == 2 and "results on another data set" in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_an_image_without_a_detection_is_odd_only_where_it_may_not_have_been_predicted(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    truth = json.loads(files[1].read_text())
    ap = evaluate_coco(truth, json.loads(files[0].read_text())[:1], "box")
    assert NO_RESULT in {warned.what for warned in ap.warnings}
    show_ap({"box": ap})
    assert NO_RESULT in capsys.readouterr().err
    show_ap({"box": ap}, all_predicted=True)
    assert NO_RESULT not in capsys.readouterr().err


def test_no_torch_and_no_ray(files: tuple[Path, Path]) -> None:
    code = (
        "import sys; from jobs.main import app\n"
        "try:\n    app(sys.argv[1:])\n"
        "except SystemExit as e:\n    assert not e.code\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'pyarrow') if m in sys.modules])"
    )
    words = ["evaluate", "--predictions", str(files[0]), "--annotations", str(files[1]), "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment, check=True, timeout=120
    )
    scores, modules = done.stdout.splitlines()
    assert json.loads(scores)["task"] == "box" and modules == "[]"


def test_a_report_of_a_file(files: tuple[Path, Path], shapes: Path, tmp_path: Path) -> None:
    words = ["--predictions", files[0], "--annotations", files[1], "--report", tmp_path / "report"]
    done = run(*words, "--images", shapes / "coco/val", "--report-pictures", 2, "--json")
    assert done.exit_code == 0, done.stderr
    ap50 = json.loads(done.stdout)["stats"][1]
    page = (tmp_path / "report/report.html").read_text()
    assert f"AP at .5 is {100 * ap50:.1f} (box)." in page and "predicting was not timed" in page
    assert len(list((tmp_path / "report/galleries").glob("worst-*.png"))) == 2
    done = run(*words)
    assert done.exit_code == 0 and f"report      {tmp_path / 'report/report.html'}" in done.stdout
    page = (tmp_path / "report/report.html").read_text()
    assert "--images says where" in page and "data:image/jpeg" not in page
    assert not (tmp_path / "report/galleries").exists()  # those of the first report are gone


def test_a_report_needs_no_torch_and_no_ray(files: tuple[Path, Path], shapes: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from jobs.main import app\n"
        "try:\n    app(sys.argv[1:])\n"
        "except SystemExit as e:\n    assert not e.code\n"
        "print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    )
    words = ["evaluate", "--predictions", files[0], "--annotations", files[1], "--json", "--report", tmp_path / "r"]
    words += ["--images", shapes / "coco/val", "--report-pictures", 1]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1] == "[]" and (tmp_path / "r/report.html").exists()


def test_no_directory_of_pictures(files: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["--predictions", files[0], "--annotations", files[1], "--report", tmp_path / "report"]
    done = run(*words, "--images", tmp_path / "nowhere")
    assert done.exit_code == 2 and "no directory of pictures at" in done.stderr
