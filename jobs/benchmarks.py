"""`maskrcnn benchmark ...`: each compares with other implementations in one run, or shows where time goes."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jobs.arguments import Overrides


class Peer(StrEnum):
    """Whom a benchmark compares with."""

    torchvision = "torchvision"


class Task(StrEnum):
    """What a step does."""

    train = "train"
    infer = "infer"


class Precision(StrEnum):
    """Of convolutions and linear layers."""

    bf16 = "bf16"
    float32 = "float32"


app = typer.Typer(help="Compare with other implementations in one run.", no_args_is_help=True)


@app.command("accuracy")
def accuracy(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see configs/.", show_default=False)],
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each model.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
) -> None:
    """What our model learns against torchvision's, on the same batches, without Ray."""
    from jobs.benchmark_accuracy import benchmark_accuracy as run

    run(config, overrides or [], seeds, threads)


@app.command("cityscapes")
def cityscapes(
    pictures: Annotated[int, typer.Option(min=1, help="Generated streets.")] = 8,
    height: Annotated[int, typer.Option(min=64, help="Pixels; a street is twice as wide.")] = 1024,
    detections: Annotated[int, typer.Option(min=1, help="A picture.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that take turns; medians are shown.")] = 3,
) -> None:
    """Scoring by Cityscapes' protocols, against cityscapesscripts."""
    from jobs.benchmark_cityscapes import benchmark_cityscapes as run

    run(pictures=pictures, height_px=height, detections=detections, rounds=rounds)


@app.command("data")
def data(
    annotations: Annotated[Path, typer.Option(help="COCO instances JSON.", show_default=False)],
    images: Annotated[Path, typer.Option(help="Directory of the images.", show_default=False)],
    threads: Annotated[int, typer.Option(min=1, help="Threads, tasks or processes that decode.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that take turns; medians are shown.")] = 5,
    epochs: Annotated[int, typer.Option(min=0, help="Also watch memory over so many epochs.")] = 0,
) -> None:
    """Sharding, decoding, reading and delivery of pictures, against other implementations."""
    from jobs.benchmark_data import benchmark_data as run

    run(annotations, images, threads=threads, rounds=rounds, epochs=epochs)


@app.command("evaluate")
def evaluate(
    images: Annotated[int, typer.Option(min=1, help="Invented images.")] = 5000,
    detections: Annotated[int, typer.Option(min=1, help="An image.")] = 100,
    classes: Annotated[int, typer.Option(min=1, help="Of objects.")] = 80,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that take turns; medians are shown.")] = 1,
    resamples: Annotated[int, typer.Option(min=1, help="Of the images, for intervals.")] = 1000,
) -> None:
    """COCO AP of boxes and masks against pycocotools: time, memory, equality; intervals; pasting masks."""
    from jobs.benchmark_evaluate import benchmark_evaluate as run

    run(images=images, detections=detections, classes=classes, rounds=rounds, resamples=resamples)


@app.command("variants")
def variants(
    tables: Annotated[
        list[Path], typer.Argument(metavar="TABLE...", help="Such as configs/paper/table_*.yaml.", show_default=False)
    ],
    rounds: Annotated[int, typer.Option(min=0, help="Timed steps of each model; 0: do not time.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Parameters, multiply-adds and step time of each model of some tables, beside torchvision's."""
    from jobs.benchmark_variants import benchmark_variants as run

    run(tables, rounds, threads)


@app.command("learning")
def learning(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="Such as configs/shapes/variants.yaml.", show_default=False)
    ],
    overrides: Overrides = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Train every variant of a table for a few steps, without Ray: losses from first to last, and AP."""
    from jobs.benchmark_learning import benchmark_learning as run

    run(table, overrides or [], threads)


@app.command("transfer")
def transfer(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see configs/.", show_default=False)],
    source: Annotated[str, typer.Option(metavar="SHARDS", help="To pretrain on.", show_default=False)],
    target: Annotated[
        list[str], typer.Option(metavar="SHARDS", help="To train on; may be repeated.", show_default=False)
    ],
    checkpoint: Annotated[
        Path, typer.Option(help="Of the pretrained model; it is made if it is not there.", show_default=False)
    ],
    overrides: Overrides = None,
    pretrain_steps: Annotated[int, typer.Option(min=1, help="Steps on the source.")] = 900,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Transfer between classes against training from scratch, at equal steps, without Ray. data.val is scored."""
    from jobs.benchmark_transfer import benchmark_transfer as run

    run(
        config,
        overrides or [],
        source=source,
        targets=target,
        checkpoint=checkpoint,
        pretrain_steps=pretrain_steps,
        seeds=seeds,
        threads=threads,
    )


Config = Annotated[Path | None, typer.Option(help="YAML file, see configs/.", show_default="the COCO 1x recipe")]
Size = Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")]
Images = Annotated[int, typer.Option(min=1, help="Images a batch.")]
Objects = Annotated[int, typer.Option(min=1, help="Objects an image.")]
Positives = Annotated[int, typer.Option(min=0, help="RoIs an image that train the mask head.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds that take turns; medians are shown.")]
Against = Annotated[Peer, typer.Option(help="Whom to compare with.")]
Memory = Annotated[bool, typer.Option(help="Also the peak memory of each, in processes of their own.")]


@app.command("train")
def train(
    overrides: Overrides = None,
    config: Config = None,
    against: Against = Peer.torchvision,
    size: Size = "800x1216",
    images: Images = 1,
    objects: Objects = 8,
    positives: Positives = 128,
    threads: Threads = 1,
    rounds: Rounds = 3,
    memory: Memory = True,
) -> None:
    """A training step, optimiser included, on random pictures. CPU time on a CPU, else device time."""
    from jobs.benchmark_step import benchmark_step, make_setting

    setting = make_setting(
        "train",
        config,
        overrides or [],
        size=size,
        images=images,
        objects=objects,
        positives=positives,
        threads=threads,
    )
    benchmark_step(setting, rounds, memory)


@app.command("infer")
def infer(
    overrides: Overrides = None,
    config: Config = None,
    against: Against = Peer.torchvision,
    size: Size = "800x1216",
    images: Images = 1,
    threads: Threads = 1,
    rounds: Rounds = 3,
    memory: Memory = True,
) -> None:
    """Detections of random pictures, with masks as run lengths."""
    from jobs.benchmark_step import benchmark_step, make_setting

    setting = make_setting(
        "infer", config, overrides or [], size=size, images=images, objects=8, positives=128, threads=threads
    )
    benchmark_step(setting, rounds, memory)


@app.command("profile")
def profile(
    task: Annotated[Task, typer.Argument(help="What to look into.")],
    overrides: Overrides = None,
    config: Config = None,
    precision: Annotated[Precision, typer.Option(help="Of convolutions and linear layers.")] = Precision.bf16,
    size: Size = "800x1216",
    images: Images = 1,
    objects: Objects = 8,
    positives: Positives = 128,
    threads: Threads = 1,
) -> None:
    """Where the time of our training step or prediction goes, stage by stage."""
    from jobs.benchmark_step import benchmark_profile as run
    from jobs.benchmark_step import make_setting

    setting = make_setting(
        task.value,
        config,
        overrides or [],
        size=size,
        images=images,
        objects=objects,
        positives=positives,
        threads=threads,
    )
    run(setting, precision.value)
