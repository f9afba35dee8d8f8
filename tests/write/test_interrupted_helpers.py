"""What an interrupt does to the threads that a writer starts: nothing that the next call does not mend."""

import fcntl
import itertools
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.crash.test_interrupts import Alarm
from tests.support import Channel, Start, until
from walpool import LogBusy, Retention, SyncMode, WALEntry, WALReader, WALWriter
from walpool.system import threads


class Interrupt(BaseException):
    """Like KeyboardInterrupt, no `except Exception` stops it."""


def interrupt_start(monkeypatch: pytest.MonkeyPatch, name: str, *, after: bool) -> None:
    """Make the next start of a thread of that name raise, before or after it does its work."""
    real = threading.Thread.start
    begun: list[None] = []

    def start(thread: threading.Thread) -> None:
        if thread.name != name or begun:
            real(thread)
            return
        begun.append(None)
        if after:
            real(thread)
        raise Interrupt

    monkeypatch.setattr(threading.Thread, "start", start)


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_does_not_end_the_promise_of_the_sync_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    with WALWriter(tmp_path / "log", sync_interval_s=0.01) as writer:
        interrupt_start(monkeypatch, "walpool-interval", after=after)
        with pytest.raises(Interrupt):
            writer.put(b"in doubt", b"")
        last = writer.put(b"key", b"value")
        with WALReader(tmp_path / "log") as reader:
            durable = (entry.lsn for entry in reader.follow(timeout=5, durable_only=True))
            assert last in durable


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_neither_buffers_its_entry_nor_leaves_others_without_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    # It lingers long enough for a busy machine: where the thread appends before the interrupt arrives, both are true.
    with WALWriter(tmp_path / "log", SyncMode.NONE, linger_s=0.5) as writer:
        interrupt_start(monkeypatch, "walpool-linger", after=after)
        with pytest.raises(Interrupt):
            writer.put(b"raised", b"")
        writer.put(b"key", b"value")
        with WALReader(tmp_path / "log") as reader:
            assert next(reader.follow(timeout=5)).key == b"key"
    assert [entry.key for entry in WALReader(tmp_path / "log")] == [b"key"]


@pytest.mark.parametrize("after", [False, True])
def test_no_coordinator_outlives_its_writer_though_its_start_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    with WALWriter(tmp_path / "log", size_limit=400) as writer:
        real = threading.Thread.start
        begun: list[threading.Thread] = []

        def start(thread: threading.Thread) -> None:
            if thread.name == "walpool-coordinator" and not begun:
                begun.append(thread)
                if after:
                    real(thread)
                raise Interrupt
            real(thread)

        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(Interrupt):
            for _ in range(10):
                writer.put(b"key", bytes(100))
        lsn = writer.put(b"key", bytes(200))
    assert begun
    assert isinstance(lsn, int)
    assert [thread for thread in threading.enumerate() if thread.name == "walpool-coordinator"] == []


def test_an_interrupt_behind_the_publication_reaches_the_caller_and_the_entry_is_there(tmp_path: Path) -> None:
    with WALWriter(tmp_path / "log") as writer:
        appender = writer._handle.open().appender
        real = appender._unlock

        def unlock(fd: int, operation: int) -> None:
            appender._unlock = real
            real(fd, operation)
            raise Interrupt

        appender._unlock = unlock
        with pytest.raises(Interrupt):
            writer.put(b"in doubt", b"")
        assert writer.put(b"key", b"value") == 2
    assert [entry.key for entry in WALReader(tmp_path / "log")] == [b"in doubt", b"key"]


def test_a_coordinator_that_was_never_asked_for_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt comes before the system is asked for the thread: the next append starts another."""

    def start(helpers: threads.Helpers, thread: threading.Thread) -> None:
        monkeypatch.undo()
        raise Interrupt

    with WALWriter(tmp_path / "log", size_limit=1 << 20) as writer:
        writer.put(b"key", b"value")
        monkeypatch.setattr(threads.Helpers, "start", start)
        with pytest.raises(Interrupt):
            writer.rotate()
        writer.put(b"key", b"value")
        until((tmp_path / "log" / "next.segment").exists, "the next segment is prepared")


@pytest.mark.parametrize(
    "options", [{"sync_mode": SyncMode.NONE}, {"sync_interval_s": 60.0}, {"size_limit": 400}], ids=str
)
def test_an_interrupt_while_a_helper_is_started_reaches_the_caller_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """It comes in the one wait that there is in the caller's thread."""

    class Told:
        def __init__(self) -> None:
            self.acquired = 0

        def acquire(self, timeout: float = -1) -> None:
            self.acquired += 1
            if self.acquired == 2:
                raise Interrupt

        def release(self) -> None:
            pass

    def start(thread: threading.Thread, *notes: threads.Note) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading, "Lock", Told)
            real(thread, *notes)

    real = threads.start
    with WALWriter(tmp_path / "log", **options) as writer:
        with monkeypatch.context() as patch, pytest.raises(Interrupt):
            patch.setattr(threads, "start", start)
            for _ in range(10):
                writer.put(b"key", bytes(100))
        assert writer.sync() == writer.metrics.snapshot().next_lsn - 1


