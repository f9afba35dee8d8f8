"""Power cuts: what real appends, rotations, recoveries, checkpoints and prunes did to a disk, and what that may leave.

A script works on a log while a `Recorder` writes down what reaches the disk and what its caller is told. Then, for any
moment of it, states that a cut may leave are drawn, put into a directory, and opened as after a reboot. In each: the
entries are those that were appended, in order, whole, from the first that retention may have left to at least the
last that anybody was told is durable; what a checkpoint says is not forgotten, and nothing above it is missing; the log
takes further appends; and recovered once more it is the same. Of some, the recovery itself is recorded and cut.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from tests.crash.disk import PAGE, SECTOR, Disk, Event, Image, Model, Recorder
from tests.crash.taps import untapped
from tests.crash.witness import Witness
from tests.oracle import second
from tests.support import MAPPED, append_op, entries_of, read_log, run_threads
from walpool import Cursor, IOFailed, LogFull, Retention, SyncMode, WALEntry, WALError, WALReader, WALWriter
from walpool.format.names import SLOTS_LOCK
from walpool.shared.checkpoint import read_checkpoint
from walpool.shared.origin import read_origin
from walpool.system import processes
from walpool.system.calls import calls
from walpool.system.files import WRITE, Directory, File
from walpool.system.locks import ByteLocks
from walpool.write import coordinator

LOG = "events.wal"
SHORT = errno.EAGAIN  # stands for a write that does a part
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EACCES, errno.EROFS, errno.EINTR, SHORT, SHORT)
DRAWS = 12  # states of each moment
AGAIN_SHARE = 1 / 8  # of the states, that are recovered twice,
METRICS_SHARE = 1 / 9  # that a writer with metrics recovers
WORK_SHARE = 0.6  # of the times that a coordinator may work, that it does
NESTED_DRAWS = 2  # of each moment of a recovery
NESTED_SHARE = 1 / 60  # of the states, whose recovery is cut too

# What may stand in space that was never written: noise, and the frames of another log.
GOLDEN = Path(__file__).parent.parent / "golden" / "segment-1.0.hex"
STRANGERS = [bytes(range(256)), bytes.fromhex(GOLDEN.read_text())[64:], bytes.fromhex(GOLDEN.read_text())]


# What is recorded


class Told:
    """Appends through a writer, and everything that was asked and answered, in the recorder's order."""

    def __init__(self, recorder: Recorder, log: Path, coordinators: Coordinators) -> None:
        self.recorder = recorder
        self.log = log
        self.coordinators = coordinators
        self.entries: dict[int, WALEntry] = {}  # acknowledged, by LSN
        self._ops = itertools.count()
        self._witness: Witness | None = None

    def look(self) -> None:
        """What a durable follower has been given by now is promised, too."""
        if not self.coordinators.at_once:  # else other threads go on meanwhile
            self._witness = self._witness or Witness(self.log)
            with untapped():
                self.recorder.note("durable", self._witness.look().durable_lsn)

    def close(self) -> None:
        if self._witness is not None:
            self._witness.close()

    def append(self, writer: WALWriter, mode: SyncMode, author: str = "a", large: int = 0) -> None:
        op = next(self._ops)
        entries = entries_of(author, op)
        if large:
            entries = [WALEntry.put(f"{author}/{op}/{n}/{large}".encode(), bytes([op % 251 + 1]) * 700, op)
                       for n in range(large)]  # fmt: skip
        self.recorder.note("begins", len(entries))
        lsns = writer.append_batch(entries) if large else append_op(writer, author, op)
        self.entries.update((lsn, entry._replace(lsn=lsn)) for lsn, entry in zip(lsns, entries, strict=True))
        if mode is SyncMode.FULL:
            self.recorder.note("durable", lsns.stop - 1)
        self.look()

    def sync(self, writer: WALWriter) -> None:
        self.recorder.note("durable", writer.sync())
        self.look()

    def checkpoint(self, writer: WALWriter, lsn: int) -> None:
        self.recorder.note("checkpoint begins", lsn)
        self.recorder.note("checkpoint", writer.checkpoint(lsn))


