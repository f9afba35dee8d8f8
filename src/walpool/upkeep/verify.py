"""Verify: read everything that counts and report each place that is not as it should be. Changes nothing."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from walpool.errors import CorruptLog
from walpool.format.entry import BodyError, decode_body
from walpool.format.frame import Damage, End, Frame, SearchExhausted, find_frames
from walpool.read.scan import FrameWindow, is_early, refuse_unknown
from walpool.read.source import Source
from walpool.read.verdict import with_hint
from walpool.shared.catalog import Segment, header_is_torn, is_zero, used_range
from walpool.shared.origin import read_origin

Progress = Callable[[int, int], None]  # bytes read, bytes there are

DAMAGE = "damage"  # a frame below the end of the log cannot be read
GAP = "gap"  # LSNs are missing: a segment or part of one is gone
TORN_TAIL = "torn tail"  # bytes of an append that never completed, at the end: no entry is lost
EVIDENCE = "behind the cut"  # bytes that do not count, kept by a recovery or left by a killed writer


@dataclass(frozen=True, slots=True)
class Finding:
    kind: str
    path: str
    offset: int
    lsn: int  # expected there
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
    source = Source(path)
    try:
        return _Verification(source, progress or (lambda done, total: None)).run()
    finally:
        source.close()


class _Verification:
    def __init__(self, source: Source, progress: Progress) -> None:
        self._source = source
        self._progress = progress
        self._window = FrameWindow(1 << 18)
        self._report = VerifyReport(source.path, source.control is not None)
        self._lsn = 0  # expected next
        self._limit = 0  # offset up to which the segment is looked at
        self._early = False  # the last segment ended before the next one starts
        self._done = self._total = 0

    def run(self) -> VerifyReport:
        report = self._report
        there = self._source.segments()
        state = self._source.state()  # after the names: what it names may be gone by the time they are read
        segments = [first for first in there if state is None or first <= state.segment]
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
            try:
                report.segments += 1
                self._segment(segment, following)
            finally:
                segment.file.close()
        report.next_lsn = self._lsn
        return report

    def _open(self, first_lsn: int) -> Segment:
        try:
            return self._source.open(first_lsn)
        except CorruptLog:
            self._source.settle()  # it may have been under way to its name
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
            self._find(GAP, first_lsn, 0, reason)

    def _size(self, first_lsn: int) -> int:
        try:
            return self._source.directory.size_of(self._source.name_of(first_lsn))
        except FileNotFoundError:
            return 0

    def _segment(self, segment: Segment, following: int | None) -> None:
        extent = self._source.extent(segment)  # of a live log, this far and no further
        self._limit = extent.limit
        following = extent.limit_lsn if following is None else following
        window, before = self._window, self._done
        window.start(segment, segment.header.entries_offset)
        while following is None or self._lsn < following:
            found = window.next(self._lsn, self._limit)
            if isinstance(found, Frame):
                if following is not None and found.next_lsn > following:
                    self._find(DAMAGE, segment.header.first_lsn, window.offset, f"a frame reaches past LSN {following}")
                    return
                self._frame(segment, found)
                self._done = before + window.offset
                self._progress(self._done, self._total)
                continue
            if not self._resume(segment, found, following, extent.live):
                break
        self._done = before + segment.file.size()
        self._progress(self._done, self._total)
        if following is not None and self._lsn == following and window.offset < segment.file.size():
            self._evidence(segment, window.offset)

    def _frame(self, segment: Segment, frame: Frame) -> None:
        report = self._report
        refuse_unknown(frame, segment.file.path)
        try:
            decode_body(self._window.data, frame.body, frame.end, frame.count, frame.first_lsn)
        except BodyError as error:
            at = self._window.offset - (frame.end - frame.offset)
            self._find(DAMAGE, segment.header.first_lsn, at, error.reason)
        report.batches += 1
        report.entries += frame.count
        report.bytes += frame.end - frame.offset
        self._lsn = frame.next_lsn

    def _resume(self, segment: Segment, found: End | Damage, following: int | None, live: bool) -> bool:
        """Where no frame stands: report it, and go to the next intact frame of this segment if there is one."""
        offset, lsn = self._window.offset, self._lsn
        limit = self._limit
        if offset >= limit and following is None:
            return False  # the end
        start, end = used_range(segment.file, offset)
        rest = segment.file.read(min(end, limit) - start, start)
        gave_up = False
        intact = None
        try:
            intact = next(find_frames(rest, 0, segment.header.marker, lsn), None)
        except SearchExhausted:
            gave_up = True
        if intact is None and (any(rest) or live):
            self._source.settle()
        if self._is_there_by_now(segment, offset, live):
            return True
        reason = found.reason if isinstance(found, Damage) else ""
        early = not live and is_early(segment.file, offset, found)
        if intact is not None:
            reason = reason or "zeros stand before intact frames"
            self._find(DAMAGE, segment.header.first_lsn, offset, with_hint(reason) if early else reason)
            if intact.first_lsn > lsn:
                self._find(GAP, segment.header.first_lsn, offset, f"LSN {lsn} to {intact.first_lsn - 1} are lost")
            self._lsn = intact.first_lsn
            self._window.start(segment, start + intact.offset)
            return True
        if live or gave_up:
            self._find(DAMAGE, segment.header.first_lsn, offset, reason or "no frame stands before the published tail")
        elif following is not None:
            if reason:
                # run() adds which LSNs are missing
                self._find(DAMAGE, segment.header.first_lsn, offset, with_hint(reason) if early else reason)
            elif lsn < following:
                self._early = True
        elif any(rest):
            self._find(TORN_TAIL, segment.header.first_lsn, offset, reason)
        return False

    def _is_there_by_now(self, segment: Segment, offset: int, live: bool) -> bool:
        """One look is no proof beside a writer. Frames are written in order: the second look comes after later ones."""
        if not live:
            self._limit = max(self._limit, segment.file.size())
        self._window.start(segment, offset)
        again = self._window.next(self._lsn, self._limit)
        self._window.start(segment, offset)
        return isinstance(again, Frame)

    def _evidence(self, segment: Segment, offset: int) -> None:
        if not is_zero(segment.file, offset):
            size = segment.file.size() - offset
            self._find(EVIDENCE, segment.header.first_lsn, offset, f"{size} bytes that do not count")

    def _find(self, kind: str, first_lsn: int, offset: int, reason: str) -> None:
        path = self._source.directory.join(self._source.name_of(first_lsn))
        self._report.findings.append(Finding(kind, path, offset, self._lsn, reason))
