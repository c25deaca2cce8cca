"""Nodes for a run from AWS, by Ray's cluster launcher: configs/cluster/aws.yaml, filled in."""

import difflib
import math
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.clusters.request import (
    ClusterRequestError,
    check_image,
    check_mount,
    check_places,
    check_word,
    label,
    plan_nodes,
)
from pipeline.clusters.template import fill
from pipeline.config import RunConfig

NAME_LIMIT = 63
_REGION = r"[a-z]{2}(-[a-z]+)+-\d"
_FILE_SYSTEM = r"fs-[0-9a-f]{8,17}"


class Instance(NamedTuple):
    """A machine type."""

    gpus: int
    cpus: int
    memory_gb: int


# https://aws.amazon.com/ec2/instance-types/, accelerated computing
INSTANCES = {
    "g5.xlarge": Instance(1, 4, 16),  # A10G, 24 GB
    "g5.2xlarge": Instance(1, 8, 32),
    "g5.4xlarge": Instance(1, 16, 64),
    "g5.8xlarge": Instance(1, 32, 128),
    "g5.12xlarge": Instance(4, 48, 192),
    "g5.24xlarge": Instance(4, 96, 384),
    "g5.48xlarge": Instance(8, 192, 768),
    "g6e.2xlarge": Instance(1, 8, 64),  # L40S, 48 GB
    "g6e.4xlarge": Instance(1, 16, 128),
    "g6e.12xlarge": Instance(4, 48, 384),
    "g6e.24xlarge": Instance(4, 96, 768),
    "g6e.48xlarge": Instance(8, 192, 1536),
    "p4d.24xlarge": Instance(8, 96, 1152),  # A100, 40 GB
    "p4de.24xlarge": Instance(8, 96, 1152),  # A100, 80 GB
    "p5.48xlarge": Instance(8, 192, 2048),  # H100, 80 GB
    "p5e.48xlarge": Instance(8, 192, 2048),  # H200, 141 GB
}
USUAL = ("p4d.24xlarge", "g5.12xlarge", "g5.2xlarge")  # the first that the run's GPUs fill


@dataclass(frozen=True)
class AwsOptions:
    """What no configuration says."""

    image: str | None
    file_system: str | None  # EFS: fs-...
    instance: str | None = None
    region: str = "us-west-2"
    mount: str = "/shared"
    cpu_workers: int = 0  # nodes that decode


def render_aws(config: RunConfig, options: AwsOptions) -> str:
    """The file for `ray up`. `config` has its train.name."""
    image, mount = check_image(options.image), check_mount(options.mount)
    if options.file_system is None:
        raise ClusterRequestError(
            "--file-system must name the EFS file system that all nodes mount, for runs and data, got none; make one "
            "in the nodes' VPC and give --file-system fs-0123456789abcdef0"
        )
    file_system = check_word("--file-system", options.file_system, _FILE_SYSTEM, "fs-0123456789abcdef0")
    region = check_word("--region", options.region, _REGION, "us-west-2")
    total = math.ceil(
        (config.cluster.workers or 1) * (config.cluster.gpus_per_worker or 1.0)
    )  # of 0 plan_nodes says it
    name = options.instance or choose_instance(total)
    if name not in INSTANCES:
        near = difflib.get_close_matches(name, INSTANCES, n=1, cutoff=0.0)
        raise ClusterRequestError(
            f"--instance-type must be one of {', '.join(INSTANCES)}; got {name}; did you mean {near[0]}?"
        )
    instance = INSTANCES[name]
    if total % instance.gpus:
        fits = [other for other, size in INSTANCES.items() if total % size.gpus == 0]
        raise ClusterRequestError(
            f"{total} GPUs must fill machines of type {name}, which have {instance.gpus}; give --instance-type one of "
            f"{', '.join(fits)}, or change cluster.workers"
        )
    nodes = plan_nodes(config, instance.gpus, instance.cpus, instance.memory_gb, options.cpu_workers)
    check_places(config, mount)
    return fill(
        "aws.yaml",
        {
            "name": label(str(config.train.name), NAME_LIMIT),
            "max_workers": nodes.count + options.cpu_workers,
            "region": region,
            "image": image,
            "mount": mount,
            "workers": str(config.cluster.workers),
            "nodes": nodes.count,
            "cpus": nodes.cpus,
            "gpus": nodes.gpus,
            "instance_type": name,
            "cpu_workers": options.cpu_workers,
            "file_system": file_system,
        },
    )


def choose_instance(gpus: int) -> str:
    """The largest of the usual types that so many GPUs fill."""
    return next(name for name in USUAL if gpus % INSTANCES[name].gpus == 0)
