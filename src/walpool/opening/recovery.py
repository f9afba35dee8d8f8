"""Recovery: what the segments say the log is, when the control block cannot be believed.

In this order: clear away what killed processes left half made; after a failed sync, write anew what is in doubt
(rewrite.py); read the segments and decide where the log ends (survey.py); make durable what counts; move aside what
lies behind the end; start a new segment there; make a control block; lift the mark of the failed sync.

Holds: recovery never changes a segment, it starts a new one whose first LSN says where the old one counts up to;
what lies behind the cut is evidence and is moved, newest first, never deleted. So recovering twice gives the same, and
a kill in the middle leaves a directory that recovers to the same end.
Lock: maintenance and append, and no writer alive.
"""

from dataclasses import dataclass
from itertools import pairwise

from walpool.errors import CorruptLog, LogFull, SyncFailed, WALError
from walpool.format.header import WALHeader
from walpool.format.names import LAST_OPEN_LSN, LEFTOVERS, PREPARED, segment_name
from walpool.opening.aside import NEW_SEGMENT, move_aside, put_in_place, undo_half_moves
from walpool.opening.recount import recount
from walpool.opening.rewrite import rewrite
from walpool.opening.survey import Place, Survey, survey
from walpool.options import RecoveryMode
from walpool.read.scan import scan_segment
from walpool.read.window import FrameWindow
from walpool.shared.catalog import Segment, is_zero, new_marker, open_segment
from walpool.shared.checkpoint import read_checkpoint, write_checkpoint
from walpool.shared.control import LogState, create_control, last_totals, leftover
from walpool.shared.cursors.positions import take_back
from walpool.shared.origin import new_origin, read_origin, write_origin
from walpool.shared.poison import lift
from walpool.system import clock
from walpool.system.failures import in_words
from walpool.system.files import CREATE, Directory
from walpool.system.paths import sync_path_to

MOST_TOLD = 10  # damaged places, a line each


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What recovery read, where it cut, and what it left behind.

    Attributes:
        reason: why the control block could not be used.
        mode: by which damage was judged.
        segments: how many the log has.
        segments_scanned: how many of them were read: no further back than the highest durable LSN makes it.
        batches, entries: in the scanned segments.
        durable_lsn: the highest that the segments vouch for.
        next_lsn: the LSN that the next entry gets.
        cut (default None): where the log now ends because of damage; None when it does not.
        intact_behind (default 0): intact entries behind the cut, kept as evidence.
        skipped (default ()): the damaged ranges that SALVAGE skipped.
        quarantined (default ()): names of the segments moved to quarantine/.
        checkpoint (default None): the one that the log does not reach, and that was taken back to its end.
        cursors (default ()): the name and the position of each that was taken back to the log's end.
    """

    reason: str
    mode: RecoveryMode
    segments: int
    segments_scanned: int
    batches: int
    entries: int
    durable_lsn: int
    next_lsn: int
    cut: Place | None = None
    intact_behind: int = 0
    skipped: tuple[Place, ...] = ()
    quarantined: tuple[str, ...] = ()
    checkpoint: int | None = None
    cursors: tuple[tuple[str, int], ...] = ()

    def told(self, path: str) -> list[str]:
        """What a person should hear of it, a line each; empty when nothing was cut, skipped or taken back.

        Args:
            path: what the log is called in these lines.
        """
        lines = []
        if self.checkpoint is not None:
            lines.append(
                f"{path}: the checkpoint was LSN {self.checkpoint} and the log ends at LSN {self.next_lsn - 1}: so does"
                " the checkpoint now"
            )
        lines += [
            f"{path}: cursor {name!r} was at LSN {lsn} and the log ends at LSN {self.next_lsn - 1}: so does the cursor"
            " now"
            for name, lsn in self.cursors
        ]
        if self.cut is not None:
            lines.append(
                f"{path}: recovered; the log ends at LSN {self.next_lsn - 1} because of damage at offset"
                f" {self.cut.offset} of {self.cut.path}: {self.cut.reason}; {self.intact_behind} intact entries lie"
                " behind it and are kept as evidence"
            )
        lines += [
            f"{place.path}: skipped damage at offset {place.offset}, LSN {place.lsn}: {place.reason}"
            for place in self.skipped[:MOST_TOLD]
        ]
        if len(self.skipped) > MOST_TOLD:
            lines.append(
                f"{path}: skipped damage at {len(self.skipped) - MOST_TOLD} more places; `walpool verify` has all"
            )
        return lines


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

    Raises SyncFailed when the disk still fails: then the mark of a failed sync, if there is one, stays, and the next
    opening tries again. CorruptLog where `mode` refuses; LogFull, which leaves nothing half made.

    Args:
        mode: by which damage is judged.
        reason: why the control block could not be used; for the report.
        file_mode: permissions of files that are made.
        doubtful_lsn: after a failed sync, the first LSN whose bytes may be in the page cache only, from where on they
            are written anew; 0 when nobody knows it; None when nothing is in doubt.
        whole: read every segment, and not only from the highest durable LSN on.
    """
    try:
        try:
            return _recover(directory, mode, reason, file_mode, doubtful_lsn, whole)
        except LogFull:
            if directory.identity(PREPARED) is None:
                raise
            directory.unlink(PREPARED)  # zeros for later: now is when their room is needed
        return _recover(directory, mode, reason, file_mode, doubtful_lsn, whole)
    except OSError as error:
        if isinstance(error, WALError):
            raise
        raise SyncFailed(
            error.errno or 5, f"{directory.path}: a sync failed while recovering: {in_words(error)}"
        ) from error


