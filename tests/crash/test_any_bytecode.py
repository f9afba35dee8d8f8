"""An exception at any bytecode of a call: locks between threads and processes are free, and the log goes on.

Not where this interpreter happens to look for signals: at each instruction, because the next one looks elsewhere.
"""

from __future__ import annotations

import fcntl
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.crash.failpoints import appends_by
from tests.crash.interruptions import Interruption, warm_up
from tests.support import MAPPED, Channel, Start, run_threads, until
from walpool import LogBusy, SyncMode, WALReader, WALWriter
from walpool.system.locks import try_lock

MOST = 2_000  # bytecodes of one call; a log that grows meanwhile may make more of them
LOCKS = ("append.lock", "sync.lock", "maintenance.lock")


class Interrupt(BaseException):
    pass


def interrupt() -> None:
    raise Interrupt


class Outside:
    """Looks at the locks of a log from outside: through descriptors of its own, and from another thread."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._fds = {name: os.open(log / name, os.O_RDWR) for name in LOCKS}

    def check(self, writer: WALWriter, where: str) -> None:
        for name, fd in self._fds.items():
            until(lambda fd=fd: try_lock(fd), f"{where}: {name} is free")  # a helper may have it for a moment
            fcntl.flock(fd, fcntl.LOCK_UN)
        run_threads(lambda: writer.append_batch([]), lambda: writer.put(b"another thread", b""))
        writer.put(b"this thread", b"")
        writer.sync()


CALLS: dict[str, Callable[[WALWriter], object]] = {
    "put": lambda writer: writer.put(b"key", b"value"),
    "batch": lambda writer: writer.append_batch([]) or writer.batch(),
    "sync": lambda writer: (writer.put(b"key", b"value"), writer.sync()),
    "rotate": lambda writer: (writer.put(b"key", b"value"), writer.rotate()),
    "checkpoint": lambda writer: writer.checkpoint(1),
    "prune": lambda writer: writer.prune(),
}


def interrupt_each_bytecode(
    channel: Channel, log: Path, options: dict[str, Any], name: str, step: int, by_core: bool = False
) -> int:
    """How many bytecodes it has, about."""
    sys.unraisablehook = lambda _: None  # Python drops what is raised in a finaliser
    warnings.simplefilter("ignore", ResourceWarning)
    n = 1
    with appends_by(by_core), WALWriter(log, **options) as writer:
        writer.put(b"first", b"")
        writer.sync()
        writer.checkpoint(1)
        writer.prune()
        outside = Outside(log)
        warm_up(lambda: CALLS[name](writer))
        while True:
            at = Interruption(n, interrupt, bytecodes=True)
            with suppress(Interrupt):
                at.during(lambda: CALLS[name](writer))
            if not at.came or n > MOST:
                return n
            outside.check(writer, f"{name}, an exception at bytecode {n}")
            n += step


@pytest.mark.parametrize("name", CALLS)
def test_an_exception_at_any_bytecode_leaves_every_lock_free(child: Start, memory: Path, name: str) -> None:
    step = {"put": 1, "batch": 5}.get(name, 7)  # of what an append does, the core does much in no bytecode
    options = {"size_limit": 4096}
    assert child(interrupt_each_bytecode, memory / "log", options, name, step).result() > 50


@pytest.mark.parametrize(
    "options",
    [
        {"lock_timeout": 5.0},
        {"sync_mode": SyncMode.FULL},
        {"sync_mode": SyncMode.NONE, "linger_s": 3600.0},
        {"size_limit": 4096, "mapped": MAPPED},
    ],
    ids=["timed", "FULL", "NONE", "mapped"],
)
def test_an_exception_at_any_bytecode_of_a_put_of_any_kind_leaves_every_lock_free(
    child: Start, memory: Path, options: dict[str, Any]
) -> None:
    assert child(interrupt_each_bytecode, memory / "log", options, "put", 3).result() > 50


@pytest.mark.parametrize(
    "options",
    [{}, {"lock_timeout": 5.0}, {"sync_mode": SyncMode.FULL}, {"sync_mode": SyncMode.NONE, "linger_s": 3600.0}],
    ids=["NORMAL", "timed", "FULL", "NONE"],
)
def test_an_exception_at_any_bytecode_around_an_append_of_the_core_leaves_every_lock_free(
    child: Start, memory: Path, options: dict[str, Any]
) -> None:
    assert child(interrupt_each_bytecode, memory / "log", options, "put", 1, True).result() > 5


def interrupt_system_calls(channel: Channel, log: Path, event: str) -> int:
    """An audit hook is Python that runs before the system call: what is raised there keeps it from being done."""
    left = [0]

    def hook(name: str, args: tuple[object, ...]) -> None:
        if name == event and left[0] > 0:
            left[0] -= 1
            if left[0] == 0:
                raise Interrupt

    sys.addaudithook(hook)  # for good: in a process of its own
    n = 0
    with WALWriter(log, size_limit=4096) as writer:
        writer.put(b"first", b"")
        writer.checkpoint(writer.sync())
        outside = Outside(log)
        while True:
            n += 1
            left[0] = n
            with suppress(Interrupt):
                for call in CALLS.values():
                    call(writer)
            came, left[0] = left[0] == 0, 0
            if not came or n > 100:  # the log grows, and with it the number of calls
                return n
            outside.check(writer, f"an exception in the hook of {event}, call {n}")


@pytest.mark.parametrize("event", ["fcntl.flock", "fcntl.fcntl", "open"])
def test_an_exception_out_of_an_audit_hook_leaves_every_lock_free(child: Start, memory: Path, event: str) -> None:
    assert child(interrupt_system_calls, memory / "log", event).result() > 1


def raise_in_every_unlock(channel: Channel, log: Path) -> int:
    """As a burst of signals would: the first tries to unlock are kept from being done, too."""
    left = [0]

    def hook(name: str, args: tuple[Any, ...]) -> None:
        if name == "fcntl.flock" and args[1] == fcntl.LOCK_UN and left[0] > 0:
            left[0] -= 1
            raise Interrupt

    sys.addaudithook(hook)
    with appends_by(None), WALWriter(log) as writer:  # the core's calls have no hooks
        writer.put(b"first", b"")
        writer.checkpoint(writer.sync())
        outside = Outside(log)
        for burst in range(1, 6):
            left[0] = burst
            with suppress(Interrupt):
                writer.put(b"key", b"value")
            assert left[0] == 0
            outside.check(writer, f"{burst} exceptions in a row before an unlock")
        with WALReader(log) as reader, suppress(LogBusy):
            return len(reader.read_all())
    return 0


def test_exceptions_in_a_row_before_an_unlock_leave_it_free(child: Start, memory: Path) -> None:
    assert child(raise_in_every_unlock, memory / "log").result() > 5
