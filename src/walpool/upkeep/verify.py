"""Verify: read everything that counts and report each place that is not as it should be. Changes nothing.

Holds: it calls damage what a reader in the default mode refuses, by the same table (read/verdict.py), and then goes on
behind it. Beside writers it reads up to the published tail, and what retention removes meanwhile is no finding.
"""

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace

from walpool.errors import CorruptLog
from walpool.format.run import Run, run_of
from walpool.options import RecoveryMode
from walpool.read.source import Source
from walpool.read.verdict import Asker, Verdict, judge, with_hint
from walpool.read.walk import Stop, Walk
from walpool.read.window import FrameWindow
from walpool.shared.catalog import Segment, header_is_torn, is_zero
from walpool.shared.control import known_segments
from walpool.shared.origin import read_origin

Progress = Callable[[int, int], None]  # bytes read, bytes there are

DAMAGE = "damage"  # a frame below the end of the log cannot be read
GAP = "gap"  # LSNs are missing: a segment or part of one is gone
TORN_TAIL = "torn tail"  # bytes of an append that never completed, at the end: no entry is lost
EVIDENCE = "behind the cut"  # bytes that do not count, kept by a recovery or left by a killed writer
WOULD_END = "; nothing says that it was durable: the next writer to open the log ends it here"


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
class VerifyReport:
    """What was read; `bytes` are those of intact frames."""

    path: str
    live: bool  # read up to a published tail; otherwise as far as frames go
    segments: int = 0
    batches: int = 0
    entries: int = 0
    bytes: int = 0
    first_lsn: int = 0
    next_lsn: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def damaged(self) -> bool:
        return any(finding.is_damage for finding in self.findings)


def verify(path: str | os.PathLike[str], progress: Progress | None = None) -> VerifyReport:
    """Read the log at `path`, a directory or one segment file, beside whoever appends to it.

    Raises LogNotFound, UnsafeLog, UnsupportedVersion; damage is in the report.
    """
    with closing(Source(path)) as source:
        return _Verification(source, progress or (lambda done, total: None)).run()


