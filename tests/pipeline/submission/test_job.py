"""The environment of a job, its secrets, its log over connections that break, its exit code; without a cluster."""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from pipeline.submission import job as jobs
from pipeline.submission.client import SubmissionError, UnreachableError
from pipeline.submission.job import Environment, exit_code, follow, read_requirements, read_secrets, submit


def details(status: JobStatus, code: int | None = None) -> Any:
    return SimpleNamespace(status=status, driver_exit_code=code, message="")


class Client:
    """Sends the log in chunks and breaks a connection where the plan says None."""

    def __init__(self, connections: list[list[str | None]], ends: JobStatus = JobStatus.SUCCEEDED) -> None:
        self.connections, self.ends, self.submitted = connections, ends, {}

    def get_address(self) -> str:
        return "http://head:8265"

    def submit_job(self, **given: Any) -> str:
        self.submitted = given
        return "job-1"

    def get_job_info(self, job: str) -> Any:
        return details(JobStatus.RUNNING if self.connections else self.ends, None if self.connections else 0)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for chunk in self.connections.pop(0):
            if chunk is None:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield chunk


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.001)


def test_what_ray_is_told():
    client = Client([])
    environment = Environment(pip=("a==1",), secrets={"KEY": "value"})
    assert submit(client, ["train", "c.yaml", "train.name=it's me"], environment, Path("p.zip")) == "job-1"
    assert client.submitted["entrypoint"] == """python -m jobs train c.yaml 'train.name=it'"'"'s me'"""
    sent = client.submitted["runtime_env"]
    assert sent["pip"] == ["a==1"] and sent["working_dir"] == "p.zip" and sent["env_vars"]["KEY"] == "value"
    assert int(sent["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30  # a search ends its trainings
    assert not {"uv", "image_uri"} & set(sent)
    image = Environment(image="ours:1").runtime_env(Path("p.zip"))
    assert image["image_uri"] == "ours:1" and "working_dir" not in image, "Ray refuses the two together"
    with pytest.raises(SubmissionError, match="give one of them"):
        Environment(pip=("a",), uv=("b",))


def test_secrets_go_by_name_and_are_not_shown(monkeypatch):
    monkeypatch.setenv("KEY", "open-sesame")
    monkeypatch.delenv("OTHER", raising=False)
    secrets = read_secrets(["KEY"])
    assert secrets == {"KEY": "open-sesame"}
    assert "open-sesame" not in repr(Environment(secrets=secrets))
    with pytest.raises(SubmissionError, match="OTHER: not in the environment"):
        read_secrets(["KEY", "OTHER"])
    with pytest.raises(SubmissionError, match="takes a name alone") as caught:
        read_secrets(["OTHER=open-sesame"])
    assert "open-sesame" not in str(caught.value)


def test_requirements_of_files_and_words(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("# ours\na==1  # why\n\nb @ git+https://host/b#egg=b\n")
    assert read_requirements([str(path), "c>=2"]) == ("a==1", "b @ git+https://host/b#egg=b", "c>=2")
    with pytest.raises(SubmissionError, match="no such file"):
        read_requirements([str(tmp_path / "absent.txt")])


@pytest.mark.parametrize(
    "connections",
    [
        [["ab", "cd", "ef"]],
        [["ab", None], ["abc", "def"]],
        [["ab", "c", None], ["a", None], ["abcde", None], ["a", "bcdef"]],
        [[None], ["abcdef"]],
    ],
)
def test_a_log_is_shown_once_though_connections_break(connections):
    shown = []
    assert follow(Client(connections), "job-1", shown.append).status == JobStatus.SUCCEEDED
    assert "".join(shown) == "abcdef"


def test_a_log_that_breaks_off_again_and_again():
    with pytest.raises(SubmissionError, match="broke off 5 times without a word; the job may go on"):
        follow(Client([[None]] * 9), "job-1", lambda _: None)


def test_a_log_that_breaks_off_with_something_new_each_time_is_followed_to_its_end():
    log, shown = "abcdefghijkl", []
    assert follow(Client([[log[:n], None] for n in range(1, 12)] + [[log]]), "job-1", shown.append).status.is_terminal()
    assert "".join(shown) == log


def test_a_network_that_is_away_for_a_while(monkeypatch):
    """Ray says ConnectionError where nobody answers."""

    class Away(Client):
        asked = 0

        def get_job_info(self, job: str) -> Any:
            self.asked += 1
            if self.asked % 3 == 2:
                raise ConnectionError("Network is unreachable")
            return super().get_job_info(job)

    shown: list[str] = []
    assert follow(Away([["ab", None], ["abcd"]]), "job-1", shown.append).status == JobStatus.SUCCEEDED
    assert "".join(shown) == "abcd"
    assert jobs.wait(Away([]), "job-1").status == JobStatus.SUCCEEDED
    monkeypatch.setattr(jobs, "_AWAY_SECONDS", 0.01)

    def away(job: str) -> Any:
        raise ConnectionError("Network is unreachable")

    gone = Client([])
    monkeypatch.setattr(gone, "get_job_info", away)
    with pytest.raises(UnreachableError, match=r"Network is unreachable.*job-1 may go on"):
        jobs.wait(gone, "job-1")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, None, 1),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.STOPPED, 0, 1),
        (JobStatus.STOPPED, None, 1),
    ],
)
def test_exit_code(status, code, expected):
    assert exit_code(details(status, code)) == expected
