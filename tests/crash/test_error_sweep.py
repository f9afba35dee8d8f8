"""Each system call fails, once, each time it is made: an append is acknowledged and there, or refused and not there."""

from __future__ import annotations

import errno
import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crash.taps import NAMES, FailOnce, ShortWrite, tapped
from tests.support import Ack, Channel, Start, append_op, judge, open_fds
from walpool import LogFull, SyncFailed, SyncMode, WALError, WALReader, WALWriter
from walpool.system.locks import LOCK_UN, try_lock

LIMIT = 1200
ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EACCES, errno.EROFS, errno.EINTR]  # and EIO, always
NO_BLOCKS = {"fstat", "stat", "flock", "fcntl", "listdir"}  # calls that touch neither blocks nor permissions


class Case:
    """One run of the script, with one fault in it. What is not as it must be goes to `wrong`."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.acks: list[Ack] = []
        self.in_doubt: list[int] = []
        self.wrong: list[str] = []
        self.failed = 0
        self.op = 0

    def run(self) -> None:
        with_writer = [
            (SyncMode.NORMAL, [self.append] * 5 + [self.sync] + [self.append] * 3 + [self.rotate, self.append]),
            (SyncMode.FULL, [self.append] * 7),
        ]
        for mode, steps in with_writer:
            writer = self.open(mode)
            for step in steps:
                if self.attempt(lambda step=step, writer=writer: step(writer)) is SyncFailed:
                    self.attempt(writer.close)
                    writer = self.open(mode)  # which recovers
            self.attempt(writer.close)

    def open(self, mode: SyncMode) -> WALWriter:
        """One fault can refuse one opening; the next must be granted."""
        opened: list[WALWriter] = []
        for _ in range(2):
            self.attempt(lambda: opened.append(WALWriter(self.log, mode, LIMIT)))
            if opened:
                return opened[0]
        raise AssertionError(f"two openings were refused for one fault: {self.wrong}")

    def attempt(self, step: Callable[[], object]) -> type[BaseException] | None:
        """What it raised. Only errors of walpool's own kind may come out."""
        try:
            step()
        except WALError as error:
            self.failed += 1
            return type(error)
        except Exception as error:
            self.failed += 1
            self.wrong.append(f"an error that is not walpool's: {error!r}")
            return type(error)
        return None

    def append(self, writer: WALWriter) -> None:
        self.op += 1
        try:
            lsns = append_op(writer, "w", self.op)
        except SyncFailed:
            self.in_doubt.append(self.op)  # it was appended, and may not be on disk
            raise
        self.acks.append(Ack(self.op, lsns.start, lsns.stop))

    def sync(self, writer: WALWriter) -> None:
        writer.sync()

    def rotate(self, writer: WALWriter) -> None:
        writer.rotate()


def check(case: Case) -> None:
    """The log holds what was acknowledged; nobody holds a lock; the log can be used."""
    try:
        with WALWriter(case.log, size_limit=LIMIT, lock_timeout=5) as writer:
            case.append(writer)
            writer.sync()
            rows = writer.metrics.snapshot().writers
            assert len(rows) == 1, f"slots are still held: {rows}"
        for name in ("append.lock", "sync.lock"):
            fd = os.open(case.log / name, os.O_RDWR)
            free = try_lock(fd)
            os.close(fd)
            assert free, f"{name} is still held"
        with WALReader(case.log) as reader:
            entries = reader.read_all()
        judge(entries, {"w": case.acks}, {"w": case.in_doubt})
    except (AssertionError, WALError) as error:
        case.wrong.append(f"afterwards: {error!r}")


