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

from pipeline.config import ClusterConfig, RunConfig
from pipeline.errors import UserError

USUAL_GPUS = 8  # of one machine
USUAL_CPUS = 8  # a worker: its threads decode while the GPU computes
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
    workers: int  # that train, on each
    gpus: int  # of each
    cpus: int  # of each
    memory_gb: int  # of each


def plan_nodes(
    config: ClusterConfig, gpus_a_node: int | None = None, cpus_a_node: int | None = None, memory_gb: int | None = None
) -> Nodes:
    """How many machines of which size `workers` fill exactly.

    Machines have 8 GPUs, or fewer where the run needs fewer; and 8 CPUs a worker where `cpus_per_worker` is open.

    Raises:
        ClusterRequestError: `workers` is open, has no GPUs, or does not fill whole machines.
    """
    if config.address not in (None, "auto"):
        raise ClusterRequestError(
            f"cluster.address must be null where a cluster is made for the run, got {config.address}; give "
            "cluster.address=null"
        )
    workers = config.workers
    if workers is None:
        raise ClusterRequestError(
            "cluster.workers must say how many GPUs the cluster gets, got null, and this machine's GPUs say nothing of "
            "it; give cluster.workers=8"
        )
    each = 1.0 if config.gpus_per_worker is None else config.gpus_per_worker
    if each == 0:
        raise ClusterRequestError(
            "cluster.gpus_per_worker must be above 0, got 0: these clusters train on GPUs; give "
            "cluster.gpus_per_worker=1, or train on the CPUs of a cluster that runs: maskrcnn submit"
        )
    total = workers * each
    size = gpus_a_node or max(1, min(USUAL_GPUS, math.ceil(total)))
    if not _fills(workers, each, size):
        fits = [gpus for gpus in range(1, 17) if _fills(workers, each, gpus)]
        fix = f"give --gpus-per-node one of {', '.join(map(str, fits))}, or " if fits else ""
        raise ClusterRequestError(
            f"cluster.workers={workers} with {each:g} GPU each must fill machines of {size} GPUs, got {total:g} GPUs; "
            f"{fix}change cluster.workers or cluster.gpus_per_worker"
        )
    on_each = round(size / each)
    wanted = math.ceil(on_each * (USUAL_CPUS if config.cpus_per_worker is None else config.cpus_per_worker))
    cpus = wanted if cpus_a_node is None else cpus_a_node
    if config.cpus_per_worker is not None and wanted > cpus:
        raise ClusterRequestError(
            f"a machine must have the CPUs of its {on_each} workers, {wanted}, got {cpus}; lower "
            "cluster.cpus_per_worker, or take larger machines"
        )
    return Nodes(workers // on_each, on_each, size, cpus, memory_gb or cpus * MEMORY_GB_PER_CPU)


def _fills(workers: int, each: float, gpus: int) -> bool:
    """Whether the workers fill machines of so many GPUs, without a rest on any."""
    on_one = round(gpus / each)
    return on_one >= 1 and math.isclose(on_one * each, gpus) and workers % on_one == 0


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
