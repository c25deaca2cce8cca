"""Nodes without GPUs decode: a cluster of two nodes, of which the one that trains has no CPU to give."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data.loader import training_batches
from pipeline.data.plan import plan_of
from pipeline.data.stream import Reading, tasks_dataset


def where(task):
    return pa.table({"node": [ray.get_runtime_context().get_node_id()]})


def refuse(sample_id, reason):
    raise AssertionError((sample_id, reason))


cluster = Cluster()
cluster.add_node(num_cpus=0)
other = cluster.add_node(num_cpus=2)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
try:
    assert ray.get_runtime_context().get_node_id() != other.node_id
    rows = tasks_dataset([{"x": i} for i in range(4)], where, {}, Reading(4, 2, 1.0, 1 << 20, 2)).iter_rows()
    assert {row["node"] for row in rows} == {other.node_id}
    shards = sys.argv[1]
    data = DataConfig(train=shards, val=shards, train_sizes_px=(64,), task_rows=4, decode="cluster")
    config = RunConfig(data=data, train=TrainConfig(batch_images=4))
    batches = training_batches(config, plan_of(config), range(8), 0, 1, 1, 2.0, refuse)
    print("images", sum(len(batch.images) for batch in batches))
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow
def test_another_node_decodes(shapes: Path) -> None:
    # A head started like this asks for the token that `ray start` would make.
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(),
    }
    environment.pop("RAY_ADDRESS", None)
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(shapes / "train")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "images 32" in ran.stdout
