"""What a search shows: lines for a file, a table that follows the trials for a terminal."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console

from jobs import search_display as module
from jobs.search_display import search_display
from pipeline.configure import load_config
from pipeline.search.trials import (
    Outcome,
    Progress,
    Report,
    candidate,
    read_trial,
    write_candidates,
    write_outcome,
    write_progress,
)


@pytest.fixture
def search(tmp_path: Path) -> Path:
    config = load_config(None)
    write_candidates(tmp_path, [candidate(n, {"optim.lr": lr}, config) for n, lr in enumerate((0.01, 0.1))])
    return tmp_path


def shown(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(module, "err", Console(file=text, force_terminal=terminal, width=100, color_system=None))
    return text


def end(search: Path) -> None:
    write_progress(search, 1, Progress((Report(20, 3.0, 0.25),), 3.0, 1))
    write_outcome(search, 1, Outcome("finished"))


def test_lines(search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=False)
    with search_display(search, "mask/AP", 2) as tell:
        tell(read_trial(search, 0), "starts")
        tell(read_trial(search, 0), "step 10 of 20: mask/AP 3.0")
        end(search)
        tell(read_trial(search, 1), "finished")
    assert text.getvalue().splitlines() == [
        "trial_000 starts: lr=0.01",
        "trial_000 step 10 of 20: mask/AP 3.0",
        "trial_001 finished; 1/2 trials have ended, best mask/AP 25.0 (trial_001)",
    ]


def test_a_terminal_has_a_table(search: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True)

    def wait_for(*words: str) -> None:
        end = time.monotonic() + 60  # it is drawn once a second
        while not all(word in text.getvalue() for word in words):
            assert time.monotonic() < end, text.getvalue()
            time.sleep(0.05)

    with search_display(search, "mask/AP", 2) as tell:
        tell(read_trial(search, 0), "starts")
        wait_for("0/2 trials have ended", "lr=0.1", "waiting")
        end(search)
        wait_for("1/2 trials have ended", "25.0", "finished")
