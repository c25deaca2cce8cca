"""Our configuration as Ray objects: the cluster, the workers and what each may use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from pipeline import config as ours
from pipeline.ray_cluster import ClusterError, node_resources

SCORE = "score"  # of a checkpoint, in what workers and the evaluation report to Ray Train
MOST_CPU_WORKERS = 8  # without GPUs; more than that is a cluster's choice


@dataclass(frozen=True)
class Layout:
    """How many workers, and what each has."""

    workers: int
    gpus: float  # a worker
    cpus: float  # a worker
    decode_cpus: float = 0.0  # a worker, for the tasks that decode for it elsewhere in the cluster

    def __str__(self) -> str:
        return f"{self.workers} x {f'{self.gpus:g} GPU' if self.gpus else f'{self.cpus:g} CPU'}"

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


def plan_evaluation(config: ours.DuringTrainingConfig, share: Mapping[str, float] | None = None) -> Layout:
    """The workers that evaluate while others train, on the running cluster or this share of it."""
    several = (ray.cluster_resources() if share is None else share).get("GPU", 0.0) >= 2
    gpus = config.gpus_per_worker if config.gpus_per_worker is not None else float(several)
    return Layout(config.workers, gpus, config.cpus_per_worker)


def plan_workers(
    config: ours.ClusterConfig,
    batch_images: int | None = None,
    decode: ours.Decode = "worker",
    beside: Layout | None = None,
    share: Mapping[str, float] | None = None,
) -> Layout:
    """The layout for the running cluster or this `share` of it ({"CPU": 4.0}), of which `beside` is left to others.

    `batch_images` has to divide over the workers; None for prediction, where nothing has to.

    With `decode` "cluster" half of the CPUs are left to the tasks that decode, unless config.cpus_per_worker says how
    many the workers take.

    By default one worker a GPU, or without GPUs one a CPU (at most 8, and so many that the batch divides). CPUs are
    shared out among the workers, whose threads decode, as far as nodes are large enough; reading shards claims none.

    Raises:
        ClusterError: the batch does not divide, or the cluster or its nodes are too small.
    """
    nodes = node_resources() if share is None else ()
    total = {k: sum(node.get(k, 0.0) for node in nodes) for k in ("CPU", "GPU")} if share is None else share
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    if beside is not None:
        taken_cpus, taken_gpus = beside.workers * beside.cpus, beside.workers * beside.gpus
        if taken_cpus >= cpus or taken_gpus > gpus or (gpus and taken_gpus == gpus):
            raise ClusterError(
                f"evaluate.during_training takes {taken_cpus:g} CPUs and {taken_gpus:g} GPUs, which leaves nothing of "
                f"the cluster's {cpus:g} CPUs and {gpus:g} GPUs to train on; lower its workers, cpus_per_worker "
                "(such as 0.5) or gpus_per_worker (such as 0)"
            )
        cpus, gpus = cpus - taken_cpus, gpus - taken_gpus
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
    equal = (cpus if decode == "worker" else cpus / 2) / workers
    each = _whole(equal) if config.cpus_per_worker is None else config.cpus_per_worker
    if config.cpus_per_worker is None and nodes:  # a worker lies on one node
        sizes = {_whole(node.get("CPU", 0.0) / count) for node in nodes for count in range(1, workers + 1)}
        fitting = (size for size in sizes if 0 < size <= each and _places(nodes, size, gpus_per_worker) >= workers)
        each = max(fitting, default=each)
    if each <= 0 or workers * each > cpus + 1e-6:  # the tolerance is float64's: shares add up to the whole
        raise ClusterError(
            f"{workers} workers with {each:g} CPU each need {workers * each:g} CPUs, the cluster has {cpus:g}; "
            "lower cluster.workers or cluster.cpus_per_worker"
        )
    if nodes and _places(nodes, each, gpus_per_worker) < workers:
        have = ", ".join(f"{node.get('CPU', 0.0):g} CPUs and {node.get('GPU', 0.0):g} GPUs" for node in nodes)
        raise ClusterError(
            f"{workers} workers with {each:g} CPU and {gpus_per_worker:g} GPU each have no place: a worker lies on one "
            f"node, and they have {have}; lower cluster.workers, cluster.cpus_per_worker or cluster.gpus_per_worker"
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


def _whole(cpus: float) -> float:
    """Ray takes whole CPUs, or a fraction of one."""
    return float(int(cpus)) if cpus >= 1 else cpus


def _places(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """How many workers that take so much have room on these nodes."""
    needs = {kind: amount for kind, amount in (("CPU", cpus), ("GPU", gpus)) if amount}
    return sum(min(int(node.get(kind, 0.0) / need + 1e-6) for kind, need in needs.items()) for node in nodes)


def scaling_config(layout: Layout) -> ScalingConfig:
    """Ray Train's view of the layout."""
    return ScalingConfig(num_workers=layout.workers, use_gpu=layout.gpus > 0, resources_per_worker=layout.resources)


def torch_config(layout: Layout) -> TorchConfig:
    """NCCL between GPUs, Gloo between CPUs."""
    return TorchConfig(backend="nccl" if layout.gpus else "gloo")


def run_config(config: ours.RunConfig, runs_dir: Path, name: str) -> RunConfig:
    """Storage, failures and how many checkpoints stay: the newest ones, or the best ones and the newest."""
    by_score = None if config.evaluate.during_training is None else SCORE
    return RunConfig(
        name=name,
        storage_path=str(runs_dir),
        failure_config=FailureConfig(max_failures=config.cluster.max_failures),
        checkpoint_config=CheckpointConfig(
            num_to_keep=config.train.keep_checkpoints, checkpoint_score_attribute=by_score
        ),
    )
