"""One MLflow run: config, metrics, AP, files. A continued training goes on in it: its directory says which it is.

    tracker = Tracker.start(store_uri(None, runs_dir), "maskrcnn", "shapes-r18", runs_dir / "shapes-r18")
    tracker.log_config(config, text)
    tracker.log_metrics(step, {"loss/total": 1.2, "images_per_second": 14.0})
    tracker.log_ap(step, read_ap_json(path))
    tracker.log_artifact(path, "pictures")
    tracker.finish()

There is no global "active run", so several trackers may live in one process. Use one from one thread (rank 0's).
A store that is away is waited for. Meanwhile metrics lie in the run's directory, also after a kill.
"""

import getpass
import json
import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.data.generation import write_whole
from pipeline.errors import UnavailableError
from pipeline.evaluation.tables import Numbers
from pipeline.tracking.mlflow_store import PASSING, connect, resolve_uri, ui_command

Status = Literal["FINISHED", "FAILED", "KILLED"]

RUN_FILE = "mlflow.json"  # in the directory of a run: names are not enough where a team shares a server
UNSENT_FILE = "mlflow_unsent.json"  # there too: metrics that the store did not take yet
CHANGED_TAG = "maskrcnn.config_changed"
# MLflow's limits; servers of older versions have the smaller ones used here
_METRICS_A_CALL, _PARAMS_A_CALL = 1000, 100
_PARAM_CHARACTERS, _TAG_CHARACTERS, _NAME_CHARACTERS = 500, 5000, 250
_PLACES = 500  # metrics held back at most
_HOLD_SECONDS = 10.0
_RETRY_SECONDS = 60.0
_PATIENCE_SECONDS = 300.0  # at the end of a run, when nothing else is left to do
_LONGEST_WAIT_SECONDS = 30.0

_log = logging.getLogger(__name__)


class TrackingError(UnavailableError):
    """The store did not take the end of a run."""


