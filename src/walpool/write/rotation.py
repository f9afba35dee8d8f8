"""Rotation: when a frame would pass the size limit, seal the active segment and start the next one.

Holds: exactly one segment is active, the one the state names; a segment exists before the state names it, and no frame
is in it until then, so a rotation that a killed process left half done is finished by whoever comes next.
Lock: everything here runs with the append lock held, and never waits for the disk.
"""

from walpool.errors import BatchTooLarge
from walpool.format.entry import ENTRY_BYTES
from walpool.format.frame import FRAME_BYTES
from walpool.format.header import HEADER_BYTES, WALHeader
from walpool.options import MAX_SIZE_LIMIT
from walpool.shared.catalog import Segment, create_segment
from walpool.shared.control import Control, LogState
from walpool.system import clock, processes
from walpool.system.files import Directory, typed_errors
from walpool.upkeep.prepare import take_prepared

SMALLEST_LIMIT = HEADER_BYTES + FRAME_BYTES + ENTRY_BYTES


def check_size_limit(size_limit: int) -> int:
    if type(size_limit) is not int:
        raise TypeError(f"size_limit must be an int of bytes, not {type(size_limit).__name__}")
    if not SMALLEST_LIMIT <= size_limit <= MAX_SIZE_LIMIT:
        raise ValueError(
            f"size_limit {size_limit} is out of range: a segment takes {SMALLEST_LIMIT} (a header and the smallest"
            f" frame) to {MAX_SIZE_LIMIT} bytes"
        )
    return size_limit


def check_fits(frame_bytes: int, size_limit: int) -> None:
    if frame_bytes > size_limit - HEADER_BYTES:
        raise BatchTooLarge(
            f"a batch of {frame_bytes} bytes cannot fit a segment of {size_limit} bytes; "
            "split it, or open the writer with a larger size_limit"
        )


def rotate(
    directory: Directory, control: Control, state: LogState, size_limit: int, file_mode: int
) -> tuple[Segment, LogState]:
    """Start the next segment and put it in force. The old one keeps its name and its descriptors."""
    header = WALHeader(
        created_at=max(clock.time_ns(), state.last_append_ns),
        sequence=state.sequence + 1,
        first_lsn=state.next_lsn,
        durable_lsn=control.durable_lsn,
        marker=processes.random_word() & 0xFFFFFFFF,
    )
    with typed_errors(directory.path):
        segment = take_prepared(directory, header, size_limit) or create_segment(directory, header, file_mode)
    switched = state._replace(
        segment=header.first_lsn,
        sequence=header.sequence,
        marker=header.marker,
        tail=header.entries_offset,
        last_frame=0,
    )
    control.publish(switched)
    return segment, switched
