"""A run on Cityscapes' data: its protocol is chosen, its files are written, and a submission where it is asked for."""

import csv
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest import approx

from model.config import ModelConfig
from pipeline.benchmarks.cityscapes_peer import official_ap
from pipeline.benchmarks.cityscapes_scoring import invent_detections
from pipeline.config import EvaluateConfig, RunConfig
from pipeline.data.cityscapes import read_cityscapes
from pipeline.data.cityscapes_labels import CLASS_NAMES
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.sharding import shard_dataset
from pipeline.data.shards import load_index, load_manifest
from pipeline.data.streets import generate_streets
from pipeline.errors import UserError
from pipeline.evaluation import evaluate as module
from pipeline.evaluation.cityscapes_ap import CityscapesAp
from pipeline.evaluation.cityscapes_submission import write_picture
from pipeline.evaluation.cityscapes_truth import read_ground_truth
from pipeline.evaluation.evaluate import Evaluation, choose_protocol, evaluate
from pipeline.evaluation.predict import Predicted, choose_rows
from pipeline.training.checkpoint import Meta
from pipeline.training.cluster import Layout

Streets = tuple[Path, Path]  # the official layout, and its shards


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Streets:
    root = tmp_path_factory.mktemp("streets")
    generate_streets(root / "cityscapes", train=0, val=7, height_px=96, workers=1)
    dataset = read_cityscapes(root / "cityscapes", "val", Quarantine(strict=True))
    shard_dataset(dataset, root / "val", rows_per_shard=4, rows_per_group=3)
    return root / "cityscapes", root / "val"


def config_of(**options: Any) -> RunConfig:
    return RunConfig(evaluate=EvaluateConfig(**({"pictures": 1, "report": False} | options)))


def detections(shards: Path) -> dict[int, list[dict[str, Any]]]:
    found = {}
    for record in read_ground_truth(shards):
        results = invent_detections(np.random.default_rng(record["sample_id"] % 1000), record, 25)
        found[record["sample_id"]] = [
            {"image_id": record["sample_id"], "bbox": [0.0, 0.0, 5.0, 5.0], **result} for result in results
        ]
    return found


def run(monkeypatch: pytest.MonkeyPatch, shards: Path, out: Path, config: RunConfig) -> Evaluation:
    manifest, found = load_manifest(shards), detections(shards)
    meta = Meta(3, manifest.class_names, manifest.category_ids, manifest.fingerprint, "run", None, {})
    chosen = choose_rows(load_index(shards), config.evaluate.max_images)["sample_id"].to_pylist()

    def fake(*_: object) -> Iterator[Predicted]:
        yield from (Predicted(sample_id, found[sample_id], None) for sample_id in chosen)

    monkeypatch.setattr(module, "predict_shards", fake)
    monkeypatch.setattr(module, "read_meta", lambda directory: (config, meta))
    return evaluate(Path("checkpoint"), shards, config, Layout(1, 0.0, 1.0), out, lambda done: None)


def test_a_run_is_scored_as_the_official_script_scores_its_submission(
    monkeypatch: pytest.MonkeyPatch, streets: Streets, tmp_path: Path
) -> None:
    root, shards = streets
    evaluation = run(
        monkeypatch, shards, tmp_path / "evaluation", config_of(submission=True, report=True, report_pictures=1)
    )
    (ap,) = evaluation.aps.values()
    assert list(evaluation.aps) == ["mask"] and isinstance(ap, CityscapesAp)
    assert evaluation.submission == tmp_path / "evaluation-submission"
    expected = official_ap(sorted(root.rglob("*_instanceIds.png")), evaluation.submission)
    assert 0 < ap.stats["AP"] < 1
    assert ap.stats == approx({"AP": expected["allAp"], "AP50": expected["allAp50%"]}, rel=0, abs=1e-12)
    written = json.loads((tmp_path / "evaluation/ap.json").read_text())
    assert list(written) == ["mask"] and written["mask"]["AP"] == ap.stats["AP"]
    with (tmp_path / "evaluation/per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(CLASS_NAMES)
    for row, (name, theirs) in zip(rows, expected["classes"].items(), strict=True):
        for column, per_class, key in (("mask_AP", "per_class", "ap"), ("mask50_AP", "per_class_50", "ap50%")):
            value = written["mask"][per_class][name]
            assert (math.nan if value is None else value) == approx(theirs[key], rel=0, abs=1e-12, nan_ok=True)
            assert row[column] == ("" if value is None else str(value))
    assert len(json.loads((tmp_path / "evaluation/results_mask.json").read_text())) >= 7 * 25
    assert not (tmp_path / "evaluation/results_box.json").exists()
    page = (tmp_path / "evaluation/report/report.html").read_text()
    assert "the protocol of the numbers above matches differently" in page and "mask50 AP" in page
    assert "id=curves" not in page and "id=errors" in page and "id=worst" in page


def test_only_the_chosen_pictures_count(monkeypatch: pytest.MonkeyPatch, streets: Streets, tmp_path: Path) -> None:
    root, shards = streets
    evaluation = run(monkeypatch, shards, tmp_path / "out", config_of(max_images=3, submission=True))
    assert evaluation.images == 3 and evaluation.submission is not None
    texts = {path.name.removesuffix("_pred.txt") for path in evaluation.submission.glob("*.txt")}
    truth = [path for path in sorted(root.rglob("*_instanceIds.png")) if path.name.split("_gtFine")[0] in texts]
    assert len(truth) == len(texts) == 3
    expected = official_ap(truth, evaluation.submission)
    assert evaluation.aps["mask"].stats["AP"] == approx(expected["allAp"], rel=0, abs=1e-12, nan_ok=True)


def test_cocos_protocol_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, streets: Streets, tmp_path: Path) -> None:
    evaluation = run(monkeypatch, streets[1], tmp_path, config_of(protocol="coco"))
    assert list(evaluation.aps) == ["box", "mask"] and "AP75" in evaluation.aps["mask"].stats
    assert (tmp_path / "pr_curves.png").exists() and evaluation.submission is None
    run(monkeypatch, streets[1], tmp_path, config_of())
    assert not (tmp_path / "pr_curves.png").exists()  # nothing of the other protocol stays


