"""The plan: a range of a log in parts of nearly equal size, for several readers at once.

A part begins with a frame that was found near the byte where an even share would begin, and summed up. Holds: the parts
follow each other without a gap and without an overlap, whatever stands in the log. They are LSNs and nothing else: what
is appended or removed later changes no part, and only what a reader of it finds.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import closing
from itertools import accumulate
from typing import NamedTuple

from walpool.errors import CorruptLog, LSNUnavailable
from walpool.format.frame import Frame
from walpool.format.header import HEADER_BYTES
from walpool.format.names import MAX_LSN
from walpool.read.source import Source
from walpool.read.walk import Walk
from walpool.read.window import FrameWindow
from walpool.shared.catalog import Segment, header_is_torn
from walpool.shared.control import LogState, known_segments
from walpool.shared.pins import Pin
from walpool.shared.seek import first_head, seek
from walpool.system.processes import cores

FALSE_FRAMES = 8  # what looks like a frame and is none, before a cut is made at the next segment instead


class LSNRange(NamedTuple):
    """Entries of a log that follow each other: `WALReader(path, *part)` reads them.

    Attributes:
        start: the LSN of the first.
        end: one past the LSN of the last.
    """

    start: int
    end: int


for _field in LSNRange._fields:
    getattr(LSNRange, _field).__doc__ = None  # "Alias for field number 0": the class says what it is


def plan(
    path: str | os.PathLike[str], parts: int | None = None, *, start: int | None = None, end: int | None = None
) -> list[LSNRange]:
    """Split a log into parts of nearly equal bytes, which several processes or machines can read at once.

    The parts follow each other without gap or overlap, from `start` to `end`, or to what is published now. Each begins
    with a batch, so that none is cut in two. Nothing is held: use `map_batches`, or a reader with `pin`, where
    retention may remove what was not read yet.

    >>> import walpool
    >>> with walpool.WALWriter("events.wal") as writer:
    ...     for number in range(100):
    ...         lsn = writer.put(b"key", b"value")
    >>> walpool.plan("events.wal", 2)
    [LSNRange(start=1, end=51), LSNRange(start=51, end=101)]

    Args:
        path: the log's directory, a copy of it, or one segment file.
        parts (default None): how many, at most: a log of few batches has fewer, an empty range none. None: as many as
            there are cores to run on.
        start (default None): the first LSN that is wanted; None is the first entry there is.
        end (default None): the LSN before which to end; None, or one that is yet to come: after the last entry.

    Raises:
        ValueError: for an option that cannot be.
        LogNotFound: mend the path.
        LSNUnavailable: retention has removed `start`: start at its `first_available`.
        LogReplaced: another log, or none, is at the path by now: ask again.
        UnsafeLog: mend what it names.
        CorruptLog: a segment file's header is damaged: see `walpool verify`.
        UnsupportedVersion: upgrade walpool.
        IOFailed: retry when the cause is gone.
    """
    if parts is None:
        parts = cores()
    if type(parts) is not int or parts < 1:
        raise ValueError(f"parts must be a number from 1, or None, not {parts!r}")
    check_range(start, end)
    with closing(Ground(Source(path), start, end)) as ground:
        return list(ground.parts(parts))


def check_range(start: int | None, end: int | None) -> None:
    for name, lsn in (("start", start), ("end", end)):
        if lsn is not None and (type(lsn) is not int or lsn < 1):
            raise ValueError(f"{name} must be an LSN, from 1, or None, not {lsn!r}")


class Ground:
    """What is to be split: the bytes of a log's frames from `start` up to `end`, one segment after another."""

    def __init__(self, source: Source, start: int | None, end: int | None, *, pin: bool = False) -> None:
        self.source = source
        self._pin: Pin | None = None
        self._segment: Segment | None = None  # that a cut was looked for in last
        try:
            if pin:
                self._pin = source.pin(start or 1)
            while True:
                try:
                    self._measure(start, end)
                    return
                except FileNotFoundError:
                    source.first_lsn()  # retention was faster: look again, unless all is gone
                    if source.only is not None:
                        raise source.replaced("the segment file was removed") from None
        except BaseException:
            self.close()
            raise

    def _measure(self, start: int | None, end: int | None) -> None:
        source = self.source
        state = source.state()  # before the names: the segment that it names has one by then
        pinned = self._pin.at if self._pin is not None else 0  # what goes is gone
        segments = [first for first in known_segments(source.segments(), state) if first >= pinned]
        if not segments:
            segments = [source.first_lsn()]  # LogReplaced, unless a segment came this moment
        if start is None or source.only is not None:
            start = max(start or 1, segments[0])
        elif start < segments[0]:
            raise LSNUnavailable(start, segments[0], source.path)
        there = self._next_lsn(segments, state)
        self.start, self.end = start, there if end is None else min(end, there)
        first = bisect_right(segments, start) - 1
        behind = max(first + 1, bisect_right(segments, self.end - 1))
        self.segments, self._limits = segments[first:behind], segments[first + 1 : behind + 1]
        ends = source.directory.sizes([source.name_of(lsn) for lsn in self.segments])
        if state is not None and self.segments[-1] == state.segment:
            ends[-1] = state.tail
        begins = [HEADER_BYTES] * len(ends)
        if self.start > self.segments[0]:
            begins[0] = self._offset_of(self.segments[0], self.start, ends[0])
        if self.end < (self._limits[-1] if len(self._limits) == len(ends) else there):
            ends[-1] = self._offset_of(self.segments[-1], self.end, ends[-1])
        self._begins, self._ends = begins, ends
        self._marks = [0, *accumulate(max(0, end - begin) for begin, end in zip(begins, ends, strict=True))]

    @property
    def bytes(self) -> int:
        return self._marks[-1] if self.start < self.end else 0

    def parts(self, count: int) -> Iterator[LSNRange]:
        """At most `count` of them; each cut is looked for when its part is asked for."""
        start = self.start
        for at in range(1, count):
            cut = self._cut(self.bytes * at // count)
            if start < cut < self.end:
                yield LSNRange(start, cut)
                start = cut
        if start < self.end:
            yield LSNRange(start, self.end)

    def pass_by(self, lsn: int) -> None:
        """Keep nothing before `lsn` any more."""
        if self._pin is not None:
            self._pin.move(self.segments[max(0, bisect_right(self.segments, lsn) - 1)])

    def close(self) -> None:
        self._let_go()
        if self._pin is not None:
            self._pin.close()
        self.source.close()

    def _next_lsn(self, segments: list[int], state: LogState | None) -> int:
        """One past the last entry. Without a control block: past the last that is intact, also behind damage.

        So that whoever reads the last part meets the damage, as a reader of everything does.
        """
        if state is not None:
            return state.next_lsn
        source, last = self.source, segments[-1]
        try:
            segment = source.open(last)
        except FileNotFoundError:
            return last
        except CorruptLog:
            torn = header_is_torn(source.directory, source.name_of(last))
            return last if torn else last + 1  # one entry, so that somebody reads there and hears of it
        with segment.file:
            limit = segment.file.size()
            offset, lsn = seek(segment, MAX_LSN - 1, limit)
            while True:
                walk = Walk(segment, FrameWindow(1 << 18), at=(offset, lsn), bodies=True)
                stop = None
                while stop is None:
                    for _ in walk.runs():
                        pass
                    stop = walk.stop()
                if walk.lsn > lsn or lsn == last:
                    return max(walk.lsn, stop.behind.next_lsn, stop.whole.next_lsn if stop.whole is not None else 0)
                offset, lsn = segment.header.entries_offset, last  # the search was misled by a payload

    def _offset_of(self, first_lsn: int, lsn: int, limit: int) -> int:
        """About where `lsn` stands in a segment."""
        segment = self._open(first_lsn)
        return HEADER_BYTES if segment is None else seek(segment, lsn, limit)[0]

    def _cut(self, position: int) -> int:
        """The LSN of the first frame from a place on; of the next segment's where none is found."""
        at = min(bisect_right(self._marks, position), len(self.segments)) - 1
        first_lsn = self.segments[at]
        offset = self._begins[at] + position - self._marks[at]
        limit_lsn = self._limits[at] if at < len(self._limits) else self.end
        if offset <= HEADER_BYTES:
            return first_lsn
        segment = self._open(first_lsn)
        lsn = None if segment is None else first_frame(segment, offset, self._ends[at])
        return limit_lsn if lsn is None else min(lsn, limit_lsn)

    def _open(self, first_lsn: int) -> Segment | None:
        """None: it is gone, or cannot be read."""
        if self._segment is None or self._segment.header.first_lsn != first_lsn:
            self._let_go()
            try:
                self._segment = self.source.open(first_lsn)
            except (FileNotFoundError, CorruptLog):
                return None
        return self._segment

    def _let_go(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.file.close()


def first_frame(segment: Segment, offset: int, limit: int) -> int | None:
    """The first LSN of the first frame from `offset` on that sums up; None: there is none, or bytes are hostile."""
    window = FrameWindow()
    for _ in range(FALSE_FRAMES):
        head = first_head(segment, offset, limit, limit)
        if head is None:
            return None
        window.start(segment, head.offset)
        if isinstance(window.next(head.first_lsn, limit), Frame):
            return head.first_lsn
        offset = head.offset + 1
    return None
