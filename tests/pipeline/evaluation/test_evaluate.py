"""Scoring: perfect detections score 1, lost or doubled images are noticed, and every file is written."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.config import ModelConfig
from pipeline.config import EvaluateConfig, RunConfig
from pipeline.data.quarantine import DataError
from pipeline.data.shards import annotations, load_index, load_manifest
from pipeline.data.storage import Storage
from pipeline.errors import UserError
from pipeline.evaluation import evaluate as module
from pipeline.evaluation.coco_ap import evaluate_coco
from pipeline.evaluation.evaluate import Evaluation, check_classes, choose_protocol, evaluate
from pipeline.evaluation.evaluated import ground_truth, read_evaluated
from pipeline.evaluation.predict import Predicted, choose_rows
from pipeline.training.checkpoint import Meta
from pipeline.training.cluster import Layout

LAYOUT = Layout(1, 0.0, 1.0)
CONFIG = RunConfig(evaluate=EvaluateConfig(pictures=2, report=False))


@pytest.fixture
def val(shapes: Path) -> Path:
    return shapes / "val"


def meta_of(val: Path) -> Meta:
    manifest = load_manifest(val)
    return Meta(3, manifest.class_names, manifest.category_ids, manifest.fingerprint, "run", None, {})


def perfect(val: Path, most: int | None = None) -> list[Predicted]:
    """The ground truth as detections."""
    found: dict[int, list[dict[str, Any]]] = {
        i: [] for i in choose_rows(load_index(val), most)["sample_id"].to_pylist()
    }
    for a in annotations(val)["annotations"]:
        if a["image_id"] in found:
            kept = {key: a[key] for key in ("image_id", "category_id", "bbox", "segmentation")}
            found[a["image_id"]].append(kept | {"score": 0.9})
    return [Predicted(sample_id, results, None) for sample_id, results in found.items()]


def score(
    monkeypatch: pytest.MonkeyPatch,
    val: Path,
    out: Path,
    predicted: list[Predicted],
    config: RunConfig = CONFIG,
    report: Path | None = None,
) -> tuple[Evaluation, list[int]]:
    def fake(*arguments: object) -> Iterator[Predicted]:
        assert arguments == (Path("checkpoint"), val, config, LAYOUT)
        yield from predicted

    monkeypatch.setattr(module, "predict_shards", fake)
    monkeypatch.setattr(module, "read_meta", lambda directory: (config, meta_of(val)))
    done: list[int] = []
    return evaluate(Path("checkpoint"), val, config, LAYOUT, out, done.append, report), done


def test_perfect_detections_score_one_and_every_file_is_there(
    monkeypatch: pytest.MonkeyPatch, val: Path, tmp_path: Path
) -> None:
    predicted = perfect(val)
    evaluation, done = score(monkeypatch, val, tmp_path / "out", predicted)
    assert {task: ap.stats["AP"] for task, ap in evaluation.aps.items()} == {"box": 1.0, "mask": 1.0}
    assert done == list(range(1, 9))
    assert (evaluation.images, evaluation.undecodable, evaluation.directory) == (8, {}, tmp_path / "out")
    out = tmp_path / "out"
    ap = json.loads((out / "ap.json").read_text())
    assert ap["box"]["AP"] == ap["mask"]["AP"] == 1.0
    with (out / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(load_manifest(val).class_names)
    assert {row["mask_AP"] for row in rows} <= {"1.0", ""}
    results = {task: json.loads((out / f"results_{task}.json").read_text()) for task in ("box", "mask")}
    expected = sorted((r for p in predicted for r in p.results), key=lambda r: r["image_id"])
    assert results["box"] == [{k: v for k, v in r.items() if k != "segmentation"} for r in expected]
    assert results["mask"] == [{k: v for k, v in r.items() if k != "bbox"} for r in expected]
    assert evaluation.pictures[0].name == "overview.png" and len(evaluation.pictures) == 3
    for path in [*evaluation.pictures, out / "pr_curves.png"]:
        with Image.open(path) as image:
            assert image.width > 50
    assert evaluation.report is None and not (out / "report").exists()


def test_a_report_lies_beside_the_numbers_or_elsewhere(
    monkeypatch: pytest.MonkeyPatch, val: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, evaluate=EvaluateConfig(pictures=0, report_pictures=1))
    evaluation, _ = score(monkeypatch, val, tmp_path / "out", perfect(val), config)
    page = tmp_path / "out/report/report.html"
    assert evaluation.report == page
    text = page.read_text()
    assert "box AP" in text and "mask AP50" in text and "2 x" not in text and "1 x 1 CPU" in text
    assert len(list((page.parent / "galleries").glob("best-01-*.png"))) == 1 and "data:image/jpeg" in text
    assert not list((page.parent / "galleries").glob("missed*"))  # a perfect model misses nothing
    names = {image["id"]: image["file_name"] for image in annotations(val)["images"]}
    (best,) = (page.parent / "galleries").iterdir()
    assert names[int(best.stem.split("-")[-1])] in text
    elsewhere, _ = score(monkeypatch, val, tmp_path / "out", perfect(val), config, tmp_path / "there")
    assert elsewhere.report == tmp_path / "there/report.html" and not page.exists()


def test_images_without_detections_cost_recall(monkeypatch: pytest.MonkeyPatch, val: Path, tmp_path: Path) -> None:
    predicted = perfect(val)
    lost = max(predicted, key=lambda p: len(p.results))
    some = [Predicted(p.sample_id, [], "cut off") if p is lost else p for p in predicted]
    evaluation, _ = score(monkeypatch, val, tmp_path, some)
    assert evaluation.undecodable == {lost.sample_id: "cut off"}
    assert evaluation.aps["box"].stats["AR_100"] < 1
    assert evaluation.images == 8


def test_only_the_chosen_images_count(monkeypatch: pytest.MonkeyPatch, val: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, evaluate=EvaluateConfig(max_images=3, pictures=0, report=False))
    evaluation, _ = score(monkeypatch, val, tmp_path, perfect(val, 3), config)
    assert evaluation.images == 3 and evaluation.pictures == ()
    assert evaluation.aps["mask"].stats["AP"] == 1.0  # the other five are not missed
    assert sum(evaluation.aps["box"].instances.values()) == sum(len(p.results) for p in perfect(val, 3))


def test_a_model_without_masks_has_box_ap_alone(monkeypatch: pytest.MonkeyPatch, val: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, model=ModelConfig(mask=None))
    boxes = [
        Predicted(p.sample_id, [{k: v for k, v in r.items() if k != "segmentation"} for r in p.results], None)
        for p in perfect(val)
    ]
    evaluation, _ = score(monkeypatch, val, tmp_path, boxes, config)
    assert list(evaluation.aps) == ["box"]
    assert not (tmp_path / "results_mask.json").exists()


def test_pictures_of_an_earlier_evaluation_do_not_stay(
    monkeypatch: pytest.MonkeyPatch, val: Path, tmp_path: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/000000009999.png").write_bytes(b"old")
    evaluation, _ = score(monkeypatch, val, tmp_path, perfect(val))
    assert sorted((tmp_path / "pictures").iterdir()) == sorted(evaluation.pictures)


def test_an_image_predicted_twice_or_not_at_all_is_noticed(
    monkeypatch: pytest.MonkeyPatch, val: Path, tmp_path: Path
) -> None:
    predicted = perfect(val)
    with pytest.raises(RuntimeError, match=rf"sample {predicted[0].sample_id} was predicted twice"):
        score(monkeypatch, val, tmp_path, [*predicted, predicted[0]])
    with pytest.raises(RuntimeError, match="2 images were not predicted"):
        score(monkeypatch, val, tmp_path, predicted[:-2])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            lambda names: (*names, "unicorn"),
            r"has 8 classes, the checkpoint was trained on 9; they differ in unicorn; ev",
        ),
        (lambda names: ("dog", *names[1:]), r"trained on 8; they differ in \w+, dog; evaluate on shards made from"),
        (lambda names: names[::-1], r"they differ in order; evaluate"),
    ],
)
def test_other_classes_are_refused(val: Path, names: Any, message: str) -> None:
    meta = meta_of(val)
    check_classes(meta, val)
    with pytest.raises(DataError, match=message):
        check_classes(replace(meta, class_names=names(meta.class_names)), val)


@pytest.mark.parametrize("most", [None, 3])
def test_what_was_evaluated_is_kept_and_found_again(
    monkeypatch: pytest.MonkeyPatch, val: Path, tmp_path: Path, most: int | None
) -> None:
    config = replace(CONFIG, evaluate=EvaluateConfig(pictures=0, max_images=most, bootstrap=20))
    found, _ = score(monkeypatch, val, tmp_path / "out", perfect(val, most), config)
    assert json.loads((tmp_path / "out/ap.json").read_text())["box"]["interval"]["AP"] == pytest.approx([1, 1])
    kept = read_evaluated(tmp_path / "out")
    truth = ground_truth(kept)
    results = json.loads((tmp_path / "out/results_mask.json").read_text())
    assert {image["id"] for image in truth["images"]} == set(
        choose_rows(load_index(val), most)["sample_id"].to_pylist()
    )
    assert evaluate_coco(truth, results, "mask").stats == pytest.approx(found.aps["mask"].stats, nan_ok=True)


def test_resampling_of_an_rpns_recall_is_refused_first(val: Path) -> None:
    config = replace(CONFIG, model=replace(CONFIG.model, box=None, mask=None), evaluate=EvaluateConfig(bootstrap=9))
    with pytest.raises(UserError, match="recall alone"):
        choose_protocol(config, Storage.at(val))
