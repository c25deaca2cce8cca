"""A run as a batch script for Slurm: configs/cluster/slurm.sh, filled in."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.clusters.request import check_places, check_word, label, plan_nodes
from pipeline.clusters.template import fill
from pipeline.config import RunConfig

NAME_LIMIT = 63
_WORD = r"\w[\w.,@-]*"


@dataclass(frozen=True)
class SlurmOptions:
    """What no configuration says."""

    gpus_a_node: int | None = None
    memory_gb: int | None = None  # of a node
    hours: int = 24  # until the job goes back into the queue
    partition: str | None = None
    account: str | None = None


def render_slurm(config: RunConfig, words: Sequence[str], options: SlurmOptions) -> str:
    """The script that runs the command `words` on a Ray cluster of the job's nodes. `config` has its train.name."""
    nodes = plan_nodes(config, options.gpus_a_node, memory_gb=options.memory_gb)
    check_places(config, None)
    chosen = {"partition": options.partition, "account": options.account}
    lines = [
        f"#SBATCH --{name}={check_word(f'--{name}', value, _WORD, name)}" for name, value in chosen.items() if value
    ]
    return fill(
        "slurm.sh",
        {
            "name": label(str(config.train.name), NAME_LIMIT),
            "nodes": nodes.count,
            "gpus": nodes.gpus,
            "cpus": nodes.cpus,
            "memory_gb": nodes.memory_gb,
            "hours": options.hours,
            "options": "\n".join(lines),
            "command": shlex.join(words),
        },
    )
