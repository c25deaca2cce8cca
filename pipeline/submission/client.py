"""The way to a cluster's jobs: its address and token, and errors that say which of both is wrong."""

import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from pipeline.errors import UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_ANSWER_SECONDS = 15.0
_OVERRIDING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class SubmissionError(UserError):
    """The cluster does not take or know a job."""


class UnreachableError(SubmissionError):
    """Nobody answers, now."""


def connect(address: str) -> JobSubmissionClient:
    """The jobs of the cluster whose dashboard is at http://HOST:8265."""
    url = _url(address)
    token = find_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    _expect_dashboard(url, headers)
    for name in ("dashboard_sdk", "job.sdk"):  # they report each upload and each end of a log
        logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
    with _without_ray_addresses(), explained(url):
        return JobSubmissionClient(url, headers=headers)


def find_token() -> str | None:
    """As Ray looks for it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError as error:
        if named:
            raise SubmissionError(
                f"RAY_AUTH_TOKEN_PATH is {named}, which cannot be read ({error.strerror}); copy the head's token there"
            ) from error
        return None


@contextmanager
def explained(url: str) -> Iterator[None]:
    """What the cluster refuses, and a connection that breaks, as an error for the user."""
    try:
        yield
    except AuthenticationError as error:
        raise _wrong_token(url) from error
    except (ConnectionError, OSError) as error:
        raise _unreachable(url, str(error)) from error
    except RuntimeError as error:
        raise SubmissionError(f"{url} refused: {error}") from error


def _url(address: str) -> str:
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is none, half a bracket
        right = False
    if not right or any(character.isspace() for character in url):
        raise SubmissionError(
            f"{address} is no address of a dashboard, which is where jobs are taken; give http://HOST:8265"
        )
    return url.rstrip("/")


def _expect_dashboard(url: str, headers: dict[str, str]) -> None:
    """Ray's own client waits for ever where nobody answers, and has one message for all that can be wrong."""
    request = urllib.request.Request(f"{url}/api/version", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            told = json.load(answer)
            known = isinstance(told, dict) and "ray_version" in told
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise SubmissionError(
                f"{url} wants a token, and there is none here; set RAY_AUTH_TOKEN_PATH to a copy of the head's token "
                "(`ray get-auth-token` shows it there), or RAY_AUTH_TOKEN to the token"
            ) from error
        if error.code == 403:
            raise _wrong_token(url) from error
        known = False
    except (ValueError, http.client.HTTPException):  # no JSON; no HTTP, as at the port of the GCS
        known = False
    except OSError as error:
        raise _unreachable(url, str(getattr(error, "reason", error))) from error
    if not known:
        raise SubmissionError(f"what answers at {url} is no Ray dashboard; its port is 8265 unless the head changed it")


def _wrong_token(url: str) -> SubmissionError:
    return SubmissionError(
        f"{url} does not accept our token; it must be the head's: RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH, "
        "else ~/.ray/auth_token"
    )


def _unreachable(url: str, reason: str) -> UnreachableError:
    return UnreachableError(
        f"no Ray cluster answers at {url} ({reason}); check --address, that the head runs, and that it was started "
        "with a --dashboard-host that this machine reaches (or forward the port: ssh -L 8265:127.0.0.1:8265 HEAD)"
    )


@contextmanager
def _without_ray_addresses() -> Iterator[None]:
    """Ray lets these overrule an address that was given."""
    saved = {name: os.environ.pop(name) for name in _OVERRIDING if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(saved)
