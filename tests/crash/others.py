"""The other actors of an interleaving: processes that do one whole operation when they are told to, and say how it was.

`DONE`: all of it; `BLOCKED`: the one that stands still has a lock, and it was given up at once; `REFUSED`: there is
nothing to do it with, or it must not be done now. Anything else that comes of an operation is a finding.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash.power_cut import after_a_reboot, await_coordinators
from tests.crash.scripts import LIMIT
from tests.crash.sweep import PATIENCE_S, Point, in_child, run_with
from tests.crash.witness import Witness
from tests.support import MAPPED, Ack, append_op, entries_of, judge, reap, run_threads
from walpool import (
    ControlUnusable,
    LogBusy,
    LogClosed,
    LogNotFound,
    Retention,
    SyncMode,
    UnsafeLog,
    WALMetrics,
    WALReader,
    WALWriter,
    copy,
)
from walpool.opening import opening
from walpool.read import source
from walpool.upkeep.verify import verify
from walpool.write import coordinator
from walpool.write.committer import Committer

DONE, BLOCKED, REFUSED = "done", "blocked", "refused"
KEPT = 2  # segments that a prune leaves

Nested = tuple[Point, str] | None  # what the third actor does in the middle of it, and where


class Actor:
    """A process of that kind, as all others see it: one asks at a time, also one that was forked from us."""

    def __init__(self, kind: Callable[..., Any], *args: Any) -> None:
        self._connection, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._connection.close()
            in_child(lambda: _serve(kind(*args), theirs))
        theirs.close()

    def ask(self, what: str, *args: Any) -> Any:
        self._connection.send((what, args))
        assert self._connection.poll(PATIENCE_S), f"another hangs in {what} {args[:1]}"
        fault, answer = self._connection.recv()
        assert not fault, answer
        return answer

    def end(self) -> None:
        """Whatever it is in."""
        self._connection.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, 9)  # ours, and not reaped yet
        reap(self.pid)


def _serve(actor: Any, connection: Connection) -> None:
    coordinators_in_turn()
    opening.TRANSIENT_S = 0.0  # who stands still does not let go of its slot however long one waits,
    source.CONFIRM_S = 0.01  # or end its append,
    settle = Committer.settle  # or its sync: in the background, too
    Committer.settle = lambda self, lsn, *, background=False: settle(self, lsn)  # type: ignore[method-assign]
    while True:
        try:
            what, args = connection.recv()
        except EOFError:
            return
        try:
            answer = getattr(actor, what)(*args)
        except AssertionError as error:
            connection.send((True, str(error)))
        except BaseException:
            connection.send((True, traceback.format_exc()))
        else:
            connection.send((False, answer))


def coordinators_in_turn() -> None:
    """In this process they have done what they are woken for when the call that woke them returns."""
    wake = coordinator.Coordinator.wake

    def wake_and_wait(woken: coordinator.Coordinator) -> None:
        wake(woken)
        await_coordinators()

    coordinator.Coordinator.wake = wake_and_wait  # type: ignore[method-assign]


class Other:
    """Does operations. Each takes the author's next number, and has its acknowledgements in `acks`."""

    def __init__(self, third: Actor | None = None) -> None:
        self._third = third
        self.acks: dict[str, list[Ack]] = {}

    def begin(self, log: Path, author: str, open_at_once: bool) -> None:
        self.log = log
        self.author = author
        self.acks = {author: []}
        self._op = self._opened = 0
        self._writers: list[WALWriter] = []
        self._readers: list[WALReader[bytes]] = []
        self._metrics: WALMetrics | None = None
        self._next_lsn = 1  # by snapshots
        if open_at_once:
            self._writer()

    def do(self, what: str, nested: Nested = None) -> list[tuple[str, str]]:
        """The operation, and what was done in the middle of it; how each went."""
        went: list[tuple[str, str]] = []

        def run() -> None:
            try:
                went.append((what, OPERATIONS[what](self) or DONE))
            except LogBusy as error:
                if error.lsns:
                    self._told(error.lsns)  # it is appended; whoever leads the sync stands still
                went.append((what, BLOCKED))
            except (LogNotFound, ControlUnusable):
                went.append((what, REFUSED))
            except UnsafeLog as error:
                # Somebody of another boot has the log open, or stands still in a recovery that replaces a torn segment.
                assert "of another boot" in error.reason or "hard links" in error.reason, error
                went.append((what, REFUSED))

        if nested is None:
            run()
        else:
            point, theirs = nested
            third = self._third
            assert third is not None
            run_with(point.death(lambda: went.extend(third.ask("do", theirs))), run)
        return went

    def finish(self) -> dict[str, list[Ack]]:
        """What it was told, when its readers have read to the end."""
        self._read_all()
        for each in (*self._readers, *self._writers, self._metrics):
            if each is not None:
                each.close()
        shutil.rmtree(self._copy, ignore_errors=True)
        return self.acks

    # Operations

    def append(self) -> None:
        self._append(self._writer())

    def batch(self) -> None:
        self._op += 6 - self._op % 7
        self._append(self._writer())

    def append_durably(self) -> None:
        with self._open(SyncMode.FULL) as writer:
            self._append(writer)

    def fill(self) -> None:
        """Until a segment is full."""
        writer = self._writer()
        with WALMetrics.attach(self.log) as metrics:
            before = metrics.snapshot().rotation_count
            while metrics.snapshot().rotation_count == before:
                self._append(writer)

    def sync(self) -> None:
        writer = self._writer()
        durable_lsn = writer.sync()
        told = max((ack.end_lsn for ack in self.acks[self.author]), default=1)
        assert durable_lsn >= told - 1, f"sync() says {durable_lsn}, and before it {told - 1} was appended"

    def rotate(self) -> None:
        self._writer().rotate()

    def checkpoint(self) -> None:
        writer = self._writer()
        lsn = writer.metrics.snapshot().next_lsn - 1
        assert writer.checkpoint(lsn) >= lsn

    def prune(self) -> None:
        with self._open(retention=Retention(max_segments=KEPT)) as writer:
            writer.prune()

    def open(self) -> None:
        self._writers.append(self._open())

    def open_after_reboot(self) -> None:
        """As far as it can tell: nobody's block is made anew while anybody has the log open."""
        with after_a_reboot(), self._open() as writer:
            self._append(writer)

    def fork(self) -> str:
        """The child appends through what it has inherited, and is gone."""
        writer = self._writer()
        name = f"{self.author}f{len(self.acks)}"
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:

            def append() -> None:
                with suppress(LogBusy):
                    os.write(write_end, append_op(writer, name, 0).start.to_bytes(8))

            in_child(append)
        os.close(write_end)
        told = os.read(read_end, 8)
        os.close(read_end)
        assert reap(pid) == 0, "the forked child failed"
        lsn = int.from_bytes(told)
        self.acks[name] = [Ack(0, lsn, lsn + 1)] if told else []
        return DONE if told else BLOCKED

    def close(self) -> None:
        self._writer()
        while self._writers:
            self._writers.pop().close()

    def put_beside_close(self) -> None:
        writer = self._writer()
        self._writers.remove(writer)

        def put() -> None:
            with suppress(LogClosed):
                self._append(writer)

        busy: list[LogBusy] = []

        def put_or_busy() -> None:
            try:
                put()
            except LogBusy as error:
                busy.append(error)

        try:
            run_threads(put_or_busy, writer.close)
        except LogBusy:
            writer.close()
        if busy:
            raise busy[0]

    def snapshot(self) -> None:
        if self._metrics is None:
            self._metrics = WALMetrics.attach(self.log)
        found = self._metrics.snapshot()
        assert found.next_lsn >= self._next_lsn, f"the next LSN was {self._next_lsn}, and is {found.next_lsn}"
        assert found.durable_lsn < found.next_lsn, found
        self._next_lsn = found.next_lsn

    def pin(self) -> None:
        reader = WALReader(self.log, pin=True)
        self._readers.append(reader)
        reader.read_entry()

    def read_on(self) -> None:
        """Whoever has a pin misses nothing."""
        if not self._readers:
            self.pin()
        self._read_all()

    def _read_all(self) -> None:
        for reader in self._readers:
            first_lsn = reader.next_lsn
            lsns = [entry.lsn for entry in reader.read_all()]
            assert lsns == list(range(first_lsn, first_lsn + len(lsns))), f"from {first_lsn} on come {lsns}"

    def look_for_damage(self) -> None:
        report = verify(self.log)
        assert not [each for each in report.findings if each.kind in ("DAMAGE", "GAP")], report

    def copy(self) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)
        copy(self.log, self._copy)
        with WALReader(self._copy) as reader:
            assert all(entry.lsn for entry in reader)

    # What they are made of

    @property
    def _copy(self) -> Path:
        return self.log.with_name(f"copy of {self.author}")

    def _open(self, mode: SyncMode = SyncMode.NORMAL, retention: Retention | None = None) -> WALWriter:
        self._opened += 1
        mapped = MAPPED and mode is SyncMode.NORMAL and self._opened % 2 == 0
        return WALWriter(self.log, mode, LIMIT, lock_timeout=0, retention=retention, mapped=mapped)

    def _writer(self) -> WALWriter:
        if not self._writers:
            self.open()
        return self._writers[-1]

    def _append(self, writer: WALWriter) -> None:
        self._told(append_op(writer, self.author, self._op))

    def _told(self, lsns: range) -> None:
        self.acks[self.author].append(Ack(self._op, lsns.start, lsns.stop))
        self._op += 1


