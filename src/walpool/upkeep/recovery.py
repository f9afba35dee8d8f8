"""Recovery: what the segments say the log is, when the control block cannot be believed.

Holds: recovery never changes a segment, it starts a new one whose first LSN says where the old one counts up to;
what lies behind the cut is evidence and is moved, newest first, never deleted. So recovering twice gives the same, and
a kill in the middle leaves a directory that recovers to the same end.
Lock: maintenance and append, and no writer alive.
"""

import logging
from dataclasses import dataclass

from walpool.errors import CorruptLog, SyncFailed, WALError
from walpool.format.header import HEADER_BYTES, WALHeader
from walpool.format.names import LAST_OPEN_LSN, segment_name
from walpool.options import RecoveryMode
from walpool.shared.catalog import Segment, is_zero, open_segment
from walpool.shared.checkpoint import read_checkpoint, write_checkpoint
from walpool.shared.control import LogState, create_control, last_totals, leftover
from walpool.shared.poison import lift
from walpool.system import clock, processes
from walpool.system.files import CREATE, Directory
from walpool.system.paths import sync_path_to
from walpool.upkeep.aside import NEW_SEGMENT, move_aside, put_in_place, undo_half_moves
from walpool.upkeep.rewrite import rewrite
from walpool.upkeep.survey import Place, Survey, survey

