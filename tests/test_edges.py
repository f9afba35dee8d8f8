"""Edges that no property test comes to by itself, each reached by construction."""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import find

from tests import edges
from tests.edges import EDGES, ENTRY, FRAME, MAX_KEY, MAX_VALUE, SEGMENT
from tests.format import layout
from tests.read.logs import segment_files
from tests.support import read_log
from walpool import (
    CorruptLog,
    LogBusy,
    Operation,
    Retention,
    SyncMode,
    UnsafeLog,
    WALEntry,
    WALMetrics,
    WALReader,
    WALWriter,
    copy,
)
from walpool.format.names import LAST_OPEN_LSN, MAX_LSN
from walpool.upkeep.verify import verify

# Slots: the byte locks of all before are taken at once, as if a thousand writers lived


@contextmanager
def taken(log: Path, slots: int) -> Iterator[None]:
    WALWriter(log).close()
    with (log / "slots.lock").open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("@h h 4x q q i 4x", fcntl.F_WRLCK, os.SEEK_SET, 0, slots, 0))
        yield


def writers_of(log: Path) -> list[int]:
    with WALReader(log) as reader:
        return [batch.writer for batch in reader.batches()]


def test_the_last_slot_with_a_row_of_its_own_and_the_first_without(log: Path, linux: None) -> None:
    with taken(log, edges.ROWS - 1), WALWriter(log, name="last") as last, WALWriter(log, name="beyond") as beyond:
        last.append_batch([WALEntry.put(b"k", b"v")] * 3)
        beyond.put(b"k", b"v")
        with WALMetrics.attach(log) as metrics:
            found = metrics.snapshot()
        assert writers_of(log) == [edges.ROWS - 1, edges.ROWS]
        assert len(found.writers) == edges.ROWS + 1
        one, other = found.writers[-2:]
        assert (one.slot, one.name, one.pid, one.shares_row) == (edges.ROWS - 1, "last", os.getpid(), False)
        assert (one.entries, one.batches) == (3, 1)
        assert (other.slot, other.name, other.shares_row) == (edges.ROWS, "beyond", True)
        assert (other.entries, other.batches) == (1, 1)
        assert (found.batch_entries.count, found.batch_entries.sum) == (2, 4)
    with WALMetrics.attach(log) as metrics:
        found = metrics.snapshot()
    assert (found.writers, found.killed_writers) == ((), ())
    assert (found.batches_total, found.batch_entries.count, found.batch_entries.sum) == (2, 2, 4)


def test_the_last_slot_there_is(log: Path, linux: None) -> None:
    with taken(log, edges.SLOTS - 1), WALWriter(log, lock_timeout=0.0) as writer:
        writer.put(b"k", b"v")
        assert writers_of(log) == [edges.SLOTS - 1]
        with pytest.raises(UnsafeLog, match="all 65536 writer slots are taken"):
            WALWriter(log)
        with (log / "append.lock").open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(LogBusy):
                writer.put(b"k", b"v")
        assert writer.sync() == 1


# LSNs


def test_the_last_lsns_there_can_be_are_read_and_none_behind_them(tmp_path: Path) -> None:
    first_lsn = MAX_LSN - 4
    data = layout.segment(first_lsn, [*layout.single(first_lsn, 2), [layout.item(first_lsn + n) for n in (2, 3)]])
    log = layout.write_segments(tmp_path / "log", {first_lsn: data})
    assert [entry.lsn for entry in read_log(log)] == list(range(first_lsn, MAX_LSN))
    with WALReader(log, start=MAX_LSN - 1) as reader:
        assert [entry.lsn for entry in reader] == [MAX_LSN - 1]
    assert not verify(log).damaged
    beyond = layout.write_segments(
        tmp_path / "beyond", {first_lsn: data + layout.frame(MAX_LSN, [layout.item(1)]) + layout.frame(1, [])}
    )
    assert [entry.lsn for entry in read_log(beyond)] == list(range(first_lsn, MAX_LSN))


def log_up_to(place: Path, next_lsn: int) -> Path:
    """One segment, as a power cut leaves it."""
    return layout.write_segments(place, {next_lsn - 3: layout.segment(next_lsn - 3, layout.single(next_lsn - 3, 3))})


def test_a_writer_goes_on_up_to_the_last_lsn_that_is_opened(tmp_path: Path) -> None:
    log = log_up_to(tmp_path / "log", LAST_OPEN_LSN)
    with WALWriter(log) as writer:
        assert writer.put(b"k", b"v") == LAST_OPEN_LSN
        writer.rotate()
        assert writer.append_batch([WALEntry.delete(b"k")] * 2) == range(LAST_OPEN_LSN + 1, LAST_OPEN_LSN + 3)
        assert writer.checkpoint(LAST_OPEN_LSN) == LAST_OPEN_LSN
        assert writer.prune().removed == (LAST_OPEN_LSN - 3, LAST_OPEN_LSN)
    with pytest.raises(CorruptLog, match="no log has so many entries"):
        WALWriter(log_up_to(tmp_path / "other", LAST_OPEN_LSN + 1))


