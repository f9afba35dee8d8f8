"""Rotation: when a frame would pass the size limit, seal the active segment and start the next one.

Holds: exactly one segment is active, the one the state names; a segment exists before the state names it, and no frame
is in it until then, so a rotation that a killed process left half done is finished by whoever comes next.
Lock: everything here runs with the append lock held, and never waits for the disk.
"""

from walpool.errors import BatchTooLarge
from walpool.format.header import HEADER_BYTES, WALHeader
from walpool.shared.catalog import Segment, create_segment, new_marker
from walpool.shared.control import Control, LogState
from walpool.system import clock
from walpool.system.failures import typed_errors
from walpool.system.files import Directory
from walpool.upkeep.prepare import take_prepared


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
        created_at=clock.time_ns(),  # the wall clock's, which retention goes by, whatever appended_at has to be
        sequence=state.sequence + 1,
        first_lsn=state.next_lsn,
        durable_lsn=control.durable_lsn,
        marker=new_marker(),
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
