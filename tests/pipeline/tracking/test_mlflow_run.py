import logging
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.tracking import MlflowClient

from pipeline.errors import UserError
from pipeline.evaluation.cityscapes_ap import CityscapesAp
from pipeline.evaluation.protocols import STAT_NAMES
from pipeline.evaluation.tables import Numbers, read_ap_json, write_ap_json
from pipeline.tracking import mlflow_run
from pipeline.tracking.mlflow_run import CHANGED_TAG, RUN_FILE, UNSENT_FILE, Tracker, TrackingError, flatten
from pipeline.tracking.mlflow_store import default_uri, fetch_artifacts


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests: making it takes a second."""
    return default_uri(tmp_path_factory.mktemp("runs with a space"))


def run_of(tracker: Tracker) -> Any:
    return MlflowClient(tracking_uri=tracker.uri).get_run(tracker.run_id)


def history(tracker: Tracker, key: str) -> list[tuple[int, float]]:
    found = MlflowClient(tracking_uri=tracker.uri).get_metric_history(tracker.run_id, key)
    return [(m.step, m.value) for m in found]


def test_metrics_come_back_after_finish(uri: str, tmp_path: Path) -> None:
    tracker = Tracker.start(uri, "maskrcnn", "metrics", tmp_path)
    for step in range(1, 4):
        tracker.log_metrics(step, {"loss/total": 1.0 / step, "lr": 0.02})
    assert history(tracker, "lr") == []  # still held back
    tracker.finish()
    assert history(tracker, "loss/total") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    run = run_of(tracker)
    assert run.info.status == "FINISHED"
    assert run.info.end_time is not None
    assert run.info.run_name == "metrics"


def test_many_metrics_are_sent_before_the_end(uri: str, tmp_path: Path) -> None:
    tracker = Tracker.start(uri, "maskrcnn", "many", tmp_path)
    for step in range(60):
        tracker.log_metrics(step, {f"m{i}": 1.0 for i in range(10)})
    assert len(history(tracker, "m0")) == 50
    tracker.flush()
    assert len(history(tracker, "m0")) == 60


def test_a_directory_continues_its_run(uri: str, tmp_path: Path) -> None:
    mine, yours = tmp_path / "new" / "mine", tmp_path / "yours"
    first = Tracker.start(uri, "maskrcnn", 'Tom\'s "run"', mine)
    first.log_metrics(1, {"loss/total": 2.0})
    first.finish("FAILED")
    second = Tracker.start(uri, "maskrcnn", "another name", mine)
    assert (second.run_id, second.resumed, first.resumed) == (first.run_id, True, False)
    assert run_of(second).info.status == "RUNNING" and run_of(second).info.run_name == 'Tom\'s "run"'
    second.log_metrics(2, {"loss/total": 1.0})
    second.finish()
    assert history(second, "loss/total") == [(1, 2.0), (2, 1.0)]
    # Of the same name, but somebody else's
    other = Tracker.start(uri, "maskrcnn", 'Tom\'s "run"', yours)
    assert other.run_id != first.run_id and not other.resumed
    assert [path.name for path in mine.iterdir()] == [RUN_FILE]


def test_a_run_that_is_not_there_any_more_is_begun_anew(uri: str, tmp_path: Path) -> None:
    first = Tracker.start(uri, "maskrcnn", "x", tmp_path)
    assert Tracker.start(uri, "other experiment", "x", tmp_path).run_id != first.run_id
    third = Tracker.start(uri, "maskrcnn", "x", tmp_path)  # the directory is the other experiment's now
    assert third.run_id != first.run_id
    MlflowClient(tracking_uri=uri).delete_run(third.run_id)
    fourth = Tracker.start(uri, "maskrcnn", "x", tmp_path)
    assert fourth.run_id != third.run_id and not fourth.resumed
    moved = Tracker.start(default_uri(tmp_path / "elsewhere"), "maskrcnn", "x", tmp_path)
    assert moved.run_id != fourth.run_id and not moved.resumed


def test_config_and_what_changed_on_resume(uri: str, tmp_path: Path) -> None:
    config = {"train": {"steps": 200, "name": None}, "data": {"sizes": [1, 2], "note": "x" * 900}, "on": True}
    tracker = Tracker.start(uri, "maskrcnn", "config", tmp_path)
    assert tracker.log_config(config, "train:\n  steps: 200\n") == {}
    params = run_of(tracker).data.params
    assert {k: params[k] for k in ("train.steps", "train.name", "data.sizes", "on")} == {
        "train.steps": "200",
        "train.name": "null",
        "data.sizes": "[1, 2]",
        "on": "true",
    }
    assert len(params["data.note"]) == 500
    again = Tracker.start(uri, "maskrcnn", "config", tmp_path)
    assert again.log_config(config, "same") == {}
    assert CHANGED_TAG not in run_of(again).data.tags
    longer = {**config, "train": {"steps": 400, "name": None, "seed": 1}}
    assert again.log_config(longer, "steps: 400 # größer\n") == {"train.steps": ("200", "400")}
    run = run_of(again)
    assert run.data.tags[CHANGED_TAG] == "train.steps: 200 -> 400"
    assert run.data.params["train.steps"] == "200"
    assert run.data.params["train.seed"] == "1"
    local = MlflowClient(tracking_uri=uri).download_artifacts(again.run_id, "config.yaml")
    assert Path(local).read_text(encoding="utf-8") == "steps: 400 # größer\n"


def test_more_than_a_hundred_parameters_and_tags(uri: str, tmp_path: Path) -> None:
    tracker = Tracker.start(uri, "maskrcnn", "wide", tmp_path)
    tracker.log_config({f"key{i}": i for i in range(230)}, "")
    tracker.log_tags({f"tag{i}": "t" * 9000 for i in range(120)})
    run = run_of(tracker)
    assert len(run.data.params) == 230
    assert len(run.data.tags["tag119"]) == 5000


def test_artifacts_lie_beside_the_database(uri: str, tmp_path: Path) -> None:
    tracker = Tracker.start(uri, "maskrcnn", "artifacts", tmp_path)
    picture = tmp_path / "picture 1.png"
    picture.write_bytes(b"png")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "meta.json").write_text("{}")
    tracker.log_artifact(picture, "pictures")
    tracker.log_artifact(checkpoint)
    root = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts" / tracker.run_id / "artifacts"
    assert (root / "pictures" / "picture 1.png").read_bytes() == b"png"
    assert (root / "checkpoint" / "meta.json").read_text() == "{}"
    with pytest.raises(FileNotFoundError, match="write it first"):
        tracker.log_artifact(tmp_path / "nothing.png")


def test_ap_with_unicode_and_odd_class_names(uri: str, tmp_path: Path) -> None:
    classes = {"person": 0.5, "größe 猫": 0.25, "a/b": 0.1, "a?b": 0.2, "..": 0.3, "unseen": math.nan}
    stats = {name: (math.nan if name == "AP_large" else 0.5) for name in STAT_NAMES}
    ap = Numbers(stats, classes)
    tracker = Tracker.start(uri, "maskrcnn", "ap", tmp_path)
    tracker.log_ap(100, {"mask": ap})
    tracker.flush()
    metrics = run_of(tracker).data.metrics
    assert metrics["mask/AP"] == 0.5
    assert "mask/AP_large" not in metrics
    assert {k.removeprefix("mask/AP/"): v for k, v in metrics.items() if k.startswith("mask/AP/")} == {
        "person": 0.5,
        "größe 猫": 0.25,
        "a_b": 0.1,
        "a_b_": 0.2,
        "_": 0.3,
    }
    assert history(tracker, "mask/AP50") == [(100, 0.5)]


def test_ap_by_cityscapes_protocol_comes_back(uri: str, tmp_path: Path) -> None:
    stats, empty = {"AP": 0.25, "AP50": 0.5}, np.zeros((2, 10))
    ap = CityscapesAp(stats, {"car": 0.25, "bus": np.nan}, {"car": 0.5, "bus": np.nan}, {"car": 3, "bus": 0}, empty)
    tracker = Tracker.start(uri, "maskrcnn", "streets", tmp_path)
    write_ap_json({"mask": ap}, tmp_path / "ap.json")
    tracker.log_ap(7, read_ap_json(tmp_path / "ap.json"))
    tracker.flush()
    expected = {"mask/AP": 0.25, "mask/AP50": 0.5, "mask/AP/car": 0.25, "mask50/AP/car": 0.5}
    assert run_of(tracker).data.metrics == expected


def test_runs_of_processes_that_are_gone_are_closed(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parent = Tracker.start(uri, "maskrcnn", "parent", tmp_path / "parent")
    child = Tracker.start(uri, "maskrcnn", "child", tmp_path / "child", parent.run_id)
    assert parent.is_open(child.run_id)
    real = parent._client.log_batch
    slept: list[float] = []

    def fail(*args: object, **kwargs: object) -> None:
        raise MlflowException("no route to host")

    monkeypatch.setattr(parent._client, "log_batch", fail)
    monkeypatch.setattr(mlflow_run, "time", SimpleNamespace(sleep=slept.append, monotonic=time.monotonic))
    with pytest.raises(TrackingError, match=r"did not take the end of run .*: no route to host"):
        parent.finish_other(child.run_id, "FINISHED", {"stopped": "early"})
    assert slept == [] and parent.is_open(child.run_id)  # who asks has more to do than to wait
    monkeypatch.setattr(parent._client, "log_batch", real)
    parent.finish_other(child.run_id, "KILLED", {"stopped": "with the search"})
    assert not parent.is_open(child.run_id)
    closed = run_of(child)
    assert closed.info.status == "KILLED" and closed.data.tags["stopped"] == "with the search"


def test_a_store_that_is_away_is_waited_for(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    tracker = Tracker.start(uri, "maskrcnn", "away", tmp_path)
    real = tracker._client.log_batch

    def fail(*args: object, **kwargs: object) -> None:
        raise MlflowException("no route to host\nand much more")

    monkeypatch.setattr(tracker._client, "log_batch", fail)
    tracker._flush_at = 0.0
    with caplog.at_level(logging.WARNING):
        for step in range(600):
            tracker.log_metrics(step, {"loss/total": 1.0})
    assert [r.getMessage() for r in caplog.records] == [
        f"MLflow at {uri} did not take 1 metrics (no route to host); they are kept and sent again in 60 s"
    ]
    assert (tmp_path / UNSENT_FILE).is_file()
    # It stays away: the run ends all the same, and what it could not send waits for the next life.
    monkeypatch.setattr(mlflow_run, "_PATIENCE_SECONDS", 1.5)
    with pytest.raises(TrackingError, match=r"did not take the end .*600 metrics are kept in .*; the same command"):
        tracker.finish()
    with caplog.at_level(logging.WARNING):
        tracker.finish("FAILED")  # the reason of that is not hidden
    assert "did not take the end" in caplog.messages[-1]
    monkeypatch.setattr(tracker._client, "log_batch", real)
    again = Tracker.start(uri, "maskrcnn", "away", tmp_path)
    again.log_metrics(600, {"loss/total": 1.0})
    again.finish()
    assert history(again, "loss/total") == [(step, 1.0) for step in range(601)]
    assert run_of(again).info.status == "FINISHED" and not (tmp_path / UNSENT_FILE).exists()


def test_a_store_that_comes_back_takes_the_end(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker.start(uri, "maskrcnn", "back", tmp_path)
    tracker.log_metrics(1, {"loss/total": 1.0})
    real, calls = tracker._client.log_batch, []

    def fail_twice(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) < 3:
            raise MlflowException("no route to host")
        real(*args, **kwargs)

    monkeypatch.setattr(tracker._client, "log_batch", fail_twice)
    monkeypatch.setattr(mlflow_run.time, "sleep", lambda seconds: None)
    tracker.finish()
    assert len(calls) == 3 and history(tracker, "loss/total") == [(1, 1.0)]

    def refuse(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        raise MlflowException("no", error_code=INVALID_PARAMETER_VALUE)

    monkeypatch.setattr(tracker._client, "log_batch", refuse)
    tracker.log_metrics(2, {"loss/total": 1.0})
    with pytest.raises(TrackingError, match="did not take the end"):
        tracker.finish()
    assert len(calls) == 4  # asking again would not help


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1.5}, "d": "x"}, "e": [None, "y"]}) == {
        "a.b.c": "1.5",
        "a.d": "x",
        "e": '[null, "y"]',
    }


def test_a_folder_of_a_run_is_fetched(uri: str, tmp_path: Path) -> None:
    tracker = Tracker.start(uri, "maskrcnn", "evaluated", tmp_path)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/ap.json").write_text("{}")
    tracker.log_artifact(tmp_path / "evaluation")
    (tmp_path / "fetched").mkdir()
    found = fetch_artifacts(uri, tracker.run_id, "evaluation", tmp_path / "fetched")
    assert found.parent == tmp_path / "fetched" and (found / "ap.json").read_text() == "{}"
    for run_id, folder, words in (
        (tracker.run_id, "pictures", "has no artifacts pictures/"),
        ("0" * 32, "evaluation", "must be in the MLflow store at"),
    ):
        with pytest.raises(UserError, match=words):
            fetch_artifacts(uri, run_id, folder, tmp_path / "fetched")
    with pytest.raises(UserError, match="there is no MLflow store at"):
        fetch_artifacts(default_uri(tmp_path / "none"), tracker.run_id, "evaluation", tmp_path)
