"""Slot rows: what each writer did, exact, whoever was killed where; and never worth an append."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import workers
from tests.shared.test_metrics import interrupted
from tests.support import DEADLINE_S, Channel, Start, run_threads, until
from walpool import LogBusy, LogFull, SyncMode, WALEntry, WALMetrics, WALWriter
from walpool.shared import slot_rows
from walpool.shared.control import LEADING
from walpool.shared.figures.fields import OF_LOG, Kind, WriterRow
from walpool.shared.figures.histogram import bucket_of
from walpool.shared.figures.snapshot import Snapshot
from walpool.shared.slot_rows import CLAIMS, ROW_BYTES, SlotRow
from walpool.system.calls import calls

FRAME, ENTRY = 48, 16


def look(log: Path) -> Snapshot:
    with WALMetrics.attach(log) as metrics:
        return metrics.snapshot()


def row_of(log: Path, name: str) -> WriterRow:
    (found,) = [row for row in look(log).writers if row.name == name]
    return found


def test_a_row_is_what_its_writer_did(log: Path) -> None:
    with WALWriter(log, size_limit=2000, name="one") as one, WALWriter(log, SyncMode.FULL, 2000, name="two") as two:
        for _ in range(10):
            one.put(b"key", b"value")
        one.append_batch([WALEntry.put(b"k", b"v")] * 5)
        two.put(b"key", b"value")
        two.rotate()
        found = look(log)
        first, second = found.writers
        assert (first.name, first.sync_mode, first.pid) == ("one", "normal", os.getpid())
        assert (first.entries, first.batches, first.bytes) == (15, 11, 11 * FRAME + 10 * (ENTRY + 8) + 5 * (ENTRY + 2))
        assert (second.name, second.sync_mode) == ("two", "full")
        assert (second.entries, second.batches, second.syncs_led, second.rotations) == (1, 1, 1, 1)
        assert first.entries + second.entries == found.writes_total
        assert first.bytes + second.bytes == found.bytes_written
        assert first.opened_at <= second.opened_at
        assert first.opened_at <= first.last_append_at <= second.last_append_at
        assert first.state == second.state == "idle"
        assert not first.shares_row


def test_histograms_count_every_append(log: Path) -> None:
    with WALWriter(log, SyncMode.FULL) as writer:
        for _ in range(10):
            writer.put(b"key", b"value")
        for count in (2, 500):
            writer.append_batch([WALEntry.put(b"k", b"v")] * count)
        found = look(log)
    assert found.batch_entries.count == found.batches_total == 12
    assert [found.batch_entries.counts[bucket_of(count)] for count in (1, 2, 500)] == [10, 1, 1]
    assert found.batch_entries.sum == found.writes_total == 512
    assert found.batch_entries.quantile(0.5) == 1.0
    assert found.batch_entries.max == pytest.approx(500, rel=0.032)
    assert found.lock_wait.count == 12 and found.lock_waits == 0 and found.lock_wait.max == 0.0
    assert found.sync_duration.count == found.sync_total == 12
    assert found.sync_duration.sum == pytest.approx(found.sync_seconds_total, rel=0.1, abs=12 * 256e-9)
    assert found.append_duration.count >= 1


def append_and_wait(channel: Channel, log: Path, count: int, name: str) -> None:
    writer = WALWriter(log, name=name)
    for _ in range(count):
        writer.put(b"key", b"value")
    channel.send("appended")
    channel.receive()
    writer.close()


def test_totals_outlive_those_who_counted_them(child: Start, log: Path) -> None:
    """Killed, or closed: what they did stays counted, and whoever takes the slot starts from nothing."""
    expected = 0
    with WALWriter(log, name="peer"):
        for end in ("kill", "close", "kill"):
            writer = child(append_and_wait, log, 50, end)
            assert writer.receive() == "appended"
            expected += 50
            row = row_of(log, end)
            assert (row.slot, row.batches, row.pid) == (1, 50, writer.pid)
            if end == "kill":
                writer.kill()
                writer.died()
            else:
                writer.send("close")
                writer.result()
            found = look(log)
            assert found.batch_entries.count == found.batches_total == expected
            assert [row.name for row in found.writers] == ["peer"]
            assert [(row.name, row.batches) for row in found.killed_writers] == ([(end, 50)] if end == "kill" else [])


def test_a_claim_that_was_killed_midway_is_taken_over(log: Path) -> None:
    with WALWriter(log, name="first") as writer:
        writer.put(b"key", b"value")
    with (log / "metrics").open("r+b") as file:
        file.seek(2 * ROW_BYTES + CLAIMS * 8)
        file.write((7).to_bytes(8, "little"))  # odd: killed while it put its identity there
    assert look(log).batch_entries.count == 1
    with WALWriter(log, name="second") as writer:
        writer.put(b"key", b"value")
        assert row_of(log, "second").batches == 1
        assert look(log).batch_entries.count == 2


def test_failures_are_counted_by_kind_and_the_last_one_is_told(log: Path) -> None:
    with WALWriter(log, size_limit=500, name="it", lock_timeout=0.0) as writer:
        with pytest.raises(ValueError):
            writer.put(b"k", bytes(500))
        with (log / "append.lock").open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(LogBusy):
                writer.put(b"k", b"v")
        row = row_of(log, "it")
        assert row.failures == 2
        assert row.failures_by_kind == (1, 0, 0, 1, 0)
        assert "the lock was not free" in row.last_error
        assert row.last_error_at >= row.opened_at
        assert look(log).writes_failed == 2
        assert look(log).failures_by_kind == row.failures_by_kind
        kinds = {"busy": 1, "full": 0, "sync_failed": 0, "too_large": 1, "other": 0}
        told: dict[str, Any] = json.loads(json.dumps(look(log).as_dict()))
        assert told["failures_by_kind"] == told["writers"][0]["failures_by_kind"] == kinds
    with WALWriter(log, name="next"):
        row = row_of(log, "next")
        assert (row.failures, row.last_error, row.last_error_at) == (0, "", 0.0)
        assert look(log).writes_failed == 2


def append_at_the_word(channel: Channel, log: Path) -> None:
    with WALWriter(log, name="waiter") as writer:
        channel.send("open")
        channel.receive()
        writer.put(b"key", b"value")
        channel.send("appended")
        channel.receive()


def test_who_has_to_wait_for_the_lock_says_so(child: Start, log: Path) -> None:
    waiter = child(append_at_the_word, log)
    assert waiter.receive() == "open"
    holder = child(workers.stand_inside, log)
    assert holder.receive() == "inside"
    waiter.send("append")
    with WALMetrics.attach(log) as metrics:

        def waits() -> bool:
            return [row.state for row in metrics.snapshot().writers if row.name == "waiter"] == ["waiting for the lock"]

        until(waits, "the second writer waits for the append lock")
        found = metrics.snapshot()
        (holding,) = [row for row in found.writers if row.pid == holder.pid]
        assert found.lock_holder == holding.slot
        holder.send("go on")
        assert waiter.receive() == "appended"
        holder.result()
        found = metrics.snapshot()
        assert found.lock_waits >= 1
        assert found.lock_wait.count == found.batches_total
        assert 0.0 < found.lock_wait.max < 60.0
        assert found.lock_holder is None
        waiter.send("end")
        waiter.result()


def test_who_waits_for_anothers_sync_counts_a_wait_and_who_leads_a_sync(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    fdatasync = calls.fdatasync

    def slow(fd: int) -> None:
        begun.set()
        go_on.wait(DEADLINE_S)
        fdatasync(fd)

    with WALWriter(log, name="leads") as leader, WALWriter(log, name="waits") as other:
        leader.put(b"key", b"value")
        monkeypatch.setattr(calls, "fdatasync", slow)
        threads = [threading.Thread(target=leader.sync), threading.Thread(target=other.sync)]
        threads[0].start()
        begun.wait()
        threads[1].start()
        until(lambda: row_of(log, "waits").state == "waiting for a sync", "the other waits")
        go_on.set()
        for thread in threads:
            thread.join()
        counted = {name: (row_of(log, name).syncs_led, row_of(log, name).sync_waits) for name in ("leads", "waits")}
        assert counted == {"leads": (1, 0), "waits": (0, 1)}


def test_a_killed_writer_holds_nothing(child: Start, log: Path) -> None:
    holder = child(workers.stand_inside, log)
    assert holder.receive() == "inside"
    with WALMetrics.attach(log) as metrics:
        assert metrics.snapshot().lock_holder == 0
        holder.kill()
        holder.died()
        assert metrics.snapshot().lock_holder is None


def test_a_killed_writer_holds_nothing_in_the_name_of_who_has_its_slot_now(child: Start, log: Path) -> None:
    with WALWriter(log) as waiting:
        holder = child(workers.stand_inside, log)
        assert holder.receive() == "inside"
        holder.kill()
        holder.died()
        with WALWriter(log, lock_timeout=0.0) as heir:
            found = look(log)
            assert [row.slot for row in found.writers] == [0, 1]
            assert found.lock_holder is None
            assert "in the middle of an append" not in told_while_the_lock_is_held(log, heir)
            assert waiting.put(b"key", b"value") == heir.sync()


def told_while_the_lock_is_held(log: Path, impatient: WALWriter) -> str:
    with (log / "append.lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LogBusy) as caught:
            impatient.put(b"key", b"value")
    return str(caught.value)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Of what is opened from now on the disk is full, or not."""
    now = [""]

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if now[0] == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwrite(fd, data, at)

    monkeypatch.setattr(calls, "pwrite", pwrite)
    return lambda word: now.__setitem__(0, word)