log = logging.getLogger("walpool")


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What recovery read, where it cut, and what it left behind."""

    reason: str  # why the control block could not be used
    mode: RecoveryMode
    segments: int  # in the log
    segments_scanned: int
    batches: int  # in the scanned segments
    entries: int
    durable_lsn: int  # the highest that the segments vouch for
    next_lsn: int
    cut: Place | None = None  # where the log now ends because of damage
    intact_behind: int = 0  # intact entries behind the cut, kept as evidence
    skipped: tuple[Place, ...] = ()  # SALVAGE: the damaged ranges
    quarantined: tuple[str, ...] = ()  # segments moved aside


def recover(
    directory: Directory,
    mode: RecoveryMode,
    reason: str,
    file_mode: int,
    doubtful_lsn: int | None = None,
    *,
    whole: bool = False,
) -> RecoveryReport:
    """Make the segments and the control block agree, and everything that counts durable.

    After a failed sync `doubtful_lsn` is the first whose bytes may be in the page cache only: they are written anew.
    Raises SyncFailed when the disk still fails; then nothing was lifted and opening again tries again.
    """
    try:
        return _recover(directory, mode, reason, file_mode, doubtful_lsn, whole)
    except OSError as error:
        if isinstance(error, WALError):
            raise
        raise SyncFailed(error.errno or 5, f"{directory.path}: a sync failed while recovering: {error}") from error


def _recover(
    directory: Directory, mode: RecoveryMode, reason: str, file_mode: int, doubtful_lsn: int | None, whole: bool
) -> RecoveryReport:
    for name in directory.names():
        if leftover(name):
            directory.unlink(name)
    undo_half_moves(directory)
    if doubtful_lsn is not None:
        rewrite(directory, doubtful_lsn, file_mode)
    found = survey(directory, mode, whole=whole)
    if found.next_lsn > LAST_OPEN_LSN:
        last = found.scans[-1]
        raise CorruptLog(last.path, last.end, found.next_lsn, "no log has so many entries")
    if not found.segments:
        sync_path_to(directory)  # before the first segment: whoever finds one need not do it again
    totals = last_totals(directory)
    for scan in found.scans:
        if scan.first_lsn < found.next_lsn:
            _sync_segment(directory, scan.first_lsn)
    _take_back_checkpoint(directory, found, file_mode)
    quarantined = _quarantine(directory, found)
    active = _start_segment(directory, found, quarantined, file_mode)
    kept = [first for first in found.segments if first < active.header.first_lsn]
    state = LogState(
        segment=active.header.first_lsn,
        sequence=active.header.sequence,
        marker=active.header.marker,
        tail=active.header.entries_offset,
        next_lsn=active.header.first_lsn,
        last_append_ns=found.last_append_ns,
        entries=active.header.first_lsn - 1,
        batches=min(
            totals.batches + sum(scan.batches for scan in found.scans if scan.first_lsn >= totals.next_lsn),
            active.header.first_lsn - 1,  # a batch has an entry at least, also when entries were cut
        ),
        bytes=sum(max(0, directory.size_of(segment_name(first)) - HEADER_BYTES) for first in kept),
        max_entry_bytes=max([totals.max_entry_bytes, *(scan.largest_single for scan in found.scans)]),
        last_frame=0,
    )
    active.file.close()
    create_control(directory, state, found.next_lsn - 1, totals, file_mode)
    lift(directory)
    report = RecoveryReport(
        reason=reason,
        mode=mode,
        segments=len(kept) + 1,
        segments_scanned=len(found.scans),
        batches=sum(scan.batches for scan in found.scans),
        entries=sum(scan.next_lsn - scan.first_lsn for scan in found.scans),
        durable_lsn=found.durable_lsn,
        next_lsn=found.next_lsn,
        cut=found.cut,
        intact_behind=found.intact_behind,
        skipped=tuple(found.skipped),
        quarantined=tuple(quarantined),
    )
    _tell(directory, report)
    return report


def _sync_segment(directory: Directory, first_lsn: int) -> None:
    file = directory.open(segment_name(first_lsn))
    try:
        file.sync()
    finally:
        file.close()


def _take_back_checkpoint(directory: Directory, found: Survey, file_mode: int) -> None:
    """One that the log does not reach: it would cover entries that are appended later, and retention remove them.

    A power cut leaves none. A backup may hold a younger checkpoint than segments, and a repair may cut below it.
    """
    try:
        stated = read_checkpoint(directory)
    except CorruptLog:
        return  # it covers nothing, and whoever goes by it is told
    if stated >= found.next_lsn:
        write_checkpoint(directory, found.next_lsn - 1, file_mode)
        log.warning("%s: the checkpoint was LSN %d and the log ends at LSN %d: so does the checkpoint now",
                    directory.path, stated, found.next_lsn - 1)  # fmt: skip


def _quarantine(directory: Directory, found: Survey) -> list[str]:
    """Move aside the segments behind the one that will be active, newest first.

    All names, those of the segments that stay too, are durable before that one says that everything before it is.
    """
    moved = [move_aside(directory, lsn) for lsn in reversed(found.segments) if lsn > found.next_lsn]
    if found.segments:
        directory.sync()
    return moved


def _is_clean_and_empty(directory: Directory, first_lsn: int) -> bool:
    try:
        segment = open_segment(directory, first_lsn)
    except CorruptLog:
        return False
    try:
        return is_zero(segment.file, segment.header.entries_offset)
    finally:
        segment.file.close()


def _start_segment(directory: Directory, found: Survey, quarantined: list[str], file_mode: int) -> Segment:
    """The new active segment, or the clean empty one that is already there. It and all names are durable then."""
    if found.segments and found.segments[-1] == found.next_lsn and _is_clean_and_empty(directory, found.next_lsn):
        segment = open_segment(directory, found.next_lsn, writable=True)
        segment.file.sync()
        directory.sync()
        return segment
    header = WALHeader(
        created_at=clock.time_ns(),
        sequence=found.sequence + 1,
        first_lsn=found.next_lsn,
        durable_lsn=found.next_lsn - 1,
        marker=processes.random_word() & 0xFFFFFFFF,
    )
    file = directory.open(NEW_SEGMENT, CREATE, file_mode)
    try:
        file.write(header.encode(), 0)
        file.sync()
        aside = put_in_place(directory, found.next_lsn, replaces=found.next_lsn in found.segments)
    except BaseException:
        file.close()
        raise
    if aside is not None:
        quarantined.append(aside)
    return Segment(file, header)


def _tell(directory: Directory, report: RecoveryReport) -> None:
    if report.cut is not None:
        log.warning(
            "%s: recovered; the log ends at LSN %d because of %s at offset %d of %s; %d intact entries lie behind it"
            " and are kept as evidence",
            directory.path, report.next_lsn - 1, report.cut.reason, report.cut.offset, report.cut.path,
            report.intact_behind,
        )  # fmt: skip
    for place in report.skipped:
        log.warning("%s: skipped damage at offset %d, LSN %d: %s", place.path, place.offset, place.lsn, place.reason)
