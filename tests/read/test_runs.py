"""Entries are read many batches at a time, and nobody who looks can tell: not from figures, nor from what is next."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.format import layout
from tests.read.logs import entries, entry_of, make, segment_files
from walpool import Operation, WALEntry, WALReader, WALWriter
from walpool.shared.counters import counters_of

COUNT = 40
PLACES = [0, 1, 2, 3, 4, 5, 6, 7, 20, COUNT - 1, COUNT]


@pytest.fixture(params=[1 << 20, 420], ids=["one segment", "many segments"])
def log(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Batches of one and of up to three."""
    path = tmp_path / "log"
    make(path, COUNT, size_limit=request.param)
    return path


def frames_of(log: Path) -> list[tuple[int, int, int]]:
    """(first LSN, entries, bytes) of each."""
    return [
        (first_lsn, count, end - start)
        for file in segment_files(log)
        for start, end, first_lsn, count in layout.spans(file.read_bytes())
    ]


def up_to(log: Path, lsn: int) -> tuple[int, int, int]:
    """(entries, batches, bytes) of all batches that begin at or before an LSN."""
    frames = [frame for frame in frames_of(log) if frame[0] <= lsn]
    return sum(count for _, count, _ in frames), len(frames), sum(size for _, _, size in frames)


def take(reader: WALReader[bytes], count: int) -> None:
    for lsn in range(1, count + 1):
        entry = reader.read_entry()
        assert entry is not None and entry.lsn == lsn


@pytest.mark.parametrize("count", PLACES)
def test_figures_are_of_the_batches_of_which_something_was_handed_out(log: Path, count: int) -> None:
    with WALReader(log) as reader:
        take(reader, count)
        stats = reader.stats
        assert (stats.entries, stats.batches, stats.bytes) == up_to(log, count)
        assert reader.next_lsn == count + 1
        assert reader.read_all() == entries(count + 1, COUNT + 1)
        stats = reader.stats
        assert (stats.entries, stats.batches, stats.bytes) == up_to(log, COUNT)


@pytest.mark.parametrize("count", PLACES)
def test_figures_can_be_asked_for_again_and_again_while_entries_are_iterated_over(log: Path, count: int) -> None:
    found = []
    with WALReader(log) as reader:
        for entry in reader:
            found.append(entry)
            if entry.lsn >= count:
                assert reader.stats.entries == up_to(log, entry.lsn)[0]
    assert found == entries(1, COUNT + 1)


@pytest.mark.parametrize("count", PLACES)
def test_batches_go_on_behind_the_batch_of_the_last_entry(log: Path, count: int) -> None:
    with WALReader(log) as reader:
        take(reader, count)
        found = [(batch.first_lsn, batch.count, batch.entries) for batch in reader.batches()]
    behind = [frame for frame in frames_of(log) if frame[0] > count]
    assert found == [(first, size, entries(first, first + size)) for first, size, _ in behind]


def test_entries_and_batches_may_be_asked_for_in_turns(log: Path) -> None:
    with WALReader(log) as reader:
        batches = reader.batches()
        expected = iter(frames_of(log))
        for batch in batches:
            first, size, _ = next(expected)
            assert (batch.first_lsn, batch.count) == (first, size)
            frame = next(expected, None)
            if frame is None:
                break
            got = [reader.read_entry() for _ in range(frame[1])]
            assert got == entries(frame[0], frame[0] + frame[1])
        assert next(expected, None) is None and reader.read_entry() is None


@pytest.mark.parametrize("count", PLACES)
def test_a_closed_reader_has_the_figures_of_what_it_has_handed_out(log: Path, count: int) -> None:
    reader = WALReader(log)
    take(reader, count)
    reader.close()
    assert (reader.stats.entries, reader.stats.batches, reader.stats.bytes) == up_to(log, count)


def test_what_is_counted_for_the_process_never_goes_back_and_ends_with_what_was_read(log: Path) -> None:
    counters = counters_of(str(log))

    def counted() -> tuple[int, int]:
        totals = counters.values()
        return totals["reads_total"], totals["bytes_read"]

    start = before = counted()
    with WALReader(log) as reader:
        for lsn in range(1, COUNT + 1):
            reader.read_entry()
            if lsn % 3 == 0:
                assert reader.stats.entries >= lsn
            now = counted()
            assert now[0] == start[0] + lsn and now[1] >= before[1]
            before = now
        assert reader.read_entry() is None
    read, _, size = up_to(log, COUNT)
    assert counted() == (start[0] + read, start[1] + size)


def in_a_fork(work: Callable[..., list[int]], *args: Any) -> list[int]:
    there, here = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(here, json.dumps(work(*args)).encode())
        finally:
            os._exit(0)
    os.close(here)
    os.waitpid(pid, 0)
    with os.fdopen(there) as told:
        found: list[int] = json.load(told)
    return found


def go_on(reader: WALReader[bytes], how: str) -> list[int]:
    if how == "batches":
        return [entry.lsn for batch in reader.batches() for entry in batch.entries]
    if how == "stats":
        assert reader.stats.entries
    if how == "first":
        assert reader.first_lsn == 1
    return [entry.lsn for entry in reader]


