"""The three sync modes: what has happened when an append returns, and what `sync` and `close` add."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import DEADLINE_S, Channel, Start, keys, reap, run_threads, until
from walpool import LogFull, SyncFailed, SyncMode, WALEntry, WALMetrics, WALReader, WALWriter
from walpool.shared.poison import poison
from walpool.system.calls import calls
from walpool.write import committer
from walpool.write.committer import Committer
from walpool.write.coordinator import Coordinator

FOR_EVER = 3600.0  # seconds that buffered entries linger, where nothing but the test is to append them


def durable_lsn(log: Path) -> int:
    with WALMetrics.attach(log) as metrics:
        return metrics.snapshot().durable_lsn


class Recorder:
    """The calls that move bytes to the disk, in order, by what they did and to which file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str]] = []
        self._on_sync: Callable[[], None] = lambda: None
        for name in ("pwrite", "fdatasync", "fsync"):
            monkeypatch.setattr(calls, name, self._recording(name, getattr(calls, name)))

    def _recording(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def record(fd: int, *args: object) -> object:
            self.seen.append((name, os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
            return call(fd, *args)

        return record


FIRST = f"{1:020d}.wal"


@pytest.mark.usefixtures("linux")
def test_a_full_append_has_synced_its_bytes_and_the_name_of_its_segment(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls_seen = Recorder(monkeypatch)
    with WALWriter(log, SyncMode.FULL) as writer:
        calls_seen.seen.clear()
        writer.put(b"k", b"v")
        written = calls_seen.seen.index(("pwrite", FIRST))
        assert ("fdatasync", FIRST) in calls_seen.seen[written:]
        writer.rotate()
        calls_seen.seen.clear()
        writer.put(b"k", b"v")
        second = f"{2:020d}.wal"
        written = calls_seen.seen.index(("pwrite", second))
        assert ("fdatasync", second) in calls_seen.seen[written:]
        assert ("fsync", "events.wal") in calls_seen.seen, "the name of a new segment has to be on disk, too"


@pytest.mark.usefixtures("linux")
def test_a_normal_append_does_not_wait_for_the_disk(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls_seen = Recorder(monkeypatch)
    with WALWriter(log) as writer:
        calls_seen.seen.clear()
        for _ in range(10):
            writer.put(b"k", b"v")
        assert calls_seen.seen == [("pwrite", FIRST)] * 10


@pytest.mark.parametrize("append", ["put", "delete", "append", "append_batch", "batch"])
def test_a_full_append_is_durable_when_it_returns(log: Path, append: str) -> None:
    with WALWriter(log, SyncMode.FULL) as writer:
        for count in range(1, 4):
            if append == "put":
                assert writer.put(b"k", b"v") == count
            elif append == "delete":
                assert writer.delete(b"k") == count
            elif append == "append":
                assert writer.append(WALEntry.put(b"k", b"v")) == count
            elif append == "append_batch":
                assert writer.append_batch([WALEntry.put(b"k", b"v")]) == range(count, count + 1)
            else:
                with writer.batch() as batch:
                    batch.put(b"k", b"v")
                assert batch.lsns == range(count, count + 1)
            assert durable_lsn(log) == count


def test_a_normal_append_is_durable_after_sync(log: Path) -> None:
    with WALWriter(log) as writer:
        for n in range(1, 10):
            assert writer.put(b"k", b"v") == n
        assert durable_lsn(log) == 0
        assert writer.sync() == 9
        assert durable_lsn(log) == 9
        assert writer.sync() == 9


def test_who_finds_at_the_last_moment_that_it_is_durable_is_not_too_late(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer's sync ends between the look at the clock and the lock."""
    with WALWriter(log, lock_timeout=0.0) as writer, WALWriter(log) as other:
        writer.put(b"k", b"v")
        lock = writer._handle.open().log.sync_lock
        try_run = lock.try_run

        def at_last(body: Callable[[], Any]) -> Any:
            assert other.sync() == 1
            return try_run(body)

        monkeypatch.setattr(lock, "try_run", at_last)
        assert writer.sync() == 1


def test_a_bug_in_a_sync_is_not_taken_for_a_fork(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is forked in the middle of one finds its words released: ValueError, too."""
    with WALWriter(log, SyncMode.FULL) as writer:

        def wrong(committer: Committer, lsn: int) -> int:
            monkeypatch.undo()
            raise ValueError("ours")

        monkeypatch.setattr(Committer, "settle", wrong)
        with pytest.raises(ValueError, match="ours"):
            writer.put(b"k", b"v")


def test_a_sync_that_cannot_be_tried_says_why_and_can_be_tried_again(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with WALWriter(log) as writer:
        writer.put(b"k", b"v")

        def none_left(*args: object, **kwargs: object) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patch, pytest.raises(SyncFailed, match="tries again") as failed:
            patch.setattr(calls, "open", none_left)
            writer.sync()
        assert failed.value.errno == errno.EMFILE
        assert writer.sync() == 1


def test_sync_makes_durable_what_lies_in_several_segments(log: Path) -> None:
    with WALWriter(log, size_limit=200) as writer:
        for _ in range(20):
            writer.put(b"k", b"v" * 50)
        assert writer.sync() == 20
        assert writer.metrics.snapshot().segments == 20


@pytest.mark.usefixtures("linux")
def test_a_sync_of_several_segments_syncs_each_of_them_once(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Coordinator, "wake", lambda self: None)
    calls_seen = Recorder(monkeypatch)
    with WALWriter(log) as writer:
        for _ in range(3):
            writer.put(b"k", b"v")
            writer.rotate()
        writer.put(b"k", b"v")
        calls_seen.seen.clear()
        assert writer.sync() == 4
        segments = [("fdatasync", f"{lsn:020d}.wal") for lsn in range(1, 5)]
        assert calls_seen.seen == [*segments, ("fsync", "events.wal")]


def test_one_writers_sync_covers_what_others_appended_before(log: Path) -> None:
    with WALWriter(log) as one, WALWriter(log) as other:
        one.put(b"a", b"")
        other.put(b"b", b"")
        one.put(b"c", b"")
        assert one.sync() == 3


def test_sync_of_a_log_in_which_this_writer_wrote_nothing_gives_what_is_durable(log: Path) -> None:
    with WALWriter(log) as writer:
        assert writer.sync() == 0
        writer.put(b"k", b"v")
        writer.sync()
    with WALWriter(log) as writer:
        assert writer.sync() == 1


def test_durable_only_readers_see_nothing_before_it_is_on_disk(log: Path) -> None:
    with WALWriter(log) as writer:
        writer.put(b"k", b"v")
        with WALReader(log) as reader:
            assert list(reader.follow(timeout=0, durable_only=True)) == []
            writer.sync()
            assert [bytes(entry.key) for entry in reader.follow(timeout=0, durable_only=True)] == [b"k"]


@pytest.mark.usefixtures("linux")
def test_one_sync_makes_the_batches_of_all_who_wait_durable(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release = threading.Event(), threading.Event()
    fdatasync = calls.fdatasync

    def first_waits(fd: int) -> None:
        if not entered.is_set():
            entered.set()
            assert release.wait(60)
        fdatasync(fd)

    with WALWriter(log, SyncMode.FULL) as writer:
        before = writer.metrics.snapshot().sync_total
        monkeypatch.setattr(calls, "fdatasync", first_waits)
        leader = threading.Thread(target=writer.put, args=(b"leader", b""), daemon=True)
        leader.start()
        assert entered.wait(60)
        others = [threading.Thread(target=writer.put, args=(b"other", b""), daemon=True) for _ in range(5)]
        for other in others:
            other.start()
        until(lambda: writer.metrics.snapshot().next_lsn == 7, "all are published")
        assert durable_lsn(log) == 0, "the leader's sync is still under way"
        release.set()
        for thread in (leader, *others):
            thread.join(60)
            assert not thread.is_alive()
        assert durable_lsn(log) == 6
        assert writer.metrics.snapshot().sync_total - before == 2, "the leader's, and one for the five others"


@pytest.mark.parametrize("lock_timeout", [0, 1e-4, None])
def test_a_leader_that_was_killed_keeps_no_impatient_writer_from_leading(
    log: Path, monkeypatch: pytest.MonkeyPatch, lock_timeout: float | None
) -> None:
    """The block still names it, and there is no time for all the looks after which one tries to lead anyway. Without a
    timeout whoever has slept for as long as can be, and was not woken, is impatient.
    """
    if lock_timeout is None:
        monkeypatch.setattr(committer, "TRY_ANYWAY", 1 << 62)
    pid = os.fork()
    if pid == 0:
        with WALWriter(log) as writer:
            writer.put(b"key", b"value")
            calls.fdatasync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
            writer.sync()
        os._exit(0)
    assert reap(pid) == -signal.SIGKILL
    with WALWriter(log, SyncMode.FULL, lock_timeout=lock_timeout) as writer:
        assert writer.put(b"key", b"value") == 2
        assert writer.sync() == 2


def test_a_normal_append_goes_on_while_another_writers_sync_is_under_way(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release = threading.Event(), threading.Event()
    fdatasync = calls.fdatasync

    def waits(fd: int) -> None:
        entered.set()
        assert release.wait(60)
        fdatasync(fd)

    with WALWriter(log) as writer, WALWriter(log) as other:
        writer.put(b"a", b"")
        monkeypatch.setattr(calls, "fdatasync", waits)
        thread = threading.Thread(target=writer.sync, daemon=True)
        thread.start()
        assert entered.wait(60)
        assert other.put(b"b", b"") == 2
        other.rotate()
        assert other.put(b"c", b"") == 3
        release.set()
        thread.join(60)
        assert not thread.is_alive()


def test_none_does_not_know_the_lsn_and_keeps_the_entry_until_sync(log: Path) -> None:
    with WALWriter(log, SyncMode.NONE, linger_s=FOR_EVER) as writer:
        assert writer.put(b"a", b"1") == 0
        assert writer.delete(b"b") == 0
        assert writer.append(WALEntry.put(b"c", b"3")) == 0
        assert keys(log) == []
        assert writer.sync() == 3
        assert keys(log) == [b"a", b"b", b"c"]
        writer.put(b"d", b"4")
    assert keys(log) == [b"a", b"b", b"c", b"d"]


def test_none_appends_what_it_buffered_as_one_batch_in_order(log: Path) -> None:
    with WALWriter(log, SyncMode.NONE, linger_s=FOR_EVER) as writer:
        for n in range(100):
            writer.put(b"%d" % n, b"v")
    with WALReader(log) as reader:
        (batch,) = reader.batches()
    assert [bytes(entry.key) for entry in batch.entries] == [b"%d" % n for n in range(100)]


def test_none_appends_when_the_buffer_is_full(log: Path) -> None:
    with WALWriter(log, SyncMode.NONE, buffer_bytes=10 * 20, linger_s=FOR_EVER) as writer:
        for n in range(25):
            writer.put(b"%03d" % n, b"v")  # 20 bytes each
        assert len(keys(log)) == 20
        with WALReader(log) as reader:
            assert [batch.count for batch in reader.batches()] == [10, 10]
    assert keys(log) == [b"%03d" % n for n in range(25)]


def test_none_takes_an_entry_that_is_larger_than_the_buffer(log: Path) -> None:
    with WALWriter(log, SyncMode.NONE, buffer_bytes=100, linger_s=FOR_EVER) as writer:
        writer.put(b"small", b"")
        writer.put(b"large", bytes(10_000))
        writer.put(b"small", b"")
    assert keys(log) == [b"small", b"large", b"small"]


def test_a_batch_in_none_comes_after_what_was_buffered_before_it(log: Path) -> None:
    with WALWriter(log, SyncMode.NONE, linger_s=FOR_EVER) as writer:
        writer.put(b"a", b"")
        assert writer.append_batch([WALEntry.put(b"b", b""), WALEntry.put(b"c", b"")]) == range(2, 4)
        writer.put(b"d", b"")
        with writer.batch() as batch:
            batch.put(b"e", b"")
        assert batch.lsns == range(5, 6)
        writer.put(b"f", b"")
        writer.rotate()
        writer.put(b"g", b"")
    assert keys(log) == [b"a", b"b", b"c", b"d", b"e", b"f", b"g"]


def test_buffered_entries_are_appended_when_they_have_lingered(log: Path) -> None:
    with WALWriter(log, SyncMode.NONE, linger_s=0.01) as writer:
        for round_ in range(3):
            writer.put(b"%d" % round_, b"v")
            with WALReader(log, start=round_ + 1) as reader:
                assert next(reader.follow(timeout=DEADLINE_S)).key == b"%d" % round_


def test_what_could_not_be_appended_lingers_on_until_it_can(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = threading.Event()
    full = True
    pwrite = calls.pwrite

    def refuse_when_full(fd: int, data: bytes, offset: int) -> int:
        if full:
            refused.set()
            raise OSError(errno.ENOSPC, "full")
        return pwrite(fd, data, offset)

    with WALWriter(log, SyncMode.NONE, linger_s=0.01) as first:
        first.put(b"a", b"")
        first.sync()
        monkeypatch.setattr(calls, "pwrite", refuse_when_full)
        with WALWriter(log, SyncMode.NONE, linger_s=0.01) as writer:
            writer.put(b"b", b"")
            assert refused.wait(60)
            full = False
            with WALReader(log, start=2) as reader:
                assert next(reader.follow(timeout=DEADLINE_S)).key == b"b"


def test_a_close_that_cannot_append_the_buffer_says_so_and_can_be_repeated(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = False
    pwrite = calls.pwrite

    def refuse_when_full(fd: int, data: bytes, offset: int) -> int:
        if full:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(calls, "pwrite", refuse_when_full)
    writer = WALWriter(log, SyncMode.NONE, linger_s=FOR_EVER)
    writer.put(b"a", b"")
    full = True
    for _ in range(2):
        with pytest.raises(LogFull):
            writer.close()
    full = False
    writer.put(b"b", b"")
    writer.close()
    assert keys(log) == [b"a", b"b"]


def test_with_a_sync_interval_what_is_appended_becomes_durable_without_a_call(log: Path) -> None:
    with WALWriter(log, sync_interval_s=0.01) as writer:
        for lsn in range(1, 4):
            writer.put(b"k", b"v")
            until(lambda lsn=lsn: durable_lsn(log) == lsn, f"LSN {lsn} is durable")


def test_what_is_appended_while_the_interval_syncs_becomes_durable_without_another_append(log: Path) -> None:
    with WALWriter(log, sync_interval_s=0.01) as writer:
        committer = writer._handle.open().committer
        really = committer.settle

        def settle(lsn: int, *, background: bool = False) -> int:
            committer.settle = really  # type: ignore[method-assign]
            durable_lsn = really(lsn, background=background)
            writer.put(b"meanwhile", b"")
            return durable_lsn

        committer.settle = settle  # type: ignore[method-assign]
        writer.put(b"key", b"")
        until(lambda: writer.metrics.snapshot().durable_lsn == 2, "it is durable")


def test_with_a_sync_interval_all_is_durable_when_the_writer_is_closed(log: Path) -> None:
    with WALWriter(log, sync_interval_s=FOR_EVER) as writer:
        writer.put(b"k", b"v")
        writer.put(b"k", b"v")
        assert durable_lsn(log) == 0
    assert durable_lsn(log) == 2


def test_threads_share_a_none_writer(log: Path) -> None:
    with WALWriter(log, SyncMode.NONE, 4096, buffer_bytes=300, linger_s=FOR_EVER) as writer:
        run_threads(
            *[
                lambda thread=thread: [writer.put(b"%d/%d" % (thread, n), b"") for n in range(500)]
                for thread in range(4)
            ]
        )
    found = keys(log)
    for thread in range(4):
        mine = [key for key in found if key.startswith(b"%d/" % thread)]
        assert mine == [b"%d/%d" % (thread, n) for n in range(500)]
    assert len(found) == 2000


def test_close_makes_the_log_complete_but_only_full_and_sync_make_it_durable(log: Path) -> None:
    with WALWriter(log, SyncMode.NONE, linger_s=FOR_EVER) as writer:
        writer.put(b"k", b"v")
    assert keys(log) == [b"k"]
    assert durable_lsn(log) == 0


def leave_a_writer_open(channel: Channel, log: Path, mode: SyncMode) -> None:
    writer = WALWriter(log, mode, linger_s=FOR_EVER)
    for n in range(10):
        writer.put(b"%d" % n, b"v")
    globals()["kept"] = writer  # until the interpreter ends


@pytest.mark.slow
@pytest.mark.parametrize("mode", [SyncMode.NONE, SyncMode.NORMAL])
@pytest.mark.parametrize("method", ["subprocess", "spawn", "forkserver"])
def test_a_process_that_ends_in_order_appends_what_it_buffered(
    child: Start, log: Path, mode: SyncMode, method: str
) -> None:
    child(leave_a_writer_open, log, mode, method=method).result()
    assert keys(log) == [b"%d" % n for n in range(10)]


def fork_with_a_full_buffer(channel: Channel, log: Path) -> None:
    writer = WALWriter(log, SyncMode.NONE, linger_s=FOR_EVER)
    writer.put(b"parent", b"")
    pid = os.fork()
    if pid == 0:
        try:
            writer.put(b"child", b"")
            writer.close()
        finally:
            os._exit(0)
    assert reap(pid) == 0
    assert keys(log) == [b"child"], "the child appends its own entries, and not its parent's"
    writer.put(b"parent again", b"")
    writer.close()


def test_what_a_parent_buffered_is_appended_once_and_by_the_parent(child: Start, log: Path) -> None:
    child(fork_with_a_full_buffer, log).result()
    assert keys(log) == [b"child", b"parent", b"parent again"]


def test_a_killed_process_loses_what_it_buffered_and_nothing_else(child: Start, log: Path) -> None:
    killed = child(buffer_and_wait, log)
    killed.receive()
    killed.kill()
    assert killed.died() < 0
    assert keys(log) == [b"synced"]


def buffer_and_wait(channel: Channel, log: Path) -> None:
    writer = WALWriter(log, SyncMode.NONE, linger_s=FOR_EVER)
    writer.put(b"synced", b"")
    writer.sync()
    writer.put(b"buffered", b"")
    channel.send("ready")
    channel.receive()


def test_what_could_not_be_appended_stays_in_the_buffer(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = False
    pwrite = calls.pwrite

    def refuse_when_full(fd: int, data: bytes, offset: int) -> int:
        if full:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(calls, "pwrite", refuse_when_full)
    with WALWriter(log, SyncMode.NONE, buffer_bytes=60, linger_s=FOR_EVER) as writer:
        writer.put(b"a", b"")
        full = True
        with pytest.raises(OSError):
            writer.sync()
        writer.put(b"b", b"")
        writer.put(b"c", b"")
        with pytest.raises(OSError):
            writer.put(b"refused", b"")
        full = False
    assert keys(log) == [b"a", b"b", b"c"]


def test_a_failed_sync_is_final_for_every_writer_until_the_log_is_opened_again(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fdatasync = calls.fdatasync

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    with WALWriter(log) as writer, WALWriter(log, SyncMode.FULL) as other:
        writer.put(b"a", b"")
        writer.sync()
        writer.put(b"b", b"")
        monkeypatch.setattr(calls, "fdatasync", fail)
        with pytest.raises(SyncFailed):
            writer.sync()
        monkeypatch.setattr(calls, "fdatasync", fdatasync)
        for refused in (writer, other):
            with pytest.raises(SyncFailed):
                refused.put(b"c", b"")
            with pytest.raises(SyncFailed):
                refused.rotate()
        with pytest.raises(SyncFailed):
            writer.sync()
        assert durable_lsn(log) == 1
    with WALWriter(log) as writer:
        assert writer.recovery_report is not None
        assert writer.put(b"c", b"") == 3
        assert writer.sync() == 3
    assert keys(log) == [b"a", b"b", b"c"]


def test_who_comes_to_lead_just_behind_a_failed_sync_tries_none(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """He looked whether the log is poisoned before he had the lock: his sync may succeed, and the disk have nothing."""
    calls_seen = Recorder(monkeypatch)
    with WALWriter(log) as writer:
        writer.put(b"key", b"value")
        session = writer._handle.open()
        lock = session.committer._lock
        try_run = lock.try_run

        def too_late(body: Callable[[], bool]) -> bool | None:
            poison(session.log.directory, session.log.control, errno.EIO)
            return try_run(body)

        monkeypatch.setattr(lock, "try_run", too_late)
        calls_seen.seen.clear()
        with pytest.raises(SyncFailed):
            writer.sync()
        assert durable_lsn(log) == 0
        assert not [name for call, name in calls_seen.seen if name.endswith(".wal") and call == "fdatasync"]


def test_a_full_append_whose_sync_fails_says_so(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, "broken")

    with WALWriter(log, SyncMode.FULL) as writer:
        monkeypatch.setattr(calls, "fdatasync", fail)
        with pytest.raises(SyncFailed) as failed:
            writer.put(b"k", b"v")
        assert isinstance(failed.value, OSError)
