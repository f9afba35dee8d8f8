"""The segment format a second time, written from its tables alone: struct and crc32c, and nothing of walpool's.

What the library writes is compared with this, byte for byte, and damaged or unusual logs are built with it.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from crc32c import crc32c
from hypothesis import settings

MARKER = 0x5EEDF00D
PUT, DELETE = 1, 2

Item = tuple[int, bytes, bytes, int]  # operation, key, value, timestamp


def examples(count: int) -> settings:
    """How often a property is tried; a failure prints the line that repeats it."""
    return settings(max_examples=count, deadline=None, print_blob=True)


def header(
    first_lsn: int = 1,
    *,
    marker: int = MARKER,
    sequence: int = 1,
    durable_lsn: int = 0,
    created_at: int = 1_700_000_000_000_000_000,
    version: int = 0x0100,
    flags: int = 0,
    header_size: int = 64,
    entries_offset: int = 64,
    reserved: int = 0,
    magic: bytes = b"WALPOOL\0",
) -> bytes:
    before = magic + struct.pack("<HHI", version, flags, header_size)
    after = struct.pack(
        "<IQQQQII", entries_offset, created_at, sequence, first_lsn, durable_lsn, marker, reserved
    )  # fmt: skip
    return before + struct.pack("<I", crc32c(before + after)) + after


def entry(operation: int, key: bytes, value: bytes, timestamp: int) -> bytes:
    return struct.pack("<IIQ", operation << 28 | len(key), len(value), timestamp) + key + value


def frame(
    first_lsn: int,
    items: Sequence[Item],
    *,
    marker: int = MARKER,
    appended_at: int = 0,
    durable_lsn: int = 0,
    flags: int = 0,
    writer: int = 0,
    raw_length: int | None = None,
    count: int | None = None,
    body: bytes | None = None,
) -> bytes:
    if body is None:
        body = b"".join(entry(*item) for item in items)
    rest = struct.pack(
        "<IIQQQIHH",
        len(body),
        len(items) if count is None else count,
        first_lsn,
        appended_at,
        durable_lsn,
        len(body) if raw_length is None else raw_length,
        flags,
        writer,
    )
    return struct.pack("<II", marker, crc32c(rest, crc32c(body, marker))) + rest + body


def segment(
    first_lsn: int,
    batches: Iterable[Sequence[Item]],
    *,
    marker: int = MARKER,
    sequence: int = 1,
    durable_lsn: int = 0,
    frames_durable: int | None = None,
) -> bytes:
    """A whole segment: its header says `durable_lsn`, its frames say `frames_durable`."""
    parts = [header(first_lsn, marker=marker, sequence=sequence, durable_lsn=durable_lsn)]
    said = durable_lsn if frames_durable is None else frames_durable
    lsn = first_lsn
    for items in batches:
        parts.append(frame(lsn, items, marker=marker, durable_lsn=said, appended_at=lsn))
        lsn += len(items)
    return b"".join(parts)


def spans(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(offset, end, first LSN, count) of each frame of an undamaged segment."""
    at = 64
    while at + 48 <= len(data) and data[at : at + 4] == data[56:60]:
        length, count, first_lsn = struct.unpack_from("<IIQ", data, at + 8)
        yield at, at + 48 + length, first_lsn, count
        at += 48 + length


def item(lsn: int, value_bytes: int = 5) -> Item:
    """What entry `lsn` of a built log holds: different for each LSN, with a delete now and then."""
    if lsn % 5 == 0:
        return DELETE, b"key-%d" % lsn, b"", lsn
    return PUT, b"key-%d" % lsn, b"%d" % lsn * value_bytes, lsn


def single(first_lsn: int, count: int, value_bytes: int = 5) -> list[list[Item]]:
    """`count` batches of one entry each."""
    return [[item(lsn, value_bytes)] for lsn in range(first_lsn, first_lsn + count)]


def name(first_lsn: int) -> str:
    return f"{first_lsn:020d}.wal"


def write_segments(log: Path, segments: dict[int, bytes]) -> Path:
    """A log's directory without a control block: {first LSN: bytes of the segment}."""
    log.mkdir(exist_ok=True)
    for first_lsn, data in segments.items():
        (log / name(first_lsn)).write_bytes(data)
    return log
