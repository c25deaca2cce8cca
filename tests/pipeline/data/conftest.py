"""Data sets: a tiny one to spoil, and real pictures where the machine has them."""

from pathlib import Path

import pytest
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
