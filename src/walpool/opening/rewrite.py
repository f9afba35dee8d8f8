"""Rewrite: after a failed sync, put the doubtful end of the log into a new segment and make that durable.

The kernel may keep pages of a failed write in its cache, marked clean: they read well, a second sync reports success,
and the disk has nothing. So what was appended since the last good sync is read from the cache, while it is there, and
written again, elsewhere.
Holds: at every step the segments say the same entries: the new segment appears whole, under one rename, and only then
do the ones it replaces move aside, oldest first: it counts up to the first that is still there.
Lock: maintenance and append, and no writer alive.
"""

from walpool.errors import CorruptLog, LogFull
from walpool.format.frame import FRAME_PREFIX, seal
from walpool.format.header import HEADER_BYTES, WALHeader
from walpool.native.select import crc32c
from walpool.opening.aside import NEW_SEGMENT, move_aside, put_in_place
from walpool.read.walk import Extent, Walk
from walpool.read.window import FrameWindow
from walpool.shared.catalog import list_segments, new_marker, open_segment
from walpool.system import clock
from walpool.system.files import CREATE, Directory, File


def rewrite(directory: Directory, first_lsn: int, file_mode: int) -> int:
    """Copy every intact frame from `first_lsn` on into one new segment of that name, and sync it. Gives its number.

    A frame with that LSN inside is copied whole, and the segment then has its name.
    """
    segments = list_segments(directory)
    if not segments:
        return 0
    first_lsn = max(first_lsn, segments[0])  # what retention removed is in no doubt
    inside = [first for first in segments if first <= first_lsn][-1:] + [
        first for first in segments if first > first_lsn
    ]
    try:
        with directory.open(NEW_SEGMENT, CREATE, file_mode) as file:
            header, next_lsn = _copy(directory, segments, inside, first_lsn, file)
            first_lsn = header.first_lsn
            if next_lsn > first_lsn:
                file.sync()
                put_in_place(directory, first_lsn, replaces=first_lsn in segments)
                for replaced in inside:
                    if first_lsn < replaced < next_lsn:
                        move_aside(directory, replaced)
                directory.sync()  # before a segment behind these says that all of them is durable
                return header.sequence
            directory.unlink(NEW_SEGMENT)
            return 0
    except LogFull:
        directory.unlink(NEW_SEGMENT)
        raise


def _copy(
    directory: Directory, segments: list[int], inside: list[int], first_lsn: int, to: File
) -> tuple[WALHeader, int]:
    """Write header and frames; the header, and one past the last LSN."""
    marker = new_marker()
    window = FrameWindow(1 << 18)
    lsn = first_lsn
    at = HEADER_BYTES
    sequence = 0
    for first in inside:
        try:
            segment = open_segment(directory, first)
        except CorruptLog:
            break
        with segment.file:
            sequence = max(sequence, segment.header.sequence)
            following = next((later for later in segments if later > first), None)
            for found in Walk(segment, window, Extent(segment.file.size(), following)):
                if found.next_lsn <= lsn:
                    continue
                if found.first_lsn < lsn:
                    first_lsn = found.first_lsn  # no sync ends inside a batch: whoever says so is damaged
                rest = bytes(window.data[found.offset + FRAME_PREFIX.size : found.body])
                body = bytes(window.data[found.body : found.end])
                frame = seal(marker, crc32c(body, marker), rest, body)
                to.write(frame, at)
                at += len(frame)
                lsn = found.next_lsn
        if following is None or lsn < following:
            break
    header = WALHeader(clock.time_ns(), sequence + 1, first_lsn, first_lsn - 1, marker)
    to.write(header.encode(), 0)
    return header, lsn
