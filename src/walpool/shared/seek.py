"""Seek: find a place in a segment at or before an LSN, or a time, without reading all that comes before.

Only headers of frames are looked at: the body of a large batch takes longer to read than all else. So the answer is a
hint: what stands there may only claim to be a frame, or may be one inside of a payload (somebody logged a log). Holds:
a reader that then meets anything but frames reads the segment from its start.
"""

from collections.abc import Callable
from typing import NamedTuple

from walpool.format.frame import FRAME_BYTES, FRAME_PREFIX, FRAME_REST
from walpool.format.names import MAX_LSN
from walpool.shared.catalog import Segment

PROBE_BYTES = 1 << 16
FALSE_MARKERS = 64  # in one probe; then the bytes are hostile, and reading from the start is no worse
STEPS = 3  # from a frame to the next, before a probe that goes further,
STEP_BYTES = 1 << 14  # and one more for so many bytes of a frame: a probe searches half of one, which takes as long


class Head(NamedTuple):
    """What the header of a frame claims."""

    offset: int
    end: int
    first_lsn: int
    appended_at: int


def seek(segment: Segment, lsn: int, limit: int) -> tuple[int, int]:
    """(offset, first LSN) of a frame at or before `lsn` that starts below `limit`."""
    found = last_head(segment, limit, lambda head: head.first_lsn, lsn)
    if found is None:
        return segment.header.entries_offset, segment.header.first_lsn
    return found.offset, found.first_lsn


def last_head(
    segment: Segment, limit: int, key: Callable[[Head], int], most: int, *, only_first: bool = False
) -> Head | None:
    """The last frame below `limit`, or the first, whose `key` is at most `most`; None: there is none. Keys never fall.

    By probes in the middle and, each second time, where the frame would be if keys rose evenly.
    """
    first = _head(segment, segment.header.entries_offset, limit)
    if first is None or key(first) > most:
        return None
    if only_first:
        return first
    best = first
    high = limit
    turn = 0
    while True:
        turn += 1
        for _ in range(STEPS + (best.end - best.offset) // STEP_BYTES):
            following = _head(segment, best.end, limit)
            if following is None or key(following) > most:
                return best
            best = following
        low = best.end
        if high - low <= PROBE_BYTES:
            return best
        at = (low + high) // 2
        if turn % 2 == 0 and key(best) > key(first):
            even = best.offset + (most - key(best)) * (best.offset - first.offset) // (key(best) - key(first))
            at = min(max(low, even - PROBE_BYTES), high - PROBE_BYTES)
        found = first_head(segment, at, high, limit)
        if found is None or key(found) > most:
            high = at
        elif found.first_lsn < best.first_lsn:
            return best  # LSNs rise from front to back: this frame is in a payload
        else:
            best = found


def exact_head(segment: Segment, lsn: int, limit: int) -> Head | None:
    """The frame that holds `lsn`, by what headers claim: where `last_head` ends, one read more, and steps in it."""
    best = last_head(segment, limit, lambda head: head.first_lsn, lsn)
    if best is None:
        return None
    data = segment.file.read(2 * PROBE_BYTES, best.offset)
    base, marker = best.offset, segment.header.marker
    at = best.end - base
    while at + FRAME_BYTES <= min(len(data), limit - base) and FRAME_PREFIX.unpack_from(data, at)[0] == marker:
        body_bytes, entries, first_lsn, appended_at, *_ = FRAME_REST.unpack_from(data, at + FRAME_PREFIX.size)
        if first_lsn > lsn or not entries:
            break
        best = Head(base + at, base + at + FRAME_BYTES + body_bytes, first_lsn, appended_at)
        at = best.end - base
    return best


def _head(segment: Segment, offset: int, limit: int) -> Head | None:
    """What a frame at `offset` claims, if one may stand there."""
    data = segment.file.read(FRAME_BYTES, offset) if limit - offset >= FRAME_BYTES else b""
    if len(data) < FRAME_BYTES or FRAME_PREFIX.unpack_from(data)[0] != segment.header.marker:
        return None
    body_bytes: int
    entries: int
    first_lsn: int
    appended_at: int
    body_bytes, entries, first_lsn, appended_at, *_ = FRAME_REST.unpack_from(data, FRAME_PREFIX.size)
    end = offset + FRAME_BYTES + body_bytes
    if end > limit or not entries or not segment.header.first_lsn <= first_lsn <= MAX_LSN - entries:
        return None
    return Head(offset, end, first_lsn, appended_at)


def first_head(segment: Segment, start: int, end: int, limit: int) -> Head | None:
    """The first that starts in [start, end) and has another, the end, or zeros behind it."""
    needle = segment.header.marker.to_bytes(4, "little")
    tries = 0
    for base in range(start, end, PROBE_BYTES):
        probe = segment.file.read(min(PROBE_BYTES + len(needle) - 1, end - base), base)
        at = probe.find(needle)
        while at >= 0:
            tries += 1
            if tries > FALSE_MARKERS:
                return None
            head = _head(segment, base + at, limit)
            if head is not None and segment.file.read(len(needle), head.end) in (needle, bytes(4), b""):
                return head
            at = probe.find(needle, at + 1)
    return None
