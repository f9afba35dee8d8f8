"""WALMetrics: figures from any process, without an effect on writers; and this process's own counters."""

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.read.logs import entries, fill, make, read, segment_files, written
from tests.support import open_under, reap, until
from walpool import (
    CorruptLog,
    EntryTooLarge,
    LogClosed,
    LogNotFound,
    RecoveryMode,
    UnsafeLog,
    WALError,
    WALMetrics,
    WALReader,
    WALWriter,
)
from walpool.shared.counters import ProcessCounters, counters_of


def test_figures_of_a_log_are_what_was_done_with_it(log: Path) -> None:
    with WALWriter(log, size_limit=500) as writer:
        done = fill(writer, 20)
        writer.put(b"largest", bytes(150))
        writer.sync()
        with WALMetrics.attach(log) as metrics:
            # The coordinator may count its sync a moment after the sync is over.
            until(lambda: metrics.snapshot() == writer.metrics.snapshot(), "both see the same")
            found = metrics.snapshot()
    sizes = [16 + len(entry.key) + len(entry.value) for entry in done] + [16 + 7 + 150]
    frames = sum(len(written(file)) - 64 for file in segment_files(log))
    assert found.writes_total == 21
    assert found.bytes_written == frames
    assert found.batches_total == (frames - sum(sizes)) // 48
    assert found.avg_entry_size == pytest.approx(sum(sizes) / len(sizes))
    assert found.max_entry_size == 16 + 7 + 150
    assert found.next_lsn == 22
    assert found.durable_lsn == 21
    assert found.segments == len(segment_files(log))
    assert found.rotation_count == found.segments - 1
    assert found.current_file_size == len(written(segment_files(log)[-1]))
    assert found.sync_total >= 1
    assert found.sync_seconds_total >= 0
    assert [row.pid for row in found.writers] in ([os.getpid()], [])  # a writer does not see its own slot's lock


def test_an_attached_view_sees_every_writer(log: Path) -> None:
    with WALWriter(log), WALWriter(log), WALMetrics.attach(log) as metrics:
        rows = metrics.snapshot().writers
        assert [(row.slot, row.pid) for row in rows] == [(0, os.getpid()), (1, os.getpid())]
        assert all(row.process for row in rows)
    with WALMetrics.attach(log) as metrics:
        assert metrics.snapshot().writers == ()


def test_a_snapshot_is_ready_for_json(log: Path) -> None:
    with WALWriter(log) as writer, WALMetrics.attach(log) as metrics:
        fill(writer, 5)
        snapshot = metrics.snapshot()
        told = json.loads(json.dumps(snapshot.as_dict()))
    assert told["writes_total"] == 5
    assert told["writers"][0]["slot"] == 0
    for name, value in told.items():
        mine = getattr(snapshot, name)
        if isinstance(mine, int | float | str):
            assert value == mine


def test_a_snapshot_does_not_change(log: Path) -> None:
    with WALWriter(log) as writer:
        metrics = writer.metrics
        before = metrics.snapshot()
        fill(writer, 5)
        assert before.writes_total == 0
        with pytest.raises(AttributeError):
            before.writes_total = 9  # type: ignore[misc]
        after = metrics.snapshot()
        assert after.writes_total == 5
        for value in (before, after.delta(before)):
            assert not hasattr(value, "__dict__")


def test_snapshots_between_which_nothing_was_done_are_equal(log: Path) -> None:
    """Whenever they were taken."""
    with WALWriter(log) as writer:
        writer.put(b"key", b"value")
    with WALMetrics.attach(log) as metrics:
        first, second = metrics.snapshot(), metrics.snapshot()
    assert first.taken_at < second.taken_at
    assert first == second


def test_a_closed_view_has_nothing_to_let_go_of_in_a_child(log: Path) -> None:
    WALWriter(log).close()
    metrics = WALMetrics.attach(log)
    metrics.close()
    metrics._after_fork()
    with pytest.raises(LogClosed):
        metrics.snapshot()


def test_nothing_done_is_wholly_successful(log: Path) -> None:
    with WALWriter(log) as writer:
        found = writer.metrics.snapshot()
    assert (found.write_success_rate, found.read_success_rate) == (100.0, 100.0)
    assert (found.avg_entry_size, found.max_entry_size) == (0.0, 0)
    assert (found.next_lsn, found.durable_lsn, found.segments) == (1, 0, 1)


