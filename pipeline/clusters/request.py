"""What a cluster is asked for: how large its nodes are, what the run is called, where data and runs lie.

All of it comes from the run's configuration and a few options, and is checked here, before anything costs money. What
goes into a file unquoted is of few characters, so that no name or path can mean anything else there.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.training.cluster import Layout
from pipeline.training.placement import plan_evaluation, plan_workers

USUAL_GPUS = 8  # of one machine
USUAL_CPUS = 8  # a worker: its threads decode while the GPU computes
CPUS_OF_CPU_NODE = 8  # as in configs/cluster
MEMORY_GB_PER_CPU = 4  # as AWS's m5, g5 and most others have

_IMAGE = re.compile(r"[a-z0-9][\w.-]*(:\d+)?(/[\w.-]+)*(:[\w.-]+)?(@sha256:[0-9a-f]{64})?", re.ASCII)
_DIRECTORY = re.compile(r"(/[\w-][\w.-]*)+", re.ASCII)
_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_OF_ONE_MACHINE = ("/tmp", "/var/tmp", "/dev/shm", "/run")
_OF_THE_SYSTEM = (
    *("bin", "boot", "dev", "etc", "home", "lib", "lib64", "opt"),
    *("proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"),
)
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


class ClusterRequestError(UserError):
    """No cluster can be made of this."""


@dataclass(frozen=True)
class Nodes:
    """Machines with GPUs, all alike."""

    count: int
    gpus: int  # of each
    cpus: int  # of each
    memory_gb: int  # of each


def gpus_of(config: RunConfig) -> float:
    """What the run takes, with the workers that evaluate while others train.

    Raises:
        ClusterRequestError: how many workers train is open, or they have no GPUs.
    """
    cluster = config.cluster
    if cluster.workers is None:
        raise ClusterRequestError(
            "cluster.workers must say how many GPUs the cluster gets, got null, and this machine's GPUs say nothing of "
            "it; give cluster.workers=8"
        )
    if cluster.gpus_per_worker == 0:
        raise ClusterRequestError(
            "cluster.gpus_per_worker must be above 0, got 0: these clusters train on GPUs; give "
            "cluster.gpus_per_worker=1, or train on the CPUs of a cluster that runs: maskrcnn submit"
        )
    beside = _evaluators(config)
    return cluster.workers * _each(config) + (0.0 if beside is None else beside.workers * beside.gpus)


def plan_nodes(
    config: RunConfig,
    gpus_a_node: int | None = None,
    cpus_a_node: int | None = None,
    memory_gb: int | None = None,
    cpu_workers: int = 0,
) -> Nodes:
    """How many machines of which size the run fills exactly, beside `cpu_workers` of CPUs alone.

    They have 8 GPUs, or fewer where the run needs fewer; and 8 CPUs a worker where `cluster.cpus_per_worker` is open.

    Raises:
        ClusterRequestError: it does not fill them.
        ClusterError: what the run would say when it starts there.
    """
    cluster = config.cluster
    if cluster.address not in (None, "auto"):
        raise ClusterRequestError(
            f"cluster.address must be null where a cluster is made for the run, got {cluster.address}; give "
            "cluster.address=null"
        )
    total, each = gpus_of(config), _each(config)
    size = gpus_a_node or min(USUAL_GPUS, math.ceil(total - 1e-6))
    if not _fills(total, each, size):
        fits = [gpus for gpus in range(1, 2 * USUAL_GPUS + 1) if _fills(total, each, gpus)]
        fix = f"give --gpus-per-node one of {', '.join(map(str, fits))}, or " if fits else ""
        beside = "" if config.evaluate.during_training is None else " and those of evaluate.during_training"
        raise ClusterRequestError(
            f"cluster.workers={cluster.workers} with {each:g} GPU each{beside} must fill machines of {size} GPUs, got "
            f"{total:g} GPUs; {fix}change cluster.workers or cluster.gpus_per_worker"
        )
    evaluators, on_each = _evaluators(config), round(size / each)
    wanted = math.ceil(
        on_each * (USUAL_CPUS if cluster.cpus_per_worker is None else cluster.cpus_per_worker)
        + (0.0 if evaluators is None else evaluators.workers * evaluators.cpus)
    )
    cpus = wanted if cpus_a_node is None else cpus_a_node
    if cluster.cpus_per_worker is not None and wanted > cpus:
        raise ClusterRequestError(
            f"a machine must have the CPUs of its {on_each} workers, {wanted}, got {cpus}; lower "
            "cluster.cpus_per_worker, or take larger machines"
        )
    nodes = Nodes(round(total / size), size, cpus, memory_gb or cpus * MEMORY_GB_PER_CPU)
    machines = [{"CPU": float(cpus), "GPU": float(size)}] * nodes.count
    machines += [{"CPU": float(CPUS_OF_CPU_NODE)}] * cpu_workers
    plan_workers(cluster, config.train.batch_images, config.data.decode, evaluators, machines)
    return nodes


def _each(config: RunConfig) -> float:
    """GPUs of a worker."""
    return 1.0 if config.cluster.gpus_per_worker is None else config.cluster.gpus_per_worker


def _evaluators(config: RunConfig) -> Layout | None:
    """As on a cluster of several GPUs: where one trains, there will be another to evaluate on."""
    during = config.evaluate.during_training
    return None if during is None else plan_evaluation(during, [{"GPU": 2.0}])


def _fills(total: float, each: float, gpus: int) -> bool:
    """Whether a run of so many GPUs fills machines of so many, none of them with a share of a worker."""
    workers, machines = round(gpus / each), round(total / gpus)
    return min(workers, machines) >= 1 and math.isclose(workers * each, gpus) and math.isclose(machines * gpus, total)


def named(config: RunConfig, name: str, uri: str | None) -> RunConfig:
    """The configuration with what the cluster could not know: the run's name, and the MLflow of this environment."""
    train = config.train if config.train.name else replace(config.train, name=name)
    track = config.track if config.track.uri else replace(config.track, uri=uri or None)
    return replace(config, train=train, track=track)


