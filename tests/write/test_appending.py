"""Appending: LSNs, batches that are there whole or not at all, and what is refused before a byte is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import keys, read_log, run_threads
from walpool import EntryTooLarge, Operation, SyncMode, WALEntry, WALReader, WALWriter
from walpool.system.calls import calls

MIB = 1 << 20


@pytest.fixture
def writer(log: Path) -> Iterator[WALWriter]:
    with WALWriter(log) as opened:
        yield opened


def test_the_first_lsn_is_1_and_each_next_is_one_more(writer: WALWriter) -> None:
    lsns = [writer.put(b"k", b"v"), writer.delete(b"k"), writer.append(WALEntry.put(b"a", b"b"))]
    assert lsns == [1, 2, 3]
    assert writer.append_batch([WALEntry.put(b"a", b"1"), WALEntry.delete(b"b")]) == range(4, 6)
    assert writer.put(b"k", b"v") == 6


def test_lsns_go_on_after_closing_and_opening_again(log: Path) -> None:
    for first in (1, 3, 5):
        with WALWriter(log) as writer:
            assert writer.append_batch([WALEntry.put(b"k", b"v")] * 2) == range(first, first + 2)


def test_what_was_appended_is_what_is_read(log: Path, writer: WALWriter) -> None:
    writer.put(b"user:1", b"ada", timestamp=1)
    writer.delete(b"user:1", timestamp=2)
    writer.append(WALEntry.put(b"", b"", timestamp=(1 << 64) - 1))
    writer.append_batch([WALEntry.put(b"\0" * 20, b"\xff" * 70_000, timestamp=0)])
    assert read_log(log) == [
        WALEntry(Operation.PUT, b"user:1", b"ada", 1, 1),
        WALEntry(Operation.DELETE, b"user:1", b"", 2, 2),
        WALEntry(Operation.PUT, b"", b"", (1 << 64) - 1, 3),
        WALEntry(Operation.PUT, b"\0" * 20, b"\xff" * 70_000, 0, 4),
    ]


def test_a_timestamp_is_nanoseconds_since_the_epoch_unless_it_is_given(log: Path, writer: WALWriter) -> None:
    before = time.time_ns()
    writer.put(b"put", b"")
    writer.delete(b"delete")
    with writer.batch() as batch:
        batch.put(b"put", b"")
        batch.delete(b"delete")
    after = time.time_ns()
    assert all(before <= entry.timestamp <= after for entry in read_log(log))


def test_an_lsn_in_an_entry_that_is_appended_does_not_matter(log: Path, writer: WALWriter) -> None:
    writer.append(WALEntry(Operation.PUT, b"k", b"v", 5, lsn=77))
    assert read_log(log) == [WALEntry(Operation.PUT, b"k", b"v", 5, 1)]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_bytearrays_and_memoryviews_are_taken(log: Path, writer: WALWriter, kind: Callable[..., Any]) -> None:
    writer.put(kind(b"key"), kind(b"value"), 1)
    writer.delete(kind(b"key"), 2)
    writer.append(WALEntry(Operation.PUT, kind(b"key"), kind(b"value"), 3))
    with writer.batch() as batch:
        batch.put(kind(b"key"), kind(b"value"), 4)
        batch.delete(kind(b"key"), 5)
    put, delete = (Operation.PUT, b"key", b"value"), (Operation.DELETE, b"key", b"")
    assert [entry[:3] for entry in read_log(log)] == [put, delete, put, put, delete]


def test_a_view_of_every_second_byte_is_taken(log: Path, writer: WALWriter) -> None:
    writer.put(memoryview(b"k-e-y-")[::2], memoryview(b"v.a.l.")[::2])
    (entry,) = read_log(log)
    assert (entry.key, entry.value) == (b"key", b"val")


def test_a_batch_holds_what_was_put_even_if_the_buffer_changes_afterwards(log: Path, writer: WALWriter) -> None:
    buffer = bytearray(b"before")
    with writer.batch() as batch:
        batch.put(buffer, buffer)
        buffer[:] = b"after!"
    (entry,) = read_log(log)
    assert (entry.key, entry.value) == (b"before", b"before")


@pytest.mark.parametrize("bad", ["text", 7, None, [1, 2], object(), 1.5])
def test_anything_but_bytes_is_a_type_error_and_nothing_is_appended(log: Path, writer: WALWriter, bad: Any) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: writer.put(bad, b"v"),
        lambda: writer.put(b"k", bad),
        lambda: writer.delete(bad),
        lambda: writer.append(WALEntry(Operation.PUT, bad, b"v", 1)),
        lambda: writer.append(WALEntry(Operation.PUT, b"k", bad, 1)),
        lambda: writer.append_batch([WALEntry.put(b"k", b"v"), WALEntry(Operation.PUT, b"k", bad, 1)]),
        lambda: writer.append(bad),
        lambda: writer.append_batch([bad]),
        lambda: WALEntry.put(bad, b"v"),
        lambda: WALEntry.put(b"k", bad),
        lambda: WALEntry.delete(bad),
    ]
    size = writer.size
    for attempt in attempts:
        with pytest.raises(TypeError):
            attempt()
    with pytest.raises(TypeError), writer.batch() as batch:
        batch.put(b"k", b"v")
        batch.put(b"k", bad)
    assert writer.size == size
    assert writer.put(b"k", b"v") == 1


@pytest.mark.parametrize(("timestamp", "error"), [(-1, ValueError), (1 << 64, ValueError), (1.5, TypeError)])
def test_a_timestamp_that_does_not_fit_is_refused(writer: WALWriter, timestamp: Any, error: type[Exception]) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: writer.put(b"k", b"v", timestamp),
        lambda: writer.delete(b"k", timestamp),
        lambda: writer.append(WALEntry(Operation.PUT, b"k", b"v", timestamp)),
        lambda: WALEntry.put(b"k", b"v", timestamp),
    ]
    for attempt in attempts:
        with pytest.raises(error):
            attempt()
    assert writer.put(b"k", b"v") == 1


def test_an_unknown_operation_is_refused(writer: WALWriter) -> None:
    for operation in (0, 3, 16):
        with pytest.raises(ValueError):
            writer.append(WALEntry(operation, b"k", b"v", 1))
    assert writer.put(b"k", b"v") == 1


def test_the_longest_key_and_value_are_taken_and_one_byte_more_is_refused(log: Path, writer: WALWriter) -> None:
    key, value = bytes(MIB), bytes(10 * MIB)
    assert writer.put(key, b"") == 1
    assert writer.put(b"", value) == 2
    assert writer.delete(key) == 3
    assert writer.append(WALEntry.put(key, value)) == 4
    for long_key, long_value in ((key + b"!", b""), (b"", value + b"!")):
        with pytest.raises(EntryTooLarge):
            writer.put(long_key, long_value)
        with pytest.raises(ValueError, match="limit"):
            writer.append(WALEntry.put(long_key, long_value))
        with pytest.raises(EntryTooLarge):
            writer.append_batch([WALEntry.put(b"k", b"v"), WALEntry.put(long_key, long_value)])
        with pytest.raises(EntryTooLarge), writer.batch() as batch:
            batch.put(long_key, long_value)
    with pytest.raises(EntryTooLarge):
        writer.delete(key + b"!")
    assert writer.put(b"k", b"v") == 5
    assert [(len(entry.key), len(entry.value)) for entry in read_log(log)] == [
        (MIB, 0), (0, 10 * MIB), (MIB, 0), (MIB, 10 * MIB), (1, 1),
    ]  # fmt: skip


def test_a_batch_is_one_frame(log: Path, writer: WALWriter) -> None:
    writer.append_batch(WALEntry.put(b"%d" % n, b"v") for n in range(1000))
    with writer.batch() as batch:
        batch.put(b"a", b"2")
        batch.append(WALEntry.put(b"b", b"3"))
        batch.delete(b"c")
        assert len(batch) == 3
        assert batch.lsns == range(0)
    assert batch.lsns == range(1001, 1004)
    with WALReader(log) as reader:
        assert [(found.first_lsn, found.count) for found in reader.batches()] == [(1, 1000), (1001, 3)]


def test_a_batch_takes_entries_inside_of_its_one_block_only(log: Path, writer: WALWriter) -> None:
    batch = writer.batch()
    uses = [lambda: batch.put(b"k", b"v"), lambda: batch.delete(b"k"), lambda: batch.append(WALEntry.put(b"k", b"v"))]
    for use in uses:
        with pytest.raises(RuntimeError, match="inside its `with` block only"):
            use()
    with batch:
        for use in uses:
            use()
    for use in uses:
        with pytest.raises(RuntimeError, match="inside its `with` block only"):
            use()
    with pytest.raises(RuntimeError, match="one `with` block"), batch:
        pass
    assert (len(batch), batch.lsns, writer.metrics.snapshot().next_lsn) == (3, range(1, 4), 4)


def test_a_batch_whose_block_raises_appends_nothing(log: Path, writer: WALWriter) -> None:
    writer.put(b"before", b"")
    size = writer.size
    with pytest.raises(ZeroDivisionError), writer.batch() as batch:
        batch.put(b"lost", b"")
        raise ZeroDivisionError
    assert batch.lsns == range(0)
    assert writer.size == size
    writer.put(b"after", b"")
    assert keys(log) == [b"before", b"after"]


def test_a_batch_from_an_iterator_that_raises_appends_nothing(log: Path, writer: WALWriter) -> None:
    def entries() -> Iterator[WALEntry]:
        yield WALEntry.put(b"lost", b"")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        writer.append_batch(entries())
    assert writer.put(b"after", b"") == 1


def test_an_iterator_may_append_to_the_same_writer(log: Path, writer: WALWriter) -> None:
    """No lock is held while entries are collected."""

    def entries() -> Iterator[WALEntry]:
        for n in range(3):
            writer.put(b"inner %d" % n, b"")
            yield WALEntry.put(b"outer %d" % n, b"")

    assert writer.append_batch(entries()) == range(4, 7)
    assert keys(log) == [b"inner 0", b"inner 1", b"inner 2", b"outer 0", b"outer 1", b"outer 2"]


def test_an_empty_batch_appends_nothing(log: Path, writer: WALWriter) -> None:
    size = writer.size
    assert len(writer.append_batch([])) == 0
    with writer.batch() as batch:
        pass
    assert len(batch.lsns) == 0
    assert writer.size == size
    assert writer.put(b"k", b"v") == 1


def test_two_writers_of_one_process_take_turns(log: Path) -> None:
    with WALWriter(log) as one, WALWriter(log) as other:
        assert [writer.put(b"k", b"v") for writer in (one, other, other, one)] == [1, 2, 3, 4]


def test_threads_share_one_writer(log: Path, writer: WALWriter) -> None:
    acknowledged: dict[int, list[int | None]] = {}

    def append(thread: int) -> None:
        acknowledged[thread] = [writer.put(b"%d/%d" % (thread, n), b"v") for n in range(500)]

    run_threads(*[lambda thread=thread: append(thread) for thread in range(8)])
    found = keys(log)
    assert len(found) == 4000
    for thread, lsns in acknowledged.items():
        assert [found[lsn - 1] for lsn in lsns if lsn] == [b"%d/%d" % (thread, n) for n in range(500)]


def test_the_frames_stand_in_order_of_time_though_the_clock_is_set_back(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([1000, 2000, 500, 2001])
    last = 0

    def time_ns() -> int:
        nonlocal last
        last = next(clock, last)
        return last

    with WALWriter(log) as writer:
        writer.put(b"k", b"v", 1)
    monkeypatch.setattr(calls, "time_ns", time_ns)
    with WALWriter(log) as writer:
        for _ in range(6):
            writer.put(b"k", b"v", 1)
    with WALReader(log) as reader:
        times = [batch.appended_at for batch in reader.batches()]
    assert times == sorted(times)


def test_the_size_is_the_published_end_of_the_active_segment(log: Path) -> None:
    with WALWriter(log) as writer, WALWriter(log) as other:
        assert writer.size == 64
        writer.put(b"key", b"value")
        assert writer.size == other.size == 64 + 48 + 16 + 8
        other.append_batch([WALEntry.put(b"key", b"value")] * 2)
        assert writer.size == other.size == 64 + 72 + 48 + 2 * 24
        writer.rotate()
        assert writer.size == other.size == 64


@pytest.mark.parametrize("path", [str, lambda path: path], ids=["str", "PathLike"])
def test_the_path_is_absolute_whatever_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with WALWriter(path(Path("deep/er/events.wal"))) as writer:
        assert writer.path == str(tmp_path / "deep/er/events.wal")
        monkeypatch.chdir("/")
        writer.put(b"k", b"v")
        writer.rotate()
        writer.put(b"k", b"v")
    assert len(read_log(tmp_path / "deep/er/events.wal")) == 2


@pytest.mark.parametrize("path", [b"bytes", 7, None])
def test_a_path_that_is_no_path_is_a_type_error(path: Any) -> None:
    with pytest.raises(TypeError):
        WALWriter(path)


def test_a_sync_mode_that_is_none_of_ours_is_refused(log: Path) -> None:
    with pytest.raises(ValueError):
        WALWriter(log, "fast")
    assert not log.exists()
    with WALWriter(log, SyncMode("full")) as writer:
        assert writer.put(b"k", b"v") == 1
