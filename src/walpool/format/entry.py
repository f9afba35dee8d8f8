"""Entries: one put or delete each, 16 bytes and then key and value, one after another in a frame's body.

    at  size  field
     0     4  key_length    low 28 bits; top 4 bits: operation, 1 put, 2 delete
     4     4  value_length
     8     8  timestamp     the caller's, opaque
    16        key, value

A length is compared with its limit, and with the bytes there are, before anything is sliced or allocated.
"""

import struct
from collections.abc import Callable, Iterable
from enum import IntEnum
from functools import lru_cache
from itertools import repeat
from time import time_ns  # the one call outside `system`: the default of WALEntry.timestamp, and it cannot fail
from typing import TYPE_CHECKING, Any, Generic, NamedTuple

from walpool.errors import EntryTooLarge
from walpool.native.select import twin

ENTRY = struct.Struct("<I I Q")
ENTRY_BYTES = 16
assert ENTRY.size == ENTRY_BYTES

COLUMNS_FROM = 8  # entries; for fewer the columns cost more than they save
COPIED_TWICE = 4096  # bytes of key and value; packing more of them by columns copies more than it saves
MAX_KEY_BYTES = 1 << 20
MAX_VALUE_BYTES = 10 << 20

Bytes = bytes | bytearray | memoryview

# What keys and values are: bytes, but for a zero_copy reader's. A default keeps `WALEntry` a complete type.
if TYPE_CHECKING:
    from typing_extensions import TypeVar  # part of every type checker; nothing that runs needs it

    B = TypeVar("B", bound=bytes | memoryview, default=bytes)
else:
    from typing import TypeVar

    B = TypeVar("B")


class Operation(IntEnum):
    """What an entry does.

    Attributes:
        PUT: gives its key a value.
        DELETE: says that its key has none any more.
    """

    PUT = 1
    DELETE = 2


PUT_BITS = Operation.PUT << 28
DELETE_BITS = Operation.DELETE << 28


class WALEntry(NamedTuple, Generic[B]):
    """One put or delete: an immutable tuple. `WALEntry.put` and `WALEntry.delete` make one.

    Attributes:
        operation: Operation.PUT or Operation.DELETE.
        key, value: bytes, at most 1 MiB and 10 MiB; memoryviews from a `zero_copy` reader (WALEntry[memoryview]).
        timestamp: the caller's, from 0 to 2**64 - 1; what `put` and `delete` fill in is ns since the epoch.
        lsn (default 0): its number in the log; 0 until it is read from one.
    """

    operation: Operation
    key: B
    value: B
    timestamp: int
    lsn: int = 0

    @classmethod
    def put(cls, key: Bytes, value: Bytes, timestamp: int | None = None) -> "WALEntry[bytes]":
        """An entry that gives `key` a value. Sizes are judged when it is encoded or appended.

        Args:
            key, value: bytes-like; copied unless they are bytes.
            timestamp (default None): from 0 to 2**64 - 1; None is ns since the epoch.

        Raises:
            TypeError, ValueError: for what is no bytes or no timestamp.
        """
        return WALEntry(Operation.PUT, as_bytes("key", key), as_bytes("value", value), _timestamp(timestamp))

    @classmethod
    def delete(cls, key: Bytes, timestamp: int | None = None) -> "WALEntry[bytes]":
        """An entry that deletes `key`; its value is empty.

        Args:
            key: as in `put`.
            timestamp (default None): as in `put`.

        Raises:
            TypeError, ValueError: as `put`.
        """
        return WALEntry(Operation.DELETE, as_bytes("key", key), b"", _timestamp(timestamp))

    def encode(self: "WALEntry[Any]") -> bytes:
        """This entry alone, with its own checksum: a frame with marker 0x57414C45 and LSN 0.

        Raises:
            TypeError, ValueError: for a field that cannot be.
            EntryTooLarge: split it, or keep it elsewhere.
        """
        from walpool.format.body import encode_alone  # late: it makes entries

        return encode_alone(encode_entries([self])[0])

    @classmethod
    def decode(cls, data: Bytes) -> "WALEntry[bytes]":
        """The entry that `encode` gave.

        Args:
            data: bytes-like; all of what `encode` gave, and nothing else.

        Raises:
            TypeError: for what is no bytes.
            CorruptLog: for anything else than one intact entry.
            UnsupportedVersion: written by a newer walpool: upgrade.
        """
        from walpool.format.body import decode_alone

        return decode_alone(data)


NOTHING = WALEntry(Operation.PUT, b"", b"", 0)  # what a loop over entries has before its first

for _field in WALEntry._fields:
    getattr(WALEntry, _field).__doc__ = None  # "Alias for field number 0": the class says what it is

_TIMESTAMPS = range(1 << 64)


def _timestamp(timestamp: int | None) -> int:
    if timestamp is None:
        return time_ns()
    if type(timestamp) is not int or timestamp not in _TIMESTAMPS:
        raise bad_timestamp(timestamp)
    return timestamp


def bad_timestamp(timestamp: object) -> Exception:
    if isinstance(timestamp, int) and not isinstance(timestamp, bool):
        return ValueError(f"timestamp {timestamp} does not fit an unsigned 64-bit number")
    return TypeError(f"timestamp must be an int, not {type(timestamp).__name__}")


def as_bytes(what: str, data: object) -> bytes:
    """`data` as bytes the caller cannot change afterwards; TypeError for anything that is not bytes-like."""
    if type(data) is bytes:
        return data
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"{what} must be bytes, bytearray or memoryview, not {type(data).__name__}")


