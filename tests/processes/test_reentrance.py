"""A call on a log in the middle of another one, on the same thread: it works, or raises LogBusy at once. Never hangs.

So come signal handlers, finalisers that the garbage collector runs, logging handlers that append to this very log.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.crash.failpoints import appends_by
from tests.crash.interruptions import Interruption
from tests.support import Channel, Start, read_log
from walpool import LogBusy, LogClosed, SyncMode, WALMetrics, WALReader, WALWriter
from walpool.staging import at_exit
from walpool.system.locks import held_by_this_thread

LIMIT = 2_000


class Actors:
    """A writer, what is done with it, and what was acknowledged."""

    def __init__(self, log: Path, mode: SyncMode) -> None:
        self.log = log
        self.mode = mode
        self.count = 0
        self.acknowledged: list[bytes] = []
        self.raised: list[bytes] = []
        self.writer = self.open()
        self.other = WALWriter(log, size_limit=LIMIT)
        self.reader = WALReader(log)
        self.metrics = WALMetrics.attach(log)

    def open(self) -> WALWriter:
        return WALWriter(self.log, self.mode, LIMIT, linger_s=3600.0, buffer_bytes=300)

    def put(self, writer: WALWriter) -> None:
        self.count += 1
        key = b"%d" % self.count
        try:
            writer.put(key, b"value")
        except BaseException:
            self.raised.append(key)
            raise
        self.acknowledged.append(key)

    def close(self) -> None:
        self.writer.close()

    def open_another(self) -> None:
        with WALWriter(self.log, size_limit=LIMIT) as another:
            self.put(another)

    def read(self) -> None:
        self.reader.read_entry()

    def calls(self) -> dict[str, Callable[[], object]]:
        return {
            "put": lambda: self.put(self.writer),
            "put through another writer": lambda: self.put(self.other),
            "sync": lambda: self.writer.sync(),
            "rotate": lambda: self.writer.rotate(),
            "checkpoint": lambda: self.writer.checkpoint(0),
            "prune": lambda: self.writer.prune(),
            "snapshot": lambda: self.metrics.snapshot(),
            "snapshot of the writer": lambda: self.writer.metrics.snapshot(),
            "read": self.read,
            "open": self.open_another,
            "close": self.close,
        }


OUTER = ("put", "sync", "rotate", "checkpoint", "snapshot", "read", "open", "close")


def interrupt_everything(
    channel: Channel, log: Path, mode: SyncMode, outer: str, step: int, by_core: bool, inner: tuple[str, ...] = ()
) -> tuple[list[bytes], list[bytes], Counter[str]]:
    with appends_by(by_core):
        return _interrupt_everything(log, mode, outer, step, inner)


def _interrupt_everything(
    log: Path, mode: SyncMode, outer: str, step: int, inner: tuple[str, ...]
) -> tuple[list[bytes], list[bytes], Counter[str]]:
    warnings.simplefilter("error")
    actors = Actors(log, mode)
    ends: Counter[str] = Counter()

    def handle() -> None:
        name = names[ends.total() % len(names)]
        assert not any(thread.name == "held" for thread in threading.enumerate())
        try:
            calls[name]()
            ends[f"{name}: worked"] += 1
        except (LogBusy, LogClosed) as error:
            ends[f"{name}: {type(error).__name__}"] += 1

    calls = actors.calls()
    # "put" does most harm where it should be refused.
    names = inner or tuple(name for other in calls for name in ("put", other))
    n = 1
    while True:
        at = Interruption(n, handle, bytecodes=False)
        with contextlib.suppress(LogClosed, LogBusy):
            at.during(calls[outer])
        assert not held_by_this_thread()
        if not at.came:
            break
        if actors.writer._handle.closed:
            actors.writer = actors.open()
        n += step
    actors.writer.close()
    actors.other.close()
    actors.reader.close()
    return actors.acknowledged, actors.raised, ends


@pytest.mark.parametrize("outer", ["checkpoint", "prune"])
def test_the_lock_of_maintenance_is_known_to_be_ours_whenever_it_is(child: Start, memory: Path, outer: str) -> None:
    """Also between the system's call that takes it and our hearing of it."""
    log = memory / "log"
    _, _, ends = child(interrupt_everything, log, SyncMode.NORMAL, outer, 1, False, ("prune", "checkpoint")).result()
    assert ends["prune: LogBusy"] > 2 and ends["checkpoint: LogBusy"] > 2, ends
    assert ends["prune: worked"] > 2 and ends["checkpoint: worked"] > 2, ends


@pytest.mark.parametrize("mode", list(SyncMode))
@pytest.mark.parametrize(
    "outer", [pytest.param(name, marks=() if name in ("put", "close") else pytest.mark.slow) for name in OUTER]
)
def test_a_call_in_the_middle_of_a_call_works_or_says_busy(
    child: Start, memory: Path, mode: SyncMode, outer: str
) -> None:
    log = memory / "log"
    step = {"put": 1, "read": 1, "open": 23}.get(outer, 3)
    acknowledged, raised, ends = child(interrupt_everything, log, mode, outer, step, False).result()
    judge_ends(log, acknowledged, raised)
    assert sum(ends.values()) > 10, ends
    assert any(end.endswith("worked") for end in ends), ends


def judge_ends(log: Path, acknowledged: list[bytes], raised: list[bytes]) -> None:
    found = Counter(entry.key for entry in read_log(log))
    assert not [key for key in acknowledged if found[key] != 1], "acknowledged, and not there once"
    assert not [key for key in raised if found[key]], "raised, and there all the same"