def test_failures_of_this_process_are_counted(log: Path) -> None:
    with WALWriter(log, size_limit=500) as writer:
        fill(writer, 3)
        for _ in range(2):
            with pytest.raises(ValueError):
                writer.append_batch(entries(1, 100))  # no segment could hold it
        found = writer.metrics.snapshot()
        assert (found.writes_total, found.writes_failed) == (3, 2)
        assert found.write_success_rate == pytest.approx(60.0)
        with pytest.raises(EntryTooLarge):
            writer.put(b"key", bytes(11 << 20))
        assert writer.metrics.snapshot().writes_total == 3


def test_reads_of_this_process_are_counted(log: Path) -> None:
    make(log, 20)
    with WALMetrics.attach(log) as metrics:
        before = metrics.snapshot()
        with WALReader(log) as reader:
            reader.read_all()
            size = reader.stats.bytes
        found = metrics.snapshot()
        assert found.reads_total - before.reads_total == 20
        assert found.bytes_read - before.bytes_read == size
        assert found.reads_failed == before.reads_failed
        assert found.files_opened > before.files_opened
        data = bytearray(segment_files(log)[1].read_bytes())
        data[90] ^= 1
        segment_files(log)[1].write_bytes(data)
        assert isinstance(read(log).error, CorruptLog)
        damaged = metrics.snapshot()
        assert damaged.reads_failed == found.reads_failed + 1
        assert damaged.corrupted_entries == found.corrupted_entries + 1
        assert damaged.read_success_rate < 100.0
        read(log, mode=RecoveryMode.SALVAGE)
        assert metrics.snapshot().reads_failed == damaged.reads_failed


def test_attaching_has_no_effect_on_writers(log: Path) -> None:
    make(log, 5)
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in log.iterdir()}
    with WALMetrics.attach(log) as metrics:
        for _ in range(10):
            metrics.snapshot()
    assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in log.iterdir()} == before
    with WALWriter(log) as writer:
        assert writer.recovery_report is None


def test_totals_never_go_back_when_writers_come_and_go(log: Path) -> None:
    last = 0
    for number in range(5):
        with WALWriter(log, size_limit=500, metrics=number % 2 == 0) as writer:
            fill(writer, 7)
        with WALMetrics.attach(log) as metrics:
            found = metrics.snapshot()
        assert found.writes_total == last + 7
        last = found.writes_total


def test_a_closed_view_says_so(log: Path) -> None:
    make(log, 1)
    metrics = WALMetrics.attach(log)
    metrics.close()
    metrics.close()
    with pytest.raises(LogClosed):
        metrics.snapshot()
    with WALWriter(log) as writer:
        mine = writer.metrics
        mine.snapshot()
    with pytest.raises(LogClosed):
        mine.snapshot()


def test_closing_a_writers_view_leaves_the_writer_as_it_is(log: Path) -> None:
    with WALWriter(log) as writer:
        with writer.metrics as metrics:
            metrics.snapshot()
        assert writer.put(b"key", b"value") == 1


def test_what_cannot_be_attached_to_says_why(log: Path, tmp_path: Path) -> None:
    with pytest.raises(LogNotFound):
        WALMetrics.attach(log)
    with pytest.raises(LogNotFound):
        WALMetrics.attach(tmp_path)
    make(log, 1)
    (tmp_path / "link").symlink_to(log)
    with pytest.raises(UnsafeLog):
        WALMetrics.attach(tmp_path / "link")
    (log / "control").unlink()
    before = open_under(log)
    for _ in range(3):
        with pytest.raises(WALError):
            WALMetrics.attach(log)
    assert open_under(log) == before


# Counters