def test_who_could_not_append_holds_nothing(log: Path, disk: Callable[[str], None]) -> None:
    """Neither in the figures nor in what is told of the holder to somebody who waits for the lock."""
    with WALWriter(log) as writer, WALWriter(log, lock_timeout=0.0) as other:
        disk("full")
        with pytest.raises(LogFull):
            writer.put(b"key", b"value")
        assert look(log).lock_holder is None
        assert "in the middle of an append" not in told_while_the_lock_is_held(log, other)


def test_who_could_not_append_has_not_appended(log: Path, disk: Callable[[str], None]) -> None:
    with WALWriter(log, name="it") as writer:
        disk("full")
        with pytest.raises(LogFull):
            writer.put(b"key", b"value")
        assert row_of(log, "it").last_append_at == 0.0
        disk("well")
        began = time.time()
        writer.put(b"key", b"value")
        appended_at = row_of(log, "it").last_append_at
        assert began - 0.1 <= appended_at <= time.time()
        writer.rotate()
        assert row_of(log, "it").last_append_at == appended_at


def test_a_slot_that_somebody_has_had_since_shows_no_killed_writer(child: Start, log: Path) -> None:
    """Whether that one counted or not."""
    with WALWriter(log):
        writer = child(append_and_wait, log, 1, "killed")
        assert writer.receive() == "appended"
        writer.kill()
        writer.died()
        assert [row.name for row in look(log).killed_writers] == ["killed"]
        WALWriter(log, metrics=False).close()
        assert look(log).killed_writers == ()


