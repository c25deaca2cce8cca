"""The `maskrcnn` command: one verb a file beside this one, imported only when it is used.

    maskrcnn shard shapes --out data/shapes
    maskrcnn train configs/shapes/quickstart.yaml train.steps=200

What the user can put right (a `UserError`) is shown as one `error:` on stderr with exit code 2. Anything else is a
bug of ours and keeps its traceback.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.syntax import Syntax
from rich.text import Text
from typer.core import TyperGroup

from jobs.console import err, out
from pipeline.errors import UserError


class Verbs(TyperGroup):
    """A group of verbs that shows expected errors without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            err.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    name="maskrcnn",
    cls=Verbs,
    help="Distributed Mask R-CNN: shard a data set, train on Ray, evaluate, look at predictions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
shard_app = typer.Typer(help="Turn a data set into shards that training streams.", no_args_is_help=True)
app.add_typer(shard_app, name="shard")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Dotted config overrides such as train.steps=200.", show_default=False
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"maskrcnn-ray {version('maskrcnn-ray')}", highlight=False)
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every verb."""


OutShards = Annotated[
    str,
    typer.Option("--out", metavar="DIR_OR_URI", help="New shards: a directory or s3://, gs://.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace shards that are there.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Ray tasks at once; 1 stays in this process.", show_default="one a CPU of the cluster"),
]


@shard_app.command("coco")
def shard_coco(
    annotations: Annotated[Path, typer.Option(help="COCO instances JSON.", show_default=False)],
    images: Annotated[
        str, typer.Option(metavar="DIR_OR_URI", help="The images: a directory or s3://, gs://.", show_default=False)
    ],
    out_dir: OutShards,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on a bad sample instead of setting it aside.")] = False,
    overwrite: Overwrite = False,
    rows_per_shard: Annotated[
        int | None, typer.Option(min=1, help="Images in one Parquet file.", show_default="512")
    ] = None,
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
        strict=strict,
        overwrite=overwrite,
        rows_per_shard=rows_per_shard,
        workers=workers,
    )


@shard_app.command("migrate")
def shard_migrate(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Shards of format 1.", show_default=False)],
    out_dir: OutShards,
    overwrite: Overwrite = False,
    workers: Workers = None,
) -> None:
    """Shards of format 1 -> shards of today's format, without the original data set."""
    from jobs.shard import migrate as run

    run(old, out_dir, overwrite=overwrite, workers=workers)


@shard_app.command("shapes")
def shard_shapes(
    out_dir: Annotated[Path, typer.Option("--out", help="Directory of train/ and val/.", show_default=False)],
    train_images: Annotated[
        int | None, typer.Option(min=1, help="Images to train on.", show_default="the generator's")
    ] = None,
    val_images: Annotated[
        int | None, typer.Option(min=1, help="Held-out images.", show_default="the generator's")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
) -> None:
    """Generate the built-in data set (pictures of shapes with exact masks) -> shards."""
    from jobs.shard import shard_shapes as run

    run(out_dir, train_images=train_images, val_images=val_images, seed=seed)


Shards = Annotated[
    str, typer.Argument(metavar="SHARDS", help="Directory of shards, or s3://BUCKET/PATH.", show_default=False)
]


@app.command()
def verify(
    shards: Shards,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a CPU")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Check every hash, picture and row of shards, and show what is in them. Exit code 1 when something is wrong."""
    from jobs.verify import verify as run

    run(shards, workers=workers, as_json=as_json)


@app.command()
def inspect(
    shards: Shards,
    sample: Annotated[
        str | None, typer.Option(help="Draw this sample: its id or file name.", show_default=False)
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Write a report with charts of the whole data set.")] = False,
    out_path: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="PNG of the sample, or directory of the report.",
            show_default="sample-ID.png or SHARDS-statistics",
        ),
    ] = None,
) -> None:
    """Look at one sample with its annotations, or at charts of all of them."""
    from jobs.inspect import inspect as run

    run(shards, sample=sample, stats=stats, out_path=out_path)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see configs/.", show_default=False)],
    overrides: Overrides = None,
    print_config: Annotated[bool, typer.Option("--print", help="Show the resolved config and stop.")] = False,
) -> None:
    """Train, evaluate and log a run. The same train.name continues where it stopped."""
    if print_config:
        from pipeline.configure import load_config, to_yaml

        text = to_yaml(load_config(config, overrides or ()))
        out.print(
            Syntax(text, "yaml", background_color="default") if out.is_terminal else Text(text), end="", soft_wrap=True
        )
        return
    from jobs.train import train as run

    run(config, overrides or [])


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint directory.", show_default=False)],
    data: Annotated[
        str, typer.Option(metavar="DIR_OR_URI", help="Shards: a directory or s3://, gs://.", show_default=False)
    ],
    overrides: Overrides = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Where results and pictures go.", show_default=False)
    ] = None,
) -> None:
    """Box and mask AP of a checkpoint."""
    from jobs.evaluate import evaluate_checkpoint as run

    run(checkpoint, data, overrides or [], out_dir)


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint directory.", show_default=False)],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE_OR_DIR...", help="What to look at.", show_default=False)
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="Where pictures and JSON go.", show_default=False)],
    score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Leave out detections below this score.")] = 0.5,
) -> None:
    """Draw boxes and masks on images of your own."""
    from jobs.predict import predict as run

    run(checkpoint, images, out_dir, score=score)


@app.command()
def ledger(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove that a run trained on each sample as planned, whatever was killed. Exit code 1 where it did not."""
    from jobs.ledger import ledger as run

    if not run(run_dir, as_json):
        raise typer.Exit(1)


@app.command()
def ui(
    runs: Annotated[Path, typer.Option(help="Directory of the runs.")] = Path("runs"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
) -> None:
    """Open the MLflow page of the runs."""
    from jobs.ui import ui as run

    run(runs, host=host, port=port)


benchmark_app = typer.Typer(help="Compare with other implementations in one run.", no_args_is_help=True)
app.add_typer(benchmark_app, name="benchmark")


@benchmark_app.command("accuracy")
def benchmark_accuracy(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, see configs/.", show_default=False)],
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each model.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
) -> None:
    """What our model learns against torchvision's, on the same batches, without Ray."""
    from jobs.benchmark import benchmark_accuracy as run

    run(config, overrides or [], seeds, threads)
