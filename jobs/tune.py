"""`maskrcnn tune SPACE.yaml [key=value ...]`: search settings, each trial a distributed training of its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from jobs.console import err, out
from jobs.search_display import search_display
from pipeline.configure import to_dict, to_yaml
from pipeline.errors import UserError
from pipeline.evaluation.tables import percent
from pipeline.ray_cluster import node_resources, start_ray
from pipeline.search.budget import Budget
from pipeline.search.candidates import Listed, Source, Tpe, check_tpe, listed, tried
from pipeline.search.plan import Plan, alone, new_plan, plan_budget, read_plan, write_plan
from pipeline.search.plots import cost_plot, importance_plot, parallel_coordinates
from pipeline.search.results import results_table, write_best, write_csv
from pipeline.search.search import run_search
from pipeline.search.settings import Search, load_search
from pipeline.search.space import apply, read_space
from pipeline.search.trials import Trial, best, read_trials, trial_name, write_candidates
from pipeline.tracking.mlflow_run import Status, Tracker
from pipeline.yaml_core import dump


def tune(path: Path, overrides: Sequence[str]) -> None:
    """Run it."""
    asked = load_search(path, overrides)
    plan = new_plan(asked.tune, asked.config, path.stem, asked.tree, {"verb": "tune"}, tried(asked))
    search = replace(asked, config=plan.config)
    if asked.tune.search == "tpe":
        check_tpe(search)
        candidates = []
        batches = next((d.values for d in search.space.dimensions if d.key == "train.batch_images"), (None,))
        probes = [plan.config if b is None else apply(plan.config, {"train.batch_images": b}) for b in batches]
        total = asked.tune.trials
    else:
        candidates = listed(search)
        probes, total = [candidate.config for candidate in candidates], len(candidates)
    with err.status("starting Ray"):
        start_ray(plan.config.cluster, dashboard=True)
    budget = plan_budget(plan, node_resources(), probes, total)  # too small a cluster leaves nothing behind
    write_plan(plan)
    write_candidates(plan.directory, candidates)
    source: Source = Tpe(search) if asked.tune.search == "tpe" else Listed(candidates)
    with alone(plan.directory):
        run_plan(plan, source, budget, total)


def resume_tune(runs: Path, name: str) -> None:
    """Go on with a search that was stopped or killed."""
    plan = read_plan(runs, name)
    if plan.about["verb"] != "tune":
        raise UserError(
            f"{name} is no search of `maskrcnn tune`; go on with `maskrcnn {plan.about['verb']}` --resume {name}"
        )
    with alone(plan.directory):
        continue_plan(plan)


def continue_plan(plan: Plan) -> list[Trial]:
    """Run the trials that have not ended."""
    trials = read_trials(plan.directory)
    left = [trial for trial in trials if trial.outcome is None]
    source: Source = Listed([trial.candidate for trial in left])
    total = len(trials)
    if plan.tune.search == "tpe":
        space = read_space(plan.space, plan.config, plan.name)
        source, total = Tpe(Search(plan.tune, plan.config, space, plan.space), trials), plan.tune.trials
    if len(trials) - len(left) == total:
        out.print(f"all {total} trials of {plan.name} have ended", highlight=False)
        with _tracked(plan) as tracker:
            show(plan, trials, tracker)
        return trials
    with err.status("starting Ray"):
        start_ray(plan.config.cluster, dashboard=True)
    probes = [trial.candidate.config for trial in trials] or [plan.config]
    return run_plan(plan, source, plan_budget(plan, node_resources(), probes, total), total)


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
            trials = run_search(plan, source, budget, tracker.run_id, _Closing(tracker, tell))
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
        err.print(f"stopped; go on with: maskrcnn {plan.about['verb']} --resume {plan.name}", highlight=False)
        raise
    finally:
        tracker.finish(status)
    out.print(f"MLflow      {tracker.where()}", soft_wrap=True, highlight=False)


class _Closing:
    """Closes the MLflow run of each trial that has ended, whose process may be gone, and passes the news on."""

    def __init__(self, tracker: Tracker, tell: Callable[[Trial, str], None]) -> None:
        self._tracker, self._tell = tracker, tell

    def __call__(self, trial: Trial, news: str) -> None:
        if trial.outcome is not None:
            run_id, why = trial.progress.mlflow_run_id, trial.outcome.why
            if run_id is not None:
                tags: Mapping[str, str] = {"stopped": f"{why} {trial.outcome.note}".strip()}
                self._tracker.finish_other(run_id, "FAILED" if why == "failed" else "FINISHED", tags)
        self._tell(trial, news)


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
