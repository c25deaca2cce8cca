"""`maskrcnn submit` and `maskrcnn jobs`: send a verb to a Ray cluster, follow it, list and stop what runs there."""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from jobs.console import err, out
from jobs.submitted_verb import check_verb
from pipeline.errors import UserError
from pipeline.submission import job as cluster_job
from pipeline.submission.client import connect, explained
from pipeline.submission.package import Package, list_package, megabytes, write_package

_SHOWN_LEFT_OUT = 5
_TAIL_LINES = 40


@dataclass(frozen=True)
class Wishes:
    """What the options say."""

    directory: Path
    limit_mb: float
    pip: tuple[str, ...]
    uv: tuple[str, ...]
    image: str | None
    secrets: tuple[str, ...]
    follow: bool
    wait: bool


def submit(address: str, words: Sequence[str], wishes: Wishes) -> int:
    """Run it; returns the exit code of the job, or 0 where nobody waits for it. What can be refused is, before it."""
    if wishes.follow and wishes.wait:
        raise UserError("--follow waits too; give --follow, or --wait to see no log")
    environment = cluster_job.Environment(
        cluster_job.read_requirements(wishes.pip),
        cluster_job.read_requirements(wishes.uv),
        wishes.image,
        cluster_job.read_secrets(wishes.secrets),
    )
    package = None if wishes.image else list_package(wishes.directory, wishes.limit_mb)
    for warning in check_verb(words, package):
        err.print(f"warning: {warning}", soft_wrap=True, highlight=False, markup=False)
    client = connect(address)
    if package is None:
        job = cluster_job.submit(client, words, environment, None)
    else:
        with tempfile.TemporaryDirectory(prefix="maskrcnn-submit-") as scratch, err.status("sending the package"):
            path = Path(scratch) / "package.zip"
            zipped = write_package(package, path)
            _introduce(package, zipped)
            job = cluster_job.submit(client, words, environment, path)
    if wishes.secrets:
        _say(
            "secrets", f"{', '.join(wishes.secrets)} (Ray keeps their values unencrypted; who has its token reads them)"
        )
    _say("job", job)
    if wishes.follow:
        return _follow(client, job, address)
    if wishes.wait:
        return _wait(client, job, address)
    _say_how_to_go_on(job, address)
    return 0


def show_jobs(address: str) -> None:
    """As a table."""
    client = connect(address)
    with explained(client.get_address()):
        jobs = [entry for entry in client.list_jobs() if entry.submission_id]
    if not jobs:
        out.print("no jobs were submitted to this cluster")
        return
    table = Table(box=None, pad_edge=False)
    for head in ("job", "status", "started", "exit"):
        table.add_column(head, no_wrap=True)  # an id is there to be copied
    table.add_column("command", overflow="fold")
    for entry in sorted(jobs, key=lambda entry: entry.start_time or 0, reverse=True):
        started = f"{datetime.fromtimestamp(entry.start_time / 1000):%Y-%m-%d %H:%M:%S}" if entry.start_time else "-"
        code = "-" if entry.driver_exit_code is None else str(entry.driver_exit_code)
        command = entry.entrypoint.removeprefix("python -m jobs ")
        table.add_row(*map(Text, (entry.submission_id, str(entry.status), started, code, command)))
    out.print(table)


def show_logs(address: str, job: str, follow: bool) -> int:
    """Print them; returns the job's exit code where it was followed to its end."""
    client = connect(address)
    if follow:
        return _follow(client, job, address)
    _print_raw(cluster_job.logs(client, job))
    return 0


def stop_job(address: str, job: str) -> None:
    """And say how it ended."""
    details = cluster_job.stop(connect(address), job)
    if not details.status.is_terminal():
        raise UserError(f"{job} is asked to end and has not yet ({details.status}); see `maskrcnn jobs list`")
    out.print(f"{job} {details.status}", highlight=False)


def _introduce(package: Package, zipped_bytes: int) -> None:
    count = len(package.sizes_bytes)
    _say("package", f"{count} files, {megabytes(package.bytes)}, zipped {megabytes(zipped_bytes)}, of {package.root}")
    if package.left_out:
        more = len(package.left_out) - _SHOWN_LEFT_OUT
        shown = ", ".join(package.left_out[:_SHOWN_LEFT_OUT]) + (f" and {more} more" if more > 0 else "")
        _say("left out", f"{shown} (secrets, links to elsewhere, repositories inside)")


def _follow(client: Any, job: str, address: str) -> int:
    try:
        details = cluster_job.follow(client, job, _print_raw)
    except KeyboardInterrupt:
        err.print(f"\nno longer followed, {job} goes on")
        _say_how_to_go_on(job, address)
        return 130
    return _end(details, job)


def _wait(client: Any, job: str, address: str) -> int:
    try:
        with err.status(f"waiting for {job}"):
            details = cluster_job.wait(client, job)
    except KeyboardInterrupt:
        err.print(f"\nno longer waited for, {job} goes on")
        _say_how_to_go_on(job, address)
        return 130
    if details.status != "SUCCEEDED" and details.driver_exit_code is not None:
        _print_raw("\n".join(cluster_job.logs(client, job).splitlines()[-_TAIL_LINES:]) + "\n")
    return _end(details, job)


def _end(details: Any, job: str) -> int:
    """Say it, and return the exit code."""
    code = cluster_job.exit_code(details)
    if code:
        # Where the job itself ran, its log has said why; where it could not start, Ray's message alone does.
        why = f": {details.message}" if details.driver_exit_code is None and details.message else ""
        err.print(Text(f"{job} {details.status}, exit code {code}{why}"), soft_wrap=True)
    else:
        err.print(f"{job} {details.status}", highlight=False)
    return code


def _say(word: str, text: str) -> None:
    err.print(Text(f"{word:<12}{text}"), soft_wrap=True)


def _say_how_to_go_on(job: str, address: str) -> None:
    _say("follow", f"maskrcnn jobs logs {job} --follow --address {address}")
    _say("stop", f"maskrcnn jobs stop {job} --address {address}")


def _print_raw(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
