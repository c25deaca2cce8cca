"""Progress in a terminal and where there is none."""

import io
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from jobs.console import progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[Console, io.StringIO, Clock]:
    text = io.StringIO()
    return Console(file=text, force_terminal=False, width=40), text, Clock()


def test_plain_lines_at_most_every_ten_seconds_and_at_the_end():
    console, text, clock = plain()
    with progress("sharding", 5000, console=console, clock=clock) as meter:
        for _ in range(50):
            clock.now += 1.0
            meter.advance(100)
    assert text.getvalue().splitlines() == [
        "sharding 1000/5000 (20 %) 100/s, 40 s left",
        "sharding 2000/5000 (40 %) 100/s, 30 s left",
        "sharding 3000/5000 (60 %) 100/s, 20 s left",
        "sharding 4000/5000 (80 %) 100/s, 10 s left",
        "sharding 5000/5000 (100 %) 100/s, 0 s left",
        "sharding 5000/5000 (100 %) 100/s, in 50 s",
    ]


def test_plain_lines_keep_the_note_and_do_not_read_markup():
    console, text, clock = plain()
    with progress("step [1]", 9000, start=1000, console=console, clock=clock) as meter:
        clock.now += 20
        meter.reach(1004, note="loss [red]1.5")
        clock.now += 5
        meter.advance()
    assert text.getvalue().splitlines() == [
        "step [1] 1004/9000 (11 %) 5.0 s each, 11 h 06 min left, loss [red]1.5",
        "step [1] 1005/9000 (11 %) 5.0 s each, in 25 s, loss [red]1.5",
    ]


def test_plain_lines_of_unknown_or_no_length():
    console, text, clock = plain()
    with progress("reading", None, console=console, clock=clock) as meter:
        clock.now += 90
        meter.advance(450)
    with progress("nothing", 0, console=console, clock=clock):
        pass
    assert text.getvalue().splitlines() == [
        "reading 450 5.0/s",
        "reading 450 5.0/s, in 1 min 30 s",
        "nothing 0/0 (100 %) -/s, in 0 s",
    ]


def test_plain_lines_say_where_a_failed_job_stopped():
    console, text, clock = plain()
    with pytest.raises(RuntimeError), progress("sharding", 10, console=console, clock=clock) as meter:
        clock.now += 1
        meter.advance(3)
        raise RuntimeError
    assert text.getvalue().splitlines() == ["sharding stopped at 3/10 (30 %) 3.0/s, in 1 s"]


def test_a_job_that_fails_at_once_leaves_the_word_to_its_error():
    console, text, clock = plain()
    with pytest.raises(RuntimeError), progress("sharding", 10, console=console, clock=clock):
        raise RuntimeError
    assert text.getvalue() == ""


def test_plain_lines_from_threads_count_everything():
    console, text, clock = plain()
    with progress("x", 4000, console=console, clock=clock) as meter, ThreadPoolExecutor(8) as pool:
        for _ in range(4000):
            pool.submit(meter.advance)
        pool.shutdown()
        clock.now += 1
    assert "x 4000/4000 (100 %)" in text.getvalue()


def test_a_bar_in_a_terminal():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100, color_system=None, legacy_windows=False, _environ={})
    with progress("sharding", 5000, start=1000, console=console) as meter:
        meter.advance(200, note="loss [1.5]")
        meter.reach(5000)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())
    last = shown.rstrip().splitlines()[-1]
    assert "sharding" in last
    assert "5000/5000 (100 %)" in last
    assert "/s" in last
    assert "loss [1.5]" in last
    assert "━" in last