def next_lsn(writer: WALWriter) -> int:
    return writer.metrics.snapshot().next_lsn


class Coordinators:
    """Work when they are drawn to: at once when they are woken, or between two calls of a script's, or never.

    Threads of their own would work as they are given time, and a seed would give another run each time.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._late: list[coordinator.Coordinator] = []
        self._wake = coordinator.Coordinator.wake
        self.at_once = False  # they are threads as ever
        self.about_to_work: Callable[[], object] = lambda: None

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        with patch.object(coordinator.Coordinator, "wake", lambda woken: self._woken(woken)):
            yield

    def _woken(self, woken: coordinator.Coordinator) -> None:
        if self.at_once:
            self._wake(woken)
        else:
            self._late.append(woken)
            self.may_work()

    def may_work(self) -> None:
        late, self._late = self._late, []
        for woken in late:
            if self._chance.random() < WORK_SHARE:
                self.about_to_work()
                self._wake(woken)
                await_coordinators()
            else:
                self._late.append(woken)


def await_coordinators() -> None:
    for thread in threading.enumerate():
        if thread.name == "walpool-coordinator":
            thread.join()


def stop_coordinators(log: Path) -> File:
    """As if the process that has the role stood still, until the file is closed."""
    file = Directory(log).open(SLOTS_LOCK, WRITE)
    assert ByteLocks(file).try_hold(coordinator.ROLE)
    return file


# Scripts. Each draws what it does from `chance`.

Script = Callable[[Told, random.Random], None]


def append_in_turn(told: Told, chance: random.Random) -> None:
    """Up to three writers, NORMAL and FULL, take turns; with rotations, syncs, large batches, and new writers."""
    limit = chance.choice((700, 1500, 4000))
    modes = [chance.choice((SyncMode.NORMAL, SyncMode.FULL)) for _ in range(chance.randrange(1, 4))]
    writers = [WALWriter(told.log, mode, limit) for mode in modes]
    stopped = stop_coordinators(told.log) if chance.random() < 0.5 else None  # then many segments are not durable
    for _ in range(chance.randrange(8, 22)):
        at = chance.randrange(len(writers))
        writer, mode = writers[at], modes[at]
        match chance.randrange(12):
            case 0:
                told.sync(writer)
            case 1:
                writer.rotate()
            case 2:
                writer.close()
                writers[at] = WALWriter(told.log, mode, limit)
            case 3 if limit >= 1500:
                large = chance.randrange(1, limit // 800 + 1)
                told.append(writer, mode, large=large)
            case _:
                told.append(writer, mode)
        told.coordinators.may_work()
    for writer in writers:
        writer.close()
    if stopped is not None:
        stopped.close()


def append_mapped(told: Told, chance: random.Random) -> None:
    """Writers that store, write, and sync, on one log; now and then what is to be written ahead is refused."""
    limit = chance.choice((700, 1500, 4000))
    kinds = [(SyncMode.NORMAL, True), chance.choice(((SyncMode.NORMAL, False), (SyncMode.FULL, False)))]
    kinds += chance.choice(([], [(SyncMode.NORMAL, True)]))

    def opened(mode: SyncMode, mapped: bool) -> WALWriter:
        return WALWriter(told.log, mode, chance.choice((limit, limit, 2 * limit)), mapped=mapped and MAPPED)

    writers = [opened(*kind) for kind in kinds]
    full_from = chance.choice((1 << 30, chance.randrange(40)))
    writes = itertools.count()

    def fill(name: str) -> int | None:
        if name == "pwrite" and full_from <= next(writes) < full_from + 8:
            if chance.random() < 0.5:
                return chance.randrange(1, 200)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return None

    told.recorder.fault = fill
    for _ in range(chance.randrange(8, 22)):
        at = chance.randrange(len(writers))
        with suppress(LogFull):
            match chance.randrange(12):
                case 0 | 1:
                    told.sync(writers[at])
                case 2:
                    writers[at].rotate()
                case 3:
                    writers[at].close()
                    writers[at] = opened(*kinds[at])
                case 4 if limit >= 1500:
                    told.append(writers[at], kinds[at][0], large=chance.randrange(1, limit // 800 + 1))
                case _:
                    told.append(writers[at], kinds[at][0])
        told.coordinators.may_work()
    told.recorder.fault = lambda name: None
    for writer in writers:
        writer.close()


def append_and_prune(told: Told, chance: random.Random) -> None:
    """Checkpoints, and what they cover removed, one segment at a time or many; segments prepared, taken and trimmed."""
    retention = chance.choice((Retention(), None))
    mode = chance.choice((SyncMode.NORMAL, SyncMode.FULL))
    with WALWriter(told.log, mode, chance.choice((600, 1200)), retention=retention) as writer:
        for _ in range(chance.randrange(10, 30)):
            match chance.randrange(12):
                case 0:
                    told.checkpoint(writer, chance.randrange(next_lsn(writer)))
                case 1:
                    told.checkpoint(writer, next_lsn(writer) - 1)
                    if chance.random() < 0.5:
                        writer.rotate()
                    writer.prune()
                case 2 | 3 | 4:
                    writer.rotate()
                case _:
                    told.append(writer, mode)
            told.coordinators.may_work()


def prune_many(told: Told, chance: random.Random) -> None:
    """Segment after segment is removed, and each removal is durable before the next."""
    with WALWriter(told.log, size_limit=1200, retention=None) as writer:
        for _ in range(chance.randrange(3, 6)):
            told.append(writer, SyncMode.NORMAL)
            writer.rotate()
        told.checkpoint(writer, next_lsn(writer) - 1)
        writer.prune()


def rotate_a_new_log(told: Told, chance: random.Random) -> None:
    """The names of its few segments are hardly on disk; and if a checkpoint covers the first, it is removed at once."""
    with WALWriter(told.log, size_limit=1500, retention=None) as writer:
        for _ in range(chance.randrange(1, 3)):
            told.append(writer, SyncMode.NORMAL)
        covered = chance.random() < 0.5
        if covered:
            told.checkpoint(writer, next_lsn(writer) - 1)
        writer.rotate()
        for _ in range(chance.randrange(2)):
            told.append(writer, SyncMode.NORMAL)
        if covered:
            writer.prune()
        told.coordinators.may_work()


def prune_a_new_log(told: Told, chance: random.Random) -> None:
    """The name of its second segment is nowhere on disk when the first is removed, if nobody sees to it."""
    with WALWriter(told.log, size_limit=1500, retention=None) as writer:
        stopped = stop_coordinators(told.log)
        for _ in range(chance.randrange(1, 3)):
            told.append(writer, SyncMode.NORMAL)
        told.checkpoint(writer, next_lsn(writer) - 1)
        writer.rotate()
        writer.prune()
    stopped.close()


def append_and_lose_the_control_block(told: Told, chance: random.Random) -> None:
    """It is rebuilt in the same boot, while much of the log is in the page cache only."""
    for _ in range(3):
        with WALWriter(told.log, size_limit=chance.choice((700, 1500))) as writer:
            told.sync(writer)
            for _ in range(chance.randrange(2, 8)):
                told.append(writer, SyncMode.NORMAL)
                told.coordinators.may_work()
        os.unlink(told.log / "control")


def append_through_a_failed_sync(told: Told, chance: random.Random) -> None:
    """A sync fails and the pages it was for are never written; the next opening recovers the log, and it goes on."""
    limit = chance.choice((700, 1500, 4000))
    mode = chance.choice((SyncMode.NORMAL, SyncMode.FULL))
    syncs = itertools.count(1)
    failing = chance.randrange(1, 9)

    def fail_one(name: str) -> None:
        if name == "fdatasync" and next(syncs) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    told.recorder.fault = fail_one
    for _ in range(3):
        with suppress(WALError), WALWriter(told.log, mode, limit) as writer:
            for _ in range(chance.randrange(3, 9)):
                if chance.random() < 0.25:
                    told.sync(writer)
                else:
                    told.append(writer, mode)
                told.coordinators.may_work()


def append_through_errors(told: Told, chance: random.Random) -> None:
    """From some call on, one or all fail, or writes are short, for a while; then the disk is well again."""
    limit = chance.choice((700, 1500, 4000))
    mode = chance.choice((SyncMode.NORMAL, SyncMode.FULL))
    error = chance.choice(ERRORS)
    which = (
        "pwrite"
        if error == SHORT
        else chance.choice(("any", "pwrite", "open", "rename", "ftruncate", "fsync", "mkdir", "unlink"))
    )
    first = chance.randrange(60 if which == "any" else 15)
    last = first + chance.choice((1, 1, 3, 30))
    calls_made = itertools.count()

    def fail(name: str) -> int | None:
        if which not in ("any", name) or not first <= next(calls_made) < last:
            return None
        if name == "pwrite" and error == SHORT:
            return chance.randrange(60)
        raise OSError(error, os.strerror(error))

    told.recorder.fault = fail
    for round_ in range(3):
        if round_ == 2:
            told.recorder.fault = lambda name: None
        with suppress(WALError), WALWriter(told.log, mode, limit) as writer:
            for _ in range(chance.randrange(3, 9)):
                with suppress(WALError):
                    match chance.randrange(8):
                        case 0 | 1:
                            told.sync(writer)
                        case 2:
                            writer.rotate()
                        case 3:
                            told.checkpoint(writer, chance.randrange(next_lsn(writer)))
                        case _:
                            told.append(writer, mode)
                told.coordinators.may_work()


def append_from_a_buffer(told: Told, chance: random.Random) -> None:
    with WALWriter(told.log, SyncMode.NONE, 1500, buffer_bytes=chance.choice((200, 900)), linger_s=60) as writer:
        for op in range(chance.randrange(10, 25)):
            entry = WALEntry.put(f"b/{op}/0/1".encode(), b"x" * chance.randrange(120), op)
            told.recorder.note("begins", 1)
            writer.append(entry)
            told.entries[op + 1] = entry._replace(lsn=op + 1)
            if chance.random() < 0.15:
                told.sync(writer)


def append_at_once(told: Told, chance: random.Random) -> None:
    """Three FULL writers in three threads, which share syncs, and append while one is under way."""
    told.coordinators.at_once = True
    told.recorder.sync_takes_s = 100e-6
    writers = [WALWriter(told.log, SyncMode.FULL, 2000) for _ in range(3)]
    count = chance.randrange(4, 9)

    def append(writer: WALWriter, author: str) -> None:
        for _ in range(count):
            told.append(writer, SyncMode.FULL, author)

    run_threads(*[lambda writer=writer, n=n: append(writer, f"t{n}") for n, writer in enumerate(writers)])
    for writer in writers:
        writer.close()


def append_below_new_parents(told: Told, chance: random.Random) -> None:
    """Somebody was killed after making some of them."""
    told.log = told.log.parent / "var" / "lib" / LOG
    if chance.random() < 0.5:
        calls.mkdir(str(told.log.parent.parent), 0o700)
        calls.mkdir(str(told.log.parent), 0o700)
    append_in_turn(told, chance)


def consume(told: Told, chance: random.Random) -> None:
    """A cursor is handed entries and commits them, with a sync or without; what it has not committed is not removed.

    Now and then the sync of a commit fails, and the page is never written: the next commit counts all the same.
    """

    def fail_sync(name: str) -> None:
        if name == "fdatasync":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    mode = chance.choice((SyncMode.NORMAL, SyncMode.FULL))
    recorder = told.recorder
    with WALWriter(told.log, mode, chance.choice((600, 1200))) as writer, ExitStack() as stack:
        told.append(writer, mode)
        cursor = stack.enter_context(Cursor(told.log, "etl"))
        recorder.note("cursor", 0)
        for _ in range(chance.randrange(8, 20)):
            match chance.randrange(10):
                case 0:
                    writer.rotate()
                case 1:
                    told.checkpoint(writer, next_lsn(writer) - 1)
                    writer.prune()
                case 2 | 3 | 4 | 5:
                    for _, entry in zip(range(chance.randrange(1, 5)), cursor.follow(timeout=0), strict=False):
                        recorder.note("durable", entry.lsn)
                        assert entry == told.entries[entry.lsn]
                        if chance.random() < 0.6:
                            sync = chance.random() < 0.5
                            recorder.note("cursor begins", entry.lsn)
                            recorder.fault = fail_sync if sync and chance.random() < 0.15 else lambda name: None
                            with suppress(IOFailed):
                                cursor.commit(entry.lsn, sync=sync)
                            recorder.fault = lambda name: None
                            if sync and cursor.position == entry.lsn:
                                recorder.note("cursor", entry.lsn)
                case 6:
                    cursor.close()
                    recorder.note("cursor", cursor.position)
                    cursor = stack.enter_context(Cursor(told.log, "etl"))
                case _:
                    told.append(writer, mode)
            told.coordinators.may_work()


def prune_by_rules(told: Told, chance: random.Random) -> None:
    """By size, count and age, with a checkpoint or without, beside pins, a copy, and a sync that fails."""
    from tests.crash.rules import Pruned  # late: it needs what is above

    with Pruned(told, chance) as pruned:
        for _ in range(chance.randrange(6, 14)):
            pruned.step()
            told.coordinators.may_work()


SCRIPTS: dict[str, Script] = {
    "turns": append_in_turn,
    "prune": append_and_prune,
    "prune many": prune_many,
    "new log": rotate_a_new_log,
    "prune new log": prune_a_new_log,
    "failed sync": append_through_a_failed_sync,
    "errors": append_through_errors,
    "rebuilt": append_and_lose_the_control_block,
    "buffer": append_from_a_buffer,
    "at once": append_at_once,
    "parents": append_below_new_parents,
    "rules": prune_by_rules,
    "mapped": append_mapped,
    "cursor": consume,
}


class Trace(NamedTuple):
    log: str  # below the root
    events: list[Event]
    entries: list[WALEntry]  # by LSN - 1, as they were appended: also those that are pruned by now


@contextmanager
def the_same_again(chance: random.Random) -> Iterator[Coordinators]:
    """Clocks, random words, and when a coordinator works, all from `chance`."""
    coordinators = Coordinators(chance)
    with (
        patch.object(coordinator, "PREPARE_FROM_BYTES", chance.choice((0, 1 << 20))),
        patch.object(processes, "random_word", lambda: chance.getrandbits(64) | 1 << 32 | 1),
        patch.object(calls, "time_ns", itertools.count(1_700_000_000 * 10**9, 1000).__next__),
        patch.object(calls, "monotonic", itertools.count(0, 1e-6).__next__),
        coordinators.in_turn(),
    ):
        yield coordinators


def record(script: Script, root: Path, chance: random.Random) -> Trace:
    root.mkdir()
    recorder = Recorder(root)
    try:
        with the_same_again(chance) as coordinators, recorder.recording():
            told = Told(recorder, root / LOG, coordinators)
            script(told, chance)
            await_coordinators()
        told.close()
        for entry in _read(told.log)[1]:
            assert told.entries.setdefault(entry.lsn, entry) == entry, "the log is wrong before any cut"
    finally:
        shutil.rmtree(root)
    assert sorted(told.entries) == list(range(1, len(told.entries) + 1))
    return Trace(
        str(told.log.relative_to(root)), recorder.events, [told.entries[lsn] for lsn in range(1, len(told.entries) + 1)]
    )


def _read(log: Path) -> tuple[int, list[WALEntry]]:
    """The first LSN that is available, and the entries."""
    first_lsn = min(int(name[:20]) for name in os.listdir(log) if name.endswith(".wal"))
    with WALReader(log, start=first_lsn) as reader:
        return first_lsn, reader.read_all()


# What was promised at a moment


class Promise(NamedTuple):
    durable_lsn: int = 0
    most: int = 0  # entries that anybody had begun to append
    checkpoint: int = 0
    checkpoint_begun: int = 0
    first_lsn: int = 1  # what is before it was removed by a rule other than the checkpoint,
    first_begun: int = 1  # or was to be
    cursor: int = -1  # what the cursor has committed; -1: there may be none
    cursor_begun: int = 0
    copies: tuple[tuple[str, int, int], ...] = ()  # their names, and from which LSN up to which they go

    def after(self, event: Event) -> Promise:
        match event:
            case Event("begins", (count,)):
                return self._replace(most=self.most + count)
            case Event("durable", (lsn,)):
                return self._replace(durable_lsn=max(self.durable_lsn, lsn))
            case Event("checkpoint begins", (lsn,)):
                return self._replace(checkpoint_begun=max(self.checkpoint_begun, lsn))
            case Event("checkpoint", (lsn,)):
                return self._replace(checkpoint=max(self.checkpoint, lsn))
            case Event("cursor begins", (lsn,)):
                return self._replace(cursor_begun=max(self.cursor_begun, lsn))
            case Event("cursor", (lsn,)):
                return self._replace(cursor=max(self.cursor, lsn))
            case Event("prune begins", (lsn,)):
                return self._replace(first_begun=max(self.first_begun, lsn))
            case Event("pruned", (lsn,)):
                return self._replace(first_lsn=max(self.first_lsn, lsn))
            case Event("copied", copy):
                return self._replace(copies=(*self.copies, copy))
        return self


# What is found after a cut

_boots = itertools.count(1)


@contextmanager
def after_a_reboot() -> Iterator[None]:
    boot = (1, next(_boots))
    before, processes.boot_id = processes.boot_id, lambda: boot
    try:
        yield
    finally:
        processes.boot_id = before


def check(log: Path, entries: Sequence[WALEntry], promise: Promise, *, metrics: bool, again: bool) -> None:
    """Open the log as after a reboot, and compare; append to it; and `again`, after another reboot."""
    left = second.files_of(log)
    pruned_lsn = max(promise.checkpoint_begun, promise.first_begun - 1)
    next_lsn = second.after_a_cut(left, entries[: promise.most], promise.durable_lsn, pruned_lsn)
    with after_a_reboot(), WALWriter(log, metrics=metrics) as writer:
        first_lsn, found = _read(log)
        last_lsn = first_lsn + len(found) - 1
        assert next_lsn in (None, last_lsn + 1), f"the log ends at {last_lsn}, the oracle expects {next_lsn} next"
        assert found == list(entries[first_lsn - 1 : last_lsn]), _difference(found, entries, first_lsn)
        assert last_lsn >= promise.durable_lsn, f"durable was LSN {promise.durable_lsn}, the log ends at {last_lsn}"
        assert last_lsn <= promise.most, f"{promise.most} entries were begun, there are {last_lsn}"
        with Directory(log) as directory:
            checkpoint, origin = read_checkpoint(directory), read_origin(directory)
        assert promise.checkpoint <= checkpoint <= promise.checkpoint_begun, (
            f"the checkpoint is {checkpoint}; stated was {promise.checkpoint}, begun {promise.checkpoint_begun}"
        )
        assert checkpoint <= last_lsn, f"the log has LSNs {first_lsn} to {last_lsn}, the checkpoint is {checkpoint}"
        most = max(checkpoint + 1, promise.first_begun)
        assert promise.first_lsn <= first_lsn <= most, (
            f"the log begins at LSN {first_lsn}; pruned was up to {promise.first_lsn}, and {most} was to be kept"
        )
        noted = origin.first_lsn if origin is not None else 1
        assert first_lsn <= noted <= most, f"the log begins at LSN {first_lsn}, and `origin` says {noted} ({most})"
        if promise.cursor >= 0:
            _check_cursor(log, promise, first_lsn, found)
        afterwards = append_op(writer, "after", 6)
        assert afterwards.start == last_lsn + 1, f"after LSN {last_lsn} comes {afterwards.start}"
        assert writer.sync() == afterwards.stop - 1
    for name, copied_lsn, end_lsn in promise.copies:
        there = read_log(log.parent / name)
        assert there == list(entries[copied_lsn - 1 : end_lsn - 1]), _difference(there, entries, copied_lsn)
    found += [entry._replace(lsn=lsn) for lsn, entry in zip(afterwards, entries_of("after", 6), strict=True)]
    second.agree(log, found)
    if not again:
        return
    with after_a_reboot(), WALWriter(log, metrics=metrics):
        assert _read(log) == (first_lsn, found), "recovered again, it is another log"


def _check_cursor(log: Path, promise: Promise, first_lsn: int, entries: list[WALEntry]) -> None:
    """It is where it was committed last, or was being committed, and is handed out all that follows."""
    with Cursor(log, "etl", lock_timeout=5) as cursor:
        position = cursor.position
        assert promise.cursor <= position <= promise.cursor_begun, f"the cursor is at {position}: {promise}"
        assert first_lsn <= position + 1, f"the cursor is at LSN {position}, and the log begins at LSN {first_lsn}"
        rest = [*cursor.follow(timeout=0)]
    assert rest == entries[position + 1 - first_lsn :], f"from LSN {position} on the cursor was handed {rest}"


def _difference(found: Sequence[WALEntry], expected: Sequence[WALEntry], first_lsn: int) -> str:
    for at, entry in enumerate(found):
        lsn = first_lsn + at
        if lsn > len(expected):
            return f"LSN {lsn} was never appended, and is there: {entry}"
        if entry != expected[lsn - 1]:
            return f"LSN {lsn} was {expected[lsn - 1]}, and is {entry}"
    return f"{len(found)} entries from LSN {first_lsn} on"


# All of it


class Explorer:
    """Draws states of one script's run after another, and checks each that it has not seen before."""

    def __init__(self, folder: Path, seen: set[int] | None = None) -> None:
        self._folder = folder
        self._seen = set() if seen is None else seen
        self._checked: set[tuple[int, ...]] = set()
        self._places = itertools.count()
        self._where = ""  # in the run, for a failure
        self.counts: Counter[str] = Counter()

    def explore(self, name: str, seed: int) -> None:
        """Each moment of one run of a script. What it gives follows from the seed alone."""
        self._where = ""
        try:
            self._explore(name, seed)
        except Exception as error:
            raise AssertionError(
                f"{error!r}\nin {name}{self._where}; repeat with: python -m tests.crash.power_cut {name!r} {seed}"
            ) from error

    def _explore(self, name: str, seed: int) -> None:
        chance = random.Random(f"{name} {seed}")
        trace = record(SCRIPTS[name], self._place(), chance)
        model, sector = chance.choice(list(Model)), chance.choice((SECTOR, PAGE))
        disk, promise = Disk(model), Promise()
        for moment, event in enumerate(trace.events):
            self._where = f", {model.value} model, sectors of {sector}, after event {moment}, {event.kind}"
            disk.play(event)
            promise = promise.after(event)
            for draw in range(DRAWS):
                chance = random.Random(f"{name} {seed} {moment} {draw}")
                image = disk.draw(chance, sector, STRANGERS)
                if not self._is_new(image, promise):
                    continue
                disk.draw_caches(image, chance, sector)
                self._check(image, trace, promise, chance)
                if chance.random() < NESTED_SHARE:
                    self._cut_the_recovery(image, trace, promise, chance, sector)

    def _is_new(self, image: Image, promise: Promise) -> bool:
        """Whether this was not seen before, or more has been promised since. A state counts once."""
        state = hash((image.directories, *image.files.items(), *image.links.items()))
        known = (state, promise.durable_lsn, promise.checkpoint, promise.first_lsn, promise.cursor, len(promise.copies))
        if known in self._checked:
            return False
        self._checked.add(known)
        self.counts["crash states"] += state not in self._seen
        self._seen.add(state)
        return True

    def _check(self, image: Image, trace: Trace, promise: Promise, chance: random.Random) -> None:
        root = self._place()
        image.write(root)
        again = chance.random() < AGAIN_SHARE
        check(root / trace.log, trace.entries, promise, metrics=chance.random() < METRICS_SHARE, again=again)
        shutil.rmtree(root)
        self.counts["recoveries"] += 1 + again
        self.counts["judged by the oracle"] += 1

    def _cut_the_recovery(
        self, image: Image, trace: Trace, promise: Promise, chance: random.Random, sector: int
    ) -> None:
        """Record it, and a few durable appends after it, and cut that."""
        root = self._place()
        image.write(root)
        recorder = Recorder(root, image)
        with after_a_reboot(), the_same_again(chance) as coordinators, recorder.recording():
            told = Told(recorder, root / trace.log, coordinators)
            with WALWriter(told.log, SyncMode.FULL, 700) as writer:
                last_lsn = next_lsn(writer) - 1
                for _ in range(3):
                    told.append(writer, SyncMode.FULL, "later")
            told.close()
        shutil.rmtree(root)
        later = Trace(trace.log, recorder.events, [*trace.entries[:last_lsn], *told.entries.values()])
        for model in Model:
            disk, promised = Disk(model), promise._replace(most=last_lsn, copies=())
            started = False
            for event in later.events:
                disk.play(event)
                promised = promised.after(event)
                started = started or event.kind == "all durable"
                for _ in range(NESTED_DRAWS if started else 0):
                    drawn = random.Random(chance.getrandbits(64))
                    cut = disk.draw(drawn, sector, STRANGERS)
                    if self._is_new(cut, promised):
                        disk.draw_caches(cut, drawn, sector)
                        self._check(cut, later, promised, drawn)
                        self.counts["states of a recovery"] += 1

    def _place(self) -> Path:
        return self._folder / f"{next(self._places)}"


def prove(
    folder: Path, seed: int, count: int, scripts: Iterable[str] = SCRIPTS, seen: set[int] | None = None
) -> Counter[str]:
    """At least `count` distinct states that a cut may leave, of runs of the scripts in turn. `seen`: their hashes."""
    explorer = Explorer(folder, seen)
    with _without_a_word():
        for number in itertools.count(seed):
            for name in scripts:
                if explorer.counts["crash states"] >= count:
                    return explorer.counts
                explorer.explore(name, number)
                explorer.counts["runs that were cut"] += 1
    raise AssertionError("not reached")


@contextmanager
def _without_a_word() -> Iterator[None]:
    """Recovery warns of what it cuts, and here it cuts all the time."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def main() -> None:
    """Every state of one run, as a failure says."""
    _, name, seed = sys.argv
    with _without_a_word(), tempfile.TemporaryDirectory() as folder:
        explorer = Explorer(Path(folder))
        explorer.explore(name, int(seed))
        print(dict(explorer.counts))


if __name__ == "__main__":
    main()
