"""Killed with kill -9 at any step and started again on other numbers of workers, a run trains on what it would have."""

import json
import os
import random
import signal
from pathlib import Path

import pytest
from maskrcnn_process import Maskrcnn, has_proc, run
from test_end_to_end import CONFIG

from pipeline.data.ledger import ledger_dir, read_ledger
from pipeline.data.lineage import trace
from pipeline.data.plan import plan_of
from pipeline.training.checkpoint import latest_checkpoint, read_meta

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), has_proc]

STEPS, BATCH = 18, 6
CHANGES = [
    f"train.steps={STEPS}",
    f"train.batch_images={BATCH}",
    "train.name=moved",
    "cluster.runs_dir=runs",
    "cluster.cpus_per_worker=0.5",
    "data.repeat_threshold=0.8",
    "evaluate.max_images=2",
    "evaluate.pictures=0",
    "evaluate.report=false",
]


@pytest.fixture(scope="module")
def moved(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed on 2 workers, killed on 1, lost one of 3 workers, and ended."""
    root = tmp_path_factory.mktemp("moved")
    (root / "tiny.yaml").write_text(CONFIG)
    words = ["train", "tiny.yaml", f"data.train={shapes / 'train'}", f"data.val={shapes / 'val'}", *CHANGES]
    directory, chance = root / "runs/moved", random.Random(11)

    def reached() -> int:
        """Steps that all workers of the newest attempt have recorded."""
        attempts = read_ledger(directory)
        return trace(attempts)[-1].last if attempts else 0

    for workers, least in ((2, 3), (1, 8)):
        with Maskrcnn(*words, f"cluster.workers={workers}", cwd=root) as command:
            step = least + chance.randrange(3)
            command.wait_until(lambda step=step: reached() >= step)
            command.kill()
    with Maskrcnn(*words, "cluster.workers=3", cwd=root) as command:
        command.wait_until(lambda: read_ledger(directory)[-1].world == 3 and reached() >= 13)
        os.kill(command.pids("ray::RayTrainWorker")[1], signal.SIGKILL)
        assert command.wait() == 0, command.stdout + command.stderr
    return directory


def test_the_sequence_of_samples_is_that_of_a_run_never_killed(moved: Path) -> None:
    newest = latest_checkpoint(moved)
    assert newest is not None
    config, meta = read_meta(newest)
    assert meta.step == STEPS
    plan = plan_of(config)
    attempts = read_ledger(moved)
    assert [attempt.world for attempt in attempts] == [2, 1, 3, 3]
    assert attempts[1].start > 0 and attempts[2].start > attempts[1].start
    trained = [
        sample
        for part in trace(attempts)
        for step in range(part.first, part.last)
        for lines in part.attempt.lines
        for sample in lines[step].samples
    ]
    never_killed = [
        sample for step in range(STEPS) for sample in plan.index["sample_id"].to_numpy()[plan.batch(step).rows].tolist()
    ]
    assert trained == never_killed and len(trained) == STEPS * BATCH


def test_the_ledger_proves_it(moved: Path) -> None:
    code, stdout, stderr = run("ledger", moved, cwd=moved)
    assert code == 0, stdout + stderr
    assert f"all {STEPS} steps are as planned, on every worker" in stdout
    code, stdout, stderr = run("ledger", moved, "--json", cwd=moved)
    told = json.loads(stdout)
    assert (code, told["agrees"], told["steps"]) == (0, True, STEPS)
    assert [attempt["workers"] for attempt in told["attempts"]] == [2, 1, 3, 3]
    assert told["attempts"][-1]["end"] == STEPS and told["attempts"][-1]["superseded"] == 0
    assert sum(epoch["trained"] for epoch in told["epochs"]) == STEPS * BATCH
    assert all(epoch["complete"] for epoch in told["epochs"][:-1])
    assert len({epoch["planned"] for epoch in told["epochs"]}) > 1  # repeated samples: epochs of different lengths


def test_a_ledger_that_differs_is_an_error(moved: Path) -> None:
    path = sorted(ledger_dir(moved).glob("*attempt001-rank1of2.jsonl"))[0]
    content = path.read_text()
    lines = content.splitlines(keepends=True)
    changed = json.loads(lines[1])
    changed["samples"].reverse()
    try:
        path.write_text(lines[0] + json.dumps(changed) + "\n" + "".join(lines[2:]))
        code, stdout, _ = run("ledger", moved, cwd=moved)
        assert code == 1 and "step 1, attempt 1: worker 1 of 2 trained sample" in stdout
        code, stdout, _ = run("ledger", moved, "--json", cwd=moved)
        assert code == 1 and json.loads(stdout)["agrees"] is False
    finally:
        path.write_text(content)
    code, _, stderr = run("ledger", moved.parent, cwd=moved)
    assert code == 2 and "has no checkpoint" in stderr
