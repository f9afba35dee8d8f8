"""The walk: the frames of one segment in order, why they stop, and what is intact behind that place.

The frames of a segment stop at its end, at the tail, or where something is wrong. Which of these it is, the place alone
does not tell: zeros may be space that was prepared, a hole that a power cut left, or a frame that a writer is writing
this very moment. So `examine` gathers what speaks for each: what is intact behind the place, and what stands there at a
second look.

Holds: one look is no proof, because a writer may be at work there. Frames are written in order: where later ones were
seen, the earlier one is there by now. So the second look comes after everything that speaks against the place. What to
do about a stop is for read/verdict.py.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from walpool.errors import UnsupportedVersion
from walpool.format.body import BodyError, check_body
from walpool.format.frame import FRAME_BYTES, Damage, End, Frame, SearchExhausted, find_frames
from walpool.format.names import MAX_LSN
from walpool.format.run import Run, run_of
from walpool.read.window import FrameWindow
from walpool.shared.catalog import Segment, used_range


class Extent(NamedTuple):
    """How far one segment counts."""

    limit: int  # offset one past the last byte to look at: the published tail, or the end of the file
    limit_lsn: int | None = None  # first LSN of the next segment, None when there is none
    live: bool = False  # `limit` is the published tail: whatever is before it is a frame, or damaged


class Behind(NamedTuple):
    """Intact frames behind a place where none stands: the evidence that tells damage from a torn tail."""

    entries: int = 0
    durable_lsn: int = 0  # the highest that any of them states
    exhausted: bool = False  # the search gave up (see find_frames): there may be more, so this is no proof of an end
    next_lsn: int = 0  # one past the last entry of them
    first: Frame | None = None  # of them; offsets are those in the file
    blank: bool = False  # nothing but zeros, or nothing


class Stop(NamedTuple):
    """Where the frames of a segment stop. Without a reason they end there: zeros may follow, or the next segment."""

    offset: int  # in the file
    lsn: int  # expected there
    reason: str = ""
    behind: Behind = Behind()
    whole: Frame | None = None  # a frame whose checksum fits and whose entries do not add up: no torn write
    short: bool = False  # zeros, or the end of the file, in a segment that others follow
    early: bool = False  # as cp or tar leave it, which read this place before the writer had written all of it

    @property
    def followed(self) -> bool:
        """Whether an intact frame of this segment stands behind, or may: then this is no end."""
        return self.behind.entries > 0 or self.behind.exhausted

    def next_intact(self, limit_lsn: int | None) -> Frame | None:
        """The first intact frame behind, unless it reaches into the segment that begins with `limit_lsn`."""
        first = self.behind.first
        return first if first is not None and (limit_lsn is None or first.next_lsn <= limit_lsn) else None


def nobody_appends() -> None:
    """For `examine`, where there is no append to wait for: nothing to do."""


class Walk:
    """The frames of a segment from `at`, an offset and the LSN that stands there; from its first frame without it.

    With `bodies` frames of newer versions are refused, and a frame whose entries do not add up is a stop, too.
    """

    def __init__(
        self,
        segment: Segment,
        window: FrameWindow,
        extent: Extent | None = None,
        *,
        at: tuple[int, int] | None = None,
        bodies: bool = False,
    ) -> None:
        self._segment = segment
        self._window = window
        self.extent = extent or Extent(segment.file.size())
        self._bodies = bodies
        offset, self.lsn = at or (segment.header.entries_offset, segment.header.first_lsn)
        self._found: End | Damage | None = None  # in place of a frame
        self._misfit: Stop | None = None  # a frame whose checksum fits was written whole: no second look would help
        window.start(segment, offset)

    @property
    def offset(self) -> int:
        """One past the last frame that was given, in the file."""
        return self._window.offset

    def __iter__(self) -> Iterator[Frame]:
        window, bodies = self._window, self._bodies
        limit, limit_lsn, live = self.extent
        self._found = self._misfit = None
        while limit_lsn is None or self.lsn < limit_lsn:
            found = window.next(self.lsn, limit)
            if not isinstance(found, Frame):
                self._found = found
                return
            if limit_lsn is not None and found.next_lsn > limit_lsn:
                self._found = Damage(window.put_back(found), "")
                return
            if bodies:
                refuse_unknown(found, self._segment.file.path)
                try:
                    check_body(window.data, found.body, found.end, found.count)
                except BodyError as error:
                    behind = look_behind(self._segment, window.offset, found.next_lsn, limit if live else None)
                    self._misfit = Stop(window.put_back(found), self.lsn, error.reason, behind, whole=found)
                    return
            self.lsn = found.next_lsn
            yield found

    def runs(self) -> Iterator[Run]:
        """The same frames, of a walk with `bodies`, as many at once as stand in the window."""
        while True:
            limit, limit_lsn, _ = self.extent
            run = self._window.next_run(self.lsn, limit, MAX_LSN if limit_lsn is None else limit_lsn, False)
            if run is None:
                frame = next(iter(self), None)
                if frame is None:
                    return
                run = run_of(frame)
            self.lsn = run.next_lsn
            yield run

    @property
    def is_damaged(self) -> bool:
        """Whether other bytes than zeros stood, at the first look, where the frames stopped."""
        return isinstance(self._found, Damage)

    def stop(self, wait: Callable[[], None] = nobody_appends) -> Stop | None:
        """Why the frames have stopped; None when, looked at again, a frame stands there: iterate again.

        `wait` returns once no append is under way.
        """
        if self._found is None:
            return self._misfit or Stop(self.offset, self.lsn)
        return examine(self._segment, self._window, self.lsn, self._found, self.extent, self._grown, wait)

    def _grown(self) -> Extent:
        """The extent as it is meanwhile: a published tail stays where it was when the walk began."""
        if not self.extent.live:
            self.extent = self.extent._replace(limit=max(self.extent.limit, self._segment.file.size()))
        return self.extent

    def skip(self, stop: Stop) -> bool:
        """Go on at the first intact frame behind `stop`, if there is one; False: with the next segment."""
        first = stop.next_intact(self.extent.limit_lsn)
        if first is None:
            return False
        self.lsn = first.first_lsn
        self._window.start(self._segment, first.offset)
        return True


def examine(
    segment: Segment,
    window: FrameWindow,
    lsn: int,
    found: End | Damage,
    extent: Extent,
    now: Callable[[], Extent],
    wait: Callable[[], None],
) -> Stop | None:
    """What the place is at which `window` stands, and LSN `lsn` should; None: a frame does by now. The window stays.

    Args:
        found: what stood there at the first look.
        extent: how far the segment counted then; `now` gives how far it does by now.
        wait: until no append is under way.
    """
    offset = window.offset
    if offset >= extent.limit and extent.limit_lsn is None:
        return Stop(offset, lsn)  # of what is published, or of the last segment
    behind = look_behind(segment, offset, lsn, extent.limit if extent.live else None)
    blank = isinstance(found, End) and behind.blank
    if blank and extent.limit_lsn is None and not extent.live:
        return Stop(offset, lsn)  # zeros: space that was allocated and not used
    # What is intact behind this place was written after it: then there is no append here to wait for.
    if not behind.entries:
        wait()
    window.start(segment, offset)
    extent = now()
    again = window.next(lsn, extent.limit)
    window.start(segment, offset)
    if isinstance(again, Frame):
        if extent.limit_lsn is None or again.next_lsn <= extent.limit_lsn:
            return None
        return Stop(offset, lsn, f"a frame reaches past LSN {extent.limit_lsn}, where the next segment starts")
    if isinstance(found, Damage):
        reason = found.reason
    elif not behind.blank:
        reason = "zeros stand before other bytes"
    elif extent.limit_lsn is not None:
        reason = f"the segment ends at LSN {lsn}, the next one starts at {extent.limit_lsn}"
    else:
        reason = f"no frame stands here, LSN {lsn} should"
    early = not extent.live and _is_early(segment, offset, found)
    return Stop(offset, lsn, reason, behind, short=blank and not extent.live, early=early)


def refuse_unknown(frame: Frame, path: str) -> None:
    """Raises UnsupportedVersion for a frame whose flags this version does not define."""
    if frame.flags:
        raise UnsupportedVersion(
            f"{path}: LSN {frame.first_lsn} uses codec {frame.flags & 15} (flags {frame.flags:#x}), written by a newer"
            " walpool: upgrade to read it"
        )


def _is_early(segment: Segment, offset: int, found: End | Damage) -> bool:
    """Whether a place looks as if a copier had read it before all of it was written: it begins or ends with zeros, or
    the file ends in it.
    """
    if isinstance(found, End):
        return True
    file, marker = segment.file, segment.header.marker.to_bytes(4, "little")
    head = file.read(FRAME_BYTES, offset)
    end = offset + FRAME_BYTES + int.from_bytes(head[8:12], "little")
    begins_with_zeros = len(head.lstrip(b"\0")) < FRAME_BYTES - 4 + len(marker.lstrip(b"\0"))
    return begins_with_zeros or end > file.size() or not any(file.read(16, end - 16))


def look_behind(segment: Segment, offset: int, least_lsn: int, limit: int | None = None) -> Behind:
    """What is intact behind `offset`, from `least_lsn` on."""
    start, end = used_range(segment.file, offset)
    if limit is not None:
        start, end = min(start, limit), min(end, limit)
    rest = segment.file.read(end - start, start)
    if not rest:
        return Behind(blank=True)
    return intact(rest, start, segment.header.marker, least_lsn)


def intact(data: bytes, base: int, marker: int, least_lsn: int, offset: int = 0) -> Behind:
    """What is intact in `data`, which stands at `base` of its file, from `offset` of it on."""
    entries = durable_lsn = next_lsn = 0
    first: Frame | None = None
    exhausted = False
    try:
        for frame in find_frames(data, offset, marker, least_lsn):
            entries += frame.count
            durable_lsn = max(durable_lsn, frame.durable_lsn)
            next_lsn = frame.next_lsn
            if first is None:
                first = frame._replace(offset=base + frame.offset, body=base + frame.body, end=base + frame.end)
    except SearchExhausted:
        exhausted = True
    return Behind(entries, durable_lsn, exhausted, next_lsn, first)
