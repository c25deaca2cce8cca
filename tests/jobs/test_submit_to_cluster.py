"""submit and jobs against a real cluster: two nodes on the loopback that want a token, started and ended here."""

import json
import os
import shutil
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from maskrcnn_process import Maskrcnn, has_proc
from typer.testing import CliRunner, Result

from jobs.main import app
from pipeline.submission.client import connect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), has_proc]

HEAD, SECOND = "127.0.0.2", "127.0.0.3"  # Ray takes 127.0.0.1 for the machine's address on its network
ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef0123456789abcdef0123456789abcdef"
SECRET = "open-sesame-4711"
LONG = """
import os, time
print("so long as", len(os.environ["OUR_SECRET"]), flush=True)
time.sleep(600)
"""


@dataclass(frozen=True)
class Cluster:
    address: str
    head: Maskrcnn
    token: Path

    def nodes(self) -> int:
        request = urllib.request.Request(f"{self.address}/nodes?view=summary")
        request.add_header("Authorization", f"Bearer {TOKEN}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                summary = json.load(answer)["data"]["summary"]
        except (OSError, urllib.error.URLError):
            return 0
        return sum(node["raylet"]["state"] == "ALIVE" for node in summary)


def free_ports(count: int) -> list[str]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HEAD, port)) == 0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    token = folder / "token"
    token.write_text(TOKEN)
    gcs, dashboard, client, *agents = free_ports(5)
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PYTHONPATH": str(ROOT),  # stands for an installed maskrcnn-ray
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    both = ["--block", "--num-cpus=1", "--object-store-memory=80000000"]
    both += ["--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0"]

    def start(host: str, agent: str, *words: str) -> Maskrcnn:
        own = [f"--node-ip-address={host}", f"--dashboard-agent-listen-port={agent}"]
        return Maskrcnn("start", *both, *own, *words, cwd=folder, program="ray", environment=environment)

    place = ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    with start(HEAD, agents[0], "--head", f"--port={gcs}", *place) as head:
        cluster = Cluster(f"http://127.0.0.1:{dashboard}", head, token)
        head.wait_until(lambda: listens(int(gcs)), 120)
        # A directory of its own, as on another machine: a node unpacks a job's files anew where they lie already, and
        # the job stands in them.
        own = tempfile.mkdtemp(prefix="mr-")
        with start(SECOND, agents[1], f"--address={HEAD}:{gcs}", f"--temp-dir={own}") as second:
            second.wait_until(lambda: cluster.nodes() == 2, 120)
            yield cluster
    shutil.rmtree(own, ignore_errors=True)


@pytest.fixture
def token(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.token))


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def job_of(result: Result) -> str:
    return next(line.split()[1] for line in result.stderr.splitlines() if line.startswith("job "))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a user: a job starts in a copy of it."""
    (tmp_path / "notes.txt").write_text("hello")
    return tmp_path


def test_a_verb_runs_on_the_cluster_with_the_files_sent_along(cluster, token, folder, shapes, tmp_path_factory):
    shutil.copytree(shapes / "coco/val", folder / "val")
    shutil.copy(shapes / "coco/annotations/instances_val.json", folder / "val.json")
    to = tmp_path_factory.mktemp("out") / "shards"
    words = ["shard", "coco", "--annotations", "val.json", "--images", "val", "--out", to, "--workers", "2"]
    words += ["--rows-per-shard", "4"]  # two shards, or it would need no Ray
    done = call("submit", "--address", cluster.address, "--directory", folder, "--follow", "--", *words)
    assert done.exit_code == 0, done.output
    assert "SUCCEEDED" in done.stderr and "package     10 files" in done.stderr
    assert "8/8 (100 %)" in done.stdout  # the progress lines of the job
    assert json.loads((to / "manifest.json").read_text())["counts"]["images"] == 8
    ran = connect(cluster.address).get_job_info(job_of(done))
    assert ran.driver_info is not None, "it used this cluster, not a Ray of its own"
    listed = call("jobs", "list", "--address", cluster.address)
    assert listed.exit_code == 0 and job_of(done) in listed.stdout


def test_a_job_that_dies_at_import_shows_its_traceback(cluster, token, folder):
    (folder / "jobs").mkdir()
    (folder / "jobs/__init__.py").write_text("import a_module_that_is_missing\n")
    done = call("submit", "--address", cluster.address, "--directory", folder, "--follow", "--", "--version")
    assert done.exit_code == 1, done.output
    assert "Traceback (most recent call last)" in done.stdout and "jobs/__init__.py" in done.stdout
    assert "No module named 'a_module_that_is_missing'" in done.stdout
    assert "FAILED, exit code 1" in done.stderr


def test_a_long_job_is_listed_read_and_stopped_and_its_secret_is_not_shown(cluster, token, folder, monkeypatch):
    (folder / "jobs").mkdir()
    (folder / "jobs/__init__.py").touch()
    (folder / "jobs/__main__.py").write_text(LONG)
    monkeypatch.setenv("OUR_SECRET", SECRET)
    words = ["submit", "--address", cluster.address, "--directory", folder, "--secret", "OUR_SECRET", "--", "--version"]
    sent = call(*words)
    assert sent.exit_code == 0, sent.output
    job = job_of(sent)
    end = time.monotonic() + 60
    while f"so long as {len(SECRET)}" not in (logged := call("jobs", "logs", job, "--address", cluster.address)).stdout:
        assert time.monotonic() < end, logged.output
        time.sleep(0.3)
    listed = call("jobs", "list", "--address", cluster.address)
    assert "RUNNING" in listed.stdout and "--version" in listed.stdout
    stopped = call("jobs", "stop", job, "--address", cluster.address)
    assert stopped.exit_code == 0 and stopped.stdout.split() == [job, "STOPPED"], stopped.output
    followed = call("jobs", "logs", job, "--follow", "--address", cluster.address)
    assert followed.exit_code != 0 and "so long as" in followed.stdout
    for result in (sent, logged, listed, stopped, followed):
        assert SECRET not in result.output


def test_what_the_cluster_refuses(cluster, token, tmp_path, monkeypatch):
    unknown = call("jobs", "logs", "no-such-job", "--address", cluster.address)
    assert unknown.exit_code == 2 and "knows no job no-such-job" in unknown.stderr
    wrong = tmp_path / "wrong"
    wrong.write_text(TOKEN[::-1])
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(wrong))
    refused = call("jobs", "list", "--address", cluster.address)
    assert refused.exit_code == 2 and "does not accept our token" in refused.stderr
    assert TOKEN[::-1] not in refused.output
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    missing = call("jobs", "list", "--address", cluster.address)
    assert missing.exit_code == 2 and "wants a token, and there is none" in missing.stderr
