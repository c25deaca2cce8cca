"""A server of a team: `mlflow server` itself, on the loopback, which asks for a password."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipeline.errors import UserError
from pipeline.tracking import mlflow_store
from pipeline.tracking.mlflow_run import RUN_FILE, Tracker
from pipeline.tracking.mlflow_store import connect, credentials, fetch_artifacts, store_uri

pytest.importorskip("flask_wtf", reason="the server's passwords need mlflow[auth]")

USER, PASSWORD = "admin", "correct-horse-battery"
ROOT = Path(mlflow_store.__file__).parents[2]

# Another process of the team: logs one run, and says which
LOGS = """
import sys
from pathlib import Path
from pipeline.tracking.mlflow_run import Tracker
uri, name, directory = sys.argv[1:]
tracker = Tracker.start(uri, "team", name, Path(directory))
print(tracker.run_id, flush=True)
tracker.log_config({"train": {"name": name}}, "train: {}")
sys.stdin.readline()
for step in range(1200):
    tracker.log_metrics(step, {"loss/total": 1 / (step + 1)})
weights = Path(directory) / "model.safetensors"
weights.write_bytes(bytes(3_000_000))
tracker.log_artifact(weights, "checkpoint")
tracker.finish()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address. Its tables and its users lie in sqlite files."""
    root = tmp_path_factory.mktemp("server")
    (root / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{root}/users.db\n"
        f"admin_username = {USER}\nadmin_password = {PASSWORD}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{root}/mlflow.db"]
    command += ["--artifacts-destination", f"file://{root}/artifacts"]
    own = {
        "MLFLOW_AUTH_CONFIG_PATH": str(root / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for this test",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True, cwd=root
        )
    try:
        uri = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while not _answers(uri):
            assert process.poll() is None and time.monotonic() < deadline, (root / "log").read_text()[-3000:]
            time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the team: knows the password."""
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


def test_strangers_are_told_what_is_missing(server: str, member: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-horse-battery")
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of the environment"):
        connect(server, "team")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    with pytest.raises(UserError, match=r"set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or .*TOKEN, in"):
        connect(server, "team")
    assert credentials() == {}


def test_two_runs_of_one_name_at_once(server: str, member: None, tmp_path: Path) -> None:
    directories = [tmp_path / who / "r50-1x" for who in ("ann", "bob")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOGS, server, "r50-1x", str(directory)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for directory in directories
    ]
    try:
        ids = []
        for process in processes:  # both have begun, in an experiment that neither found
            assert process.stdout is not None
            ids.append(process.stdout.readline().strip())
        assert len(set(ids)) == 2, [process.communicate()[1] for process in processes]
        for process in processes:
            _, problems = process.communicate("go\n", timeout=120)
            assert process.returncode == 0, problems
    finally:
        for process in processes:
            process.kill()
            process.wait()
    client = MlflowClient(tracking_uri=server)
    for run_id, directory in zip(ids, directories, strict=True):
        run = client.get_run(run_id)
        assert (run.info.status, run.info.run_name) == ("FINISHED", "r50-1x")
        history = client.get_metric_history(run_id, "loss/total")
        assert [(m.step, m.value) for m in history] == [(step, 1 / (step + 1)) for step in range(1200)]
        fetched = fetch_artifacts(server, run_id, "checkpoint", tmp_path)
        assert (fetched / "model.safetensors").stat().st_size == 3_000_000
        assert PASSWORD not in str(run.to_dictionary()) + (directory / RUN_FILE).read_text()
        again = Tracker.start(server, "team", "r50-1x", directory)
        assert (again.run_id, again.resumed) == (run_id, True)
        again.finish()


def test_a_trial_lies_below_its_search(server: str, member: None, tmp_path: Path) -> None:
    search = Tracker.start(server, "team", "search", tmp_path / "search")
    trial = Tracker.start(server, "team", "search-trial_0000", tmp_path / "search/trials/trial_0000", search.run_id)
    search.finish_other(trial.run_id, "FINISHED", {"stopped": "early"})
    search.finish()
    found = MlflowClient(tracking_uri=server).get_run(trial.run_id)
    assert found.data.tags["mlflow.parentRunId"] == search.run_id and found.data.tags["stopped"] == "early"
    assert trial.where() == f"{server}/#/experiments/{trial.experiment_id}/runs/{trial.run_id}"


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, member: None) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.team:5000")
    assert store_uri(None, tmp_path) == "http://mlflow.team:5000"
    assert store_uri("http://other:5000", tmp_path) == "http://other:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert store_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    assert credentials() == {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    with pytest.raises(UserError, match=r"no user or password, got one for host:5000; set MLFLOW_") as refused:
        store_uri("https://ann:secret@host:5000", tmp_path)
    assert "secret" not in str(refused.value)
