"""How a search ends, with Ray Tune and MLflow put aside: trials' runs are closed, and it says how to go on."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs import console, tune
from pipeline import ray_cluster
from pipeline.config import ClusterConfig, DuringTrainingConfig, RunConfig
from pipeline.configure import load_config
from pipeline.errors import UnavailableError
from pipeline.search.budget import Budget
from pipeline.search.candidates import Source
from pipeline.search.plan import Plan, begin
from pipeline.search.settings import TuneConfig
from pipeline.search.trials import Outcome, Progress, Trial, candidate, read_trials, write_outcome, write_progress
from pipeline.training.cluster import Layout


class Store:
    """Runs of an MLflow that may be away."""

    def __init__(self) -> None:
        self.runs: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.away = False
        self.run_id = "parent"

    def finish_other(self, run_id: str, status: str, tags: dict[str, str]) -> None:
        self._answer()
        self.runs[run_id], self.tags[run_id] = status, tags["stopped"]

    def is_open(self, run_id: str) -> bool:
        self._answer()
        return self.runs[run_id] == "RUNNING"

    def finish(self, status: str) -> None:
        self.runs["parent"] = status

    def where(self) -> str:
        return "here"

    def log_config(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        if self.away:
            raise UnavailableError("no route to host")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    base = load_config(None, ["track.uri=http://127.0.0.1:9", f"cluster.runs_dir={tmp_path}"])
    during = DuringTrainingConfig(every_steps=2500, metric="mask/AP")
    return replace(base, evaluate=replace(base.evaluate, during_training=during))


@pytest.fixture
def plan(config: RunConfig, tmp_path: Path) -> Plan:
    """One trial that finished, one that failed, one that trains, one that has not begun."""
    made = Plan(tmp_path / "s", TuneConfig(), config, config, {}, {"verb": "tune"})
    begin(made, [candidate(number, {"optim.lr": 0.1 * number}, config) for number in range(4)])
    for number in range(3):
        write_progress(made.directory, number, Progress((), 1.0, 1, f"run{number}"))
    write_outcome(made.directory, 0, Outcome("finished"))
    write_outcome(made.directory, 1, Outcome("failed", "OSError: disk full"))
    return made


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store()
    made.runs = {f"run{number}": "RUNNING" for number in range(3)}
    monkeypatch.setattr(tune.Tracker, "start", lambda *_: made)
    return made


def test_a_server_that_is_away_stops_no_search(plan: Plan, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    news: list[str] = []
    closing = tune._Closing(store, lambda trial, text: news.append(f"{trial.name} {text}"))  # type: ignore[arg-type]
    trials = read_trials(plan.directory)
    store.away = True
    closing(trials[0], "finished")
    assert news == ["trial_000 finished (tried again later: no route to host)"] and store.runs["run0"] == "RUNNING"
    closing.rest(trials)
    assert "3 runs of trials stay open in MLflow, --resume closes them: trial_000" in capsys.readouterr().err
    store.away = False
    closing(trials[1], "failed")
    closing.rest(trials)
    assert store.runs == {"run0": "FINISHED", "run1": "FAILED", "run2": "KILLED"}
    assert store.tags["run1"] == "failed OSError: disk full"


def test_what_is_stopped_is_killed_and_says_how_to_go_on(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By SIGTERM as by ctrl-C."""

    def search(*_: object) -> list[Trial]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it goes on")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(tune, "run_search", search)
    try:
        console.stop_on_sigterm()
        with pytest.raises(KeyboardInterrupt):
            tune.run_plan(plan, tune.Listed([]), Budget(1, Layout(1, 0.0, 1.0), Layout(1, 0.0, 1.0)), 4)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert store.runs == {"run0": "FINISHED", "run1": "FAILED", "run2": "KILLED", "parent": "KILLED"}
    said = capsys.readouterr().err.replace("\n", "")
    assert f"stopped; go on with: maskrcnn tune --resume s --runs {plan.directory.parent}" in said


def test_what_failed_is_tried_again_where_that_is_asked(
    plan: Plan, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[int]] = []

    def search(plan: Plan, source: Source, *_: object) -> list[Trial]:
        numbers = []
        while (found := source.next()) is not None:
            numbers.append(found.number)
        ran.append(numbers)
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "run_search", search)
    monkeypatch.setattr(tune, "plan_on_cluster", lambda *_: Budget(1, Layout(1, 0.0, 1.0), Layout(1, 0.0, 1.0)))
    for retry_failed in (False, True):
        with pytest.raises(KeyboardInterrupt):
            tune.resume_tune(plan.directory.parent, "s", retry_failed)
    assert ran == [[2, 3], [1, 2, 3]]
    assert read_trials(plan.directory)[1].outcome is None


def test_sigterm_goes_where_ctrl_c_does() -> None:
    """Tune and Ray Train have their own handlers of that, and a shell's background processes ignore it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    heard: list[int] = []
    try:
        console.stop_on_sigterm()
        signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):  # Python runs handlers between its own steps
                pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_ray_does_not_take_sigterm_from_us(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray_cluster.ray, "init", init)
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: False)
    try:
        console.stop_on_sigterm()
        ray_cluster.start_ray(ClusterConfig())
        assert signal.getsignal(signal.SIGTERM) is console._interrupt
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("nodes", "free", "words"),
    [
        ([{"CPU": 16.0, "GPU": 1.0}], {"CPU": 16.0, "GPU": 1.0}, ["evaluated on CPUs"]),
        ([{"CPU": 16.0, "GPU": 2.0}], {"CPU": 12.0, "GPU": 1.0}, ["others use 4 CPUs and 1 GPUs of the cluster"]),
        ([{"CPU": 16.0}], {"CPU": 16.0}, []),
    ],
)
def test_what_a_budget_cannot_promise_is_said(
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    nodes: Sequence[dict[str, float]],
    free: dict[str, float],
    words: list[str],
) -> None:
    there: dict[str, Any] = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in nodes[0]}
    monkeypatch.setattr(tune, "start_ray", lambda *_, **__: None)
    monkeypatch.setattr(tune, "node_resources", lambda: nodes)
    monkeypatch.setattr(ray_cluster.ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(ray_cluster.ray, "available_resources", lambda: free)
    tune.plan_on_cluster(plan, [16], 4)
    said = capsys.readouterr().err
    assert said.count("warning") == len(words) and all(word in said for word in words)
