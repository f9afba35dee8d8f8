"""Seek: find a place in a segment at or before an LSN without reading all that comes before.

Holds: the answer is where an intact frame with an LSN at most the wanted one starts; it may be a frame inside a
payload (somebody logged a log), so a reader that then meets anything but frames reads the segment from its start.
"""

from walpool.format.frame import FRAME_BYTES, Frame, read_frame
from walpool.shared.catalog import Segment

PROBE_BYTES = 1 << 16
FALSE_MARKERS = 64  # in one probe; then the bytes are hostile, and reading from the start is no worse


def seek(segment: Segment, lsn: int, limit: int) -> tuple[int, int]:
    """(offset, first LSN) of a frame at or before `lsn`, by binary search over offsets below `limit`."""
    header = segment.header
    best = header.entries_offset, header.first_lsn
    low, high = header.entries_offset, limit
    while high - low > PROBE_BYTES:
        middle = (low + high) // 2
        found = _first_frame(segment, middle, high, limit)
        if found is None or found[1].first_lsn > lsn:
            high = middle
        elif found[1].first_lsn < best[1]:
            break  # LSNs rise from front to back: this frame is in a payload
        else:
            best = found[0], found[1].first_lsn
            low = found[0] + found[1].end
    return best


def _first_frame(segment: Segment, start: int, end: int, limit: int) -> tuple[int, Frame] | None:
    """The first intact frame that starts in [start, end), however large it is, and where."""
    needle = segment.header.marker.to_bytes(4, "little")
    tries = 0
    for base in range(start, end, PROBE_BYTES):
        probe = segment.file.read(min(PROBE_BYTES + len(needle) - 1, end - base), base)
        at = probe.find(needle)
        while at >= 0:
            tries += 1
            if tries > FALSE_MARKERS:
                return None
            offset = base + at
            head = segment.file.read(FRAME_BYTES, offset)
            size = FRAME_BYTES + int.from_bytes(head[8:12], "little")
            if size <= limit - offset:
                found = read_frame(segment.file.read(size, offset), 0, segment.header.marker, 0)
                if isinstance(found, Frame) and found.first_lsn >= segment.header.first_lsn:
                    return offset, found
            at = probe.find(needle, at + 1)
    return None
