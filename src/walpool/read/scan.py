"""Scanning: the frames of one segment after another, through one reused buffer.

Holds: nothing behind `limit` is read into the buffer, because a live log's bytes there may still change; nothing is
allocated for a length that the file does not have.
"""

from collections.abc import Callable
from typing import NamedTuple

from crc32c import crc32c

from walpool.errors import CorruptLog, UnsupportedVersion, WALError
from walpool.format.body import check_body
from walpool.format.entry import BodyError
from walpool.format.frame import FRAME_BYTES, FRAME_PREFIX, Damage, End, Frame, SearchExhausted, find_frames, read_frame
from walpool.format.header import HEADER_BYTES, WALHeader
from walpool.format.names import segment_name
from walpool.shared.catalog import CHUNK_BYTES, Segment, open_segment, used_range
from walpool.system.files import Directory, File

INITIAL_CAPACITY = 8192
CHECK_FIRST_BYTES = 16 << 20  # a larger frame gets its memory only once its checksum was found to be right


class FrameWindow:
    """The buffer that frames are read from, moved along one segment file; it grows to the largest frame met."""

    def __init__(self, capacity: int = INITIAL_CAPACITY) -> None:
        self.initial_capacity = capacity
        self.resizes = 0
        self._buffer = bytearray(capacity)
        self._file: File | None = None
        self._marker = 0
        self.data = memoryview(self._buffer)[:0]  # what is filled
        self._base = 0  # file offset of data[0]
        self._at = 0  # in data, of the next frame

    def start(self, segment: Segment, offset: int) -> None:
        """Go on at `offset` of this segment."""
        self._file = segment.file
        self._marker = segment.header.marker
        self._base = offset
        self._at = 0
        self.data = self.data[:0]

    @property
    def capacity(self) -> int:
        """Bytes the buffer has grown to."""
        return len(self._buffer)

    @property
    def offset(self) -> int:
        """In the file, of the next frame."""
        return self._base + self._at

    def next(self, lsn: int, limit: int) -> Frame | End | Damage:
        """The frame at `offset` whose first LSN is `lsn`, in a file that ends, for us, at `limit`.

        Offsets in the answer are those in `data`; the window moves past a frame, and stays before anything else.
        """
        while True:
            at = self._at
            found = read_frame(self.data, at, self._marker, lsn, limit - self._base - at)
            if type(found) is Frame:
                self._at = found.end
                return found
            assert not isinstance(found, Frame)
            if found.needed > CHECK_FIRST_BYTES and not self._sums_up(found.needed):
                return Damage(at, "the frame's checksum does not match")
            if not found.needed or not self._fill(found.needed, limit):
                return found

    def _sums_up(self, size: int) -> bool:
        """Whether the frame of `size` bytes at `offset` has its checksum: found out without room for all of it."""
        assert self._file is not None
        head = bytes(self.data[self._at : self._at + FRAME_BYTES])
        at = self.offset + FRAME_BYTES
        end = self.offset + size
        crc = self._marker
        while at < end:
            chunk = self._file.read(min(CHUNK_BYTES, end - at), at)
            if not chunk:
                return False
            crc = crc32c(chunk, crc)
            at += len(chunk)
        marker, stated = FRAME_PREFIX.unpack_from(head)
        return (marker, stated) == (self._marker, crc32c(head[FRAME_PREFIX.size :], crc))

    def _fill(self, needed: int, limit: int) -> bool:
        """Have `needed` bytes from `offset` in the buffer, or as many as the file has; False when none came."""
        assert self._file is not None
        kept = self.data[self._at :]
        if needed > len(self._buffer):
            buffer = bytearray(needed)  # a new one: views of the old stay valid for whoever holds them
            buffer[: len(kept)] = kept
            self._buffer = buffer
            self.resizes += 1
        else:
            self._buffer[: len(kept)] = bytes(kept)
        self._base += self._at
        self._at = 0
        view = memoryview(self._buffer)
        filled = len(kept)
        wanted = min(len(view), limit - self._base)
        came = self._file.read_into(view[filled:wanted], self._base + filled) if wanted > filled else 0
        self.data = view[: filled + came]
        return came > 0


def refuse_unknown(frame: Frame, path: str) -> None:
    """Raises UnsupportedVersion for a frame whose flags this version does not define."""
    if frame.flags:
        raise UnsupportedVersion(
            f"{path}: LSN {frame.first_lsn} uses codec {frame.flags & 15} (flags {frame.flags:#x}), written by a newer"
            " walpool: upgrade to read it"
        )


def is_early(file: File, offset: int, found: End | Damage) -> bool:
    """Whether a place looks as if a copier had read it before all of it was written: it begins or ends with zeros, or
    the file ends in it.
    """
    if isinstance(found, End):
        return True
    head = file.read(FRAME_BYTES, offset)
    end = offset + FRAME_BYTES + int.from_bytes(head[8:12], "little")
    return head[:1] == b"\0" or end > file.size() or not any(file.read(16, end - 16))


class Behind(NamedTuple):
    """Intact frames found behind a place that could not be read."""

    entries: int = 0
    durable_lsn: int = 0  # the highest that any of them states
    exhausted: bool = False  # the search gave up: there may be more
    next_lsn: int = 0  # one past the last entry of them
    blank: bool = False  # nothing but zeros, or nothing


def look_behind(segment: Segment, offset: int, least_lsn: int, limit: int | None = None) -> Behind:
    """What is intact behind `offset`, from `least_lsn` on: the evidence that tells damage from a torn tail."""
    start, end = used_range(segment.file, offset)
    if limit is not None:
        start, end = min(start, limit), min(end, limit)
    rest = segment.file.read(end - start, start)
    if not rest:
        return Behind(blank=True)
    return _intact(rest, 0, segment.header.marker, least_lsn)