@pytest.mark.parametrize("how", ["entries", "batches", "stats", "first"])
def test_a_forked_child_goes_on_where_its_parent_was(log: Path, how: str) -> None:
    count = 5
    with WALReader(log) as reader:
        take(reader, count)
        expected = range(count + 1, COUNT + 1)
        if how == "batches":
            expected = range(up_to(log, count)[0] + 1, COUNT + 1)
        assert in_a_fork(go_on, reader, how) == list(expected)
        assert go_on(reader, how) == list(expected)


def test_a_reader_that_was_pickled_in_the_middle_of_a_run_goes_on_behind_it(log: Path) -> None:
    with WALReader(log) as reader:
        take(reader, 9)
        with pickle.loads(pickle.dumps(reader)) as other:
            assert other.read_all() == reader.read_all() == entries(10, COUNT + 1)


def test_a_run_stops_at_the_end_of_what_is_durable(log: Path) -> None:
    with WALWriter(log, size_limit=1 << 20) as writer:
        durable = writer.sync()
        more = [writer.put(b"key", b"value", 1) for _ in range(3)]
        with WALReader(log) as reader:
            assert [entry.lsn for entry in reader.follow(timeout=0, durable_only=True)] == list(range(1, durable + 1))
            assert [entry.lsn for entry in reader.follow(timeout=0)] == more


def test_entries_from_before_the_buffer_moved_on_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with WALWriter(path) as writer:
        for lsn in range(1, 500):
            writer.put(b"%d" % lsn, os.urandom(lsn), lsn)
    with WALReader(path, initial_capacity=1000) as reader:
        found = reader.read_all()
    assert [(entry.key, len(entry.value), entry.timestamp) for entry in found] == [
        (b"%d" % lsn, lsn, lsn) for lsn in range(1, 500)
    ]


def test_a_run_as_long_as_one_that_was_given_by_batches_is_another(tmp_path: Path) -> None:
    log = tmp_path / "log"
    make_single = partial(layout.single, count=20)
    with WALWriter(log) as writer, WALReader(log) as reader:
        for first, by_batches in ((1, True), (21, False)):
            for items in make_single(first):
                writer.append_batch([WALEntry(Operation(items[0][0]), *items[0][1:])])
            if by_batches:
                batches = reader.batches()
                assert [next(batches).first_lsn for _ in range(5)] == list(range(1, 6))
                assert [entry.lsn for entry in reader] == list(range(6, 21))
            else:
                take_on = [reader.read_entry() for _ in range(5)]
                assert take_on == entries(21, 26)
                assert [batch.first_lsn for batch in reader.batches()] == list(range(26, 41))


@pytest.mark.parametrize("zero_copy", [False, True], ids=["bytes", "views"])
def test_whatever_is_asked_for_in_whatever_turns_is_what_stands_there(log: Path, zero_copy: bool, seed: int) -> None:
    """Entries, batches, figures, the next LSN, another reader that was pickled from this one, and an end somewhere."""
    chance = Random(seed)
    frames = {first: count for first, count, _ in frames_of(log)}
    with WALReader(log) as reader:
        heads = {batch.first_lsn: (batch.appended_at, batch.writer) for batch in reader.batches()}
    for turn in range(60):
        start, end = chance.randint(1, COUNT), chance.randint(1, COUNT + 2)
        reader: Any = WALReader(log, start, end, zero_copy=zero_copy)
        lsn, read, handed = start, 0, 0
        end = max(start, min(end, COUNT + 1))
        for _ in range(chance.randrange(40)):
            match chance.randrange(6):
                case 0 | 1:
                    entry = reader.read_entry()
                    assert (entry == entry_of(lsn)) if lsn < end else entry is None, (seed, turn)
                    lsn += lsn < end
                case 2 | 3 if lsn in frames or lsn in (start, end):
                    batch = next(reader.batches(), None)
                    assert (batch is None) == (lsn == end), (seed, turn)
                    if batch is not None:
                        first = max(first for first in frames if first <= lsn)
                        behind = min(end, first + frames[first])
                        assert batch.entries == entries(lsn, behind), (seed, turn)
                        assert (batch.first_lsn, batch.count) == (lsn, behind - lsn), (seed, turn)
                        assert (batch.appended_at, batch.writer) == heads[first], (seed, turn)
                        lsn = behind
                case 4:
                    stats = reader.stats
                    assert read <= stats.entries and handed <= stats.bytes, (seed, turn)
                    read, handed = stats.entries, stats.bytes
                    assert lsn - start <= read <= lsn - start + 2, (seed, turn)
                case 5:
                    assert reader.next_lsn == lsn, (seed, turn)
                    if chance.random() < 0.3:
                        with reader:
                            reader = pickle.loads(pickle.dumps(reader))
                        start, read, handed = lsn, 0, 0
        assert [entry.lsn for entry in reader] == list(range(lsn, end)), (seed, turn)
        reader.close()


def test_bytes_of_a_batch_count_when_it_is_given(log: Path) -> None:
    """Also of one that was read together with those behind it; and once those were begun otherwise, none twice."""
    counters = counters_of(str(log))
    frames = frames_of(log)
    with WALReader(log) as reader:
        for number in range(7):
            assert next(reader.batches()).count == frames[number][1]
            assert counters.values()["bytes_read"] == sum(size for _, _, size in frames[: number + 1])
        assert reader.read_entry() is not None
        assert counters.values()["bytes_read"] >= sum(size for _, _, size in frames[:7])
        assert len(list(reader)) > 9
        assert counters.values()["bytes_read"] == sum(size for _, _, size in frames)
