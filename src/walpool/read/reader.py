"""WALReader: entries in LSN order, from a live log, a copy, or one segment file.

Holds: an entry is handed out only when its whole batch was found intact; LSNs handed out are dense and rising, except
behind a damaged range that SALVAGE skipped. A reader belongs to one thread; any number of them read one log.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import length_hint
from typing import Any, NamedTuple

from walpool.errors import CorruptLog, LogClosed, LSNUnavailable
from walpool.format.entry import BodyError, WALEntry, decode_body
from walpool.format.frame import Damage, End, Frame, SearchExhausted, find_frames
from walpool.options import RecoveryMode
from walpool.read.follow import follow
from walpool.read.scan import INITIAL_CAPACITY, FrameWindow, look_behind, refuse_unknown, scan_segment
from walpool.read.seek import seek
from walpool.read.source import Extent, Source
from walpool.shared.catalog import Segment, header_is_torn, used_range
from walpool.shared.control import Control
from walpool.shared.counters import counters_of
from walpool.shared.pins import Pin


class ReadBatch(NamedTuple):
    """One batch as it was appended; `entries` starts at the reader's `start` when that lies inside."""

    first_lsn: int
    count: int  # type: ignore[assignment]  # public name; nobody counts in a batch
    appended_at: int  # ns since the epoch
    writer: int  # slot
    entries: list[WALEntry]


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


