"""WALReader: entries in LSN order, from a live log, a copy, or one segment file.

Holds: an entry is handed out only when its whole batch was found intact; LSNs handed out are dense and rising, except
behind a damaged range that SALVAGE skipped. A reader belongs to one thread; any number of them read one log.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import length_hint
from typing import Any, Generic, Literal, NamedTuple, cast, overload

from walpool.errors import LogClosed
from walpool.format.entry import B, BodyError, WALEntry, decode_body
from walpool.format.frame import Frame
from walpool.options import RecoveryMode
from walpool.read.cursor import Cursor, Start
from walpool.read.follow import follow
from walpool.read.scan import INITIAL_CAPACITY, FrameWindow, refuse_unknown
from walpool.read.source import Source
from walpool.system.forks import reopen_after_fork


class ReadBatch(NamedTuple, Generic[B]):
    """One batch as it was appended; `entries` starts at the reader's `start` when that lies inside."""

    first_lsn: int
    count: int  # type: ignore[assignment]  # public name; nobody counts in a batch
    appended_at: int  # ns since the epoch
    writer: int  # slot
    entries: list[WALEntry[B]]


@dataclass(frozen=True, slots=True)
class ReaderStats:
    """What a reader has read so far. Sizes are bytes."""

    entries: int
    batches: int
    bytes: int  # of frames
    segments: int
    initial_capacity: int
    peak_buffer_size: int
    buffer_resizes: int
    damaged: int  # places that were no frame: torn tails and damaged ranges


