"""Recognising a log: whether it is the one that was read before, told by the batch that was read last.

For what the log's id does not tell: older logs have none, and what stands in a log's place may be an older copy of it.
A recovery makes the control block anew, and may write segments anew; it keeps every batch with its LSN and its time. A
log that was made anew in the same place has another batch there, or ends before it.
"""

from walpool.errors import CorruptLog
from walpool.format.frame import Frame
from walpool.read.source import Source
from walpool.read.walk import Walk
from walpool.read.window import FrameWindow
from walpool.shared.seek import seek


def recognise(source: Source, last: Frame | None) -> None:
    """Raises LogReplaced unless the log, as it is now, has the batch `last`, or retention may have removed it."""
    source.check_id()
    if last is None:
        return
    segments = [first for first in source.segments() if first <= last.first_lsn]
    if not segments:
        return
    try:
        segment = source.open(segments[-1])
    except (FileNotFoundError, CorruptLog):
        return  # reading on tells
    with segment.file:
        extent = source.extent(segment)._replace(limit_lsn=None)
        walk = Walk(segment, FrameWindow(), extent, at=seek(segment, last.first_lsn, extent.limit))
        for frame in walk:
            if _is_same(frame, last):
                return
            if frame.next_lsn > last.first_lsn:
                break
        else:
            if walk.is_damaged:
                return  # reading on tells
            raise source.replaced(f"the log ends at LSN {walk.lsn - 1} now")
    raise source.replaced(f"the log has another batch with LSN {last.first_lsn} now")


def _is_same(batch: Frame, other: Frame) -> bool:
    mine = batch.first_lsn, batch.count, batch.appended_at, batch.writer
    return mine == (other.first_lsn, other.count, other.appended_at, other.writer)
