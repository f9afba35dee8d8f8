"""The survey: what the segments of a log say, and what each recovery mode makes of what is wrong with them.

What is durable was proved when it was written: each frame and each header states the durable LSN of that moment. So an
opening finds the highest one stated, from the last segment backwards, and reads from the segment it lies in: damage
before that is for `verify` and for readers to find, and reading all of a large log would keep every writer waiting.

Holds: it needs no lock and touches nothing; what to do about a place is decided by the table in read/verdict.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from walpool.errors import CorruptLog
from walpool.options import RecoveryMode
from walpool.read.scan import SegmentScan, scan_segment
from walpool.read.verdict import Asker, Verdict, judge, with_hint
from walpool.read.walk import nobody_appends
from walpool.read.window import FrameWindow
from walpool.shared.catalog import list_segments, open_segment
from walpool.shared.control import LogState, known_segments
from walpool.system.files import Directory


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes could not be read.

    Attributes:
        path: the segment file.
        offset: in it, bytes.
        lsn: the LSN that was expected there.
        reason: what is wrong with the bytes.
    """

    path: str
    offset: int
    lsn: int
    reason: str


@dataclass(slots=True)
class Survey:
    """What the segments say; nothing was touched to learn it."""

    segments: list[int]
    scans: list[SegmentScan]
    durable_lsn: int
    next_lsn: int
    last_append_ns: int
    sequence: int  # the highest seen
    cut: Place | None = None
    intact_behind: int = 0
    skipped: list[Place] = field(default_factory=list)


def survey(
    directory: Directory,
    mode: RecoveryMode,
    *,
    whole: bool = False,
    published: LogState | None = None,
    wait: Callable[[], None] = nobody_appends,
) -> Survey:
    """Read from the highest durable LSN in the last segments forward, and decide about each damage.

    With `whole`, from the first segment on: for `repair`. Beside writers, `published` says how far the log goes, or, if
    nobody can tell, `wait` waits for an append that is under way before a place is looked at again.
    Raises CorruptLog where `mode` refuses.
    """
    while True:
        segments = list_segments(directory)
        try:
            scans, durable_lsn = _scan(directory, segments, whole, published, wait)
            break
        except FileNotFoundError:
            if list_segments(directory) == segments:
                raise
            # retention, beside which a repair may look, has removed it
    if not scans:
        return Survey([], [], 0, 1, 0, 0)
    segments = [first for first in segments if first <= scans[-1].first_lsn]
    result = Survey(
        segments=segments,
        scans=scans,
        durable_lsn=max(durable_lsn, *(scan.durable_lsn for scan in scans)),
        next_lsn=scans[0].first_lsn,
        last_append_ns=max(scan.last_append_ns for scan in scans),
        sequence=max(scan.sequence for scan in scans) or _sequence_before(directory, segments, scans[0].first_lsn),
    )
    for at, scan in enumerate(scans):
        result.next_lsn = scan.next_lsn
        if scan.problem is None:
            continue
        later = scans[at + 1 :]
        behind = scan.behind.entries + sum(other.next_lsn - other.first_lsn + other.behind.entries for other in later)
        place = Place(scan.path, scan.problem.offset, scan.next_lsn, scan.problem.reason)
        followed = behind > 0 or any(one.behind.exhausted for one in (scan, *later))
        # A frame whose checksum fits was written whole: whatever is wrong with it, no power cut did it. For all other
        # places only a durable LSN can vouch, which some intact frame or header states.
        vouched = scan.problem.whole is not None or scan.next_lsn <= result.durable_lsn
        verdict = judge(Asker.RECOVERY, mode, vouched=vouched, followed=followed)
        if verdict is Verdict.REFUSE:
            reason = with_hint(place.reason) if scan.problem.early and followed else place.reason
            raise CorruptLog(place.path, place.offset, place.lsn, reason)
        if verdict is Verdict.CUT:
            result.cut = place
            result.intact_behind = behind
            return result
        result.skipped.append(place)
        if scan.behind.exhausted:
            raise CorruptLog(
                place.path,
                place.offset,
                place.lsn,
                f"{place.reason}; the search for what is intact behind it was given up",
            )
        result.next_lsn = max(scan.next_lsn, scan.behind.next_lsn)
    return result


def _scan(
    directory: Directory, segments: list[int], whole: bool, published: LogState | None, wait: Callable[[], None]
) -> tuple[list[SegmentScan], int]:
    """The scans of the segments from the highest durable LSN on, and that LSN."""
    segments = known_segments(segments, published)
    limit = published.tail if published is not None and segments[-1:] == [published.segment] else None
    if not segments:
        return [], 0
    window = FrameWindow(1 << 18)
    look = partial(scan_segment, directory, window=window, wait=wait)
    newest = look(segments[-1], None, limit=limit)
    durable_lsn = newest.durable_lsn
    back = len(segments) - 1  # the last segment whose header can be read has the last word on what is durable
    while back and not newest.sequence and not durable_lsn:
        back -= 1
        durable_lsn = look(segments[back], segments[back + 1]).durable_lsn
    start = 0 if whole else max((at for at, first in enumerate(segments) if first <= durable_lsn + 1), default=0)
    scans = [look(segments[at], segments[at + 1]) for at in range(start, len(segments) - 1)]
    return [*scans, newest], durable_lsn


def _sequence_before(directory: Directory, segments: list[int], first_lsn: int) -> int:
    """That of the last segment before whose header can be read, 0 without any: no number is given twice."""
    for first in reversed([first for first in segments if first < first_lsn]):
        try:
            segment = open_segment(directory, first)
        except (CorruptLog, FileNotFoundError):
            continue
        segment.file.close()
        return segment.header.sequence
    return 0
