"""What the search hears of its trials from Ray Tune and from their files, and tells."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.configure import load_config
from pipeline.search import search as module
from pipeline.search.search import _Watcher
from pipeline.search.trials import candidate, read_trials, write_candidates, write_event


def test_what_goes_wrong_in_a_trial_is_news_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.0)
    config = load_config(None)
    write_candidates(tmp_path, [candidate(number, {}, config) for number in range(2)])
    write_event(tmp_path, 0, "in an earlier life")
    news: list[str] = []
    watcher = _Watcher(tmp_path, 100, "mask/AP", lambda trial, text: news.append(f"{trial.name} {text}"))
    tune: list[Any] = [SimpleNamespace(config={"number": n}, status="RUNNING", last_result=None) for n in range(2)]

    def look() -> list[str]:
        watcher.on_step_end(1, tune)
        found = list(news)
        news.clear()
        return found

    assert look() == []
    write_event(tmp_path, 1, "worker 0 failed: OSError", "Traceback\nOSError")
    write_event(tmp_path, 0, "step 50 is not\nevaluated")
    with (tmp_path / "trials/trial_000/events.log").open("a") as file:
        file.write("2026-01-31 12:00:00 half a li")  # it is being written
    assert look() == ["trial_000 step 50 is not evaluated", "trial_001 worker 0 failed: OSError"]
    assert look() == []
    with (tmp_path / "trials/trial_000/events.log").open("a") as file:
        file.write("ne\n")
    write_event(tmp_path, 1, "worker 0 failed: MemoryError")
    watcher.on_trial_error(1, tune, tune[1])  # its last words come first
    assert news == ["trial_001 worker 0 failed: MemoryError", "trial_001 failed: its process died"]
    news.clear()
    tune[1].status = "ERROR"
    assert look() == ["trial_000 half a line"]
    assert [trial.outcome and trial.outcome.why for trial in read_trials(tmp_path)] == [None, "failed"]
