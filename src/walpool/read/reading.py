"""A reading: what a reader is between its calls: a place in a log, the entries in hand, and what was handed out.

In hand is a batch or, where entries are asked for and nothing is unusual, a run of batches. Whoever asks for batches or
for figures then finds the run split: what begins behind the last entry that was handed out is before us again.
Holds: what is in hand was found intact, and is handed out before anything behind it is read. A forked child opens the
log for itself on its next use, at the first entry that was not in hand.
"""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from typing import Any, Generic, NamedTuple, cast

from walpool.errors import LogClosed
from walpool.format.body import BodyError, decode_body
from walpool.format.entry import B, WALEntry
from walpool.format.frame import FRAME_BYTES, FRAME_PREFIX, FRAME_REST, Frame
from walpool.format.names import MAX_LSN
from walpool.format.run import Run, views_of
from walpool.options import RecoveryMode
from walpool.read.cursor import Cursor, Start
from walpool.read.source import Source
from walpool.read.walk import refuse_unknown
from walpool.read.window import FrameWindow
from walpool.shared.control import GROWTH, SYNC_OVER
from walpool.system import clock
from walpool.system.forks import reopen_after_fork


class ReadBatch(NamedTuple, Generic[B]):
    """One batch as it was appended; of one in which the reader's `start` or `end` lies, what is within.

    Attributes:
        first_lsn: of `entries`.
        count: how many entries there are.
        appended_at: ns since the epoch; never less than the batch before it.
        writer: the slot of the writer that appended it.
        entries: the entries, in the order of their LSNs.
    """

    first_lsn: int
    count: int  # type: ignore[assignment]  # public name; nobody counts in a batch
    appended_at: int
    writer: int
    entries: list[WALEntry[B]]


for _field in ReadBatch._fields:
    getattr(ReadBatch, _field).__doc__ = None  # "Alias for field number 0": the class says what it is


@dataclass(frozen=True, slots=True)
class ReaderStats:
    """What a reader has read so far.

    Attributes:
        entries: read; of a batch that is handed out entry by entry, all of it.
        batches: read.
        bytes: of their frames.
        segments: opened.
        initial_capacity: bytes of the buffer at first.
        peak_buffer_size: bytes that the buffer has grown to, for the largest frame met.
        buffer_resizes: how often it grew.
        damaged: places that were no frame: torn tails and damaged ranges.
    """

    entries: int
    batches: int
    bytes: int
    segments: int
    initial_capacity: int
    peak_buffer_size: int
    buffer_resizes: int
    damaged: int