def test_no_interrupt_of_a_start_keeps_other_threads_from_beginning(child: Start, seed: int) -> None:
    child(start_helpers_under_interrupts, seed).result()


def start_helpers_under_interrupts(channel: Channel, seed: int) -> None:
    alarm = Alarm(seed, 150e-6)
    helpers = threads.Helpers()
    while alarm.delivered < 400:
        alarm.run(lambda: helpers.start(helpers.thread(lambda: None, "helper")))
    helpers.join()
    other = threading.Thread(target=lambda: None, daemon=True)
    other.start()
    other.join(10)
    assert not other.is_alive()


class Raising(type(threading.RLock())):  # type: ignore[misc]
    """Its `with` is interrupted once it has the lock: Python 3.14 looks for signals there, and does not unlock it."""

    left = 0  # `with`s of the main thread until then

    def __enter__(self) -> bool:
        super().__enter__()
        if threading.current_thread() is threading.main_thread():
            Raising.left -= 1
            if Raising.left == 0:
                raise Interrupt
        return True


def use_all_of_it(log: Path, mode: SyncMode) -> None:
    with WALWriter(log, mode, size_limit=400, retention=Retention()) as writer:
        for _ in range(4):
            writer.put(b"key", bytes(100))
        lsns = writer.append_batch([WALEntry.put(b"a", b""), WALEntry.put(b"b", b"")])
        writer.rotate()
        writer.sync()
        writer.checkpoint(lsns.start)
        writer.prune()


def interrupt_at_each_lock(channel: Channel, log: Path, mode: SyncMode) -> int:
    sys.unraisablehook = lambda unraisable: None  # Python drops what is raised in a __del__
    threading.RLock = Raising  # type: ignore[assignment, misc]
    for n in itertools.count(1):
        Raising.left = n
        try:
            use_all_of_it(log, mode)
        except Interrupt:
            pass
        came, Raising.left = Raising.left <= 0, 0
        held = list(threads.mutexes_of_this_thread())
        assert held == [], f"after the interrupt of the {n}th"
        use_all_of_it(log, mode)
        if not came:
            return n
    raise AssertionError


@pytest.mark.parametrize("mode", SyncMode)
def test_an_interrupt_that_comes_as_soon_as_a_lock_is_taken_leaves_it_free(
    child: Start, tmp_path: Path, mode: SyncMode
) -> None:
    """In a child: whatever waits for such a lock would wait for ever."""
    assert child(interrupt_at_each_lock, tmp_path / "log", mode).result() > 10


@pytest.mark.parametrize("handling", [False, True])
def test_an_entry_is_appended_at_once_when_no_thread_can_be_started_to_do_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handling: bool
) -> None:
    """Also while an error is handled: it is the context of the new one, as an interrupt would be."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with WALWriter(tmp_path / "log", SyncMode.NONE) as writer:
        try:
            if handling:
                raise KeyError("the caller's own")
            writer.put(b"key", b"value")
        except KeyError:
            writer.put(b"key", b"value")
        assert [entry.key for entry in WALReader(tmp_path / "log")] == [b"key"]


def test_an_entry_that_can_neither_linger_nor_be_appended_raises_and_is_in_the_log_once_when_it_is_put_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    log = tmp_path / "log"
    with WALWriter(log, SyncMode.NONE, lock_timeout=0.01) as writer, (log / "append.lock").open("r+b") as lock:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            fcntl.flock(lock, fcntl.LOCK_EX)
            for _ in range(3):
                with pytest.raises(LogBusy):
                    writer.put(b"key", b"value")
            fcntl.flock(lock, fcntl.LOCK_UN)
        writer.put(b"key", b"value")
    assert [entry.key for entry in WALReader(log)] == [b"key"]


def test_helpers_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    """The thread of an interval ends when nothing was appended meanwhile, and the next append starts another."""
    with WALWriter(tmp_path / "log", sync_interval_s=0.001) as writer:
        session = writer._handle.session
        assert session is not None
        for _ in range(5):
            writer.put(b"key", b"value")
            writer.sync()
            until(lambda: not session.committer._wakers, "the thread has ended")
        assert session.committer._thread is None


def test_helpers_that_were_refused_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with WALWriter(tmp_path / "log", SyncMode.NONE) as writer:
        for _ in range(3):
            writer.put(b"key", b"value")
        assert writer._handle.buffer is not None
        assert writer._handle.buffer._wakers == set()
    with WALWriter(tmp_path / "log", sync_interval_s=60.0) as writer:
        session = writer._handle.session
        assert session is not None
        for _ in range(3):
            writer.put(b"key", b"value")
        assert session.committer._wakers == set()
