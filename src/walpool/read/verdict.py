"""The verdict on a place where no frame stands: the end, a torn tail, damage, or nothing to judge yet.

Holds: one look is no proof, because a writer may be at work there. Frames are written in order: where later ones were
seen, the earlier one is there by now, so the place is looked at again after everything that speaks against it.
"""

from enum import Enum
from typing import NamedTuple

from walpool.format.frame import Damage, End, Frame
from walpool.options import RecoveryMode
from walpool.read.scan import FrameWindow, is_early, look_behind
from walpool.read.source import Extent, Source
from walpool.shared.catalog import Segment

_HINT = (
    "; that is also what a log looks like that was copied file by file (tar, cp, rsync) while it was written to:"
    " `walpool repair --mode point-in-time` keeps what stands before this place, and `walpool copy` makes copies"
    " that are whole"
)


def with_hint(reason: str) -> str:
    """A reason that a copy of a log in use, made with other tools, would explain as well as damage does."""
    return reason + _HINT


class Kind(Enum):
    AGAIN = "a frame stands there by now: read on"
    END = "the log ends here, for now"
    TORN = "what an append that never completed has left, at the end"
    DAMAGE = "bytes that count cannot be read"


class Act(Enum):
    STOP = "reading ends here, for now"
    OVER = "reading ends here, for good"
    SKIP = "go on at the next intact frame"
    RAISE = "CorruptLog"


ACTS = {
    (RecoveryMode.TOLERATE_TAIL, Kind.TORN): Act.STOP,
    (RecoveryMode.TOLERATE_TAIL, Kind.DAMAGE): Act.RAISE,
    (RecoveryMode.STRICT, Kind.TORN): Act.RAISE,
    (RecoveryMode.STRICT, Kind.DAMAGE): Act.RAISE,
    (RecoveryMode.POINT_IN_TIME, Kind.TORN): Act.OVER,
    (RecoveryMode.POINT_IN_TIME, Kind.DAMAGE): Act.OVER,
    (RecoveryMode.SALVAGE, Kind.TORN): Act.SKIP,
    (RecoveryMode.SALVAGE, Kind.DAMAGE): Act.SKIP,
}


class Verdict(NamedTuple):
    kind: Kind
    reason: str = ""


def judge(
    source: Source, segment: Segment, extent: Extent, window: FrameWindow, lsn: int, found: End | Damage, *, sure: bool
) -> Verdict:
    """What the place is at which `window` stands and LSN `lsn` should. The window stays there.

    With `sure` a torn tail, too, is called one only when no append is under way.
    """
    offset = window.offset
    if offset == extent.limit and extent.limit_lsn is None:
        return Verdict(Kind.END)  # of what is published, or of the last segment
    reason = found.reason if isinstance(found, Damage) else f"no frame stands here, LSN {lsn} should"
    kind = Kind.DAMAGE
    if extent.live or extent.limit_lsn is not None:
        source.settle()
        if not extent.live and is_early(segment.file, offset, found):
            reason = with_hint(reason)
    else:
        behind = look_behind(segment, offset, lsn)
        if isinstance(found, End):
            if behind.blank:
                return Verdict(Kind.END)  # zeros: space that was allocated and not used
            reason = "zeros stand before other bytes"
        if not behind.entries and not behind.exhausted:
            kind = Kind.TORN
            if sure:
                source.settle()
        elif is_early(segment.file, offset, found):
            reason = with_hint(reason)
    window.start(segment, offset)
    again = window.next(lsn, source.extent(segment).limit)
    window.start(segment, offset)
    return Verdict(Kind.AGAIN) if isinstance(again, Frame) else Verdict(kind, reason)
