"""From what a user asked to a search that can start, and back from its directory after a kill."""

import fcntl
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.config import DuringTrainingConfig, RunConfig
from pipeline.configure import from_yaml_text, to_yaml
from pipeline.data.generation import write_whole
from pipeline.data.manifest import reading_once
from pipeline.errors import UserError
from pipeline.search.budget import Budget, plan_trials
from pipeline.search.dimension import SpaceError
from pipeline.search.settings import TuneConfig
from pipeline.search.trials import Candidate, trials_directory, write_candidates
from pipeline.tracking.mlflow_store import store_uri
from pipeline.training.evaluations import judge
from pipeline.training.placement import Resources
from pipeline.training.resolve import metrics_of, resolve
from pipeline.training.run import prepare

_FILE, _LOCK = "search.json", ".lock"


@dataclass(frozen=True)
class Plan:
    """A search that can start, or go on."""

    directory: Path
    tune: TuneConfig
    original: RunConfig  # as the user gave it
    config: RunConfig  # as each trial begins with it: paths absolute, evaluations set
    space: dict[str, Any]  # as in the file; empty: the trials are a list
    about: dict[str, Any]  # what else its verb has to know when it goes on

    @property
    def name(self) -> str:
        """Of the search."""
        return self.directory.name

    @property
    def go_on(self) -> str:
        """What a user types to go on with it."""
        return _go_on(self.about["verb"], self.directory)

    @property
    def during(self) -> DuringTrainingConfig:
        """How trials are evaluated."""
        assert self.config.evaluate.during_training is not None
        return self.config.evaluate.during_training

    @property
    def metric(self) -> str:
        """What trials are compared by, such as mask/AP."""
        assert self.during.metric is not None
        return self.during.metric


def new_plan(
    tune: TuneConfig,
    config: RunConfig,
    default_name: str,
    space: dict[str, Any],
    about: dict[str, Any],
    tried: Mapping[str, RunConfig],
) -> Plan:
    """Check the data, all trials that are known, and where the search is to lie. Nothing is written.

    Args:
        tune: how it is searched.
        config: that the trials change.
        default_name: where `tune` has none; the time goes behind it.
        space: as in the file; empty: the trials are a list.
        about: what else its verb has to know when it goes on.
        tried: configurations of trials, by what people call them.

    Raises:
        UserError: the data cannot be trained on, or not by one of the trials, or there is such a search.
    """
    name = tune.name or f"{default_name}-{datetime.now():%Y%m%d-%H%M%S}"
    runs = Path(config.cluster.runs_dir).absolute()
    directory = runs / name
    if directory.exists():
        raise _taken(directory, about["verb"])
    with reading_once():
        metric = _common_metric(config, tried)
        base = trial_config(config, directory, metric)
    return Plan(directory, replace(tune, name=name), config, base, space, about)


def _common_metric(config: RunConfig, tried: Mapping[str, RunConfig]) -> str:
    """What all trials can be compared by: evaluate.during_training.metric, or the finest that all have.

    Raises:
        SpaceError: a trial could not train or be compared; all such problems are named.
    """
    if config not in tried.values():  # what is wrong without a trial's settings is not the trial's
        resolve(config)
    measured, problems = list[list[str]](), dict[str, str]()
    for words, one in tried.items():
        try:
            resolve(one)
            measured.append(metrics_of(one, one.data.val or ""))
        except UserError as error:
            problems.setdefault(str(error), words)
    if problems:
        raise SpaceError("\n".join(f"{words}: {problem}" for problem, words in problems.items()))
    asked = config.evaluate.during_training
    common = [name for name in metrics_of(config, config.data.val or "") if all(name in one for one in measured)]
    metric = judge(common) if asked is None or asked.metric is None else asked.metric
    if metric is None:
        raise SpaceError(
            "the trials have no metric in common, they are scored for different tasks or by different protocols; leave "
            "out the values that take all heads away, or set evaluate.protocol=coco for all"
        )
    return metric


