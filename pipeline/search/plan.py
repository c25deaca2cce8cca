"""From what a user asked to a search that can start, and back from its directory after a kill."""

import fcntl
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.config import DuringTrainingConfig, RunConfig
from pipeline.configure import from_yaml_text, to_yaml
from pipeline.data.generation import write_whole
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import choose_protocol, tasks_of
from pipeline.search.budget import Budget, Resources, plan_trials
from pipeline.search.settings import TuneConfig
from pipeline.search.trials import trials_directory
from pipeline.tracking.mlflow_store import store_uri
from pipeline.training.evaluations import judge
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
    tune: TuneConfig, config: RunConfig, default_name: str, space: dict[str, Any], about: dict[str, Any]
) -> Plan:
    """Check the data and where the search is to lie. Nothing is written.

    Raises:
        UserError: the data cannot be trained on, or there is such a search.
    """
    name = tune.name or f"{default_name}-{datetime.now():%Y%m%d-%H%M%S}"
    runs = Path(config.cluster.runs_dir).absolute()
    directory = runs / name
    if directory.exists():
        raise UserError(f"{directory} exists; choose another tune.name, or go on with it: --resume {name}")
    return Plan(directory, replace(tune, name=name), config, trial_config(config, directory), space, about)


def trial_config(config: RunConfig, directory: Path) -> RunConfig:
    """What every trial begins with.

    Raises:
        UserError: the data cannot be trained on.
    """
    runs = Path(config.cluster.runs_dir).absolute()
    during = config.evaluate.during_training
    if during is None:  # trials are compared by their evaluations
        during = DuringTrainingConfig(every_steps=config.train.checkpoint_every_steps)
    if during.metric is None:  # the same for all, whatever heads the space takes away
        during = replace(during, metric=judge(tasks_of(config.model)))
    config = replace(
        config,
        evaluate=replace(config.evaluate, during_training=during),
        track=replace(config.track, uri=store_uri(config.track.uri, runs)),
        cluster=replace(config.cluster, runs_dir=str(trials_directory(directory))),
        train=replace(config.train, name="trial"),
    )
    prepared = prepare(config, "trial").config
    choose_protocol(prepared, prepared.data.val or "")
    return prepared


def plan_budget(plan: Plan, cluster: Sequence[Resources], configs: Sequence[RunConfig], trials: int) -> Budget:
    """What the trials get on a cluster.

    Raises:
        ClusterError: it is too small.
    """
    batch = math.gcd(*(config.train.batch_images for config in configs))
    config = plan.config
    return plan_trials(cluster, config.cluster, plan.during, batch, config.data.decode, plan.tune.concurrent, trials)


def write_plan(plan: Plan) -> None:
    """Into its directory, which is made."""
    plan.directory.mkdir(parents=True, exist_ok=True)
    content = {
        "tune": asdict(plan.tune),
        "original": to_yaml(plan.original),
        "config": to_yaml(plan.config),
        "space": plan.space,
        "about": plan.about,
    }
    write_whole(plan.directory / _FILE, json.dumps(content, indent=2).encode())


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
