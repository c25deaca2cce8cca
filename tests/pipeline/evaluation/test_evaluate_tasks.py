"""What a run's evaluation scores beside boxes and masks: keypoints, proposals, LVIS's federated classes."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.config import KeypointConfig, ModelConfig
from pipeline.config import EvaluateConfig, RunConfig
from pipeline.data.coco import read_coco
from pipeline.data.lvis import read_lvis
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.sharding import shard_dataset
from pipeline.data.shards import annotations, load_manifest
from pipeline.data.source import Dataset
from pipeline.evaluation import evaluate as module
from pipeline.evaluation.coco_ap import evaluate_coco
from pipeline.evaluation.evaluate import Evaluation, evaluate
from pipeline.evaluation.predict import Predicted
from pipeline.training.checkpoint import Meta
from pipeline.training.cluster import Layout

LAYOUT = Layout(1, 0.0, 1.0)
NAMES = ["head", "left_hand", "right_hand"]


def shards(shapes: Path, out: Path, change: Callable[[dict[str, Any]], None], read: Any = read_coco) -> Path:
    """The generated scenes with other annotations."""
    content = json.loads((shapes / "coco/annotations/instances_val.json").read_text())
    change(content)
    file = out / "annotations.json"
    file.write_text(json.dumps(content))
    dataset: Dataset = read(file, shapes / "coco/val", Quarantine(strict=True))
    shard_dataset(dataset, out / "shards")
    return out / "shards"


def add_keypoints(content: dict[str, Any]) -> None:
    """Three keypoints on all objects of one class, of which one in four has none labelled."""
    category = content["categories"][0]
    category |= {"keypoints": NAMES, "skeleton": [[1, 2], [1, 3]], "sigmas": [0.05, 0.1, 0.1]}
    for number, a in enumerate(a for a in content["annotations"] if a["category_id"] == category["id"]):
        x, y, w, h = a["bbox"]
        seen = 2 if number % 4 else 0
        points = [[x + w / 2, y, seen], [x, y + h / 2, seen], [x + w, y + h / 2, seen]]
        a["keypoints"] = [float(v) for point in points for v in (point if seen else (0, 0, 0))]


def score(
    monkeypatch: pytest.MonkeyPatch, place: Path, out: Path, predicted: list[Predicted], config: RunConfig
) -> Evaluation:
    manifest = load_manifest(place)
    meta = Meta(3, manifest.class_names, manifest.category_ids, manifest.fingerprint, "run", None, {})

    def fake(*arguments: object) -> Iterator[Predicted]:
        yield from predicted

    monkeypatch.setattr(module, "predict_shards", fake)
    monkeypatch.setattr(module, "read_meta", lambda directory: (config, meta))
    return evaluate(Path("checkpoint"), place, config, LAYOUT, out, lambda done: None)


def found_in(place: Path, keys: tuple[str, ...]) -> list[Predicted]:
    """The ground truth as detections."""
    truth = annotations(place)
    results: dict[int, list[dict[str, Any]]] = {i["id"]: [] for i in truth["images"]}
    for a in truth["annotations"]:
        points = {"keypoints": a.get("keypoints", [1.0] * 9)} if "keypoints" in keys else {}
        kept = {key: a[key] for key in ("image_id", "category_id", *keys) if key in a}
        results[a["image_id"]].append(kept | points | {"score": 0.9})
    return [Predicted(i, found, None) for i, found in results.items()]


def test_keypoints_are_scored_drawn_and_written(monkeypatch: pytest.MonkeyPatch, shapes: Path, tmp_path: Path) -> None:
    place = shards(shapes, tmp_path, add_keypoints)
    manifest = load_manifest(place)
    assert manifest.keypoints is not None and manifest.keypoints.sigmas == (0.05, 0.1, 0.1)
    model = ModelConfig(keypoint=KeypointConfig(count=3))
    config = RunConfig(model=model, evaluate=EvaluateConfig(pictures=2, report_pictures=1))
    predicted = found_in(place, ("bbox", "segmentation", "keypoints"))
    drawn: list[tuple[Any, ...]] = []
    monkeypatch.setattr(module, "draw_comparison", lambda *arguments: drawn.append(arguments))
    monkeypatch.setattr(module, "gallery", lambda *arguments: None)
    evaluation = score(monkeypatch, place, tmp_path / "out", predicted, config)
    assert list(evaluation.aps) == ["box", "mask", "keypoint"]
    ap = evaluation.aps["keypoint"]
    assert ap.stats["AP"] == pytest.approx(1) and ap.sigmas == (0.05, 0.1, 0.1)
    labelled = [a for a in annotations(place)["annotations"] if a.get("num_keypoints")]
    assert ap.instances[manifest.class_names[0]] == len(labelled) > 2 and set(list(ap.instances.values())[1:]) == {0}
    content = json.loads((tmp_path / "out/ap.json").read_text())
    assert content["keypoint"]["AP"] == ap.stats["AP"] and content["keypoint"]["oks_sigmas"] == [0.05, 0.1, 0.1]
    with (tmp_path / "out/per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["keypoint_AP"]) == pytest.approx(1) and rows[1]["keypoint_AP"] == ""
    results = json.loads((tmp_path / "out/results_keypoint.json").read_text())
    assert set(results[0]) == {"image_id", "category_id", "keypoints", "score"}
    assert evaluate_coco(annotations(place), results, "keypoint", "pycocotools").stats == ap.stats
    assert (tmp_path / "out/pr_curves.png").exists()
    assert "keypoint AP50" in (tmp_path / "out/report/report.html").read_text()
    *_, truth, found, _, _, skeleton = drawn[0]
    assert skeleton == ((0, 1), (0, 2)) and len(found.keypoints) == len(truth.keypoints)


def test_of_a_few_images_none_may_have_a_keypoint(
    monkeypatch: pytest.MonkeyPatch, shapes: Path, tmp_path: Path
) -> None:
    def name_keypoints(content: dict[str, Any]) -> None:
        content["categories"][0]["keypoints"] = NAMES

    place = shards(shapes, tmp_path, name_keypoints)
    config = RunConfig(
        model=ModelConfig(keypoint=KeypointConfig(count=3)), evaluate=EvaluateConfig(pictures=0, report=False)
    )
    predicted = found_in(place, ("bbox", "segmentation", "keypoints"))
    ap = score(monkeypatch, place, tmp_path / "out", predicted, config).aps["keypoint"]
    assert all(math.isnan(value) for value in ap.stats.values()) and set(ap.instances.values()) == {0}


def test_a_pose_model_needs_shards_with_keypoints(
    monkeypatch: pytest.MonkeyPatch, shapes: Path, tmp_path: Path
) -> None:
    config = RunConfig(model=ModelConfig(keypoint=KeypointConfig(count=3)))
    with pytest.raises(DataError, match="has no keypoints to score; shard from annotations with keypoints"):
        score(monkeypatch, shapes / "val", tmp_path, [], config)


def test_of_an_rpn_alone_the_recall_is_told(monkeypatch: pytest.MonkeyPatch, shapes: Path, tmp_path: Path) -> None:
    place, model = shapes / "val", ModelConfig(box=None, mask=None)
    config = RunConfig(model=model, evaluate=EvaluateConfig(pictures=1, report_pictures=1))
    first = load_manifest(place).category_ids[0]
    predicted = [
        replace(p, results=[{**r, "category_id": first} for r in p.results]) for p in found_in(place, ("bbox",))
    ]
    evaluation = score(monkeypatch, place, tmp_path, predicted, config)
    assert list(evaluation.aps) == ["proposal"]
    assert evaluation.aps["proposal"].stats["AR_100"] == evaluation.aps["proposal"].stats["AR_1000"] == 1
    assert json.loads((tmp_path / "ap.json").read_text())["proposal"]["AR_300"] == 1
    assert json.loads((tmp_path / "results_proposal.json").read_text())[0]["category_id"] == first
    assert not (tmp_path / "per_class.csv").exists() and not (tmp_path / "pr_curves.png").exists()
    assert len(evaluation.pictures) == 2
    page = (tmp_path / "report/report.html").read_text()
    sections = re.findall("section id=([a-z-]+)", page)
    assert sections == ["numbers", "sizes", "speed"]  # what needs classes or precision is left out; nothing is missed


def test_lvis_shards_are_scored_by_lvis_rules(monkeypatch: pytest.MonkeyPatch, shapes: Path, tmp_path: Path) -> None:
    def federate(content: dict[str, Any]) -> None:
        ids = [c["id"] for c in content["categories"]]
        for number, category in enumerate(content["categories"]):
            category["frequency"] = "rcf"[number % 3]
        for image in content["images"]:
            own = {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}
            image["neg_category_ids"] = [c for c in ids[::2] if c not in own]
            image["not_exhaustive_category_ids"] = sorted(own)[:1]

    place = shards(shapes, tmp_path, federate, read_lvis)
    truth, given = annotations(place), json.loads((tmp_path / "annotations.json").read_text())
    for ours, theirs in zip(truth["images"], sorted(given["images"], key=lambda i: i["id"]), strict=True):
        assert all(sorted(ours[k]) == sorted(theirs[k]) for k in ("neg_category_ids", "not_exhaustive_category_ids"))
    predicted = found_in(place, ("bbox",))
    category = given["categories"][1]["id"]  # an alarm in an image where nobody looked for that class
    alone = next(p for p in predicted if all(r["category_id"] != category for r in p.results))
    alone.results.append({"image_id": alone.sample_id, "category_id": category, "bbox": [0, 0, 60, 60], "score": 0.99})
    config = RunConfig(model=ModelConfig(mask=None), evaluate=EvaluateConfig(pictures=0, report_pictures=0))
    ap = score(monkeypatch, place, tmp_path / "out", predicted, config).aps["box"]
    assert "LVIS&#x27;s protocol" in (tmp_path / "out/report/report.html").read_text()
    assert ap.stats["AP"] == ap.stats["AR_300"] == 1 and "AP_rare" in ap.stats
    results = [r for p in predicted for r in p.results]
    assert evaluate_coco(truth, results, "box").stats["AP"] < 1


def test_chosen_categories_alone_are_scored(monkeypatch: pytest.MonkeyPatch, shapes: Path, tmp_path: Path) -> None:
    names = load_manifest(shapes / "val").class_names
    config = RunConfig(
        model=ModelConfig(mask=None), evaluate=EvaluateConfig(categories=names[2:4], pictures=0, report=False)
    )
    evaluation = score(monkeypatch, shapes / "val", tmp_path, found_in(shapes / "val", ("bbox",)), config)
    assert set(evaluation.aps["box"].per_class) == set(names[2:4])
