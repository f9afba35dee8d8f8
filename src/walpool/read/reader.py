"""WALReader: entries in LSN order, from a live log, a copy, or one segment file.

Holds: an entry is handed out only when its whole batch was found intact; LSNs handed out are dense and rising, except
behind a damaged range that SALVAGE skipped. A reader belongs to one thread; any number of them read one log.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import length_hint
from typing import Any, Generic, Literal, NamedTuple, overload

from walpool.format.entry import B, WALEntry
from walpool.options import RecoveryMode
from walpool.read.cursor import Start
from walpool.read.follow import follow
from walpool.read.reading import Reading
from walpool.read.scan import INITIAL_CAPACITY


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
        place = os.path.abspath(os.fspath(path))
        self._reading: Reading[B] = Reading(place, start, end, RecoveryMode(mode), initial_capacity, zero_copy, pin)

    # Reading

    def __iter__(self) -> Iterator[WALEntry[B]]:
        """Entries up to what was published when the reader got there."""
        reading = self._reading
        while True:
            reading.count()
            yield from reading.pending
            if not reading.take():
                return

    def read_entry(self) -> WALEntry[B] | None:
        """The next entry, or None at the end; more may come later."""
        reading = self._reading
        if not length_hint(reading.pending):
            reading.take()
        entry = next(reading.pending, None)
        reading.count(length_hint(reading.pending))
        return entry

    def read_all(self) -> list[WALEntry[B]]:
        """All entries that are left."""
        return list(self)

    def batches(self) -> Iterator[ReadBatch[B]]:
        """Batches as they were appended; what is left of one that was handed out entry by entry is not repeated."""
        reading = self._reading
        while entries := reading.next_entries(None):
            frame = reading.frame
            reading.count()
            yield ReadBatch(entries[0].lsn, len(entries), frame.appended_at, frame.writer, entries)

    def follow(self, timeout: float | None = None, durable_only: bool = False) -> Iterator[WALEntry[B]]:
        """Entries as they are appended, across rotations.

        Ends after `timeout` seconds without news, and at `end`; None waits for ever. With `durable_only` an entry comes
        once it is on disk; of a log without a control block (a copy, or before the first writer after a reboot) that is
        what its segments vouch for. Raises LogReplaced when the log was moved, removed or made anew meanwhile.
        """
        return follow(self._reading, timeout, durable_only)

    @property
    def stats(self) -> ReaderStats:
        reading, window = self._reading, self._reading.window
        return ReaderStats(
            reading.entries, reading.batches, reading.bytes, reading.cursor.segments, window.initial_capacity,
            window.capacity, window.resizes, len(reading.cursor.damaged),
        )  # fmt: skip

    @property
    def next_lsn(self) -> int:
        """The LSN of the next entry that this reader gives."""
        return self._reading.next_lsn

    @property
    def first_lsn(self) -> int:
        """The first LSN that the log has now; one more than `last_lsn` when it has no entry."""
        self._reading.check_open()
        return self._reading.cursor.first_lsn()

    @property
    def last_lsn(self) -> int:
        """The last LSN that the log has now, whatever this reader's `end` is; 0 for a log without an entry so far."""
        self._reading.check_open()
        return self._reading.cursor.next_lsn() - 1

    # Its life

    def close(self) -> None:
        """May be called again."""
        self._reading.close()

    def __enter__(self) -> "WALReader[B]":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        reading = self._reading
        options = (reading.mode, reading.window.initial_capacity, reading.zero_copy, reading.pinned)
        return _unpickle, (reading.path, reading.place(), reading.end, *options)


def _unpickle(
    path: str, start: int | None, end: int | None, mode: RecoveryMode, capacity: int, zero_copy: bool, pin: bool
) -> WALReader[Any]:
    return WALReader(path, start, end, mode=mode, initial_capacity=capacity, zero_copy=zero_copy, pin=pin)