@pytest.mark.parametrize("mode", list(SyncMode))
@pytest.mark.parametrize("outer", ["put", "close"])
def test_a_call_in_the_middle_of_one_that_the_core_does_works_or_says_busy(
    child: Start, memory: Path, mode: SyncMode, outer: str
) -> None:
    log = memory / "log"
    acknowledged, raised, ends = child(interrupt_everything, log, mode, outer, 1, True).result()
    judge_ends(log, acknowledged, raised)
    assert any(end.endswith("worked") for end in ends), ends


def append_in_signals(channel: Channel, log: Path, mode: SyncMode) -> tuple[int, int, int]:
    """How many a handler appended, was told that it cannot, and the main program appended."""
    worked, busy, main = [0], [0], 0
    ended: list[None] = []
    with WALWriter(log, mode) as writer:

        def handler(number: int, frame: object) -> None:
            if ended:
                return
            try:
                writer.put(b"signal", b"")
                worked[0] += 1
            except LogBusy as error:
                assert not error.lsns
                busy[0] += 1
            signal.setitimer(signal.ITIMER_REAL, 2e-4)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 2e-4)
        while worked[0] + busy[0] < 300:
            writer.put(b"main", b"")
            main += 1
        ended.append(None)  # some may have come since the last look, and one that is under way does not start the next
        signal.setitimer(signal.ITIMER_REAL, 0)
    return worked[0], busy[0], main


@pytest.mark.parametrize("mode", list(SyncMode))
def test_a_signal_handler_appends_with_the_writer_that_it_interrupts_or_hears_busy(
    child: Start, memory: Path, mode: SyncMode
) -> None:
    worked, busy, main = child(append_in_signals, memory / "log", mode).result()
    assert worked + busy >= 300  # a slow put of the main program's is interrupted more than once
    assert Counter(entry.key for entry in read_log(memory / "log")) == Counter(signal=0) | Counter(
        {b"signal": worked, b"main": main}
    )


def close_at_a_signal(channel: Channel, log: Path) -> None:
    writer = WALWriter(log)

    def handler(number: int, frame: object) -> None:
        writer.close()
        sys.exit(0)

    signal.signal(signal.SIGTERM, handler)
    try:
        channel.send("up")
        while True:
            writer.put(b"key", b"")
    except SystemExit as end:
        os._exit(end.code)


def test_the_usual_orderly_end_at_a_signal_is_one(child: Start, memory: Path) -> None:
    for _ in range(5):
        appending = child(close_at_a_signal, memory / "log")
        assert appending.receive() == "up"
        os.kill(appending.pid, signal.SIGTERM)
        assert appending.died() == 0
        with WALWriter(memory / "log", lock_timeout=1) as writer:
            assert len(writer.metrics.snapshot().writers) == 1, "its slot is free"


class Freed:
    """Part of a cycle, and so freed whenever the collector comes by."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.me = self
        self.then = then

    def __del__(self) -> None:
        with contextlib.suppress(LogBusy):
            self.then()


def append_in_finalisers(channel: Channel, log: Path) -> int:
    gc.set_threshold(7)
    with WALWriter(log) as writer:
        for _ in range(2_000):
            Freed(lambda: writer.put(b"freed", b""))
            writer.put(b"key", b"")
        gc.collect()
        return writer.sync()


def test_a_finaliser_appends_or_hears_busy(child: Start, memory: Path) -> None:
    last = child(append_in_finalisers, memory / "log").result()
    assert last >= 2_000
    assert len(read_log(memory / "log")) == last


def forget_writers(channel: Channel, log: Path) -> int:
    """Writers that nobody closed, freed in the middle of an append on their log: what they buffered is kept."""
    warnings.simplefilter("ignore", ResourceWarning)
    gc.disable()

    def forget() -> None:
        forgotten = WALWriter(log, SyncMode.NONE, linger_s=3600.0)
        forgotten.put(b"forgotten", b"")
        forgotten.__dict__["me"] = forgotten

    with WALWriter(log) as writer:
        n = 1
        while True:
            forget()
            at = Interruption(n, gc.collect, bytecodes=False)
            at.during(lambda: writer.put(b"key", b""))
            gc.collect()
            if not at.came:
                at_exit._close_all()  # as when a process ends in order
                return (n + 8) // 9
            n += 9


def test_a_writer_that_is_freed_in_the_middle_of_an_append_loses_nothing(child: Start, memory: Path) -> None:
    count = child(forget_writers, memory / "log").result()
    found = Counter(entry.key for entry in read_log(memory / "log"))
    assert found == {b"forgotten": count, b"key": count}


@contextlib.contextmanager
def logged_to(writer: WALWriter) -> Iterator[list[list[object]]]:
    """Everything walpool logs is appended to the log it is about; which locks were held then."""
    held: list[list[object]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            held.append(held_by_this_thread())
            with contextlib.suppress(LogBusy):
                writer.put(b"logged", record.getMessage().encode())

    handler = Handler()
    logging.getLogger("walpool").addHandler(handler)
    try:
        yield held
    finally:
        logging.getLogger("walpool").removeHandler(handler)


def log_into_the_log(channel: Channel, log: Path) -> int:
    import fcntl

    writer = WALWriter(log, SyncMode.NONE, lock_timeout=0.02, linger_s=0.01)
    with logged_to(writer) as held, (log / "append.lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        writer.put(b"key", b"")
        from tests.support import until

        until(lambda: bool(held), "the buffer says that it cannot be appended")
        fcntl.flock(lock, fcntl.LOCK_UN)
        writer.close()
        assert not any(held), held
        return len(held)


def test_a_logging_handler_that_appends_to_the_log_hangs_nobody(child: Start, memory: Path) -> None:
    assert child(log_into_the_log, memory / "log").result() >= 1
    found = Counter(entry.key for entry in read_log(memory / "log"))
    assert found[b"key"] == 1 and found[b"logged"] >= 1
