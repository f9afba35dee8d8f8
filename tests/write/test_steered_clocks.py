"""Clocks that a test steers: slow writers, a wall clock that is set back and forward, and one that stands still."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.read.logs import segment_files
from tests.support import Channel, Start, reap
from walpool import UnsafeLog, WALReader, WALWriter
from walpool.format.header import WALHeader
from walpool.shared.control import ROTATING
from walpool.shared.figures.histogram import SECONDS
from walpool.system.calls import calls
from walpool.system.locks import ProcessLock
from walpool.write.appender import LOOK_NS
from walpool.write.waits import LOCK_NS, Waits

HOUR_NS = 3600 * 10**9


class Clock:
    """The wall clock of all that is opened from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 10**18
        monkeypatch.setattr(calls, "time_ns", lambda: self.now_ns)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def lose_its_segment(writer: WALWriter, log: Path) -> None:
    writer.put(b"key", b"")
    (file,) = segment_files(log)
    file.unlink()


@pytest.mark.parametrize("moved_ns", [LOOK_NS, HOUR_NS, -1, -HOUR_NS])
def test_a_slow_writer_notices_at_its_next_append_what_happened_to_its_files(
    log: Path, clock: Clock, moved_ns: int
) -> None:
    """Far fewer appends than names are compared after; also with a clock that was set back meanwhile."""
    with WALWriter(log) as writer:
        lose_its_segment(writer, log)
        clock.now_ns += moved_ns
        with pytest.raises(UnsafeLog):
            writer.put(b"key", b"")


def test_between_two_looks_no_append_pays_for_one(log: Path, clock: Clock) -> None:
    with WALWriter(log) as writer:
        lose_its_segment(writer, log)
        clock.now_ns += LOOK_NS - 1
        assert writer.put(b"key", b"") == 2


def test_a_segment_is_made_when_it_is_made_however_long_nothing_was_appended(log: Path, clock: Clock) -> None:
    """By the wall clock: retention goes by it."""
    with WALWriter(log) as writer:
        writer.put(b"key", b"")
        clock.now_ns += HOUR_NS
        writer.rotate()
    header = WALHeader.decode(segment_files(log)[-1].read_bytes()[:64])
    assert header.created_at == clock.now_ns


def test_a_clock_set_back_before_a_recovery_takes_no_append_back(log: Path, clock: Clock) -> None:
    """The last frames stand before an empty segment, and the control block, which knows the time, is gone."""
    with WALWriter(log) as writer:
        writer.put(b"old", b"")
        writer.rotate()
        clock.now_ns += HOUR_NS
        writer.put(b"last", b"")
        writer.rotate()
    (log / "control").unlink()
    clock.now_ns -= 2 * HOUR_NS
    with WALWriter(log) as writer:
        assert writer.put(b"next", b"") == 3
    with WALReader(log) as reader:
        times = [batch.appended_at for batch in reader.batches()]
    assert times == [10**18, 10**18 + HOUR_NS, 10**18 + HOUR_NS]


def test_a_rotation_killed_after_its_publication_is_not_made_again(log: Path) -> None:
    """Then the flag is left, and the name that a rotation would make is the active segment's own."""
    with WALWriter(log) as writer:
        writer.put(b"key", b"")
        writer.rotate()
        segment = segment_files(log)[-1]
        made = segment.stat().st_ino, segment.read_bytes()[:64]
        writer._handle.open().log.control.halves[ROTATING] = 1
        assert writer.put(b"key", b"") == 2
    assert [int(file.stem) for file in segment_files(log)] == [1, 2]
    assert (segment.stat().st_ino, segment.read_bytes()[:64]) == made


# Waits


class Contended(ProcessLock):
    """A lock that takes a while."""

    def __init__(self) -> None:
        self.fd = 0

    def take(self, fd: int, operation: int) -> None:
        pass


def test_every_wait_is_counted_though_one_in_eight_is_timed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that was taken is waited for at once in the next 64 appends, too: all of these waits are counted."""
    with WALWriter(log) as writer:
        row = writer._handle.open().row
        assert row is not None
        looks = iter(range(0, 10**9, 2 * LOCK_NS))
        monkeypatch.setattr(calls, "monotonic_ns", lambda: next(looks))
        waits = Waits(Contended(), row)
        waits.begin()
        taken = 0
        while waits.contended:
            waits.take()
            taken += 1
        waits.count()
        found = writer.metrics.snapshot().lock_wait
        assert found.count - found.counts[0] == taken == 65
        assert found.sum == pytest.approx(taken * 2 * LOCK_NS * 1e-9, abs=taken * SECONDS)


# A fork


def fork_while_another_thread_opens(channel: Channel, log: Path) -> None:
    writer = WALWriter(log)
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with writer._handle._opening:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(writer.put(b"child", b""))
        finally:
            os._exit(100)
    leave.set()
    thread.join()
    assert reap(pid) == 1
    writer.close()


def test_a_child_forked_while_another_thread_opens_the_log_opens_it_itself(child: Start, memory: Path) -> None:
    child(fork_while_another_thread_opens, memory / "log").result()
