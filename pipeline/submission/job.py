"""One job on a cluster: submit it, follow what it prints, learn how it ended."""

import asyncio
import contextlib
import os
import shlex
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from ray.job_submission import JobDetails, JobSubmissionClient

from pipeline.submission.client import SubmissionError, UnreachableError, explained

_POLL_SECONDS = 1.0
_CONNECTIONS = 5  # of one log one after the other that bring nothing new, before we give up
_AWAY_SECONDS = 300.0  # a network or a head may be away so long
_PLAIN_OUTPUT = {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"}  # lines arrive as they are printed; tables stay whole
# Seconds until a job that is asked to end is killed. Ray waits for 3, and a search takes 15 to end its trainings.
_TIME_TO_END = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}


@dataclass(frozen=True)
class Environment:
    """What the job finds. At most one of pip, uv and image."""

    pip: tuple[str, ...] = ()
    uv: tuple[str, ...] = ()
    image: str | None = None
    secrets: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if bool(self.pip) + bool(self.uv) + bool(self.image) > 1:
            raise SubmissionError("--pip, --uv and --image are three ways to an environment; give one of them")

    def runtime_env(self, package: Path | None) -> dict[str, Any]:
        """In Ray's words. An image brings its own code: Ray takes no package beside it."""
        chosen = {"pip": list(self.pip), "uv": list(self.uv), "image_uri": self.image}
        where = {} if package is None or self.image else {"working_dir": str(package)}
        return (
            {k: v for k, v in chosen.items() if v} | where | {"env_vars": _PLAIN_OUTPUT | _TIME_TO_END | self.secrets}
        )


def read_secrets(names: Sequence[str]) -> dict[str, str]:
    """Their values, of our environment."""
    for name in names:
        if "=" in name:
            raise SubmissionError(
                f"--secret takes a name alone, and {name.partition('=')[0]!r} came with a value, which other users "
                "can read from the list of processes; export it and give its name"
            )
    absent = [name for name in names if name not in os.environ]
    if absent:
        raise SubmissionError(f"--secret {', '.join(absent)}: not in the environment; export it first")
    return {name: os.environ[name] for name in names}


def read_requirements(words: Sequence[str]) -> tuple[str, ...]:
    """Packages; a word that is a file stands for its lines."""
    found: list[str] = []
    for word in words:
        if Path(word).is_file():
            lines = (line.split(" #")[0].strip() for line in Path(word).read_text(encoding="utf-8").splitlines())
            found += [line for line in lines if line and not line.startswith("#")]
        elif word.endswith(".txt"):
            raise SubmissionError(f"{word}: there is no such file of requirements")
        else:
            found.append(word)
    return tuple(found)


def submit(client: JobSubmissionClient, words: Sequence[str], environment: Environment, package: Path | None) -> str:
    """Start `maskrcnn WORDS` on the cluster; returns the id of the job.

    It runs on the head, unless Ray places it elsewhere, and finds the cluster in the RAY_ADDRESS that Ray gives it.
    """
    entrypoint = shlex.join(["python", "-m", "jobs", *words])
    with explained(client.get_address()):
        return str(client.submit_job(entrypoint=entrypoint, runtime_env=environment.runtime_env(package)))


def describe(client: JobSubmissionClient, job: str) -> JobDetails:
    """What Ray knows of it."""
    with explained(client.get_address()):
        try:
            return client.get_job_info(job)
        except RuntimeError as error:
            raise _unknown(client, job, error) from error


def stop(client: JobSubmissionClient, job: str, seconds: float = 75.0) -> JobDetails:
    """Ask it to end (Ray kills it a minute later) and wait until it has."""
    describe(client, job)
    with explained(client.get_address()):
        client.stop_job(job)
    return wait(client, job, seconds)


def wait(client: JobSubmissionClient, job: str, seconds: float | None = None) -> JobDetails:
    """Until it has ended, or so long. The job does not depend on our connection: one that breaks is made again.

    Raises:
        UnreachableError: for minutes; the job may go on.
    """
    end = None if seconds is None else time.monotonic() + seconds
    heard = time.monotonic()
    while True:
        try:
            details = describe(client, job)
        except UnreachableError as error:
            if time.monotonic() - heard > _AWAY_SECONDS:
                raise UnreachableError(f"{error}. {job} may go on: `maskrcnn jobs list`") from error
        else:
            heard = time.monotonic()
            if details.status.is_terminal() or (end is not None and heard >= end):
                return details
        time.sleep(_POLL_SECONDS)


def logs(client: JobSubmissionClient, job: str) -> str:
    """All that it printed until now, stdout and stderr in one."""
    describe(client, job)
    with explained(client.get_address()):
        return str(client.get_job_logs(job))


def follow(client: JobSubmissionClient, job: str, show: Callable[[str], None]) -> JobDetails:
    """Show what it prints as it prints it, and return how it ended. A connection that breaks is made again."""
    describe(client, job)
    log = _Log(show)
    in_vain = 0
    while in_vain < _CONNECTIONS:
        before = log.shown
        with contextlib.suppress(RuntimeError, OSError, aiohttp.ClientError):
            asyncio.run(log.read(client.tail_job_logs(job)))
        details = wait(client, job, 10 * _POLL_SECONDS)
        if details.status.is_terminal():
            return details
        in_vain = 0 if log.shown > before else in_vain + 1
    raise SubmissionError(
        f"the log of {job} broke off {_CONNECTIONS} times without a word; the job may go on: `maskrcnn jobs list`"
    )


class _Log:
    """What was shown of a log, each connection to which starts with its first character."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self.shown = show, 0  # shown: characters

    async def read(self, chunks: AsyncIterator[str]) -> None:
        position = 0
        async for chunk in chunks:
            fresh = chunk[max(self.shown - position, 0) :]
            position += len(chunk)
            self.shown = max(self.shown, position)
            if fresh:
                self._show(fresh)


def exit_code(details: JobDetails) -> int:
    """The job's own where Ray tells it, as a shell would say it; else 1 for all but success."""
    if details.status == "SUCCEEDED":
        return 0
    code = details.driver_exit_code
    if not code:
        return 1
    return int(code) if code > 0 else 128 - int(code)


def _unknown(client: JobSubmissionClient, job: str, error: RuntimeError) -> SubmissionError:
    if "404" in str(error):
        return SubmissionError(f"{client.get_address()} knows no job {job}; `maskrcnn jobs list` shows those it has")
    return SubmissionError(f"{client.get_address()} refused: {error}")
