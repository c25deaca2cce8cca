"""The order of samples: every property that a resumed or resized run relies on."""

import itertools
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data.augment import resized
from pipeline.data.mixture import load_mixture
from pipeline.data.plan import NO_PARTNER, Plan, PlannedBatch, plan_of
from pipeline.data.quarantine import DataError
from pipeline.data.rates import repeat_factors
from pipeline.data.records import INDEX_SCHEMA
from pipeline.data.shards import load_index

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
    longest_px=st.just(200),
    window_groups=st.integers(1, 8),
    aspect_buckets=st.integers(1, 5),
    copy_paste_probability=st.sampled_from([0.0, 0.5]),
)


def make_plan(
    index: pa.Table,
    seed: int = 0,
    batch_images: int = 4,
    sizes_px: tuple[int, ...] = SIZES,
    window_groups: int = 4,
    aspect_buckets: int = 2,
    longest_px: int = 200,
    **more: Any,
) -> Plan:
    return Plan(
        index,
        seed=seed,
        batch_images=batch_images,
        sizes_px=sizes_px,
        longest_px=longest_px,
        window_groups=window_groups,
        aspect_buckets=aspect_buckets,
        **more,
    )


@st.composite
def rated_plans(draw: st.DrawFn) -> Plan:
    """Samples come more often than once an epoch, or less often, or never."""
    index = draw(indexes)
    rate = st.one_of(st.sampled_from([0.0, 1.0, 0.5, 1 / 3, 2.0]), st.floats(0, 4))
    rates = draw(st.lists(rate, min_size=index.num_rows, max_size=index.num_rows).filter(lambda r: max(r) > 0.01))
    return make_plan(index, draw(st.integers(0, 2**40)), draw(st.integers(1, 24)), rates=np.array(rates))


