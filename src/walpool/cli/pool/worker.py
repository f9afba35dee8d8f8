"""A worker of the pool: appends the lines of one parcel after another, in order, until its parent's end is closed.

Holds: an answer is sent only when every line of the parcel is published in the log. It stops between two batches when
the parent is gone, and when it is killed, at any instruction, the log says how far it came.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from walpool import BatchTooLarge, EntryTooLarge, Operation, SyncMode, WALEntry, WALWriter
from walpool.cli.exits import EXPECTED, CommandError, Exit, describe
from walpool.cli.pool.lines import Parcel
from walpool.cli.pool.sources import printable
from walpool.format.entry import ENTRY_BYTES
from walpool.format.frame import FRAME_BYTES
from walpool.format.header import HEADER_BYTES
from walpool.system import forks, signals
from walpool.system.clock import monotonic, time_ns

LOOK_EVERY_S = 0.02  # for the parent: asking the kernel costs as much as a small batch


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The first message to a worker: what it opens, and how it appends."""

    log: Path
    sync_mode: SyncMode
    size_limit: int  # bytes of one segment
    batch_lines: int
    allow_network_fs: bool


@dataclass(frozen=True, slots=True)
class Done:
    """A worker's answer to a parcel: all of it is published."""

    count: int
    logged: tuple[str, ...] = ()  # since the answer before


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker's last answer: it cannot go on, and ends."""

    code: Exit
    message: str
    logged: tuple[str, ...] = ()


class Kept(logging.Handler):
    """What walpool logs in this process, until the parent is answered: it says the same thing once for all workers."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self._texts[record.getMessage()] = None

    def take(self) -> tuple[str, ...]:
        texts, self._texts = self._texts, {}
        return tuple(texts)


class ParentGone(Exception):
    """Nobody is there to answer to."""


def run(connection: Connection, keep_open: tuple[int, ...]) -> None:
    """Serve the parent at the other end of the connection until it closes its end. In a process forked for this."""
    signals.ignore_all()  # they are the parent's to answer
    forks.leave_parent({connection.fileno(), *keep_open})
    kept = Kept()
    logging.getLogger("walpool").handlers[:] = [kept]
    with connection as parent, suppress(ParentGone, EOFError, ConnectionError):
        try:
            _serve(parent, kept)
        except EXPECTED as error:
            if isinstance(error, ConnectionError):
                raise  # the parent's end broke, which is no failure to report to it
            parent.send(Failed(*describe(error), kept.take()))


def _serve(parent: Connection, kept: Kept) -> None:
    options: WorkerOptions = parent.recv()  # EOFError: killed between starting us and telling us what to do
    with WALWriter(
        options.log,
        options.sync_mode,
        options.size_limit,
        name="walpool ingest",
        allow_network_fs=options.allow_network_fs,
    ) as writer:
        while (parcel := _receive(parent)) is not None:
            looked_s = monotonic()
            for batch in _batches(parcel, options):
                _append(writer, batch)
                if monotonic() - looked_s > LOOK_EVERY_S:
                    looked_s = monotonic()
                    if parent.poll():  # the parent sends nothing while a parcel is out: it has closed its end
                        raise ParentGone
            parent.send(
                Done(parcel.count, kept.take())
            )  # a batch is in the log when append_batch returns, in every sync mode
        writer.sync()  # there is no more to do: what was appended is made durable, with one sync for all workers


def _receive(parent: Connection) -> Parcel | None:
    try:
        parcel: Parcel = parent.recv()
    except EOFError:
        return None
    return parcel


def _append(writer: WALWriter, batch: list[WALEntry]) -> None:
    try:
        writer.append_batch(batch)
    except (EntryTooLarge, BatchTooLarge) as error:
        largest = max(batch, key=lambda entry: len(entry.value))
        raise CommandError(Exit.USAGE, f"{printable(bytes(largest.key))}: {error}") from error


def _batches(parcel: Parcel, options: WorkerOptions) -> Iterator[list[WALEntry]]:
    """The parcel's lines in order, in batches of `batch_lines`, fewer where so many would not fit an empty segment.

    One long loop, and one timestamp a batch: with a call of WALEntry.put for each line, 858,000 lines took 3.1 s, and
    2.3 s without (4 workers on 2 cores).
    """
    room = options.size_limit - HEADER_BYTES - FRAME_BYTES
    batch_lines = options.batch_lines
    put = Operation.PUT
    batch: list[WALEntry] = []
    size = 0
    now = time_ns()
    for run in parcel.runs:
        prefix = run.name + b":"
        for line, value in enumerate(run.lines(), run.first_line):
            key = b"%b%d" % (prefix, line)
            need = ENTRY_BYTES + len(key) + len(value)
            if batch and (len(batch) == batch_lines or size + need > room):
                yield batch
                batch, size, now = [], 0, time_ns()
            batch.append(WALEntry(put, key, value, now))
            size += need
    if batch:
        yield batch
