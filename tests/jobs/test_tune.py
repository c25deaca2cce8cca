"""A search by the `maskrcnn` command on a real Ray: a trial that diverges, one that is stopped, one that fails; the
driver is killed with SIGKILL, and once it goes on, the process of a trial too.
"""

import contextlib
import csv
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from maskrcnn_process import Maskrcnn, has_proc, run
from PIL import Image

from pipeline.configure import load_config
from pipeline.search.trials import Trial, read_trials
from pipeline.tracking.mlflow_store import default_uri

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), has_proc]

STEPS, EVERY = 180, 24  # so many that it still trains when the first evaluation is done
CONFIG = f"""
model:
  trunk: {{body: resnet18, norm: bn, freeze_stages: 0, fpn_channels: 32}}
  rpn:
    anchors: {{sizes_px: [8.0, 16.0, 32.0, 64.0, 96.0]}}
    batch_per_image: 32
    pre_nms_train: 60
    pre_nms_test: 100
    post_nms_train: 40
    post_nms_test: 60
  roi: {{batch_per_image: 16, sampling_ratio: 2}}
  box: {{hidden: 32, layers: 1, score_threshold: 0.0, detections_per_image: 100}}
  mask: null
data: {{train_sizes_px: [64], train_max_size_px: 128, test_size_px: 64, test_max_size_px: 128, task_rows: 8}}
optim: {{lr: 0.01, lr_batch_images: 4, warmup_steps: 2, milestones: [150], clip_norm: 10.0}}
train:
  steps: {STEPS}
  batch_images: 4
  seed: 5
  precision: float32
  log_every_steps: 1
  checkpoint_every_steps: 12
  max_bad_steps: 1
evaluate:
  batch_images: 8
  pictures: 0
  during_training: {{every_steps: {EVERY}, metric: box/AR_100, cpus_per_worker: 0.25}}
cluster: {{workers: 2, cpus_per_worker: 0.75}}
"""
DIVERGES, LEARNS, STANDS, FAILS = 1e30, 0.01, 0.0, 0.05
SPACE = f"""
config: tiny.yaml
tune: {{search: grid, reduction_factor: 2.0}}
space:
  optim.lr: {{choice: [{DIVERGES}, {LEARNS}, {STANDS}, {FAILS}]}}
  model.box.score_threshold: {{choice: [0.99], when: {{optim.lr: {STANDS}}}}}  # and so it finds nothing
  init.weights: {{choice: [garbage.pth], when: {{optim.lr: {FAILS}}}}}
"""


@dataclass(frozen=True)
class Searched:
    """A search that was killed and went on to its end."""

    directory: Path
    code: int
    stdout: str
    stderr: str
    before: list[Trial]  # as the killed search left them
    first: str  # what that had said

    @property
    def trials(self) -> list[Trial]:
        return read_trials(self.directory)