def faults(kind: str, n: int) -> Iterator[tuple[str, Any]]:
    if kind == "short":
        yield "half of it, then the rest", ShortWrite(n, lambda size: size // 2)
        yield "all but one byte, then the rest", ShortWrite(n, lambda size: size - 1)
        yield "one byte, then no space", ShortWrite(n, lambda size: 1, errno.ENOSPC)
        yield "half of it, then EIO", ShortWrite(n, lambda size: size // 2, errno.EIO)
        yield "nothing", ShortWrite(n, lambda size: 0)
    else:
        others = [ERRORS[n * 2 % 6], ERRORS[n * 2 % 6 + 1]]  # in turn: many calls are made at each place
        if kind in NO_BLOCKS:
            others = [errno.EMFILE]
        elif kind == "close":
            others = []
        for error in (errno.EIO, *others):
            yield errno.errorcode[error], FailOnce(kind, n, error)


def left_open(before: dict[int, str]) -> set[str]:
    gc.collect()
    return {path for fd, path in open_fds().items() if fd not in before}


def sweep_errors(channel: Channel, folder: Path, kinds: list[str]) -> tuple[int, list[str]]:
    """How many faults were injected, and what came out wrong."""
    injected = 0
    wrong: list[str] = []
    gc.freeze()  # what was imported is no garbage: a collection has only our own to look at
    for kind in kinds:
        n = 0
        hit = True
        while hit:
            n += 1
            hit = False
            for name, fault in faults(kind, n):
                log = folder / "events.wal"
                before = open_fds()
                case = Case(log)
                with tapped(fault):
                    try:
                        case.run()
                    except AssertionError as error:
                        case.wrong.append(str(error))
                hit = hit or fault.hit
                injected += fault.hit
                check(case)
                if left := left_open(before):
                    case.wrong.append(f"descriptors are left open: {left}")
                wrong += [f"{kind} call {n} fails with {name}: {one}" for one in case.wrong]
                shutil.rmtree(log)
        channel.send(kind)
    return injected, wrong


GROUPS = {
    "writes": ["pwrite", "short"],
    "opens": ["open"],
    "syncs": ["fsync", "fdatasync"],
    "locks": ["flock", "fcntl", "mmap"],
}
GROUPS["others"] = [name for name in NAMES if not any(name in group for group in GROUPS.values())]


@pytest.mark.parametrize("group", GROUPS)
def test_one_call_that_fails_refuses_at_most_one_append_and_leaves_nothing_behind(
    child: Start, memory: Path, group: str
) -> None:
    sweeping = child(sweep_errors, memory, GROUPS[group])
    while True:
        kind, value = sweeping.next()
        if kind == "result":
            break
    injected, wrong = value
    assert not wrong, f"{len(wrong)} of {injected} faults:\n" + "\n".join(wrong[:40])
    assert injected > 10


def test_the_calls_that_are_failed_are_all_there_are() -> None:
    assert {"open", "pwrite", "fdatasync", "fsync", "rename", "flock", "mmap", "fchmod"} <= set(NAMES)


def test_a_write_that_keeps_failing_is_refused_each_time_and_works_again_afterwards(log: Path) -> None:
    full = False

    def tap(name: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if full and name == "pwrite":
            fd, data, offset = args
            call(fd, bytes(data)[:7], offset)
            raise OSError(errno.ENOSPC, "full")
        return call(*args, **kwargs)

    with tapped(tap), WALWriter(log) as writer:
        assert writer.put(b"a", b"") == 1
        size = writer.size
        full = True
        for _ in range(3):
            with pytest.raises(LogFull) as refused:
                writer.put(b"refused", b"")
            assert refused.value.errno == errno.ENOSPC
        assert writer.size == size
        full = False
        assert writer.put(b"b", b"") == 2
    with WALReader(log) as reader:
        assert [bytes(entry.key) for entry in reader] == [b"a", b"b"]


def test_an_unlock_is_not_among_the_calls_that_fail(log: Path) -> None:
    fault = FailOnce("flock", 0, errno.EIO)
    with tapped(fault), WALWriter(log) as writer:
        before = fault.count
        writer.put(b"k", b"v")
        assert fault.count == before + 1, f"one lock, and an unlock ({LOCK_UN}) that does not count"