OPERATIONS: dict[str, Callable[[Other], str | None]] = {
    "append": Other.append,
    "batch": Other.batch,
    "append durably": Other.append_durably,
    "fill": Other.fill,
    "sync": Other.sync,
    "rotate": Other.rotate,
    "checkpoint": Other.checkpoint,
    "prune": Other.prune,
    "open": Other.open,
    "open after a reboot": Other.open_after_reboot,
    "fork": Other.fork,
    "close": Other.close,
    "put beside close": Other.put_beside_close,
    "snapshot": Other.snapshot,
    "pin": Other.pin,
    "read on": Other.read_on,
    "verify": Other.look_for_damage,
    "copy": Other.copy,
}


class Found(NamedTuple):
    """What the last look of all has to be compared with."""

    acks: dict[str, list[Ack]]
    doubt: dict[str, range]
    removal: bool  # whether segments may be gone
    recovery: bool  # whether the last opening may have to recover


class Third(Other):
    """Has the log open all the time, in slot 0, and looks; does an operation now and then; and judges in the end."""

    def begin_watch(self, log: Path, lone: bool, read_late: bool) -> None:
        """With `lone` it makes the log, with something in it. `read_late`: its pin stays where it is for a while."""
        self._lone = WALWriter(log, size_limit=LIMIT) if lone else None
        self._witnesses = [Witness(log), Witness(log, pin=True)]
        before = []
        if self._lone is not None:
            for op in range(9):
                lsns = append_op(self._lone, "before", op)
                before.append(Ack(op, lsns.start, lsns.stop))
                if op in (3, 7):
                    self._lone.sync()
                if op == 2 and read_late:
                    self._witnesses[1].look()
        self.look(not read_late)
        self.begin(log, "third", False)
        if before:
            self.acks["before"] = before

    def look(self, pinned: bool) -> None:
        for witness in self._witnesses[: 1 + pinned]:
            witness.look()

    def durable_lsn(self) -> int:
        """0: nobody says."""
        try:
            with WALMetrics.attach(self.log) as metrics:
                return metrics.snapshot().durable_lsn
        except (LogNotFound, ControlUnusable):
            return 0

    def died(self, author: str) -> None:
        self.look(False)
        if self._lone is not None:
            self._witnesses[0].ended(author)

    def judge(self, found: Found) -> None:
        acks = found.acks | self.finish()
        self.look(True)
        with self._open() as writer:
            recovered = writer.recovery_report
            assert recovered is None or found.recovery, f"the log had to be recovered: {recovered}"
            self.look(True)
            lsns = append_op(writer, "after", 0)
            writer.sync()
            living = [row.slot for row in writer.metrics.snapshot().writers]
            assert len(living) == 1 + (self._lone is not None), f"slots {living} are held"
        self.look(True)
        acks["after"] = [Ack(0, lsns.start, lsns.stop)]
        first_lsn = min(int(path.stem) for path in self.log.glob("*.wal"))
        assert first_lsn == 1 or found.removal, f"the log begins with {first_lsn}"
        with WALReader(self.log, start=first_lsn) as reader:
            entries = reader.read_all()
        there = {author: [ack for ack in theirs if ack.first_lsn >= first_lsn] for author, theirs in acks.items()}
        judge(entries, there, found.doubt, first_lsn)
        for witness in self._witnesses:
            witness.holds(entries, first_lsn)
            witness.close()
        if self._lone is not None:
            self._lone.close()


assert entries_of("x", 6)[1:], "what `batch` appends is one"