class Tracker:
    """Writes one run. Metrics are held back and sent together; everything else is sent at once."""

    def __init__(
        self, client: Any, uri: str, experiment_id: str, run_id: str, resumed: bool, directory: Path | None = None
    ) -> None:
        self._client = client
        self._unsent = None if directory is None else directory / UNSENT_FILE
        self._buffer = _read_unsent(self._unsent, run_id)
        self._flush_at = time.monotonic() + _HOLD_SECONDS
        self._answers = True  # False: the last attempt to send failed
        self.uri = uri
        self.experiment_id = experiment_id
        self.run_id = run_id
        self.resumed = resumed  # True: the run was there before

    @classmethod
    def start(cls, uri: str, experiment: str, run_name: str, directory: Path, parent: str | None = None) -> "Tracker":
        """The run that `directory` says it had in this experiment, running again, or else a new one.

        Args:
            uri: of the store.
            experiment: made if it is not there.
            run_name: of a new one.
            directory: of the training, the trial or the search; made if it is not there. `RUN_FILE` in it says which
                run is its own.
            parent: MLflow's page shows a new one below the run with this id.
        """
        uri = resolve_uri(uri)
        client, experiment_id = connect(uri, experiment)
        run_id = _earlier(client, experiment_id, directory / RUN_FILE)
        if run_id is not None:
            client.update_run(run_id, status="RUNNING")
            return cls(client, uri, experiment_id, run_id, resumed=True, directory=directory)
        tags = {"mlflow.user": _user(), "mlflow.source.name": "maskrcnn"}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        run_id = str(client.create_run(experiment_id, run_name=run_name, tags=tags).info.run_id)
        directory.mkdir(parents=True, exist_ok=True)
        written = {"run_id": run_id, "uri": uri, "experiment": experiment}
        write_whole(directory / RUN_FILE, json.dumps(written, indent=2).encode())
        return cls(client, uri, experiment_id, run_id, resumed=False, directory=directory)

    def log_config(self, config: Mapping[str, Any], text: str) -> dict[str, tuple[str, str]]:
        """The resolved config as parameters (dotted names) and as the artifact config.yaml (`text`).

        MLflow's parameters cannot change. Where a continued run has another value, the parameter keeps the first one,
        the tag `maskrcnn.config_changed` says what changed, and config.yaml is the newest.

        Returns:
            What changed since the run began: dotted name -> (first value, value now).
        """
        from mlflow.entities import Param

        now = {_name(key): _shorten(value, _PARAM_CHARACTERS) for key, value in flatten(config).items()}
        before = self._client.get_run(self.run_id).data
        first = before.params
        new = [Param(key, value) for key, value in now.items() if key not in first]
        for start in range(0, len(new), _PARAMS_A_CALL):
            self._client.log_batch(self.run_id, params=new[start : start + _PARAMS_A_CALL])
        changed = {key: (first[key], value) for key, value in now.items() if first.get(key, value) != value}
        if changed:
            note = "; ".join(f"{key}: {old} -> {value}" for key, (old, value) in changed.items())
            self.log_tags({CHANGED_TAG: note})
        elif CHANGED_TAG in before.tags:
            self.log_tags({CHANGED_TAG: "nothing any more"})
        self.log_text(text, "config.yaml")
        return changed

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars of one step, such as {"loss/total": 1.2}. Sent every 10 seconds, every 500 values, and at the end."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._buffer += [Metric(_name(key), float(value), now, step) for key, value in values.items()]
        if time.monotonic() >= self._flush_at or (self._answers and len(self._buffer) >= _PLACES):
            self.try_to_flush()

    def log_ap(self, step: int, aps: Mapping[str, Numbers]) -> None:
        """`mask/AP`, `mask/AP50`, ... and `mask/AP/person` for each of {"box": ..., "mask": ..., ...}, 0..1.

        Of Cityscapes' also `mask50/AP/person`, which is a class's AP50. Numbers that are undefined (no ground truth of
        that size or class) are left out.
        """
        values: dict[str, float] = {}
        for task, ap in aps.items():
            values |= {f"{task}/{name}": value for name, value in ap.stats.items()}
            for name, value in ap.per_class.items():
                key = f"{task}/AP/{_part(name)}"
                while key in values:  # two names may differ only in characters that MLflow does not take
                    key += "_"
                values[key] = value
        self.log_metrics(step, {key: value for key, value in values.items() if not math.isnan(value)})

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Facts about the run, such as {"mlflow.source.git.commit": ..., "dataset": fingerprint, "ray": version}."""
        from mlflow.entities import RunTag

        entries = [RunTag(_name(key), _shorten(value, _TAG_CHARACTERS)) for key, value in tags.items()]
        for start in range(0, len(entries), _PARAMS_A_CALL):
            self._client.log_batch(self.run_id, tags=entries[start : start + _PARAMS_A_CALL])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, or a directory under its own name, into the run's `folder`. CSV files show as tables.

        Raises:
            TrackingError: the store stayed away for minutes.
        """
        from mlflow.exceptions import MlflowException

        if not path.exists():
            raise FileNotFoundError(f"an artifact to log must exist, got {path}; write it first")
        try:
            self._patiently(lambda: self._client.log_artifact(self.run_id, str(path), folder), _PATIENCE_SECONDS)
        except MlflowException as error:
            raise TrackingError(
                f"MLflow at {self.uri} did not take {path} ({_first_line(error)}); it stays there, and "
                "the same command sends it once the server answers"
            ) from error

    def try_to_log_artifact(self, path: Path, folder: str | None = None) -> None:
        """`log_artifact`, but a server that is away must not end a training: the files stay where they are."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_artifact(self.run_id, str(path), folder)
        except (MlflowException, OSError) as error:
            _log.warning("MLflow at %s did not take %s (%s); it stays there", self.uri, path, _first_line(error))

    def log_text(self, text: str, name: str) -> None:
        """Store `text` as the artifact `name`, such as "config.yaml"."""
        self._client.log_text(self.run_id, text, name)

    def flush(self) -> None:
        """Send the metrics that are held back. Raises if the store does not take them; they are kept then."""
        while self._buffer:
            self._client.log_batch(self.run_id, metrics=self._buffer[:_METRICS_A_CALL])
            del self._buffer[:_METRICS_A_CALL]
        if self._unsent is not None:
            self._unsent.unlink(missing_ok=True)
        self._answers = True
        self._flush_at = time.monotonic() + _HOLD_SECONDS

    def finish(self, status: Status = "FINISHED") -> None:
        """Send what is held back and close the run. At the end of one that FINISHED, the store is waited for.

        Raises:
            TrackingError: it stayed away for minutes. Where the run did not finish that is a warning, as something
                else went wrong that must not be hidden. The metrics are kept; the same run, started again, sends them.
        """
        from mlflow.exceptions import MlflowException

        patience_seconds = _PATIENCE_SECONDS if status == "FINISHED" else 0.0
        try:
            self._patiently(self.flush, patience_seconds)
            self._patiently(lambda: self._client.set_terminated(self.run_id, status), patience_seconds)
        except MlflowException as error:
            self._keep()
            kept = f"{len(self._buffer)} metrics are kept in {self._unsent}; " if self._buffer else ""
            problem = (
                f"MLflow at {self.uri} did not take the end of this run ({_first_line(error)}); {kept}"
                "the same command sends it once the server answers"
            )
            if status == "FINISHED":
                raise TrackingError(problem) from error
            _log.warning("%s", problem)

    def finish_other(self, run_id: str, status: Status, tags: Mapping[str, str]) -> None:
        """Close another run of the store, whose process is gone. The store is not waited for.

        Raises:
            TrackingError: it did not take that now.
        """
        from mlflow.exceptions import MlflowException

        other = Tracker(self._client, self.uri, self.experiment_id, run_id, resumed=True)
        try:
            other.log_tags(tags)
            self._client.set_terminated(run_id, status)
        except MlflowException as error:
            raise TrackingError(
                f"MLflow at {self.uri} did not take the end of run {run_id}: {_first_line(error)}"
            ) from error

    def is_open(self, run_id: str) -> bool:
        """Whether another run of the store has not ended there. Raises TrackingError."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.status == "RUNNING")
        except MlflowException as error:
            raise TrackingError(f"MLflow at {self.uri} did not tell of run {run_id}: {_first_line(error)}") from error

    def where(self) -> str:
        """One line for people: how to see this run."""
        page = f"#/experiments/{self.experiment_id}/runs/{self.run_id}"
        if self.uri.startswith("sqlite"):
            return f"{ui_command(self.uri)}, then http://127.0.0.1:5000/{page}"
        return f"{self.uri.rstrip('/')}/{page}"

    def try_to_flush(self) -> None:
        """`flush`, but a server that is away for a while must not end a training: the metrics wait for it."""
        from mlflow.exceptions import MlflowException

        try:
            self.flush()
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":  # would never be taken
                raise
            self._answers = False
            self._keep()
            self._flush_at = time.monotonic() + _RETRY_SECONDS
            _log.warning(
                "MLflow at %s did not take %d metrics (%s); they are kept and sent again in %.0f s",
                *(self.uri, len(self._buffer), _first_line(error), _RETRY_SECONDS),
            )

    def _keep(self) -> None:
        if self._unsent is not None and self._buffer:
            metrics = [[m.key, m.value, m.timestamp, m.step] for m in self._buffer]
            write_whole(self._unsent, json.dumps({"run_id": self.run_id, "metrics": metrics}).encode())

    def _patiently(self, send: Callable[[], Any], patience_seconds: float) -> None:
        """`send`, again and again while the store is away. Raises what it says in the end, or what will not pass."""
        from mlflow.exceptions import MlflowException

        end, wait = time.monotonic() + patience_seconds, 1.0
        while True:
            try:
                send()
                return
            except MlflowException as error:
                if error.error_code not in PASSING or time.monotonic() + wait > end:
                    raise
                if wait == 1.0:
                    _log.warning(
                        "MLflow at %s is away (%s); waiting for it, at most %.0f s",
                        *(self.uri, _first_line(error), patience_seconds),
                    )
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)


def _read_unsent(path: Path | None, run_id: str) -> list[Any]:
    """Metrics that an earlier life of a run could not send."""
    from mlflow.entities import Metric

    if path is None or not path.exists():
        return []
    kept = json.loads(path.read_bytes())
    return [Metric(*entry) for entry in kept["metrics"]] if kept["run_id"] == run_id else []


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]


def _earlier(client: Any, experiment_id: str, path: Path) -> str | None:
    """The run that a directory had, unless it is of another store or experiment, or was deleted."""
    from mlflow.exceptions import MlflowException

    if not path.exists():
        return None
    run_id = str(json.loads(path.read_bytes())["run_id"])
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    there = found.info.experiment_id == experiment_id and found.info.lifecycle_stage == "active"
    return run_id if there else None


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"train": {"steps": 200}} -> {"train.steps": "200"}; lists and null as in JSON."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _part(text: str) -> str:
    """One part of a metric's name: what MLflow does not take becomes "_", and a slash too."""
    clean = re.sub(r"[^\w.\- :]", "_", text).strip()
    return clean if clean.strip(".") else "_"


def _name(key: str) -> str:
    return "/".join(_part(part) for part in key.split("/"))[:_NAME_CHARACTERS]


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return "unknown"
