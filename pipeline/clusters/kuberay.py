"""A run as a RayJob for Kubernetes: configs/cluster/kuberay.yaml, filled in."""

from dataclasses import dataclass
from importlib.metadata import version

from pipeline.clusters.request import check_image, check_mount, check_places, check_word, label, plan_nodes
from pipeline.clusters.template import fill
from pipeline.config import RunConfig
from pipeline.configure import to_yaml

NAME_LIMIT = 47  # of a RayJob, whose services have longer names: KubeRay's MaxRayJobNameLength
_OBJECT = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"


@dataclass(frozen=True)
class KubeRayOptions:
    """What no configuration says."""

    image: str | None
    claim: str = "maskrcnn"  # PersistentVolumeClaim with ReadWriteMany
    mount: str = "/shared"  # where pods see it
    secret: str = "maskrcnn"  # Secret whose entries are variables of the environment; may be absent
    gpus_a_node: int | None = None
    memory_gb: int | None = None  # of a pod that trains
    cpu_workers: int = 0  # pods that decode


def render_kuberay(config: RunConfig, options: KubeRayOptions) -> str:
    """The manifest: a ConfigMap with the configuration, and the RayJob. `config` has its train.name."""
    image, mount = check_image(options.image), check_mount(options.mount)
    claim = check_word("--claim", options.claim, _OBJECT, "maskrcnn")
    secret = check_word("--secret", options.secret, _OBJECT, "maskrcnn")
    nodes = plan_nodes(config, options.gpus_a_node, memory_gb=options.memory_gb, cpu_workers=options.cpu_workers)
    check_places(config, mount)
    return fill(
        "kuberay.yaml",
        {
            "name": label(str(config.train.name), NAME_LIMIT),
            "config": to_yaml(config),
            "ray_version": version("ray"),
            "image": image,
            "claim": claim,
            "mount": mount,
            "secret": secret,
            "nodes": nodes.count,
            "workers": str(config.cluster.workers),
            "gpus": nodes.gpus,
            "cpus": nodes.cpus,
            "memory_gb": nodes.memory_gb,
            "cpu_workers": options.cpu_workers,
        },
    )
