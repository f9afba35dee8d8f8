"""Belief: whether a control block and the segments say the same, so that a writer may go on from what it says.

Holds: the look costs the same for every size of log: at the last frame, the place behind it, and the names. It changes
nothing but what a killed process left half done: a frame that lacks the last store is put in force, and a rotation is
marked, for whoever appends next.
Lock: append.
"""

from walpool.errors import CorruptLog
from walpool.format.frame import FRAME_BYTES, Frame, read_frame
from walpool.format.names import CONTROL, LAST_OPEN_LSN, MAX_LSN
from walpool.shared import slots
from walpool.shared.catalog import Segment, holds_frames, list_segments, open_segment
from walpool.shared.control import (
    COMMIT,
    EXPECTED,
    INTENT_SLOT_BITS,
    ROTATING,
    STATE,
    SYNC_NS,
    SYNCED_BATCHES,
    SYNCS,
    Control,
    ControlUnusable,
    LogState,
)
from walpool.system.files import Directory, File


def believe(directory: Directory, control: Control, slots_lock: File) -> Segment:
    """The active segment, if the state and the segments agree; else ControlUnusable."""
    if not directory.leads_to(CONTROL, control.file):
        raise ControlUnusable("the control block was replaced")
    state = control.state()
    _believe_figures(state, control)
    try:
        segment = open_segment(directory, state.segment, writable=True)
    except FileNotFoundError:
        raise ControlUnusable("the active segment is missing") from None
    except CorruptLog as error:
        raise ControlUnusable(f"the active segment's header: {error.reason}") from None
    try:
        _believe_tail(segment, state, control, others=slots.any_alive(slots_lock))
        newest = list_segments(directory)[-1]
        if newest > state.segment:
            if newest != state.next_lsn or holds_frames(directory, newest):
                raise ControlUnusable("there are segments that the control block does not know")
            control.halves[ROTATING] = 1  # half done: whoever appends next finishes it first
    except BaseException:
        segment.file.close()
        raise
    return segment


def _believe_figures(state: LogState, control: Control) -> None:
    """No figure may be one that appending would carry past a word, or that no log can have."""
    words = control.words
    others = (words[COMMIT], words[SYNCS], words[SYNC_NS], words[SYNCED_BATCHES], words[EXPECTED])
    if words[COMMIT] >> INTENT_SLOT_BITS or not (
        1 <= state.segment <= state.next_lsn <= LAST_OPEN_LSN and max(*state, *others) <= MAX_LSN
    ):
        raise ControlUnusable("the control block's figures are impossible")


def _believe_tail(segment: Segment, state: LogState, control: Control, *, others: bool) -> None:
    header = segment.header
    size = segment.file.size()
    if (header.marker, header.sequence) != (state.marker, state.sequence) or state.tail > size:
        raise ControlUnusable("the control block and its active segment disagree")
    if state.last_frame:
        if not header.entries_offset <= state.last_frame <= state.tail:
            raise ControlUnusable("the control block's offsets contradict each other")
        data = segment.file.read(state.tail - state.last_frame, state.last_frame)
        last = read_frame(data, 0, header.marker, 0)
        if not isinstance(last, Frame) or last.end != len(data) or last.next_lsn != state.next_lsn:
            raise ControlUnusable("the last frame is not where the control block says")
    elif state.tail != header.entries_offset or state.next_lsn != header.first_lsn:
        raise ControlUnusable("the control block's positions contradict each other")
    if control.durable_lsn >= state.next_lsn:
        raise ControlUnusable("the control block calls durable what does not exist")
    found = _frame_at_tail(segment, state)
    if found is None:
        return
    commit = control.words[COMMIT]
    if control.appending_slot(commit) is None:
        raise ControlUnusable("the control block is behind its segment")
    # A process was killed in this append. What it left is nobody's, and the next append covers it; only when it was
    # complete but for the last store, and nobody else is here who may have looked at the log since, it counts.
    if others:
        return
    filled, whole = control.copy(commit + 1), _appended(state, found)
    whole = whole._replace(max_entry_bytes=filled.max_entry_bytes)
    if filled == whole:
        control.publish_filled()
    elif filled._replace(last_frame=whole.last_frame) == whole and whole.max_entry_bytes >= state.max_entry_bytes:
        control.publish(whole)  # killed in its last field; or it is damaged, and so is the commit word
    elif not _preceded(filled, state, commit) and not _half_filled(filled, whole, state):
        # Then the commit word is damaged, too, and the frame may be somebody's.
        raise ControlUnusable("the control block's copies contradict each other")


def _preceded(copy: LogState, state: LogState, commit: int) -> bool:
    """Whether a copy is what it was before an append fills it in: the state one batch or one rotation ago."""
    if commit == 0:
        return not any(copy)
    return (
        state.batches - copy.batches in (0, 1)
        and 0 <= state.next_lsn - copy.next_lsn == state.entries - copy.entries
        and copy.segment <= state.segment
    )


def _half_filled(copy: LogState, whole: LogState, state: LogState) -> bool:
    """Whether its writer was killed while it filled the copy in, which zeroes it first and then stores byte by byte."""
    there = STATE.pack(*copy).rstrip(b"\0")
    if STATE.pack(*whole).startswith(there):
        return True
    return not copy.segment and copy.batches in (0, state.batches - 1, state.batches)  # some of it is not zeroed yet


def _appended(state: LogState, frame: Frame) -> LogState:
    """The state once `frame`, read from a buffer of its own, stands at the tail; its largest entry nobody knows."""
    return state._replace(
        tail=state.tail + frame.end,
        next_lsn=frame.next_lsn,
        last_append_ns=frame.appended_at,
        entries=state.entries + frame.count,
        batches=state.batches + 1,
        bytes=state.bytes + frame.end,
        last_frame=state.tail,
    )


def _frame_at_tail(segment: Segment, state: LogState) -> Frame | None:
    head = segment.file.read(FRAME_BYTES, state.tail)
    claimed = int.from_bytes(head[8:12], "little")
    if len(head) < FRAME_BYTES or claimed > segment.file.size() - state.tail - FRAME_BYTES:
        return None
    data = segment.file.read(FRAME_BYTES + claimed, state.tail)
    found = read_frame(data, 0, segment.header.marker, state.next_lsn)
    return found if isinstance(found, Frame) else None
