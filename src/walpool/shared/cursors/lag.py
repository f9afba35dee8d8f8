"""Lag: how far each cursor is behind what was appended, in entries, bytes and seconds.

Holds: it takes no lock, and of the log it reads a few headers of frames for each cursor that is behind at all.
"""

from walpool.errors import CorruptLog, UnsafeLog, UnsupportedVersion
from walpool.format.frame import FRAME_BYTES
from walpool.format.header import HEADER_BYTES
from walpool.format.names import segment_name
from walpool.shared.catalog import list_segments, open_segment
from walpool.shared.control import Control, LogState
from walpool.shared.cursors.owners import owner_slots
from walpool.shared.cursors.positions import Found, find_positions
from walpool.shared.figures.fields import CursorRow
from walpool.shared.seek import exact_head
from walpool.shared.slots import Owner, owner_of
from walpool.system import clock
from walpool.system.files import Directory


def cursor_rows(
    directory: Directory, control: Control | None, state: LogState
) -> tuple[tuple[CursorRow, ...], set[int]]:
    """A row for each cursor, by name, and the writer slots of those who have one open. No `control`: nobody has."""
    try:
        found = find_positions(directory)
    except UnsafeLog:
        found = []  # what is in their place keeps nobody from the other figures; whoever opens a cursor is told
    if not found:
        return (), set()
    slots = {} if control is None else owner_slots(directory, [each.name for each in found])
    segments = [first for first in list_segments(directory) if first <= state.segment]
    rows = []
    for each in found:
        slot = slots.get(each.name)
        owner = None
        if slot is not None and control is not None:
            owner = owner_of(control, slot) if slot >= 0 else Owner(0, 0)
        rows.append(_row(directory, each, owner, segments, state))
    return tuple(rows), set(slots.values())


def _row(directory: Directory, found: Found, owner: Owner | None, segments: list[int], state: LogState) -> CursorRow:
    position = found.position
    wanted_lsn = 1 if position is None else position.wanted_lsn
    there = max(wanted_lsn, segments[0] if segments else wanted_lsn)
    lag_bytes, lag_s = _behind(directory, there, segments, state)
    return CursorRow(
        name=found.name,
        position=0 if position is None else position.lsn,
        lag_entries=max(0, state.next_lsn - wanted_lsn),
        lag_bytes=lag_bytes,
        lag_seconds=lag_s,
        missed=0 if position is None else there - wanted_lsn,
        is_open=owner is not None,
        pid=0 if owner is None else owner.pid,
        problem=found.problem,
    )


def _behind(directory: Directory, lsn: int, segments: list[int], state: LogState) -> tuple[int, float]:
    """Bytes of the frames from that of `lsn` on, and for how many seconds it has been there."""
    if lsn >= state.next_lsn or not segments:
        return 0, 0.0
    at = max((at for at, first in enumerate(segments) if first <= lsn), default=0)
    size = 0
    for first in segments[at + 1 :]:
        size += _end_of(directory, first, state) - HEADER_BYTES
    appended_ns = 0
    try:
        segment = open_segment(directory, segments[at])
    except (CorruptLog, FileNotFoundError, UnsafeLog, UnsupportedVersion):
        return size + max(0, _end_of(directory, segments[at], state) - HEADER_BYTES), 0.0
    with segment.file:
        end = state.tail if segments[at] == state.segment else segment.file.size()
        head = exact_head(segment, lsn, end)
        offset, appended_ns = (segment.header.entries_offset, 0) if head is None else (head.offset, head.appended_at)
    waited_ns = clock.time_ns() - (appended_ns or segment.header.created_at)
    return size + max(FRAME_BYTES, end - offset), max(0, waited_ns) / 1e9


def _end_of(directory: Directory, first_lsn: int, state: LogState) -> int:
    if first_lsn == state.segment:
        return state.tail
    try:
        return max(HEADER_BYTES, directory.size_of(segment_name(first_lsn)))
    except FileNotFoundError:
        return HEADER_BYTES  # retention has removed it meanwhile
