"""A run: intact frames that stand one after another in a buffer, taken in one call, as far as nothing is unusual.

A log of single puts has a frame for each of them; to ask for one after another costs more than what is in them. What
ends a run (no frame, a codec, entries that do not add up, another LSN), whoever walks frame by frame sees and judges.
Holds: whatever is in a run, `read_frame` and `decode_body` would have given alike.
"""

from typing import NamedTuple

from walpool.format.body import BodyError, check_body, decode_body
from walpool.format.entry import Bytes, Operation, WALEntry
from walpool.format.frame import FRAME_BYTES, FRAME_PREFIX, FRAME_REST, Frame, read_frame
from walpool.native.select import twin

RUN_BYTES = 64 << 10  # a run whose entries are made goes no further than the frame that passes this


class Run(NamedTuple):
    """What the frames of a run add up to. Without one, all is 0 but `next_lsn`."""

    bytes: int  # of the frames
    count: int  # type: ignore[assignment]  # of entries; nobody counts in a run
    next_lsn: int
    batches: int
    last_append_ns: int
    durable_lsn: int  # the highest that any of them states
    largest_single: int  # encoded bytes of the largest frame with one entry
    last: Frame | None
    entries: list[WALEntry]  # empty unless they were asked for


@twin(Run, Frame, WALEntry, Operation.PUT, Operation.DELETE)
def read_run(
    buffer: Bytes, offset: int, marker: int, lsn: int, remaining: int, end_lsn: int, with_entries: bool
) -> Run:
    """The frames from `offset` on, where `lsn` must stand, that end before or with `end_lsn`, one past the last entry.

    `marker` and `remaining` are as for `read_frame`.
    """
    size = count = batches = last_append_ns = durable_lsn = largest = 0
    last: Frame | None = None
    entries: list[WALEntry] = []
    while not with_entries or size < RUN_BYTES:
        found = read_frame(buffer, offset + size, marker, lsn, remaining - size)
        if type(found) is not Frame or found.flags or found.first_lsn + found.count > end_lsn:
            break
        try:
            if with_entries:
                entries += decode_body(buffer, found.body, found.end, found.count, lsn)
            else:
                check_body(buffer, found.body, found.end, found.count)
        except BodyError:
            break
        last = found
        size = found.end - offset
        lsn += found.count
        count += found.count
        batches += 1
        last_append_ns = max(last_append_ns, found.appended_at)
        durable_lsn = max(durable_lsn, found.durable_lsn)
        if found.count == 1:
            largest = max(largest, found.end - found.body)
    return tuple.__new__(Run, (size, count, lsn, batches, last_append_ns, durable_lsn, largest, last, entries))


def views_of(buffer: Bytes, offset: int, run: Run) -> list[WALEntry]:
    """The entries of a run that begins at `offset`, with keys and values that are slices of `buffer`."""
    entries: list[WALEntry] = []
    end, lsn = offset + run.bytes, run.next_lsn - run.count
    while offset < end:
        body_bytes, count, *_ = FRAME_REST.unpack_from(buffer, offset + FRAME_PREFIX.size)
        body = offset + FRAME_BYTES
        offset = body + body_bytes
        entries += decode_body(buffer, body, offset, count, lsn, views=True)
        lsn += count
    return entries


def run_of(frame: Frame) -> Run:
    """Of one frame, without its entries."""
    single = frame.end - frame.body if frame.count == 1 else 0
    size = frame.end - frame.offset
    return Run(size, frame.count, frame.next_lsn, 1, frame.appended_at, frame.durable_lsn, single, frame, [])