class _Verification:
    def __init__(self, source: Source, progress: Progress) -> None:
        self._source = source
        self._progress = progress
        self._window = FrameWindow(1 << 18)
        self._report = VerifyReport(source.path, source.control is not None)
        self._lsn = 0  # expected next
        self._durable_lsn = 0  # the highest that anything states
        self._unvouched: int | None = None  # the first finding that is damage, if nothing else vouches for the place
        self._early = False  # the last segment ended before the next one starts
        self._done = self._total = 0

    def run(self) -> VerifyReport:
        report = self._report
        there = self._source.segments()
        state = self._source.state()  # after the names: what it names may be gone by the time they are read
        segments = known_segments(there, state)
        self._total = sum(self._size(first) for first in segments)
        report.first_lsn = self._lsn = segments[0]
        self._check_beginning(segments[0])
        for at, first_lsn in enumerate(segments):
            if first_lsn != self._lsn:
                reason = f"LSN {self._lsn} to {first_lsn - 1} are missing"
                self._find(GAP, first_lsn, 0, with_hint(reason) if self._early else reason)
                self._early = False
                self._lsn = first_lsn
            following = segments[at + 1] if at + 1 < len(segments) else None
            try:
                segment = self._open(first_lsn)
            except FileNotFoundError:
                if self._source.only is not None or first_lsn in self._source.segments():
                    raise
                if self._source.segments()[:1] < [first_lsn]:
                    self._find(GAP, first_lsn, 0, "the segment was removed while it was verified")
                elif following is not None:
                    self._lsn = following  # retention did it, as it had the older ones
                continue
            except CorruptLog as error:
                torn = following is None and state is None and self._is_torn(first_lsn)
                self._find(TORN_TAIL if torn else DAMAGE, first_lsn, 0, error.reason)
                continue
            self._durable_lsn = max(self._durable_lsn, segment.header.durable_lsn)
            with segment.file:
                report.segments += 1
                self._segment(segment, following)
        report.next_lsn = self._lsn
        self._say_what_an_opening_does()
        return report

    def _open(self, first_lsn: int) -> Segment:
        try:
            return self._source.open(first_lsn)
        except CorruptLog:
            self._source.wait_for_append()  # it may have been under way to its name
            return self._source.open(first_lsn)

    def _is_torn(self, first_lsn: int) -> bool:
        return header_is_torn(self._source.directory, self._source.name_of(first_lsn))

    def _check_beginning(self, first_lsn: int) -> None:
        """What is missing before the first segment was removed by retention, or it is a finding."""
        if self._source.only is not None:
            return
        origin = read_origin(self._source.directory)  # after the names: retention notes first what it removes
        if origin is not None and origin.first_lsn < first_lsn:
            reason = f"LSN {origin.first_lsn} to {first_lsn - 1} are missing, and retention has not removed them"
            self._find(GAP, first_lsn, 0, reason, vouched=True)

    def _size(self, first_lsn: int) -> int:
        try:
            return self._source.directory.size_of(self._source.name_of(first_lsn))
        except FileNotFoundError:
            return 0

    def _segment(self, segment: Segment, following: int | None) -> None:
        extent = self._source.extent(segment)  # of a live log, this far and no further
        if following is not None:
            extent = extent._replace(limit_lsn=following)
        before = self._done
        walk = Walk(segment, self._window, extent, bodies=True)
        while True:
            for run in walk.runs():
                self._count(run)
                self._done = before + walk.offset
                self._progress(self._done, self._total)
            stop = walk.stop(self._source.wait_for_append)
            self._lsn = walk.lsn
            if stop is not None and not (stop.reason and self._resume(segment, walk, stop)):
                break
        self._done = before + segment.file.size()
        self._progress(self._done, self._total)
        if walk.lsn == extent.limit_lsn and walk.offset < segment.file.size():
            self._evidence(segment, walk.offset)

    def _say_what_an_opening_does(self) -> None:
        """Add, where a reader refuses and a recovery would not, that the next writer to open the log ends it there.

        Only of the first damage, in a log without a control block: there it is what a recovery meets first.
        """
        if self._unvouched is None or self._source.only is not None:
            return
        finding = self._report.findings[self._unvouched]
        vouched = finding.lsn <= self._durable_lsn
        if judge(Asker.RECOVERY, RecoveryMode.TOLERATE_TAIL, vouched=vouched, followed=True) is Verdict.CUT:
            self._report.findings[self._unvouched] = replace(finding, reason=finding.reason + WOULD_END)

    def _count(self, run: Run) -> None:
        report = self._report
        self._durable_lsn = max(self._durable_lsn, run.durable_lsn)
        report.batches += run.batches
        report.entries += run.count
        report.bytes += run.bytes

    def _resume(self, segment: Segment, walk: Walk, stop: Stop) -> bool:
        """Report a place where no frame stands, and go to the next intact one of this segment if there is one."""
        first_lsn, extent = segment.header.first_lsn, walk.extent
        reason = stop.reason
        if stop.short and not stop.followed:
            self._early = True  # run() says which LSNs are missing
            return False
        followed = stop.followed or extent.limit_lsn is not None
        whole = stop.whole is not None
        vouched = extent.live or whole
        verdict = judge(Asker.READER, RecoveryMode.TOLERATE_TAIL, vouched=vouched, followed=followed)
        kind = TORN_TAIL if verdict is Verdict.END else DAMAGE
        self._find(
            kind, first_lsn, stop.offset, with_hint(reason) if stop.early and followed else reason, vouched=whole
        )
        if stop.whole is not None:
            self._count(run_of(stop.whole))
            self._lsn = stop.whole.next_lsn
        if not walk.skip(stop):
            return False
        if walk.lsn > self._lsn:
            self._find(GAP, first_lsn, stop.offset, f"LSN {self._lsn} to {walk.lsn - 1} are lost")
        self._lsn = walk.lsn
        return True

    def _evidence(self, segment: Segment, offset: int) -> None:
        """Report what stands behind the end of a segment that a recovery has ended early."""
        if not is_zero(segment.file, offset):
            size = segment.file.size() - offset
            self._find(EVIDENCE, segment.header.first_lsn, offset, f"{size} bytes that do not count")

    def _find(self, kind: str, first_lsn: int, offset: int, reason: str, *, vouched: bool = False) -> None:
        if kind in (DAMAGE, GAP) and not self._report.damaged and not vouched and not self._report.live:
            self._unvouched = len(self._report.findings)
        path = self._source.directory.join(self._source.name_of(first_lsn))
        self._report.findings.append(Finding(kind, path, offset, self._lsn, reason))
