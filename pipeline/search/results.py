"""What a search found: a table for the terminal, trials.csv, and the best configuration as a file to train from."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pipeline.config import RunConfig
from pipeline.configure import to_yaml
from pipeline.evaluation.tables import percent
from pipeline.search.trials import Trial, ranked


def varied(trials: Sequence[Trial]) -> list[str]:
    """Keys that not all trials have the same value of, in the order of the space."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.candidate.settings))
    return [key for key in keys if len({_word(trial.candidate.settings.get(key, "")) for trial in trials}) > 1]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Dotted name -> as much of its end as tells it from the others: optim.lr -> lr."""
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        short[key] = next(
            end for end in ends if end == key or not any(o != key and (f".{o}").endswith(f".{end}") for o in keys)
        )
    return short


def describe(trial: Trial, keys: Sequence[str]) -> str:
    """The settings of a trial in a line: body=resnet18 lr=0.01."""
    names, settings = short_names(keys), trial.candidate.settings
    return " ".join(f"{names[key]}={_word(settings[key])}" for key in keys if key in settings)


def results_table(trials: Sequence[Trial], metric: str, title: str) -> Table:
    """A line a trial, the best first: settings that vary, AP in percent, steps, time, why it stopped."""
    keys = varied(trials)
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
    table.add_column("trial", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for name in (f"{metric}, %", "steps", "time"):
        table.add_column(name, justify="right")
    table.add_column("stopped")
    for trial in ranked(trials):
        table.add_row(
            str(trial.candidate.number),
            Text(describe(trial, keys)),
            percent(trial.score),
            str(trial.steps),
            _time(trial.progress.seconds),
            Text(_why(trial)),
        )
    return table


def write_csv(trials: Sequence[Trial], metric: str, path: Path) -> None:
    """A row a trial, every digit: trial, each key of the space, AP (0..1), steps, seconds, stopped, note."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.candidate.settings))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", *keys, metric, "steps", "seconds", "attempts", "stopped", "note"])
        for trial in trials:
            settings = [_word(trial.candidate.settings[key]) if key in trial.candidate.settings else "" for key in keys]
            score = "" if math.isnan(trial.score) else trial.score
            outcome = ("running", "") if trial.outcome is None else (trial.outcome.why, trial.outcome.note)
            progress = trial.progress
            writer.writerow(
                [trial.name, *settings, score, trial.steps, f"{progress.seconds:.1f}", progress.attempts, *outcome]
            )


def write_best(trial: Trial, metric: str, original: RunConfig, search: str, path: Path) -> None:
    """The trial's configuration for `maskrcnn train`: cluster, tracking and name are those the search began with."""
    config = trial.candidate.config
    config = replace(
        config,
        cluster=original.cluster,
        track=original.track,
        train=replace(config.train, name=original.train.name),
        evaluate=original.evaluate,
    )
    head = (
        f"# {trial.name} of the search {search}: {metric} {percent(trial.score)} after {trial.steps} steps.\n"
        f"#   {describe(trial, list(trial.candidate.settings))}\n"
        f"# Launch: maskrcnn train {path}\n"
    )
    path.write_text(head + to_yaml(config), encoding="utf-8")


def _why(trial: Trial) -> str:
    if trial.outcome is None:
        return "running" if trial.progress.attempts else "waiting"
    tries = f", {trial.progress.attempts} tries" if trial.outcome.why == "failed" else ""
    note = trial.outcome.note.strip().splitlines()[-1:] if trial.outcome.why == "failed" else []
    return trial.outcome.why + tries + "".join(f": {line[:120]}" for line in note)


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
