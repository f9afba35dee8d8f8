"""Locks that the kernel releases when their holder dies, and the hook that keeps them right across a fork.

`ProcessLock` is the hot path's: `flock` on a descriptor that stays open (0.8 us a pair; filelock 65-100 us, and it
waits by sleeping), behind a lock between threads. `ByteLocks` are open-file-description locks on single bytes: byte n
held means that the owner of writer slot n is alive. `Maintenance` is for what is rare.

Holds: whatever exception arrives at whatever bytecode, a lock is free once nobody is inside. So it is taken inside the
`try` whose `finally` frees it, freed again behind that (an audit hook runs Python before the system call, and a signal
handler can raise there), and no `__exit__` in between is Python's. No thread waits for itself: who is inside already,
perhaps interrupted by the very code that calls, gets LogBusy. Nothing of the user's runs, nothing is logged and no
thread is started or joined while one of these is held.
A descriptor that carries a lock is closed, never unlocked, in a forked child: an unlock there would free the parent's.
"""

import errno
import fcntl
import io
import os
import random
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar
from weakref import WeakSet, ref

from walpool.errors import LogBusy, LogClosed
from walpool.system.calls import calls
from walpool.system.failures import typed_error, typed_errors
from walpool.system.files import Directory, File
from walpool.system.forks import close_all_of, reopen_after_fork
from walpool.system.threads import leave, members, mutex, mutexes_of_this_thread

MAINTENANCE_POLL_S = 0.005
LOCK_EX = fcntl.LOCK_EX
LOCK_UN = fcntl.LOCK_UN
TRY_EX = fcntl.LOCK_EX | fcntl.LOCK_NB
UNLOCK_TRIES = 8  # each may be interrupted

_BUSY = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}
_Result = TypeVar("_Result")


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


def itself(path: str) -> LogBusy:
    """For a thread that would wait for itself."""
    return LogBusy(
        f"{path}: this thread is in the middle of a call on this log, and was interrupted by the code that calls now (a"
        " signal handler, a finaliser, a logging handler, ...); nothing was done: try again when that call has returned"
    )


# Between processes


Flock = Callable[[int, int], None]  # (descriptor, LOCK_EX)
_by_file: dict[tuple[int, int], list["ref[ProcessLock]"]] = {}


class ProcessLock:
    """The flock of one open file, behind a mutex: a flock is the process's, so threads need one of their own before it.

    The hot path does by itself what `run` does (write/place.py).
    """

    def __init__(self, file: File, timeout_s: float | None = None, who: Callable[[], str] = str) -> None:
        """`who` adds to the LogBusy of a wait that was too long who has the lock."""
        self.file = file
        self.fd = file.fd
        self.mutex = mutex(timeout_s, file.path)
        self.is_ours = self.mutex._is_owned
        self.who = who
        self.timeout_s = timeout_s
        self.unlock: Flock = calls.flock
        self._flock: Flock = calls.flock
        self.others = _by_file.setdefault(file.place, [])
        self.others.append(ref(self, partial(_forget, file.place)))

    def take(self, fd: int, operation: int) -> None:
        """Wait for the flock: in the kernel, or polling until the timeout. Whoever polls can lose to those who wait."""
        if len(self.others) > 1:
            self.check_others()
        if self.timeout_s is None:
            self._flock(fd, operation)
            return
        deadline = calls.monotonic() + self.timeout_s
        while not try_lock(fd):
            left = deadline - calls.monotonic()
            if left <= 0:
                raise LogBusy(f"{self.file.path}: the lock was not free for {self.timeout_s} s{self.who()}")
            calls.sleep(min(left, random.uniform(50e-6, 2e-3)))

    def check_others(self) -> None:
        """Raises LogBusy when another writer of this process has the lock, and this thread is inside of that one."""
        for other in list(self.others):
            lock = other()
            if lock is not None and lock is not self and lock.is_ours():
                raise itself(self.file.path)

    def run(self, body: Callable[[], _Result]) -> _Result:
        """`body()`, alone among all threads and processes."""
        if self.is_ours():
            raise itself(self.file.path)
        try:
            return self._run(
                body
            )  # a frame of its own: at some bytecodes an exception passes by the handlers of its frame
        except BaseException:
            self.set_free()
            raise

    def try_run(self, body: Callable[[], _Result]) -> _Result | None:
        """`body()`, or None when somebody else is inside."""
        if self.is_ours():
            raise itself(self.file.path)
        try:
            return self._try_run(body)
        except BaseException:
            self.set_free()
            raise

    def _run(self, body: Callable[[], _Result]) -> _Result:
        with self.mutex:
            self._check_open()
            try:
                self.take(self.fd, LOCK_EX)
                return body()
            finally:
                self.unlock(self.fd, LOCK_UN)

    def _try_run(self, body: Callable[[], _Result]) -> _Result | None:
        """That it is taken is no exception: it would be the context of what a signal handler raises here."""
        if not self.mutex.acquire(False):
            return None
        try:
            self._check_open()
            try:
                return body() if try_lock(self.fd) else None
            finally:
                self.unlock(self.fd, LOCK_UN)
        finally:
            self.mutex.release()

    def _check_open(self) -> None:
        if self.fd < 0:
            raise LogClosed(f"{self.file.path}: the log was closed by another thread")

    def set_free(self) -> None:
        """For the caller of what ended with an exception: whatever that kept from being done is done."""
        try:
            if not self.is_ours() and not self.mutex.acquire(False):
                return  # another thread is inside by now: it unlocks when it leaves
            for _ in range(UNLOCK_TRIES):
                try:
                    self.unlock(self.fd, LOCK_UN)
                    return
                except OSError:
                    return  # it is closed, and so free
                except BaseException:  # another interrupt: the first is on its way to the caller already
                    continue
        finally:
            leave(self.mutex)

    def drop(self) -> None:
        """It is closed, by a fork or by its writer: there is nothing to unlock any more."""
        self.unlock = lambda fd, operation: None
        self.fd = -1


