"""When: the LSN with which a moment began, found by the times at which batches were appended; there is no index.

Holds: `appended_at` never falls from batch to batch, however clocks were set. Headers alone are believed where they
only make the search begin earlier; the frame it begins with was summed up.
"""

import os
from contextlib import closing
from datetime import UTC, datetime, timedelta

from walpool.errors import LSNUnavailable
from walpool.format.frame import Frame
from walpool.options import RecoveryMode
from walpool.read.cursor import Cursor
from walpool.read.source import Source
from walpool.read.window import FrameWindow
from walpool.shared.control import known_segments
from walpool.shared.seek import last_head

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Moment = int | datetime


def lsn_at(path: str | os.PathLike[str], when: int | datetime) -> int:
    """The LSN of the first entry that was appended at `when` or later; one past the last entry if there is none.

    Batches are found by the time at which they were appended, which never goes back, and not by the timestamps of
    their entries. Some twenty small reads, however large the log is.

    >>> import walpool
    >>> with walpool.WALWriter("events.wal") as writer:
    ...     lsn = writer.put(b"key", b"value")
    >>> walpool.lsn_at("events.wal", 0)
    1

    Args:
        path: the log's directory, a copy of it, or one segment file.
        when: ns since the epoch, or a datetime; one without a time zone is local time.

    Raises:
        TypeError: for what is no moment.
        LogNotFound: mend the path.
        LogReplaced: another log, or none, is at the path by now: ask again.
        UnsafeLog: mend what it names.
        CorruptLog: damage stands before that entry: see `walpool verify`.
        UnsupportedVersion: upgrade walpool.
        IOFailed: retry when the cause is gone.
    """
    return find_lsn(path, nanoseconds(when), RecoveryMode.TOLERATE_TAIL)


def nanoseconds(when: Moment) -> int:
    """Since the epoch. Raises TypeError for what is no moment."""
    if isinstance(when, datetime):
        return (when.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1) * 1000
    if type(when) is not int:
        raise TypeError(f"a moment must be ns since the epoch, or a datetime, not {type(when).__name__}")
    return when


def find_lsn(path: str | os.PathLike[str], when_ns: int, mode: RecoveryMode) -> int:
    """See `lsn_at`; `mode` says what damage does."""
    while True:
        with closing(Cursor(Source(path), FrameWindow(), mode)) as cursor:
            try:
                cursor.begin(_before(cursor.source, when_ns), pin=False)
                while (frame := cursor.next()) is not None:
                    if frame.appended_at >= when_ns:
                        return frame.first_lsn
                return cursor.unread_lsn
            except LSNUnavailable:
                continue  # retention was faster


def _before(source: Source, when_ns: int) -> int | None:
    """The LSN of a batch that was appended before `when_ns`, the last one if headers are right; None: none was."""
    segments = known_segments(source.segments(), source.state())
    low, high = 0, len(segments)  # segments below `low` began before, those from `high` on did not
    while low < high:
        middle = (low + high) // 2
        if _last_before(source, segments[middle], when_ns, only_first=True) is None:
            high = middle
        else:
            low = middle + 1
    return _last_before(source, segments[low - 1], when_ns) if low else None


def _last_before(source: Source, first_lsn: int, when_ns: int, *, only_first: bool = False) -> int | None:
    """Of a segment: the LSN of its last batch, or its first, that was appended before `when_ns`."""
    try:
        segment = source.open(first_lsn)
    except FileNotFoundError:
        return None  # retention has removed it: what is left begins later
    with segment.file:
        limit = source.extent(segment).limit
        head = last_head(segment, limit, lambda head: head.appended_at, when_ns - 1, only_first=only_first)
        if head is None or only_first:
            return None if head is None else first_lsn
        window = FrameWindow()
        window.start(segment, head.offset)
        found = window.next(head.first_lsn, limit)
        is_right = isinstance(found, Frame) and found.appended_at < when_ns
        return head.first_lsn if is_right else first_lsn
