"""The scan: what reading one segment from its first frame finds, for recovery, repair, copies and figures.

Holds: nothing is changed, and all damage is in the answer.
"""

from collections.abc import Callable
from typing import NamedTuple

from walpool.errors import CorruptLog, WALError
from walpool.format.header import HEADER_BYTES, WALHeader
from walpool.format.names import segment_name
from walpool.read.walk import Behind, Extent, Stop, Walk, intact, nobody_appends
from walpool.read.window import FrameWindow
from walpool.shared.catalog import open_segment, used_range
from walpool.system.files import Directory


class SegmentScan(NamedTuple):
    """What reading one segment from its first frame found."""

    first_lsn: int
    next_lsn: int  # one past the last entry that counts
    path: str
    end: int = 0  # offset one past the last frame that counts
    batches: int = 0
    last_append_ns: int = 0
    durable_lsn: int = 0  # the highest that its header or an intact frame states
    sequence: int = 0
    largest_single: int = 0  # encoded bytes of the largest frame with one entry
    problem: Stop | None = None  # why the frames stop, when it is neither their end nor the next segment

    @property
    def behind(self) -> Behind:
        """What is intact behind the problem."""
        return self.problem.behind if self.problem is not None else Behind()


def scan_segment(
    directory: Directory,
    first_lsn: int,
    limit_lsn: int | None,
    window: FrameWindow,
    *,
    limit: int | None = None,
    wait: Callable[[], None] = nobody_appends,
) -> SegmentScan:
    """Read a segment's frames, up to `limit_lsn` (the next segment's first) or until they stop. Changes nothing.

    Beside a writer, `limit` is the offset up to which it has published, if that is known, and `wait` waits for an
    append that is under way.
    Raises FileNotFoundError when it is gone, UnsupportedVersion for a newer one. All damage is in the answer.
    """
    try:
        try:
            segment = open_segment(directory, first_lsn)
        except CorruptLog:
            wait()  # it may have been under way to its name
            segment = open_segment(directory, first_lsn)
    except CorruptLog as error:
        behind = _behind_lost_header(directory, first_lsn)
        problem = Stop(0, first_lsn, error.reason, behind)
        return SegmentScan(first_lsn, first_lsn, error.path, durable_lsn=behind.durable_lsn, problem=problem)
    with segment.file:
        size = segment.file.size()
        extent = Extent(size if limit is None else min(limit, size), limit_lsn, limit is not None)
        walk = Walk(segment, window, extent, bodies=True)
        batches = last_append_ns = largest = 0
        durable_lsn = segment.header.durable_lsn
        stop: Stop | None = None
        while stop is None:
            for run in walk.runs():
                batches += run.batches
                last_append_ns = max(last_append_ns, run.last_append_ns)
                durable_lsn = max(durable_lsn, run.durable_lsn)
                largest = max(largest, run.largest_single)
            stop = walk.stop(wait)
        whole = stop.whole.durable_lsn if stop.whole is not None else 0
        return SegmentScan(
            first_lsn=first_lsn,
            next_lsn=walk.lsn,
            path=segment.file.path,
            end=walk.offset,
            batches=batches,
            last_append_ns=last_append_ns,
            durable_lsn=max(durable_lsn, stop.behind.durable_lsn, whole),
            sequence=segment.header.sequence,
            largest_single=largest,
            problem=stop if stop.reason else None,
        )


def _behind_lost_header(directory: Directory, first_lsn: int) -> Behind:
    """Intact frames of a segment whose header is damaged: its first frame, if it stands, tells the marker.

    An intact header of another LSN is what stood in these blocks before, and says nothing about this segment.
    """
    with directory.open(segment_name(first_lsn)) as file:
        start, end = used_range(file, 0)
        data = file.read(end, 0) if start < end else b""
    try:
        if WALHeader.decode(data).first_lsn != first_lsn:
            return Behind()
    except WALError:
        pass
    marker = int.from_bytes(data[HEADER_BYTES : HEADER_BYTES + 4], "little")
    return intact(data, 0, marker, first_lsn, HEADER_BYTES) if marker else Behind()
