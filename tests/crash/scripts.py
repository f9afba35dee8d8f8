"""What victims do until they die, and what they find: every answer they get is told at once."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.support import MAPPED, append_op, entries_of
from walpool import Cursor, Retention, SyncFailed, SyncMode, WALReader, WALWriter
from walpool.system.calls import calls
from walpool.write import coordinator

ANSWER = struct.Struct("<3Q")
Tell = Callable[[int, int, int], object]  # operation, first LSN, end LSN; or one of these for the operation:
END = (1 << 64) - 1  # the script is over
CHECKPOINT = END - 1  # the first LSN is the checkpoint in force; the end LSN is 0 while it is only asked for
Script = Callable[[Path, str, Tell], None]
LIMIT = 1200  # bytes of a segment: a few operations
KEPT = 3  # segments, where a script removes older ones


def teller(fd: int) -> Tell:
    return lambda op, first, end: os.write(fd, ANSWER.pack(op, first, end))


class Author:
    """Appends one operation after another and tells each answer."""

    def __init__(self, name: str, tell: Tell) -> None:
        self.name = name
        self.tell = tell
        self.op = 0

    def append(self, writer: WALWriter, count: int) -> None:
        for _ in range(count):
            lsns = append_op(writer, self.name, self.op)
            self.tell(self.op, lsns.start, lsns.stop)
            self.op += 1


def append_in_every_way(log: Path, name: str, tell: Tell) -> None:
    """Several segments, a batch, a rotation, syncs; closed and opened again."""
    author = Author(name, tell)
    with WALWriter(log, size_limit=LIMIT) as writer:
        author.append(writer, 9)
        writer.sync()
        author.append(writer, 2)
        writer.rotate()
        author.append(writer, 3)
    with WALWriter(log, SyncMode.FULL, LIMIT) as writer:
        author.append(writer, 8)
    tell(END, 0, 0)


FIRST_OP = 5  # the next is a batch


def append_a_little(log: Path, name: str, tell: Tell) -> None:
    """The same, each once: for who looks at every store."""
    author = Author(name, tell)
    author.op = FIRST_OP
    with WALWriter(log, size_limit=LIMIT) as writer:
        author.append(writer, 3)
        writer.rotate()
        author.append(writer, 1)
        writer.sync()
    with WALWriter(log, SyncMode.FULL, LIMIT) as writer:
        author.append(writer, 1)
    tell(END, 0, 0)


def append_mapped(log: Path, name: str, tell: Tell) -> None:
    """Stored into mapped segments, beside a writer of this process that writes, and one that syncs."""
    author = Author(name, tell)
    coordinator.PREPARE_FROM_BYTES = 0
    with WALWriter(log, size_limit=LIMIT, mapped=MAPPED) as writer, WALWriter(log, size_limit=2 * LIMIT) as other:
        author.append(writer, 7)
        author.append(other, 2)
        writer.sync()
        other.rotate()
        author.append(writer, 3)
        with WALWriter(log, SyncMode.FULL, LIMIT) as full:
            author.append(full, 1)
        author.append(writer, 1)
        writer.rotate()
        author.append(writer, 2)
    tell(END, 0, 0)


def coordinate(log: Path, name: str, tell: Tell) -> None:
    """Segments are prepared, taken, sealed, synced and trimmed, and the older ones removed; each to its end."""
    author = Author(name, tell)
    coordinator.PREPARE_FROM_BYTES = 0
    with WALWriter(log, size_limit=LIMIT, retention=Retention(max_segments=KEPT)) as writer:
        for _ in range(6):
            author.append(writer, 2)
            writer.rotate()
            for thread in threading.enumerate():
                if thread.name == "walpool-coordinator":
                    thread.join()
    tell(END, 0, 0)


def state_checkpoints_and_prune(log: Path, name: str, tell: Tell) -> None:
    """Each checkpoint is at an older operation; what it covers is removed at once."""
    author = Author(name, tell)
    with WALWriter(log, size_limit=LIMIT) as writer:
        for _ in range(3):
            author.append(writer, 5)
            writer.rotate()
            lsn = writer.sync() - 3
            tell(CHECKPOINT, lsn, 0)
            tell(CHECKPOINT, writer.checkpoint(lsn), 1)
            writer.prune()
        author.append(writer, 2)
        writer.prune()
    tell(END, 0, 0)


BUFFERED = 12  # operations that are in doubt at once


def buffer_and_close(log: Path, name: str, tell: Tell) -> None:
    """SyncMode.NONE: what is buffered gets to the log at a sync, when the buffer is full, or at the end."""
    op = 0
    for op_count in (5, 6):
        with WALWriter(log, SyncMode.NONE, LIMIT, buffer_bytes=600, linger_s=3600.0) as writer:
            lsn = writer.sync() + 1  # nobody else appends while this one lives
            for part in range(2):
                told = []
                for _ in range(op_count):
                    entries = entries_of(name, op)
                    if len(entries) > 1:
                        writer.append_batch(entries)
                    else:
                        writer.append(entries[0])
                    told.append((op, lsn, lsn + len(entries)))
                    lsn += len(entries)
                    op += 1
                if part:
                    writer.close()
                else:
                    writer.sync()
                for answer in told:
                    tell(*answer)
    tell(END, 0, 0)


LARGE_LIMIT = 700_000


def append_large_batches(log: Path, name: str, tell: Tell) -> None:
    """Each frame is over 256 KiB, so that a kill can end a write in its middle; two fit a segment."""
    with WALWriter(log, size_limit=LARGE_LIMIT) as writer:
        for op in range(4):
            lsns = writer.append_batch(entries_of(name, op))
            tell(op, lsns.start, lsns.stop)
    tell(END, 0, 0)


def read_and_follow(log: Path, name: str, tell: Tell) -> None:
    """A reader with a pin, and one that follows, beside a writer of their own process."""
    with WALReader(log, pin=True) as reader:
        assert reader.read_all()
    with WALWriter(log, size_limit=LIMIT) as writer:
        following = WALReader(log, pin=True)
        author = Author(name, tell)
        author.append(writer, 2)
        for entry in following.follow(timeout=1.0):
            if bytes(entry.key).startswith(f"{name}/1/".encode()):
                break
        following.close()
    tell(END, 0, 0)


def consume_and_commit(log: Path, name: str, tell: Tell) -> None:
    """Whoever was killed before has left the cursor, to be opened at once, behind what it committed."""
    author = Author(name, tell)
    with WALWriter(log, size_limit=LIMIT) as writer:
        author.append(writer, 2)
        with Cursor(log, "etl", lock_timeout=10.0) as cursor:
            before = cursor.position
            for entry in cursor.follow(timeout=0):
                assert entry.lsn == before + 1 or not before, f"after LSN {before} the cursor hands out {entry.lsn}"
                before = cursor.commit(entry.lsn, sync=entry.lsn % 3 == 0)
                assert before == entry.lsn
        author.append(writer, 1)
    tell(END, 0, 0)


def open_and_append_a_little(log: Path, name: str, tell: Tell) -> None:
    """The opening makes the log, or recovers it."""
    author = Author(name, tell)
    with WALWriter(log, size_limit=LIMIT) as writer:
        author.append(writer, 2)
    tell(END, 0, 0)


# What a victim finds. Each makes a log in which `tell` knows every entry.

Prepare = Callable[[Path, Tell], None]


def nothing(log: Path, tell: Tell) -> None:
    """No directory, even."""


def in_several_segments(log: Path, tell: Tell) -> None:
    append_in_every_way(log, "before", tell)


def of_another_boot(log: Path, tell: Tell) -> None:
    append_in_every_way(log, "before", tell)
    (log / "control").unlink()


def with_a_torn_tail(log: Path, tell: Tell) -> None:
    append_in_every_way(log, "before", tell)
    with WALWriter(log) as writer:
        tail = writer.size
    (log / "control").unlink()
    with max(log.glob("*.wal")).open("r+b") as file:
        frame = file.read()[64:100]
        file.seek(tail)
        file.write(frame)


def with_a_torn_header(log: Path, tell: Tell) -> None:
    """A rotation was under way when the power went."""
    append_in_every_way(log, "before", tell)
    with WALWriter(log) as writer:
        next_lsn = writer.metrics.snapshot().next_lsn
    (log / "control").unlink()
    (log / f"{next_lsn:020d}.wal").write_bytes(bytes(17))


def after_a_failed_sync(log: Path, tell: Tell) -> None:
    """With several segments in doubt: the sync that fails is late."""
    author = Author("before", tell)
    appended = threading.Event()
    fdatasync = calls.fdatasync

    def fail(fd: int) -> None:
        appended.wait()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with WALWriter(log, size_limit=LIMIT) as writer:
        author.append(writer, 4)
        writer.sync()
        calls.fdatasync = fail
        try:
            author.append(writer, 9)
            appended.set()
            with suppress(SyncFailed):
                writer.sync()
        finally:
            appended.set()
            calls.fdatasync = fdatasync
