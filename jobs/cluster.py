"""`maskrcnn cluster render KIND CONFIG`: the files of configs/cluster for one run, to look at and to hand over."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.arguments import Overrides

if TYPE_CHECKING:
    from pipeline.config import RunConfig

app = typer.Typer(help="Make a Ray cluster for a run: on Kubernetes, under Slurm, on AWS.", no_args_is_help=True)
render = typer.Typer(help="Print what makes the cluster that a run needs; configs/cluster/.", no_args_is_help=True)
app.add_typer(render, name="render")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see configs/.", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it there.", show_default="stdout")]
Image = Annotated[
    str | None,
    typer.Option(metavar="REGISTRY/NAME:TAG", help="Of configs/cluster/Dockerfile; needed.", show_default=False),
]
Mount = Annotated[str, typer.Option(metavar="DIR", help="What all nodes mount, for data and runs.")]
CpuWorkers = Annotated[int, typer.Option(min=0, help="Further nodes of CPUs alone, for data.decode=cluster.")]
GpusPerNode = Annotated[
    int | None, typer.Option(min=1, help="Of a machine.", show_default="8, or all of a smaller run")
]
MemoryGb = Annotated[int | None, typer.Option(min=1, help="Of such a machine.", show_default="4 a CPU")]


@render.command()
def kuberay(
    config: Config,
    overrides: Overrides = None,
    image: Image = None,
    claim: Annotated[str, typer.Option(help="PersistentVolumeClaim with ReadWriteMany.")] = "maskrcnn",
    mount: Mount = "/shared",
    secret: Annotated[str, typer.Option(help="Secret with credentials of MLflow and the store; may be absent.")] = (
        "maskrcnn"
    ),
    gpus_per_node: GpusPerNode = None,
    memory_gb: MemoryGb = None,
    cpu_workers: CpuWorkers = 0,
    out_path: Out = None,
) -> None:
    """A RayJob of KubeRay: a cluster that trains and goes."""
    from pipeline.clusters.kuberay import NAME_LIMIT, KubeRayOptions, render_kuberay
    from pipeline.clusters.request import label

    run = _load(config, overrides)
    text = render_kuberay(
        run, KubeRayOptions(image, claim, mount, secret, gpus_per_node, memory_gb, cpu_workers=cpu_workers)
    )
    name = label(str(run.train.name), NAME_LIMIT)
    _hand_over(text, out_path, "kubectl apply --filename {}", f"kubectl get rayjob {name}")


@render.command()
def slurm(
    config: Config,
    overrides: Overrides = None,
    gpus_per_node: GpusPerNode = None,
    memory_gb: MemoryGb = None,
    hours: Annotated[int, typer.Option(min=1, help="Until the job goes back into the queue and continues.")] = 24,
    partition: Annotated[str | None, typer.Option(help="Of Slurm.", show_default="the cluster's")] = None,
    account: Annotated[str | None, typer.Option(help="Of Slurm.", show_default="yours")] = None,
    out_path: Out = None,
) -> None:
    """A batch script: Ray on the job's nodes, requeued before its time is up."""
    from pipeline.clusters.slurm import SlurmOptions, render_slurm

    run = _load(config, overrides)
    options = SlurmOptions(gpus_per_node, memory_gb, hours, partition, account)
    text = render_slurm(run, _words(config, overrides, run), options)
    _hand_over(text, out_path, "sbatch {}", "squeue --me")


@render.command()
def aws(
    config: Config,
    overrides: Overrides = None,
    image: Image = None,
    file_system: Annotated[
        str | None, typer.Option(metavar="fs-ID", help="EFS, mounted on all nodes; needed.", show_default=False)
    ] = None,
    instance_type: Annotated[
        str | None, typer.Option(help="Of the nodes with GPUs.", show_default="p4d, g5: what the GPUs fill")
    ] = None,
    region: Annotated[str, typer.Option(help="Of all nodes.")] = "us-west-2",
    mount: Mount = "/shared",
    cpu_workers: CpuWorkers = 0,
    out_path: Out = None,
) -> None:
    """A file for Ray's cluster launcher: spot instances with GPUs, to which runs are submitted."""
    import shlex

    from pipeline.clusters.aws import AwsOptions, render_aws

    run = _load(config, overrides)
    text = render_aws(run, AwsOptions(image, file_system, instance_type, region, mount, cpu_workers))
    train = shlex.join(_words(config, overrides, run)[1:])
    _hand_over(text, out_path, "ray up {}", "ray dashboard {}", f"maskrcnn submit --follow -- {train}", "ray down {}")


def _load(path: Path, overrides: list[str] | None) -> "RunConfig":
    import os
    from datetime import datetime

    from pipeline.clusters.request import named
    from pipeline.configure import load_config

    name = (
        f"{path.stem}-{datetime.now():%Y%m%d-%H%M%S}"  # as training names it, but fixed: a job that starts anew goes on
    )
    return named(load_config(path, overrides or ()), name, os.environ.get("MLFLOW_TRACKING_URI"))


def _words(path: Path, overrides: list[str] | None, run: "RunConfig") -> list[str]:
    """Of the command that trains it."""
    from pipeline.yaml_core import dump

    name = dump({"name": run.train.name}).removeprefix("name: ").strip()  # quoted where it would be a number
    return ["maskrcnn", "train", str(path), *(overrides or ()), f"train.name={name}"]


def _hand_over(text: str, out_path: Path | None, *steps: str) -> None:
    """Print or write it, and say what comes next."""
    import shlex
    import sys

    from rich.text import Text

    from jobs.console import err
    from pipeline.errors import UserError

    if out_path is None:
        sys.stdout.write(text)
    else:
        try:
            out_path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out must be a file that can be written, got {out_path}: {error.strerror}") from error
    file = "FILE" if out_path is None else shlex.quote(str(out_path))
    for number, step in enumerate(steps):
        err.print(Text(f"{'' if number else 'next':<12}{step.replace('{}', file)}"), soft_wrap=True)
