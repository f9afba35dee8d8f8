"""The verdict: torn or corrupt? What to do at a place where a frame should stand and none does.

*Torn* is what a power cut may leave of an append that nobody was told had succeeded: to end the log there loses
nothing that was promised. *Corrupt* is what was whole once: somebody has relied on it, and a person has to decide.
The bytes alone do not tell the two apart. Two questions do:

- Does something vouch for the place? Yes, if it is below the published tail (readers, who see it); or at or below the
  highest durable LSN that the segments state; or if a frame stands there whose checksum fits, and only its entries do
  not add up: no torn write has a checksum that fits.
- Does something follow? Yes, if an intact frame stands behind it; for readers also, if another segment does.

And two ask. A reader gives entries out and changes nothing: it may wait for more, and it must not drop entries in
silence. A recovery (a writer that opens the log, or repair) makes the log end somewhere, for everybody.

Holds: this is the only table of its kind: readers, verify, recovery and repair all ask `judge`. A test builds a log for
every row. docs/durability.md explains it with examples. The evidence is gathered in read/walk.py.
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
    END = "ends here for now"  # and goes on once a frame stands there
    CUT = "ends here"  # for good: what stands behind no longer counts
    SKIP = "skips"  # on to the next intact frame; LSNs are missing then
    REFUSE = "refuses"  # CorruptLog, and nothing is changed


class Row(NamedTuple):
    """For `vouched` and `followed` None means that the answer does not matter."""

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