def label(name: str, limit: int) -> str:
    """A run's name as DNS takes it: the name itself, or one like it with a hash of the name."""
    if _LABEL.fullmatch(name) and len(name) <= limit:
        return name
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not plain[:1].isalpha():
        plain = f"run-{plain}".strip("-")
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{plain[: limit - 7].strip('-')}-{digest}"


def check_places(config: RunConfig, below: str | None) -> None:
    """Each node must see the data, the runs and MLflow: in an object store, or `below` what all of them mount.

    None: in any directory that is not of one machine alone, as on a cluster with a shared file system.
    """
    for key, place in _places(config):
        if place is None:
            raise ClusterRequestError(
                f"{key} must name shards, got null; give {key}={below or '/shared'}/coco/{key[5:]}"
            )
        remote = "://" in place
        if remote and key in ("cluster.runs_dir", "init.weights"):
            fix = f"{key}={below}/..." if below else "one that all nodes see"
            raise ClusterRequestError(f"{key} must be a directory, got {place}; give {fix}")
        if remote:
            continue
        if below is None:
            if any(_is_below(place, directory) for directory in _OF_ONE_MACHINE):
                raise ClusterRequestError(
                    f"{key} must be a directory that every node sees, got {place}, which each has for itself; give one "
                    "of the shared file system"
                )
        elif not _is_below(place, below):
            raise ClusterRequestError(
                f"{key} must be a directory below {below}, which all nodes mount, got {place}, which none of them has; "
                f"give {key}={below}/..., or mount elsewhere with --mount"
            )
    uri = config.track.uri
    if uri and urlsplit(uri).scheme in ("http", "https") and urlsplit(uri).hostname in _LOOPBACK:
        raise ClusterRequestError(
            f"track.uri must be an address that the nodes reach, got {uri}, which is each machine itself; give the "
            "server's name, or track.uri=null and unset MLFLOW_TRACKING_URI for a store in cluster.runs_dir"
        )


def _places(config: RunConfig) -> Iterator[tuple[str, str | None]]:
    train = config.data.train
    yield from (("data.train", place) for place in (train if isinstance(train, tuple) else (train,)))
    yield "data.val", config.data.val
    yield "cluster.runs_dir", config.cluster.runs_dir
    if config.init.weights is not None:
        yield "init.weights", config.init.weights
    if config.track.uri is not None and config.track.uri.startswith("sqlite:///"):
        yield "track.uri", config.track.uri.removeprefix("sqlite:///")


def _is_below(place: str, directory: str) -> bool:
    path = PurePosixPath(place)
    return ".." not in path.parts and path.is_relative_to(directory)


def check_image(image: str | None) -> str:
    """The name of an image, as registries have them."""
    if image is None:
        raise ClusterRequestError(
            "--image must name the container image of the nodes, got none; build and push one: "
            "docker build --file configs/cluster/Dockerfile --tag REGISTRY/maskrcnn-ray:TAG ."
        )
    if not _IMAGE.fullmatch(image):
        raise ClusterRequestError(
            f"--image must be of the form REGISTRY/NAME:TAG, got {image!r}; give that of the push"
        )
    return image


def check_mount(mount: str) -> str:
    """A directory of letters, digits and ._- in which an image has nothing of its own."""
    if not _DIRECTORY.fullmatch(mount) or mount.split("/")[1] in _OF_THE_SYSTEM:
        raise ClusterRequestError(
            f"--mount must be an absolute directory of letters, digits and ._- outside the system's, got {mount!r}; "
            "give one such as /shared, and data.train, data.val and cluster.runs_dir below it"
        )
    return mount


def check_word(option: str, value: str, pattern: str, example: str) -> str:
    """A value of few characters."""
    if not re.fullmatch(pattern, value, re.ASCII):
        raise ClusterRequestError(f"{option} must be a name such as {example}, got {value!r}; give {option} {example}")
    return value
