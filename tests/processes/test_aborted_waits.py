"""A wait that a signal handler ends by raising, as servers abort their workers: what arrives is that, and no more.

No error of walpool's own way of waiting (a lock that was taken, a control block that was replaced) is in its context:
"During handling of the above exception, another exception occurred" would say that something had failed.
"""

from __future__ import annotations

import fcntl
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import Channel, Start
from walpool import LogBusy, Retention, SyncMode, WALEntry, WALWriter
from walpool.shared.control import RETIRED, STOPPED

LOCKS = ("append.lock", "sync.lock", "maintenance.lock")


@contextmanager
def held(log: Path, name: str) -> Iterator[None]:
    """Through a descriptor of its own, which is what another process has."""
    with (log / name).open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def contexts(error: BaseException) -> list[BaseException]:
    """What Python would print before it, and what it would hide."""
    found: list[BaseException] = []
    pending = [error]
    while pending:
        each = pending.pop()
        for other in (each.__context__, each.__cause__):
            if other is not None and other not in found:
                found.append(other)
                pending.append(other)
    return found


def put(writer: WALWriter) -> object:
    return writer.put(b"k", b"v")


def put_and_sync(writer: WALWriter) -> object:
    writer.put(b"k", b"v")
    return writer.sync()


# What waits for which lock, in which mode
WAITS: dict[str, tuple[str, SyncMode, Callable[[WALWriter], object]]] = {
    "put": ("append.lock", SyncMode.NORMAL, put),
    "delete": ("append.lock", SyncMode.NORMAL, lambda writer: writer.delete(b"k")),
    "batch": ("append.lock", SyncMode.NORMAL, lambda writer: writer.append_batch([WALEntry.delete(b"k")])),
    "put in FULL": ("append.lock", SyncMode.FULL, put),
    "sync in FULL": ("sync.lock", SyncMode.FULL, put),
    "sync": ("sync.lock", SyncMode.NORMAL, put_and_sync),
    "flush": ("append.lock", SyncMode.NONE, put_and_sync),
    "close that flushes": ("append.lock", SyncMode.NONE, lambda writer: (put(writer), writer.close())),
    "rotate": ("append.lock", SyncMode.NORMAL, lambda writer: writer.rotate()),
    "checkpoint": ("maintenance.lock", SyncMode.NORMAL, lambda writer: writer.checkpoint(1)),
    "prune": ("maintenance.lock", SyncMode.NORMAL, lambda writer: writer.prune()),
    "open": ("append.lock", SyncMode.NORMAL, lambda writer: open_another(writer)),
    "recover": ("maintenance.lock", SyncMode.NORMAL, lambda writer: open_anew(writer)),
    "append to a log that was recovered": ("maintenance.lock", SyncMode.NORMAL, lambda writer: go_over(writer)),
    "FULL in a log that was recovered": ("maintenance.lock", SyncMode.FULL, lambda writer: go_over(writer)),
}


def open_another(writer: WALWriter) -> None:
    WALWriter(writer.path, lock_timeout=writer._handle.options.lock_timeout)


def open_anew(writer: WALWriter) -> None:
    """A recovery, which waits for the maintenance lock."""
    writer.close()
    os.unlink(f"{writer.path}/control")
    open_another(writer)


def go_over(writer: WALWriter) -> None:
    """The writer finds its control block replaced, and waits in the opening that follows: inside of an append."""
    session = writer._handle.open()
    session.log.control.halves[STOPPED] = RETIRED  # as a recovery leaves the block that it replaced
    os.unlink(f"{writer.path}/control")
    put(writer)


class Abort(SystemExit):
    """As gunicorn's worker raises it."""


def abort_a_wait(channel: Channel, log: Path, name: str, timeout: float | None) -> list[str]:
    """What came with the exception of a signal handler, for people; empty is right."""
    lock, mode, wait = WAITS[name]
    writer = WALWriter(log, mode, 4096, lock_timeout=timeout, retention=Retention(), linger_s=3600.0)
    writer.put(b"k", b"v")
    writer.sync()
    asked = [0]

    def abort(number: int, frame: object) -> None:
        asked[0] += 1
        raise Abort(1)

    signal.signal(signal.SIGALRM, abort)
    wrong: list[str] = []
    with held(log, lock):
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            wait(writer)
            wrong.append("it did not wait")
        except Abort as error:
            wrong += [f"{type(each).__name__}: {each}" for each in contexts(error)]
            printed = "".join(traceback.format_exception(error))
            if "During handling" in printed or "direct cause" in printed:
                wrong.append(printed)
        except BaseException:
            wrong.append(traceback.format_exc())
    if asked != [1]:
        wrong.append(f"asked {asked[0]} times")
    writer.close()
    with WALWriter(log, lock_timeout=10) as another:
        another.put(b"k", b"v")
    return wrong


@pytest.mark.parametrize("timeout", [None, 30.0], ids=["in the kernel", "polling"])
@pytest.mark.parametrize("name", WAITS)
def test_what_a_signal_handler_raises_in_a_wait_arrives_by_itself(
    child: Start, memory: Path, name: str, timeout: float | None
) -> None:
    assert child(abort_a_wait, memory / "log", name, timeout).result() == []


def time_out(channel: Channel, log: Path, name: str) -> list[str]:
    lock, mode, wait = WAITS[name]
    writer = WALWriter(log, mode, 4096, lock_timeout=0.02, retention=Retention(), linger_s=3600.0)
    writer.put(b"k", b"v")
    writer.sync()
    wrong: list[str] = []
    with held(log, lock):
        try:
            wait(writer)
            wrong.append("it did not wait")
        except LogBusy as error:
            wrong += [f"{type(each).__name__}: {each}" for each in contexts(error) if isinstance(each, BlockingIOError)]
            if "During handling" in "".join(traceback.format_exception(error)):
                wrong.append(traceback.format_exc())
            if str(log) not in str(error) or "0.02 s" not in str(error):
                wrong.append(str(error))
    writer.close()
    return wrong


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_that_took_too_long_says_for_what_and_nothing_of_how_it_waited(
    child: Start, memory: Path, name: str
) -> None:
    assert child(time_out, memory / "log", name).result() == []


def test_what_comes_while_a_lock_is_found_taken_arrives_by_itself(log: Path) -> None:
    """Whoever finds sync.lock taken lets go of what it had so far, and is interrupted there."""

    class Abort(BaseException):
        pass

    def abort(fd: int, operation: int) -> None:
        raise Abort

    with WALWriter(log, lock_timeout=30) as writer:
        writer.put(b"k", b"v")
        with held(log, "sync.lock"):
            writer._handle.session.committer._lock.unlock = abort
            with pytest.raises(Abort) as caught:
                writer.sync()
            writer._handle.session.committer._lock.unlock = fcntl.flock
        assert contexts(caught.value) == []
        assert writer.sync() == 1