def test_the_protocol_is_the_datas(shapes: Path, streets: Streets) -> None:
    boxes = ModelConfig(mask=None)
    for config, shards, expected in (
        (config_of(), streets[1], "cityscapes"),
        (config_of(), shapes / "val", "coco"),
        (config_of(protocol="cityscapes"), streets[1], "cityscapes"),
        (replace(config_of(), model=boxes), streets[1], "coco"),
    ):
        assert choose_protocol(config, shards) == expected
    for config, shards, error, message in (
        (config_of(protocol="cityscapes"), shapes / "val", DataError, "set evaluate.protocol=coco, or evaluate on sh"),
        (config_of(submission=True), shapes / "val", DataError, "does not hold Cityscapes' classes"),
        (replace(config_of(protocol="cityscapes"), model=boxes), streets[1], UserError, "protocol=cityscapes needs m"),
        (replace(config_of(submission=True), model=boxes), streets[1], UserError, "submission=true needs masks"),
        (config_of(categories=("car",)), streets[1], UserError, "categories does not go with Cityscapes' protocol"),
        (config_of(protocol="lvis"), shapes / "val", DataError, "scored by 'coco', not as LVIS's"),
    ):
        with pytest.raises(error, match=message):
            choose_protocol(config, shards)


def test_a_submission_of_pictures_without_ground_truth(
    monkeypatch: pytest.MonkeyPatch, streets: Streets, tmp_path: Path
) -> None:
    shutil.copytree(streets[0] / "leftImg8bit/val", tmp_path / "c/leftImg8bit/test")
    shard_dataset(read_cityscapes(tmp_path / "c", "test", Quarantine(strict=True)), tmp_path / "test")
    config = config_of(submission=True)
    found = {number: results[:2] for number, results in detections(streets[1]).items()}
    names = {record["file_name"]: record["sample_id"] for record in read_ground_truth(streets[1])}
    rows = load_index(tmp_path / "test")
    assert choose_protocol(config, tmp_path / "test") == "coco"
    assert set(rows["sample_id"].to_pylist()) == set(names.values())
    module.write_submission(tmp_path / "test", rows, found, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*_pred.txt"))) == len(names)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2 * len(names)


def test_an_earlier_submission_does_not_stay(tmp_path: Path, streets: Streets) -> None:
    found = detections(streets[1])
    (sample_id, results), *_ = found.items()
    rows = load_index(streets[1])
    rows = rows.filter([number == sample_id for number in rows["sample_id"].to_pylist()])
    module.write_submission(streets[1], load_index(streets[1]), found, tmp_path)
    module.write_submission(streets[1], rows, {sample_id: results[:3]}, tmp_path)
    (text,) = tmp_path.glob("*_pred.txt")
    lines = [line.split(" ") for line in text.read_text().splitlines()]
    assert len(lines) == 3 and all((tmp_path / path).is_file() for path, _, _ in lines)
    assert [float(score) for _, _, score in lines] == [result["score"] for result in results[:3]]
    assert len(list((tmp_path / lines[0][0]).parent.iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "result", "message"),
    [
        ("000000000139.jpg", None, "CITY_SEQUENCE_FRAME_leftImg8bit.png, got 000000000139.jpg"),
        ("a/ulm_000000_000019_leftImg8bit.png", {"category_id": 26, "score": 0.5, "bbox": [0, 0, 1, 1]}, "needs masks"),
    ],
)
def test_what_the_server_would_not_take_is_refused(tmp_path: Path, name: str, result: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_picture(tmp_path, name, [result] if result else [])
