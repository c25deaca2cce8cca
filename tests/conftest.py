"""What several folders need: tiny generated shards, and a Ray of our own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import CREDENTIALS, ObjectStore

from pipeline.data.coco import read_coco
from pipeline.data.quarantine import Quarantine
from pipeline.data.shapes import generate_shapes
from pipeline.data.sharding import shard_dataset

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and a console that is made then takes no other width
for _name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):  # a developer's own; tests log and compute in places of their own
    os.environ.pop(_name, None)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of generated scenes in train/ (24 images, 3 shards of up to 3 row groups) and val/ (8). Do not write."""
    root = tmp_path_factory.mktemp("shapes")
    generate_shapes(root / "coco", train=24, val=8, seed=3, size_px=64, workers=1)
    for split in ("train", "val"):
        dataset = read_coco(
            root / f"coco/annotations/instances_{split}.json", root / "coco" / split, Quarantine(strict=True)
        )
        shard_dataset(dataset, root / split, rows_per_shard=10, rows_per_group=4)
    return root


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray with two CPUs in this process; it joins no cluster that may run."""
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """An S3 of our own, on the loopback; its credentials mean nothing anywhere."""
    pytest.importorskip("moto")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        store = ObjectStore()
        yield store
        store.close()