def _recover(
    directory: Directory, mode: RecoveryMode, reason: str, file_mode: int, doubtful_lsn: int | None, whole: bool
) -> RecoveryReport:
    for name in directory.names():
        if leftover(name) or name in LEFTOVERS:
            directory.unlink(name)
    undo_half_moves(directory)
    if doubtful_lsn == 0:
        doubtful_lsn = survey(directory, mode).durable_lsn + 1  # what the segments vouch for was synced before
    rewritten = 0
    if doubtful_lsn is not None:
        rewritten = rewrite(directory, doubtful_lsn, file_mode)
    found = survey(directory, mode, whole=whole)
    found.sequence = max(found.sequence, rewritten)  # of a segment that may be before those that were read
    if found.next_lsn > LAST_OPEN_LSN:
        last = found.scans[-1]
        raise CorruptLog(last.path, last.end, found.next_lsn, "no log has so many entries")
    if not found.segments:
        write_origin(directory, new_origin(), file_mode, durable=False)
        sync_path_to(directory)  # before the first segment: whoever finds one need not do it again
    # What counts is synced before anything says that it is durable: the new segment's header and the block both do.
    totals = recount(directory, last_totals(directory), found.segments, found.scans, found.next_lsn)
    for scan in found.scans:
        if scan.first_lsn < found.next_lsn:
            _sync_segment(directory, scan.first_lsn)
    taken_back = _take_back_checkpoint(directory, found, file_mode)
    cursors = take_back(directory, found.next_lsn, file_mode)
    quarantined = _quarantine(directory, found)
    active = _start_segment(directory, found, quarantined, file_mode)
    kept = [first for first in found.segments if first < active.header.first_lsn]
    state = LogState(
        segment=active.header.first_lsn,
        sequence=active.header.sequence,
        marker=active.header.marker,
        tail=active.header.entries_offset,
        next_lsn=active.header.first_lsn,
        last_append_ns=found.last_append_ns or _last_append_ns(directory, found),
        entries=active.header.first_lsn - 1,
        batches=totals.batches,
        bytes=totals.bytes,
        max_entry_bytes=totals.max_entry_bytes,
        last_frame=0,
    )
    active.file.close()
    create_control(directory, state, found.next_lsn - 1, totals, file_mode)
    lift(directory)
    return RecoveryReport(
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
        checkpoint=taken_back,
        cursors=tuple(cursors),
    )


