"""Edges: the values at which things change, in one table from which property tests draw beside what is random.

`integers(low, high, *edges)` is hypothesis's, with the edges in that range, and both ends, drawn often. Where a
property cannot get to an edge (a thousand writers, the last LSN), test_edges.py goes there by construction.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from hypothesis import strategies as st

from walpool.format.entry import COLUMNS_FROM, COPIED_TWICE, MAX_KEY_BYTES, MAX_VALUE_BYTES
from walpool.format.names import LAST_OPEN_LSN, MAX_LSN

MAX_KEY, MAX_VALUE = MAX_KEY_BYTES, MAX_VALUE_BYTES
SEGMENT, FRAME, ENTRY = 64, 48, 16  # bytes of headers
U32, U63, U64 = (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 1
SLOTS, ROWS = 1 << 16, 1024
T = TypeVar("T")


def around(*values: int) -> tuple[int, ...]:
    """Each, one before it and one past it."""
    return tuple(sorted({value + by for value in values for by in (-1, 0, 1)}))


class Edges(NamedTuple):
    """Values of one kind, by where they come from."""

    lsns: tuple[int, ...] = (1, 2, LAST_OPEN_LSN - 1, LAST_OPEN_LSN, MAX_LSN - 1, MAX_LSN)
    slots: tuple[int, ...] = (0, 1, ROWS - 1, ROWS, SLOTS - 1)
    timestamps: tuple[int, ...] = (0, 1, U63, U63 + 1, U64)
    markers: tuple[int, ...] = (1, 0x57414C45, U32)
    counts: tuple[int, ...] = around(1, 2, COLUMNS_FROM)  # of entries in a batch: single, batch, packed by columns
    short: tuple[int, ...] = (0, 1, 2)  # bytes of a key or a value
    bytes: tuple[int, ...] = around(16, 48, 64, 512, COPIED_TWICE)  # of what is written in one piece
    segments: tuple[int, ...] = around(1, 2, 8)  # in a log: one, one sealed, and more than a trim looks back at


EDGES = Edges()

# How long an append may wait for the lock: free, not free, the ends of buckets, and beyond the last one (68.7 s).
UNIT_NS, FREE_NS = 256, 5_000
WAITS_NS = (
    *around(FREE_NS), 31 * UNIT_NS, 32 * UNIT_NS, 33 * UNIT_NS, (1 << 20) * UNIT_NS - 1, (1 << 20) * UNIT_NS,
    (31 << 23) * UNIT_NS - 1, (31 << 23) * UNIT_NS, (1 << 28) * UNIT_NS - 1, (1 << 28) * UNIT_NS, 600 * 10**9,
)  # fmt: skip


def integers(low: int, high: int, *edges: int) -> st.SearchStrategy[int]:
    """Every integer from `low` to `high`; and often one of the edges, and of the ends, that are among them."""
    often = sorted({edge for edge in (low, low + 1, high - 1, high, *edges) if low <= edge <= high})
    return st.sampled_from(often) | st.integers(low, high)


def binary(*sizes: int, max_size: int) -> st.SearchStrategy[bytes]:
    """Bytes up to `max_size`; and often of a size that is an edge: empty, of one byte, of `sizes`, at the limit."""
    often = sorted({size for size in (*EDGES.short, *sizes, max_size) if size <= max_size})
    at = st.sampled_from(often).flatmap(lambda size: st.binary(min_size=size, max_size=size))
    return at | st.binary(max_size=max_size)


def lists(elements: st.SearchStrategy[T], *sizes: int) -> st.SearchStrategy[list[T]]:
    """Lists of one of these sizes; none is empty that is not to be."""
    return st.sampled_from([size for size in sizes if size >= 0]).flatmap(
        lambda size: st.lists(elements, min_size=size, max_size=size)
    )
