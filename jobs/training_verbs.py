"""The words of `maskrcnn train`, `transfer` and `finetune`; what they do is in files of these names."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.syntax import Syntax
from rich.text import Text

from jobs.arguments import Overrides
from jobs.console import out
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import RunConfig


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see configs/.", show_default=False)],
    overrides: Overrides = None,
    print_config: Annotated[bool, typer.Option("--print", help="Show the resolved config and stop.")] = False,
) -> None:
    """Train, evaluate and log a run. The same train.name continues where it stopped."""
    if print_config:
        from pipeline.configure import load_config

        show_config(load_config(config, overrides or ()))
        return
    from jobs.train import train as run

    run(config, overrides or [])


def show_config(config: "RunConfig") -> None:
    """As YAML."""
    from pipeline.configure import to_yaml

    text = to_yaml(config)
    out.print(
        Syntax(text, "yaml", background_color="default") if out.is_terminal else Text(text), end="", soft_wrap=True
    )


def transfer(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see configs/.", show_default=False)],
    checkpoint: Annotated[
        Path, typer.Option("--from", metavar="CHECKPOINT", help="Checkpoint directory.", show_default=False)
    ],
    overrides: Overrides = None,
    class_map: Annotated[
        Path | None,
        typer.Option(
            "--map",
            metavar="YAML",
            help="Classes that names do not tell: a line `rider: person` copies, `rider: null` starts anew.",
            show_default=False,
        ),
    ] = None,
    network: Annotated[
        Literal["config", "checkpoint"],
        typer.Option(help="Whose model section: layers and conventions such as BN eps."),
    ] = "config",
    print_config: Annotated[bool, typer.Option("--print", help="Show the resolved config and stop.")] = False,
) -> None:
    """Train on other classes than the checkpoint's: what both have, by name, keeps its weights.

    The table of classes comes before anything starts. init.transfer.classes.rider=person does what a map does.
    """
    from jobs import transfer as job

    if print_config:
        show_config(job.transfer_config(config, checkpoint, overrides or [], class_map, network))
    else:
        job.transfer(config, checkpoint, overrides or [], class_map, network)


def finetune(
    images: Annotated[Path, typer.Option(metavar="DIR", help="The images.", show_default=False)],
    annotations: Annotated[Path, typer.Option(help="Their annotations: COCO's JSON.", show_default=False)],
    checkpoint: Annotated[
        Path, typer.Option("--from", metavar="CHECKPOINT", help="Checkpoint directory.", show_default=False)
    ],
    overrides: Overrides = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="For shards and the run.", show_default="finetune-ANNOTATIONS")
    ] = None,
    val_annotations: Annotated[
        Path | None, typer.Option(help="To evaluate on.", show_default="some images are held out")
    ] = None,
    val_images: Annotated[Path | None, typer.Option(metavar="DIR", help="Of those.", show_default="--images")] = None,
    val_share: Annotated[float, typer.Option(min=0.01, max=0.9, help="Of the images, held out.")] = 0.1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray tasks that shard at once.", show_default="one a CPU of the cluster")
    ] = None,
    print_config: Annotated[bool, typer.Option("--print", help="Show what would be done, and stop.")] = False,
) -> None:
    """Train on your own data, from a checkpoint: split, shard, choose a recipe, train, evaluate.

    The same command goes on where a killed one stopped. KEY=VALUE changes what it chose.
    """
    from jobs import finetune as job

    if val_images is not None and val_annotations is None:
        raise UserError("--val-images goes with --val-annotations; give both, or neither to hold some images out")
    place = out_dir or Path(f"finetune-{annotations.stem}")
    inputs = job.Inputs(images, annotations, checkpoint, place, val_images, val_annotations, val_share, workers)
    if print_config:
        show_config(job.show_only(inputs, overrides or []))
    else:
        job.finetune(inputs, overrides or [])
