"""Bodies: the entries that a frame holds, taken out of its bytes, or only found to be what its header promises.

And an entry alone, as `WALEntry.encode` gives it, which is a frame of one with a marker of its own, LSN 0 and times 0.
A codec would come in before this: what `decode_body` and `check_body` are given is not compressed.
Holds: a length is compared with its limit, and with the bytes there are, before anything is sliced or allocated.
"""

import struct
from collections.abc import Callable
from functools import lru_cache
from itertools import repeat

from walpool.errors import CorruptLog, UnsupportedVersion
from walpool.format.entry import (
    COLUMNS_FROM,
    ENTRY_BYTES,
    MAX_KEY_BYTES,
    MAX_VALUE_BYTES,
    Bytes,
    Operation,
    WALEntry,
    as_bytes,
)
from walpool.format.frame import FRAME_REST, Damage, Frame, read_frame, seal
from walpool.native.select import crc32c, twin

ALONE_MARKER = 0x57414C45  # of an entry encoded on its own

_LENGTHS = struct.Struct("<Q")  # both at once
_TIMESTAMP = struct.Struct("<Q")
_KEY_MASK = (1 << 28) - 1
_OPERATIONS = {1: Operation.PUT, 2: Operation.DELETE}


class BodyError(CorruptLog):
    """A frame's body does not hold the entries its header promises; whoever knows path and offset adds them."""

    def __init__(self, reason: str) -> None:
        super().__init__("<frame>", 0, 0, reason)


@twin(WALEntry, Operation.PUT, Operation.DELETE)
def decode_body(
    data: Bytes,
    start: int,
    end: int,
    count: int,
    first_lsn: int,
    skip: int = 0,
    keep: int | None = None,
    *,
    views: bool = False,
) -> list[WALEntry]:
    """The entries of a frame's body, `data[start:end]`; LSNs count up from `first_lsn`.

    Without the first `skip` of them, and no more than `keep`: the others are checked, and not made.

    Keys and values are bytes, or, with `views`, slices of `data`. Raises BodyError when lengths do not add up: with a
    checksum that matched, that is a writer's bug or forged bytes.

    Entries of one batch often have one shape. Then all of them are taken out of the buffer by columns: 0.32 us an entry
    of 116 bytes; else one unpack an entry takes timestamp, key and value: 0.49, against 0.63 for slicing
    (tools/bench.py watches it as read).
    """
    if skip or keep is not None:
        most = max(0, count - skip) if keep is None else min(keep, max(0, count - skip))
        at, to = _bounds(data, start, end, count, skip, most)
        return decode_body(data, at, to, most, first_lsn + skip, views=views)
    if count >= COLUMNS_FROM and not views:
        uniform = _decode_columns(data, start, end, count, first_lsn)
        if uniform is not None:
            return uniform
    entries: list[WALEntry] = []
    add = entries.append
    new = tuple.__new__
    load = _LENGTHS.unpack_from
    last_head = end - ENTRY_BYTES
    at = start
    shape = -1  # no entry's lengths
    for lsn in range(first_lsn, first_lsn + count):
        if at > last_head:
            raise BodyError(f"the frame ends before its entry {lsn - first_lsn}")
        (lengths,) = load(data, at)
        if lengths != shape:
            unpack, size, operation = _shape_of(lengths)
            shape = lengths
        if size > end - at:
            raise BodyError(f"entry {lsn - first_lsn} of the frame reaches past its end")
        if views:
            (timestamp,) = _TIMESTAMP.unpack_from(data, at + 8)
            value_at = at + size - (lengths >> 32)
            key, value = data[at + ENTRY_BYTES : value_at], data[value_at : at + size]
        else:
            timestamp, key, value = unpack(data, at)
        at += size
        add(new(WALEntry, (operation, key, value, timestamp, lsn)))
    if at != end:
        raise BodyError(f"{end - at} bytes are left over after the frame's last entry")
    return entries


