"""What the generated data sets (shapes, streets) share: a directory that is known to be ours, and many processes."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from pipeline.data.quarantine import DataError

Progress = Callable[[int, int], None]  # (images done, images in all)
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def claim(out: Path, marker: str, settings: dict[str, Any], folders: Iterable[str]) -> bool:
    """Make `out` ours; True where it was made by exactly these settings before, perhaps not completely.

    The marker, a JSON file of the settings, is written before anything else. Other settings empty the folders. Raises
    DataError where `out` holds something and no marker.
    """
    path = out / marker
    if path.exists():
        if json.loads(path.read_bytes()) == settings:
            return True
        for name in folders:  # ours: the marker says so
            shutil.rmtree(out / name, ignore_errors=True)
    elif out.exists() and any(out.iterdir()):
        raise DataError(f"{out} is not empty and was not made by this generator; give an empty or a new directory")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(settings).encode())
    return False


def run(
    work: Callable[[_Task], _Result], tasks: Sequence[_Task], workers: int | None
) -> Iterator[tuple[_Task, _Result]]:
    """Each task with its result, as they are done; in processes of their own if there is more than one worker."""
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(tasks) < 2:
        for task in tasks:
            yield task, work(task)
        return
    context = multiprocessing.get_context("spawn")  # fork would copy the caller's threads' locks
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        futures = {pool.submit(work, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside and rename it: it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