def _last_append_ns(directory: Directory, found: Survey) -> int:
    """`appended_at` of the last frame before those that were scanned: the next must not be less.

    Only asked when the scanned segments have no frame; then mostly one more segment is read. When retention has removed
    every frame there was, its note says it.
    """
    window = FrameWindow(1 << 18)
    scanned = found.scans[0].first_lsn if found.scans else 1
    earlier = [first for first in found.segments if first < scanned]
    for first_lsn, next_lsn in reversed(list(pairwise([*earlier, scanned]))):
        try:
            last_ns = scan_segment(directory, first_lsn, next_lsn, window).last_append_ns
        except FileNotFoundError:
            continue
        if last_ns:
            return last_ns
    origin = read_origin(directory)
    return 0 if origin is None else origin.last_append_ns


def _sync_segment(directory: Directory, first_lsn: int) -> None:
    with directory.open(segment_name(first_lsn)) as file:
        file.sync()


def _take_back_checkpoint(directory: Directory, found: Survey, file_mode: int) -> int | None:
    """Set a checkpoint that lies beyond the log's end back to that end; what it was, or None when it does not.

    Else it would cover entries that are appended later and that somebody needs, and retention would remove them. A
    power cut leaves none like it, because a checkpoint makes durable what it covers first. But a backup may have a
    younger checkpoint than segments, and a repair may cut below it.
    """
    try:
        stated = read_checkpoint(directory)
    except CorruptLog:
        return None  # it covers nothing, and whoever goes by it is told
    if stated < found.next_lsn:
        return None
    write_checkpoint(directory, found.next_lsn - 1, file_mode)
    return stated


def _quarantine(directory: Directory, found: Survey) -> list[str]:
    """Move aside the segments behind the one that will be active, newest first: a kill leaves no hole in the names.

    The directory is synced even when nothing was moved. The new segment will say that everything before it is durable,
    and so the names of those segments have to be.
    """
    moved = [move_aside(directory, lsn) for lsn in reversed(found.segments) if lsn > found.next_lsn]
    if found.segments:
        directory.sync()
    return moved


def _can_go_on_in(directory: Directory, found: Survey) -> bool:
    """Whether the segment that begins at the end has a good header with the highest number, and zeros behind it.

    A rewrite has given a higher one to the segment before it.
    """
    try:
        segment = open_segment(directory, found.next_lsn)
    except CorruptLog:
        return False
    with segment.file:
        return segment.header.sequence == found.sequence and is_zero(segment.file, segment.header.entries_offset)


def _start_segment(directory: Directory, found: Survey, quarantined: list[str], file_mode: int) -> Segment:
    """The new active segment, or the clean empty one that is there already (of a recovery that was killed, or of a
    rotation). It and all names are durable when this returns.

    It is made under another name and renamed when it is on disk: nobody ever sees a segment with half a header. Where a
    segment of that name is in the way (its header is damaged), that one keeps a name in quarantine.
    """
    if found.segments and found.segments[-1] == found.next_lsn and _can_go_on_in(directory, found):
        segment = open_segment(directory, found.next_lsn, writable=True)
        segment.file.sync()
        directory.sync()
        return segment
    header = WALHeader(
        created_at=clock.time_ns(),
        sequence=found.sequence + 1,
        first_lsn=found.next_lsn,
        durable_lsn=found.next_lsn - 1,
        marker=new_marker(),
    )
    file = directory.open(NEW_SEGMENT, CREATE, file_mode)
    try:
        file.write(header.encode(), 0)
        file.sync()
        aside = put_in_place(directory, found.next_lsn, replaces=found.next_lsn in found.segments)
    except BaseException as error:
        file.close()
        if isinstance(error, LogFull):
            directory.unlink(NEW_SEGMENT)
        raise
    if aside is not None:
        quarantined.append(aside)
    return Segment(file, header)
