"""Recognising a log: whether it is the one that was read before, told by the batch that was read last.

For what the log's id does not tell: older logs have none, and what stands in a log's place may be an older copy of it.
A recovery makes the control block anew, and may write segments anew; it keeps every batch with its LSN and its time. A
log that was made anew in the same place has another batch there, or ends before it.
"""

from walpool.errors import CorruptLog
from walpool.format.frame import Damage, End, Frame
from walpool.read.scan import FrameWindow
from walpool.read.seek import seek
from walpool.read.source import Source


def recognise(source: Source, last: Frame) -> None:
    """Raises LogReplaced unless the log, as it is now, has the batch `last`, or retention may have removed it."""
    segments = [first for first in source.segments() if first <= last.first_lsn]
    if not segments:
        return
    try:
        segment = source.open(segments[-1])
    except (FileNotFoundError, CorruptLog):
        return  # reading on tells
    try:
        limit = source.extent(segment).limit
        offset, lsn = seek(segment, last.first_lsn, limit)
        window = FrameWindow()
        window.start(segment, offset)
        while lsn <= last.first_lsn:
            found = window.next(lsn, limit)
            if isinstance(found, Damage):
                return  # reading on tells
            if isinstance(found, End):
                raise source.replaced(f"the log ends at LSN {lsn - 1} now")
            if _is_same(found, last):
                return
            lsn = found.next_lsn
    finally:
        segment.file.close()
    raise source.replaced(f"the log has another batch with LSN {last.first_lsn} now")


def _is_same(batch: Frame, other: Frame) -> bool:
    mine = batch.first_lsn, batch.count, batch.appended_at, batch.writer
    return mine == (other.first_lsn, other.count, other.appended_at, other.writer)
