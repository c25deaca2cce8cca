"""What submit refuses before it sends anything, and what it says; no cluster is asked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus
from typer.testing import CliRunner, Result

import jobs.submit
from jobs.main import app
from pipeline.submission import job as cluster_job


class Client:
    """Takes any job, which fails with exit code 2."""

    def __init__(self) -> None:
        self.submitted: dict[str, Any] = {}

    def get_address(self) -> str:
        return "http://head:8265"

    def submit_job(self, **given: Any) -> str:
        self.submitted = given
        return "job-1"

    def get_job_info(self, job: str) -> Any:
        return SimpleNamespace(status=JobStatus.FAILED, driver_exit_code=2, message="long [/]")

    def get_job_logs(self, job: str) -> str:
        return "".join(f"line {number}\n" for number in range(100))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Client:
    fake = Client()
    monkeypatch.setattr(jobs.submit, "connect", lambda address: fake)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    (tmp_path / "c.yaml").write_text("train: {steps: 3}\n")
    (tmp_path / "elsewhere.yaml").write_text("cluster: {address: '10.0.0.1:6379'}\n")
    (tmp_path / "t.yaml").write_text("config: c.yaml\nspace: {optim.lrr: {uniform: [0.01, 0.1]}}\n")
    (tmp_path / "ignored.yaml").write_text("{}\n")
    (tmp_path / ".gitignore").write_text("ignored.yaml\n")
    return fake


def submit(*words: str) -> Result:
    return CliRunner().invoke(app, ["submit", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--", "train", "c.yaml", "train.stepz=3"], "train.stepz"),
        (["--", "train", "ignored.yaml"], "not among the files that go to the cluster"),
        (["--", "train", "/c.yaml"], "not among the files that go to the cluster"),
        (["--", "train", "c.yaml", "cluster.address=auto"], "leave cluster.address out"),
        (["--", "train", "elsewhere.yaml"], "set it to null"),
        (["--", "submit", "--", "train", "c.yaml"], "a job cannot be"),
        (["--", "trane", "c.yaml"], "No such command 'trane'"),
        (["--", "shard", "cocoa"], "No such command 'cocoa'"),
        (["--", "shard"], "wants one of coco, lvis"),
        (["--", "evaluate", "/shared/step_9", "--dada", "x"], "No such option: --dada"),
        (["--", "tune", "nowhere.yaml"], "not among the files that go to the cluster"),
        (["--", "tune", "t.yaml"], "optim.lrr"),
        (["--", "transfer", "elsewhere.yaml", "--from", "/shared/step_9"], "set it to null"),
        (["--follow", "--wait", "--", "--version"], "--follow waits too"),
        (["--pip", "a", "--image", "b", "--", "--version"], "give one of them"),
        (["--secret", "NOT_EXPORTED", "--", "--version"], "export it first"),
        (["--limit-mb", "0.00001", "--", "--version"], "large are"),
    ],
)
def test_refused_before_anything_is_sent(client, words, message):
    done = submit(*words)
    assert done.exit_code == 2 and message in done.stderr.replace("\n", " "), done.output
    assert client.submitted == {}


def test_says_what_it_sends_and_how_to_go_on(client):
    done = submit("--address", "http://head:8265", "--", "train", "c.yaml", "train.steps=2", "cluster.runs_dir=/shared")
    assert done.exit_code == 0, done.output
    assert client.submitted["entrypoint"] == "python -m jobs train c.yaml train.steps=2 cluster.runs_dir=/shared"
    assert "package     4 files, " in done.stderr and "warning" not in done.stderr
    assert "maskrcnn jobs logs job-1 --follow --address http://head:8265" in done.stderr


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        (["train", "c.yaml"], "cluster.runs_dir=runs"),
        (["transfer", "c.yaml", "--from", "/shared/step_9", "cluster.runs_dir=here"], "cluster.runs_dir=here"),
        (["paper", "2c"], "--runs runs"),
        (["tune", "--resume", "lr"], "--runs runs"),
        (["evaluate", "/shared/step_9", "--data", "/shared/val", "--out", "ap"], "--out ap"),
        (["shard", "images", "--images", "/shared/x", "--out", "shards"], "--out shards"),
        (["shard", "images", "--images", "/shared/x", "--out", "s3://bucket/shards"], None),
        (["evaluate", "/shared/step_9", "--data", "/shared/val", "--out", "/shared/ap"], None),
        (["evaluate", "--help"], None),
    ],
)
def test_warns_where_results_would_be_lost(client, words, lost):
    done = submit("--", *words)
    assert done.exit_code == 0, done.output
    assert (f"{lost} is in the job's own directory" in done.stderr) if lost else ("own directory" not in done.stderr)


def test_wait_shows_the_end_of_a_failed_log_and_has_its_exit_code(client):
    done = submit("--wait", "--", "--version")
    assert done.exit_code == 2
    assert done.stdout.splitlines() == [f"line {number}" for number in range(60, 100)]
    assert "job-1 FAILED, exit code 2" in done.stderr


def test_ctrl_c_leaves_the_job_running(client, monkeypatch):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster_job, "follow", interrupted)
    monkeypatch.setattr(cluster_job, "wait", interrupted)
    for how in ("--follow", "--wait"):
        done = submit(how, "--", "--version")
        assert done.exit_code == 130 and "job-1 goes on" in done.stderr and "jobs stop job-1" in done.stderr
