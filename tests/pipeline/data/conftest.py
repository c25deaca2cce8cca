"""Data sets: a tiny one to spoil, and real pictures where the machine has them."""

from pathlib import Path

import pytest
from hypothesis import settings
from tiny_coco import TinyCoco

settings.register_profile("unhurried", deadline=None)  # the first example pays for imports, on a busy machine more
settings.load_profile("unhurried")


@pytest.fixture
def tiny(tmp_path: Path) -> TinyCoco:
    return TinyCoco(tmp_path / "coco")


@pytest.fixture(scope="session")
def coco_small() -> Path:
    path = Path(__file__).parents[3].parent / "shared/data/coco-small"
    if not path.is_dir():
        pytest.skip(f"needs real COCO pictures at {path}")
    return path