@pytest.fixture(scope="module")
def searched(shapes: Path, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Beside another Ray on the machine, which must not confuse what frees the workers of a trial that is gone."""
    root = tmp_path_factory.mktemp("search")
    (root / "tiny.yaml").write_text(CONFIG)
    (root / "space.yaml").write_text(SPACE)
    (root / "garbage.pth").write_bytes(b"no weights")
    words = ["tune", "space.yaml", "tune.name=a", f"data.train={shapes / 'train'}", f"data.val={shapes / 'val'}"]
    directory = root / "runs/a"
    with Maskrcnn(*words, cwd=root) as first:
        first.wait_until(lambda: bool(len(read_trials(directory)) == 4 and read_trials(directory)[1].progress.reports))
        first.kill()
        said = first.stderr
    before = read_trials(directory)
    with Maskrcnn("tune", "--resume", "a", cwd=root) as second:
        # It trains: before that Ray Train has not yet told what frees the CPUs of its workers which they are.
        again = directory / "trials/trial_001/ledger"
        second.wait_until(lambda: any(file.stat().st_size for file in again.glob("*-attempt002-*")))
        for pid in second.pids("ray::ImplicitFunc"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = second.wait()
        return Searched(directory, code, second.stdout, second.stderr, before, said)


def runs(searched: Searched) -> dict[str, Any]:
    """MLflow's runs by name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(searched.directory.parent))
    (experiment,) = client.search_experiments(filter_string="name = 'maskrcnn'")
    found = client.search_runs([experiment.experiment_id])
    assert len({one.info.run_name for one in found}) == len(found)  # none twice
    return {one.info.run_name: one for one in found}


def test_it_ends_well_and_every_trial_says_why_it_stopped(searched: Searched) -> None:
    assert searched.code == 0, searched.stdout + searched.stderr
    whys = [trial.outcome and trial.outcome.why for trial in searched.trials]
    assert whys == ["diverged", "finished", "stopped early", "failed"], searched.stderr
    diverged, learned, stopped, failed = searched.trials
    assert diverged.score == 0.0 and diverged.outcome and "lower optim.lr" in diverged.outcome.note
    steps = [report.steps for report in learned.progress.reports]
    assert (steps[0], steps[-1]) == (EVERY, STEPS)
    assert stopped.steps == EVERY and stopped.score == 0.0 < learned.progress.reports[0].score
    assert failed.outcome and "garbage.pth" in failed.outcome.note


def test_what_ended_before_the_kill_is_not_run_again(searched: Searched) -> None:
    assert searched.before[0].outcome is not None and searched.before[1].outcome is None
    assert searched.trials[0] == searched.before[0]
    assert "trial_000 diverged" in searched.first and "trial_000" not in searched.stderr


def test_a_killed_trial_goes_on_from_its_checkpoint(searched: Searched) -> None:
    """First with all of the search, then its own process alone."""
    learned, before = searched.trials[1], searched.before[1]
    assert learned.progress.attempts == 3 and before.progress.attempts == 1
    assert learned.progress.reports[0] == before.progress.reports[0]
    assert f"trial_001 goes on after step {EVERY}" in searched.stderr
    assert "trial_001 failed, and is tried again" in searched.stderr
    begun = [
        json.loads(path.read_text().splitlines()[0])
        for path in sorted(searched.directory.glob("trials/trial_001/ledger/*"))
    ]
    first = {line["step"] for line in begun}
    assert 0 in first and max(first) >= EVERY and all(step % 12 == 0 for step in first)  # where checkpoints were


def test_mlflow_has_a_run_a_trial_below_that_of_the_search(searched: Searched) -> None:
    found = runs(searched)
    assert set(found) == {"a", "a-trial_000", "a-trial_001", "a-trial_002"}  # the last one failed before it had any
    parent = found["a"]
    for name in ("a-trial_000", "a-trial_001", "a-trial_002"):
        assert found[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
    states = [found[name].info.status for name in ("a", "a-trial_001", "a-trial_002")]
    assert states == ["FINISHED"] * 3
    assert found["a-trial_002"].data.tags["stopped"] == f"stopped early at step {EVERY} by the scheduler"
    assert found["a-trial_000"].data.tags["stopped"].startswith("diverged")
    learned = searched.trials[1].progress
    assert found["a-trial_001"].data.metrics["box/AR_100"] == pytest.approx(learned.reports[-1].score)
    assert found["a-trial_001"].data.params["optim.lr"] == str(LEARNS)
    assert parent.data.metrics["best/box/AR_100"] == pytest.approx(learned.reports[-1].score)


def test_the_table_and_the_files(searched: Searched) -> None:
    for text in ("finished", "stopped early", "diverged", "failed", f"lr={LEARNS}"):
        assert text in searched.stdout
    assert "best        trial_001" in searched.stdout
    with (searched.directory / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["optim.lr"] for row in rows] == ["1e+30", "0.01", "0.0", "0.05"]
    for name in ("parallel_coordinates.png", "ap_against_cost.png"):
        with Image.open(searched.directory / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 20
    best = load_config(searched.directory / "best.yaml")
    assert best.optim.lr == LEARNS and best.optim.lr_batch_images == 4 and best.train.name is None
    assert best.cluster.runs_dir == "runs"


def test_a_search_that_has_ended_shows_its_results_again(searched: Searched) -> None:
    code, stdout, stderr = run("tune", "--resume", "a", cwd=searched.directory.parents[1])
    assert code == 0, stderr
    assert "all 4 trials of a have ended" in stdout and "best        trial_001" in stdout
    assert "starts" not in stderr and "goes on" not in stderr
