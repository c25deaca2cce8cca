"""The `maskrcnn` command: one verb a file beside this one, imported only when it is used.

Groups of verbs: shard_formats.py, benchmarks.py, cluster_jobs.py, cluster.py. Those that train: training_verbs.py,
search_verbs.py.

    maskrcnn shard shapes --out data/shapes
    maskrcnn train configs/shapes/quickstart.yaml train.steps=200

What the user can put right (a `UserError`) is shown as one `error:` on stderr with exit code 2. Anything else is a
bug of ours and keeps its traceback.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text
from typer.core import TyperGroup

from jobs import benchmarks, cluster, cluster_jobs, search_verbs, shard_formats, training_verbs
from jobs.arguments import Overrides
from jobs.console import err, out, stop_on_sigterm
from pipeline.errors import UserError


class Verbs(TyperGroup):
    """A group of verbs that shows expected errors without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        stop_on_sigterm()
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
app.add_typer(shard_formats.app, name="shard")
app.add_typer(benchmarks.app, name="benchmark")
app.add_typer(cluster_jobs.app, name="jobs")
app.add_typer(cluster.app, name="cluster")


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
    augment: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG", help="Draw the sample beside what it trains as with this YAML file.", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
    out_path: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="PNG of the sample, or directory of the report.",
            show_default="sample-ID.png or SHARDS-statistics",
        ),
    ] = None,
) -> None:
    """Look at one sample with its annotations, at what augmentation makes of it, or at charts of all samples."""
    from jobs.inspect import inspect as run

    run(shards, sample=sample, stats=stats, augment=augment, overrides=overrides or [], out_path=out_path)


for verb in (
    *(training_verbs.train, training_verbs.transfer, training_verbs.finetune, cluster_jobs.submit),
    *(search_verbs.tune, search_verbs.paper),
):
    app.command()(verb)


@app.command()
def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT", help="Checkpoint directory.", show_default=False)
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DIR_OR_URI", help="Shards: a directory or s3://, gs://.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Where results and pictures go.", show_default=False)
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="Score these results, in COCO's format, of any system.", show_default=False),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Their ground truth: COCO's or LVIS's.", show_default=False)
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="box|mask|keypoint|proposal", help="What of them is scored.", show_default="box"),
    ] = None,
    categories: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Score these alone.", show_default="all")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(metavar="columns|hotcoco|pycocotools", help="Of --predictions.", show_default="columns"),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples of the images, for intervals of AP; 1000 are usual.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores of --predictions as JSON.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write report.html there: errors, charts, galleries.",
            show_default="with a checkpoint OUT/report",
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Pictures of --annotations, for the report's galleries.", show_default=False),
    ] = None,
    report_pictures: Annotated[
        int | None, typer.Option(min=0, help="In each gallery of the report.", show_default="6")
    ] = None,
) -> None:
    """AP of a checkpoint, or of a file of results: maskrcnn evaluate --predictions R.json --annotations A.json."""
    names = None if categories is None else [name.strip() for name in categories.split(",")]
    if predictions is not None or annotations is not None:
        from jobs.score import ReportWish, score

        if predictions is None or annotations is None or checkpoint is not None or data is not None:
            raise UserError(
                "--predictions and --annotations go together, without a checkpoint and without --data; "
                "give either both of them or CHECKPOINT --data SHARDS"
            )
        if report is None and (images is not None or report_pictures is not None):
            raise UserError("--images and --report-pictures are of the report; give --report DIR too")
        wanted = (
            None if report is None else ReportWish(report, images, 6 if report_pictures is None else report_pictures)
        )
        engine, task = engine or "columns", task or "box"
        score(predictions, annotations, task, names, engine, bootstrap=bootstrap, as_json=as_json, report=wanted)
        return
    if checkpoint is None or data is None:
        raise UserError("there is nothing to score; give CHECKPOINT --data SHARDS, or --predictions and --annotations")
    if task is not None or engine is not None or as_json or images is not None:
        raise UserError(
            "--task, --engine, --images and --json go with --predictions; a checkpoint is scored for all that it "
            "finds, by evaluate.engine, into ap.json, and its report has the pictures of the shards"
        )
    from jobs.evaluate import evaluate_checkpoint as run

    chosen = [] if names is None else [f"evaluate.categories=[{', '.join(map(_quoted, names))}]"]
    if bootstrap:
        chosen.append(f"evaluate.bootstrap={bootstrap}")
    if report is not None:
        chosen.append("evaluate.report=true")
    if report_pictures is not None:
        chosen.append(f"evaluate.report_pictures={report_pictures}")
    run(checkpoint, data, [*(overrides or []), *chosen], out_dir, report)


