"""Retention: remove sealed segments that a rule says nobody needs, oldest first.

Holds: the active segment stays; a segment goes only after every older one, and its removal is durable before the next,
so a kill or a power cut in the middle leaves a valid log that starts later.
Lock: maintenance.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from walpool.errors import CorruptLog
from walpool.format.names import MAX_LSN, segment_name
from walpool.opening.opening import OpenLog, maintenance
from walpool.options import Retention, WriterOptions
from walpool.shared.catalog import list_segments, open_segment
from walpool.shared.checkpoint import read_checkpoint
from walpool.shared.control import LogState, known_segments
from walpool.shared.cursors.positions import oldest_wanted
from walpool.shared.origin import Origin, new_origin, read_origin, write_origin
from walpool.shared.pins import Removal, oldest_pin
from walpool.shared.poison import refuse_poisoned
from walpool.system import clock
from walpool.system.failures import typed_errors
from walpool.system.files import Directory
from walpool.upkeep.prepare import used_bytes


class SealedSegment(NamedTuple):
    first_lsn: int
    next_lsn: int  # the following segment's first
    bytes: int  # in use: zeros that were written ahead do not count
    sealed_ns: int  # when the following one was made, by its header


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What `WALWriter.prune` removed.

    Attributes:
        removed: the first LSN of each segment that went, oldest first.
        bytes: that were in use in them.
        first_lsn: the first that is available now.
        held_by_pins: how many segments a rule would remove and a reader's pin keeps.
        held_by_cursors (default 0): how many a rule would remove and a cursor keeps.
    """

    removed: tuple[int, ...]
    bytes: int
    first_lsn: int
    held_by_pins: int
    held_by_cursors: int = 0


class Wanted(NamedTuple):
    """The first LSN that somebody has not read yet; MAX_LSN: nobody wants any."""

    pin: int = MAX_LSN  # of a reader
    cursor: int = MAX_LSN


class Removable(NamedTuple):
    gone: int  # of the oldest segments, so many go
    by_pins: int = 0  # and so many more would, without pins,
    by_cursors: int = 0  # or without cursors


def removable(
    sealed: list[SealedSegment], active_bytes: int, rule: Retention, checkpoint: int, wanted: Wanted, now_ns: int
) -> Removable:
    """Which of the oldest segments go. Decides, touches nothing."""
    total = sum(segment.bytes for segment in sealed) + active_bytes
    count = len(sealed) + 1
    gone = by_pins = by_cursors = 0
    for segment in sealed:
        covered = rule.checkpointed and segment.next_lsn - 1 <= checkpoint
        too_many = rule.max_segments is not None and count > rule.max_segments
        too_large = rule.max_bytes is not None and total > rule.max_bytes
        too_old = rule.max_age is not None and now_ns - segment.sealed_ns > rule.max_age * 1e9
        if not (covered or too_many or too_large or too_old):
            break
        if segment.next_lsn > min(wanted) and total <= rule.max_pinned_bytes:
            by_pins += segment.next_lsn > wanted.pin
            by_cursors += segment.next_lsn > wanted.cursor
        elif by_pins or by_cursors:
            break  # oldest first: nothing goes from behind a segment that is kept
        else:
            gone += 1
        count -= 1
        total -= segment.bytes
    return Removable(gone, by_pins, by_cursors)


def apply_retention(log: OpenLog, options: WriterOptions) -> PruneReport:
    """Of an open log: the rules of `options`; without any, the checkpoint. Raises LogBusy, and what `prune` raises."""
    refuse_poisoned(log.directory, log.control)
    with maintenance(log.directory, options):
        return prune(log.directory, log.control.state(), options.retention or Retention())