def test_where_nobody_counts_histograms_have_the_units_that_they_have_elsewhere(log: Path) -> None:
    with WALWriter(log, metrics=False) as writer:
        before = writer.metrics.snapshot()
        with WALWriter(log) as other:
            other.put(b"key", b"value")
        after = writer.metrics.snapshot()
    for name, figure in OF_LOG.items():
        if figure.kind is Kind.HISTOGRAM:
            assert getattr(before, name).unit == getattr(after, name).unit, name


def test_who_waits_for_a_leader_that_was_killed_and_leads_then_has_had_no_other(log: Path) -> None:
    with WALWriter(log, name="it") as writer:
        writer.put(b"key", b"value")
        writer._handle.open().log.control.words[LEADING] = 7  # as a killed one leaves it
        writer.sync()
        row = row_of(log, "it")
        assert (row.syncs_led, row.sync_waits) == (1, 0)


def test_an_append_that_another_made_durable_at_the_last_moment_does_not_fail(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WALWriter(log) as other, WALWriter(log, SyncMode.FULL, lock_timeout=0.0, name="it") as writer:
        real = calls.flock
        sync_lock = writer._handle.open().log.sync_lock.fd

        def flock(fd: int, operation: int) -> None:
            if fd == sync_lock and operation != fcntl.LOCK_UN:
                other.sync()
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            real(fd, operation)

        monkeypatch.setattr(calls, "flock", flock)
        assert writer.put(b"key", b"value") == 1
        row = row_of(log, "it")
        assert (row.syncs_led, row.sync_waits, row.failures) == (0, 1, 0)


def test_what_is_buffered_shows(log: Path) -> None:
    with WALWriter(log, SyncMode.NONE, linger_s=60.0, name="it") as writer:
        writer.put(b"key", b"value")
        writer.put(b"key", b"value")
        assert row_of(log, "it").buffered_bytes == 2 * (ENTRY + 8)
        assert row_of(log, "it").entries == 0
        writer.sync()
        assert row_of(log, "it").buffered_bytes == 0
        assert row_of(log, "it").entries == 2


def test_a_writer_without_metrics_leaves_its_row_alone(log: Path) -> None:
    with WALWriter(log, name="counted") as writer:
        writer.put(b"key", b"value")
    before = (log / "metrics").read_bytes()
    with WALWriter(log, SyncMode.FULL, metrics=False, name="silent") as writer:
        writer.put(b"key", b"value")
        (row,) = look(log).writers
        assert (row.pid, row.name, row.entries, row.shares_row) == (os.getpid(), "", 0, False)
    assert (log / "metrics").read_bytes() == before
    assert look(log).writes_total == 2


def test_writers_beyond_the_rows_share_one_and_are_marked(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_rows, "ROWS", 2)
    monkeypatch.setattr("walpool.shared.figures.snapshot.ROWS", 2)
    writers = [WALWriter(log, name=str(number)) for number in range(4)]
    for writer in writers:
        for _ in range(3):
            writer.put(b"key", b"value")
        writer.append_batch([WALEntry.put(b"key", b"value")] * 5)
    found = look(log)
    assert [row.shares_row for row in found.writers] == [False, False, True, True]
    assert [row.batches for row in found.writers[:2]] == [4, 4]
    size = 3 * (FRAME + ENTRY + 8) + FRAME + 5 * (ENTRY + 8)
    for count, row in zip((1, 1, 2, 2), found.writers, strict=True):  # the shared row is that of both
        assert (row.batches, row.entries, row.bytes) == (4 * count, 8 * count, size * count)
    assert (found.batch_entries.count, found.batch_entries.sum, found.batch_entries.max) == (16, 32, 5)
    for writer in writers:
        writer.close()
    assert look(log).batch_entries.count == 16


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b"x" * 3 * ROW_BYTES),
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: os.mkfifo(path),
        lambda path: path.mkdir(),
    ],
    ids=["garbage", "symlink", "fifo", "directory"],
)
def test_a_file_that_is_not_ours_costs_the_metrics_and_no_append(
    log: Path, harm: object, caplog: pytest.LogCaptureFixture
) -> None:
    log.mkdir()
    harm(log / "metrics")  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, "walpool"), WALWriter(log) as writer:
        assert writer.put(b"key", b"value") == 1
        assert "will not show in the metrics" in caplog.text
        found = look(log)
        assert (found.writes_total, found.batch_entries.count, len(found.writers)) == (1, 0, 1)


