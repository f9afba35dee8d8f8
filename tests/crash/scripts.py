"""What victims do until they die, and what they find: every answer they get is told at once."""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.support import append_op
from walpool import Retention, SyncFailed, SyncMode, WALWriter
from walpool.system.calls import calls
from walpool.write import coordinator

ANSWER = struct.Struct("<3Q")
Tell = Callable[[int, int, int], object]  # operation, first LSN, end LSN; operation END: the script is over
Script = Callable[[Path, str, Tell], None]
END = (1 << 64) - 1
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
