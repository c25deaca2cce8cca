"""The `maskrcnn` command as users start it, with every process that comes of it (Ray's too) in sight.

They carry a mark in their environment, by which they are found in /proc even when their parent is gone.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

_MARK = "MASKRCNN_TEST_MARK"
has_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")


class Maskrcnn:
    """One started command. As a context manager it ends what is left of it."""

    def __init__(
        self, *words: str | Path, cwd: Path, program: str = "maskrcnn", environment: dict[str, str] | None = None
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.ray = tempfile.mkdtemp(prefix="mr-")  # short: it holds sockets, whose paths may have 107 characters
        ours = {_MARK: self.mark, "RAY_TMPDIR": self.ray, "COLUMNS": "120", "PYTHONUNBUFFERED": "1"}
        environment = os.environ | ours | (environment or {})
        environment.pop("RAY_ADDRESS", None)
        self._files = [tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")]  # noqa: SIM115 - closed in close()
        command = [str(word) for word in (Path(sys.executable).parent / program, *words)]
        out, err = self._files
        self.process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def __enter__(self) -> "Maskrcnn":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for file in self._files:
            file.close()
        shutil.rmtree(self.ray, ignore_errors=True)

    @property
    def stdout(self) -> str:
        return self._read(0)

    @property
    def stderr(self) -> str:
        return self._read(1)

    def _read(self, which: int) -> str:
        with open(f"/proc/self/fd/{self._files[which].fileno()}", encoding="utf-8") as file:  # noqa: PTH123
            return file.read()

    def pids(self, title: str = "") -> list[int]:
        """Processes of this command that are alive, whose title begins so."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                marked = f"{_MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
                if marked and (entry / "cmdline").read_bytes().startswith(title.encode()):
                    found.append(int(entry.name))
        return found

    def wait(self, seconds: float = 600) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.stdout}\n{self.stderr}") from None

    def wait_until(self, reached: Callable[[], bool], seconds: float = 600) -> None:
        """Poll while the command runs."""
        end = time.monotonic() + seconds
        while not reached():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.stdout}\n{self.stderr}"
            assert time.monotonic() < end, f"not reached in {seconds} s:\n{self.stdout}\n{self.stderr}"
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL to all of it, the starter first."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        while pids := self.pids():  # again: what was just being started
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def run(*words: str | Path, cwd: Path, seconds: float = 600) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of a command that ends by itself."""
    with Maskrcnn(*words, cwd=cwd) as command:
        code = command.wait(seconds)
        return code, command.stdout, command.stderr
