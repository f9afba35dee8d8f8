"""Verify: read everything that counts and report each place that is not as it should be. Changes nothing.

Segments are checked one by one (check.py), in this process or in several. Holds: beside writers it reads up to the
published tail, and what retention removes meanwhile is no finding; the report is the same whoever has read.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from walpool.format.names import MAX_LSN
from walpool.options import RecoveryMode
from walpool.read.parallel import error_of
from walpool.read.source import Source
from walpool.read.verdict import Asker, Verdict, judge, with_hint
from walpool.read.window import FrameWindow
from walpool.shared.control import known_segments
from walpool.shared.origin import read_origin
from walpool.upkeep.check import GAP, Check, Checked, Finding

Progress = Callable[[int, int], None]  # bytes read, bytes there are
PIECE_BYTES = 16 << 20  # of segments that a worker takes at once

WOULD_END = "; nothing says that it was durable: the next writer to open the log ends it here"


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


def verify(path: str | os.PathLike[str], progress: Progress | None = None, workers: int = 1) -> VerifyReport:
    """Read the log at `path`, a directory or one segment file, beside whoever appends to it.

    With `workers` over 1, so many forked processes read a segment each.
    Raises LogNotFound, UnsafeLog, UnsupportedVersion, and WorkerFailed when one of them is killed; damage is in the
    report.
    """
    with closing(Source(path)) as source:
        return _Verification(source, progress or (lambda done, total: None), workers).run()


class _Piece(NamedTuple):
    """Segments that follow each other, each with the first LSN of the next one: a task of a worker's."""

    start: int
    end: int
    segments: list[tuple[int, int | None]]


class _Verification:
    def __init__(self, source: Source, progress: Progress, workers: int) -> None:
        self._source = source
        self._progress = progress
        self._workers = workers
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
        sizes = [self._size(first) for first in segments]
        self._total = sum(sizes)
        report.first_lsn = self._lsn = segments[0]
        self._check_beginning(segments[0])
        for found in self._checked(list(zip(segments, [*segments[1:], None], strict=True)), sizes):
            if found.first_lsn != self._lsn:
                reason = f"LSN {self._lsn} to {found.first_lsn - 1} are missing"
                path = self._source.directory.join(self._source.name_of(found.first_lsn))
                self._find(Finding(GAP, path, 0, self._lsn, with_hint(reason) if self._early else reason))
            self._take(found)
        report.next_lsn = self._lsn
        self._say_what_an_opening_does()
        return report

    def _checked(self, segments: list[tuple[int, int | None]], sizes: list[int]) -> Iterator[Checked]:
        live = self._report.live
        if self._workers == 1 or len(segments) == 1:
            window = FrameWindow(1 << 18)
            for first_lsn, following in segments:
                yield Check(self._source, window, first_lsn, following, live, self._tell).run()
            return
        from walpool.system.workers import Workers, WorkFailed  # late: few verify with workers

        def done(more: int) -> None:
            self._done += more
            self._tell(0)

        work = _Verifying(self._source.path, self._source.id, live)
        crew: Workers[_Piece] = Workers(work, self._workers, "fork", done=done)
        try:
            yield from crew.results(_pieces(segments, sizes))
        except WorkFailed as failed:
            error, cause = error_of(self._source.path, failed)
            raise error from cause

    def _tell(self, more: int) -> None:
        self._progress(self._done + more, self._total)

    def _size(self, first_lsn: int) -> int:
        try:
            return self._source.directory.size_of(self._source.name_of(first_lsn))
        except FileNotFoundError:
            return 0

    def _check_beginning(self, first_lsn: int) -> None:
        """What is missing before the first segment was removed by retention, or it is a finding."""
        if self._source.only is not None:
            return
        origin = read_origin(self._source.directory)  # after the names: retention notes first what it removes
        if origin is not None and origin.first_lsn < first_lsn:
            reason = f"LSN {origin.first_lsn} to {first_lsn - 1} are missing, and retention has not removed them"
            path = self._source.directory.join(self._source.name_of(first_lsn))
            self._find(Finding(GAP, path, 0, self._lsn, reason), vouched=True)

    def _take(self, found: Checked) -> None:
        report = self._report
        for finding, vouched in found.findings:
            self._find(finding, vouched=vouched)
        report.segments += found.segments
        report.batches += found.batches
        report.entries += found.entries
        report.bytes += found.bytes
        self._durable_lsn = max(self._durable_lsn, found.durable_lsn)
        self._lsn, self._early = found.next_lsn, found.early
        if self._workers == 1:
            self._done += found.size

    def _find(self, finding: Finding, *, vouched: bool = False) -> None:
        if finding.is_damage and not self._report.damaged and not vouched and not self._report.live:
            self._unvouched = len(self._report.findings)
        self._report.findings.append(finding)

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


@dataclass(frozen=True)
class _Verifying:
    """What each worker does: see `Work`."""

    path: str
    log_id: bytes | None
    live: bool

    def items(self, piece: _Piece) -> Iterator[tuple[Checked, int]]:
        with closing(Source(self.path)) as source:
            if self.log_id is not None and source.id != self.log_id:
                raise source.replaced("another log was made in its place")
            window = FrameWindow(1 << 18)
            for first_lsn, following in piece.segments:
                found = Check(source, window, first_lsn, following, self.live, lambda more: None).run()
                yield found, found.size

    def function(self, found: Checked) -> Checked:
        return found

    def in_words(self, found: Checked) -> str:
        return f"the segment with LSN {found.first_lsn}"


def _pieces(segments: list[tuple[int, int | None]], sizes: list[int]) -> Iterator[_Piece]:
    piece: list[tuple[int, int | None]] = []
    size = 0
    for (first_lsn, following), more in zip(segments, sizes, strict=True):
        piece.append((first_lsn, following))
        size += more
        if size >= PIECE_BYTES or following is None:
            yield _Piece(piece[0][0], following or MAX_LSN, piece)
            piece, size = [], 0
