"""Reads a log as docs/format.md describes it: a second implementation that shares nothing with walpool.

Plain and slow. Holds: no import of walpool, so a mistake that walpool's writer and reader share is not made here too.
What the documents leave open is read leniently: a delete may have a value, segments need not be numbered one by one.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import crc32c as package

NAME = re.compile(r"[0-9]{20}\.wal")
MAGIC, MAJOR = b"WALPOOL\0", 1
HEADER_BYTES, FRAME_HEADER_BYTES, ENTRY_HEADER_BYTES = 64, 48, 16
OPERATIONS = {1: "put", 2: "delete"}
MAX_KEY, MAX_VALUE = 1048576, 10485760
OWN_BYTES = 64


def crc32c_table() -> list[int]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # Castagnoli's polynomial, its bits reversed
        table.append(crc)
    return table


TABLE = crc32c_table()


def crc32c(data: bytes, seed: int = 0) -> int:
    """The checksum of `data` behind bytes whose checksum is `seed`."""
    crc = seed ^ 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def checksum(data: bytes, seed: int) -> int:
    """A test compares the two; the package is quicker where there is much."""
    return crc32c(data, seed) if len(data) <= OWN_BYTES else package.crc32c(data, seed)


@dataclass(frozen=True)
class Header:
    version: int
    flags: int
    header_size: int
    header_crc: int
    entries_offset: int
    created_at: int
    sequence: int
    first_lsn: int
    durable_lsn: int
    marker: int
    reserved: int


@dataclass(frozen=True)
class Entry:
    lsn: int
    operation: str
    key: bytes
    value: bytes
    timestamp: int


@dataclass(frozen=True)
class Frame:
    end: int  # offset one past its last byte
    first_lsn: int
    appended_at: int
    durable_lsn: int
    writer: int
    entries: tuple[Entry, ...]

    @property
    def next_lsn(self) -> int:
        return self.first_lsn + len(self.entries)


class Ending(Enum):
    """What stands behind the last frame of a segment that counts."""

    CLEAN = "nothing"
    ZEROS = "zeros"
    EVIDENCE = "bytes that do not count, because the next segment begins before them"
    TORN = "bytes that are no frame, and no frame behind them"
    HOLE = "bytes that are no frame, and intact frames behind them"
    ROTTEN = "a frame whose checksum fits and whose content does not"
    UNMADE = "no header yet: too short, or all zeros"
    HEADER = "a damaged header"
    VERSION = "another major version, or flags of a later minor one: no damage, and not to be read"


@dataclass(frozen=True)
class NoFrame:
    reason: str
    ending: Ending | None = None  # what it is, if its checksum fits and no power cut can have left it


@dataclass(frozen=True)
class Segment:
    name: str
    size: int
    header: Header | None
    ending: Ending
    reason: str
    frames: tuple[Frame, ...] = ()
    behind: tuple[Frame, ...] = ()  # intact frames behind the place where one is missing

    @property
    def first_lsn(self) -> int:
        return self.header.first_lsn if self.header else int(self.name[:20])

    @property
    def next_lsn(self) -> int:
        return self.frames[-1].next_lsn if self.frames else self.first_lsn


Log = Path | Mapping[str, bytes] | list[Segment]  # a directory, files by their names, or what was read of them


def read_log(source: Log) -> list[Segment]:
    """Its segments in the order of their names."""
    if isinstance(source, list):
        return source
    if isinstance(source, Path):
        source = {path.name: path.read_bytes() for path in source.iterdir() if NAME.fullmatch(path.name)}
    segments: list[Segment] = []
    stop_lsn: int | None = None
    for name in sorted(filter(NAME.fullmatch, source), reverse=True):
        segments.append(read_segment(name, source[name], stop_lsn))
        stop_lsn = int(name[:20])
    return segments[::-1]


def read_segment(name: str, data: bytes, stop_lsn: int | None = None) -> Segment:
    """One segment, whose frames count up to `stop_lsn`, where the next one begins."""
    header = read_header(data)
    if isinstance(header, Header) and header.first_lsn != int(name[:20]):
        header = Ending.HEADER, f"that of another segment, which begins at LSN {header.first_lsn}"
    if not isinstance(header, Header):
        return Segment(name, len(data), None, *header)
    frames: list[Frame] = []
    offset, lsn = header.entries_offset, header.first_lsn
    while lsn != stop_lsn:
        found = read_frame(data, offset, header.marker)
        if isinstance(found, Frame) and found.first_lsn != lsn:
            found = NoFrame(f"a frame of LSN {found.first_lsn} stands where LSN {lsn} should")
        if isinstance(found, Frame) and stop_lsn is not None and found.next_lsn > stop_lsn:
            found = NoFrame(f"the batch of LSN {lsn} reaches into the next segment, from {stop_lsn}")
        if isinstance(found, NoFrame):
            behind = tuple(intact_frames(data, offset, header.marker, lsn))
            ending = what_follows(data, offset, found.ending or (Ending.HOLE if behind else Ending.TORN))
            return Segment(name, len(data), header, ending, found.reason, tuple(frames), behind)
        frames.append(found)
        offset, lsn = found.end, found.next_lsn
    return Segment(name, len(data), header, what_follows(data, offset, Ending.EVIDENCE), "", tuple(frames))


def what_follows(data: bytes, offset: int, otherwise: Ending) -> Ending:
    if len(data) == offset:
        return Ending.CLEAN
    return otherwise if data[offset:].strip(b"\0") else Ending.ZEROS


def read_header(data: bytes) -> Header | tuple[Ending, str]:
    if len(data) < HEADER_BYTES or not any(data[:HEADER_BYTES]):
        return Ending.UNMADE, f"{len(data)} bytes"
    magic, *fields = struct.unpack_from("<8sHHIIIQQQQII", data)
    header = Header(*fields)
    if magic != MAGIC:
        return Ending.HEADER, f"magic {magic!r}"
    if header.header_crc != checksum(data[:16] + data[20:HEADER_BYTES], 0):
        return Ending.HEADER, "its checksum does not match"
    if header.version >> 8 != MAJOR:
        return Ending.VERSION, f"version {header.version >> 8}.{header.version & 0xFF}"
    free = header.flags, header.header_size, header.entries_offset, header.reserved
    if header.version & 0xFF == 0 and free != (0, HEADER_BYTES, HEADER_BYTES, 0):
        return Ending.HEADER, f"flags, sizes and reserved bytes are {free}"
    if header.marker == 0 or header.sequence == 0 or not header.durable_lsn < header.first_lsn:
        return Ending.HEADER, f"its numbers cannot be: {header}"
    return header


def read_frame(data: bytes, offset: int, marker: int) -> Frame | NoFrame:
    body_at = offset + FRAME_HEADER_BYTES
    if body_at > len(data):
        return NoFrame(f"{len(data) - offset} bytes, too few for a frame")
    fields = struct.unpack_from("<IIIIQQQIHH", data, offset)
    found, crc, body_length, count, first_lsn, appended_at, durable_lsn, raw_length, flags, writer = fields
    if found != marker:
        return NoFrame(f"marker {found:#x}, not {marker:#x}")
    end = body_at + body_length
    if end > len(data):
        return NoFrame(f"a body of {body_length} bytes reaches beyond the file")
    body = data[body_at:end]
    if crc != checksum(data[offset + 8 : body_at], checksum(body, marker)):
        return NoFrame("its checksum does not match")
    if flags != 0:
        return NoFrame(f"flags {flags:#x}", Ending.VERSION)
    entries = read_entries(body, count, first_lsn)
    if raw_length != body_length:
        entries = f"raw_length {raw_length}, body_length {body_length}"
    if isinstance(entries, str):
        return NoFrame(entries, Ending.ROTTEN)
    return Frame(end, first_lsn, appended_at, durable_lsn, writer, tuple(entries))


def read_entries(body: bytes, count: int, first_lsn: int) -> list[Entry] | str:
    entries: list[Entry] = []
    at = 0
    while at < len(body):
        if at + ENTRY_HEADER_BYTES > len(body):
            return f"{len(body) - at} bytes left over in the body"
        key_word, value_length, timestamp = struct.unpack_from("<IIQ", body, at)
        operation, key_length = OPERATIONS.get(key_word >> 28), key_word & 0x0FFFFFFF
        key_at = at + ENTRY_HEADER_BYTES
        value_at, at = key_at + key_length, key_at + key_length + value_length
        if operation is None or key_length > MAX_KEY or value_length > MAX_VALUE or at > len(body):
            return f"an entry with operation {key_word >> 28} and lengths {key_length}, {value_length}"
        lsn = first_lsn + len(entries)
        entries.append(Entry(lsn, operation, body[key_at:value_at], body[value_at:at], timestamp))
    return entries if 0 < count == len(entries) else f"{len(entries)} entries in a body that counts {count}"


def intact_frames(data: bytes, offset: int, marker: int, lsn: int) -> Iterator[Frame]:
    """Frames from `offset` on: the next marker whose checksum fits, and whose LSN is not below those before it."""
    while (offset := data.find(struct.pack("<I", marker), offset)) >= 0:
        found = read_frame(data, offset, marker)
        if isinstance(found, Frame) and found.first_lsn >= lsn:
            yield found
            offset, lsn = found.end, found.next_lsn
        else:
            offset += 1
