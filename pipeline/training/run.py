"""One training run as the driver sees it: all is checked before anything starts, then Ray Train runs the loop."""

import _thread
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from queue import Empty
from typing import Any

from ray.train.torch import TorchTrainer
from ray.util.queue import Queue

from model.build import build_model
from pipeline.config import RunConfig
from pipeline.configure import ConfigError, to_yaml
from pipeline.data.shards import Manifest
from pipeline.errors import UserError
from pipeline.training.checkpoint import Meta, initialise, latest_checkpoint, read_meta, versions
from pipeline.training.cluster import Layout, run_config, scaling_config, torch_config
from pipeline.training.evaluations import mark_logged, not_logged
from pipeline.training.freezing import describe, outputs_of
from pipeline.training.loop import Job, train_worker
from pipeline.training.resolve import resolve
from pipeline.training.transfer import Transfer, transfer_weights
from pipeline.training.validation import Validator, validation_config

Event = dict[str, Any]  # {"kind": "metrics" | "checkpoint" | ..., ...}: see loop.py for what workers send


class NotTrainableError(UserError):
    """Training cannot go on as it is configured; trying again would give the same."""


@dataclass(frozen=True)
class Run:
    """A run that can start."""

    config: RunConfig  # resolved: classes from the data, absolute paths
    name: str
    directory: Path
    manifest: Manifest  # of data.train
    resume: Path | None  # its newest checkpoint
    done: int  # steps of that
    transfer: Transfer | None = None  # what a new run takes of the weights of other classes


def prepare(config: RunConfig, default_name: str) -> Run:
    """Check a configuration against its data, its weights and an earlier run of the same name.

    Raises:
        ConfigError, DataError, CheckpointError: what would fail later.
    """
    config, manifest = resolve(config)
    name = config.train.name or f"{default_name}-{datetime.now():%Y%m%d-%H%M%S}"
    if "/" in name or name.startswith("."):
        raise ConfigError(f"train.name must be the name of a directory, got {name!r}")
    runs_dir = Path(config.cluster.runs_dir).absolute()
    config = replace(
        config, train=replace(config.train, name=name), cluster=replace(config.cluster, runs_dir=str(runs_dir))
    )
    directory = runs_dir / name
    resume = latest_checkpoint(directory)
    done, transferred = 0, None
    if resume is not None:
        earlier, meta = read_meta(resume)
        _check_continues(earlier, config, meta, manifest, name)
        done = meta.step
    elif config.init.transfer is not None:
        if config.init.weights is None:
            raise ConfigError("init.transfer is set, but init.weights is not; give init.weights=CHECKPOINT")
        transferred = transfer_weights(build_model(config.model), config, manifest.class_names)
    elif config.init.weights is not None:  # a wrong file fails here, not in the workers
        initialise(build_model(config.model), Path(config.init.weights), len(manifest.class_names))
    return Run(config, name, directory, manifest, resume, done, transferred)


