"""Recount: what a log has appended in its life, once its control block is void or gone.

Holds: a block that is whole in its figures counts up to its next LSN, whatever retention removed since; what came
behind that, the frames say. Without one the frames that recovery read anyway are counted, sealed segments are taken for
as many bytes as their files have, and what nobody can say any more (batches of segments that were not read, all of
entries that retention removed) is assumed to be as the rest on average; writers' rows say how large batches were. So
opening reads no more than it did, and the average size of an entry stays one that entries have.
Lock: maintenance and append.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from walpool.errors import WALError
from walpool.format.entry import ENTRY_BYTES
from walpool.format.frame import FRAME_BYTES
from walpool.format.header import HEADER_BYTES
from walpool.format.names import MAX_LSN, segment_name
from walpool.read.scan import SegmentScan
from walpool.read.walk import Walk
from walpool.read.window import FrameWindow
from walpool.shared.catalog import open_segment
from walpool.shared.control import Totals
from walpool.shared.seek import seek
from walpool.shared.slot_rows import read_rows
from walpool.system.files import Directory


class Count(NamedTuple):
    entries: int = 0
    batches: int = 0
    bytes: int = 0  # of frames

    def plus(self, other: "Count") -> "Count":
        return Count(*(one + two for one, two in zip(self, other, strict=True)))


def recount(
    directory: Directory, totals: Totals, segments: Sequence[int], scans: Sequence[SegmentScan], next_lsn: int
) -> Totals:
    """`totals` brought up to `next_lsn`: of the last block, the segments that there are, and those that were read."""
    largest = max([totals.max_entry_bytes, *(scan.largest_single for scan in scans)])
    entries = next_lsn - 1
    found, unread_entries, unread_bytes = _believable(totals), 0, 0
    since = found.entries + 1
    read = {scan.first_lsn: scan for scan in scans}
    blind = not any(scan.next_lsn > scan.first_lsn for scan in scans)  # then one more is read, to have an average
    for first, end in pairwise([*(first for first in segments if first < next_lsn), next_lsn]):
        if end <= since:
            continue
        scan = read.get(first)
        if scan is not None and first >= since:
            found = found.plus(Count(scan.next_lsn - first, scan.batches, max(0, scan.end - HEADER_BYTES)))
        elif scan is not None or since > 1 or (blind and end == scans[0].first_lsn):
            found = found.plus(_frames(directory, first, max(first, since), end))
        else:
            unread_entries += end - first
            unread_bytes += max(0, directory.size_of(segment_name(first)) - HEADER_BYTES)
    size = _share(found.bytes + unread_bytes, entries, found.entries + unread_entries)
    batches = found.batches
    if entries != found.entries:
        most = max(0, size - ENTRY_BYTES * entries) // FRAME_BYTES  # or there would be no room for the entries
        counted = found.batches if entries > found.entries else 0  # some of them are gone, then
        batches = max(min(_batches(directory, found, entries), most), min(counted, entries, size // FRAME_BYTES))
    mean = -(-(size - FRAME_BYTES * batches) // entries) if entries else 0
    return totals._replace(
        next_lsn=next_lsn,
        batches=batches,
        bytes=min(size, MAX_LSN),  # an estimate for a forged log: it must fit
        max_entry_bytes=min(max(largest, mean), MAX_LSN),
    )


def _believable(totals: Totals) -> Count:
    """What a block counted, unless its figures contradict each other: the words of its state have no checksum."""
    entries = totals.next_lsn - 1
    bodies = totals.bytes - FRAME_BYTES * totals.batches
    if 0 < totals.batches <= entries and 0 < bodies <= entries * totals.max_entry_bytes:
        return Count(entries, totals.batches, totals.bytes)
    return Count()


def _batches(directory: Directory, found: Count, entries: int) -> int:
    """How many batches `entries` were in, by those that were counted, or by what writers told of more."""
    try:
        rows = [row.totals for row in read_rows(directory)]
    except WALError:
        rows = []
    told = sum(row["batches"] for row in rows)
    told_entries = told + sum(row["more_entries"] for row in rows)
    if told_entries <= found.entries or entries < found.entries:
        return _share(found.batches, entries, found.entries)
    return found.batches + _share(told, entries - found.entries, told_entries)


def _share(count: int, entries: int, counted: int) -> int:
    """What is counted of `counted` entries, for `entries`: more of them that nobody counted, or fewer that are left."""
    return count * entries // counted if counted else 0


def _frames(directory: Directory, first_lsn: int, since: int, end_lsn: int) -> Count:
    """Frames of one segment that start in [since, end_lsn), as far as they are intact."""
    entries = batches = total = 0
    try:
        segment = open_segment(directory, first_lsn)
        with segment.file:
            at = seek(segment, since, segment.file.size())
            for frame in Walk(segment, FrameWindow(1 << 18), at=at):
                if frame.first_lsn >= end_lsn:
                    break
                if frame.first_lsn >= since:
                    entries, batches, total = entries + frame.count, batches + 1, total + frame.end - frame.offset
    except (WALError, FileNotFoundError):
        pass  # a figure is not worth an opening
    return Count(entries, batches, total)