# Sizes


def test_segments_without_an_entry_are_nothing_to_whoever_reads_them(log: Path, tmp_path: Path) -> None:
    with WALWriter(log, retention=None) as writer:
        writer.rotate()
        assert len(segment_files(log)) == 1, "an empty one is not sealed"
        assert read_log(log) == [] and writer.sync() == 0 and writer.prune().removed == ()
        assert copy(log, tmp_path / "empty").next_lsn == 1
        writer.put(b"", b"")
        writer.rotate()
        assert [file.stat().st_size for file in segment_files(log)] == [SEGMENT + FRAME + ENTRY, SEGMENT]
        assert copy(log, tmp_path / "copy").next_lsn == 2
        assert not verify(log).damaged and not verify(tmp_path / "copy").damaged
    assert len(read_log(tmp_path / "copy")) == 1


@pytest.mark.parametrize("mode", SyncMode)
def test_the_largest_entry_fills_a_segment_of_its_size(log: Path, mode: SyncMode) -> None:
    limit = SEGMENT + FRAME + ENTRY + MAX_KEY + MAX_VALUE
    with WALWriter(log, mode, limit, buffer_bytes=limit) as writer:
        writer.put(b"before", b"")
        writer.put(bytes(MAX_KEY), bytes(MAX_VALUE), edges.U64)
        writer.put(b"", b"", 0)
        writer.sync()
        assert [file.stat().st_size for file in segment_files(log)][1] == limit
    found = [(len(entry.key), len(entry.value), entry.timestamp) for entry in read_log(log)][1:]
    assert found == [(MAX_KEY, MAX_VALUE, edges.U64), (0, 0, 0)]


def test_more_sealed_segments_than_a_trim_looks_back_at(log: Path) -> None:
    """And more than eight are removed at once, and synced by one call."""
    with WALWriter(log, size_limit=200) as writer:
        for _ in range(max(EDGES.segments) + 3):
            writer.put(b"k", b"v" * 60)
        assert writer.sync() == max(EDGES.segments) + 3
        assert len(segment_files(log)) == max(EDGES.segments) + 3
        writer.checkpoint(writer.sync())
        assert len(writer.prune().removed) == max(EDGES.segments) + 2
    assert [entry.lsn for entry in read_log(log)] == [max(EDGES.segments) + 3]


# What a caller says


def test_timestamps_at_their_ends_come_back(log: Path) -> None:
    ways: list[Callable[[WALWriter, int], object]] = [
        lambda writer, time: writer.put(b"k", b"v", time),
        lambda writer, time: writer.delete(b"k", time),
        lambda writer, time: writer.append(WALEntry(Operation.PUT, b"k", b"v", time)),
        lambda writer, time: writer.append_batch([WALEntry.put(b"k", b"v", time)] * 9),
    ]
    with WALWriter(log) as writer:
        for way in ways:
            for time in EDGES.timestamps:
                way(writer, time)
    found = {entry.timestamp for entry in read_log(log)}
    assert found == set(EDGES.timestamps)


def test_a_rule_at_its_least_keeps_the_active_segment_alone(log: Path) -> None:
    for rule in (Retention(max_segments=0), Retention(max_bytes=0), Retention(max_age=0.0)):
        with WALWriter(log, size_limit=200, retention=rule) as writer:
            for _ in range(3):
                writer.put(b"k", b"v" * 60)
            writer.prune()
            assert len(segment_files(log)) == 1


# The table itself


def test_each_edge_is_drawn() -> None:
    for low, high, wanted in ((1, MAX_LSN, MAX_LSN), (0, edges.U64, edges.U63 + 1), (0, edges.SLOTS - 1, edges.ROWS)):
        strategy = edges.integers(low, high, *EDGES.lsns, *EDGES.timestamps, *EDGES.slots)
        assert find(strategy, lambda found, wanted=wanted: found == wanted) == wanted
    assert len(find(edges.binary(16, max_size=40), lambda found: len(found) == 16)) == 16


OWN = {"write/test_steered_clocks.py"}  # its moves of the clocks are a table of edges already


def test_every_property_test_draws_from_the_table() -> None:
    here = Path(__file__).parent
    for file in here.rglob("test_*.py"):
        text = file.read_text()
        if re.search(r"^@given\(", text, re.MULTILINE) and file.relative_to(here).as_posix() not in OWN:
            assert "from tests import edges\n" in text, file