def _forget(place: tuple[int, int], gone: "ref[ProcessLock]") -> None:
    others = _by_file.get(place, [])
    if gone in others:
        others.remove(gone)
    if not others:
        _by_file.pop(place, None)


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
    """Locks on single bytes of a file, held until released, closed everywhere, or the holder dies.

    They belong to the open file description, and not, as lockf's do, to the process: so closing another descriptor of
    the file does not drop them.
    """

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

    def share(self, byte: int) -> bool:
        """Hold a byte together with others that share it; False while one has it alone. Needs only a readable file."""
        try:
            calls.fcntl(self._file.fd, _OFD_SETLK, _flock(fcntl.F_RDLCK, byte, 1))
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise typed_error(error, self._file.path) from error
        return True

    def release(self, byte: int, count: int = 1) -> None:
        with typed_errors(self._file.path):
            calls.fcntl(self._file.fd, _OFD_SETLK, _flock(fcntl.F_UNLCK, byte, count))

    def held_by_others(self, bytes_end: int, *, first: int = 0, shared: bool = False) -> Iterator[int]:
        """Bytes from `first` to below `bytes_end` that another open file description holds, in order, or shares."""
        ranges = [(first, bytes_end)]
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
            begin = max(low, start)
            end = min(high, start + length) if length else high
            if begin > low:
                ranges += [(end, high), (begin, end), (low, begin)]  # what is lower comes first
                continue
            if kind == fcntl.F_RDLCK or not shared:
                yield from range(begin, end)
            ranges.append((end, high))


def lock_mode(file_mode: int) -> int:
    """Permissions of lock files: read is enough to take a flock, so who may only read the log must not open them."""
    return 0o600 | (0o060 if file_mode & 0o020 else 0)


class Maintenance(io.FileIO):
    """The lock around create, recover, prune and repair, on a descriptor of its own.

    Built when used, by whoever is not in a hurry: it polls. Leaving is closing, by C's own `__exit__`, so that no
    interrupt comes in between.
    """

    _thread = 0  # that holds it, or is about to

    def __init__(self, directory: Directory, name: str, timeout_s: float | None, file_mode: int) -> None:
        file = directory.open_or_create(name, lock_mode(file_mode))
        self._path = file.path
        self._place = file.place
        self._timeout_s = timeout_s
        reopen_after_fork(self)
        with typed_errors(file.path):
            super().__init__(calls.dup(file.fd), "r+b")
        file.close()

    def __enter__(self) -> "Maintenance":
        try:
            if any(other._place == self._place and other.is_ours() for other in members(_maintenances)):
                raise itself(self._path)
            # Before it is: who interrupts us when it is, and we have not heard yet, must not wait for us.
            self._thread = threading.get_ident()
            _maintenances.add(self)
            deadline = None if self._timeout_s is None else calls.monotonic() + self._timeout_s
            with typed_errors(self._path):
                while not try_lock(self.fileno()):
                    if deadline is not None and calls.monotonic() >= deadline:
                        raise LogBusy(
                            f"{self._path}: the lock was not free for {self._timeout_s} s: somebody makes, recovers,"
                            " repairs or prunes the log, or states a checkpoint"
                        )
                    calls.sleep(MAINTENANCE_POLL_S)
            return self
        except BaseException:
            self.close()
            raise

    def is_ours(self) -> bool:
        return self._thread == threading.get_ident() and not self.closed

    def after_fork(self) -> None:
        """Of all that leads to it: C lets go of the number before the system closes, and lets in a fork between."""
        close_all_of(self._path)
        self.close()


_maintenances: "WeakSet[Maintenance]" = WeakSet()


def held_by_this_thread() -> list[object]:
    """The locks of walpool's that this thread is inside of. For tests: nothing of the user's may run then."""
    inside: list[object] = list(mutexes_of_this_thread())
    return inside + [each for each in members(_maintenances) if each.is_ours()]


def try_lock_of_command(fd: int) -> bool:
    """By filelock, for a command that has its process to itself.

    A log is opened without it: on Python 3.12 and later filelock runs a Python function of its own before each system
    call of the process (a pair of flocks takes 1.5 us then, and 0.8 without), where a signal handler can raise before
    an unlock is done; and a child forked while another thread imports it could never import it.
    """
    from filelock import lock_descriptor

    return bool(lock_descriptor(fd, blocking=False))
