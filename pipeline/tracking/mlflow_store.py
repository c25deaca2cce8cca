"""Where runs are kept: the address of the MLflow store, a connection to it, and its web page.

Without a server, the store is a sqlite file with a folder for artifacts beside it: runs/mlflow.db, runs/mlartifacts.
A server's user and password, or token, come from MLflow's own environment variables (`CREDENTIALS`); they are never
part of an address, which is written into configs and shown.
"""

import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from pipeline.errors import UnavailableError, UserError

_SQLITE = "sqlite:///"
_DATABASE = "mlflow.db"
_ARTIFACTS = "mlartifacts"
_URI_VARIABLE = "MLFLOW_TRACKING_URI"
_CONNECT_SECONDS = 10  # how long a server may take for its first answer
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")  # no connection is the first

# What an MLflow server may ask of its clients; read by MLflow from the environment of the process that logs
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def default_uri(runs_dir: Path) -> str:
    """Address of the store in `runs_dir`, absolute because Ray's workers have a working directory of their own."""
    return resolve_uri(f"{_SQLITE}{runs_dir.absolute()}/{_DATABASE}")


def store_uri(configured: str | None, runs_dir: Path) -> str:
    """Where to log: `configured` (track.uri), else the environment's MLFLOW_TRACKING_URI, else sqlite in `runs_dir`."""
    uri = configured or os.environ.get(_URI_VARIABLE)
    return resolve_uri(uri) if uri else default_uri(runs_dir)


def credentials() -> dict[str, str]:
    """Those of this process, for another one that logs to the same server: names and values. Never log them."""
    return {name: os.environ[name] for name in CREDENTIALS if name in os.environ}


def resolve_uri(uri: str) -> str:
    """`uri` with an absolute path if it is a sqlite file. Call it where the user's working directory is still ours.

    Raises:
        UserError: MLflow cannot log there, or the address holds a password.
    """
    if uri.startswith(_SQLITE):
        path = uri.removeprefix(_SQLITE)
        if "?" in path or "#" in path:
            raise UserError(f"a sqlite store's path must not contain '?' or '#', got {path}; use another directory")
        return f"{_SQLITE}{Path(path).absolute()}"
    if "@" in urlsplit(uri).netloc:
        raise UserError(
            f"track.uri is written into configs and logs and must hold no user or password, got one for "
            f"{urlsplit(uri).netloc.rpartition('@')[2]}; set {CREDENTIALS[0]} and {CREDENTIALS[1]} in the environment"
        )
    if "://" not in uri and not uri.startswith("databricks"):
        raise UserError(
            f"track.uri or {_URI_VARIABLE} must be http(s)://HOST:PORT or sqlite:///PATH/mlflow.db, got {uri!r}; "
            "MLflow no longer writes to plain folders: leave both empty for sqlite in cluster.runs_dir"
        )
    return uri


def connect(uri: str, experiment: str) -> tuple[Any, str]:
    """An `MlflowClient` and the id of the experiment, which is made if it is not there.

    MLflow is imported here, not with this module: it takes a second. Its usage reports to its makers are off, unless
    MLFLOW_DISABLE_TELEMETRY=false is set.

    Raises:
        UnavailableError: the store does not answer now.
        UserError: it refuses us, or there is none at this address.
    """
    uri = resolve_uri(uri)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A request is tried again for half a minute, not for four: the step waits for it meanwhile.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    for chatty in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        if uri.startswith(_SQLITE):
            _database(uri).parent.mkdir(parents=True, exist_ok=True)
        with _environment(MLFLOW_HTTP_REQUEST_MAX_RETRIES="0", MLFLOW_HTTP_REQUEST_TIMEOUT=str(_CONNECT_SECONDS)):
            client = MlflowClient(tracking_uri=uri)
            found = client.get_experiment_by_name(experiment)
    except (MlflowException, OSError) as error:
        status = error.get_http_status_code() if isinstance(error, MlflowException) else None
        if uri.startswith(_SQLITE):
            fix = "check that the directory is writable and the file was made by this or an older MLflow"
        elif status in (401, 403):
            given = [name for name in CREDENTIALS if os.environ.get(name)]
            fix = (
                f"{' and '.join(given)} of the environment may not log there: ask who runs the server"
                if given
                else f"set {CREDENTIALS[0]} and {CREDENTIALS[1]}, or {CREDENTIALS[2]}, in the environment"
            )
        else:
            fix = "check track.uri and that the server runs (curl it), or leave track.uri empty for a local store"
        passing = isinstance(error, MlflowException) and error.error_code in PASSING
        kind = UnavailableError if passing else UserError
        raise kind(f"the MLflow store must answer at {uri}, got: {_first_line(error)}; {fix}") from error
    if found is None:
        try:
            return client, str(client.create_experiment(experiment, artifact_location=_artifact_location(uri)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
            found = client.get_experiment_by_name(experiment)
    if found.lifecycle_stage != "active":
        raise UserError(
            f"MLflow experiment {experiment!r} must be active, but it was deleted; choose another track.experiment, or "
            f"bring it back: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return client, str(found.experiment_id)


def fetch_artifacts(uri: str, run_id: str, folder: str, directory: Path) -> Path:
    """The run's artifacts of a folder, below `directory`. Raises UserError where there are none."""
    uri = resolve_uri(uri)
    if uri.startswith(_SQLITE) and not _database(uri).is_file():
        raise UserError(f"there is no MLflow store at {uri}; say where it is: --runs DIRECTORY, or --uri URI")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(tracking_uri=uri)
        client.get_run(run_id)
        if not client.list_artifacts(run_id, folder):
            raise UserError(f"MLflow run {run_id} at {uri} has no artifacts {folder}/; wait for its end, or evaluate")
        return Path(client.download_artifacts(run_id, folder, str(directory)))
    except (MlflowException, OSError) as error:
        raise UserError(f"run {run_id} must be in the MLflow store at {uri}, got: {_first_line(error)}") from error


def ui_command(uri: str) -> str:
    """What a user types (or opens) to see the runs."""
    if not uri.startswith(_SQLITE):
        return f"open {uri}"
    database = _database(uri)
    if database.name != _DATABASE:
        return f"mlflow server --backend-store-uri {shlex.quote(uri)}"
    folder = database.parent
    return "maskrcnn ui" if folder == Path("runs").absolute() else f"maskrcnn ui --runs {shlex.quote(str(folder))}"


def open_ui(runs_dir: Path, host: str = "127.0.0.1", port: int = 5000) -> NoReturn:
    """Become the web server of the runs in `runs_dir` until the user stops it. Only this machine sees it by default."""
    uri = default_uri(runs_dir)
    if not _database(uri).is_file():
        raise UserError(f"{runs_dir} must hold runs ({_DATABASE}), got none; train first, or name another --runs")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"port {port} of {host} must be free, got: {error.strerror}; use another --port") from error
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri, "--artifacts-destination", _artifact_location(uri) or ""]
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
    }
    os.execve(sys.executable, command, {**quiet, **os.environ})


def _database(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE))


def _artifact_location(uri: str) -> str | None:
    """Folder of the artifacts, as a URI; None where a server decides."""
    if uri.startswith(_SQLITE):
        return (_database(uri).parent / _ARTIFACTS).as_uri()
    if uri.startswith(("http://", "https://", "databricks")):
        return None
    raise UserError(
        f"an experiment of a database without a server needs a place for artifacts, got {uri.split('://')[0]}://...; "
        "make it first: mlflow experiments create --experiment-name NAME --artifact-location s3://..."
    )


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300] or type(error).__name__
