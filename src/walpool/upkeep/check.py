"""The check of one segment: read what counts of it, and note each place that is not as it should be.

Holds: it calls damage what a reader in the default mode refuses, by the same table (read/verdict.py), and then goes on
behind it. What only the whole log tells (whether LSNs are missing between segments) is for verify.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from walpool.errors import CorruptLog
from walpool.format.run import Run, run_of
from walpool.options import RecoveryMode
from walpool.read.source import Source
from walpool.read.verdict import Asker, Verdict, judge, with_hint
from walpool.read.walk import Stop, Walk
from walpool.read.window import FrameWindow
from walpool.shared.catalog import Segment, header_is_torn, is_zero

DAMAGE = "damage"  # a frame below the end of the log cannot be read
GAP = "gap"  # LSNs are missing: a segment or part of one is gone
TORN_TAIL = "torn tail"  # bytes of an append that never completed, at the end: no entry is lost
EVIDENCE = "behind the cut"  # bytes that do not count, kept by a recovery or left by a killed writer


@dataclass(frozen=True, slots=True)
class Finding:
    """One place that is not as it should be.

    Attributes:
        kind: DAMAGE, GAP, TORN_TAIL or EVIDENCE; the first two are damage, in the others nothing is lost.
        path: the segment file.
        offset: in it, bytes.
        lsn: the LSN that was expected there.
        reason: what is wrong.
    """

    kind: str
    path: str
    offset: int
    lsn: int
    reason: str

    @property
    def is_damage(self) -> bool:
        return self.kind in (DAMAGE, GAP)


@dataclass(slots=True)
class Checked:
    """What one segment came to."""

    first_lsn: int
    next_lsn: int  # expected behind it
    segments: int = 0  # 1: it was read
    batches: int = 0
    entries: int = 0
    bytes: int = 0
    size: int = 0  # of the file, bytes
    durable_lsn: int = 0  # the highest that it states
    early: bool = False  # it ends before the next one starts
    findings: list[tuple[Finding, bool]] = field(default_factory=list)  # and whether something vouches for the place


class Check:
    """Of the segment `first_lsn`; `tell` hears up to which byte it was read."""

    def __init__(
        self,
        source: Source,
        window: FrameWindow,
        first_lsn: int,
        following: int | None,
        live: bool,
        tell: Callable[[int], None],
    ) -> None:
        self._source = source
        self._window = window
        self._following = following
        self._live = live
        self._tell = tell
        self._found = Checked(first_lsn, first_lsn)

    def run(self) -> Checked:
        found, following = self._found, self._following
        first_lsn = found.first_lsn
        try:
            segment = self._open(first_lsn)
        except FileNotFoundError:
            if self._source.only is not None or first_lsn in self._source.segments():
                raise
            if self._source.segments()[:1] < [first_lsn]:
                self._find(GAP, 0, "the segment was removed while it was verified")
            elif following is not None:
                found.next_lsn = following  # retention did it, as it had the older ones
            return found
        except CorruptLog as error:
            torn = following is None and not self._live and self._is_torn(first_lsn)
            self._find(TORN_TAIL if torn else DAMAGE, 0, error.reason)
            return found
        found.durable_lsn = segment.header.durable_lsn
        with segment.file:
            found.segments = 1
            self._walk(segment)
        return found

    def _open(self, first_lsn: int) -> Segment:
        try:
            return self._source.open(first_lsn)
        except CorruptLog:
            self._source.wait_for_append()  # it may have been under way to its name
            return self._source.open(first_lsn)

    def _is_torn(self, first_lsn: int) -> bool:
        return header_is_torn(self._source.directory, self._source.name_of(first_lsn))

    def _walk(self, segment: Segment) -> None:
        found = self._found
        extent = self._source.extent(segment)  # of a live log, this far and no further
        if self._following is not None:
            extent = extent._replace(limit_lsn=self._following)
        walk = Walk(segment, self._window, extent, bodies=True)
        while True:
            for run in walk.runs():
                self._count(run)
                self._tell(walk.offset)
            stop = walk.stop(self._source.wait_for_append)
            found.next_lsn = walk.lsn
            if stop is not None and not (stop.reason and self._resume(walk, stop)):
                break
        found.size = segment.file.size()
        self._tell(found.size)
        if walk.lsn == extent.limit_lsn and walk.offset < found.size:
            self._evidence(segment, walk.offset)

    def _count(self, run: Run) -> None:
        found = self._found
        found.durable_lsn = max(found.durable_lsn, run.durable_lsn)
        found.batches += run.batches
        found.entries += run.count
        found.bytes += run.bytes

    def _resume(self, walk: Walk, stop: Stop) -> bool:
        """Report a place where no frame stands, and go to the next intact one of this segment if there is one."""
        found, extent = self._found, walk.extent
        reason = stop.reason
        if stop.short and not stop.followed:
            found.early = True  # then it is said which LSNs are missing
            return False
        followed = stop.followed or extent.limit_lsn is not None
        whole = stop.whole is not None
        vouched = extent.live or whole
        verdict = judge(Asker.READER, RecoveryMode.TOLERATE_TAIL, vouched=vouched, followed=followed)
        kind = TORN_TAIL if verdict is Verdict.END else DAMAGE
        self._find(kind, stop.offset, with_hint(reason) if stop.early and followed else reason, vouched=whole)
        if stop.whole is not None:
            self._count(run_of(stop.whole))
            found.next_lsn = stop.whole.next_lsn
        if not walk.skip(stop):
            return False
        if walk.lsn > found.next_lsn:
            self._find(GAP, stop.offset, f"LSN {found.next_lsn} to {walk.lsn - 1} are lost")
        found.next_lsn = walk.lsn
        return True

    def _evidence(self, segment: Segment, offset: int) -> None:
        """Report what stands behind the end of a segment that a recovery has ended early."""
        if not is_zero(segment.file, offset):
            size = segment.file.size() - offset
            self._find(EVIDENCE, offset, f"{size} bytes that do not count")

    def _find(self, kind: str, offset: int, reason: str, *, vouched: bool = False) -> None:
        found = self._found
        path = self._source.directory.join(self._source.name_of(found.first_lsn))
        found.findings.append((Finding(kind, path, offset, found.next_lsn, reason), vouched))
