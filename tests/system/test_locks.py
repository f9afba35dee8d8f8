"""Locks: who holds one, who waits, and that the kernel frees them when their holder dies."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

import pytest

from tests.support import Channel, Start, run_threads, until, waits_for_flock
from walpool import IOFailed, LogBusy, UnsafeLog
from walpool.system.calls import calls
from walpool.system.files import CREATE, WRITE, Directory, File
from walpool.system.locks import LOCK_EX, ByteLocks, Maintenance, ProcessLock, try_lock, unlock
from walpool.system.threads import members, mutex


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    opened = Directory(tmp_path)
    opened.open("lock", CREATE).close()
    yield opened
    opened.close()


@pytest.fixture
def files(directory: Directory) -> Iterator[list[File]]:
    opened = [directory.open("lock", WRITE) for _ in range(3)]
    yield opened
    for file in opened:
        file.close()


def test_a_flock_belongs_to_one_descriptor_at_a_time(files: list[File]) -> None:
    one, other, _ = files
    assert try_lock(one.fd)
    assert try_lock(one.fd), "taking it again changes nothing"
    assert not try_lock(other.fd)
    unlock(one.fd)
    assert try_lock(other.fd)
    other.close()
    assert try_lock(one.fd), "closing frees it"


def test_closing_another_descriptor_of_the_file_frees_nothing(files: list[File]) -> None:
    one, other, third = files
    assert try_lock(one.fd)
    ByteLocks(one).try_hold(3)
    other.close()
    assert not try_lock(third.fd)
    assert list(ByteLocks(third).held_by_others(10)) == [3]


def test_a_wait_without_timeout_ends_when_the_lock_is_free(files: list[File]) -> None:
    one, other, _ = files
    order: list[str] = []
    assert try_lock(one.fd)

    def wait() -> None:
        ProcessLock(other).take(other.fd, LOCK_EX)
        order.append("locked")

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    order.append("freed")
    unlock(one.fd)
    thread.join(60)
    assert order == ["freed", "locked"]


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_wait_with_a_timeout_ends_with_busy(files: list[File], timeout: float) -> None:
    one, other, _ = files
    assert try_lock(one.fd)
    with pytest.raises(LogBusy, match=re.escape(other.path)):
        ProcessLock(other, timeout).take(other.fd, LOCK_EX)
    unlock(one.fd)
    ProcessLock(other, timeout).take(other.fd, LOCK_EX)
    assert not try_lock(one.fd)


def test_an_error_of_the_lock_is_not_taken_for_busy(files: list[File], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(calls, "flock", fail)
    with pytest.raises(OSError) as failed:
        try_lock(files[0].fd)
    assert failed.value.errno == errno.ENOLCK


def test_bytes_are_held_one_by_one(files: list[File]) -> None:
    one, other, looker = (ByteLocks(file) for file in files)
    assert one.try_hold(0) and one.try_hold(5) and other.try_hold(7) and other.try_hold(1)
    assert not other.try_hold(5)
    assert list(looker.held_by_others(100)) == [0, 1, 5, 7]
    assert list(looker.held_by_others(7)) == [0, 1, 5]
    assert list(one.held_by_others(100)) == [1, 7], "one's own do not count"
    one.release(5)
    assert other.try_hold(5)
    files[0].close()
    assert list(looker.held_by_others(100)) == [1, 5, 7]


def test_neighbouring_bytes_of_two_holders_are_all_seen(files: list[File]) -> None:
    one, other, looker = (ByteLocks(file) for file in files)
    for byte in range(20):
        assert (one if byte % 3 else other).try_hold(byte)
    assert list(looker.held_by_others(1 << 16)) == list(range(20))


def test_thousands_of_bytes_are_all_seen(files: list[File]) -> None:
    one, other, looker = (ByteLocks(file) for file in files)
    held = [byte * 3 for byte in range(3_000)]
    for byte in held:
        assert (one if byte % 2 else other).try_hold(byte)
    assert list(looker.held_by_others(1 << 16)) == held


def test_an_error_of_a_byte_lock_is_typed(files: list[File], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, command: int, argument: bytes) -> bytes:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(calls, "fcntl", fail)
    with pytest.raises(IOFailed):
        ByteLocks(files[0]).try_hold(0)


def hold(channel: Channel, place: Path) -> None:
    directory = Directory(place)
    file = directory.open("lock", WRITE)
    assert try_lock(file.fd) and ByteLocks(file).try_hold(4)
    channel.send("held")
    channel.receive()


@pytest.mark.usefixtures("linux")
def test_a_killed_holder_frees_everything_at_once(child: Start, files: list[File], tmp_path: Path) -> None:
    holder = child(hold, tmp_path)
    assert holder.receive() == "held"
    assert not try_lock(files[0].fd)
    assert list(ByteLocks(files[0]).held_by_others(10)) == [4]
    holder.kill()
    assert holder.died() == -signal.SIGKILL
    assert try_lock(files[0].fd)
    assert list(ByteLocks(files[0]).held_by_others(10)) == []


def wait_in_the_kernel(channel: Channel, place: Path) -> bool:
    directory = Directory(place)
    file = directory.open("lock", WRITE)
    ProcessLock(file).take(file.fd, LOCK_EX)
    return True


@pytest.mark.usefixtures("linux")
def test_a_process_waits_in_the_kernel(child: Start, files: list[File], tmp_path: Path) -> None:
    assert try_lock(files[0].fd)
    waiting = child(wait_in_the_kernel, tmp_path)
    until(lambda: waits_for_flock(waiting.pid), "it waits in the kernel")
    unlock(files[0].fd)
    assert waiting.result() is True


def test_maintenance_is_one_at_a_time(directory: Directory) -> None:
    with Maintenance(directory, "maintenance.lock", None, 0o600):
        busy: list[bool] = []

        def try_it() -> None:
            with pytest.raises(LogBusy), Maintenance(directory, "maintenance.lock", 0.02, 0o600):
                pass
            busy.append(True)

        run_threads(try_it)
        assert busy == [True]
    with Maintenance(directory, "maintenance.lock", 0, 0o600):
        pass


def test_maintenance_is_over_when_its_block_raises(directory: Directory) -> None:
    with pytest.raises(ZeroDivisionError), Maintenance(directory, "maintenance.lock", None, 0o600):
        raise ZeroDivisionError
    with Maintenance(directory, "maintenance.lock", 0, 0o600):
        pass


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder"])
def test_maintenance_refuses_what_was_planted(directory: Directory, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "maintenance.lock"
    if kind == "symlink":
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(UnsafeLog), Maintenance(directory, "maintenance.lock", 1, 0o600):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_mutex_without_timeout_waits(directory: Directory) -> None:
    lock = mutex(None)
    order: list[str] = []

    def wait() -> None:
        with lock:
            order.append("second")

    thread = threading.Thread(target=wait, daemon=True)
    with lock:
        thread.start()
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


def test_a_mutex_with_a_timeout_raises_busy_and_stays_usable() -> None:
    lock = mutex(0.01)

    def try_it() -> None:
        with pytest.raises(LogBusy), lock:
            pass

    with lock:
        run_threads(try_it)
        run_threads(try_it)  # the one that gave up has not let go of ours
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    with lock:  # LogBusy, were it still held
        pass


class Held:
    """What a set of weak references may hold."""


class Changing(WeakSet[Held]):
    """Another thread adds to it while it is walked, the first three times."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Held] = []

    def __iter__(self) -> Iterator[Held]:
        for each in super().__iter__():
            yield each
            if len(self.kept) < 4:
                self.kept.append(Held())
                self.add(self.kept[-1])


def test_the_members_of_a_set_that_other_threads_change_are_told_all_the_same() -> None:
    """The exit hook, who looks for locks of its thread, and who enters maintenance walk such sets."""
    changing, first = Changing(), Held()
    changing.add(first)
    assert {first} <= set(members(changing)) <= {first, *changing.kept}
    assert len(changing.kept) == (4 if sys.version_info < (3, 14) else 1)  # later ones walk a copy
