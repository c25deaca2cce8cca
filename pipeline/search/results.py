"""What a search found: a table for the terminal, trials.csv, and the best configuration as a file to train from."""

import csv
import json
import math
from collections import Counter
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

_HEAD_LINES = 5  # of a live table: a title of two lines, the heads, a rule, and where the cursor is


def varied(trials: Sequence[Trial]) -> list[str]:
    """Keys that not all trials have the same value of, in the order of the space."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.candidate.settings))
    return [key for key in keys if len({word(trial.candidate.settings.get(key, "")) for trial in trials}) > 1]


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
    return " ".join(f"{names[key]}={word(settings[key])}" for key in keys if key in settings)


def results_table(trials: Sequence[Trial], metric: str, title: str) -> Table:
    """A trial a row, the best first: AP in percent, steps, time, why it stopped, and whole the settings that vary."""
    keys = varied(trials)
    table = _table(f"{title}, {metric} in %", metric, "stopped")
    table.add_column("settings", ratio=1, overflow="fold")
    for trial in ranked(trials):
        settings = Text(describe(trial, keys))
        if trial.outcome is not None and trial.outcome.why == "failed":
            settings.append("".join(f"\n{line}" for line in trial.outcome.note.strip().splitlines()[-1:]), style="dim")
        table.add_row(*_numbers(trial), _state(trial), settings)
    return table


def live_table(trials: Sequence[Trial], metric: str, title: str, height: int) -> Table:
    """A trial a line, those that run first, then the best; what has no room in `height` lines is counted."""
    keys = varied(trials)
    running = [trial for trial in trials if trial.outcome is None and trial.progress.attempts]
    ended = [trial for trial in trials if trial.outcome is not None]
    waiting = [trial for trial in trials if trial.outcome is None and not trial.progress.attempts]
    order = [*ranked(running), *ranked(ended), *waiting]
    room = max(height - _HEAD_LINES, 2)
    shown = order if len(order) <= room else order[: room - 1]
    table = _table(f"{title}, {metric} in %", metric, "state")
    table.add_column("settings", ratio=1, no_wrap=True, overflow="ellipsis")
    for trial in shown:
        table.add_row(*_numbers(trial), _state(trial), Text(describe(trial, keys)))
    if len(shown) < len(order):
        left = Counter(map(_state, order[len(shown) :]))
        table.add_row(
            "...", "", "", "", "", f"{left.total()} more: " + ", ".join(f"{n} {of}" for of, n in left.items())
        )
    return table


def _table(title: str, metric: str, state: str) -> Table:
    """Numbers whole; the settings, which come last, have the width that is left."""
    table = Table(
        box=SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="bold",
        expand=True,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in ("trial", metric.rpartition("/")[2], "steps", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(state, no_wrap=True)
    return table


def _numbers(trial: Trial) -> list[str]:
    progress = trial.progress
    return [str(trial.candidate.number), percent(trial.score), str(trial.steps), _time(progress.seconds)]


def write_csv(trials: Sequence[Trial], metric: str, path: Path) -> None:
    """A row a trial, every digit: trial, each key of the space, AP (0..1), steps, seconds, stopped, note."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.candidate.settings))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", *keys, metric, "steps", "seconds", "attempts", "stopped", "note"])
        for trial in trials:
            settings = [word(trial.candidate.settings[key]) if key in trial.candidate.settings else "" for key in keys]
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


def _state(trial: Trial) -> str:
    if trial.outcome is None:
        return "running" if trial.progress.attempts else "waiting"
    several = trial.outcome.why == "failed" and trial.progress.attempts > 1
    return f"failed, {trial.progress.attempts} tries" if several else trial.outcome.why


def word(value: Any) -> str:
    """A setting, every digit: 0.01, fpn, null, [1.0, 2.0]. A line may end between the numbers of a list."""
    return value if isinstance(value, str) else json.dumps(value)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