@twin(WALEntry, Operation.PUT, time_ns)
def make_put(key: Bytes, value: Bytes, timestamp: int | None) -> WALEntry:
    """What `WALEntry.put` gives (hot: a batch is made of these)."""
    return WALEntry.put(key, value, timestamp)


def check_sizes(key_bytes: int, value_bytes: int) -> None:
    if key_bytes > MAX_KEY_BYTES:
        raise EntryTooLarge(f"a key of {key_bytes} bytes is over the limit of {MAX_KEY_BYTES}")
    if value_bytes > MAX_VALUE_BYTES:
        raise EntryTooLarge(f"a value of {value_bytes} bytes is over the limit of {MAX_VALUE_BYTES}")


@twin()
def encode_one(operation_bits: int, key: object, value: object, timestamp: int) -> bytes:
    """The body of a frame with one entry (hot: one put is one call of this)."""
    if type(key) is not bytes or type(value) is not bytes:
        key, value = as_bytes("key", key), as_bytes("value", value)
    key_bytes, value_bytes = len(key), len(value)
    if key_bytes > MAX_KEY_BYTES or value_bytes > MAX_VALUE_BYTES:
        check_sizes(key_bytes, value_bytes)
    try:
        return ENTRY.pack(operation_bits | key_bytes, value_bytes, timestamp) + key + value
    except struct.error:
        raise bad_timestamp(timestamp) from None


class Body(NamedTuple):
    """Encoded entries, as a frame carries them. `largest`: encoded bytes of the largest."""

    data: bytes
    entries: int
    largest: int


@twin(Body, WALEntry, Operation.PUT, Operation.DELETE)
def encode_entries(entries: Iterable[WALEntry]) -> Body:
    """The body of a frame with all of them.

    Puts of one shape are packed by columns, one call an entry: 0.26 us for 116 bytes. Others go row by row, joined
    once: 0.32; for them columns took 0.43 (tools/bench.py watches it as append_batch).
    Raises TypeError for what is not an entry or not bytes, EntryTooLarge, ValueError for a timestamp out of range.
    """
    if type(entries) is list and len(entries) >= COLUMNS_FROM:
        uniform = _encode_columns(entries)
        if uniform is not None:
            return uniform
    parts: list[Any] = []
    add = parts.append
    pack = ENTRY.pack
    put, delete = Operation.PUT, Operation.DELETE
    largest = 0
    entry: Any = NOTHING
    try:
        for entry in entries:
            operation, key, value, timestamp, _ = entry
            if type(key) is not bytes or type(value) is not bytes:
                key, value = as_bytes("key", key), as_bytes("value", value)
            key_bytes = len(key)
            value_bytes = len(value)
            if key_bytes > MAX_KEY_BYTES or value_bytes > MAX_VALUE_BYTES:  # each: the largest may be within limits
                check_sizes(key_bytes, value_bytes)
            size = key_bytes + value_bytes
            if size > largest:
                largest = size
            if operation is put:  # identity: arithmetic with an IntEnum takes 0.1 us
                bits = key_bytes | PUT_BITS
            elif operation is delete:
                bits = key_bytes | DELETE_BITS
            elif operation in (put, delete):
                bits = key_bytes | int(operation) << 28
            else:
                raise ValueError(f"operation must be Operation.PUT or Operation.DELETE, not {operation!r}")
            add(pack(bits, value_bytes, timestamp))
            add(key)
            add(value)
    except struct.error:
        raise bad_timestamp(timestamp) from None
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError) and isinstance(entry, tuple) and len(entry) == len(NOTHING):
            raise  # of a field, or of the caller's iterable
        raise TypeError(f"entry {len(parts) // 3} of the batch: {error}; a batch takes WALEntry objects") from None
    # tuple.__new__ takes 0.07 us where Body(...) takes 0.15.
    return tuple.__new__(Body, (b"".join(parts), len(parts) // 3, largest + ENTRY_BYTES))


def _encode_columns(entries: list[WALEntry]) -> Body | None:
    """The same, if all of them are puts of bytes with the lengths of the first; what is wrong with one, rows say."""
    try:
        first, middle, last = entries[0], entries[len(entries) // 2], entries[-1]
        key_bytes, value_bytes = len(first.key), len(first.value)
        if not key_bytes == len(middle.key) == len(last.key) or not value_bytes == len(middle.value) == len(last.value):
            return None  # entries of many shapes seldom cost more than these looks
        if key_bytes + value_bytes > COPIED_TWICE:
            return None
        operations, keys, values, timestamps, _ = zip(*entries, strict=True)
        if not (
            list(map(type, keys)).count(bytes) == list(map(type, values)).count(bytes) == len(entries)
            and list(map(len, keys)).count(key_bytes) == list(map(len, values)).count(value_bytes) == len(entries)
            and operations.count(Operation.PUT) == len(entries)
        ):
            return None
        pack = _put_of(key_bytes, value_bytes)
        body = b"".join(map(pack, repeat(key_bytes | PUT_BITS), repeat(value_bytes), timestamps, keys, values))
    except (AttributeError, TypeError, ValueError, struct.error):
        return None
    return tuple.__new__(Body, (body, len(entries), ENTRY_BYTES + key_bytes + value_bytes))


@lru_cache(maxsize=4096)
def _put_of(key_bytes: int, value_bytes: int) -> Callable[..., bytes]:
    return struct.Struct(f"<I I Q {key_bytes}s {value_bytes}s").pack