class WALReader:
    """Reads the log at `path` (a directory, or one segment file) from the LSN `start` on.

    `mode` says what damage does: TOLERATE_TAIL ends at a torn tail and raises CorruptLog for damage before intact or
    durable frames; STRICT raises for both; POINT_IN_TIME ends at the first; SALVAGE skips what is damaged.
    With `zero_copy` keys and values are memoryviews that are valid until the next entry is asked for. With `pin`
    retention keeps what this reader has not read yet, up to `Retention.max_pinned_bytes`.

    Raises LogNotFound, UnsafeLog, LSNUnavailable for a `start` that retention has removed, UnsupportedVersion.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        start: int = 1,
        *,
        mode: RecoveryMode = RecoveryMode.TOLERATE_TAIL,
        initial_capacity: int = INITIAL_CAPACITY,
        zero_copy: bool = False,
        pin: bool = False,
    ) -> None:
        if type(start) is not int or start < 1:
            raise ValueError(f"start must be an LSN, from 1, not {start!r}")
        if type(initial_capacity) is not int or initial_capacity < 1:
            raise ValueError(f"initial_capacity must be a number of bytes, not {initial_capacity!r}")
        self._closed = True
        self._path = os.path.abspath(os.fspath(path))
        self._start = start
        self._mode = RecoveryMode(mode)
        self._zero_copy = zero_copy
        self._pin: Pin | None = None
        self._window = FrameWindow(initial_capacity)
        self._source = Source(path)
        self._closed = False
        self._counters = counters_of(self._source.directory.path)
        self._counts = self._counters.cell_for(self)
        self._segment: Segment | None = None
        self._extent = Extent(0, None, False)
        self._frame_lsn = 0  # of the next frame
        self._frame: Frame  # the last one decoded
        self._sought = False  # the place in this segment came from a search
        self._over = False  # POINT_IN_TIME met damage
        self._pending: Iterator[WALEntry] = iter(())
        self._entries = self._batches = self._bytes = self._segments = 0
        self._damaged: set[tuple[str, int]] = set()
        if pin:
            self._start_pin()
        self._check_start()

    def _start_pin(self) -> None:
        try:
            self._pin = Pin(self._source.directory)
        except FileNotFoundError:
            return  # a copy: nobody prunes it
        for first_lsn in reversed(self._source.segments()):
            if first_lsn <= self._start:
                self._pin.move(first_lsn)
                break

    def _check_start(self) -> None:
        first = self._source.segments()[0]
        if self._start < first:
            if self._source.only is None:
                raise LSNUnavailable(self._start, first)
            self._start = first

    # Reading

    def __iter__(self) -> Iterator[WALEntry]:
        """Entries up to what was published when the reader got there."""
        while True:
            self._count_read()
            yield from self._pending
            entries = self._next_entries(None)
            if not entries:
                return
            self._pending = iter(entries)
            del entries  # two batches alive at once would not fit the processor's cache

    def read_entry(self) -> WALEntry | None:
        """The next entry, or None at the end; more may come later."""
        if not length_hint(self._pending):
            self._pending = iter(self._next_entries(None))
        entry = next(self._pending, None)
        self._count_read(length_hint(self._pending))
        return entry

    def read_all(self) -> list[WALEntry]:
        """All entries that are left."""
        return list(self)

    def batches(self) -> Iterator[ReadBatch]:
        """Batches as they were appended; what is left of one that was handed out entry by entry is not repeated."""
        while entries := self._next_entries(None):
            frame = self._frame
            self._count_read()
            yield ReadBatch(entries[0].lsn, len(entries), frame.appended_at, frame.writer, entries)

    def follow(self, timeout: float | None = None, durable_only: bool = False) -> Iterator[WALEntry]:
        """Entries as they are appended, across rotations.

        Ends after `timeout` seconds without news; None waits for ever. With `durable_only` an entry comes once it is on
        disk.
        """
        return follow(self, timeout, durable_only)

    @property
    def stats(self) -> ReaderStats:
        window = self._window
        return ReaderStats(
            self._entries, self._batches, self._bytes, self._segments, window.initial_capacity, window.capacity,
            window.resizes, len(self._damaged),
        )  # fmt: skip

    @property
    def next_lsn(self) -> int:
        """The LSN of the next entry."""
        return max(self._frame_lsn - length_hint(self._pending), self._start)

    @property
    def _unread_lsn(self) -> int:
        """The LSN of the first entry that is not in hand."""
        return max(self._frame_lsn, self._start)

    # Position

    def has_news(self, durable_only: bool) -> bool:
        """Whether reading on could give something: cheap, for `follow`."""
        if self._closed:
            raise LogClosed(f"{self._path}: the reader is closed")
        source = self._source
        control = source.control
        if control is None or not self._is_ahead(control, durable_only):
            source.look_for_control()  # it may have appeared, or been replaced
            control = source.control
            return control is None or self._is_ahead(control, durable_only)
        return True

    def _is_ahead(self, control: Control, durable_only: bool) -> bool:
        return (control.durable_lsn if durable_only else control.state().next_lsn - 1) >= self._unread_lsn

    @property
    def pending(self) -> Iterator[WALEntry]:
        """What is left of the batch in hand. For `follow`."""
        return self._pending

    def advance(self, durable_only: bool) -> bool:
        """Take the next batch in hand, if there is one. For `follow`."""
        control = self._source.control
        entries = self._next_entries(control.durable_lsn if durable_only and control is not None else None)
        self._pending = iter(entries)
        self._count_read()
        return bool(entries)

    def _next_entries(self, last_lsn: int | None) -> list[WALEntry]:
        """The entries of the next batch, unless it starts past `last_lsn`; empty where reading ends for now."""
        if self._closed:
            raise LogClosed(f"{self._path}: the reader is closed")
        while True:
            if last_lsn is not None and self._unread_lsn > last_lsn:
                return []
            frame = self._next_frame()
            if frame is None:
                return []
            first_lsn, count = frame.first_lsn, frame.count
            self._frame_lsn = next_lsn = first_lsn + count
            start = self._start
            if next_lsn <= start:
                continue
            self._frame = frame
            if frame.flags:
                assert self._segment is not None
                refuse_unknown(frame, self._segment.file.path)
            try:
                entries = decode_body(self._window.data, frame.body, frame.end, count, first_lsn, views=self._zero_copy)
            except BodyError as error:
                self._pass_body(frame, error.reason)
                continue
            if first_lsn < start:
                del entries[: start - first_lsn]
            self._entries += len(entries)
            self._batches += 1
            self._bytes += frame.end - frame.offset
            return entries

    def _next_frame(self) -> Frame | None:
        """The next intact frame, across segments; None where reading ends for now."""
        while not self._over:
            if self._segment is None and not self._enter(max(self._start, self._frame_lsn)):
                return None
            extent = self._extent
            if extent.limit_lsn is not None and self._frame_lsn >= extent.limit_lsn:
                self._leave()
                continue
            found = self._window.next(self._frame_lsn, extent.limit)
            if isinstance(found, Frame):
                if extent.limit_lsn is None or found.next_lsn <= extent.limit_lsn:
                    return found
                found = Damage(0, f"a frame reaches past LSN {extent.limit_lsn}, where the next segment starts")
            if self._moved():
                continue
            if self._sought and not (isinstance(found, End) and self._window.offset == extent.limit):
                self._from_start()
                continue
            if not self._pass(found):
                return None
        return None

    def _enter(self, lsn: int) -> bool:
        """Open the segment that holds `lsn` and find a place in it."""
        while True:
            segments = self._source.segments()
            state = self._source.state()
            if state is not None:
                segments = [first for first in segments if first <= state.segment]
            at = max((at for at, first in enumerate(segments) if first <= lsn), default=None)
            if at is None:
                if not segments:
                    return False
                raise LSNUnavailable(lsn, segments[0])
            try:
                if self._pin is not None:
                    self._pin.move(segments[at])
                segment = self._source.open(segments[at])
            except FileNotFoundError:
                continue  # removed between the look and the open: look again
            except CorruptLog as error:
                return self._bad_header(error, segments, at)
            break
        self._segment = segment
        self._segments += 1
        self._counters.add(files_opened=1)
        self._extent = self._source.extent(segment)
        self._sought = False
        offset, first_lsn = segment.header.entries_offset, segment.header.first_lsn
        if lsn > first_lsn:
            if self._extent.live and state is not None and state.segment == first_lsn and lsn >= state.next_lsn:
                offset, first_lsn = state.tail, state.next_lsn
            else:
                offset, first_lsn = seek(segment, lsn, self._extent.limit)
                self._sought = offset != segment.header.entries_offset
        self._frame_lsn = first_lsn
        self._window.start(segment, offset)
        return True

    def _leave(self) -> None:
        assert self._segment is not None
        self._segment.file.close()
        self._segment = None

    def _from_start(self) -> None:
        """The place that the search found was inside a payload: read this segment from its first frame."""
        assert self._segment is not None
        header = self._segment.header
        self._start = max(self._start, self._frame_lsn)
        self._sought = False
        self._frame_lsn = header.first_lsn
        self._window.start(self._segment, header.entries_offset)

    def _moved(self) -> bool:
        """Whether the segment counts further, or less far, than when we last looked."""
        assert self._segment is not None
        self._source.look_for_control()
        extent = self._source.extent(self._segment)
        moved = extent != self._extent
        self._extent = extent
        return moved

    # Damage

    def _pass(self, found: End | Damage) -> bool:
        """What to do where no frame stands: True to read on, False to end here, or CorruptLog."""
        segment, extent = self._segment, self._extent
        assert segment is not None
        offset, lsn = self._window.offset, self._frame_lsn
        first = self._source.segments()[0] if extent.limit_lsn is not None else 0
        if first > segment.header.first_lsn:  # removed under us, and those after it
            raise LSNUnavailable(lsn, first)
        if offset == extent.limit and extent.limit_lsn is None:
            return False  # the end of what is published, or of the last segment
        torn = False
        if extent.live or extent.limit_lsn is not None:
            reason = found.reason if isinstance(found, Damage) else f"no frame stands here, LSN {lsn} should"
            self._source.settle()
            self._window.start(segment, offset)
            again = self._window.next(lsn, self._source.extent(segment).limit)
            if isinstance(again, Frame) or self._moved():
                self._window.start(segment, offset)
                return True
        else:
            behind = look_behind(segment, offset, lsn)
            if isinstance(found, End) and behind.blank:
                return False  # zeros: space that was allocated and not used
            reason = found.reason if isinstance(found, Damage) else "zeros stand before other bytes"
            torn = not behind.entries and not behind.exhausted
        self._note(segment.file.path, offset)
        if self._mode is RecoveryMode.POINT_IN_TIME:
            self._over = True
            return False
        if self._mode is RecoveryMode.SALVAGE:
            return self._skip_to_intact(segment, offset, lsn)
        if torn and self._mode is RecoveryMode.TOLERATE_TAIL:
            return False
        raise self._corrupt(offset, lsn, reason)

    def _pass_body(self, frame: Frame, reason: str) -> None:
        """A frame is intact and its entries do not add up: SALVAGE reads on behind it, all else stays before it."""
        segment, offset = self._segment, self._window.offset - (frame.end - frame.offset)
        assert segment is not None
        self._note(segment.file.path, offset)
        if self._mode is RecoveryMode.SALVAGE:
            return
        self._frame_lsn = frame.first_lsn
        self._window.start(segment, offset)
        if self._mode is not RecoveryMode.POINT_IN_TIME:
            raise self._corrupt(offset, frame.first_lsn, reason)
        self._over = True

    def _skip_to_intact(self, segment: Segment, offset: int, lsn: int) -> bool:
        """SALVAGE: go on at the next intact frame of this segment, or with the next one."""
        extent = self._extent
        offset, end = used_range(segment.file, offset)
        rest = segment.file.read(min(end, extent.limit) - offset, offset)
        try:
            intact = next(find_frames(rest, 0, segment.header.marker, lsn), None)
        except SearchExhausted:
            intact = None
        if intact is not None and (extent.limit_lsn is None or intact.next_lsn <= extent.limit_lsn):
            self._frame_lsn = intact.first_lsn
            self._window.start(segment, offset + intact.offset)
            return True
        if extent.limit_lsn is None:
            return False
        self._frame_lsn = extent.limit_lsn
        return True

    def _bad_header(self, error: CorruptLog, segments: list[int], at: int) -> bool:
        """A segment whose header cannot be read, so none of its frames can."""
        first_lsn = segments[at]
        torn = (
            at == len(segments) - 1
            and self._source.control is None
            and header_is_torn(self._source.directory, first_lsn)
        )
        if torn and scan_segment(self._source.directory, first_lsn, None, self._window).problem is None:
            return True  # it was being made when we looked
        self._note(error.path, 0)
        if self._mode is RecoveryMode.SALVAGE and at + 1 < len(segments):
            return self._enter(segments[at + 1])
        if self._mode in (RecoveryMode.POINT_IN_TIME, RecoveryMode.SALVAGE):
            self._over = True
            return False
        if torn and self._mode is RecoveryMode.TOLERATE_TAIL:
            return False
        self._counters.add(reads_failed=1)
        raise CorruptLog(error.path, error.offset, first_lsn, error.reason)

    def _note(self, path: str, offset: int) -> None:
        if (path, offset) not in self._damaged:
            self._damaged.add((path, offset))
            self._counters.add(corrupted_entries=1)

    def _corrupt(self, offset: int, lsn: int, reason: str) -> CorruptLog:
        assert self._segment is not None
        self._note(self._segment.file.path, offset)
        self._counters.add(reads_failed=1)
        return CorruptLog(self._segment.file.path, offset, lsn, reason)

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
        if not self._closed:
            self._closed = True
            deque(self._pending, 0)  # whoever holds the iterator gets LogClosed, not the rest of a batch
            if self._segment is not None:
                self._leave()
            if self._pin is not None:
                self._pin.close()
            self._source.close()

    def __enter__(self) -> "WALReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        options = (self._mode, self._window.initial_capacity, self._zero_copy, self._pin is not None)
        return _unpickle, (self._path, self.next_lsn, *options)


def _unpickle(path: str, start: int, mode: RecoveryMode, capacity: int, zero_copy: bool, pin: bool) -> WALReader:
    return WALReader(path, start, mode=mode, initial_capacity=capacity, zero_copy=zero_copy, pin=pin)
