"""Visits an epoch: exact over any epochs, found at any distance, and the factors of the LVIS paper."""

import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.quarantine import DataError
from pipeline.data.rates import BITS, Rates, mixed_rates, repeat_factors

rate_lists = st.lists(st.one_of(st.sampled_from([0.0, 1.0, 0.001, 2.5]), st.floats(0, 100)), min_size=1, max_size=20)


def make(values: list[float], seed: int = 0) -> Rates:
    return Rates(np.array(values), len(values), seed)


@given(rate_lists.filter(lambda r: max(r) > 1e-3), st.integers(0, 2**40), st.integers(0, 10**6), st.integers(0, 2000))
def test_over_any_epochs_each_sample_comes_within_one_of_its_rate(
    values: list[float], seed: int, first: int, epochs: int
) -> None:
    rates = make(values, seed)
    seen = rates.visits_before(first + epochs) - rates.visits_before(first)
    for value, count in zip(values, seen.tolist(), strict=True):
        exact = Fraction(round(value * 2**BITS), 2**BITS) * epochs
        assert math.floor(exact) <= count <= math.ceil(exact)


@given(rate_lists.filter(lambda r: max(r) > 1e-3), st.integers(0, 2**40))
def test_the_visits_are_the_formula(values: list[float], seed: int) -> None:
    """floor((e + 1) r + u) - floor(e r + u) in fractions, with the same u."""
    rates = make(values, seed)
    u = [Fraction(int(offset), 2**BITS) for offset in rates._offset]
    r = [Fraction(round(value * 2**BITS), 2**BITS) for value in values]
    for epoch in (0, 1, 7, 10**6):
        counts = rates.visits_before(epoch + 1) - rates.visits_before(epoch)
        assert counts.tolist() == [
            math.floor((epoch + 1) * r_ + u_) - math.floor(epoch * r_ + u_) for r_, u_ in zip(r, u, strict=True)
        ]
    assert not rates.visits_before(0).any() and rates.length_before(0) == 0


@given(st.integers(1, 50), st.integers(0, 2**40), st.integers(0, 10**9))
def test_rate_one_is_exactly_once(samples: int, seed: int, epoch: int) -> None:
    for rates in (Rates(None, samples, seed), make([1.0] * samples, seed)):
        assert (rates.visits_before(epoch) == epoch).all()
        assert rates.length_before(epoch) == epoch * samples


@given(rate_lists.filter(lambda r: max(r) > 1e-3), st.integers(0, 2**40), st.integers(0, 10**12))
def test_the_epoch_of_a_position(values: list[float], seed: int, position: int) -> None:
    rates = make(values, seed)
    epoch = rates.epoch_of(position)
    assert rates.length_before(epoch) <= position < rates.length_before(epoch + 1)
    near = make(values, seed)  # against counting on from the start
    place, counted = position % 200, 0
    while near.length_before(counted + 1) <= place:
        counted += 1
    assert near.epoch_of(place) == counted


def test_rates_that_cannot_be() -> None:
    with pytest.raises(DataError, match="every sample has the rate 0"):
        make([0.0, 1e-9])
    for bad in (-1.0, 1e9, float("nan"), float("inf")):
        with pytest.raises(DataError, match=r"rates must be 2 numbers from 0 to 65536"):
            make([1.0, bad])


@given(st.lists(st.sets(st.integers(1, 6)), min_size=1, max_size=30), st.floats(1e-4, 1))
def test_factors_are_those_of_the_paper(images: list[set[int]], threshold: float) -> None:
    column = pa.chunked_array([pa.array([sorted(classes) for classes in images], pa.list_(pa.int32()))])
    expected = []
    for classes in images:
        share = {c: sum(c in other for other in images) / len(images) for c in classes}
        expected.append(max([1.0, *(math.sqrt(threshold / share[c]) for c in classes)]))
    assert repeat_factors(column, threshold) == pytest.approx(np.array(expected))
    parts = pa.chunked_array([column.chunk(0).slice(0, 1), column.chunk(0).slice(1)])  # sliced chunks are the same
    assert repeat_factors(parts, threshold) == pytest.approx(np.array(expected))


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.lists(st.floats(0.01, 10), min_size=4, max_size=4),
    st.integers(0, 99),
)
def test_mixed_rates_give_the_shares_and_the_length(sizes: list[int], weights: list[float], seed: int) -> None:
    weights = weights[: len(sizes)]
    datasets = np.repeat(np.arange(len(sizes)), sizes)
    factors = np.random.default_rng(seed).uniform(1, 3, len(datasets))
    rates = mixed_rates(factors, datasets, weights)
    assert rates.sum() == pytest.approx(factors.sum())
    for number, weight in enumerate(weights):
        own = datasets == number
        assert rates[own].sum() / rates.sum() == pytest.approx(weight / sum(weights))
        assert rates[own] / rates[own][0] == pytest.approx(factors[own] / factors[own][0])


def test_a_weight_of_nothing() -> None:
    assert mixed_rates(np.ones(3), np.array([0, 0, 2]), [1, 0, 1]).tolist() == [0.75, 0.75, 1.5]
    with pytest.raises(
        DataError, match=r"data set 2 of data\.train has no image .* gives it 0\.5; set that weight to 0"
    ):
        mixed_rates(np.ones(3), np.array([0, 0, 2]), [1, 0.5, 1])
