"""Cursors under kills, errors and interrupts: at every call that one makes, from its opening to its close.

Afterwards it can be opened at once, is where it was committed last, or was being committed, and hands out what follows.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.crash.faults import Trace, failing_at, watched
from tests.crash.taps import Call, tapped
from tests.support import open_under, reap
from walpool import Cursor, CursorGroup, Retention, SyncFailed, WALError, WALReader, WALWriter
from walpool.options import WriterOptions
from walpool.upkeep.cursors import delete_cursor, set_cursor

RULE = Retention(max_segments=1)
OPTIONS = WriterOptions(lock_timeout=5)
LIMIT = 700
BEGUN, DONE, SYNCED = 1, 2, 3  # of a commit
Tell = Callable[[int, int], object]
each_step = pytest.mark.parametrize("step", [9, pytest.param(4, marks=pytest.mark.slow)])  # from a call to the next


def consume(log: Path, tell: Tell) -> None:
    """A life of a cursor: commits with and without a sync, a prune, another life; and that of a member of a group."""
    for _ in range(2):
        with Cursor(log, "etl", lock_timeout=5) as cursor:
            for entry in cursor.follow(timeout=0):
                tell(BEGUN, entry.lsn)
                cursor.commit(entry.lsn, sync=entry.lsn % 3 != 0)
                tell(DONE if entry.lsn % 3 == 0 else SYNCED, entry.lsn)
                if entry.lsn % 4 == 0:
                    break
            for batch in cursor.batches():
                tell(BEGUN, batch.entries[-1].lsn)
                cursor.commit(batch.entries[-1].lsn)
                tell(SYNCED, batch.entries[-1].lsn)
                break
    with CursorGroup(log, "group", 2, lock_timeout=5) as group:
        for entry in group.follow(timeout=0):
            group.commit(entry.lsn)


class Log:
    """What a cursor's consumers have been told, and what must be so."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.told = {BEGUN: 0, DONE: 0, SYNCED: 0}
        self.values: list[bytes] = []

    def tell(self, what: int, lsn: int) -> None:
        self.told[what] = max(self.told[what], lsn)

    def grow(self, writer: WALWriter, count: int = 8) -> None:
        for _ in range(count):
            self.values.append(b"%d" % len(self.values) * 20)
            writer.put(self.values[-1][:9], self.values[-1])

    def check(self, last_lsn: int) -> None:
        with Cursor(self.log, "etl", lock_timeout=5) as cursor:
            position = cursor.position
            assert max(self.told[DONE], self.told[SYNCED]) <= position <= self.told[BEGUN], f"{position} of {self.told}"
            found = [(entry.lsn, entry.value) for entry in cursor.follow(timeout=0)]
            assert found == [(lsn, self.values[lsn - 1]) for lsn in range(position + 1, last_lsn + 1)]
            if last_lsn - position > 20:
                position = cursor.commit(last_lsn - 12)
        self.told = dict.fromkeys(self.told, position)
        with CursorGroup(self.log, "group", 2, lock_timeout=5) as group:
            lsns = [entry.lsn for entry in group.follow(timeout=0)]
            assert len(set(lsns)) == len(lsns) and set(lsns) <= {*range(1, last_lsn + 1)}
            group.commit(last_lsn)


def held(log: Path) -> list[str]:
    """The files that are open, but for segments: the writer's own is another one after a rotation."""
    return [name for name in open_under(log) if not name.endswith(".wal")]


def victim(log: Path, at: int, after: bool, fd: int) -> None:
    """Die at the call with that number."""
    number = 0

    def tap(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal number
        number += 1
        if number == at and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        mine = number
        try:
            return call(*args, **kwargs)
        finally:
            if mine == at:
                os.kill(os.getpid(), signal.SIGKILL)

    with tapped(tap):
        consume(log, lambda what, lsn: os.write(fd, bytes((what,)) + lsn.to_bytes(8, "little")))


@each_step
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_call_loses_no_commit_and_skips_no_entry(memory: Path, seed: int, step: int, after: bool) -> None:
    log = Log(memory / "events.wal")
    with WALWriter(log.log, size_limit=LIMIT, retention=RULE) as writer:
        at, killed = -(seed % step), 0
        while True:
            at += step
            log.grow(writer, 5)
            if at // step % 20 == 1:
                delete_cursor(log.log, "etl", OPTIONS)  # the next victim makes it
                set_cursor(log.log, "group", len(log.values) - 5, OPTIONS)
                with Cursor(log.log, "etl") as cursor, WALReader(log.log) as reader:
                    writer.sync()
                    log.told = dict.fromkeys(log.told, cursor.commit(reader.first_lsn - 1))
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    victim(log.log, at, after, writing)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            os.close(writing)
            with os.fdopen(reading, "rb") as answers:
                while answer := answers.read(9):
                    log.tell(answer[0], int.from_bytes(answer[1:], "little"))
            code = reap(pid)
            log.check(len(log.values))
            writer.prune()
            if not code:
                break
            assert code == -signal.SIGKILL
            killed += 1
    assert killed > 200 // step


@each_step
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_of_any_call_is_one_of_walpools_and_harms_nothing(
    memory: Path, seed: int, step: int, code: int
) -> None:
    log = Log(memory / "events.wal")
    number, failed = -(seed % step), 0
    hit = "the first"
    while hit:
        with WALWriter(log.log, size_limit=LIMIT) as writer, suppress(SyncFailed):  # then whoever comes next recovers
            while hit:
                number += step
                log.grow(writer, 5)
                before = held(log.log)
                with failing_at(number - 1, code) as trace:
                    try:
                        consume(log.log, log.tell)
                    except WALError as error:
                        failed += 1
                        log.told[DONE] = 0  # a failed sync takes back what was committed without one
                        assert not isinstance(error, ValueError), (trace.hit, error)
                    except OSError as error:
                        raise AssertionError(f"{trace.hit}: {error!r} is not walpool's") from error
                hit = trace.hit
                assert held(log.log) == before or (gc.collect() and held(log.log) == before), trace.hit
                log.check(len(log.values))
    assert failed > 100 // step


@each_step
def test_an_interrupt_in_any_call_leaves_no_lock_and_no_descriptor(memory: Path, seed: int, step: int) -> None:
    log = Log(memory / "events.wal")
    with WALWriter(log.log, size_limit=LIMIT) as writer:
        number, interrupted = seed % step, 0
        while True:
            log.grow(writer, 5)
            before = held(log.log)
            came = False

            def strike(now: int, name: str, number: int = number) -> None:
                nonlocal came
                if now == number and not came:
                    came = True
                    raise KeyboardInterrupt

            trace: Trace
            with watched(strike) as trace:
                try:
                    consume(log.log, log.tell)
                except KeyboardInterrupt:
                    interrupted += 1
            assert held(log.log) == before or (gc.collect() and held(log.log) == before), trace.hit
            log.check(len(log.values))
            if not trace.hit:
                break
            number += step
    assert interrupted > 200 // step