def _decode_columns(data: Bytes, start: int, end: int, count: int, first_lsn: int) -> list[WALEntry] | None:
    """The entries, if all of them have the lengths of the first."""
    if end - start < ENTRY_BYTES:
        return None
    (lengths,) = _LENGTHS.unpack_from(data, start)
    try:
        _, size, operation = _shape_of(lengths)
    except BodyError:
        return None  # the way of one by one says which entry it is
    if size * count != end - start:
        return None
    key_bytes = lengths & _KEY_MASK
    rows = struct.iter_unpack(f"<Q Q {key_bytes}s {lengths >> 32}s", memoryview(data)[start:end])
    found, timestamps, keys, values = zip(*rows, strict=True)
    if found.count(lengths) != count:
        return None
    lsns = range(first_lsn, first_lsn + count)
    return list(
        map(tuple.__new__, repeat(WALEntry), zip(repeat(operation), keys, values, timestamps, lsns, strict=False))
    )


@lru_cache(maxsize=4096)
def _shape_of(lengths: int) -> tuple[Callable[..., tuple[int, bytes, bytes]], int, Operation]:
    """How to read entries whose first 8 bytes are `lengths`: reader of (timestamp, key, value), size, operation."""
    bits, value_bytes = lengths & 0xFFFFFFFF, lengths >> 32
    key_bytes = bits & _KEY_MASK
    operation = _OPERATIONS.get(bits >> 28)
    if operation is None:
        raise BodyError(f"an entry of the frame has the unknown operation {bits >> 28}")
    if key_bytes > MAX_KEY_BYTES or value_bytes > MAX_VALUE_BYTES:
        raise BodyError(f"an entry of the frame has impossible lengths {key_bytes}, {value_bytes}")
    reader = struct.Struct(f"<8x Q {key_bytes}s {value_bytes}s")
    return reader.unpack_from, reader.size, operation


@twin()
def check_body(data: Bytes, start: int, end: int, count: int) -> None:
    """Raises BodyError where `decode_body` would, without making entries: 0.03 us an entry of one shape, else 0.2."""
    _bounds(data, start, end, count, 0, count)


def _bounds(data: Bytes, start: int, end: int, count: int, skip: int, keep: int) -> tuple[int, int]:
    """Where `keep` entries behind the first `skip` begin and end. Raises BodyError unless all `count` add up."""
    load = _LENGTHS.unpack_from
    last_head = end - ENTRY_BYTES
    if count >= COLUMNS_FROM and start <= last_head:
        (lengths,) = load(data, start)
        try:
            _, size, _ = _shape_of(lengths)
        except BodyError:
            size = 0  # the way of one by one says which entry it is
        if size * count == end - start:
            heads = list(struct.iter_unpack(f"<Q {size - 8}x", memoryview(data)[start:end]))
            if heads.count((lengths,)) == count:
                return start + skip * size, start + (skip + keep) * size
    at = begin = behind = start
    shape = -1  # no entry's lengths
    size = 0
    for number in range(count):
        if number == skip:
            begin = at
        if number == skip + keep:
            behind = at
        if at > last_head:
            raise BodyError(f"the frame ends before its entry {number}")
        (lengths,) = load(data, at)
        if lengths != shape:
            _, size, _ = _shape_of(lengths)
            shape = lengths
        if size > end - at:
            raise BodyError(f"entry {number} of the frame reaches past its end")
        at += size
    if at != end:
        raise BodyError(f"{end - at} bytes are left over after the frame's last entry")
    return (begin if skip < count else at), (behind if skip + keep < count else at)


def encode_alone(body: bytes) -> bytes:
    rest = FRAME_REST.pack(len(body), 1, 0, 0, 0, len(body), 0, 0)
    return seal(ALONE_MARKER, crc32c(body, ALONE_MARKER), rest, body)


def decode_alone(data: Bytes) -> WALEntry:
    """A stand-alone entry. Raises CorruptLog unless `data` is exactly one."""
    raw = as_bytes("an encoded entry", data)
    found = read_frame(raw, 0, ALONE_MARKER, 0)
    if isinstance(found, Frame) and found.flags:
        raise UnsupportedVersion(f"the entry was encoded with flags {found.flags:#x}, by a newer walpool: upgrade")
    if isinstance(found, Frame) and found.end == len(raw) and found.count == 1 and found.first_lsn == 0:
        try:
            return decode_body(raw, found.body, found.end, 1, 0)[0]
        except BodyError as error:
            raise CorruptLog("<bytes>", 0, 0, error.reason) from None
    reason = found.reason if isinstance(found, Damage) else "not exactly one encoded entry"
    raise CorruptLog("<bytes>", 0, 0, reason)