class WALReader(Generic[B]):
    """Reads the log at `path` (a directory, or one segment file) from the LSN `start` up to the LSN `end`.

    `start` is None for the first entry there is, an LSN, or "end" for what is appended from now on; an LSN that is yet
    to come is a place to follow from. `end` is exclusive; None reads as far as the log goes.
    `mode` says what damage does: TOLERATE_TAIL ends at a torn tail and raises CorruptLog for damage before intact or
    durable frames; STRICT raises for both; POINT_IN_TIME ends at the first; SALVAGE skips what is damaged.
    With `zero_copy` keys and values are memoryviews that are valid until the next entry is asked for. With `pin`
    retention keeps what this reader has not read yet, up to `Retention.max_pinned_bytes`.

    Raises LogNotFound, UnsafeLog, LSNUnavailable for a `start` that retention has removed (start at its
    `first_available`), UnsupportedVersion. Reading raises LogReplaced when the log at the path is another one by now,
    or none: open it again.
    """

    @overload
    def __init__(
        self: "WALReader[bytes]",
        path: str | os.PathLike[str],
        start: Start = None,
        end: int | None = None,
        *,
        mode: RecoveryMode = RecoveryMode.TOLERATE_TAIL,
        initial_capacity: int = INITIAL_CAPACITY,
        zero_copy: Literal[False] = False,
        pin: bool = False,
    ) -> None: ...
    @overload
    def __init__(
        self: "WALReader[memoryview]",
        path: str | os.PathLike[str],
        start: Start = None,
        end: int | None = None,
        *,
        mode: RecoveryMode = RecoveryMode.TOLERATE_TAIL,
        initial_capacity: int = INITIAL_CAPACITY,
        zero_copy: Literal[True],
        pin: bool = False,
    ) -> None: ...
    @overload
    def __init__(
        self: "WALReader[bytes | memoryview]",
        path: str | os.PathLike[str],
        start: Start = None,
        end: int | None = None,
        *,
        mode: RecoveryMode = RecoveryMode.TOLERATE_TAIL,
        initial_capacity: int = INITIAL_CAPACITY,
        zero_copy: bool,
        pin: bool = False,
    ) -> None: ...
    def __init__(
        self,
        path: str | os.PathLike[str],
        start: Start = None,
        end: int | None = None,
        *,
        mode: RecoveryMode = RecoveryMode.TOLERATE_TAIL,
        initial_capacity: int = INITIAL_CAPACITY,
        zero_copy: bool = False,
        pin: bool = False,
    ) -> None:
        if start is not None and start != "end" and (type(start) is not int or start < 1):
            raise ValueError(f'start must be an LSN, from 1, or "end", or None for the first entry, not {start!r}')
        if end is not None and (type(end) is not int or end < 1):
            raise ValueError(f"end must be an LSN, from 1, or None, not {end!r}")
        if type(initial_capacity) is not int or initial_capacity < 1:
            raise ValueError(f"initial_capacity must be a number of bytes, not {initial_capacity!r}")
        self._closed = True
        self._path = os.path.abspath(os.fspath(path))
        self._end = end
        self._mode = RecoveryMode(mode)
        self._zero_copy = zero_copy
        self._pinned = pin
        self._window = FrameWindow(initial_capacity)
        self._forked = False
        self._open(start)
        reopen_after_fork(self)
        self._from_the_first = start is None
        self._frame: Frame  # the last one decoded
        self._pending: Iterator[WALEntry[B]] = iter(())
        self._idle = False  # the last look gave nothing
        self._entries = self._batches = self._bytes = 0

    def _open(self, start: Start) -> None:
        source = Source(self._path)
        try:
            self._cursor = Cursor(source, self._window, self._mode, start, pin=self._pinned)
        except BaseException:
            source.close()
            raise
        self._counts = self._cursor.counters.cell_for(self)
        self._closed = self._forked = False

    # Reading

    def __iter__(self) -> Iterator[WALEntry[B]]:
        """Entries up to what was published when the reader got there."""
        while True:
            self._count_read()
            yield from self._pending
            entries = self._next_entries(None)
            if not entries:
                return
            self._pending = iter(entries)
            del entries  # two batches alive at once would not fit the processor's cache

    def read_entry(self) -> WALEntry[B] | None:
        """The next entry, or None at the end; more may come later."""
        if not length_hint(self._pending):
            self._pending = iter(self._next_entries(None))
        entry = next(self._pending, None)
        self._count_read(length_hint(self._pending))
        return entry

    def read_all(self) -> list[WALEntry[B]]:
        """All entries that are left."""
        return list(self)

    def batches(self) -> Iterator[ReadBatch[B]]:
        """Batches as they were appended; what is left of one that was handed out entry by entry is not repeated."""
        while entries := self._next_entries(None):
            frame = self._frame
            self._count_read()
            yield ReadBatch(entries[0].lsn, len(entries), frame.appended_at, frame.writer, entries)

    def follow(self, timeout: float | None = None, durable_only: bool = False) -> Iterator[WALEntry[B]]:
        """Entries as they are appended, across rotations.

        Ends after `timeout` seconds without news, and at `end`; None waits for ever. With `durable_only` an entry comes
        once it is on disk; of a log without a control block (a copy, or before the first writer after a reboot) that is
        what its segments vouch for. Raises LogReplaced when the log was moved, removed or made anew meanwhile.
        """
        return follow(self, timeout, durable_only)

    @property
    def stats(self) -> ReaderStats:
        window = self._window
        return ReaderStats(
            self._entries, self._batches, self._bytes, self._cursor.segments, window.initial_capacity, window.capacity,
            window.resizes, len(self._cursor.damaged),
        )  # fmt: skip

    @property
    def next_lsn(self) -> int:
        """The LSN of the next entry that this reader gives."""
        return max(self._cursor.lsn - length_hint(self._pending), self._cursor.start)

    @property
    def first_lsn(self) -> int:
        """The first LSN that the log has now; one more than `last_lsn` when it has no entry."""
        self._check_open()
        return self._cursor.first_lsn()

    @property
    def last_lsn(self) -> int:
        """The last LSN that the log has now, whatever this reader's `end` is; 0 for a log without an entry so far."""
        self._check_open()
        return self._cursor.next_lsn() - 1

    # For `follow`

    def has_news(self, durable_only: bool) -> bool:
        """Whether reading on could give something."""
        self._check_open()
        return self._cursor.has_news(durable_only)

    @property
    def pending(self) -> Iterator[WALEntry[B]]:
        """What is left of the batch in hand."""
        return self._pending

    @property
    def is_over(self) -> bool:
        """Whether `end` was reached."""
        return self._end is not None and self._cursor.unread_lsn >= self._end

    def advance(self, durable_only: bool) -> bool:
        """Take the next batch in hand, if there is one."""
        self._idle = False  # a follower asks for `check_log` in its own time
        entries = self._next_entries(self._cursor.durable_lsn() if durable_only else None)
        self._pending = iter(entries)
        self._count_read()
        return bool(entries)

    def check_log(self) -> None:
        """Raises LogReplaced when the log at the path is not the one that was read so far."""
        self._check_open()
        self._cursor.check_log()

    # Position

    def _check_open(self) -> None:
        if self._forked:
            self._open(self._cursor.unread_lsn)
        if self._closed:
            raise LogClosed(f"{self._path}: the reader is closed")

    def after_fork(self) -> None:
        """In a forked child: what is open, and the pin, is the parent's; the next use opens the log for itself."""
        if not self._closed:
            self._closed = self._forked = True

    def _next_entries(self, last_lsn: int | None) -> list[WALEntry[B]]:
        """The entries of the next batch, unless it ends past `last_lsn`; empty where reading ends for now."""
        if self._closed:
            self._check_open()
        cursor = self._cursor
        if self._end is not None and cursor.unread_lsn >= self._end:
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
            self._frame = frame
            if frame.flags:
                assert cursor.segment is not None
                refuse_unknown(frame, cursor.segment.file.path)
            try:
                entries = decode_body(self._window.data, frame.body, frame.end, count, first_lsn, views=self._zero_copy)
            except BodyError as error:
                cursor.pass_body(frame, error.reason)
                continue
            if self._end is not None and first_lsn + count > self._end:
                del entries[self._end - first_lsn :]
            if first_lsn < start:
                del entries[: start - first_lsn]
            self._idle = False
            self._entries += len(entries)
            self._batches += 1
            self._bytes += frame.end - frame.offset
            return cast("list[WALEntry[B]]", entries)

    _counted = (0, 0)

    def _count_read(self, left: int = 0) -> None:
        """Count what is handed out now: all that was read, but for the `left` last entries."""
        handed, (entries, size) = self._entries - left, self._counted
        if handed > entries:
            counts = self._counts
            counts["reads_total"] += handed - entries
            counts["bytes_read"] += self._bytes - size
            self._counted = handed, self._bytes

    # Its life

    def close(self) -> None:
        """May be called again."""
        self._forked = False
        if not self._closed:
            self._closed = True
            deque(self._pending, 0)  # whoever holds the iterator gets LogClosed, not the rest of a batch
            self._cursor.close()

    def __enter__(self) -> "WALReader[B]":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        options = (self._mode, self._window.initial_capacity, self._zero_copy, self._pinned)
        start = None if self._from_the_first and self._cursor.last is None else self.next_lsn
        return _unpickle, (self._path, start, self._end, *options)


def _unpickle(
    path: str, start: int | None, end: int | None, mode: RecoveryMode, capacity: int, zero_copy: bool, pin: bool
) -> WALReader[Any]:
    return WALReader(path, start, end, mode=mode, initial_capacity=capacity, zero_copy=zero_copy, pin=pin)
