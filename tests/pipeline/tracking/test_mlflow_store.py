import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import UnavailableError, UserError
from pipeline.tracking import mlflow_store
from pipeline.tracking.mlflow_store import connect, default_uri, open_ui, resolve_uri, ui_command


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_uris_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_uri(Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert default_uri(tmp_path / "x") == f"sqlite:///{tmp_path}/x/mlflow.db"
    assert resolve_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri("http://host:5000") == "http://host:5000"
    assert list(tmp_path.iterdir()) == []
    for wrong in ("./mlruns", "mlflow.db", "sqlite:///a?b/mlflow.db"):
        with pytest.raises(UserError):
            resolve_uri(wrong)


def test_ui_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ui_command(default_uri(Path("runs"))) == "maskrcnn ui"
    assert ui_command("sqlite:////data/my runs/mlflow.db") == "maskrcnn ui --runs '/data/my runs'"
    assert ui_command("sqlite:////data/x.db") == "mlflow server --backend-store-uri sqlite:////data/x.db"
    assert ui_command("http://host:5000") == "open http://host:5000"


def test_the_first_connection_is_quiet_and_leaves_no_active_experiment(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from pipeline.tracking.mlflow_store import *;"
        "assert 'mlflow' not in sys.modules;"
        "client, experiment = connect(default_uri(Path(sys.argv[1])), 'maskrcnn');"
        "assert connect(default_uri(Path(sys.argv[1])), 'maskrcnn')[1] == experiment;"
        "assert not {'MLFLOW_EXPERIMENT_ID', 'MLFLOW_EXPERIMENT_NAME', 'MLFLOW_TRACKING_URI'} & set(os.environ)"
    )
    runs = tmp_path / "new" / "runs"
    root = Path(mlflow_store.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(runs)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    assert (runs / "mlflow.db").is_file()


def test_an_unreachable_server_is_an_error_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(UnavailableError, match=r"must answer at http://127.0.0.1:\d+, got: .*check track.uri"):
        connect(f"http://127.0.0.1:{free_port()}", "maskrcnn")
    assert time.monotonic() - start < 15


def test_a_store_that_cannot_be_made_and_a_deleted_experiment(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="directory is writable") as refused:
        connect(default_uri(tmp_path / "file"), "maskrcnn")
    assert not isinstance(refused.value, UnavailableError)  # trying again would give the same
    client, experiment = connect(default_uri(tmp_path), "maskrcnn")
    client.delete_experiment(experiment)
    with pytest.raises(UserError, match=f"--experiment-id {experiment}"):
        connect(default_uri(tmp_path), "maskrcnn")


def test_open_ui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    environments: list[dict[str, str]] = []

    def fake(path: str, args: list[str], env: dict[str, str]) -> None:
        calls.append(args)
        environments.append(env)

    monkeypatch.setattr(os, "execve", fake)
    with pytest.raises(UserError, match="train first"):
        open_ui(tmp_path)
    (tmp_path / "mlflow.db").write_text("")
    port = free_port()
    open_ui(tmp_path, port=port)
    (command,) = calls
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert options == {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--backend-store-uri": f"sqlite:///{tmp_path}/mlflow.db",
        "--artifacts-destination": f"file://{tmp_path}/mlartifacts",
    }
    assert environments[0]["PATH"] == os.environ["PATH"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="must be free"):
            open_ui(tmp_path, port=taken.getsockname()[1])