@pytest.mark.parametrize("size", [0, 1, ROW_BYTES, 2 * ROW_BYTES, 3 * ROW_BYTES - 1])
def test_a_truncated_file_is_fewer_rows(log: Path, size: int) -> None:
    with WALWriter(log, name="it") as writer:
        writer.put(b"key", b"value")
    os.truncate(log / "metrics", size)
    assert look(log).writes_total == 1
    with WALWriter(log, name="it") as writer:
        writer.put(b"key", b"value")
        assert row_of(log, "it").batches == 1


def test_random_bytes_in_rows_break_no_snapshot(log: Path, seed: int) -> None:
    draw = random.Random(seed)
    with WALWriter(log, name="it"), WALMetrics.attach(log) as metrics, (log / "metrics").open("r+b") as file:
        for _ in range(50):
            file.seek(ROW_BYTES + draw.randrange(2 * ROW_BYTES - 100))
            file.write(draw.randbytes(100))
            file.flush()
            metrics.snapshot().as_dict()


def test_a_row_of_garbage_refuses_no_opening_and_no_append(log: Path) -> None:
    """A word that is full has no room for one more: that must not show as an append that raised."""
    WALWriter(log, name="it").close()
    with (log / "metrics").open("r+b") as file:
        file.seek(2 * ROW_BYTES)
        file.write(b"\xff" * ROW_BYTES)
    with WALWriter(log, SyncMode.FULL, name="it") as writer:
        assert writer.put(b"key", b"value") == 1
        assert writer.append_batch([WALEntry.put(b"k", b"v")] * 5) == range(2, 7)
        row = row_of(log, "it")
        assert (row.entries, row.batches, row.failures) == (6, 2, 0)


def test_waits_that_another_thread_counted_first_are_no_error(log: Path) -> None:
    class Emptied(list[int]):
        """As it is for a thread that looked just before another took the last."""

        def __bool__(self) -> bool:
            return True

    with WALWriter(log) as writer:
        writer.put(b"key", b"value")
        writer._handle.open().appender.waits._waited_ns = Emptied()
        writer._handle.open().appender.chores.ask()
        assert writer.put(b"key", b"value") == 2
        writer._handle.open().appender.waits._waited_ns = []


