"""The ledger of runs that are killed at any moment on any number of workers, and ledgers that hide something."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import make_index, make_plan

from pipeline.data.ledger import Attempt, LedgerError, LedgerWriter, Line, ledger_dir, next_attempt, read_ledger
from pipeline.data.lineage import Lineage, check_lineage, trace
from pipeline.data.plan import Plan

BATCH = 6


def plan() -> Plan:
    return make_plan(make_index([(50, 60), (60, 50), (70, 70)] * 7), seed=9, batch_images=BATCH)


def attempt(run: Path, start: int, ends: list[int], skipped: tuple[int, ...] = ()) -> None:
    """What the workers of one start write: rank r records the steps start..ends[r] - 1 of the plan."""
    planned, world, number = plan(), len(ends), next_attempt(run)
    for rank, end in enumerate(ends):
        with LedgerWriter(run, number, start, rank, world) as ledger:
            for step in range(start, end):
                rows = planned.batch(step).share(rank, world).rows
                ledger.write(step, planned.index["sample_id"].to_numpy()[rows].tolist(), step in skipped)


def check(run: Path) -> Lineage:
    steps: list[int] = []
    lineage = check_lineage(read_ledger(run), plan(), steps.append)
    assert steps == list(range(1, lineage.done + 1))
    return lineage


def file(run: Path, number: int, rank: int) -> Path:
    (path,) = ledger_dir(run).glob(f"*-attempt{number:03d}-rank{rank}of*.jsonl")
    return path


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_killed_anywhere_on_any_number_of_workers(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Checkpoints every few steps; each kill loses a bit of the last line of some workers."""
    chance, run = random.Random(seed), tmp_path_factory.mktemp("run")
    every, steps, saved = chance.randint(1, 4), chance.randint(5, 20), 0
    starts = []
    while saved < steps:
        world = chance.choice([1, 2, 3, 6])
        end = min(saved + chance.randint(0, 7), steps)
        starts.append((saved, world))
        lag = [end if end == steps else max(saved, end - chance.randint(0, 1)) for _ in range(world)]
        checkpoint = end if end == steps else max(saved, min(lag) // every * every)  # after the barrier of all ranks
        number = next_attempt(run)
        attempt(run, saved, lag)
        if end < steps and chance.random() < 0.5:
            path = file(run, number, chance.randrange(world))
            content = path.read_bytes()
            last = content.rstrip(b"\n").rfind(b"\n") + 1
            if content and json.loads(content[last:])["step"] >= checkpoint:
                path.write_bytes(content[: chance.randint(last, len(content) - 2)])
        saved = checkpoint
    lineage = check(run)
    assert lineage.done == steps
    assert [(part.first, part.attempt.world) for part in lineage.attempts] == starts
    assert sum(part.last - part.first for part in lineage.attempts) == steps
    assert sum(epoch.trained for epoch in lineage.epochs) == steps * BATCH
    for epoch in lineage.epochs[:-1]:
        assert epoch.complete and epoch.trained == epoch.planned == 21


def test_a_run_that_nothing_happened_to(tmp_path: Path) -> None:
    attempt(tmp_path, 0, [7, 7], skipped=(2,))
    lineage = check(tmp_path)
    assert lineage.done == 7
    (part,) = lineage.attempts
    assert (part.attempt.number, part.first, part.last, part.superseded) == (1, 0, 7, 0)
    assert [(e.epoch, e.trained, e.planned, e.skipped, e.complete) for e in lineage.epochs] == [
        (0, 21, 21, 6, True),
        (1, 21, 21, 0, True),
    ]


def test_what_later_attempts_supersede(tmp_path: Path) -> None:
    attempt(tmp_path, 0, [9, 8])
    attempt(tmp_path, 6, [8, 8, 8])
    attempt(tmp_path, 4, [10])  # further back: somebody deleted a checkpoint
    lineage = check(tmp_path)
    assert lineage.done == 10
    found = [(p.first, p.last, p.attempt.end, p.superseded) for p in lineage.attempts]
    assert found == [(0, 4, 9, 5), (6, 6, 8, 2), (4, 10, 10, 0)]


def test_the_last_attempt_counts_as_far_as_all_workers_recorded(tmp_path: Path) -> None:
    attempt(tmp_path, 0, [5, 7])
    assert check(tmp_path).done == 5


def test_a_run_that_began_and_did_nothing(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) == [] and next_attempt(tmp_path) == 1
    attempt(tmp_path, 0, [0, 0])
    lineage = check(tmp_path)
    assert (lineage.done, lineage.epochs) == (0, ())


def change(path: Path, line: int, edit: Callable[[dict[str, object]], object]) -> None:
    lines = path.read_text().splitlines()
    content = json.loads(lines[line])
    edit(content)
    lines[line] = json.dumps(content)
    path.write_text("\n".join(lines) + "\n")


def test_what_is_not_as_planned_is_named(tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        run = tmp_path / name
        attempt(run, 0, [6, 6])
        attempt(run, 4, [8, 8, 8])
        assert check(run).done == 8
        return run

    run = broken("other sample")
    wrong = int(json.loads(file(run, 2, 1).read_text().splitlines()[1])["samples"][0])
    change(file(run, 2, 1), 1, lambda line: line.update(samples=[999, *line["samples"][1:]]))  # type: ignore[index]
    with pytest.raises(
        LedgerError, match=rf"step 5, attempt 2: worker 1 of 3 trained sample 999 at place 0, .* {wrong}"
    ):
        check(run)
    run = broken("twice")
    change(file(run, 1, 0), 2, lambda line: line.update(samples=[line["samples"][0]] * 3))  # type: ignore[index]
    with pytest.raises(LedgerError, match=r"step 2, attempt 1: worker 0 of 2 trained sample \d+ at place 1"):
        check(run)
    run = broken("fewer")
    change(file(run, 1, 0), 2, lambda line: line.update(samples=line["samples"][:2]))  # type: ignore[index]
    with pytest.raises(LedgerError, match="step 2, attempt 1: worker 0 of 2 trained 2 samples, 3 were planned"):
        check(run)
    run = broken("half skipped")
    change(file(run, 1, 1), 3, lambda line: line.update(skipped=True))
    with pytest.raises(LedgerError, match="step 3, attempt 1: some workers skipped it"):
        check(run)
    run = broken("a worker is gone")
    file(run, 1, 1).unlink()
    with pytest.raises(LedgerError, match="step 0, attempt 1: worker 1 of 2 recorded nothing"):
        check(run)
    run = broken("an attempt is gone")
    for rank in range(2):
        file(run, 1, rank).unlink()
    with pytest.raises(LedgerError, match=r"step 0 is missing: .* the next one \(attempt 2\) begins at step 4"):
        check(run)
    run = broken("a hole")
    for rank in range(2):
        path = file(run, 1, rank)
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(LedgerError, match="step 3 is missing"):
        check(run)


def test_only_a_last_line_may_be_torn(tmp_path: Path) -> None:
    attempt(tmp_path, 0, [4])
    path = file(tmp_path, 1, 0)
    content = path.read_bytes()
    path.write_bytes(content[:-1])  # only the end of the line is missing
    assert check(tmp_path).done == 4
    path.write_bytes(content[:-9])
    assert check(tmp_path).done == 3
    path.write_bytes(content[:-9] + b"\n")
    with pytest.raises(LedgerError, match=r"line 4 is damaged: .* only a last line may be torn"):
        check(tmp_path)
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[2], lines[3]]))
    with pytest.raises(LedgerError, match="line 2 should be of step 1, got step 2"):
        check(tmp_path)
    for bad in (b"[]\n", b'{"step": 0}\n', b'{"step": 0, "samples": ["a"], "skipped": false}\n', b"\xff\n"):
        path.write_bytes(bad)
        with pytest.raises(LedgerError, match="line 1 is damaged"):
            check(tmp_path)


