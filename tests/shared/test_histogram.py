"""Histograms: the buckets leave no gap, and a quantile is as near as it says."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import edges
from walpool.shared.figures.histogram import BUCKETS, Histogram, bucket_of, lowest_in


def histogram(values: list[int]) -> Histogram:
    counts = [0] * BUCKETS
    for value in values:
        counts[bucket_of(value)] += 1
    return Histogram(tuple(counts), float(sum(values)), 1.0)


UNITS = edges.integers(0, (1 << 28) - 1, *edges.around(32, 33, 64, 1 << 20, 31 << 23))  # ends of buckets


@given(UNITS)
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


QUANTILES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.875, 1.0])  # exact as floats


def quantile(values: list[int], q: float) -> int:
    """The model: the least value that a share q of all does not exceed."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def assert_near_and_not_above(found: float, exact: int) -> None:
    assert exact - exact / 16 <= found <= exact


MANY = st.lists(edges.integers(0, 1 << 27, *edges.around(32, 33, 64, 1 << 20)), min_size=1, max_size=200)


@given(MANY, QUANTILES)
def test_a_quantile_is_as_near_as_it_says_and_never_above_what_was_observed(values: list[int], q: float) -> None:
    found = histogram(values)
    assert_near_and_not_above(found.quantile(q), quantile(values, q))
    assert_near_and_not_above(found.max, max(values))


@given(MANY, MANY, QUANTILES)
def test_so_it_is_of_merged_histograms_and_of_the_time_between_two_looks(
    one: list[int], two: list[int], q: float
) -> None:
    merged = histogram(one) + histogram(two)
    assert_near_and_not_above(merged.quantile(q), quantile(one + two, q))
    assert_near_and_not_above(merged.max, max(one + two))
    since = histogram(one + two) - histogram(one)
    assert_near_and_not_above(since.quantile(q), quantile(two, q))
    assert_near_and_not_above(since.max, max(two))


def test_batches_of_at_most_256_show_no_larger_one() -> None:
    found = histogram([1, 256, 256])
    assert (found.quantile(0.5), found.max) == (256.0, 256.0)


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


@given(MANY | st.lists(edges.integers(0, 1 << 30, *edges.around(31 << 23, 1 << 28)), min_size=1))
def test_each_bound_that_prometheus_is_told_has_all_below_it(values: list[int]) -> None:
    """Also beside values that are beyond the buckets."""
    exponents = pytest.importorskip("walpool.integrations.prometheus").TIME_EXPONENTS
    found = Histogram(histogram(values).counts)
    for (_, count), exponent in zip(found.cumulative(exponents), exponents, strict=True):
        assert count == sum(value < 1 << exponent for value in values)


def test_the_last_bucket_has_no_upper_bound() -> None:
    assert histogram([1, 1 << 29]).buckets() == [(1.0, 1), (math.inf, 2)]
