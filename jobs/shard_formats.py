"""The words of `maskrcnn shard FORMAT`; what they do is in shard.py, imported only when it is used."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Turn a data set into shards that training streams.", no_args_is_help=True)

OutShards = Annotated[
    str,
    typer.Option("--out", metavar="DIR_OR_URI", help="New shards: a directory or s3://, gs://.", show_default=False),
]
OutSplits = Annotated[Path, typer.Option("--out", help="Directory of train/ and val/.", show_default=False)]
Images = Annotated[
    str, typer.Option(metavar="DIR_OR_URI", help="The images: a directory or s3://, gs://.", show_default=False)
]
Classes = Annotated[
    str | None,
    typer.Option(metavar="NAME,NAME", help="Only these classes, in this order.", show_default="all of them"),
]
Strict = Annotated[bool, typer.Option("--strict", help="Fail on a bad sample instead of setting it aside.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace shards that are there.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Ray tasks at once; 1 stays in this process.", show_default="one a CPU of the cluster"),
]
RowsPerShard = Annotated[int | None, typer.Option(min=1, help="Images in one Parquet file.", show_default="512")]
TrainImages = Annotated[int | None, typer.Option(min=1, help="Images to train on.", show_default="the generator's")]
ValImages = Annotated[int | None, typer.Option(min=1, help="Held-out images.", show_default="the generator's")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")]


@app.command("coco")
def shard_coco(
    annotations: Annotated[Path, typer.Option(help="COCO instances JSON.", show_default=False)],
    images: Images,
    out_dir: OutShards,
    keypoints: Annotated[
        Path | None,
        typer.Option(help="person_keypoints JSON, whose keypoints go to the same instances.", show_default=False),
    ] = None,
    boxes_only: Annotated[
        bool,
        typer.Option(
            "--boxes-only", help="Keep annotations without a segmentation: their mask is their box, for boxes alone."
        ),
    ] = False,
    proposals: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Boxes of another system in COCO's results format, for model.rpn=null; may be repeated.",
            show_default=False,
        ),
    ] = None,
    classes: Classes = None,
    strict: Strict = False,
    overwrite: Overwrite = False,
    rows_per_shard: RowsPerShard = None,
    workers: Workers = None,
) -> None:
    """COCO instances -> shards. Bad samples go to quarantine.jsonl with the reason.

    Started again after it was interrupted, it goes on with what is missing.
    """
    from jobs.shard import shard_coco as run

    run(
        annotations,
        images,
        out_dir,
        keypoints=keypoints,
        boxes_only=boxes_only,
        proposals=proposals or [],
        classes=_names(classes),
        strict=strict,
        overwrite=overwrite,
        workers=workers,
        rows_per_shard=rows_per_shard,
    )


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


@app.command("lvis")
def shard_lvis(
    annotations: Annotated[Path, typer.Option(help="LVIS v1 JSON.", show_default=False)],
    images: Annotated[
        str,
        typer.Option(metavar="DIR_OR_URI", help="The directory of COCO's train2017/ and val2017/.", show_default=False),
    ],
    out_dir: OutShards,
    strict: Strict = False,
    overwrite: Overwrite = False,
    rows_per_shard: RowsPerShard = None,
    workers: Workers = None,
) -> None:
    """LVIS instances -> shards, with the classes that are absent or not all annotated in each image."""
    from jobs.shard import shard_lvis as run

    run(
        annotations, images, out_dir, strict=strict, overwrite=overwrite, workers=workers, rows_per_shard=rows_per_shard
    )


@app.command("cityscapes")
def shard_cityscapes(
    root: Annotated[
        str,
        typer.Option(metavar="DIR_OR_URI", help="The directory of leftImg8bit/ and gtFine/.", show_default=False),
    ],
    split: Annotated[str, typer.Option(metavar="train|val|test", help="Which pictures.", show_default=False)],
    out_dir: OutShards,
    city: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this city; may be repeated.")] = None,
    classes: Classes = None,
    strict: Strict = False,
    overwrite: Overwrite = False,
    rows_per_shard: Annotated[
        int | None, typer.Option(min=1, help="Images in one Parquet file.", show_default="64")
    ] = None,
    workers: Workers = None,
) -> None:
    """Cityscapes, fine annotations -> shards of its 8 classes, with the picture of label ids."""
    from jobs.shard import shard_cityscapes as run

    run(
        root,
        split,
        out_dir,
        cities=city,
        classes=_names(classes),
        strict=strict,
        overwrite=overwrite,
        workers=workers,
        rows_per_shard=rows_per_shard,
    )


@app.command("images")
def shard_images(
    images: Images,
    out_dir: OutShards,
    strict: Strict = False,
    overwrite: Overwrite = False,
    rows_per_shard: RowsPerShard = None,
    workers: Workers = None,
) -> None:
    """Pictures without annotations, from a directory and those below it -> shards to predict on."""
    from jobs.shard import shard_images as run

    run(images, out_dir, strict=strict, overwrite=overwrite, workers=workers, rows_per_shard=rows_per_shard)


@app.command("migrate")
def shard_migrate(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Shards of format 1.", show_default=False)],
    out_dir: OutShards,
    overwrite: Overwrite = False,
    workers: Workers = None,
) -> None:
    """Shards of format 1 -> shards of today's format, without the original data set."""
    from jobs.shard import migrate as run

    run(old, out_dir, overwrite=overwrite, workers=workers)


@app.command("shapes")
def shard_shapes(
    out_dir: OutSplits,
    train_images: TrainImages = None,
    val_images: ValImages = None,
    seed: Seed = 0,
    keypoints: Annotated[
        bool, typer.Option("--keypoints", help="With the extreme points of each shape as keypoints.")
    ] = False,
) -> None:
    """Generate the built-in data set (pictures of shapes with exact masks) -> shards."""
    from jobs.shard import shard_shapes as run

    run(out_dir, train_images=train_images, val_images=val_images, seed=seed, keypoints=keypoints)


@app.command("streets")
def shard_streets(
    out_dir: OutSplits,
    train_images: TrainImages = None,
    val_images: ValImages = None,
    seed: Seed = 0,
    height: Annotated[int, typer.Option(min=64, help="Pixels; a picture is twice as wide.")] = 256,
) -> None:
    """Generate streets in Cityscapes' layout, with its 8 classes -> shards."""
    from jobs.shard import shard_streets as run

    run(out_dir, train_images=train_images, val_images=val_images, seed=seed, height_px=height)
