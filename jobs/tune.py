"""`maskrcnn tune SPACE.yaml [key=value ...]`: search settings, each trial a distributed training of its own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from jobs.console import err, out
from jobs.search_display import search_display
from pipeline.configure import to_dict, to_yaml
from pipeline.errors import UnavailableError, UserError
from pipeline.evaluation.tables import percent
from pipeline.ray_cluster import node_resources, start_ray, taken_resources
from pipeline.search.budget import Budget
from pipeline.search.candidates import Listed, Source, Tpe, batches, listed, tried
from pipeline.search.plan import Plan, alone, begin, new_plan, plan_budget, read_plan
from pipeline.search.plots import cost_plot, importance_plot, parallel_coordinates
from pipeline.search.results import results_table, write_best, write_csv
from pipeline.search.search import run_search
from pipeline.search.settings import Search, load_search
from pipeline.search.space import read_space
from pipeline.search.trials import Trial, best, forget_outcome, read_trials, trial_name
from pipeline.tracking.mlflow_run import Status, Tracker
from pipeline.yaml_core import dump


def tune(path: Path, overrides: Sequence[str]) -> None:
    """Run it."""
    asked = load_search(path, overrides)
    plan = new_plan(asked.tune, asked.config, path.stem, asked.tree, {"verb": "tune"}, tried(asked))
    search = replace(asked, config=plan.config)
    if asked.tune.search == "tpe":
        candidates, sizes, total = [], batches(search), asked.tune.trials
    else:
        candidates = listed(search)
        sizes, total = [candidate.config.train.batch_images for candidate in candidates], len(candidates)
    budget = plan_on_cluster(plan, sizes, total)  # too small a cluster leaves nothing behind
    begin(plan, candidates)
    source: Source = Tpe(search) if asked.tune.search == "tpe" else Listed(candidates)
    with alone(plan.directory):
        run_plan(plan, source, budget, total)


def resume_tune(runs: Path, name: str, retry_failed: bool = False) -> None:
    """Go on with a search that was stopped or killed, and with `retry_failed` run what failed again."""
    plan = read_plan(runs, name)
    if plan.about["verb"] != "tune":
        raise UserError(f"{name} is no search of `maskrcnn tune`; go on with `{plan.go_on}`")
    with alone(plan.directory):
        continue_plan(plan, retry_failed)


def continue_plan(plan: Plan, retry_failed: bool) -> list[Trial]:
    """Run the trials that have not ended, or that failed."""
    for trial in read_trials(plan.directory) if retry_failed else ():
        if trial.outcome is not None and trial.outcome.why == "failed":
            forget_outcome(plan.directory, trial.candidate.number)
    trials = read_trials(plan.directory)
    left = [trial for trial in trials if trial.outcome is None]
    source: Source = Listed([trial.candidate for trial in left])
    sizes, total = [trial.candidate.config.train.batch_images for trial in trials], len(trials)
    if plan.tune.search == "tpe":
        search = Search(plan.tune, plan.config, read_space(plan.space, plan.config, plan.name), plan.space)
        source, sizes, total = Tpe(search, trials), batches(search), plan.tune.trials
    if len(trials) - len(left) == total:
        out.print(f"all {total} trials of {plan.name} have ended", highlight=False)
        with _tracked(plan) as tracker:
            _Closing(tracker, lambda *_: None).rest(trials)
            show(plan, trials, tracker)
        return trials
    return run_plan(plan, source, plan_on_cluster(plan, sizes, total), total)


def plan_on_cluster(plan: Plan, sizes: Sequence[int], trials: int) -> Budget:
    """Start Ray, and divide it among trials whose batches may have these sizes."""
    with err.status("starting Ray"):
        start_ray(plan.config.cluster, dashboard=True)
    budget = plan_budget(plan, node_resources(), sizes, trials)
    if budget.workers.gpus and not budget.evaluators.gpus and plan.during.gpus_per_worker is None:
        err.print(
            "warning: trials train on GPUs and are evaluated on CPUs, as no GPU is left for that; where an evaluation "
            "takes longer than training to the next one, that is left out: lower tune.concurrent or cluster.workers, "
            "or set evaluate.during_training.max_images",
            soft_wrap=True,
            highlight=False,
        )
    others = taken_resources()
    if others:
        err.print(
            f"warning: others use {' and '.join(f'{amount:g} {kind}s' for kind, amount in others.items())} of the "
            "cluster; the search counts on all of it, and waits for them",
            soft_wrap=True,
            highlight=False,
        )
    return budget


def run_plan(plan: Plan, source: Source, budget: Budget, total: int) -> list[Trial]:
    """Run, show and log it."""
    earlier = [trial for trial in read_trials(plan.directory) if trial.outcome is not None]
    config, settings = plan.config, plan.tune
    went = f", {len(earlier)} have ended before" if earlier else ""
    for line in (
        f"search      {plan.name} in {plan.directory}",
        f"trials      {total} of {config.train.steps} steps, {settings.search} search, {settings.scheduler}{went}",
        f"resources   {budget}",
        f"compared by {plan.metric}, every {plan.during.every_steps} steps",
    ):
        out.print(line, soft_wrap=True, highlight=False)
    with _tracked(plan) as tracker:
        with search_display(plan.directory, plan.metric, total) as tell:
            closing = _Closing(tracker, tell)
            try:
                trials = run_search(plan, source, budget, tracker.run_id, closing)
            finally:
                closing.rest(read_trials(plan.directory))
        show(plan, trials, tracker)
    return trials


@contextmanager
def _tracked(plan: Plan) -> Iterator[Tracker]:
    """The MLflow run of the search, closed as it ends."""
    config = plan.config
    tracker = Tracker.start(config.track.uri or "", config.track.experiment, plan.name, plan.directory)
    status: Status = "FAILED"
    try:
        tracker.log_config(to_dict(config) | {"tune": asdict(plan.tune)}, to_yaml(config))
        if plan.space:
            tracker.log_text(dump(plan.space), "space.yaml")
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        err.print(f"stopped; go on with: {plan.go_on}", soft_wrap=True, highlight=False)
        raise
    finally:
        tracker.finish(status)
    out.print(f"MLflow      {tracker.where()}", soft_wrap=True, highlight=False)


class _Closing:
    """Closes the MLflow run of each trial that has ended, whose process may be gone, and passes the news on.

    A server that is away must not end a search: what it does not take is tried again at the end, and by --resume.
    """

    def __init__(self, tracker: Tracker, tell: Callable[[Trial, str], None]) -> None:
        self._tracker, self._tell = tracker, tell
        self._closed: set[str] = set()

    def __call__(self, trial: Trial, news: str) -> None:
        if trial.outcome is not None:
            try:
                self._close(trial)
            except UnavailableError as error:
                news += f" (tried again later: {error})"
        self._tell(trial, news)

    def rest(self, trials: Sequence[Trial]) -> None:
        """Those that are still open, of earlier lives too. What has not ended was stopped with the search."""
        problems: list[str] = []
        for trial in trials:
            run_id = trial.progress.mlflow_run_id
            try:
                if run_id is not None and run_id not in self._closed and self._tracker.is_open(run_id):
                    self._close(trial)
            except UnavailableError as error:
                problems.append(f"{trial.name}: {error}")
        if problems:
            err.print(
                f"warning: {len(problems)} runs of trials stay open in MLflow, --resume closes them: {problems[0]}",
                soft_wrap=True,
                highlight=False,
            )

    def _close(self, trial: Trial) -> None:
        run_id = trial.progress.mlflow_run_id
        if run_id is None:
            return
        if trial.outcome is None:
            self._tracker.finish_other(run_id, "KILLED", {"stopped": "with the search"})
        else:
            why = trial.outcome.why
            tags = {"stopped": f"{why} {trial.outcome.note}".strip()}
            self._tracker.finish_other(run_id, "FAILED" if why == "failed" else "FINISHED", tags)
        self._closed.add(run_id)


def show(plan: Plan, trials: Sequence[Trial], tracker: Tracker) -> None:
    """The table, the plots, and what to do with the best."""
    directory, metric = plan.directory, plan.metric
    out.print(results_table(trials, metric, plan.name))
    write_csv(trials, metric, directory / "trials.csv")
    parallel_coordinates(trials, metric, directory / "parallel_coordinates.png")
    cost_plot(trials, metric, directory / "ap_against_cost.png")
    files = ["trials.csv", "parallel_coordinates.png", "ap_against_cost.png"]
    if importance_plot(trials, directory / "importance.png"):
        files.append("importance.png")
    leader = best(trials)
    if leader is not None and plan.about["verb"] == "tune":
        write_best(leader, metric, plan.original, plan.name, directory / "best.yaml")
        files.append("best.yaml")
        tracker.log_metrics(len(trials), {f"best/{metric}": leader.score})
        tracker.log_tags({"best": trial_name(leader.candidate.number)})
    for name in files:
        tracker.log_artifact(directory / name)
    failed = [trial for trial in trials if trial.outcome is not None and trial.outcome.why == "failed"]
    for trial in failed:
        note = trial.outcome.note if trial.outcome is not None else ""
        err.print(f"{trial.name} failed:\n{note}", soft_wrap=True, highlight=False, markup=False)
    if failed:
        err.print(f"once that is mended: {plan.go_on} --retry-failed", soft_wrap=True, highlight=False)
    out.print(f"plots       {directory / 'parallel_coordinates.png'} and others there", soft_wrap=True, highlight=False)
    if leader is None:
        raise UserError("no trial came to an AP; the table says why")
    if plan.about["verb"] != "tune":  # a table of the paper is after all of its rows
        return
    out.print(
        f"best        {leader.name}, {metric} {percent(leader.score)}: maskrcnn train {directory / 'best.yaml'}",
        soft_wrap=True,
        highlight=False,
    )