def trial_config(config: RunConfig, directory: Path, metric: str) -> RunConfig:
    """What every trial begins with.

    Raises:
        UserError: the data cannot be trained on.
    """
    runs = Path(config.cluster.runs_dir).absolute()
    during = config.evaluate.during_training
    if during is None:  # trials are compared by their evaluations
        during = DuringTrainingConfig(every_steps=config.train.checkpoint_every_steps)
    config = replace(
        config,
        evaluate=replace(config.evaluate, during_training=replace(during, metric=metric)),
        track=replace(config.track, uri=store_uri(config.track.uri, runs)),
        cluster=replace(config.cluster, runs_dir=str(trials_directory(directory))),
        train=replace(config.train, name="trial"),
    )
    return prepare(config, "trial").config


def plan_budget(plan: Plan, cluster: Sequence[Resources], batches: Sequence[int], trials: int) -> Budget:
    """What the trials get on a cluster.

    Args:
        plan: of the search.
        cluster: what each node has.
        batches: every train.batch_images that a trial may have.
        trials: in all.

    Raises:
        UserError: it is too small, or the batches do not divide over the workers.
    """
    config, batch = plan.config, math.gcd(*batches)
    workers = config.cluster.workers
    if workers is not None and batch % workers and len(set(batches)) > 1:
        wrong = sorted({size for size in batches if size % workers})
        raise UserError(
            f"train.batch_images may be {', '.join(map(str, wrong[:8]))}{', ...' if len(wrong) > 8 else ''} in this "
            f"search, which do not divide over cluster.workers={workers}; search a choice of multiples of {workers}"
        )
    return plan_trials(cluster, config.cluster, plan.during, batch, config.data.decode, plan.tune.concurrent, trials)


def begin(plan: Plan, candidates: Sequence[Candidate]) -> None:
    """Make its directory, with the trials that are known. The plan comes last: with it the search can go on.

    Raises:
        UserError: another process has begun one of this name meanwhile.
    """
    try:
        plan.directory.mkdir(parents=True)
    except FileExistsError as error:
        raise _taken(plan.directory, plan.about["verb"]) from error
    write_candidates(plan.directory, candidates)
    content = {
        "tune": asdict(plan.tune),
        "original": to_yaml(plan.original),
        "config": to_yaml(plan.config),
        "space": plan.space,
        "about": plan.about,
    }
    write_whole(plan.directory / _FILE, json.dumps(content, indent=2).encode())


def _taken(directory: Path, verb: str) -> UserError:
    if not (directory / _FILE).exists():
        return UserError(
            f"{directory} exists and holds no search that could go on; choose another tune.name, or remove it"
        )
    return UserError(f"{directory} exists; choose another tune.name, or go on with it: {_go_on(verb, directory)}")


def _go_on(verb: str, directory: Path) -> str:
    runs = directory.parent
    elsewhere = "" if runs == Path("runs").absolute() else f" --runs {shlex.quote(str(runs))}"
    return f"maskrcnn {verb} --resume {shlex.quote(directory.name)}{elsewhere}"


def read_plan(runs: Path, name: str) -> Plan:
    """Of a search that was begun.

    Raises:
        UserError: there is none of that name.
    """
    directory = runs.absolute() / name
    try:
        content = json.loads((directory / _FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        known = sorted(path.parent.name for path in runs.absolute().glob(f"*/{_FILE}"))
        there = f"it has {', '.join(known[-10:])}" if known else "it has none; give --runs DIR if they lie elsewhere"
        raise UserError(f"there is no search {name} in {runs}; {there}") from error
    return Plan(
        directory,
        TuneConfig(**content["tune"]),
        from_yaml_text(content["original"], f"{directory / _FILE}: original"),
        from_yaml_text(content["config"], f"{directory / _FILE}: config"),
        content["space"],
        content["about"],
    )


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """While this process runs the search, no other does. A killed process holds nothing.

    Raises:
        UserError: another one does.
    """
    with (directory / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another process runs the search {directory.name}; wait for it, or stop it first"
            ) from error
        yield
