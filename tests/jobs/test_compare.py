"""`maskrcnn compare`: two files, two evaluations, two MLflow runs; what cannot be compared is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.main import app
from pipeline.data.shards import annotations, load_manifest
from pipeline.evaluation.evaluated import Evaluated
from pipeline.tracking import mlflow_store
from pipeline.tracking.mlflow_store import default_uri


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def refusal(*words: object) -> str:
    done = run(*words)
    assert done.exit_code == 2 and done.stdout == ""
    return " ".join(done.stderr.split())


def results(truth: dict[str, Any], noise: float) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    return [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": float(rng.random())}
        | {"bbox": [float(v) for v in np.array(a["bbox"]) + rng.normal(0, noise, 2).repeat(2).clip(0)]}
        | {"segmentation": a["segmentation"]}
        for a in truth["annotations"]
    ]


@pytest.fixture
def files(shapes: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Results of A, better ones of B, ground truth."""
    truth = shapes / "coco/annotations/instances_val.json"
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, noise in zip(paths, (3.0, 0.2), strict=True):
        path.write_text(json.dumps(results(json.loads(truth.read_text()), noise)))
    return *paths, truth


@pytest.fixture
def evaluations(shapes: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Runs with the directories that evaluations leave: A of boxes and masks, B of boxes."""
    val = shapes / "val"
    of = Evaluated(str(val), load_manifest(val).fingerprint, "coco", None, None)
    runs = tmp_path / "run-a", tmp_path / "run-b"
    for path, noise, tasks in zip(runs, (3.0, 0.2), (("box", "mask"), ("box",)), strict=True):
        (path / "evaluation").mkdir(parents=True)
        of.write(path / "evaluation")
        for task in tasks:
            (path / f"evaluation/results_{task}.json").write_text(json.dumps(results(annotations(val), noise)))
    return runs


def test_files(files: tuple[Path, Path, Path]) -> None:
    a, b, truth = files
    content = json.loads(run(a, b, "--annotations", truth, "--resamples", 200, "--json").stdout)
    ap = content["stats"]["AP"]
    assert (content["task"], content["protocol"], content["images"], content["resamples"]) == ("box", "coco", 8, 200)
    assert ap["difference"] == ap["b"] - ap["a"] > 0.1 and ap["interval"][0] > 0 and ap["holds"]
    assert ap["b_better"] == 1 and ap["p"] == content["least_p"]
    assert len(content["per_image"]) == 8 and content["per_image"][0]["file_name"].endswith((".png", ".jpg"))
    seeded = [run(a, b, "--annotations", truth, "--seed", seed, "--json").stdout for seed in (0, 0, 1)]
    assert seeded[0] == seeded[1] != seeded[2]
    shown = run(a, b, "--annotations", truth, "--resamples", 100)
    assert shown.exit_code == 0 and "B is better than A: AP +" in shown.stdout
    assert "AP a class" in shown.stdout and "100 resamples show no p-value below 0.02" in " ".join(shown.stderr.split())
    same = run(a, a, "--annotations", truth, "--resamples", 100)
    assert "no difference is shown: AP +0.0 (+0.0 to +0.0), p = 1.000" in same.stdout


def test_evaluations_know_their_data(evaluations: tuple[Path, Path], shapes: Path, tmp_path: Path) -> None:
    a, b = evaluations
    content = json.loads(run(a, b / "evaluation", "--resamples", 100, "--json").stdout)
    assert content["task"] == "box" and content["stats"]["AP"]["difference"] > 0.1
    assert json.loads(run(a, a, "--resamples", 100, "--json").stdout)["task"] == "mask"
    assert "no results of the mask task, but of box" in refusal(a, b, "--task", "mask")

    kept = Evaluated(**json.loads((b / "evaluation/evaluation.json").read_text()))
    replace(kept, max_images=4, fingerprint="0" * 64).write(b / "evaluation")
    told = refusal(a, b)
    assert "not evaluated on the same: they differ in data (" in told and "evaluate.max_images (all and 4)" in told
    assert "is not the data that was evaluated" in refusal(b, b)
    replace(kept, shards=str(tmp_path / "gone")).write(b / "evaluation")
    assert "say where they are: --data SHARDS" in refusal(b, b)
    assert run(b, b, "--data", shapes / "val", "--resamples", 100).exit_code == 0
    replace(kept, protocol="cityscapes").write(a / "evaluation")
    assert "evaluate.protocol=coco" in refusal(a, a)
    (a / "evaluation/evaluation.json").write_text("{}")
    assert "is damaged" in refusal(a, a)
    (a / "evaluation/evaluation.json").unlink()
    assert "give the ground truth: --annotations FILE" in refusal(a, a)


def test_mlflow_runs(evaluations: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched is compared (tests/pipeline/tracking has the fetching)."""
    ids = dict(zip(("a" * 32, "b" * 32), evaluations, strict=True))

    def fetch(uri: str, run_id: str, folder: str, directory: Path) -> Path:
        assert uri == default_uri(tmp_path / "runs") and directory.is_dir()
        return ids[run_id] / folder

    monkeypatch.setattr(mlflow_store, "fetch_artifacts", fetch)
    words = ("--runs", tmp_path / "runs", "--resamples", 100, "--json")
    assert json.loads(run(*ids, *words).stdout) == json.loads(run(*evaluations, *words).stdout)


def test_what_cannot_be_compared(files: tuple[Path, Path, Path], tmp_path: Path) -> None:
    a, b, truth = files
    assert "need the ground truth beside them" in refusal(a, b)
    assert "is no file, no directory and no MLflow run id" in refusal(a, "nothing")
    assert "holds no results_*.json" in refusal(a, tmp_path)
    assert "--task must be one of box, mask, keypoint, got proposal" in refusal(
        a, b, "--annotations", truth, "--task", "proposal"
    )
    b.write_text(json.dumps([{**json.loads(b.read_text())[0], "image_id": 99999}]))
    assert "B: of 1 results 1 have an image_id that the ground truth does not have" in refusal(
        a, b, "--annotations", truth
    )
