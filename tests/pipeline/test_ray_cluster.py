"""Joining a Ray, and what it costs to be able to."""

import subprocess
import sys

import pytest
import ray

from pipeline.config import ClusterConfig
from pipeline.ray_cluster import ClusterError, start_ray


def test_no_cluster_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise ConnectionError(f"nobody at {options['address']}")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(
        ClusterError, match=r"no Ray cluster answers at 10\.0\.0\.1:6379 \(nobody.*check cluster\.address"
    ):
        start_ray(ClusterConfig(address="10.0.0.1:6379"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    with pytest.raises(ClusterError, match=r"at 10\.0\.0\.2:6379"):
        start_ray(ClusterConfig())


def test_sharding_on_ray_imports_neither_torch_nor_ray_train() -> None:
    script = (
        "import sys, pipeline.ray_cluster, jobs.shard, pipeline.data.sharding\n"
        "print(sorted({'torch', 'ray.train', 'ray.data', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
