"""`lock_timeout` bounds every call that waits for another process, and LogBusy says whether something was appended."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import Channel, Start, read_log, run_threads, until
from walpool import LogBusy, SyncMode, WALReader, WALWriter

SHORT = 0.05


@contextmanager
def held(log: Path, name: str) -> Iterator[None]:
    """As by a process that was stopped in the middle of it."""
    fd = os.open(log / name, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(fd)


CALLS: dict[str, tuple[str, Callable[[WALWriter], object]]] = {
    "put": ("append.lock", lambda writer: writer.put(b"not there", b"")),
    "batch": ("append.lock", lambda writer: writer.append_batch(entries())),
    "rotate": ("append.lock", lambda writer: writer.rotate()),
    "sync": ("sync.lock", lambda writer: writer.sync()),
    "checkpoint": ("maintenance.lock", lambda writer: writer.checkpoint(1)),
    "prune": ("maintenance.lock", lambda writer: writer.prune()),
    "checkpoint that syncs": ("sync.lock", lambda writer: writer.checkpoint(2)),
}


def entries() -> list[object]:
    from walpool import WALEntry

    return [WALEntry.put(b"not there", b"")]


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_another_process_holds_up_says_busy_and_works_when_it_goes_on(log: Path, name: str) -> None:
    lock, call = CALLS[name]
    with WALWriter(log, lock_timeout=SHORT) as writer:
        writer.put(b"first", b"")
        writer.sync()
        writer.put(b"second", b"")
        with held(log, lock), pytest.raises(LogBusy) as busy:
            call(writer)
        assert not busy.value.lsns, "nothing was appended: it can be tried again"
        assert [entry.key for entry in WALReader(log)] == [b"first", b"second"]
        call(writer)


def test_an_append_that_is_not_known_durable_says_which_lsns_are_in_the_log(log: Path) -> None:
    with WALWriter(log, SyncMode.FULL, lock_timeout=SHORT) as writer:
        writer.put(b"1", b"")
        with held(log, "sync.lock"):
            with pytest.raises(LogBusy, match="do not append") as busy:
                writer.put(b"2", b"")
            assert busy.value.lsns == range(2, 3)
            with pytest.raises(LogBusy) as busy, writer.batch() as batch:
                batch.put(b"3", b"")
                batch.put(b"4", b"")
            assert busy.value.lsns == range(3, 5)
        assert writer.sync() == 4
        assert writer.metrics.snapshot().failures_by_kind.busy == 2
    assert [entry.key for entry in read_log(log)] == [b"1", b"2", b"3", b"4"]


def test_a_close_that_cannot_keep_its_promise_says_busy_and_can_be_called_again(log: Path) -> None:
    writer = WALWriter(log, sync_interval_s=3600.0, lock_timeout=SHORT)
    writer.put(b"k", b"")
    with held(log, "sync.lock"), pytest.raises(LogBusy):
        writer.close()
    writer.put(b"k", b"")
    writer.close()
    assert len(read_log(log)) == 2


@pytest.mark.parametrize("lock", ["append.lock", "maintenance.lock"])
def test_an_opening_is_bounded(log: Path, lock: str) -> None:
    WALWriter(log).close()
    if lock == "maintenance.lock":
        (log / "control").unlink()  # so that it has to be rebuilt
    with held(log, lock), pytest.raises(LogBusy):
        WALWriter(log, lock_timeout=SHORT)
    WALWriter(log, lock_timeout=SHORT).close()


def stop_in_a_sync(channel: Channel, log: Path) -> None:
    from walpool.system.calls import calls

    real = calls.fdatasync

    def wait(fd: int) -> None:
        channel.send("syncing")
        channel.receive()
        real(fd)

    with WALWriter(log, SyncMode.FULL) as writer:
        calls.fdatasync = wait
        writer.put(b"stopped", b"")


def test_whoever_waits_for_a_stopped_sync_hears_who_is_at_it(child: Start, log: Path) -> None:
    with WALWriter(log, SyncMode.FULL, lock_timeout=SHORT) as writer:
        writer.put(b"k", b"")
        leader = child(stop_in_a_sync, log)
        assert leader.receive() == "syncing"
        leader.stop()
        with pytest.raises(LogBusy, match=f"process {leader.pid} .*is at it"):
            writer.put(b"k", b"")
        leader.go_on()
        leader.send("go on")
        leader.result()
        assert writer.sync() == 3


def test_a_background_sync_ends_with_its_writer(log: Path) -> None:
    """Though another process has the lock for ever: close() does not wait for it."""
    writer = WALWriter(log, size_limit=300)
    with held(log, "sync.lock"):
        for _ in range(5):
            writer.put(b"k", bytes(100))
        run_threads(writer.close)


def is_busy(call: Callable[[], object]) -> bool:
    try:
        call()
    except LogBusy:
        return True
    return False


@pytest.mark.slow
def test_appends_wait_when_syncs_do_not_keep_up_with_the_interval(log: Path) -> None:
    """What is appended and not durable is bounded: by twice the interval and a sync."""
    with WALWriter(log, sync_interval_s=0.01, lock_timeout=SHORT) as writer:
        writer.put(b"first", b"")
        writer.sync()

        def refused() -> bool:
            # Chores are done once in a thousand; from the first that waits on, each append waits.
            return is_busy(lambda: writer.put(b"k", b"")) or bool(warned)

        warned: list[str] = []
        with held(log, "sync.lock"), pytest.MonkeyPatch.context() as patch:
            patch.setattr("walpool.system.failures.logger.log", lambda *args: warned.append(str(args)))
            until(refused, "an append waits for the disk")
        assert any("not known to be on disk" in text for text in warned)
        until(lambda: not is_busy(writer.sync), "what was appended is on disk: then `close` waits for nobody")
