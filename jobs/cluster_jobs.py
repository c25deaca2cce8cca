"""The words of `maskrcnn submit` and `maskrcnn jobs`; what submit does is in submit.py.

maskrcnn submit --address http://HOST:8265 --follow -- train CONFIG cluster.runs_dir=/shared/runs
maskrcnn jobs list
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Jobs on a Ray cluster: list them, read their logs, stop them.", no_args_is_help=True)

Address = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS", metavar="URL", help="Dashboard of the cluster, such as http://HOST:8265."
    ),
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="Its id, see `maskrcnn jobs list`.", show_default=False)]
LOCAL = "http://127.0.0.1:8265"


def submit(
    words: Annotated[
        list[str],
        typer.Argument(metavar="-- VERB ARGUMENT...", help="What maskrcnn is to do there.", show_default=False),
    ],
    address: Address = LOCAL,
    follow: Annotated[
        bool, typer.Option("--follow", help="Show what it prints. Ctrl-C leaves it running; exit code is the job's.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end alone; exit code is the job's.")] = False,
    directory: Annotated[
        Path, typer.Option(metavar="DIR", help="Sent along, without what .gitignore names; the job starts in it.")
    ] = Path(),
    limit_mb: Annotated[float, typer.Option(min=0.0, help="Refuse to send more.")] = 100.0,
    pip: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE_OR_PACKAGE", help="Install with pip; may be repeated.", show_default=False),
    ] = None,
    uv: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE_OR_PACKAGE", help="Install with uv; may be repeated.", show_default=False),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(help="Container image with all of it: nothing is sent along.", show_default=False),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Hand on this variable of our environment; may be repeated. Ray keeps it unencrypted on the cluster.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run a verb on a Ray cluster: maskrcnn submit --follow -- train CONFIG KEY=VALUE..."""
    from jobs.submit import Wishes
    from jobs.submit import submit as run

    code = run(
        address,
        words,
        Wishes(
            directory=directory,
            limit_mb=limit_mb,
            pip=tuple(pip or ()),
            uv=tuple(uv or ()),
            image=image,
            secrets=tuple(secret or ()),
            follow=follow,
            wait=wait,
        ),
    )
    if code:
        raise typer.Exit(code)


@app.command("list")
def list_jobs(address: Address = LOCAL) -> None:
    """The jobs that the cluster knows, newest first."""
    from jobs.submit import show_jobs

    show_jobs(address)


@app.command("logs")
def logs(
    job: Job,
    address: Address = LOCAL,
    follow: Annotated[
        bool, typer.Option("--follow", help="Until it ends; exit code is the job's. Ctrl-C leaves it running.")
    ] = False,
) -> None:
    """What a job printed."""
    from jobs.submit import show_logs

    code = show_logs(address, job, follow)
    if code:
        raise typer.Exit(code)


@app.command("stop")
def stop(job: Job, address: Address = LOCAL) -> None:
    """End a job. Its run can be continued: the same train.name goes on at its last checkpoint."""
    from jobs.submit import stop_job

    stop_job(address, job)
