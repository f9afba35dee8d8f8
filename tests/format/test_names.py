"""Segment names, both directions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import edges
from tests.format import layout
from walpool.format.names import MAX_LSN, parse_segment_name, segment_name

LSNS = edges.integers(1, MAX_LSN, *edges.EDGES.lsns)


@layout.examples(200)
@given(LSNS)
def test_a_segment_name_says_its_first_lsn(lsn: int) -> None:
    name = segment_name(lsn)
    assert len(name) == 24
    assert parse_segment_name(name) == lsn


@layout.examples(200)
@given(LSNS, LSNS)
def test_names_sort_as_their_lsns_do(one: int, other: int) -> None:
    assert (segment_name(one) < segment_name(other)) == (one < other)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "control",
        "append.lock",
        "checkpoint",
        "1.wal",
        "0000000000000000001.wal",  # 19 digits
        "000000000000000000001.wal",  # 21 digits
        "00000000000000000001.wal.tmp",
        "00000000000000000001.wal\n",
        " 00000000000000000001.wal",
        "00000000000000000001.WAL",
        "00000000000000000001xwal",
        "+0000000000000000001.wal",
        "-0000000000000000001.wal",
        "0000000000000000000_1.wal",
        "0000000000000000000a.wal",
        "00000000000000000000.wal",  # LSNs start at 1
        f"{MAX_LSN + 1:020d}.wal",
        "99999999999999999999.wal",
        "٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠٠١.wal",  # digits, but not ASCII
    ],
)
def test_any_other_name_is_not_a_segment(name: str) -> None:
    assert parse_segment_name(name) is None


@layout.examples(300)
@given(st.text("0123456789walx.", min_size=20, max_size=26))
def test_a_name_that_parses_is_the_one_that_would_be_written(name: str) -> None:
    lsn = parse_segment_name(name)
    assert lsn is None or segment_name(lsn) == name
