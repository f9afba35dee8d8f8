"""The cursor: a place in a log that moves from one intact frame to the next, across segments.

Takes no lock that a writer waits for, so whatever it looks at may change under it: appended to, rotated, pruned,
recovered, replaced. So before it believes that something is missing or damaged, it looks again at what there is.
Holds: what it gives is dense and rising, except behind a range that SALVAGE skipped; where the log at the path is not
the one that was read so far, it says so instead of reading on or waiting.
"""

from typing import Literal

from walpool.errors import CorruptLog, LogReplaced, LSNUnavailable
from walpool.format.frame import Damage, End, Frame
from walpool.options import RecoveryMode
from walpool.read.recognise import recognise
from walpool.read.source import Source
from walpool.read.tail import Tail
from walpool.read.verdict import Asker, Verdict, judge, with_hint
from walpool.read.walk import Extent, Stop, examine, nobody_appends
from walpool.read.window import FrameWindow
from walpool.shared.catalog import Segment, header_is_torn
from walpool.shared.control import known_segments
from walpool.shared.counters import counters_of
from walpool.shared.pins import Pin
from walpool.shared.seek import seek

Start = int | Literal["end"] | None
_SURE = (RecoveryMode.STRICT, RecoveryMode.POINT_IN_TIME)  # to them a torn tail is final: first wait for an append


