"""Histograms in shared memory: how often each magnitude was seen, by log-spaced buckets.

A value is a whole number of units. Below 32 units every value has its own bucket; above, an octave has 16, so a bucket
is 1/16 to 1/32 of its value wide. A quantile is the least value of its bucket: at most 6.2 per cent below what was
observed, and never above it, however histograms were merged and subtracted (an observed maximum could be merged, but
not subtracted: nobody knows what the largest value since an earlier look was).
Holds: one writer per row of buckets; buckets only rise, so the difference of two looks is a histogram of the time
between them, and the sum of two rows one of both.
"""

from dataclasses import dataclass
from math import inf
from operator import add

BUCKETS = 400  # values below 2**28 units; the last bucket takes all above
_STEPS = 16  # buckets in an octave
_STEP_BITS = 4

SECONDS = 256e-9  # a unit of time: 28 bits of it are 68 s
TIME_SHIFT = 8  # ns >> 8 is a number of them


def bucket_of(units: int) -> int:
    """The bucket that counts `units`."""
    if units < 2 * _STEPS:
        return max(0, units)
    octave = units.bit_length() - _STEP_BITS - 1
    return min(BUCKETS - 1, octave * _STEPS + (units >> octave))


def lowest_in(bucket: int) -> int:
    """The smallest number of units that `bucket` counts."""
    if bucket < 2 * _STEPS:
        return bucket
    octave = bucket // _STEPS - 1
    return (bucket - octave * _STEPS) << octave


@dataclass(frozen=True, slots=True)
class Histogram:
    """What was counted, at one moment: add histograms to merge them, subtract an earlier one for the time since.

    Attributes:
        counts (default ()): how many values, by bucket; empty when nothing was counted.
        sum (default 0.0): of all values, in seconds or entries.
        unit (default 256e-9): what one unit of a bucket is worth: seconds, or 1.0 where entries are counted.
    """

    counts: tuple[int, ...] = ()
    sum: float = 0.0
    unit: float = SECONDS

    @property
    def count(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    def quantile(self, q: float) -> float:
        """The value that a share `q` of all values does not exceed, in seconds or entries; 0.0 of nothing.

        As the least that its bucket counts: never above a value that was observed, and at most 6.2 per cent below it.

        Args:
            q: from 0.0 to 1.0; 0.5 is the median.

        Raises:
            ValueError: for another `q`.
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"q must be from 0.0 to 1.0, not {q}")
        wanted = q * self.count
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                return lowest_in(bucket) * self.unit
        return 0.0

    @property
    def max(self) -> float:
        """The largest value, as quantile(1.0): in seconds or entries."""
        return self.quantile(1.0)

    def buckets(self) -> list[tuple[float, int]]:
        """(upper bound, how many values do not exceed it), for every bucket with a value in it: seconds or entries.

        That of the last bucket, which counts all from 66.6 s on, is infinite.
        """
        found, seen = [], 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if count:
                upper = lowest_in(bucket + 1) - 1 if bucket < BUCKETS - 1 else inf
                found.append((upper * self.unit, seen))
        return found

    def cumulative(self, exponents: range) -> list[tuple[float, int]]:
        """(bound in seconds or entries, how many values do not exceed it), for the same bounds at every look.

        A bound is 2**exponent units. Of whole entries it is one less: then it is exact.

        Args:
            exponents: of 2; with range(2, 28) the bounds of seconds go from 1 us to 34 s. A bound from 28 on leaves
                out what the last bucket counts.
        """
        less = 1 if self.unit == 1.0 else 0
        return [((2**at - less) * self.unit, sum(self.counts[: bucket_of(2**at)])) for at in exponents]

    def __add__(self, other: "Histogram") -> "Histogram":
        if self.counts and other.counts:
            counts = tuple(map(add, self.counts, other.counts))
        else:
            counts = self.counts or other.counts
        return Histogram(counts, self.sum + other.sum, self.unit)

    def __sub__(self, earlier: "Histogram") -> "Histogram":
        counts = self.counts
        if counts and earlier.counts:
            counts = tuple(max(0, a - b) for a, b in zip(counts, earlier.counts, strict=True))
        return Histogram(counts, max(0.0, self.sum - earlier.sum), self.unit)

    def as_dict(self) -> dict[str, float]:
        """What people ask of it: count, sum, p50, p90, p99, p999, max; ready for JSON."""
        quantiles = {name: self.quantile(q) for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999))}
        return {"count": self.count, "sum": self.sum, **quantiles, "max": self.max}
