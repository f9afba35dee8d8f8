"""Seek: find a place in a segment at or before an LSN without reading all that comes before.

Holds: the answer is where an intact frame with an LSN at most the wanted one starts; it may be a frame inside a
payload (somebody logged a log), so a reader that then meets anything but frames reads the segment from its start.
"""

from walpool.format.frame import SearchExhausted, find_frames
from walpool.shared.catalog import Segment

PROBE_BYTES = 1 << 16


def seek(segment: Segment, lsn: int, limit: int) -> tuple[int, int]:
    """(offset, first LSN) of a frame at or before `lsn`, by binary search over offsets below `limit`."""
    header = segment.header
    best = header.entries_offset, header.first_lsn
    low, high = header.entries_offset, limit
    while high - low > PROBE_BYTES:
        middle = (low + high) // 2
        probe = segment.file.read(min(PROBE_BYTES, limit - middle), middle)
        try:
            found = next(find_frames(probe, 0, header.marker, header.first_lsn), None)
        except SearchExhausted:
            break
        if found is None or found.first_lsn > lsn:
            high = middle
        else:
            best = middle + found.offset, found.first_lsn
            low = middle + found.end
    return best