class Reading(Generic[B]):
    def __init__(
        self,
        path: str | os.PathLike[str],
        start: Start,
        end: int | None,
        mode: RecoveryMode,
        capacity: int,
        zero_copy: bool,
        pin: bool,
    ) -> None:
        self.closed = True
        self.path = os.path.abspath(os.fspath(path))
        self.end = end
        self.mode = RecoveryMode(mode)
        self.zero_copy, self.pinned = zero_copy, pin
        self.window = FrameWindow(capacity)
        self._open(start)
        reopen_after_fork(self)
        self._from_the_first = start is None
        self.frame: Frame  # the last one decoded
        self.pending: Iterator[WALEntry[B]] = iter(())  # what is left of the batch, or the run, in hand
        self._run: Run | None = None  # in hand: several batches
        self._given = self._left = 0  # of a run that is given batch by batch: bytes that were, and `left`
        self.whole = True  # the batch that was given last is all of its frame
        self._idle = False  # the last look gave nothing
        self.entries = self.batches = self.bytes = 0

    def _open(self, start: Start) -> None:
        cursor = Cursor(Source(self.path), self.window, self.mode)
        try:
            cursor.begin(start, pin=self.pinned)
        except BaseException:
            cursor.close()
            raise
        self.cursor = cursor
        self._counts = self.cursor.counters.cell_for(self)
        self.closed = self._forked = False

    def take(self, last_lsn: int | None = None) -> bool:
        """Have what comes next in hand, if there is anything, and unless it is past `last_lsn`."""
        entries = self._next_run(last_lsn) or self.next_entries(last_lsn)
        self.pending = iter(entries)
        return bool(entries)

    def _next_run(self, last_lsn: int | None) -> list[WALEntry[B]]:
        """The entries of the batches that come next; empty where one by one has to be looked at."""
        self._run = None
        cursor = self.cursor
        extent = None if self.closed else cursor.ahead
        if extent is None:
            return []
        ends = (extent.limit_lsn, self.end, None if last_lsn is None else last_lsn + 1)
        end_lsn = min((end for end in ends if end is not None), default=MAX_LSN)
        run = self.window.next_run(cursor.lsn, extent.limit, end_lsn, not self.zero_copy)
        if run is None:
            return []
        if self.zero_copy:
            run = run._replace(entries=views_of(self.window.data, self.window.place_of(run), run))
        cursor.lsn, cursor.last = run.next_lsn, run.last
        if run.batches > 1:
            self._run, self._left, self._given = run, -1, 0  # no batch of it was given as one
        self._idle = False
        self.entries += run.count
        self.batches += run.batches
        self.bytes += run.bytes
        return cast("list[WALEntry[B]]", run.entries)

    def _split(self) -> None:
        """Have in hand, of a run, only the batch of the entry that was handed out last."""
        run, self._run = self._run, None
        if run is None:
            return
        entries = run.entries
        handed = len(entries) - self.left
        self.frame, batches, size = self.window.split(run, entries[max(0, handed - 1)].lsn)
        cursor, next_lsn = self.cursor, self.frame.next_lsn
        cursor.lsn, cursor.last, cursor.start = next_lsn, self.frame, min(cursor.start, next_lsn)
        before_us = run.next_lsn - next_lsn
        del entries[len(entries) - before_us :]  # whoever iterates over them goes on with what `take` gives
        self.entries -= before_us
        self.batches -= batches
        self.bytes -= size

    @property
    def left(self) -> int:
        """How many entries of the batch in hand were not handed out: an iterator of a list knows it exactly."""
        return length_hint(self.pending)

    def next_entry(self) -> WALEntry[B] | None:
        """The next entry; None where reading ends for now."""
        entry = next(self.pending, None)
        if entry is None and self.take():
            entry = next(self.pending)
        self.count(self.left)
        return entry

    def next_batch(self, last_lsn: int | None = None) -> ReadBatch[B] | None:
        """All of the next batch, unless it ends past `last_lsn`; None where reading ends for now."""
        left = self.left
        if self._run is None or not left or left != self._left:
            if left:
                self._split()
            self._run = None
            entries = [] if self.left or self.zero_copy or last_lsn is not None else self._next_run(None)
            if self._run is None:
                return self._one_batch(entries, last_lsn)
            self.pending = iter(entries)
        at = self.window.place_of(self._run) + self._given + FRAME_PREFIX.size
        body_bytes, count, lsn, appended_at, _, _, _, writer = FRAME_REST.unpack_from(self.window.data, at)
        self._given += FRAME_BYTES + body_bytes
        batch = tuple.__new__(ReadBatch, (lsn, count, appended_at, writer, list(islice(self.pending, count))))
        self._left, self.whole = self.left, True
        self.count(self._left)
        return cast("ReadBatch[B]", batch)

    def _one_batch(self, entries: list[WALEntry[B]], last_lsn: int | None) -> ReadBatch[B] | None:
        """Of a run of one frame, or of the frame that comes next."""
        if entries:
            self.frame, self.whole = cast("Frame", self.cursor.last), True
        else:
            entries = self.next_entries(last_lsn, to_keep=True)
        if not entries:
            return None
        self.count()
        return ReadBatch(entries[0].lsn, len(entries), self.frame.appended_at, self.frame.writer, entries)

    def views_to_keep(self) -> list[WALEntry[B]]:
        """All that is left, as views that nothing overwrites."""
        rest: list[Any] = [
            each._replace(key=memoryview(bytes(each.key)), value=memoryview(bytes(each.value)))  # type: ignore[arg-type]
            for each in self.pending
        ]
        self.count()
        while batch := self.next_batch():
            rest += batch.entries
        return rest

    def next_entries(self, last_lsn: int | None, *, to_keep: bool = False) -> list[WALEntry[B]]:
        """The entries of the next batch, unless it ends past `last_lsn`; empty where reading ends for now.

        `to_keep`: views are of a buffer of their own, which the next batch does not overwrite.
        """
        if self.closed:
            self.check_open()
        cursor = self.cursor
        if self.is_over:
            return []
        while True:
            if last_lsn is not None and cursor.unread_lsn > last_lsn:
                return []
            frame = cursor.next()
            if frame is None:
                if self._idle:
                    cursor.check_log()
                self._idle = True
                return []
            first_lsn, count = frame.first_lsn, frame.count
            start = cursor.start
            if first_lsn + count <= start:
                continue
            if last_lsn is not None and first_lsn + count - 1 > last_lsn:
                cursor.put_back(frame)  # no sync ends inside a batch: whoever says so is damaged
                return []
            if self.end is not None and first_lsn >= self.end:
                cursor.put_back(frame)  # SALVAGE has skipped what was wanted
                return []
            self.frame = frame
            if frame.flags:
                assert cursor.segment is not None
                refuse_unknown(frame, cursor.segment.file.path)
            try:
                data, body, end = self.window.data, frame.body, frame.end
                if to_keep and self.zero_copy:
                    data, body, end = memoryview(bytes(data[body:end])), 0, end - body
                skip = max(0, start - first_lsn)
                keep = (count if self.end is None else min(count, self.end - first_lsn)) - skip
                self.whole = keep == count
                wanted = () if self.whole else (skip, keep)
                entries = decode_body(data, body, end, count, first_lsn, *wanted, views=self.zero_copy)
            except BodyError as error:
                cursor.pass_body(frame, error.reason)
                continue
            self._idle = False
            self.entries += len(entries)
            self.batches += 1
            self.bytes += frame.end - frame.offset
            return cast("list[WALEntry[B]]", entries)

    _counted = (0, 0)

    def count(self, left: int = 0) -> None:
        """Count what is handed out now: all that was read, but for the `left` last entries."""
        handed, (entries, size) = self.entries - left, self._counted
        if handed > entries:
            counts = self._counts
            # A run may be split: what was not given of it as batches comes with its end.
            read = self.bytes if not left or self._run is None else self.bytes - self._run.bytes + self._given
            counts["reads_total"] += handed - entries
            counts["bytes_read"] += read - size
            self._counted = handed, read

    def stats(self) -> ReaderStats:
        self._split()
        window, cursor = self.window, self.cursor
        return ReaderStats(
            self.entries, self.batches, self.bytes, cursor.segments, window.initial_capacity, window.capacity,
            window.resizes, len(cursor.damaged),
        )  # fmt: skip

    # For `follow`

    def has_news(self, durable_only: bool) -> bool:
        """Whether reading on could give something."""
        self.check_open()
        return self.cursor.has_news(durable_only)

    def wait(self, durable_only: bool, longest_s: float, look_again_s: float) -> None:
        """Sleep until there may be news, at most `longest_s`; where nobody can wake us, `look_again_s`."""
        news = self.cursor.source.wakeups(SYNC_OVER if durable_only else GROWTH)
        if news is None:
            clock.sleep(look_again_s)
        else:
            news.wait(lambda: self.cursor.is_ahead(durable_only), longest_s, look_again_s)

    @property
    def is_over(self) -> bool:
        """Whether `end` was reached."""
        return self.end is not None and self.cursor.unread_lsn >= self.end

    def advance(self, durable_only: bool) -> bool:
        """Take the next batch in hand, if there is one."""
        self._idle = False  # a follower asks for `check_log` in its own time
        taken = self.take(self.cursor.durable_lsn() if durable_only else None)
        self.count()
        return taken

    def check_log(self) -> None:
        """Raises LogReplaced when the log at the path is not the one that was read so far."""
        self.check_open()
        self.cursor.check_log()

    # Its life

    @property
    def next_lsn(self) -> int:
        return max(min(self.cursor.lsn, self.end or MAX_LSN) - self.left, self.cursor.start)  # an end may cut a batch

    def place(self) -> int | None:
        """Where another reader goes on: None for one that began with the first entry and has read nothing."""
        return None if self._from_the_first and self.cursor.last is None else self.next_lsn

    def check_open(self) -> None:
        if self._forked:
            self._split()
            self._open(self.cursor.unread_lsn)
        if self.closed:
            raise LogClosed(f"{self.path}: the reader is closed")

    def after_fork(self) -> None:
        """In a forked child: what is open, and the pin, is the parent's; the next use opens the log for itself."""
        if not self.closed:
            self.closed = self._forked = True

    def close(self) -> None:
        self._forked = False
        self._split()
        if not self.closed:
            self.closed = True
            deque(self.pending, 0)  # whoever holds the iterator gets LogClosed, not the rest of a batch
            self.cursor.close()
