"""One trial, with Ray Train put aside: what it tells Tune, what it leaves in files, and how it ends."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.configure import load_config
from pipeline.errors import UnavailableError, UserError
from pipeline.search import trial as module
from pipeline.search.plan import alone, begin, new_plan, plan_budget, read_plan
from pipeline.search.settings import TuneConfig
from pipeline.search.trial import run_trial
from pipeline.search.trials import (
    Outcome,
    candidate,
    read_events,
    read_trial,
    trial_directory,
    write_candidates,
    write_event,
    write_outcome,
)
from pipeline.tracking.mlflow_run import Tracker
from pipeline.training.cluster import Layout
from pipeline.training.evaluations import evaluation_directory
from pipeline.training.run import NotTrainableError

ONE = Layout(1, 0.0, 1.0)
OnEvent = Callable[[Any], None]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of MLflow, for all tests: to make one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def search(shapes: Path, store: str, tmp_path: Path) -> Path:
    """A search with one trial of 6 steps, evaluated every 2."""
    overrides = [
        *(f"data.{split}={shapes / split}" for split in ("train", "val")),
        *("model.trunk.body=resnet18", "model.trunk.norm=bn", "train.steps=6", "train.checkpoint_every_steps=2"),
        *(f"track.uri={store}", f"track.experiment={tmp_path.name}"),
        *("train.batch_images=4", "optim.milestones=[]", f"cluster.runs_dir={tmp_path}"),
    ]
    plan = new_plan(TuneConfig(name="s"), load_config(None, overrides), "s", {}, {"verb": "tune"}, {})
    begin(plan, [candidate(0, {"optim.lr": 0.1}, plan.config)])
    assert read_plan(tmp_path, "s") == plan
    return plan.directory


def evaluated(search: Path, step: int, ap: float) -> dict[str, Any]:
    """What an evaluation leaves, and the event of it."""
    place = evaluation_directory(trial_directory(search, 0), step)
    place.mkdir(parents=True)
    stats = {"AP": ap, "per_class": {}, "instances": {}}
    (place / "ap.json").write_text(json.dumps({"mask": stats}))
    return {"kind": "evaluated", "step": step, "aps": {}, "directory": place}


def go(search: Path, monkeypatch: pytest.MonkeyPatch, fit: Callable[[OnEvent], None]) -> list[dict[str, Any]]:
    """Run the trial with another `fit`; returns what Tune was told."""
    told: list[dict[str, Any]] = []

    def instead(run: Any, layout: Any, run_id: str, on_event: OnEvent, evaluators: Any) -> Path:
        fit(on_event)
        return run.directory / "step_0000006"

    def late(config: Any, run_dir: Path, checkpoint: Path, layout: Any) -> float:
        evaluated(search, 6, 0.5)
        return 0.5

    monkeypatch.setattr(module, "fit", instead)
    monkeypatch.setattr(module, "evaluate_checkpoint", late)
    run_trial(search, 0, ONE, ONE, None, told.append)
    return told


def test_evaluations_are_told_and_kept(search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(on_event: OnEvent) -> None:
        for step in (2, 4, 6):
            on_event(evaluated(search, step, step / 10))

    told = go(search, monkeypatch, fit)
    assert told == [
        {"steps": 2, "score": 0.2},
        {"steps": 4, "score": 0.4},
        {"steps": 6, "score": 0.6},
        {"steps": 6, "score": 0.6, "why": "finished"},
    ]
    progress = read_trial(search, 0).progress
    assert [(report.steps, report.score) for report in progress.reports] == [(2, 0.2), (4, 0.4), (6, 0.6)]
    assert progress.attempts == 1 and progress.mlflow_run_id and progress.seconds > 0 and progress.error is None


def test_a_second_life_tells_all_again_and_evaluates_what_was_not(
    search: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(on_event: OnEvent) -> None:
        on_event(evaluated(search, 2, 0.2))
        evaluated(search, 4, 0.4)  # lies there, and nobody heard of it
        raise RuntimeError("the machine burns")

    with pytest.raises(RuntimeError, match="burns"):
        go(search, monkeypatch, first)
    before = read_trial(search, 0).progress
    assert before.error and "RuntimeError: the machine burns" in before.error and len(before.reports) == 1
    told = go(search, monkeypatch, lambda on_event: None)  # it had all its steps already
    assert [one["steps"] for one in told] == [2, 4, 6, 6] and told[-1] == {"steps": 6, "score": 0.5, "why": "finished"}
    after = read_trial(search, 0).progress
    assert after.attempts == 2 and after.error is None and after.mlflow_run_id == before.mlflow_run_id
    assert after.reports[0] == before.reports[0] and after.seconds > before.seconds


@pytest.mark.parametrize(("error", "why"), [(NotTrainableError, "diverged"), (UserError, "failed")])
def test_what_would_be_the_same_again_is_an_end(
    search: Path, monkeypatch: pytest.MonkeyPatch, error: type[UserError], why: str
) -> None:
    def fit(on_event: OnEvent) -> None:
        on_event(evaluated(search, 2, 0.2))
        raise error("lower optim.lr")

    told = go(search, monkeypatch, fit)
    assert told[-1] == {"steps": 2, "score": 0.0, "why": why}
    assert read_trial(search, 0).progress.error == "lower optim.lr"


def test_a_tracking_server_that_is_away_is_waited_for(search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [UnavailableError("MLflow must answer"), UnavailableError("MLflow must answer")]
    start = Tracker.start

    def flaky(*arguments: Any) -> Tracker:
        if answers:
            raise answers.pop()
        return start(*arguments)

    slept: list[float] = []
    monkeypatch.setattr(module.Tracker, "start", flaky)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=slept.append, monotonic=time.monotonic))
    told = go(search, monkeypatch, lambda on_event: on_event(evaluated(search, 2, 0.2)))
    assert told[-1]["why"] == "finished" and slept == [1.0, 2.0]
    assert read_events(search, 0, 0)[0] == ["waits for MLflow, at most 300 s: MLflow must answer"]


def test_one_that_stays_away_is_no_end_of_a_trial(search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune tries it again, and so does --resume: it has no outcome."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)
    config = read_trial(search, 0).candidate.config
    away = replace(config, track=replace(config.track, uri="http://127.0.0.1:9"))
    write_candidates(search, [candidate(0, {}, away)])
    told: list[Any] = []
    with pytest.raises(UnavailableError, match=r"must answer at http://127.0.0.1:9"):
        run_trial(search, 0, ONE, ONE, None, told.append)
    assert told == [] and "must answer" in str(read_trial(search, 0).progress.error)


def test_what_goes_wrong_on_the_way_is_told(search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(on_event: OnEvent) -> None:
        for step in (1, 2, 3):
            on_event({"kind": "metrics", "step": step, "metrics": {}})
            on_event({"kind": "bad_step", "step": step, "rank": 0, "losses": {"x": 1.0}, "sample_ids": [1]})
        on_event({"kind": "failure", "rank": 1, "error": "Traceback\n  File x\nOSError: disk full\n"})
        on_event({"kind": "evaluation_failure", "path": "/r/step_0000002", "error": "Traceback\nMemoryError"})
        on_event({"kind": "not_evaluated", "step": 4, "evaluating": 2})
        raise NotTrainableError("not finite")

    go(search, monkeypatch, fit)
    news, offset = read_events(search, 0, 0)
    assert [line.split(":")[0] for line in news] == [
        "step 1",  # once
        "worker 1 failed",
        "evaluating step_0000002 failed, training goes on",
        "step 4 is not evaluated",
    ]
    assert news[1] == "worker 1 failed: OSError: disk full"
    text = (trial_directory(search, 0) / "events.log").read_text()
    assert "\n      File x\n" in text
    write_event(search, 0, "more", "and\nmore")
    assert read_events(search, 0, offset)[0] == ["more"]
    write_outcome(search, 0, Outcome("diverged"))
    trial = read_trial(search, 0)
    assert trial.steps == 3 and trial.progress.reports == ()  # it trained, though nothing was evaluated


def test_a_trial_out_of_patience_is_not_evaluated_further(search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(on_event: OnEvent) -> None:
        on_event(evaluated(search, 2, 0.2))
        on_event({"kind": "stopped_early", "step": 2, "patience": 1})

    assert go(search, monkeypatch, fit)[-1] == {"steps": 2, "score": 0.2, "why": "out of patience"}


def test_batches_that_do_not_divide_over_the_workers(search: Path) -> None:
    plan = read_plan(search.parent, "s")
    plan = replace(plan, config=replace(plan.config, cluster=replace(plan.config.cluster, workers=2)))
    assert plan_budget(plan, [{"CPU": 8.0}], [4, 6, 8], 4).workers.workers == 2
    with pytest.raises(UserError, match=r"may be 5, 7 in this search, .* cluster.workers=2; .* multiples of 2"):
        plan_budget(plan, [{"CPU": 8.0}], [4, 5, 6, 7, 8], 4)


def test_a_search_is_one_process_and_one_name(search: Path) -> None:
    with alone(search), pytest.raises(UserError, match="another process runs the search s"), alone(search):
        pass
    with pytest.raises(UserError, match=r"there is no search t in .*; it has s"):
        read_plan(search.parent, "t")
    config = read_plan(search.parent, "s").original
    plan = read_plan(search.parent, "s")
    go_on = f"maskrcnn tune --resume s --runs {search.parent}"
    assert plan.go_on == go_on
    with pytest.raises(UserError, match=f"exists; choose another tune.name, or go on with it: {go_on}"):
        new_plan(TuneConfig(name="s"), config, "s", {}, {"verb": "tune"}, {})
    with pytest.raises(UserError, match="exists; choose another"):  # begun by another process meanwhile
        begin(plan, [])
    (search / "search.json").unlink()
    with pytest.raises(UserError, match=r"holds no search that could go on; .* remove it"):
        begin(plan, [])
