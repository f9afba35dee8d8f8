"""Clocks that a test steers: slow writers, a wall clock that is set back and forward, and one that stands still."""

from __future__ import annotations

import os
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.format.layout import examples
from tests.read.logs import segment_files
from tests.support import Channel, Start, reap, until
from walpool import Retention, UnsafeLog, WALReader, WALWriter
from walpool.format.header import WALHeader
from walpool.opening.opening import OpenLog
from walpool.shared.control import ROTATING
from walpool.shared.figures.histogram import SECONDS
from walpool.system.calls import calls
from walpool.system.locks import ProcessLock
from walpool.upkeep.retention import apply_retention
from walpool.write.appender import LOOK_NS
from walpool.write.coordinator import PREPARE_FROM_BYTES
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


def test_a_rotation_that_is_over_has_taken_its_flag_back(log: Path) -> None:
    """Else each append behind one would look for a rotation to finish."""
    with WALWriter(log) as writer:
        writer.put(b"key", b"")
        writer.rotate()
        assert writer._handle.open().log.control.halves[ROTATING] == 0


def test_the_next_segment_is_prepared_when_the_active_one_is_half_full(log: Path, clock: Clock) -> None:
    """Found at the next comparison of names: before that, and with less in it, nothing is."""
    with WALWriter(log, size_limit=PREPARE_FROM_BYTES) as writer:
        for value_bytes in (PREPARE_FROM_BYTES // 2 - 400, 400):
            assert not (log / "next.segment").exists()
            writer.put(b"key", bytes(value_bytes))
            clock.now_ns += LOOK_NS
            writer.put(b"key", b"")
            writer._handle.do_chores()
            thread = writer._handle.open().coordinator._thread
            if thread is not None:
                thread.join()
        clock.now_ns += LOOK_NS
        writer.put(b"key", b"")
        until((log / "next.segment").exists, "it is prepared")


# Whatever is done, and however the clocks are moved before it

WALL = {
    "stands still": 0, "goes on": 1, "is just not due": LOOK_NS - 1, "is due": LOOK_NS, "is set forward": HOUR_NS,
    "is set back a little": -1, "is set back": -HOUR_NS,
}  # fmt: skip
MONOTONIC_S = {"stands still": 0.0, "goes on": 1e-3, "leaps": 3600.0}  # it never goes back
OLD = Retention(checkpointed=False, max_age=1800)
OLD_NS = 1800 * 10**9


class Story:
    """A log, what was done with it by which clock, and what has to be so after each step."""

    def __init__(self, log: Path, patch: pytest.MonkeyPatch) -> None:
        self.log = log
        self.clock = Clock(patch)
        self.highest_ns = self.began_ns = self.clock.now_ns
        self.later_s = 0.0
        monotonic = calls.monotonic
        patch.setattr(calls, "monotonic", lambda: monotonic() + self.later_s)
        self.times: list[int] = []  # when each entry was appended
        self.made: dict[int, int] = {}  # by the first LSN of each segment there was: when
        self.first_lsn = 1
        self.looked_ns: int | None = None  # when the writer last compared names
        self.looks = 0
        check_names = OpenLog.check_names

        def look(opened: OpenLog, *args: Any) -> None:
            self.looked_ns = self.clock.now_ns
            self.looks += 1
            check_names(opened, *args)

        patch.setattr(OpenLog, "check_names", look)
        self.writer = WALWriter(log, size_limit=1 << 16)
        self.notice()

    def move(self, by_ns: int) -> None:
        self.clock.now_ns += by_ns
        self.highest_ns = max(self.highest_ns, self.clock.now_ns)

    def notice(self) -> None:
        """New segments were made now, by the wall clock, wherever it stands."""
        for file in segment_files(self.log):
            if int(file.stem) not in self.made:
                self.made[int(file.stem)] = self.clock.now_ns
                assert WALHeader.decode(file.read_bytes()[:64]).created_at == self.clock.now_ns

    def put(self) -> None:
        """Names are compared when that is due, and else not."""
        looks, looked_ns = self.looks, self.looked_ns
        due = looked_ns is None or not looked_ns <= self.clock.now_ns < looked_ns + LOOK_NS
        assert self.writer.put(b"key", b"") == len(self.times) + 1
        self.times.append(max(self.clock.now_ns, *self.times[-1:], 0))
        assert self.looks == looks + due

    def rotate(self) -> None:
        self.writer.rotate()

    def sync(self) -> None:
        assert self.writer.sync() == len(self.times)

    def recover(self) -> None:
        self.writer.close()
        (self.log / "control").unlink()
        self.looked_ns = None
        self.writer = WALWriter(self.log, size_limit=1 << 16)
        assert self.writer.recovery_report is not None

    def prune(self) -> None:
        """Nothing goes that was sealed later than that by every clock there was: a clock has to have said so since the
        log was made, and a later segment has to be that old. A clock by which the log is yet to be made says that the
        one of then was wrong.
        """
        there = [int(file.stem) for file in segment_files(self.log)]
        handle = self.writer._handle
        options = replace(handle.options, retention=OLD)
        report = handle.call(lambda session: apply_retention(session.log, options))
        assert list(report.removed) == there[: len(report.removed)]
        for first in report.removed:
            assert self.highest_ns > self.began_ns + OLD_NS or self.clock.now_ns < self.began_ns
            assert any(at > first and made < self.clock.now_ns - OLD_NS for at, made in self.made.items())
        self.first_lsn = report.first_lsn

    def end(self) -> None:
        """Nothing is lost, and no entry is older than the one before; by a right clock everything grows old."""
        with WALReader(self.log) as reader:
            found = [(batch.first_lsn, batch.appended_at) for batch in reader.batches()]
        assert found == [*enumerate(self.times, 1)][self.first_lsn - 1 :]
        self.move(max(self.made.values()) + HOUR_NS - self.clock.now_ns)
        self.put()
        self.rotate()
        self.notice()
        self.move(HOUR_NS)
        self.prune()
        assert self.first_lsn == len(self.times) + 1


STEPS = {each.__name__: each for each in (Story.put, Story.rotate, Story.sync, Story.recover, Story.prune)}


@examples(100)
@example(
    steps=[("is set back", "goes on", "put"), ("goes on", "goes on", "rotate"), ("is set forward", "goes on", "prune")]
)
@example(
    steps=[
        ("is set back a little", "goes on", "put"),
        ("is set back", "goes on", "rotate"),
        ("is set forward", "goes on", "prune"),
    ]
)
@example(steps=[("goes on", "goes on", "put"), ("is set back", "goes on", "put")])
@example(steps=[("goes on", "goes on", "put"), ("goes on", "goes on", "rotate"), ("goes on", "goes on", "put")])
@example(steps=[("goes on", "goes on", "put"), ("goes on", "goes on", "rotate"), ("stands still", "goes on", "put")])
@given(steps=st.lists(
    st.tuples(st.sampled_from([*WALL]), st.sampled_from([*MONOTONIC_S]), st.sampled_from([*STEPS])), max_size=12
))  # fmt: skip
def test_whatever_is_done_and_however_the_clocks_move_times_never_go_back_and_nothing_is_lost(
    steps: list[tuple[str, str, str]],
) -> None:
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    with tempfile.TemporaryDirectory(prefix="walpool-", dir=place) as folder, pytest.MonkeyPatch.context() as patch:
        story = Story(Path(folder) / "log", patch)
        try:
            for wall, monotonic, step in steps:
                story.move(WALL[wall])
                story.later_s += MONOTONIC_S[monotonic]
                STEPS[step](story)
                story.notice()
            story.end()
        finally:
            story.writer.close()


@pytest.mark.parametrize(("hours", "later_s", "durable"), [(1, 0, 0), (-1, 0, 0), (0, 2000, 0), (0, 2001, 1)])
def test_an_interval_goes_by_the_clock_that_nobody_sets(
    log: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, hours: int, later_s: int, durable: int
) -> None:
    """After twice the interval the next append that has a look waits for the disk itself."""
    now_s = [0.0]
    with WALWriter(log, sync_interval_s=1000) as writer:
        committer = writer._handle.open().committer
        monkeypatch.setattr(calls, "monotonic", lambda: now_s[0])
        writer.put(b"promised", b"")
        clock.now_ns += hours * HOUR_NS
        now_s[0] += later_s
        committer.sync_within(1000, lambda: None)
        monkeypatch.undo()
        assert writer.metrics.snapshot().durable_lsn == durable


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
