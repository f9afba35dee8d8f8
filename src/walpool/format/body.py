"""Whether a frame's body holds what its header promises, found out without making entries of it."""

import struct

from walpool.format.entry import COLUMNS_FROM, ENTRY_BYTES, LENGTHS, BodyError, Bytes, shape_of


def check_body(data: Bytes, start: int, end: int, count: int) -> None:
    """Raises BodyError where `decode_body` would, without making entries: 0.03 us an entry of one shape, else 0.2."""
    load = LENGTHS.unpack_from
    last_head = end - ENTRY_BYTES
    if count >= COLUMNS_FROM and start <= last_head:
        (lengths,) = load(data, start)
        try:
            _, size, _ = shape_of(lengths)
        except BodyError:
            size = 0  # the way of one by one says which entry it is
        if size * count == end - start:
            heads = list(struct.iter_unpack(f"<Q {size - 8}x", memoryview(data)[start:end]))
            if heads.count((lengths,)) == count:
                return
    at = start
    shape = -1  # no entry's lengths
    size = 0
    for number in range(count):
        if at > last_head:
            raise BodyError(f"the frame ends before its entry {number}")
        (lengths,) = load(data, at)
        if lengths != shape:
            _, size, _ = shape_of(lengths)
            shape = lengths
        if size > end - at:
            raise BodyError(f"entry {number} of the frame reaches past its end")
        at += size
    if at != end:
        raise BodyError(f"{end - at} bytes are left over after the frame's last entry")
