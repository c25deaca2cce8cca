"""The order of samples: every property that a resumed or resized run relies on."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.plan import Plan, PlannedBatch
from pipeline.data.records import INDEX_SCHEMA

SIZES = (64, 80, 96)


def make_index(shapes: list[tuple[int, int]], per_group: int = 3, groups_per_shard: int = 2) -> pa.Table:
    """An index of images (height, width) in row groups of `per_group`."""
    columns: dict[str, list[object]] = {name: [] for name in INDEX_SCHEMA.names}
    for row, (height, width) in enumerate(shapes):
        group = row // per_group
        values = {"sample_id": 1000 + row, "shard": group // groups_per_shard, "row_group": group % groups_per_shard}
        values |= {"row": row % per_group, "height": height, "width": width, "instances": 1, "crowd": 0, "bytes": 9}
        values |= {"keypoints": 0, "offset": 4}
        columns["classes"].append([1])
        for name, value in values.items():
            columns[name].append(value)
    return pa.table(columns, schema=INDEX_SCHEMA)


indexes = st.builds(
    make_index,
    st.lists(st.sampled_from([(50, 100), (60, 80), (70, 70), (80, 60), (100, 40)]), min_size=1, max_size=60),
    st.integers(1, 9),
    st.integers(1, 4),
)
plans = st.builds(
    Plan,
    indexes,
    seed=st.integers(0, 2**40),
    batch_images=st.integers(1, 24),
    sizes_px=st.just(SIZES),
    window_groups=st.integers(1, 8),
    aspect_buckets=st.integers(1, 5),
)


def batches_of_epochs(plan: Plan, epochs: int) -> list[PlannedBatch]:
    """The batches that hold the first `epochs` epochs, and perhaps a bit of the next."""
    return [plan.batch(step) for step in range(-(-epochs * plan.samples // plan.batch_images))]


def same(a: PlannedBatch, b: PlannedBatch) -> bool:
    return (
        (a.step, a.size_px) == (b.step, b.size_px)
        and np.array_equal(a.rows, b.rows)
        and np.array_equal(a.epochs, b.epochs)
    )


@given(plans)
def test_each_sample_is_in_each_epoch_exactly_once(plan: Plan) -> None:
    epochs = 4
    batches = batches_of_epochs(plan, epochs)
    assert all(len(batch.rows) == len(batch.epochs) == plan.batch_images for batch in batches)
    rows, epoch_of = np.concatenate([b.rows for b in batches]), np.concatenate([b.epochs for b in batches])
    for epoch in range(epochs):
        part = slice(epoch * plan.samples, (epoch + 1) * plan.samples)
        assert sorted(rows[part].tolist()) == list(range(plan.samples))
        assert set(epoch_of[part].tolist()) == {epoch}


@given(plans, st.data())
def test_shares_of_the_ranks_are_the_batch(plan: Plan, data: st.DataObject) -> None:
    worlds = [world for world in range(1, plan.batch_images + 1) if plan.batch_images % world == 0]
    for step in range(5):  # another number of workers at each step
        batch, world = plan.batch(step), data.draw(st.sampled_from(worlds))
        shares = [batch.share(rank, world) for rank in range(world)]
        assert all(share.size_px == batch.size_px and share.step == step for share in shares)
        assert len({len(share.rows) for share in shares}) == 1
        assert np.array_equal(np.concatenate([share.rows for share in shares]), batch.rows)
        assert np.array_equal(np.concatenate([share.epochs for share in shares]), batch.epochs)


@given(indexes, st.integers(0, 99), st.integers(1, 24), st.integers(1, 4), st.permutations(range(12)))
def test_a_new_plan_gives_any_step_alone_as_in_the_sequence(
    index: pa.Table, seed: int, batch_images: int, window: int, asked: list[int]
) -> None:
    def plan() -> Plan:
        return Plan(index, seed, batch_images, SIZES, window, 2)

    one = plan()
    sequence = [one.batch(step) for step in range(len(asked))]
    other = plan()
    for step in asked:  # one plan in any order, and a new one that starts here
        assert same(other.batch(step), sequence[step])
        assert same(plan().batch(step), sequence[step])


@given(plans)
def test_batches_are_of_one_aspect_but_for_the_ends_of_epochs(plan: Plan) -> None:
    buckets = len(np.unique(plan._bucket))
    epochs = 3
    batches = batches_of_epochs(plan, epochs)
    for epoch in range(epochs):
        whole = [batch for batch in batches if (batch.epochs == epoch).all()]
        mixed = [len(np.unique(plan._bucket[batch.rows])) > 1 for batch in whole]
        # At most batch - 1 samples of each bucket are left over: fewer batches than there are buckets.
        assert not any(mixed[: len(mixed) - (buckets - 1)])


def test_buckets_split_landscape_from_portrait_and_take_extreme_aspects() -> None:
    index = make_index([(100, 101), (101, 100), (10, 1000), (1000, 10), (100, 100)])
    plan = Plan(index, 0, 2, SIZES, 8, 2)
    bucket = plan._bucket
    assert bucket[0] == bucket[2] == bucket[4] != bucket[1] == bucket[3]
    assert set(Plan(index, 0, 2, SIZES, 8, 1)._bucket.tolist()) == {0}
    assert len(set(Plan(make_index([(100, w) for w in (40, 60, 90, 130, 180, 300)]), 0, 2, SIZES, 8, 4)._bucket)) == 4


@given(st.integers(1, 5), st.integers(0, 20))
def test_a_window_is_whole_row_groups(window: int, seed: int) -> None:
    per_group, groups = 4, 12
    plan = Plan(make_index([(50, 60)] * per_group * groups, per_group), seed, 1, SIZES, window, 1)
    order = plan.epoch_order(3)
    seen = []
    for start in range(0, groups, window):
        rows = order[start * per_group : (start + window) * per_group]
        part, times = np.unique(rows // per_group, return_counts=True)
        assert len(part) == min(window, groups - start) and (times == per_group).all()
        seen += part.tolist()
    assert sorted(seen) == list(range(groups))


def test_groups_are_not_read_in_the_order_of_the_shards_and_rows_mix_inside_a_window() -> None:
    plan = Plan(make_index([(50, 60)] * 400, per_group=4), 0, 1, SIZES, 10, 1)
    order = plan.epoch_order(0)
    groups = order // 4
    assert len(np.unique(groups[:40])) == 10 and np.ptp(groups[:40]) > 10  # from all over
    assert np.mean(np.diff(groups) == 0) < 0.3  # and not one group after the other


def test_seeds_and_epochs_differ_and_the_same_seed_does_not() -> None:
    index = make_index([(50, 60)] * 64)

    def rows(seed: int) -> list[list[int]]:
        plan = Plan(index, seed, 16, SIZES, 4, 2)
        return [plan.batch(step).rows.tolist() for step in range(8)]

    first = rows(7)
    assert rows(7) == first
    assert rows(8) != first
    assert first[:4] != first[4:]  # two epochs


def test_sizes_come_from_the_list_all_of_them_and_not_from_the_epoch() -> None:
    plan = Plan(make_index([(50, 60)] * 8), 0, 4, SIZES, 4, 2)
    drawn = [plan.batch(step).size_px for step in range(300)]
    assert set(drawn) == set(SIZES)
    assert all(70 < drawn.count(size) < 130 for size in SIZES)
    assert all(isinstance(size, int) for size in drawn)
    assert Plan(make_index([(50, 60)]), 0, 4, (77,), 4, 2).batch(5).size_px == 77


def test_a_batch_larger_than_the_data_holds_several_epochs() -> None:
    plan = Plan(make_index([(50, 60)] * 3), 0, 8, SIZES, 4, 2)
    batch = plan.batch(0)
    assert batch.epochs.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    after = plan.batch(1)
    assert after.epochs.tolist() == [2, 3, 3, 3, 4, 4, 4, 5]
    assert sorted([*batch.rows[6:].tolist(), int(after.rows[0])]) == [0, 1, 2]


def test_far_steps_are_found_at_once() -> None:
    plan = Plan(make_index([(50, 60)] * 100), 0, 16, SIZES, 4, 2)
    step = 10**9  # no epoch before it is laid out
    assert plan.batch(step).epochs[0] == step * 16 // 100


def test_neighbouring_steps_share_no_sample_within_an_epoch() -> None:
    plan = Plan(make_index([(50, 60), (60, 50)] * 32), 5, 8, SIZES, 2, 3)
    parts = [set(plan.batch(step).rows.tolist()) for step in range(8)]
    assert all(not a & b for a, b in itertools.combinations(parts, 2))


def test_nothing_to_plan_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"no image to train on: .*; look at the summary .*data\.drop_empty=false"):
        Plan(make_index([]), 0, 4, SIZES, 4, 2)