@app.command()
def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="Results: a JSON file, a run's or evaluation's directory, or an MLflow run id."
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The other system's, on the same images.")],
    annotations: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON", help="Ground truth: COCO's or LVIS's.", show_default="the shards that were evaluated"
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR_OR_URI", help="Where these shards lie now.", show_default="where they lay"),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="box|mask|keypoint", help="What is compared.", show_default="mask, where both have it"),
    ] = None,
    categories: Annotated[
        str | None, typer.Option(metavar="NAME,NAME", help="Compare on these alone.", show_default="all")
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Of the images.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resamples.")] = 0,
    runs: Annotated[Path, typer.Option(help="Directory with the MLflow store of run ids.")] = Path("runs"),
    uri: Annotated[
        str | None,
        typer.Option(help="MLflow tracking URI.", show_default="MLFLOW_TRACKING_URI, or the store in --runs"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Is B better than A? Differences of AP, with intervals and p-values from resamples of the images."""
    from jobs.compare import Options
    from jobs.compare import compare as run

    names = None if categories is None else [name.strip() for name in categories.split(",")]
    run(a, b, Options(annotations, data, task, names, resamples, seed, runs, uri), as_json=as_json)


def _quoted(text: str) -> str:
    """As YAML."""
    return "'" + text.replace("'", "''") + "'"


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint directory.", show_default=False)],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE_OR_DIR...", help="What to look at.", show_default=False)
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="Where pictures and JSON go.", show_default=False)],
    score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Leave out detections below this score.")] = 0.5,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change the configuration (again and again).", show_default=False
        ),
    ] = None,
) -> None:
    """Draw boxes and masks on images of your own."""
    from jobs.predict import predict as run

    run(checkpoint, images, out_dir, score=score, overrides=settings or [])


@app.command("import")
def import_(
    weights: Annotated[
        Path, typer.Argument(metavar="FILE", help="State dict: .pth or .safetensors.", show_default=False)
    ],
    out_dir: Annotated[
        Path, typer.Option("--out", metavar="CHECKPOINT", help="Directory to make.", show_default=False)
    ],
    overrides: Overrides = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_NAMES",
            help="Names of the classes, in the order of the file's rows: a file with one a line, or cat,dog,...",
            show_default="COCO's, where the file is of them",
        ),
    ] = None,
) -> None:
    """Make a checkpoint of a torchvision detector: Faster, Mask or Keypoint R-CNN, v1 or v2, on any ResNet.

    Network and conventions are recognised from the file. What it cannot say is set with KEY=VALUE:
    model.trunk.norm_eps=0 for weights that come from torchvision's own COCO weights of v1 (those files themselves are
    recognised), model.rpn.anchors.ratios=... for other anchors.
    """
    from jobs.import_weights import import_weights as run

    run(weights, out_dir, classes, overrides or [])


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint directory.", show_default=False)],
    out_path: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="File to write: .pth or .safetensors.", show_default=False)
    ],
    zoo: Annotated[Literal["torchvision"], typer.Option("--format", help="Whose names.")] = "torchvision",
) -> None:
    """Write the weights of a checkpoint for a torchvision builder, and say how to load them."""
    from jobs.export_weights import export_weights as run

    run(checkpoint, out_path)


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
