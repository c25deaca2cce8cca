"""One training run as the driver sees it: all is checked before anything starts, then Ray Train runs the loop."""

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from queue import Empty
from typing import Any

from ray.train.torch import TorchTrainer
from ray.util.queue import Queue

from pipeline.config import RunConfig
from pipeline.configure import ConfigError, to_yaml
from pipeline.data.shards import Manifest, load_manifest
from pipeline.data.storage import Storage
from pipeline.training.checkpoint import Meta, initialise, latest_checkpoint, read_meta
from pipeline.training.cluster import Layout, run_config, scaling_config, torch_config
from pipeline.training.loop import Job, train_worker

Event = dict[str, Any]  # {"kind": "metrics" | "checkpoint" | ..., ...}: see loop.py for what workers send


@dataclass(frozen=True)
class Run:
    """A run that can start."""

    config: RunConfig  # resolved: classes from the data, absolute paths
    name: str
    directory: Path
    manifest: Manifest  # of data.train
    resume: Path | None  # its newest checkpoint
    done: int  # steps of that


def prepare(config: RunConfig, default_name: str) -> Run:
    """Check a configuration against its data, its weights and an earlier run of the same name.

    Raises:
        ConfigError, DataError, CheckpointError: what would fail later.
    """
    if config.data.train is None or config.data.val is None:
        missing = "data.train" if config.data.train is None else "data.val"
        raise ConfigError(f"{missing} is not set; give a directory that `maskrcnn shard` wrote: {missing}=DIRECTORY")
    train, val = Storage.at(config.data.train), Storage.at(config.data.val)
    manifest, held_out = load_manifest(train), load_manifest(val)
    if manifest.class_names != held_out.class_names:
        raise ConfigError(
            "data.train and data.val have different classes: "
            f"{_differing(manifest.class_names, held_out.class_names)}; "
            "shard both from annotation files with the same categories"
        )
    classes = len(manifest.class_names)
    if config.model.classes not in (None, classes):
        raise ConfigError(
            f"model.classes is {config.model.classes}, {train} has {classes}; leave it null to take the data's number"
        )
    weights = None if config.init.weights is None else str(Path(config.init.weights).absolute())
    name = config.train.name or f"{default_name}-{datetime.now():%Y%m%d-%H%M%S}"
    if "/" in name or name.startswith("."):
        raise ConfigError(f"train.name must be the name of a directory, got {name!r}")
    runs_dir = Path(config.cluster.runs_dir).absolute()
    config = replace(
        config,
        model=replace(config.model, classes=classes),
        data=replace(config.data, train=train.uri, val=val.uri),
        init=replace(config.init, weights=weights),
        train=replace(config.train, name=name),
        cluster=replace(config.cluster, runs_dir=str(runs_dir)),
    )
    directory = runs_dir / name
    resume = latest_checkpoint(directory)
    done = 0
    if resume is not None:
        earlier, meta = read_meta(resume)
        _check_continues(earlier, config, meta, manifest, name)
        done = meta.step
    elif weights is not None:
        from model.build import build_model

        initialise(build_model(config.model), Path(weights), classes)  # a wrong file fails here, not in the workers
    return Run(config, name, directory, manifest, resume, done)


def _differing(a: tuple[str, ...], b: tuple[str, ...]) -> str:
    only = [f"{name} (train only)" for name in a if name not in b] + [
        f"{name} (val only)" for name in b if name not in a
    ]
    return ", ".join(only[:6]) or "the same names in another order"


def _check_continues(earlier: RunConfig, config: RunConfig, meta: Meta, manifest: Manifest, name: str) -> None:
    """A run continues only where its position in the data and its network still mean the same."""
    same = {
        "model": (earlier.model, config.model),
        "train.batch_images": (earlier.train.batch_images, config.train.batch_images),
        "train.seed": (earlier.train.seed, config.train.seed),
        "data.drop_empty": (earlier.data.drop_empty, config.data.drop_empty),
        "data.window_groups": (earlier.data.window_groups, config.data.window_groups),
        "data.aspect_buckets": (earlier.data.aspect_buckets, config.data.aspect_buckets),
        "the data in data.train": (meta.dataset_fingerprint[:12], manifest.fingerprint[:12]),
    }
    for key, (before, now) in same.items():
        if before != now:
            raise ConfigError(
                f"run {name} exists and has another {key}: {before} before, {now} now; "
                "it can only continue as it was: choose another train.name for a new run"
            )


def tags(run: Run, layout: Layout) -> dict[str, str]:
    """What identifies a run beside its configuration."""
    facts = {
        "dataset": run.manifest.fingerprint,
        "workers": f"{layout.workers} x {'GPU' if layout.gpus else f'{layout.cpus:g} CPU'}",
        **{f"version.{package}": v for package, v in versions().items()},
    }
    commit = _git_commit()
    if commit is not None:
        facts["mlflow.source.git.commit"] = commit
    return facts


def versions() -> dict[str, str]:
    """Of what decides a run's numbers."""
    return {package: version(package) for package in ("maskrcnn-ray", "torch", "torchvision", "ray", "pyarrow")}


def _git_commit() -> str | None:
    """The commit of the code, where it is a checkout."""
    here = Path(__file__).parent
    try:
        shown = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:  # no git on this machine
        return None
    return shown.stdout.strip() if shown.returncode == 0 else None


def fit(run: Run, layout: Layout, mlflow_run_id: str | None, on_event: Callable[[Event], None]) -> Path:
    """Train to the end; returns the last checkpoint. Ray must run. Events of the workers come to `on_event`."""
    if run.resume is not None and run.done >= run.config.train.steps:
        return run.resume
    manifest = run.manifest
    meta = Meta(
        0, manifest.class_names, manifest.category_ids, manifest.fingerprint, run.name, mlflow_run_id, versions()
    )
    events = Queue(actor_options={"num_cpus": 0})
    job = Job(to_yaml(run.config), str(run.directory), meta, layout.threads, events)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=scaling_config(layout),
        torch_config=torch_config(layout),
        run_config=run_config(run.config, run.directory.parent, run.name),
    )
    listener = _Listener(events, on_event)
    listener.start()
    try:
        result = trainer.fit()
    finally:
        listener.finish()
        events.shutdown()
    if result.error is not None:
        raise result.error
    assert result.checkpoint is not None
    return Path(result.checkpoint.path)


class _Listener(threading.Thread):
    """Hands events on, in their order, while the main thread waits for Ray Train."""

    def __init__(self, events: Queue, on_event: Callable[[Event], None]) -> None:
        super().__init__(name="events", daemon=True)
        self._events, self._on_event = events, on_event
        self._ending = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            while True:
                ending = self._ending.is_set()
                try:
                    while True:
                        self._on_event(self._events.get(block=False))
                except Empty:
                    if ending:
                        return
                time.sleep(0.2)
        except BaseException as error:  # raised again by finish(), in the main thread
            self._error = error

    def finish(self) -> None:
        """Wait until all that was sent is handed on."""
        self._ending.set()
        self.join()
        if self._error is not None:
            raise self._error
