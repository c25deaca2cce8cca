"""The order within an epoch, and how its randomness is measured."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.shuffle import in_batches, measure_window, shuffle


def filled_one_by_one(bucket: list[int], batch: int, head: int) -> list[int]:
    """The oracle: each entry waits in its bucket, which leaves when it is full."""
    order, waiting = list(range(head)), {number: [] for number in sorted(set(bucket))}
    for entry in range(head, len(bucket)):
        own = waiting[bucket[entry]]
        own.append(entry)
        if len(own) == batch:
            order += own
            own.clear()
    return order + [entry for own in waiting.values() for entry in own]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 9), st.data())
def test_batches_fill_one_by_one(bucket: list[int], batch: int, data: st.DataObject) -> None:
    head = data.draw(st.integers(0, min(batch - 1, len(bucket))))
    found = in_batches(np.array(bucket, dtype=np.int64), batch, head)
    assert found.tolist() == filled_one_by_one(bucket, batch, head)


def test_nothing_to_shuffle() -> None:
    assert shuffle(np.empty(0, dtype=np.int64), 4, np.random.default_rng(0)).tolist() == []


def figures(window: int, groups: int = 500, per_group: int = 8, **more: int) -> tuple[float, float]:
    group = np.repeat(np.arange(groups), per_group)
    bucket = np.zeros(len(group), dtype=np.int64)
    settings = {"batch_images": 16, "task_rows": 64, "epochs": 6} | more
    found = measure_window(group, bucket, window_groups=window, **settings)
    assert found.window_groups == window
    return found.repeated_mates, found.groups_a_task


def test_a_window_of_everything_is_a_full_shuffle() -> None:
    repeated, distinct = figures(500)
    assert repeated == pytest.approx(1, abs=0.1)  # about 800 pairs are counted: 3.5 % of noise
    # 64 of 4000 rows in groups of 8, without replacement: 500 x (1 - C(3992, 64) / C(4000, 64)).
    assert distinct == pytest.approx(500 * (1 - np.prod(1 - 64 / (4000 - np.arange(8)))), rel=0.02)


@pytest.mark.parametrize("window", [10, 25, 50])
def test_a_small_window_repeats_mates_as_theory_says(window: int) -> None:
    """One bucket, G groups of g rows. A mate is of my own group with about 1 / w, else its group shares my window again
    with (w - 1) / (G - 1); in one window two rows share a batch with 15 / (w g - 1)."""
    groups, rows, mates = 500, 8, 15
    total = window * rows - 1
    own = (rows - 1) / total
    again = (own + (1 - own) * (window - 1) / (groups - 1)) * mates / total
    full = mates / (groups * rows - 1)
    assert figures(window)[0] == pytest.approx(again / full, rel=0.12)


def test_smaller_windows_read_fewer_groups_and_repeat_more() -> None:
    found = [figures(window) for window in (8, 32, 128, 500)]
    assert [repeated for repeated, _ in found] == sorted([repeated for repeated, _ in found], reverse=True)
    assert [distinct for _, distinct in found] == sorted(distinct for _, distinct in found)
    assert found[0][1] <= 16.5  # of at most two windows of 8


def test_one_window_a_batch_keeps_the_row_group_together() -> None:
    # A batch is two groups of 8, another pair each time: 7 of 15 mates come again, where 15 of 3999 should.
    assert figures(2)[0] == pytest.approx(7 / 15 * 3999 / 15, rel=0.05)