class Cursor:
    """Where a reader is, from `begin` on."""

    def __init__(self, source: Source, window: FrameWindow, mode: RecoveryMode) -> None:
        self.source = source
        self.window = window
        self.counters = counters_of(source.directory.path)
        self.segment: Segment | None = None
        self.lsn = 0  # of the next frame
        self.last: Frame | None = None  # that was given
        self.segments = 0  # that were opened
        self.damaged: set[tuple[str, int]] = set()  # places
        self._mode = mode
        self._extent = Extent(0)
        self._fresh = False  # this segment was opened, and no frame of it was looked at yet
        self._sought = False  # the place in this segment came from a search, which a payload may have misled
        self._over = False  # POINT_IN_TIME met damage
        self._tail: Tail | None = None
        self._pin: Pin | None = None

    def begin(self, start: Start, *, pin: bool) -> None:
        """`start` is the first LSN that is wanted; None: the first entry there is; "end": what comes."""
        self._from_the_first = start is None  # then nothing is missed that retention removes before it is read
        self.start = 1 if start is None else self.next_lsn() if start == "end" else start
        if pin:
            self._pin = self.source.pin(self.start)
        first = max(self.source.segments()[0], self._pin.at if self._pin is not None else 0)  # what goes is gone
        if start is None or self.source.only is not None:
            self.start = max(self.start, first)
        elif self.start < first:
            raise LSNUnavailable(self.start, first, self.source.path)

    @property
    def unread_lsn(self) -> int:
        """The LSN of the first entry that was not given."""
        return max(self.lsn, self.start)

    def next_lsn(self) -> int:
        """One past the last entry of the log, as of now."""
        tail = self._look() if self.source.control is None else None  # first: a block that comes then knows better
        self._look_for_control()
        state = self.source.state()
        return state.next_lsn if state is not None else (tail or self._look()).next_lsn

    def durable_lsn(self) -> int:
        """Up to where entries are known to be on disk. Without a control block only the segments vouch for any."""
        control = self.source.control
        return control.durable_lsn if control is not None else self._look().durable_lsn

    def _look(self) -> Tail:
        if self._tail is None:
            self._tail = Tail(self.source)
        return self._tail.look()

    def has_news(self, durable_only: bool) -> bool:
        """Whether reading on could give something: cheap, as long as there is a control block."""
        if self.source.control is None or not self.is_ahead(durable_only):
            self._look_for_control()  # it may have appeared, or been replaced
            return self.is_ahead(durable_only)
        return True

    def is_ahead(self, durable_only: bool) -> bool:
        control = self.source.control
        if control is None:
            return True
        return (control.durable_lsn if durable_only else control.state().next_lsn - 1) >= self.unread_lsn

    # Moving

    def next(self) -> Frame | None:
        """The next intact frame, across segments; None where reading ends, for now or, in POINT_IN_TIME, for good."""
        while not self._over:
            if self.segment is None:
                if not self._enter(self.unread_lsn):
                    return None
                continue
            extent = self._extent
            if extent.limit_lsn is not None and self.lsn >= extent.limit_lsn:
                self._leave()
                continue
            found = self.window.next(self.lsn, extent.limit)
            if isinstance(found, Frame):
                if self._fresh and self._became_live():
                    continue
                if extent.limit_lsn is None or found.next_lsn <= extent.limit_lsn:
                    self.lsn = found.next_lsn
                    self.last = found
                    return found
                found = Damage(self.window.put_back(found), "")  # it reaches past the next segment's first LSN
            if self._moved():
                continue
            if self._sought and not (isinstance(found, End) and self.window.offset == extent.limit):
                self._from_start()
                continue
            if not self._pass(found):
                return None
        return None

    @property
    def ahead(self) -> Extent | None:
        """How far the segment counts, where frames can be read on as they stand; None: there `next` has more to do."""
        plain = self.segment is not None and not self._fresh and not self._over and self.lsn >= self.start
        return self._extent if plain else None

    def put_back(self, frame: Frame) -> int:
        """Stay before the frame that `next` gave just now; its offset in the file."""
        self.lsn = frame.first_lsn
        return self.window.put_back(frame)

    def _enter(self, lsn: int) -> bool:
        """Open the segment that holds `lsn` and find a place in it. True: done, or look again; False: none is there."""
        source = self.source
        source.check_known()
        there = source.segments()
        state = source.state()
        segments = known_segments(there, state)
        at = max((at for at, first in enumerate(segments) if first <= lsn), default=None)
        if at is None:
            if not segments:
                return False
            if self._from_the_first and self.last is None:
                self.start = segments[0]
                return True
            source.check_place()
            raise LSNUnavailable(lsn, segments[0], source.path)
        try:
            if self._pin is not None:
                self._pin.move(segments[at])
            segment = source.open(segments[at])
        except FileNotFoundError:
            if source.only is not None:
                raise source.replaced("the segment file was removed") from None
            return True  # removed between the look and the open: look again
        except CorruptLog as error:
            return self._bad_header(error, segments, at)
        try:
            source.check_id()
        except LogReplaced:
            segment.file.close()
            raise
        self.segment, self._fresh = segment, True
        self.segments += 1
        self.counters.add(files_opened=1)
        self._extent = source.extent(segment)
        self._sought = False
        offset, first_lsn = segment.header.entries_offset, segment.header.first_lsn
        if lsn > first_lsn:
            if self._extent.live and state is not None and state.segment == first_lsn and lsn >= state.next_lsn:
                offset, first_lsn = state.tail, state.next_lsn
            else:
                offset, first_lsn = seek(segment, lsn, self._extent.limit)
                self._sought = offset != segment.header.entries_offset
        self.lsn = first_lsn
        self.window.start(segment, offset)
        return True

    def _leave(self) -> None:
        if self.segment is not None:
            self.segment.file.close()
            self.segment = None
            self.start = self.unread_lsn  # a segment that is entered again begins with what was read already

    def _became_live(self) -> bool:
        """Whether a control block has come: the segment's first frame, which we have, may be unpublished then.

        Where none has, no recovery finds the segment empty any more, and so nobody appends to it.
        """
        self._fresh = False
        if self.source.control is None:
            self._look_for_control()
            if self.source.control is not None:
                self._leave()
        return self.segment is None

    def _from_start(self) -> None:
        """The search met a payload that holds a frame of this very segment: read it from its first frame instead."""
        assert self.segment is not None
        header = self.segment.header
        self.start = self.unread_lsn
        self._sought = False
        self.lsn = header.first_lsn
        self.window.start(self.segment, header.entries_offset)

    def _moved(self) -> bool:
        """Whether the segment counts further (an append, a rotation) or less far (a recovery) than it did."""
        assert self.segment is not None
        self._look_for_control()
        extent = self.source.extent(self.segment)
        moved = extent != self._extent
        self._extent = extent
        return moved

    # Another log in its place

    def check_log(self) -> None:
        """Raises LogReplaced when the log was moved, removed or made anew: asked when nothing comes any more."""
        source, segment = self.source, self.segment
        source.check_place()
        if segment is None:
            if not source.segments():
                raise source.replaced("the log's segments were removed")
            return
        if source.has_name(segment):
            return
        segments = source.segments()
        if source.only is not None or not segments:
            raise source.replaced("the file that was read was removed or replaced")
        self._recognise()
        self._leave()  # reading on opens what there is now: retention may have removed it, a recovery rewritten it

    def _look_for_control(self) -> None:
        self.source.look_for_control()
        if self.source.renewed:
            self.source.renewed = False
            self._recognise()  # a recovery made the block, or it is another log's

    def _recognise(self) -> None:
        try:
            recognise(self.source, self.last)
        except LogReplaced:
            self._leave()
            raise

    # Damage

    def _pass(self, found: End | Damage) -> bool:
        """Where no frame stands: True to read on, False to end here, or CorruptLog. The verdict comes last."""
        segment, extent, source, lsn = self.segment, self._extent, self.source, self.lsn
        assert segment is not None
        first = source.segments()[:1] if extent.limit_lsn is not None else []
        if first and first[0] > segment.header.first_lsn:  # removed under us, and those after it
            source.check_place()
            raise LSNUnavailable(lsn, first[0], source.path)
        wanted = extent.live or extent.limit_lsn is not None or self._mode in _SURE
        wait = source.wait_for_append if wanted else nobody_appends
        stop = examine(segment, self.window, lsn, found, extent, lambda: source.extent(segment), wait)
        if stop is not None and not stop.reason:
            return False
        if stop is None or self._moved():
            return True
        source.check_place()
        if not source.has_name(segment) and source.only is None:
            self.check_log()
            return True
        self.note(stop.offset)
        followed = stop.followed or extent.limit_lsn is not None
        match judge(Asker.READER, self._mode, vouched=extent.live, followed=followed):
            case Verdict.REFUSE:
                raise self.corrupt(stop.offset, lsn, with_hint(stop.reason) if stop.early and followed else stop.reason)
            case Verdict.SKIP:
                return self._skip(segment, stop)
            case verdict:
                self._over = verdict is Verdict.CUT
                return False

    def pass_body(self, frame: Frame, reason: str) -> None:
        """`frame` has a good checksum and entries that do not add up: SALVAGE goes on, all else stays before it."""
        verdict = judge(Asker.READER, self._mode, vouched=True, followed=True)  # by whatever stands behind it
        if verdict is Verdict.SKIP:
            self.note(self.window.offset - (frame.end - frame.offset))
            return
        offset = self.put_back(frame)
        self.note(offset)
        if verdict is Verdict.REFUSE:
            raise self.corrupt(offset, frame.first_lsn, reason)
        self._over = True

    def _skip(self, segment: Segment, stop: Stop) -> bool:
        """Go on at the next intact frame of this segment, or with the next one."""
        limit_lsn = self._extent.limit_lsn
        first = stop.next_intact(limit_lsn)
        if first is not None:
            self.lsn = first.first_lsn
            self.window.start(segment, first.offset)
        elif limit_lsn is not None:
            self.lsn = limit_lsn
        return first is not None or limit_lsn is not None

    def _bad_header(self, error: CorruptLog, segments: list[int], at: int) -> bool:
        """A segment whose header, and so all of it, cannot be read. True: look again, or go on; False: end here."""
        source, first_lsn = self.source, segments[at]
        last = at == len(segments) - 1
        try:
            torn = last and source.control is None and header_is_torn(source.directory, source.name_of(first_lsn))
            source.wait_for_append()
            source.open(first_lsn).file.close()
            return True  # it was being made when we looked
        except FileNotFoundError:
            return True  # it is gone: look again
        except CorruptLog:
            source.check_place()
        self.note(0, error.path)
        match judge(Asker.READER, self._mode, vouched=not torn, followed=not last):
            case Verdict.REFUSE:
                self.counters.add(reads_failed=1)
                raise CorruptLog(error.path, error.offset, first_lsn, error.reason)
            case Verdict.SKIP:
                return self._enter(segments[at + 1])
            case verdict:
                self._over = verdict is Verdict.CUT
                return False

    def note(self, offset: int, path: str | None = None) -> None:
        """Count a damaged place, once."""
        place = path or (self.segment.file.path if self.segment is not None else ""), offset
        if place not in self.damaged:
            self.damaged.add(place)
            self.counters.add(corrupted_entries=1)

    def corrupt(self, offset: int, lsn: int, reason: str) -> CorruptLog:
        assert self.segment is not None
        self.counters.add(reads_failed=1)
        return CorruptLog(self.segment.file.path, offset, lsn, reason)

    def close(self) -> None:
        self._leave()
        for each in (self._pin, self._tail, self.source):
            if each is not None:
                each.close()