def _check_continues(earlier: RunConfig, config: RunConfig, meta: Meta, manifest: Manifest, name: str) -> None:
    """A run continues only where its position in the data and its network still mean the same."""
    same = {
        "model": (earlier.model, config.model),
        "train.batch_images": (earlier.train.batch_images, config.train.batch_images),
        "train.seed": (earlier.train.seed, config.train.seed),
        "optim.lr_factors": (earlier.optim.lr_factors, config.optim.lr_factors),  # momentum lies in order of these
        "optim.layer_decay": (earlier.optim.layer_decay, config.optim.layer_decay),
        "data.drop_empty": (earlier.data.drop_empty, config.data.drop_empty),
        "data.repeat_threshold": (earlier.data.repeat_threshold, config.data.repeat_threshold),
        "data.mix_weights": (earlier.data.mix_weights, config.data.mix_weights),
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
    frozen = describe(run.config.optim, outputs_of(run.config.model))
    if frozen:
        facts["frozen"] = "; ".join(frozen)
    if run.transfer is not None:
        facts["transfer"] = str(run.transfer)
    commit = _git_commit()
    if commit is not None:
        facts["mlflow.source.git.commit"] = commit
    return facts


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


def fit(
    run: Run,
    layout: Layout,
    mlflow_run_id: str | None,
    on_event: Callable[[Event], None],
    evaluators: Layout | None = None,
) -> Path:
    """Train to the end; returns the last checkpoint. Ray must run. Events of the workers come to `on_event`.

    Args:
        run: as prepared.
        layout: of the workers that train.
        mlflow_run_id: goes into the checkpoints.
        on_event: told in another thread, one event after the other. Every finished evaluation comes at least once,
            also when the driver that should have got it was killed.
        evaluators: of those that evaluate while others train, for evaluate.during_training.

    Raises:
        NotTrainableError: the losses are not finite, step after step.
        ray.train.TrainingFailedError: the workers failed too often.
        Exception: what `on_event` raised; the workers are stopped.
    """
    for event in not_logged(run.directory):
        on_event(event)
        mark_logged(event["directory"])
    if run.resume is not None and run.done >= run.config.train.steps:
        return run.resume
    manifest = run.manifest
    keypoint_flip = None if manifest.keypoints is None else manifest.keypoints.flip
    meta = Meta(
        0,
        manifest.class_names,
        manifest.category_ids,
        manifest.fingerprint,
        run.name,
        mlflow_run_id,
        versions(),
        keypoint_flip,
    )
    events = Queue(actor_options={"num_cpus": 0})
    resume = None if run.resume is None else str(run.resume)
    text, directory = to_yaml(run.config), str(run.directory)
    job = Job(text, directory, meta, layout.threads, layout.decode_cpus, events, resume)
    hook = None if evaluators is None else validation_config(Validator(text, directory, evaluators, events))
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=scaling_config(layout),
        torch_config=torch_config(layout),
        run_config=run_config(run.config, run.directory.parent, run.name),
        validation_config=hook,
    )
    refusals: list[Event] = []

    def receive(event: Event) -> None:
        if event["kind"] == "not_finite":
            refusals.append(event)
        if event["kind"] != "evaluated":
            on_event(event)
            return
        for one in not_logged(run.directory):
            on_event(one)
            mark_logged(one["directory"])

    main = threading.current_thread() is threading.main_thread()
    listener = _Listener(events, receive, interrupts=main)
    on_interrupt = signal.getsignal(signal.SIGINT)  # Ray Train sets its own and leaves it there
    listener.start()
    try:
        result = trainer.fit()
    except SystemExit as error:  # what Ray Train makes of ctrl-c, with exit code 0
        raise KeyboardInterrupt from error
    finally:
        try:
            listener.finish()
        finally:
            events.shutdown()
            if main:
                signal.signal(signal.SIGINT, on_interrupt)
    if refusals:
        raise NotTrainableError(str(refusals[0]["error"]))
    if result.error is not None:
        raise result.error
    assert result.checkpoint is not None
    return Path(result.checkpoint.path)


class _Listener(threading.Thread):
    """Hands events on, in their order, while the main thread waits for Ray Train.

    Where that raises, it stops the run as ctrl-c does, the one way into a waiting `fit`, and finish() raises the error.
    A `fit` that waits in another thread than the main one cannot be interrupted: the error comes when it has ended.
    """

    def __init__(self, events: Queue, on_event: Callable[[Event], None], interrupts: bool) -> None:
        super().__init__(name="events", daemon=True)
        self._events, self._on_event, self._interrupts = events, on_event, interrupts
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
            if self._interrupts and not self._ending.is_set():
                _thread.interrupt_main(signal.SIGINT)

    def finish(self) -> None:
        """Wait until all that was sent is handed on."""
        self._ending.set()
        try:
            self.join()
        finally:  # the interruption may come only now
            if self._error is not None:
                raise self._error
