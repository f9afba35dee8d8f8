"""Histograms: the buckets leave no gap, and a quantile is as near as it says."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walpool.shared.histogram import BUCKETS, Histogram, bucket_of, lowest_in


def histogram(values: list[int]) -> Histogram:
    counts = [0] * BUCKETS
    for value in values:
        counts[bucket_of(value)] += 1
    return Histogram(tuple(counts), float(sum(values)), 1.0)


@given(st.integers(0, (1 << 28) - 1))
def test_a_value_is_in_the_bucket_whose_bounds_hold_it(value: int) -> None:
    bucket = bucket_of(value)
    assert lowest_in(bucket) <= value < lowest_in(bucket + 1)


def test_buckets_follow_each_other_and_are_a_few_per_cent_wide() -> None:
    bounds = [lowest_in(bucket) for bucket in range(BUCKETS)]
    assert bounds == sorted(set(bounds))
    for low, high in pairwise(bounds[32:]):
        assert high - low <= low / 16


@pytest.mark.parametrize("value", [-1, 1 << 28, 1 << 63])
def test_what_is_beyond_the_buckets_is_in_the_outermost(value: int) -> None:
    assert bucket_of(value) == (0 if value < 0 else BUCKETS - 1)


@given(st.lists(st.integers(0, 1 << 27), min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_a_quantile_is_as_near_as_it_says(values: list[int], q: float) -> None:
    exact = sorted(values)[max(0, -(-int(q * len(values) * 1000) // 1000) - 1)]
    assert abs(histogram(values).quantile(q) - exact) <= max(0.5, 0.032 * exact)


def test_of_nothing_there_is_nothing() -> None:
    for empty in (Histogram(), histogram([])):
        assert (empty.count, empty.sum, empty.quantile(0.5), empty.max, empty.buckets()) == (0, 0.0, 0.0, 0.0, [])


@pytest.mark.parametrize("q", [-0.1, 1.1])
def test_a_quantile_is_a_share(q: float) -> None:
    with pytest.raises(ValueError, match="q must be"):
        Histogram().quantile(q)


def test_merging_and_subtracting_are_as_if_counted_so(seed: int) -> None:
    draw = random.Random(seed)
    one, two = ([draw.randrange(1 << draw.randrange(1, 28)) for _ in range(100)] for _ in range(2))
    assert histogram(one) + histogram(two) == histogram(one + two)
    assert histogram(one + two) - histogram(one) == histogram(two)
    assert Histogram() + histogram(one) == Histogram(histogram(one).counts, float(sum(one)))
    assert (histogram(one) - histogram(one + two)).count == 0


def test_cumulative_buckets_end_with_all() -> None:
    bounds = histogram([1, 1, 5, 1000, 70_000]).buckets()
    assert [count for _, count in bounds] == [2, 3, 4, 5]
    assert all(low < high for (low, _), (high, _) in pairwise(bounds))
    assert bounds[0][0] == 1.0 and bounds[-1][0] >= 70_000
