"""Belief: whether the control block and the segments say the same, so that a writer may go on from the block's state.

A writer that opens a log does not read it: it takes the state from the control block, and asks here whether that state
can be true. Is the block still the one that the name leads to? Are its figures possible? Does the last frame stand
where the state says, and no frame behind it that was published? Is there no segment that it does not know? At the
first "no" ControlUnusable is raised, and the block is made again from the segments. To doubt a good block costs one
reading of the log's end; to believe a bad one costs entries. So in doubt it is not believed.

Holds: the look costs the same for every size of log: at the last frame, the place behind it, and the names. It changes
nothing but what a killed process left half done: a frame that lacks the last store is put in force, a rotation is
marked, for whoever appends next, and an append that was under way is nobody's: its slot is given again.
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
            # A rotation was killed between making the next segment and publishing it. Whoever appends next finishes it
            # first: a frame in the old segment would have an LSN that belongs to the new one.
            control.halves[ROTATING] = 1
        control.forget_who_was_appending()
    except BaseException:
        segment.file.close()
        raise
    return segment


def _believe_figures(state: LogState, control: Control) -> None:
    """Refuse what no log can have, and what the next append would carry past the 64 bits of a word.

    The state and the counts have no checksum of their own: they change with every append.
    """
    words = control.words
    others = (words[COMMIT], words[SYNCS], words[SYNC_NS], words[SYNCED_BATCHES], words[EXPECTED])
    if words[COMMIT] >> INTENT_SLOT_BITS or not (
        1 <= state.segment <= state.next_lsn <= LAST_OPEN_LSN and max(*state, *others) <= MAX_LSN
    ):
        raise ControlUnusable("the control block's figures are impossible")


def _believe_tail(segment: Segment, state: LogState, control: Control, *, others: bool) -> None:
    """Compare the state with the end of the active segment: the last frame, and what stands behind the tail.

    Behind the tail may stand
    - nothing, or a part of a frame: nobody published it, and the next append covers it;
    - a whole frame with the next LSN, while the intent word says that an append is under way: we hold the append lock,
      so whoever was in that append is dead, and never told anybody that it succeeded;
    - such a frame without that intent: it was published and acknowledged, and this block is an older copy.

    Args:
        others: whether another writer has the log open.
    """
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
    # A process was killed in this append. What it left is nobody's, and the next append covers it: so while another
    # writer lives, which may have looked at the log since, nothing appears in it that was not there. Alone, we store
    # the commit word in its place, if that is all that was missing: the copy to be published has to follow from the
    # frame in every figure. Only the largest entry so far cannot be told from the frame, and is taken as it is.
    if others:
        return
    filled, whole = control.copy(commit + 1), _appended(state, found)
    whole = whole._replace(max_entry_bytes=filled.max_entry_bytes)
    if filled == whole:
        control.publish_filled()
    elif filled._replace(last_frame=whole.last_frame) == whole and whole.max_entry_bytes >= state.max_entry_bytes:
        control.publish(whole)  # killed in its last field; or it is damaged, and so is the commit word
    elif not _preceded(filled, state, commit) and not _half_filled(filled, whole, state):
        # No killed append leaves such a copy. So the commit word is wrong (one too low, it makes a published frame look
        # like this), and the frame may have been acknowledged.
        raise ControlUnusable("the control block's copies contradict each other")


def _preceded(copy: LogState, state: LogState, commit: int) -> bool:
    """Whether a copy is as it was before the killed append filled it in: the state one batch or one rotation ago.

    The two copies take turns: the one that is not in force is what was published last before the one that is.
    """
    if commit == 0:
        return not any(copy)
    return (
        state.batches - copy.batches in (0, 1)
        and 0 <= state.next_lsn - copy.next_lsn == state.entries - copy.entries
        and copy.segment <= state.segment
    )


def _half_filled(copy: LogState, whole: LogState, state: LogState) -> bool:
    """Whether its writer was killed while it filled the copy in.

    Python zeroes it first, and then stores byte by byte; the core stores field by field over what was there.
    """
    there = STATE.pack(*copy).rstrip(b"\0")
    if STATE.pack(*whole).startswith(there):
        return True
    if not copy.segment and copy.batches in (0, state.batches - 1, state.batches):
        return True  # some of it is not zeroed yet
    stored = next(at for at, (now, then) in enumerate(zip(copy, whole, strict=True)) if now != then)
    return (
        stored > LogState._fields.index("next_lsn")  # before that field it is as it was: see _preceded
        and copy.last_frame != whole.last_frame  # else all was stored, and a figure is damaged
        and state.batches - copy.batches in (-1, 0, 1)
        and all(was <= now for was, now in zip(copy[stored:-1], state[stored:-1], strict=True))
    )


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
    """The whole frame that stands at the published tail and has the next LSN, if there is one."""
    head = segment.file.read(FRAME_BYTES, state.tail)
    claimed = int.from_bytes(head[8:12], "little")
    if len(head) < FRAME_BYTES or claimed > segment.file.size() - state.tail - FRAME_BYTES:
        return None
    data = segment.file.read(FRAME_BYTES + claimed, state.tail)
    found = read_frame(data, 0, segment.header.marker, state.next_lsn)
    return found if isinstance(found, Frame) else None