def batches_of_epochs(plan: Plan, epochs: int) -> list[PlannedBatch]:
    """The batches that hold the first `epochs` epochs, and perhaps a bit of the next."""
    return [plan.batch(step) for step in range(-(-epochs * plan.samples // plan.batch_images))]


def same(a: PlannedBatch, b: PlannedBatch) -> bool:
    return all(np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(PlannedBatch))


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
    assert np.array_equal(np.concatenate([b.visits for b in batches]), epoch_of)


@given(plans, st.data())
def test_shares_of_the_ranks_are_the_batch(plan: Plan, data: st.DataObject) -> None:
    worlds = [world for world in range(1, plan.batch_images + 1) if plan.batch_images % world == 0]
    for step in range(5):  # another number of workers at each step
        batch, world = plan.batch(step), data.draw(st.sampled_from(worlds))
        shares = [batch.share(rank, world) for rank in range(world)]
        assert all(share.size_px == batch.size_px and share.step == step for share in shares)
        assert len({len(share.rows) for share in shares}) == 1
        assert np.array_equal(np.concatenate([share.rows for share in shares]), batch.rows)
        for name in ("epochs", "visits", "partners"):
            parts = np.concatenate([getattr(share, name) for share in shares])
            assert np.array_equal(parts, getattr(batch, name))


@given(indexes, st.integers(0, 99), st.integers(1, 24), st.integers(1, 4), st.permutations(range(12)))
def test_a_new_plan_gives_any_step_alone_as_in_the_sequence(
    index: pa.Table, seed: int, batch_images: int, window: int, asked: list[int]
) -> None:
    rates = np.random.default_rng(seed).uniform(0.5, 2, index.num_rows)

    def plan() -> Plan:
        return make_plan(index, seed, batch_images, window_groups=window, rates=rates, copy_paste_probability=0.5)

    one = plan()
    sequence = [one.batch(step) for step in range(len(asked))]
    other = plan()
    for step in asked:  # one plan in any order, and a new one that starts here
        assert same(other.batch(step), sequence[step])
        assert same(plan().batch(step), sequence[step])


@given(plans)
def test_batches_are_of_one_aspect_but_for_the_ends_of_epochs(plan: Plan) -> None:
    buckets = len(np.unique(plan.bucket))
    epochs = 3
    batches = batches_of_epochs(plan, epochs)
    for epoch in range(epochs):
        whole = [batch for batch in batches if (batch.epochs == epoch).all()]
        mixed = [len(np.unique(plan.bucket[batch.rows])) > 1 for batch in whole]
        # At most batch - 1 samples of each bucket are left over: fewer batches than there are buckets.
        assert not any(mixed[: max(0, len(mixed) - (buckets - 1))])


def test_buckets_split_landscape_from_portrait_and_take_extreme_aspects() -> None:
    index = make_index([(100, 101), (101, 100), (10, 1000), (1000, 10), (100, 100)])
    plan = make_plan(index, batch_images=2)
    bucket = plan.bucket
    assert bucket[0] == bucket[2] == bucket[4] != bucket[1] == bucket[3]
    assert set(make_plan(index, aspect_buckets=1).bucket.tolist()) == {0}
    wide = make_index([(100, width) for width in (40, 60, 90, 130, 180, 300)])
    assert len(set(make_plan(wide, aspect_buckets=4).bucket.tolist())) == 4


@given(st.integers(1, 5), st.integers(0, 20))
def test_a_window_is_whole_row_groups(window: int, seed: int) -> None:
    per_group, groups = 4, 12
    plan = make_plan(make_index([(50, 60)] * per_group * groups, per_group), seed, 1, window_groups=window)
    order = plan.epoch_order(3)
    seen = []
    for start in range(0, groups, window):
        rows = order[start * per_group : (start + window) * per_group]
        part, times = np.unique(rows // per_group, return_counts=True)
        assert len(part) == min(window, groups - start) and (times == per_group).all()
        seen += part.tolist()
    assert sorted(seen) == list(range(groups))


def test_groups_are_not_read_in_the_order_of_the_shards_and_rows_mix_inside_a_window() -> None:
    plan = make_plan(make_index([(50, 60)] * 400, per_group=4), batch_images=1, window_groups=10)
    order = plan.epoch_order(0)
    groups = order // 4
    assert len(np.unique(groups[:40])) == 10 and np.ptp(groups[:40]) > 10  # from all over
    assert np.mean(np.diff(groups) == 0) < 0.3  # and not one group after the other


def test_seeds_and_epochs_differ_and_the_same_seed_does_not() -> None:
    index = make_index([(50, 60)] * 64)

    def rows(seed: int) -> list[list[int]]:
        plan = make_plan(index, seed, 16)
        return [plan.batch(step).rows.tolist() for step in range(8)]

    first = rows(7)
    assert rows(7) == first
    assert rows(8) != first
    assert first[:4] != first[4:]  # two epochs


def test_sizes_come_from_the_list_all_of_them_and_not_from_the_epoch() -> None:
    plan = make_plan(make_index([(50, 60)] * 8))
    drawn = [plan.batch(step).size_px for step in range(300)]
    assert set(drawn) == set(SIZES)
    assert all(70 < drawn.count(size) < 130 for size in SIZES)
    assert all(isinstance(size, int) for size in drawn)
    assert make_plan(make_index([(50, 60)]), sizes_px=(77,)).batch(5).size_px == 77


def test_a_batch_larger_than_the_data_holds_several_epochs() -> None:
    plan = make_plan(make_index([(50, 60)] * 3), batch_images=8)
    batch = plan.batch(0)
    assert batch.epochs.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    after = plan.batch(1)
    assert after.epochs.tolist() == [2, 3, 3, 3, 4, 4, 4, 5]
    assert sorted([*batch.rows[6:].tolist(), int(after.rows[0])]) == [0, 1, 2]


def test_far_steps_are_found_at_once() -> None:
    plan = make_plan(make_index([(50, 60)] * 100), batch_images=16)
    step = 10**9  # no epoch before it is laid out
    assert plan.batch(step).epochs[0] == step * 16 // 100


def test_neighbouring_steps_share_no_sample_within_an_epoch() -> None:
    plan = make_plan(make_index([(50, 60), (60, 50)] * 32), 5, 8, window_groups=2, aspect_buckets=3)
    parts = [set(plan.batch(step).rows.tolist()) for step in range(8)]
    assert all(not a & b for a, b in itertools.combinations(parts, 2))


def test_nothing_to_plan_says_what_to_do() -> None:
    with pytest.raises(DataError, match=r"no image to train on: .*; look at the summary .*data\.drop_empty=false"):
        make_plan(make_index([]))


# --- rates


@given(rated_plans())
def test_epochs_hold_each_sample_as_often_as_its_rate_says(plan: Plan) -> None:
    """Position by position: the batches one after the other are the epochs one after the other."""
    steps = 12
    batches = [plan.batch(step) for step in range(steps)]
    rows, epochs = (np.concatenate([getattr(b, name) for b in batches]).tolist() for name in ("rows", "epochs"))
    visits = np.concatenate([b.visits for b in batches]).tolist()
    assert epochs == sorted(epochs) and len(rows) == steps * plan.batch_images
    for epoch in set(epochs) - {max(epochs)}:  # the last may be cut
        held = Counter(row for row, of in zip(rows, epochs, strict=True) if of == epoch)
        due = plan.rates.visits_before(epoch + 1) - plan.rates.visits_before(epoch)
        assert held == {row: count for row, count in enumerate(due.tolist()) if count}
    for row in set(rows):  # each visit of a sample has its own number, so that its augmentation differs
        assert len({v for r, v in zip(rows, visits, strict=True) if r == row}) == rows.count(row)


@given(rated_plans(), st.integers(0, 10**9))
def test_a_far_position_with_rates_is_found_at_once(plan: Plan, step: int) -> None:
    batch = plan.batch(step)
    first = int(batch.epochs[0])
    position = step * plan.batch_images
    assert plan.rates.length_before(first) <= position < plan.rates.length_before(first + 1)
    assert batch.rows[0] == plan.epoch_order(first)[position - plan.rates.length_before(first)]


def test_repeating_and_mixing_come_from_the_configuration(shapes: Path) -> None:
    places = (str(shapes / "train"), str(shapes / "val"))
    config = RunConfig(data=DataConfig(train=places, mix_weights=(1.0, 3.0)), train=TrainConfig(batch_images=8, seed=3))
    plan = plan_of(config)
    index = load_mixture(places)
    usable = [row for row in index.to_pylist() if row["instances"]]
    assert plan.index.to_pylist() == usable
    drawn = np.concatenate([plan.batch(step).rows for step in range(200)])
    share = plan.index["dataset"].to_numpy()[drawn].mean()
    assert share == pytest.approx(0.75, abs=0.01)
    repeated = plan_of(replace(config, data=replace(config.data, mix_weights=None, repeat_threshold=0.9)))
    factors = repeat_factors(repeated.index["classes"], 0.9)
    assert factors.max() > 1.2
    rows = np.concatenate([repeated.batch(step).rows for step in range(400)])
    expected = factors / factors.sum() * len(rows)
    assert np.abs(np.bincount(rows, minlength=len(factors)) - expected).max() <= 3  # a cut epoch, and one of rounding
    single = plan_of(RunConfig(data=DataConfig(train=places[0]), train=config.train))
    assert single.index["sample_id"].to_pylist() == [
        row["sample_id"] for row in load_index(shapes / "train").to_pylist() if row["instances"]
    ]


# --- the bound on crowded images


def padded(index: pa.Table, batch: PlannedBatch, size_px: int, longest_px: int = 200) -> int:
    """Instances of the most crowded image x padded pixels, worked out on its own."""
    rows = index.take(batch.rows).to_pylist()
    sides = [resized(row["height"], row["width"], size_px, longest_px) for row in rows]
    height, width = (-(-max(side[axis] for side in sides) // 32) * 32 for axis in (0, 1))
    return max(row["instances"] for row in rows) * height * width


@given(indexes, st.lists(st.integers(0, 40), min_size=60, max_size=60), st.integers(1_000, 1_000_000))
def test_a_crowded_batch_takes_the_largest_size_that_fits(index: pa.Table, crowds: list[int], bound: int) -> None:
    column = index.schema.get_field_index("instances")
    index = index.set_column(column, index.schema.field(column), pa.array(crowds[: index.num_rows], pa.int32()))
    plan, free = make_plan(index, max_instance_pixels=bound), make_plan(index)
    bounded = 0
    for step in range(8):
        batch, drawn = plan.batch(step), free.batch(step).size_px
        assert np.array_equal(batch.rows, free.batch(step).rows)  # nothing is left out
        allowed = [size for size in (*reversed(SIZES), 32) if size <= drawn]  # 64 is the lowest, then steps of 32
        fits = [size for size in allowed if padded(index, batch, size) <= bound]
        assert batch.size_px == (fits[0] if fits else 32)
        assert batch.bounded == (batch.size_px < drawn)
        bounded += batch.bounded
    assert plan.bounded_batches(range(8)) == bounded and free.bounded_batches(range(8)) == 0


def test_the_default_bound_leaves_coco_as_it_is_and_catches_what_is_larger() -> None:
    bound = DataConfig().max_instance_pixels

    def size(instances: int, shapes: list[tuple[int, int]]) -> int:
        index = make_index(shapes)
        column = index.schema.get_field_index("instances")
        crowds = pa.array([instances] * len(shapes), pa.int32())
        index = index.set_column(column, index.schema.field(column), crowds)
        more = {"longest_px": 1333, "sizes_px": (640, 800), "max_instance_pixels": bound}
        return min(make_plan(index, batch_images=len(shapes), **more).batch(step).size_px for step in range(20))

    drawn = 640
    assert size(93, [(480, 640), (640, 480)]) == drawn  # COCO's most crowded image, both aspects in one batch
    for step_free in (93, 120):
        assert size(step_free, [(480, 640)]) == drawn
    assert size(900, [(480, 640)]) < drawn


# --- copy-paste partners


@given(plans)
def test_partners_are_others_of_the_same_batch(plan: Plan) -> None:
    for step in range(4):
        batch = plan.batch(step)
        with_partner = batch.partners != NO_PARTNER
        assert np.isin(batch.partners[with_partner], batch.rows).all()
        assert (batch.partners != batch.rows).all()
        if plan.copy_paste_probability == 0 or len(set(batch.rows.tolist())) == 1:
            assert not with_partner.any()


def test_partners_come_with_their_probability_and_each_as_often() -> None:
    index = make_index([(50, 60)] * 8)
    plan = make_plan(index, batch_images=8, copy_paste_probability=0.3)
    batches = [plan.batch(step) for step in range(600)]
    partners = np.concatenate([batch.partners for batch in batches])
    rows = np.concatenate([batch.rows for batch in batches])
    assert np.mean(partners != NO_PARTNER) == pytest.approx(0.3, abs=0.03)
    pairs = Counter(zip(rows[partners != NO_PARTNER], partners[partners != NO_PARTNER], strict=True))
    assert len(pairs) == 8 * 7  # every ordered pair occurs
    assert max(pairs.values()) < 3 * min(pairs.values())
    always = make_plan(index, batch_images=8, copy_paste_probability=1.0)
    assert all((always.batch(step).partners != NO_PARTNER).all() for step in range(20))
    alone = make_plan(make_index([(50, 60)]), batch_images=4, copy_paste_probability=1.0)
    assert (alone.batch(0).partners == NO_PARTNER).all()
