"""Runs the trials of a search through Ray Tune: how many at once, which are stopped, which are tried again.

What Tune keeps of a search is thrown away with the process: a search that was killed goes on from the files of its
trials (trials.py). So nothing is unpickled, finished trials are not run again, the others go on from their checkpoints,
and the scheduler is told of all earlier results.

What Ray Train frees the CPUs of a dead trial with learns of them once its workers run (Ray 2.60): where the process of
a trial is killed in the seconds before, they stay taken till the search starts again. Schedulers stop trials later.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from pipeline.search.budget import Budget
from pipeline.search.candidates import Source
from pipeline.search.plan import Plan
from pipeline.search.scheduler import scheduler
from pipeline.search.trial import SCORE, STEPS, WHY, run_trial
from pipeline.search.trials import (
    Outcome,
    Trial,
    Why,
    read_events,
    read_trial,
    read_trials,
    write_candidates,
    write_outcome,
)
from pipeline.tracking.mlflow_store import credentials

_TRIAL_MEMORY = 64 << 20  # bytes; Tune refuses a trial that claims nothing, and the CPUs are its workers' to claim
_LOOK_SECONDS = 1.0  # how often for what went wrong in trials
News = Callable[[Trial, str], None]


def run_search(plan: Plan, source: Source, budget: Budget, parent: str | None, on_news: News) -> list[Trial]:
    """Run all trials of `source`; returns all of the search, of earlier lives too. Ray must run, with a dashboard.

    Args:
        plan: written into its directory.
        source: of trials; all of them are in no earlier life, or have not ended there.
        budget: what fits.
        parent: MLflow run of the search.
        on_news: told of each change of a trial, in words.

    Raises:
        KeyboardInterrupt: it was interrupted; it can go on.
    """
    # Each trial has its own log and files; Tune's loggers would write them once more, and its snapshots are not used.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # what is shown is ours
    search, settings, steps = plan.directory, plan.tune, plan.config.train.steps
    place, secrets = str(search), credentials()  # what is sent to other processes is small; trials log by themselves

    def trial(config: dict[str, Any]) -> None:
        os.environ.update(secrets)
        run_trial(Path(place), config["number"], budget.workers, budget.evaluators, parent, tune.report)

    on_interrupt = signal.getsignal(signal.SIGINT)  # Tune takes it, and gives it back only where it came
    tune.run(
        tune.with_resources(trial, {"memory": _TRIAL_MEMORY}),
        name=f"life-{int(time.time())}",
        storage_path=str(search / "tune"),
        search_alg=_Numbers(search, source),
        scheduler=scheduler(settings, steps, min(plan.during.every_steps, steps), read_trials(search)),
        num_samples=-1,  # until the source has no more
        max_concurrent_trials=budget.concurrent,
        max_failures=settings.max_failures,
        raise_on_failed_trial=False,
        callbacks=[_Watcher(search, steps, plan.metric, on_news)],
        verbose=0,
    )
    main = threading.current_thread() is threading.main_thread()
    interrupted = main and signal.getsignal(signal.SIGINT) is on_interrupt
    if main:
        signal.signal(signal.SIGINT, on_interrupt)
    trials = read_trials(search)
    if interrupted or any(one.outcome is None for one in trials):
        raise KeyboardInterrupt
    return trials


class _Numbers(Searcher):  # type: ignore[misc]  # Ray has no types here
    """The source as Tune asks for it: a trial's number is all that Tune carries around."""

    def __init__(self, search: Path, source: Source) -> None:
        super().__init__(metric=SCORE, mode="max")
        self._search, self._source = search, source
        self._numbers: dict[str, int] = {}  # Tune's trial id -> ours

    def suggest(self, trial_id: str) -> Any:
        found = self._source.next()
        if found is None:
            return Searcher.FINISHED
        write_candidates(self._search, [found])
        self._numbers[trial_id] = found.number
        return {"number": found.number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        score = math.nan if error or result is None or result.get(WHY) == "failed" else float(result[SCORE])
        self._source.tell(self._numbers[trial_id], score)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()  # the files of the trials say all


class _Watcher(tune.Callback):  # type: ignore[misc]
    """Writes how trials end, and tells of what happens."""

    def __init__(self, search: Path, steps: int, metric: str, on_news: News) -> None:
        self._search, self._steps, self._metric, self._on_news = search, steps, metric, on_news
        # What an earlier life told of is no news.
        self._read_to = {
            number: read_events(search, number, 0)[1]
            for number in (trial.candidate.number for trial in read_trials(search))
        }
        self._look_at = 0.0

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_SECONDS
            for trial in trials:
                if trial.status == "RUNNING":
                    self._tell_events(trial)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        found = self._read(trial)
        again = f"goes on after step {found.steps}" if found.steps else "starts again"
        self._on_news(found, again if found.progress.attempts else "starts")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        if WHY not in result:
            told = f"{self._metric} {100 * result[SCORE]:.1f}"
            self._on_news(self._read(trial), f"step {result[STEPS]} of {self._steps}: {told}")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._tell_events(trial)
        found = self._read(trial)
        self._on_news(found, f"failed, and is tried again: {_last_line(found.progress.error)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        error = self._read(trial).progress.error or "its process died"
        self._end(trial, Outcome("failed", error))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        last = trial.last_result or {}
        why: Why = last.get(WHY) or ("finished" if last.get(STEPS, 0) >= self._steps else "stopped early")
        note = f"at step {last.get(STEPS)} by the scheduler" if why == "stopped early" else ""
        self._end(trial, Outcome(why, self._read(trial).progress.error or note))

    def _tell_events(self, trial: Any) -> None:
        number = trial.config["number"]
        news, self._read_to[number] = read_events(self._search, number, self._read_to.get(number, 0))
        for line in news:
            self._on_news(self._read(trial), line)

    def _end(self, trial: Any, outcome: Outcome) -> None:
        self._tell_events(trial)
        write_outcome(self._search, trial.config["number"], outcome)
        found = self._read(trial)
        note = f" {outcome.note}" if outcome.why == "stopped early" else ""
        error = f": {_last_line(outcome.note)}" if outcome.why in ("failed", "diverged") else ""
        self._on_news(found, outcome.why + note + error)

    def _read(self, trial: Any) -> Trial:
        return read_trial(self._search, trial.config["number"])


def _last_line(error: str | None) -> str:
    return (error or "its process died").strip().splitlines()[-1]
