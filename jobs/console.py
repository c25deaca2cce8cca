"""What the command line prints with: two consoles and one progress display.

    with progress("sharding", total=5000) as meter:
        shard(..., on_done=meter.advance)

In a terminal it is a bar with rate and remaining time; elsewhere plain lines, at most one in ten seconds and one at the
end: `sharding 1200/5000 (24 %) 310/s, 12 s left`. Results go to stdout, progress and errors to stderr.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

out = Console()
err = Console(stderr=True)


def stop_on_sigterm() -> None:
    """SIGTERM, which is how Ray and Kubernetes stop a job, does what ctrl-C does: runs are closed, and can go on."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL, None):  # as of what a shell starts with &
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


class Meter(Protocol):
    """How far a job is. Safe to call from several threads."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """So many more are done; the note (such as the loss) stays until the next one."""

    def reach(self, done: int, note: str = "") -> None:
        """So many are done in all."""


@contextmanager
def progress(
    description: str,
    total: int | None,
    *,
    start: int = 0,
    console: Console | None = None,
    every_seconds: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Meter]:
    """Show how far a job is. `total` None: unknown; `start`: what an earlier run had done, which is not in the rate."""
    console = console or err
    if console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            _Count(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console) as bar:
            yield _Bar(bar, description, total, start)
        return
    lines = _Lines(description, total, start, console, every_seconds, clock)
    try:
        yield lines
    except BaseException:
        if lines.moved:  # else the error says all
            lines.finish("stopped at ")
        raise
    lines.finish()


class _Bar:
    def __init__(self, bar: Progress, description: str, total: int | None, start: int) -> None:
        self._bar = bar
        self._task = bar.add_task(description, total=total, completed=start, note="")

    def advance(self, count: int = 1, note: str = "") -> None:
        self._update(note, advance=count)

    def reach(self, done: int, note: str = "") -> None:
        self._update(note, completed=done)

    def _update(self, note: str, **change: Any) -> None:
        self._bar.update(self._task, **change, **({"note": note} if note else {}))


class _Lines:
    def __init__(
        self,
        description: str,
        total: int | None,
        start: int,
        console: Console,
        every_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._description, self._total, self._start = description, total, start
        self._console, self._every, self._clock = console, every_seconds, clock
        self._lock = threading.Lock()
        self._done, self._note = start, ""
        self._begin = self._printed = clock()

    @property
    def moved(self) -> bool:
        return self._done > self._start

    def advance(self, count: int = 1, note: str = "") -> None:
        with self._lock:
            self._move(self._done + count, note)

    def reach(self, done: int, note: str = "") -> None:
        with self._lock:
            self._move(done, note)

    def finish(self, prefix: str = "") -> None:
        with self._lock:
            seconds = self._clock() - self._begin
            self._print(f"{prefix}{self._count()} {self._rate(seconds)}, in {_duration(seconds)}")

    def _move(self, done: int, note: str) -> None:
        self._done, self._note = done, note or self._note
        now = self._clock()
        if now - self._printed < self._every:
            return
        self._printed = now
        seconds = now - self._begin
        line = f"{self._count()} {self._rate(seconds)}"
        if self._total is not None and self._done > self._start:
            left = max(self._total - self._done, 0) * seconds / (self._done - self._start)
            line += f", {_duration(left)} left"
        self._print(line)

    def _count(self) -> str:
        return _count(self._done, self._total)

    def _rate(self, seconds: float) -> str:
        return _rate((self._done - self._start) / seconds if seconds > 0 else None)

    def _print(self, line: str) -> None:
        note = f", {self._note}" if self._note else ""
        self._console.print(f"{self._description} {line}{note}", markup=False, highlight=False, soft_wrap=True)


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_count(int(task.completed), None if task.total is None else int(task.total)))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_rate(task.finished_speed or task.speed), style="progress.data.speed")


def _count(done: int, total: int | None) -> str:
    if total is None:
        return str(done)
    return f"{done}/{total} ({100 * done // total if total else 100} %)"


def _rate(per_second: float | None) -> str:
    if not per_second:
        return "-/s"
    if per_second < 1:
        return f"{1 / per_second:.1f} s each"
    return f"{per_second:.0f}/s" if per_second >= 10 else f"{per_second:.1f}/s"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