def test_files_that_no_worker_wrote(tmp_path: Path) -> None:
    attempt(tmp_path, 0, [2, 2])
    with pytest.raises(FileExistsError), LedgerWriter(tmp_path, 1, 0, 0, 2):
        pass
    other = file(tmp_path, 1, 0).with_name("0000001-attempt001-rank0of3.jsonl")
    other.touch()
    with pytest.raises(LedgerError, match=r"two commands trained in .* at the same time"):
        read_ledger(tmp_path)
    other.rename(other.with_name("notes.jsonl"))
    with pytest.raises(LedgerError, match=r"notes\.jsonl is no file of a ledger"):
        read_ledger(tmp_path)


def test_trace_needs_no_plan() -> None:
    def made(number: int, start: int, end: int) -> Attempt:
        return Attempt(number, start, 1, ({step: Line((), False) for step in range(start, end)},))

    assert trace([]) == ()
    parts = trace([made(1, 0, 10), made(2, 5, 8), made(3, 6, 6)])
    assert [(part.first, part.last) for part in parts] == [(0, 5), (5, 6), (6, 6)]


def test_lines_outlive_kill_minus_9(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from pipeline.data.ledger import LedgerWriter
ledger = LedgerWriter(Path({str(tmp_path)!r}), 1, 0, 0, 1)
for step in range(50):
    ledger.write(step, [step] * 6, False)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    (found,) = read_ledger(tmp_path)
    assert found.end == 50 and found.lines[0][49] == Line((49,) * 6, False)
