"""The figures: exact, the same for every process, and untouched by who looks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import Channel, Start
from walpool import LogClosed, LogNotFound, SyncMode, WALEntry, WALMetrics, WALReader, WALWriter

FRAME, ENTRY = 48, 16


def test_the_figures_of_a_new_log(log: Path) -> None:
    with WALWriter(log) as writer:
        figures = writer.metrics.snapshot()
    assert (figures.writes_total, figures.writes_failed, figures.batches_total, figures.bytes_written) == (0, 0, 0, 0)
    assert (figures.sync_total, figures.rotation_count, figures.reads_total) == (0, 0, 0)
    assert (figures.next_lsn, figures.durable_lsn, figures.segments, figures.current_file_size) == (1, 0, 1, 64)
    assert (figures.avg_entry_size, figures.max_entry_size) == (0.0, 0)
    assert (figures.write_success_rate, figures.read_success_rate) == (100.0, 100.0)
    assert figures.files_opened == 1
    assert len(figures.writers) == 1


def test_every_append_is_counted_exactly(log: Path) -> None:
    with WALWriter(log) as writer:
        writer.put(b"key", b"value")
        writer.delete(b"k")
        writer.append(WALEntry.put(b"", b"x" * 100))
        writer.append_batch([WALEntry.put(b"key", b"v" * n) for n in range(10)])
        with writer.batch() as batch:
            batch.put(b"a", b"b")
            batch.delete(b"a")
        figures = writer.metrics.snapshot()
    sizes = [ENTRY + 8, ENTRY + 1, ENTRY + 100, *[ENTRY + 3 + n for n in range(10)], ENTRY + 2, ENTRY + 1]
    assert figures.writes_total == len(sizes) == 15
    assert figures.batches_total == 5
    assert figures.bytes_written == sum(sizes) + 5 * FRAME
    assert figures.current_file_size == 64 + sum(sizes) + 5 * FRAME
    assert figures.max_entry_size == ENTRY + 100
    assert figures.avg_entry_size == sum(sizes) / 15
    assert figures.next_lsn == 16


def test_what_is_buffered_counts_when_it_is_appended(log: Path) -> None:
    with WALWriter(log, SyncMode.NONE) as writer:
        for n in range(10):
            writer.put(b"k", b"v" * n)
        assert writer.metrics.snapshot().writes_total == 0
        writer.sync()
        figures = writer.metrics.snapshot()
    assert (figures.writes_total, figures.batches_total, figures.max_entry_size) == (10, 1, ENTRY + 1 + 9)


def test_syncs_are_counted(log: Path) -> None:
    with WALWriter(log) as writer:
        for count in range(1, 4):
            writer.put(b"k", b"v")
            writer.sync()
            writer.sync()  # nothing is left to sync
            assert writer.metrics.snapshot().sync_total == count
        assert writer.metrics.snapshot().sync_seconds_total > 0
    with WALWriter(log, SyncMode.FULL) as writer:
        writer.put(b"k", b"v")
        assert writer.metrics.snapshot().sync_total == 4


def test_rotations_are_counted(log: Path) -> None:
    with WALWriter(log, size_limit=200) as writer:
        for _ in range(5):
            writer.put(b"k", b"v" * 60)
        figures = writer.metrics.snapshot()
        assert (figures.rotation_count, figures.segments) == (4, 5)
        writer.rotate()
        figures = writer.metrics.snapshot()
        assert (figures.rotation_count, figures.segments, figures.current_file_size) == (5, 6, 64)


def test_an_append_that_raises_is_counted_as_failed(log: Path) -> None:
    with WALWriter(log, size_limit=200) as writer:
        with pytest.raises(ValueError):
            writer.put(b"k", b"v" * 200)
        writer.put(b"k", b"v")
        figures = writer.metrics.snapshot()
        assert (figures.writes_failed, figures.writes_total, figures.write_success_rate) == (1, 1, 50.0)


def test_totals_go_on_when_the_log_is_opened_again(log: Path) -> None:
    for count in range(1, 4):
        with WALWriter(log, size_limit=200) as writer:
            writer.put(b"k", b"v" * 60)
            writer.sync()
            figures = writer.metrics.snapshot()
            assert (figures.writes_total, figures.sync_total, figures.rotation_count) == (count, count, count - 1)


def append_some(channel: Channel, log: Path, count: int, metrics: bool) -> None:
    with WALWriter(log, metrics=metrics) as writer:
        for _ in range(count):
            writer.put(b"key", b"value")
        channel.send("appended")
        channel.receive()


def test_what_every_process_appended_counts_and_stays_counted_when_one_is_killed(child: Start, log: Path) -> None:
    with WALWriter(log) as writer:
        writer.put(b"key", b"value")
        children = [child(append_some, log, 100, metrics) for metrics in (True, False)]
        for each in children:
            assert each.receive() == "appended"
        assert [row.pid for row in writer.metrics.snapshot().writers][1:] != []
        for each in children:
            each.kill()
            each.died()
        figures = writer.metrics.snapshot()
    assert (figures.writes_total, figures.batches_total) == (201, 201)
    assert figures.bytes_written == 201 * (FRAME + ENTRY + 8)


def test_living_writers_are_listed_and_dead_ones_are_not(child: Start, log: Path) -> None:
    with WALWriter(log) as writer:
        one, other = child(append_some, log, 1, True), child(append_some, log, 1, True)
        one.receive(), other.receive()
        with WALMetrics.attach(log) as metrics:
            pids = {row.pid for row in metrics.snapshot().writers}
            assert {one.pid, other.pid} <= pids and len(pids) == 3
            one.kill()
            one.died()
            pids = {row.pid for row in metrics.snapshot().writers}
            assert one.pid not in pids and other.pid in pids
            other.send("end")
            other.result()
            assert len(metrics.snapshot().writers) == 1
        writer.put(b"k", b"v")


def test_a_slot_is_used_again(log: Path) -> None:
    with WALWriter(log) as first:
        slots = []
        for _ in range(3):
            with WALWriter(log) as second:
                slots.append([row.slot for row in second.metrics.snapshot().writers])
        with WALMetrics.attach(log) as metrics:
            assert [row.slot for row in metrics.snapshot().writers] == [0]
        first.put(b"k", b"v")
    assert slots == [slots[0]] * 3


def test_reads_are_counted(log: Path) -> None:
    with WALWriter(log) as writer:
        writer.append_batch([WALEntry.put(b"k", b"v")] * 7)
        with WALReader(log) as reader:
            reader.read_all()
        figures = writer.metrics.snapshot()
    assert (figures.reads_total, figures.reads_failed, figures.bytes_read) == (7, 0, FRAME + 7 * (ENTRY + 2))


def test_a_snapshot_is_a_value_ready_for_json(log: Path) -> None:
    with WALWriter(log) as writer:
        before = writer.metrics.snapshot()
        writer.put(b"k", b"v")
        assert before.writes_total == 0
        with pytest.raises(AttributeError):
            before.writes_total = 7
        after = writer.metrics.snapshot().as_dict()
        assert json.loads(json.dumps(after))["writes_total"] == 1


def test_attaching_changes_nothing_and_ends_with_close(log: Path) -> None:
    with WALWriter(log) as writer:
        writer.put(b"k", b"v")
        metrics = WALMetrics.attach(log)
        assert metrics.snapshot().writes_total == 1
        writer.put(b"k", b"v")
        assert metrics.snapshot().writes_total == 2
        assert len(metrics.snapshot().writers) == 1
        metrics.close()
        metrics.close()
        with pytest.raises(LogClosed):
            metrics.snapshot()
        assert writer.put(b"k", b"v") == 3


def test_attaching_to_nothing_is_an_error(log: Path, tmp_path: Path) -> None:
    with pytest.raises(LogNotFound):
        WALMetrics.attach(log)
    with pytest.raises(LogNotFound):
        WALMetrics.attach(tmp_path)
