"""The words of `maskrcnn tune` and `paper`; what they do is in files of these names."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.arguments import Overrides
from pipeline.errors import UserError

RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="With --resume: also run trials that failed, from where they were.")
]


def tune(
    space: Annotated[
        Path | None, typer.Argument(metavar="SPACE", help="YAML file, see configs/tune/.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Go on with a search that was stopped.", show_default=False)
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where --resume looks for it.")] = Path("runs"),
    retry_failed: RetryFailed = False,
) -> None:
    """Search settings: trials are distributed trainings, the bad ones are stopped early. tune.KEY=VALUE says how."""
    if (space is None) == (resume is None) or (resume is not None and overrides):
        raise UserError("give SPACE [KEY=VALUE...] for a new search, or --resume NAME alone to go on with one")
    _check_retry(resume, retry_failed)
    _expect_many_processes()
    from jobs.tune import resume_tune
    from jobs.tune import tune as run

    if space is not None:
        run(space, overrides or [])
    else:
        resume_tune(runs, resume or "", retry_failed)


def paper(
    table: Annotated[
        str | None, typer.Argument(metavar="TABLE", help="1, 2a ... 2e, 3 ... 8.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    budget: Annotated[
        Literal["tiny", "short", "full"], typer.Option(help="tiny: generated scenes, about half an hour on two cores.")
    ] = "tiny",
    data: Annotated[
        Path | None, typer.Option(metavar="SHARDS", help="Directory of train/ and val/.", show_default=False)
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings a row.", show_default="tiny: 2, else 1")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="NAME", help="Go on with one that was stopped.", show_default=False)
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where runs and generated data go.")] = Path("runs"),
    retry_failed: RetryFailed = False,
) -> None:
    """Train the rows of a table of the Mask R-CNN paper, and show them beside its numbers."""
    if (table is None) == (resume is None) or (resume is not None and (overrides or data is not None)):
        raise UserError("give TABLE [KEY=VALUE...], or --resume NAME alone to go on with one that was stopped")
    _check_retry(resume, retry_failed)
    _expect_many_processes()
    from jobs.paper import paper as run
    from jobs.paper import resume_paper

    if table is not None:
        run(table, budget, data, runs, seeds, overrides or [])
    else:
        resume_paper(runs, resume or "", retry_failed)


def _expect_many_processes() -> None:
    """Trials are many processes, of which Ray would warn again and again. It reads this as it is imported."""
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")


def _check_retry(resume: str | None, retry_failed: bool) -> None:
    if retry_failed and resume is None:
        raise UserError("--retry-failed is of trials of a search that has begun; give --resume NAME with it")