def prune(directory: Directory, state: LogState, rule: Retention, *, dry_run: bool = False) -> PruneReport:
    """Apply the rule now. Raises CorruptLog for a damaged checkpoint file, SyncFailed for a log that has to recover."""
    refuse_poisoned(directory, None)
    segments = known_segments(list_segments(directory), state)
    sealed = [_sealed(directory, *pair) for pair in pairwise(segments)]
    if rule.max_age is not None:
        sealed = _dated(directory, sealed, clock.time_ns())
    with typed_errors(directory.path):
        wanted = Wanted(oldest_pin(directory), oldest_wanted(directory) if rule.cursors else MAX_LSN)
    found = removable(sealed, state.tail, rule, read_checkpoint(directory), wanted, clock.time_ns())
    gone, by_pins = found.gone, found.by_pins
    if not dry_run and gone:
        with typed_errors(directory.path), closing(Removal(directory)) as removal:
            # What nobody had pinned when we looked, somebody may have pinned since.
            late = (
                at for at in range(gone) if sealed[at].next_lsn <= wanted.pin and not removal.shut_out(segments[at])
            )
            free = next(late, gone)
            gone, by_pins = free, by_pins + gone - free
            if gone:
                _note(directory, segments[gone], state.last_append_ns)
            for segment in sealed[:gone]:
                directory.unlink(segment_name(segment.first_lsn))
                directory.sync()  # before the next: a power cut must not bring back an older one than it removed
    return PruneReport(
        removed=tuple(segment.first_lsn for segment in sealed[:gone]),
        bytes=sum(segment.bytes for segment in sealed[:gone]),
        first_lsn=segments[gone] if segments else 1,
        held_by_pins=by_pins,
        held_by_cursors=found.by_cursors,
    )


def _note(directory: Directory, first_lsn: int, last_append_ns: int) -> None:
    """Say how much retention removes, before it does: what else is missing then was removed by somebody else.

    It makes the names of the segments that stay durable, too: a power cut must not leave fewer of them than it removed.
    """
    found = read_origin(directory, to_replace=True)
    if found is None:
        found = new_origin()
    noted = Origin(found.id, first_lsn, max(last_append_ns, found.last_append_ns))
    write_origin(directory, noted, directory.mode_of_files(), durable=True)


def _sealed(directory: Directory, first_lsn: int, next_lsn: int) -> SealedSegment:
    following = open_segment(directory, next_lsn)
    following.file.close()
    return SealedSegment(first_lsn, next_lsn, _used_bytes(directory, first_lsn, next_lsn), following.header.created_at)


def _used_bytes(directory: Directory, first_lsn: int, next_lsn: int) -> int:
    try:
        segment = open_segment(directory, first_lsn)
    except CorruptLog:
        return directory.size_of(segment_name(first_lsn))  # in doubt all of it is in use
    with segment.file:
        return used_bytes(segment, next_lsn)


def _dated(directory: Directory, sealed: list[SealedSegment], now_ns: int) -> list[SealedSegment]:
    """With the times of sealing that a clock which was set meanwhile leaves believable."""
    if not sealed:
        return []
    try:
        first = open_segment(directory, sealed[0].first_lsn)
    except CorruptLog:
        made_ns = 0
    else:
        made_ns = first.header.created_at
        first.file.close()

    def written_ns(at: int) -> int:
        file = directory.open(segment_name(sealed[at].first_lsn))
        file.close()
        return file.stat.st_mtime_ns

    times = sealing_times([made_ns, *(segment.sealed_ns for segment in sealed)], written_ns, now_ns)
    return [segment._replace(sealed_ns=time_ns) for segment, time_ns in zip(sealed, times, strict=True)]


def sealing_times(made_ns: list[int], written_ns: Callable[[int], int], now_ns: int) -> list[int]:
    """When each segment but the last was sealed, by when each was made and last written. Decides, touches nothing.

    That is when the next one was made, if it is not in the future and no earlier than an older one was made: else the
    clock was wrong then. In its place stands the earliest of what came no later and is neither, or, so that nothing
    goes too early, now; as soon as the log goes on by the right clock, that is something which grows old.
    """
    times = []
    oldest = 0  # what was sealed then or later
    for at, sealed_ns in enumerate(made_ns[1:]):
        if made_ns[at] <= now_ns:
            oldest = max(oldest, made_ns[at])
        if not oldest <= sealed_ns <= now_ns:
            later = [written_ns(at), *made_ns[at + 2 :]]
            sealed_ns = min((time_ns for time_ns in later if oldest <= time_ns <= now_ns), default=now_ns)
        times.append(sealed_ns)
    return times