def test_a_full_disk_costs_the_metrics_and_no_append(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = calls.pwrite

    def no_room(fd: int, data: bytes, offset: int) -> int:
        if len(data) >= ROW_BYTES and not any(data[64:1000]):
            raise OSError(errno.ENOSPC, "full")
        return pwrite(fd, data, offset)

    WALWriter(log, metrics=False).close()
    monkeypatch.setattr(calls, "pwrite", no_room)
    with WALWriter(log) as writer:
        assert writer.put(b"key", b"value") == 1
        assert writer._handle.session.row is None


def test_threads_lose_no_count(log: Path) -> None:
    with WALWriter(log, name="it") as writer:

        def work() -> None:
            for number in range(200):
                writer.append_batch([WALEntry.put(b"k", b"v")] * (1 + number % 3))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        row, found = row_of(log, "it"), look(log)
        assert (row.batches, row.entries, row.bytes) == (800, found.writes_total, found.bytes_written)
        assert found.batch_entries.sum == found.writes_total


def test_rates_are_differences(log: Path) -> None:
    with WALWriter(log, name="it") as writer, WALMetrics.attach(log) as metrics:
        writer.put(b"key", b"value")
        before = metrics.snapshot()
        writer.append_batch([WALEntry.put(b"k", b"v")] * 5)
        writer.sync()
        with WALWriter(log, name="new") as other:
            other.put(b"key", b"value")
            since = metrics.snapshot().delta(before)
    assert (since.entries, since.batches, since.syncs, since.failures) == (6, 2, 1, 0)
    assert since.writer_entries == {0: 5, 1: 1}
    assert since.batch_entries.count == 2 and since.sync_duration.count == 1
    assert since.entries_per_s == pytest.approx(6 / since.seconds)
    assert before.delta(before).entries_per_s == 0.0


def test_a_long_name_and_error_are_cut(log: Path) -> None:
    with WALWriter(log, name="ä" * 100) as writer:
        row = writer._handle.session.row
        assert isinstance(row, SlotRow)
        row.failed("other", "ü" * 500)
        (found,) = look(log).writers
        assert found.name == "ä" * 32
        assert found.last_error == "ü" * 64


def test_who_counts_in_the_middle_of_counting_neither_waits_nor_loses(log: Path) -> None:
    """A signal handler whose append fails, and a finalizer's: on the same thread, in the middle of a count."""
    with WALWriter(log, name="it") as writer:
        row = writer._handle.session.row
        assert isinstance(row, SlotRow)

        def handler() -> None:
            row.add(slot_rows.SYNC_WAITS, 2)
            row.record(slot_rows.SYNC, 40)

        ran, handled = interrupted(handler, handler)
        assert handled > 50
        times = ran + handled
        found = look(log)
        assert row_of(log, "it").sync_waits == 2 * times
        assert found.sync_duration.count == times
        assert found.sync_duration.sum == pytest.approx(times * 40 * 256e-9)


def test_the_text_of_an_error_has_no_length_while_it_is_changed(log: Path) -> None:
    """Whoever looks meanwhile reads no text, and never the half of one."""
    with WALWriter(log) as writer:
        row = writer._handle.open().row
        assert row is not None
        stored: list[tuple[int, int]] = []

        class Told:
            def __setitem__(self, at: int, word: int) -> None:
                stored.append((at, word))

        row.failed("other", "an error that was there before")
        words, row.words = row.words, Told()
        row.add = lambda *_: None
        row.failed("other", "another")
        row.words = words
        del row.add
    lengths = [(number, word) for number, (at, word) in enumerate(stored) if at == slot_rows.ERROR_LENGTH]
    assert lengths == [(0, 0), (len(stored) - 1, len("another"))]


def test_the_text_of_an_error_that_is_told_in_the_middle_of_another_is_whole(log: Path) -> None:
    with WALWriter(log, name="it") as writer:
        row = writer._handle.session.row
        assert isinstance(row, SlotRow)
        ran, handled = interrupted(lambda: row.failed("other", "a" * 99), lambda: row.failed("full", "b" * 50))
        found = row_of(log, "it")
        assert found.failures_by_kind == (0, handled, 0, 0, ran)
        assert found.last_error in ("a" * 99, "b" * 50)


def test_threads_that_count_at_once_lose_nothing(log: Path) -> None:
    with WALWriter(log, name="it") as writer:
        row = writer._handle.session.row
        assert isinstance(row, SlotRow)

        def work() -> None:
            for _ in range(2000):
                row.add(slot_rows.SYNC_WAITS)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            run_threads(*[work] * 4)
        finally:
            sys.setswitchinterval(interval)
        assert row_of(log, "it").sync_waits == 8000
