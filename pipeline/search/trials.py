"""The trials of a search as files: what each is to be, how far it is, how it ended. A killed search goes on from these.

SEARCH/trials/trial_003/   a run like any other: checkpoints, evaluations, ledger
    candidate.json         what varies, and the whole configuration: written before it starts
    progress.json          AP after so many steps and seconds: by the trial, at each evaluation
    outcome.json           why it stopped: by the search
    events.log             what went wrong on the way: by the trial, a line each and its details below, indented
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pipeline.config import RunConfig
from pipeline.configure import from_yaml_text, to_yaml
from pipeline.data.generation import write_whole
from pipeline.search.space import Settings

Why = Literal["finished", "stopped early", "out of patience", "diverged", "failed"]
WORST = 0.0  # score of a trial that diverged
_CANDIDATE, _PROGRESS, _OUTCOME, _EVENTS = "candidate.json", "progress.json", "outcome.json", "events.log"
_TIME = len("2026-01-31 12:00:00 ")


@dataclass(frozen=True)
class Candidate:
    """A trial that has not begun."""

    number: int
    settings: Settings  # what varies between trials, for people
    config_yaml: str  # all of it

    @property
    def config(self) -> RunConfig:
        """As a RunConfig."""
        return from_yaml_text(self.config_yaml, f"{trial_name(self.number)}'s configuration")


@dataclass(frozen=True)
class Report:
    """One evaluation."""

    steps: int
    seconds: float  # of the trial, over all its lives
    score: float  # of the search's metric, 0..1


@dataclass(frozen=True)
class Progress:
    """How far a trial is."""

    reports: tuple[Report, ...] = ()  # ascending steps
    seconds: float = 0.0
    attempts: int = 0
    mlflow_run_id: str | None = None
    error: str | None = None  # of the last attempt that failed
    trained: int = 0  # steps, as last heard of


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    why: Why
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """All that is known of one."""

    candidate: Candidate
    progress: Progress
    outcome: Outcome | None  # None: it runs, or waits

    @property
    def name(self) -> str:
        """Also of its directory and its run."""
        return trial_name(self.candidate.number)

    @property
    def score(self) -> float:
        """AP of the last evaluation; WORST where it diverged; NaN where it failed or was never evaluated."""
        if self.outcome is not None and self.outcome.why in ("diverged", "failed"):
            return WORST if self.outcome.why == "diverged" else math.nan
        return self.progress.reports[-1].score if self.progress.reports else math.nan

    @property
    def steps(self) -> int:
        """Of the last evaluation; where it diverged or failed, of what it trained."""
        evaluated = self.progress.reports[-1].steps if self.progress.reports else 0
        broken = self.outcome is not None and self.outcome.why in ("diverged", "failed")
        return max(evaluated, self.progress.trained) if broken else evaluated


def trial_name(number: int) -> str:
    """trial_003."""
    return f"trial_{number:03d}"


def trials_directory(search: Path) -> Path:
    """Where the runs of a search lie."""
    return search / "trials"


def trial_directory(search: Path, number: int) -> Path:
    """Where a trial's run lies."""
    return trials_directory(search) / trial_name(number)


def candidate(number: int, settings: Settings, config: RunConfig) -> Candidate:
    """A trial to be."""
    return Candidate(number, settings, to_yaml(config))


def write_candidates(search: Path, candidates: Sequence[Candidate]) -> None:
    """Before they start."""
    for one in candidates:
        _write(trial_directory(search, one.number) / _CANDIDATE, asdict(one))


def write_progress(search: Path, number: int, progress: Progress) -> None:
    """After each evaluation."""
    _write(trial_directory(search, number) / _PROGRESS, asdict(progress))


def write_outcome(search: Path, number: int, outcome: Outcome) -> None:
    """When it has ended."""
    _write(trial_directory(search, number) / _OUTCOME, asdict(outcome))


def forget_outcome(search: Path, number: int) -> None:
    """It is to go on."""
    (trial_directory(search, number) / _OUTCOME).unlink()


def write_event(search: Path, number: int, news: str, details: str = "") -> None:
    """As it happens; one writer at a time."""
    lines = [f"{datetime.now():%Y-%m-%d %H:%M:%S} {' '.join(news.split())}"]
    lines += [f"    {line}" for line in details.strip().splitlines()]
    with (trial_directory(search, number) / _EVENTS).open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def read_events(search: Path, number: int, offset: int) -> tuple[list[str], int]:
    """The news of events from byte `offset` on, without times and details, and where to read on."""
    path = trial_directory(search, number) / _EVENTS
    if not path.exists():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    news = [line[_TIME:] for line in whole.decode(errors="replace").splitlines() if not line.startswith(" ")]
    return news, offset + len(whole)


def read_trial(search: Path, number: int) -> Trial:
    """What the files of a trial say now."""
    place = trial_directory(search, number)
    progress, outcome = _read(place / _PROGRESS), _read(place / _OUTCOME)
    known = Progress()
    if progress is not None:
        reports = tuple(Report(**report) for report in progress.pop("reports"))
        known = replace(Progress(**progress), reports=reports)
    return Trial(
        Candidate(**json.loads((place / _CANDIDATE).read_bytes())),
        known,
        None if outcome is None else Outcome(**outcome),
    )


def read_trials(search: Path) -> list[Trial]:
    """All that have a candidate, by number."""
    found = sorted(trials_directory(search).glob(f"trial_*/{_CANDIDATE}"))
    return sorted(
        (read_trial(search, int(path.parent.name.removeprefix("trial_"))) for path in found),
        key=lambda trial: trial.candidate.number,
    )


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """The best first: by AP, but what a scheduler stopped was worse than others after as many steps, and comes later.

    What diverged and what has no AP comes last.
    """

    def key(trial: Trial) -> tuple[int, float]:
        if math.isnan(trial.score):
            return 3, 0.0
        why = None if trial.outcome is None else trial.outcome.why
        return {"stopped early": 1, "diverged": 2}.get(why or "", 0), -trial.score

    return sorted(trials, key=key)


def best(trials: Sequence[Trial]) -> Trial | None:
    """The first of `ranked` that has ended well."""
    ended = [t for t in trials if t.outcome is not None and t.outcome.why not in ("diverged", "failed")]
    return next((trial for trial in ranked(ended) if not math.isnan(trial.score)), None)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=2).encode())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return content
