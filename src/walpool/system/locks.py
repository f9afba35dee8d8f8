"""Locks that the kernel releases when their holder dies, and the hook that keeps them right across a fork.

`flock` on a descriptor that stays open is the hot path's lock (1.0 us a pair; filelock 65-100 us, and it waits by
sleeping). `ByteLocks` are open-file-description locks on single bytes: byte n held means that the owner of writer
slot n is alive. `Maintenance` is a filelock for what is rare.

Holds: a descriptor that carries a lock is closed, never unlocked, in a forked child: an unlock there would free
the parent's lock.
"""

import errno
import fcntl
import os
import random
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol
from weakref import WeakSet

import filelock

from walpool.errors import LogBusy
from walpool.system.calls import calls
from walpool.system.files import Directory, File, typed_error, typed_errors

MAINTENANCE_POLL_S = 0.005
LOCK_EX = fcntl.LOCK_EX
LOCK_SH = fcntl.LOCK_SH
LOCK_UN = fcntl.LOCK_UN
TRY_EX = fcntl.LOCK_EX | fcntl.LOCK_NB

_BUSY = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}


def try_lock(fd: int) -> bool:
    """Take the flock if it is free now."""
    try:
        calls.flock(fd, TRY_EX)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def unlock(fd: int) -> None:
    calls.flock(fd, LOCK_UN)


Flock = Callable[[int, int], None]  # (descriptor, LOCK_EX)


def waiter(timeout_s: float | None, path: str, who: Callable[[], str] = str) -> Flock:
    """A function that takes the flock of a descriptor: in the kernel, or polling until `timeout_s`, then LogBusy.

    Whoever polls can lose to those who wait in the kernel. `who` adds to the error who has the lock.
    """
    if timeout_s is None:
        return calls.flock  # no wrapper: every append calls it

    def wait(fd: int, operation: int) -> None:
        deadline = calls.monotonic() + timeout_s
        while not try_lock(fd):
            left = deadline - calls.monotonic()
            if left <= 0:
                raise LogBusy(f"{path}: another process held the lock for {timeout_s} s{who()}")
            calls.sleep(min(left, random.uniform(50e-6, 2e-3)))

    return wait


class Mutex(Protocol):
    """Threads of this process, before the lock between processes. `with` takes it, so that no signal can leak it."""

    def __enter__(self) -> bool: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class TimedMutex:
    """A thread lock that gives up with LogBusy."""

    def __init__(self, timeout_s: float) -> None:
        self._lock = threading.Lock()
        self._timeout_s = max(0.0, min(timeout_s, threading.TIMEOUT_MAX))

    def __enter__(self) -> bool:
        if not self._lock.acquire(timeout=self._timeout_s):
            raise LogBusy(f"another thread of this process held the log for {self._timeout_s} s")
        return True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


def mutex(timeout_s: float | None) -> Mutex:
    return threading.Lock() if timeout_s is None else TimedMutex(timeout_s)


if sys.platform == "darwin":  # <sys/fcntl.h>; Python does not name them there
    _OFD_SETLK, _OFD_GETLK = 90, 92
    _FLOCK = struct.Struct("@q q i h h")

    def _flock(kind: int, start: int, length: int) -> bytes:
        return _FLOCK.pack(start, length, 0, kind, os.SEEK_SET)

    def _unflock(data: bytes) -> tuple[int, int, int]:
        start, length, _, kind, _ = _FLOCK.unpack(data)
        return kind, start, length

else:
    _OFD_SETLK, _OFD_GETLK = fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK
    _FLOCK = struct.Struct("@h h 4x q q i 4x")

    def _flock(kind: int, start: int, length: int) -> bytes:
        return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)

    def _unflock(data: bytes) -> tuple[int, int, int]:
        kind, _, start, length, _ = _FLOCK.unpack(data)
        return kind, start, length


class ByteLocks:
    """Locks on single bytes of a file, held until released, closed everywhere, or the holder dies."""

    def __init__(self, file: File) -> None:
        self._file = file

    def try_hold(self, byte: int) -> bool:
        try:
            calls.fcntl(self._file.fd, _OFD_SETLK, _flock(fcntl.F_WRLCK, byte, 1))
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise typed_error(error, self._file.path) from error
        return True

    def share(self, byte: int) -> None:
        """Hold a byte together with others that share it; nobody holds it alone. Needs only a readable file."""
        try:
            calls.fcntl(self._file.fd, _OFD_SETLK, _flock(fcntl.F_RDLCK, byte, 1))
        except OSError as error:
            raise typed_error(error, self._file.path) from error

    def release(self, byte: int) -> None:
        with typed_errors(self._file.path):
            calls.fcntl(self._file.fd, _OFD_SETLK, _flock(fcntl.F_UNLCK, byte, 1))

    def held_by_others(self, bytes_end: int) -> Iterator[int]:
        """Bytes below `bytes_end` that another open file description holds, in order."""
        ranges = [(0, bytes_end)]
        while ranges:
            low, high = ranges.pop()
            if low >= high:
                continue
            with typed_errors(self._file.path):
                answer = calls.fcntl(self._file.fd, _OFD_GETLK, _flock(fcntl.F_WRLCK, low, high - low))
            assert isinstance(answer, bytes)
            kind, start, length = _unflock(answer)
            if kind == fcntl.F_UNLCK:
                continue
            # The kernel names some lock in the range, not the lowest, and merges neighbours of one holder.
            first = max(low, start)
            end = min(high, start + length) if length else high
            if first > low:
                ranges += [(end, high), (first, end), (low, first)]  # what is lower comes first
                continue
            yield from range(first, end)
            ranges.append((end, high))


class Forkable(Protocol):
    def after_fork(self) -> None:
        """Runs in a forked child: close inherited descriptors without unlocking, and mark yourself stale."""


_forkables: "WeakSet[Forkable]" = WeakSet()


def reopen_after_fork(handle: Forkable) -> None:
    """Ask for `handle.after_fork()` in every child that a fork makes."""
    _forkables.add(handle)


def _in_child() -> None:
    for handle in list(_forkables):
        handle.after_fork()


os.register_at_fork(after_in_child=_in_child)


class Maintenance:
    """The lock around create, recover, prune and repair, of filelock, on a descriptor of our own.

    Built when used. filelock's lock objects open files by path, and keep a list of held locks that an interrupt in
    their acquire leaves stale; a descriptor that we opened safely is ours to close, whatever came.
    """

    def __init__(self, directory: Directory, name: str, timeout_s: float | None, mode: int) -> None:
        self._file = directory.open_or_create(name, mode)
        self._timeout_s = timeout_s
        reopen_after_fork(self)

    def __enter__(self) -> None:
        try:
            deadline = None if self._timeout_s is None else calls.monotonic() + self._timeout_s
            while not filelock.lock_descriptor(self._file.fd, blocking=False):
                if deadline is not None and calls.monotonic() >= deadline:
                    raise LogBusy(f"{self._file.path}: another process held the lock for {self._timeout_s} s")
                calls.sleep(MAINTENANCE_POLL_S)
        except OSError as error:
            self._file.close()
            raise typed_error(error, self._file.path) from error
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *exception: object) -> None:
        self._file.close()  # frees the lock: no other descriptor shares it

    def after_fork(self) -> None:
        self._file.close()
