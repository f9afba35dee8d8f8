"""WALReader: entries in LSN order, from a live log, a copy, or one segment file.

Holds: an entry is handed out only when its whole batch was found intact; LSNs handed out are dense and rising, except
behind a damaged range that SALVAGE skipped. A reader belongs to one thread; any number of them read one log.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, Generic, Literal, overload

from walpool.format.entry import B, WALEntry
from walpool.options import RecoveryMode
from walpool.read.cursor import Start
from walpool.read.follow import follow
from walpool.read.reading import ReadBatch, ReaderStats, Reading
from walpool.read.when import Moment, find_lsn, nanoseconds
from walpool.read.window import INITIAL_CAPACITY


class WALReader(Generic[B]):
    """Reads the log at `path` in LSN order, from `start` up to `end`, beside whoever appends.

    It takes no lock; only before it reports damage in a live log it looks once more while no append is under way.

    A reader belongs to one thread. It may be used after a fork, and pickled: then it goes on where it was. A `with`
    block closes it. Iterating gives entries up to what was published when the reader got there; iterate again for more.

    >>> import walpool
    >>> with walpool.WALWriter("events.wal") as writer:
    ...     lsns = writer.append_batch([walpool.WALEntry.put(b"a", b"1"), walpool.WALEntry.put(b"b", b"2")])
    >>> with walpool.WALReader("events.wal", start=2) as reader:
    ...     for entry in reader:
    ...         print(entry.lsn, entry.key, entry.value)
    2 b'b' b'2'

    Args:
        path: the log's directory, a copy of it, or one segment file.
        start (default None): the first LSN that is wanted, also one that is yet to come; None is the first entry there
            is, "end" is what is appended from now on.
        end (default None): the LSN before which reading ends; None reads as far as the log goes.
        since (default None): instead of `start`: ns since the epoch, or a datetime; begins with what was appended then
            or later, as `lsn_at` finds it.
        mode (default RecoveryMode.TOLERATE_TAIL): what damage does. TOLERATE_TAIL ends at a torn tail, and raises
            CorruptLog for damage before intact or durable frames; STRICT raises for both; POINT_IN_TIME ends at the
            first; SALVAGE skips what is damaged.
        initial_capacity (default 8192): bytes of the buffer; it grows to the largest frame met.
        zero_copy (default False): keys and values are memoryviews, valid until the next entry is asked for; those of
            `batches` and `read_all` stay valid, each batch in a copy of its own.
        pin (default False): retention keeps what is not read yet, up to `Retention.max_pinned_bytes`.

    Raises:
        TypeError, ValueError: for an option that cannot be.
        LogNotFound: mend the path, or retry once a writer has made the log.
        LSNUnavailable: retention has removed `start`: start at its `first_available`.
        UnsafeLog: mend what it names.
        CorruptLog: a segment file's header is damaged: see `walpool verify`.
        UnsupportedVersion: upgrade walpool.
        IOFailed: retry when the cause is gone.
    """

    @overload
    def __init__(
        self: "WALReader[bytes]",
        path: str | os.PathLike[str],
        start: Start = None,
        end: int | None = None,
        *,
        since: Moment | None = None,
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
        since: Moment | None = None,
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
        since: Moment | None = None,
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
        since: Moment | None = None,
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
        if since is not None:
            if start is not None:
                raise ValueError("start and since both say where to begin: give one of them")
            start = find_lsn(path, nanoseconds(since), RecoveryMode(mode))
        self._reading: Reading[B] = Reading(path, start, end, mode, initial_capacity, zero_copy, pin)

    # Reading

    def __iter__(self) -> Iterator[WALEntry[B]]:
        """Entries up to what was published when the reader got there. Raises what `read_entry` raises."""
        reading = self._reading
        while True:
            reading.count()
            yield from reading.pending
            if not reading.take():
                return

    def read_entry(self) -> WALEntry[B] | None:
        """The next entry, or None at the end; more may come later.

        Raises:
            CorruptLog: damage that `mode` does not pass: see `walpool verify`; SALVAGE reads on behind it.
            LSNUnavailable: retention was faster: open another reader at `first_available`, and next time with `pin`.
            LogReplaced: another log, or none, is at the path by now: open it again.
            UnsupportedVersion: upgrade walpool.
            UnsafeLog, IOFailed: the system refuses a call: retry when the cause is gone.
            LogClosed: the reader was closed.
        """
        return self._reading.next_entry()

    def read_all(self) -> list[WALEntry[B]]:
        """All entries that are left, in one list.

        Raises:
            CorruptLog, LSNUnavailable, LogReplaced, UnsupportedVersion: as `read_entry`.
            UnsafeLog, IOFailed, LogClosed: as `read_entry`.
        """
        return self._reading.views_to_keep() if self._reading.zero_copy else list(self)

    def batches(self) -> Iterator[ReadBatch[B]]:
        """Batches as they were appended; what is left of one that was handed out entry by entry is not repeated.

        Raises:
            CorruptLog, LSNUnavailable, LogReplaced, UnsupportedVersion: as `read_entry`.
            UnsafeLog, IOFailed, LogClosed: as `read_entry`.
        """
        while batch := self._reading.next_batch():
            yield batch

    def follow(self, timeout: float | None = None, durable_only: bool = False) -> Iterator[WALEntry[B]]:
        """Entries as they are appended, across rotations.

        It ends at the reader's `end`, too. What was not taken when the caller stops, the reader keeps.

        Args:
            timeout (default None): end after so many seconds without news; None waits for ever.
            durable_only (default False): give an entry once it is on disk. Of a log without a control block (a copy, or
                before the first writer after a reboot) that is what its segments vouch for.

        Raises:
            CorruptLog, LSNUnavailable, LogReplaced, UnsupportedVersion: as `read_entry`.
            UnsafeLog, IOFailed, LogClosed: as `read_entry`.
        """
        return follow(self._reading, timeout, durable_only)

    @property
    def stats(self) -> ReaderStats:
        """What this reader has read so far."""
        return self._reading.stats()

    @property
    def next_lsn(self) -> int:
        """The LSN of the next entry that this reader gives."""
        return self._reading.next_lsn

    @property
    def first_lsn(self) -> int:
        """The first LSN that the log has now; one more than `last_lsn` when it has no entry.

        Raises:
            LogReplaced: the log is gone, or another one: open it again.
            UnsafeLog, IOFailed, LogClosed: as `read_entry`.
        """
        self._reading.check_open()
        return self._reading.cursor.source.first_lsn()

    @property
    def last_lsn(self) -> int:
        """The last LSN that the log has now, whatever this reader's `end` is; 0 for a log without an entry so far.

        Raises:
            LogReplaced: the log is another one: open it again.
            UnsafeLog, IOFailed, LogClosed: as `read_entry`.
        """
        self._reading.check_open()
        return self._reading.cursor.next_lsn() - 1

    # Its life

    def close(self) -> None:
        """Let go of the log, and of the pin; may be called again. An iterator that is still held raises LogClosed."""
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
