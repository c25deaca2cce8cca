"""Our configuration as Ray objects: the workers and what each may use. How many there are: placement.py."""

from dataclasses import dataclass
from pathlib import Path

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from pipeline import config as ours

SCORE = "score"  # of a checkpoint, in what workers and the evaluation report to Ray Train


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
    def decode_task_cpus(self) -> float:
        """Of each task that decodes."""
        return min(1.0, self.decode_cpus)

    @property
    def resources(self) -> dict[str, float]:
        """For Ray."""
        resources = {"CPU": self.cpus}
        if self.gpus:
            resources["GPU"] = self.gpus
        return resources


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
