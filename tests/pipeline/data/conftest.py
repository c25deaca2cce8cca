"""Data sets: a tiny one to spoil, and real pictures where the machine has them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import CREDENTIALS, ObjectStore
from tiny_coco import TinyCoco


@pytest.fixture
def tiny(tmp_path: Path) -> TinyCoco:
    return TinyCoco(tmp_path / "coco")


@pytest.fixture(scope="session")
def coco_small() -> Path:
    path = Path(__file__).parents[3].parent / "shared/data/coco-small"
    if not path.is_dir():
        pytest.skip(f"needs real COCO pictures at {path}")
    return path


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """An S3 of our own, on the loopback; its credentials mean nothing anywhere."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
            patch.delenv(name, raising=False)
        store = ObjectStore()
        yield store
        store.close()
