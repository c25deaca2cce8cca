"""One trial: the training of `maskrcnn train`, with its evaluations reported to Ray Tune. Runs in an actor of Tune."""

import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.configure import to_dict, to_yaml
from pipeline.errors import UnavailableError, UserError
from pipeline.search.trials import WORST, Progress, Report, Trial, Why, read_trial, write_event, write_progress
from pipeline.tracking.mlflow_run import Status, Tracker
from pipeline.training.cluster import Layout
from pipeline.training.evaluations import evaluation_directory, evaluations, mark_logged, not_logged, score
from pipeline.training.run import Event, NotTrainableError, Run, fit, prepare, tags
from pipeline.training.validation import evaluate_checkpoint

STEPS, SCORE, WHY = "steps", "score", "why"  # what Tune is told; `why` comes with the last report alone
PATIENCE_SECONDS = 300.0  # for a tracking server that is away as a trial starts
_LONGEST_WAIT_SECONDS = 30.0
Tell = Callable[[dict[str, Any]], None]


def run_name(search: Path, trial: str) -> str:
    """In MLflow, where the runs of all searches lie side by side."""
    return f"{search.name}-{trial}"


def run_trial(search: Path, number: int, workers: Layout, evaluators: Layout, parent: str | None, tell: Tell) -> None:
    """Train trial `number` to its end, going on from where an earlier life of it was. Ray must run.

    Args:
        search: directory of the search.
        number: of the trial; its candidate lies there.
        workers: that train.
        evaluators: that evaluate.
        parent: MLflow run of the search.
        tell: given {"steps", "score"} at each evaluation, those of earlier lives too, and once more at the end.
    """
    trial = read_trial(search, number)
    for report in trial.progress.reports:  # a scheduler that was started anew has not heard of them
        tell({STEPS: report.steps, SCORE: report.score})
    watcher = _Watcher(search, number, trial.progress, tell)
    watcher.save(attempts=trial.progress.attempts + 1, error=None)
    try:
        why = _train(trial, watcher, workers, evaluators, parent)
    except UnavailableError as error:
        watcher.save(error=str(error))
        raise
    except UserError as error:  # trying again would give the same
        watcher.save(error=str(error))
        why = "diverged" if isinstance(error, NotTrainableError) else "failed"
    except Exception:
        watcher.save(error=traceback.format_exc(limit=-3).strip())
        raise
    reports = watcher.progress.reports
    well = why in ("finished", "out of patience")
    tell({STEPS: reports[-1].steps if reports else 0, SCORE: reports[-1].score if well else WORST, WHY: why})


def _train(trial: Trial, watcher: "_Watcher", workers: Layout, evaluators: Layout, parent: str | None) -> Why:
    config = trial.candidate.config
    run = prepare(replace(config, train=replace(config.train, name=trial.name)), trial.name)
    search = run.directory.parent.parent
    name = run_name(search, trial.name)
    tracker = _patiently(
        lambda: Tracker.start(config.track.uri or "", config.track.experiment, name, run.directory, parent),
        watcher.tell_of,
    )
    watcher.save(mlflow_run_id=tracker.run_id)
    status: Status = "FAILED"
    try:
        tracker.log_config(to_dict(run.config), to_yaml(run.config))
        tracker.log_tags(tags(run, workers) | {"trial": trial.name, "search": search.name})
        watcher.follow(run, tracker)
        last = fit(run, workers, tracker.run_id, watcher, evaluators)
        if not watcher.patience and not evaluation_directory(run.directory, run.config.train.steps).exists():
            evaluate_checkpoint(run.config, run.directory, last, evaluators)  # all was killed before that had ended
            for event in not_logged(run.directory):
                watcher(event)
                mark_logged(event["directory"])
        status = "FINISHED"
    finally:
        tracker.finish(status)
    return "out of patience" if watcher.patience else "finished"


def _patiently(start: Callable[[], Tracker], tell_of: Callable[[str], None]) -> Tracker:
    """Start a tracker; a server that is away for a while must not end a trial that nothing else is wrong with."""
    end, wait = time.monotonic() + PATIENCE_SECONDS, 1.0
    while True:
        try:
            return start()
        except UnavailableError as error:
            if time.monotonic() + wait > end:
                raise
            if wait == 1.0:
                tell_of(f"waits for MLflow, at most {PATIENCE_SECONDS:g} s: {error}")
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT_SECONDS)


class _Watcher:
    """Hands what the workers send to MLflow, and evaluations to the files of the search and to Tune."""

    def __init__(self, search: Path, number: int, progress: Progress, tell: Tell) -> None:
        self._search, self._number, self._tell = search, number, tell
        self._run: Run | None = None
        self._tracker: Tracker | None = None
        self.progress = progress
        self.patience = False
        self._told: set[str] = set()  # kinds of events of which the first alone is news
        self._trained = progress.trained
        self._before, self._begun = progress.seconds, time.monotonic()

    def follow(self, run: Run, tracker: Tracker) -> None:
        """It begins; what an earlier life evaluated and did not tell of is told first."""
        self._run, self._tracker = run, tracker
        self._catch_up()

    def __call__(self, event: Event) -> None:
        assert self._tracker is not None
        match event["kind"]:
            case "metrics":
                self._trained = event["step"]
                self._tracker.log_metrics(event["step"], event["metrics"])
            case "checkpoint":
                self.save()
                self._tracker.try_to_flush()
            case "evaluated":
                self._tracker.log_ap(event["step"], event["aps"])
                self._tracker.try_to_flush()
                self._catch_up()
            case "stopped_early":
                self.patience = True
            case "failure":
                self.tell_of(f"worker {event['rank']} failed", event["error"])
            case "evaluation_failure":
                self.tell_of(f"evaluating {Path(event['path']).name} failed, training goes on", event["error"])
            case "not_evaluated":
                self.tell_of(
                    f"step {event['step']} is not evaluated: that of step {event['evaluating']} is not done; raise "
                    "evaluate.during_training.every_steps, or its workers"
                )
            case "bad_step" | "bad_sample" as kind if kind not in self._told:
                self._told.add(kind)
                self.tell_of(
                    f"step {event['step']}: the gradient was not finite, the step was skipped (told once)"
                    if kind == "bad_step"
                    else f"sample {event['sample_id']} could not be decoded and did not train (told once)",
                    str(event["losses"] if kind == "bad_step" else event["reason"]),
                )

    def tell_of(self, news: str, details: str = "") -> None:
        """Into events.log, whose news the search shows; the end of an error's details says what it was."""
        last = f": {details.strip().splitlines()[-1]}" if details.strip() else ""
        write_event(self._search, self._number, news + last, details)

    def save(self, **changes: Any) -> None:
        """Into progress.json."""
        seconds = self._before + time.monotonic() - self._begun
        self.progress = replace(self.progress, seconds=seconds, trained=self._trained, **changes)
        write_progress(self._search, self._number, self.progress)

    def _catch_up(self) -> None:
        assert self._run is not None
        during = self._run.config.evaluate.during_training
        assert during is not None
        told = {report.steps for report in self.progress.reports}
        for step, evaluated in evaluations(self._run.directory).items():
            if step in told:
                continue
            value = max(score(evaluated, during), WORST)
            seconds = self._before + time.monotonic() - self._begun
            self.save(reports=(*self.progress.reports, Report(step, seconds, value)))
            self._tell({STEPS: step, SCORE: value})
