from pathlib import Path

import pytest

from pipeline.benchmarks.reading import measure_index, measure_reading, measure_sharding, measure_windows
from pipeline.data.shards import load_index


def test_sharding_is_timed_and_leaves_shards(shapes: Path, tmp_path: Path) -> None:
    coco = shapes / "coco"
    found = measure_sharding(coco / "annotations/instances_val.json", coco / "val", tmp_path / "shards")
    assert found.images == 8 == load_index(tmp_path / "shards").num_rows
    assert found.images_per_cpu_second > 0


def test_at_least_what_is_used_is_read(shapes: Path) -> None:
    few, all_at_once = (measure_reading(shapes / "train", 4, rows) for rows in (1, 24))
    assert few.bytes_a_used_byte > all_at_once.bytes_a_used_byte >= 1  # single rows share nothing
    assert few.metadata_share == all_at_once.metadata_share or all_at_once.metadata_share == 0  # read once a process
    assert few.requests_a_row >= all_at_once.requests_a_row > 0


def test_a_large_index_loads(tmp_path: Path) -> None:
    found = measure_index(tmp_path, rows=2000)
    assert found.rows == 2000 and found.load_seconds > 0 and found.plan_seconds > 0
    assert 0.05 < found.megabytes < 1


def test_larger_windows_are_more_random_and_less_local() -> None:
    found = measure_windows(rows=20_000)
    assert [one.window_groups for one in found] == [16, 64, 128, 256, 512, 1024]
    assert found[0].repeated_mates > 4 * found[3].repeated_mates
    assert found[0].groups_a_task < found[3].groups_a_task
    assert found[-1].repeated_mates == pytest.approx(1, abs=0.3)
