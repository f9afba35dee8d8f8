"""The verdict: what to do at a place where a frame should stand and none does. The only table of its kind.

Two ask. A reader gives entries out and changes nothing: it may wait for more, and it must not drop entries in silence.
A recovery (a writer that opens the log, or repair) makes the log end somewhere, for everybody.

Two things are known about the place. Something may vouch for it: it is below the published tail, or at or below the
highest durable LSN that the segments state, or a frame stands there whose checksum fits, so no torn write left it. And
something may follow: an intact frame behind it, or another segment.
"""

from enum import Enum
from typing import NamedTuple

from walpool.options import RecoveryMode

_HINT = (
    "; that is also what a log looks like that was copied file by file (tar, cp, rsync) while it was written to:"
    " `walpool repair --mode point-in-time` keeps what stands before this place, and `walpool copy` makes copies"
    " that are whole"
)


def with_hint(reason: str) -> str:
    """A reason that a copy of a log in use, made with other tools, would explain as well as damage does."""
    return reason + _HINT


class Asker(Enum):
    READER = "a reader"
    RECOVERY = "a recovery"


class Verdict(Enum):
    END = "ends here for now"
    CUT = "ends here"
    SKIP = "skips"
    REFUSE = "refuses"


class Row(NamedTuple):
    """None stands for both."""

    asker: Asker
    mode: RecoveryMode
    vouched: bool | None
    followed: bool | None
    verdict: Verdict
    why: str


_READER, _RECOVERY = Asker.READER, Asker.RECOVERY
_TOLERATE, _STRICT = RecoveryMode.TOLERATE_TAIL, RecoveryMode.STRICT
_POINT, _SALVAGE = RecoveryMode.POINT_IN_TIME, RecoveryMode.SALVAGE

TABLE = (
    Row(_READER, _TOLERATE, False, False, Verdict.END, "a torn tail: nobody was told that this append was complete"),
    Row(
        _READER,
        _TOLERATE,
        False,
        True,
        Verdict.REFUSE,
        "a recovery would end the log here: a reader does not decide that",
    ),
    Row(_READER, _TOLERATE, True, None, Verdict.REFUSE, "it was whole once: damage"),
    Row(_READER, _STRICT, None, None, Verdict.REFUSE, "a torn tail, too, is more than this mode takes"),
    Row(_READER, _POINT, None, None, Verdict.CUT, "the log is what stands before the first damage"),
    Row(_READER, _SALVAGE, None, False, Verdict.END, "nothing is there to go on with"),
    Row(_READER, _SALVAGE, None, True, Verdict.SKIP, "every intact frame counts"),
    Row(_RECOVERY, _TOLERATE, False, False, Verdict.CUT, "a torn tail: nobody was told that this append was complete"),
    Row(_RECOVERY, _TOLERATE, False, True, Verdict.CUT, "a hole that a power cut left in what no sync had covered"),
    Row(_RECOVERY, _TOLERATE, True, None, Verdict.REFUSE, "it was whole once: damage, and a person has to decide"),
    Row(_RECOVERY, _STRICT, None, None, Verdict.REFUSE, "a torn tail, too, is more than this mode takes"),
    Row(_RECOVERY, _POINT, None, None, Verdict.CUT, "the log is what stands before the first damage"),
    Row(_RECOVERY, _SALVAGE, None, False, Verdict.CUT, "nothing is there to go on with"),
    Row(_RECOVERY, _SALVAGE, None, True, Verdict.SKIP, "every intact frame counts"),
)


def judge(asker: Asker, mode: RecoveryMode, *, vouched: bool, followed: bool) -> Verdict:
    """The verdict of the one row that fits."""
    (verdict,) = (
        row.verdict
        for row in TABLE
        if (row.asker, row.mode) == (asker, mode)
        and row.vouched in (None, vouched)
        and row.followed in (None, followed)
    )
    return verdict