def _intact(data: bytes, offset: int, marker: int, least_lsn: int) -> Behind:
    entries = durable_lsn = next_lsn = 0
    try:
        for frame in find_frames(data, offset, marker, least_lsn):
            entries += frame.count
            durable_lsn = max(durable_lsn, frame.durable_lsn)
            next_lsn = frame.next_lsn
    except SearchExhausted:
        return Behind(entries, durable_lsn, True, next_lsn)
    return Behind(entries, durable_lsn, False, next_lsn)


def _behind_lost_header(directory: Directory, first_lsn: int) -> Behind:
    """Intact frames of a segment whose header is damaged: its first frame, if it stands, tells the marker.

    An intact header of another LSN is what stood in these blocks before, and says nothing about this segment.
    """
    file = directory.open(segment_name(first_lsn))
    try:
        start, end = used_range(file, 0)
        data = file.read(end, 0) if start < end else b""
    finally:
        file.close()
    try:
        if WALHeader.decode(data).first_lsn != first_lsn:
            return Behind()
    except WALError:
        pass
    marker = int.from_bytes(data[HEADER_BYTES : HEADER_BYTES + 4], "little")
    return _intact(data, HEADER_BYTES, marker, first_lsn) if marker else Behind()


class SegmentScan(NamedTuple):
    """What reading one segment from its first frame found."""

    first_lsn: int
    next_lsn: int  # one past the last entry that counts
    end: int  # offset one past the last frame that counts
    batches: int
    last_append_ns: int
    durable_lsn: int  # the highest that its header or an intact frame states
    problem: Damage | None  # why the frames stop, when it is neither their end nor the next segment; offset in the file
    behind: Behind
    sequence: int
    path: str
    largest_single: int  # encoded bytes of the largest frame with one entry
    written_whole: bool = False  # the problem is a frame whose checksum fits: no torn write, whatever was synced
    early: bool = False  # the problem is zeros, or the end of the file, where a frame should be


def nobody_appends() -> None:
    """What there is to wait for then."""


def scan_segment(
    directory: Directory,
    first_lsn: int,
    limit_lsn: int | None,
    window: FrameWindow,
    *,
    limit: int | None = None,
    settle: Callable[[], None] = nobody_appends,
) -> SegmentScan:
    """Read a segment's frames, up to `limit_lsn` (the next segment's first) or until they stop. Changes nothing.

    Beside a writer, one look is no proof: `limit` is the offset up to which it has published, if that is known, and
    `settle` waits for an append that is under way. Frames are written in order, so where later ones were seen the
    earlier one is there by now, and the second look at the place finds it.
    Raises FileNotFoundError when it is gone, UnsupportedVersion for a newer one. All damage is in the answer.
    """
    try:
        try:
            segment = open_segment(directory, first_lsn)
        except CorruptLog:
            settle()  # it may have been under way to its name
            segment = open_segment(directory, first_lsn)
    except CorruptLog as error:
        behind = _behind_lost_header(directory, first_lsn)
        damage = Damage(0, error.reason)
        return SegmentScan(first_lsn, first_lsn, 0, 0, 0, behind.durable_lsn, damage, behind, 0, error.path, 0)
    try:
        header = segment.header
        size = segment.file.size() if limit is None else min(limit, segment.file.size())
        window.start(segment, header.entries_offset)
        lsn = first_lsn
        batches = last_append_ns = largest = 0
        durable_lsn = header.durable_lsn
        problem: Damage | None = None
        behind = Behind()
        written_whole = early = False
        looked_at = -1  # the place that was looked at twice
        end = header.entries_offset
        while limit_lsn is None or lsn < limit_lsn:
            found = window.next(lsn, size)
            if isinstance(found, Frame):
                if limit_lsn is not None and found.next_lsn > limit_lsn:
                    problem = Damage(end, f"a frame reaches past LSN {limit_lsn}, where the next segment starts")
                    break
                refuse_unknown(found, segment.file.path)
                try:
                    check_body(window.data, found.body, found.end, found.count)
                except BodyError as error:
                    problem, written_whole = Damage(end, error.reason), True
                    durable_lsn = max(durable_lsn, found.durable_lsn)
                    behind = look_behind(segment, window.offset, found.next_lsn, limit)
                    durable_lsn = max(durable_lsn, behind.durable_lsn)
                    break
                lsn = found.next_lsn
                end = window.offset
                batches += 1
                last_append_ns = max(last_append_ns, found.appended_at)
                durable_lsn = max(durable_lsn, found.durable_lsn)
                if found.count == 1:
                    largest = max(largest, found.end - found.body)
                continue
            if end == limit:
                break  # what is published ends here
            behind = look_behind(segment, end, lsn, limit)
            if looked_at != end and (isinstance(found, Damage) or not behind.blank or limit_lsn is not None):
                looked_at = end
                if not behind.entries:
                    settle()
                if limit is None:
                    size = segment.file.size()
                window.start(segment, end)
                continue
            durable_lsn = max(durable_lsn, behind.durable_lsn)
            early = is_early(segment.file, end, found)
            if isinstance(found, Damage):
                problem = Damage(end, found.reason)
            elif not behind.blank:
                problem = Damage(end, "zeros stand before other bytes")
            elif limit_lsn is not None:
                problem = Damage(end, f"the segment ends at LSN {lsn}, the next one starts at {limit_lsn}")
            break
        return SegmentScan(
            first_lsn, lsn, end, batches, last_append_ns, durable_lsn, problem, behind, header.sequence,
            segment.file.path, largest, written_whole, early,
        )  # fmt: skip
    finally:
        segment.file.close()
