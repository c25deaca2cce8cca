"""Our configuration as Ray objects: the cluster, the workers and what each may use."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from pipeline import config as ours
from pipeline.errors import UserError

IDLE_PROCESS_MS = 600_000
MOST_CPU_WORKERS = 8  # without GPUs; more than that is a cluster's choice


class ClusterError(UserError):
    """The cluster cannot serve the run."""


@dataclass(frozen=True)
class Layout:
    """How many workers, and what each has."""

    workers: int
    gpus: float  # a worker
    cpus: float  # a worker
    decode_cpus: float = 0.0  # a worker, for the tasks that decode for it elsewhere in the cluster

    @property
    def threads(self) -> int:
        """Threads of a worker's computation."""
        return max(1, int(self.cpus))

    @property
    def resources(self) -> dict[str, float]:
        """For Ray."""
        resources = {"CPU": self.cpus}
        if self.gpus:
            resources["GPU"] = self.gpus
        return resources


def start_ray(config: ours.ClusterConfig) -> None:
    """Join the cluster of `address` or RAY_ADDRESS, or start a Ray of our own on this machine's loopback."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; spares its warning
    # Ray ends idle processes beyond the free CPUs after a second. Where training has all CPUs, each read task would
    # start a Python of its own, and that cost more than the training step. A cluster has its own setting.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(IDLE_PROCESS_MS))
    # Ray's core prints warnings about its own pools as errors, into the middle of our output.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if ray.is_initialized():
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    try:
        ray.init(
            address=address or "local",  # None would join a cluster that somebody started on this machine
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="ERROR",
            namespace="maskrcnn",
        )
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # its progress is ours to show
    except ConnectionError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address} ({error}); check cluster.address or RAY_ADDRESS, "
            "or leave both empty to start one on this machine"
        ) from error


def plan_workers(config: ours.ClusterConfig, batch_images: int | None = None, decode: ours.Decode = "worker") -> Layout:
    """The layout for the running cluster.

    `batch_images` has to divide over the workers; None for prediction, where nothing has to.

    With `decode` "cluster" half of the CPUs are left to the tasks that decode, unless config.cpus_per_worker says how
    many the workers take.

    By default one worker a GPU, or without GPUs one a CPU (at most 8, and so many that the batch divides). CPUs are
    shared out among the workers, whose threads decode; reading shards claims none.

    Raises:
        ClusterError: the batch does not divide, or the cluster is too small.
    """
    total = ray.cluster_resources()
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    gpus_per_worker = config.gpus_per_worker if config.gpus_per_worker is not None else (1.0 if gpus else 0.0)
    if config.workers is not None:
        workers = config.workers
        if batch_images is not None and batch_images % workers:
            fits = [w for w in range(1, batch_images + 1) if batch_images % w == 0]
            raise ClusterError(
                f"train.batch_images={batch_images} does not divide over cluster.workers={workers}; "
                f"use a multiple of {workers} for the batch, or one of {fits} workers"
            )
    else:
        most = int(gpus / gpus_per_worker) if gpus_per_worker else min(int(cpus), MOST_CPU_WORKERS)
        workers = max(w for w in range(1, max(most, 1) + 1) if batch_images is None or batch_images % w == 0)
    if workers * gpus_per_worker > gpus:
        raise ClusterError(
            f"{workers} workers with {gpus_per_worker:g} GPU each need {workers * gpus_per_worker:g} GPUs, the cluster "
            f"has {gpus:g}; lower cluster.workers, or set cluster.gpus_per_worker=0 to train on CPUs"
        )
    share = (cpus if decode == "worker" else cpus / 2) / workers
    whole = float(int(share)) if share >= 1 else share  # Ray takes whole CPUs, or a fraction of one
    each = whole if config.cpus_per_worker is None else config.cpus_per_worker
    if each <= 0 or workers * each > cpus + 1e-6:  # the tolerance is float64's: shares add up to the whole
        raise ClusterError(
            f"{workers} workers with {each:g} CPU each need {workers * each:g} CPUs, the cluster has {cpus:g}; "
            "lower cluster.workers or cluster.cpus_per_worker"
        )
    if decode == "worker":
        return Layout(workers, gpus_per_worker, each)
    left = (cpus - workers * each) / workers
    if left <= 0:
        raise ClusterError(
            f"data.decode=cluster decodes on CPUs that no worker claims, and {workers} workers with {each:g} CPU each "
            f"claim all {cpus:g}; lower cluster.cpus_per_worker, or set data.decode=worker"
        )
    return Layout(workers, gpus_per_worker, each, left)


def scaling_config(layout: Layout) -> ScalingConfig:
    """Ray Train's view of the layout."""
    return ScalingConfig(num_workers=layout.workers, use_gpu=layout.gpus > 0, resources_per_worker=layout.resources)


def torch_config(layout: Layout) -> TorchConfig:
    """NCCL between GPUs, Gloo between CPUs."""
    return TorchConfig(backend="nccl" if layout.gpus else "gloo")


def run_config(config: ours.RunConfig, runs_dir: Path, name: str) -> RunConfig:
    """Storage, failures and how many checkpoints stay."""
    return RunConfig(
        name=name,
        storage_path=str(runs_dir),
        failure_config=FailureConfig(max_failures=config.cluster.max_failures),
        checkpoint_config=CheckpointConfig(num_to_keep=config.train.keep_checkpoints),
    )
