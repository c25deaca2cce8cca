import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.benchmarks.delivery import delivery_config, measure_delivery
from pipeline.benchmarks.memory import measure_epochs


@pytest.mark.slow
def test_every_way_delivers(local_ray: None, shapes: Path) -> None:
    config = delivery_config(str(shapes / "train"), 2, 64)
    rounds: list[int] = []
    found = measure_delivery(config, 20, 1, 1, rounds.append)
    assert [one.way for one in found] == [
        "bare loop",
        "Ray, decoded in the worker",
        "Ray, decoded in tasks",
        "PyTorch DataLoader",
    ]
    assert all(len(one.images_per_second) == 1 and one.images_per_second[0] > 0 for one in found)
    assert rounds == [1]


@pytest.mark.slow
def test_memory_is_taken_after_each_epoch(local_ray: None, shapes: Path) -> None:
    config = delivery_config(str(shapes / "train"), 4, 64)
    epochs: list[int] = []
    found = measure_epochs(replace(config, data=replace(config.data, task_rows=4)), 3, 1, epochs.append)
    assert epochs == [1, 2, 3] and len(found) == 3
    assert all(megabytes > 100 for megabytes in found)  # Python, torch and Ray


GROWING = """
import subprocess, sys
from pipeline.benchmarks.memory import tree_megabytes

before = tree_megabytes()
held = bytearray(b"1") * (64 << 20)
child = "held = bytearray(b'1') * (32 << 20); print(flush=True); input()"
with subprocess.Popen([sys.executable, "-c", child], stdin=-1, stdout=-1) as process:
    process.stdout.readline()
    print(tree_megabytes() - before)
    process.kill()
"""


def test_memory_is_that_of_this_process_and_its_children() -> None:
    root = str(Path(__file__).parents[3])
    ran = subprocess.run(
        [sys.executable, "-c", GROWING], cwd=root, capture_output=True, text=True, timeout=120, check=True
    )
    assert 64 + 32 < float(ran.stdout) < 64 + 32 + 40  # and a Python