def test_counters_add_up_over_threads() -> None:
    counters = ProcessCounters()

    def work() -> None:
        for _ in range(1000):
            counters.add(reads_total=1, bytes_read=3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = counters.values()
    assert (found["reads_total"], found["bytes_read"], found["reads_failed"]) == (4000, 12000, 0)


def test_a_forked_child_starts_from_zero() -> None:
    counters = ProcessCounters()
    counters.add(reads_total=5)
    counters.after_fork()
    assert set(counters.values().values()) == {0}
    counters.add(reads_total=2)
    assert counters.values()["reads_total"] == 2


def interrupted(what: Callable[[], object], handler: Callable[[], object]) -> tuple[int, int]:
    """Run `what` again and again, each time with `handler` in the middle of it one bytecode later than before.

    On the same thread, as a signal handler or a finalizer is. How many times `what` ran, and `handler`.
    """
    at = seen = 0
    dry = 2  # Python 3.12 tells of bytecodes only in functions that were traced before

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal seen
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == at:
                handler()
        return trace

    while dry or seen == at:
        at, seen, dry = at + (not dry), 0, max(0, dry - 1)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            what()
        finally:
            sys.settrace(before)
        seen = min(seen, at)
    return at + 2, at - 1


def test_who_counts_in_the_middle_of_counting_neither_waits_nor_loses() -> None:
    counters = ProcessCounters()

    def handler() -> None:
        counters.add(reads_total=1, bytes_read=7)
        counters.values()

    ran, handled = interrupted(lambda: counters.add(reads_total=1, bytes_read=7), handler)
    assert handled > 10
    found = counters.values()
    assert (found["reads_total"], found["bytes_read"]) == (ran + handled, 7 * (ran + handled))


def test_a_cell_counts_while_it_is_owned_and_afterwards_and_is_used_again() -> None:
    class Owner:
        pass

    counters = ProcessCounters()
    cells = set()
    for number in range(1, 4):
        owner = Owner()
        cell = counters.cell_for(owner)
        cells.add(id(cell))
        cell["reads_total"] += 5
        assert counters.values()["reads_total"] == 5 * number
        del owner
        assert counters.values()["reads_total"] == 5 * number
    assert len(cells) == 1


def reads_since(metrics: WALMetrics, before: int) -> int:
    return metrics.snapshot().reads_total - before


def test_entries_count_as_read_when_they_are_handed_out(log: Path) -> None:
    """One by one, or a batch at once; whatever becomes of the reader."""
    with WALWriter(log) as writer:
        for _ in range(4):
            writer.append_batch(entries(1, 8))
    with WALMetrics.attach(log) as metrics:
        before = metrics.snapshot().reads_total
        reader = WALReader(log)
        for count in range(1, 10):
            assert reader.read_entry() is not None
            assert reads_since(metrics, before) == count
        with WALReader(log) as other:
            next(other.batches())
            assert reads_since(metrics, before) == 9 + 7
        assert len(list(reader)) == 28 - 9
        assert reads_since(metrics, before) == 28 + 7
        assert reader.read_entry() is None
        reader.close()
        for entry in WALReader(log):
            assert entry.lsn == 1
            break  # and the reader is gone
        assert reads_since(metrics, before) == 28 + 7 + 7
        dropped = WALReader(log)
        dropped.read_entry()
        dropped.close()
        del dropped
        assert reads_since(metrics, before) == 28 + 7 + 7 + 1


def test_a_child_goes_on_with_its_parents_reader_and_counts_what_it_reads_itself(log: Path) -> None:
    make(log, 10)
    before = counters_of(str(log)).values()["reads_total"]
    with WALReader(log) as reader:
        for _ in range(4):
            reader.read_entry()
        pid = os.fork()
        if not pid:
            status = 1
            try:
                mine = [counters_of(str(log)).values()["reads_total"]]
                reader.read_entry()
                mine.append(counters_of(str(log)).values()["reads_total"])
                status = 0 if mine == [0, 1] else 2
            finally:
                os._exit(status)
        assert reap(pid) == 0
        assert counters_of(str(log)).values()["reads_total"] == before + 4


def test_values_are_a_copy() -> None:
    counters = ProcessCounters()
    counters.values()["reads_total"] = 9
    assert counters.values()["reads_total"] == 0


def test_a_log_has_one_set_of_counters_in_a_process() -> None:
    assert counters_of("/one/log") is counters_of("/one/log")
    assert counters_of("/one/log") is not counters_of("/another/log")


def test_an_unknown_counter_is_our_bug() -> None:
    with pytest.raises(KeyError):
        ProcessCounters().add(typo=1)
