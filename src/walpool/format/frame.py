"""Frames: a batch as bytes on disk, with one checksum, so that it is there whole or not at all.

    at  size  field
     0     4  marker        the segment's marker
     4     4  crc           CRC32C of the body, then of header bytes 8-47, as if after bytes whose CRC32C is the marker
     8     4  body_length   bytes that follow the header
    12     4  count         entries in the batch, at least 1
    16     8  first_lsn
    24     8  appended_at   ns since the epoch, never less than in the frame before it
    32     8  durable_lsn   durable LSN when this frame was written, below first_lsn
    40     4  raw_length    body length before compression; without a codec, body_length
    44     2  flags         low 4 bits: codec (0 none); the rest 0
    46     2  writer        writer slot
    48        body

A frame whose checksum fits and whose flags are not 0 is no damage: a later minor version wrote it.
`read_frame` never raises on bad bytes, never reads a file and never decides what to do: it says what it sees.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from walpool.format.entry import ENTRY_BYTES, Bytes
from walpool.format.names import MAX_LSN
from walpool.native.select import crc32c, twin

FRAME_PREFIX = struct.Struct("<I I")
FRAME_REST = struct.Struct("<I I Q Q Q I H H")
FRAME_BYTES = 48
_HEADER = struct.Struct("<I I I I Q Q Q I H H")
MAX_SLOTS = 1 << 16  # `writer` has 16 bits
assert FRAME_PREFIX.size + FRAME_REST.size == _HEADER.size == FRAME_BYTES  # the table above, field by field
_REST_AT = FRAME_PREFIX.size

_BLANK = bytes(FRAME_BYTES)


class Frame(NamedTuple):
    """An intact frame at `offset` of the buffer it was read from; its body is `buffer[body:end]`."""

    offset: int
    body: int
    end: int
    first_lsn: int
    count: int  # type: ignore[assignment]  # the field's word; nobody counts in a frame
    appended_at: int
    durable_lsn: int
    flags: int  # not 0: written by a later minor version, with a codec this one does not know
    writer: int

    @property
    def next_lsn(self) -> int:
        return self.first_lsn + self.count


class End(NamedTuple):
    """No frame starts here: nothing is left, or zeros. With `needed`, that many bytes from here could say more."""

    offset: int
    needed: int = 0


class Damage(NamedTuple):
    """Bytes that are no frame. With `needed`, the buffer ended early: that many bytes from here could mend it."""

    offset: int
    reason: str
    needed: int = 0


def seal(marker: int, body_crc: int, rest: bytes, body: bytes) -> bytes:
    """A whole frame. `rest` is header bytes 8-47 (FRAME_REST), `body_crc` is `crc32c(body, marker)`."""
    return FRAME_PREFIX.pack(marker, crc32c(rest, body_crc)) + rest + body


@twin(Frame)
def read_frame(buffer: Bytes, offset: int, marker: int, lsn: int, remaining: int | None = None) -> Frame | End | Damage:
    """What stands at `offset`: the frame whose first LSN is `lsn` (0: any), the end, or damage.

    `marker` is the segment's. `remaining` is how many bytes the segment has from `offset` on, when the buffer
    holds fewer: a frame that would pass it is damage at once, whatever length it claims.
    """
    available = len(buffer) - offset
    if remaining is None:
        remaining = available
    if available < FRAME_BYTES:
        if remaining > available:
            return End(offset, min(FRAME_BYTES, remaining))
        if available <= 0 or not any(buffer[offset:]):
            return End(offset)
        return Damage(offset, f"{available} bytes are too few for a frame header")
    found, crc, body_length, count, first_lsn, appended_at, durable_lsn, raw_length, flags, writer = (
        _HEADER.unpack_from(buffer, offset)
    )
    if found != marker:
        if found == 0 and buffer[offset : offset + FRAME_BYTES] == _BLANK:
            return End(offset)
        return Damage(offset, "no frame starts here: the marker is missing")
    if body_length > remaining - FRAME_BYTES:
        return Damage(offset, f"a frame of {FRAME_BYTES + body_length} bytes runs past the end of its segment")
    if not 1 <= count <= body_length // ENTRY_BYTES and not (flags and count):  # a codec may make them smaller
        return Damage(offset, f"a frame of {body_length} bytes cannot hold {count} entries")
    if lsn and first_lsn != lsn:
        return Damage(offset, f"a frame with LSN {first_lsn} stands where {lsn} must follow")
    if first_lsn > MAX_LSN - count:
        return Damage(offset, f"LSN {first_lsn} is out of range")
    end = offset + FRAME_BYTES + body_length
    if end > len(buffer):
        return Damage(offset, "the frame's last bytes are missing", FRAME_BYTES + body_length)
    body = offset + FRAME_BYTES
    view = buffer if type(buffer) is memoryview else memoryview(buffer)
    if crc32c(view[offset + _REST_AT : body], crc32c(view[body:end], marker)) != crc:
        return Damage(offset, "the frame's checksum does not match")
    if raw_length != body_length and not flags:
        return Damage(offset, f"an uncompressed frame of {body_length} bytes claims {raw_length}")
    # tuple.__new__ takes 0.33 us where Frame(...) takes 0.58: every frame that is read is one of these.
    return tuple.__new__(Frame, (offset, body, end, first_lsn, count, appended_at, durable_lsn, flags, writer))


def find_frames(buffer: Bytes, offset: int, marker: int, least_lsn: int) -> Iterator[Frame]:
    """Intact frames anywhere behind `offset`, in order, none overlapping, LSNs rising from `least_lsn`.

    Linear: at most four times the buffer's bytes are checksummed, however many false markers it holds; then it
    raises SearchExhausted, because "none found" would no longer be true.
    """
    needle = marker.to_bytes(4, "little")
    haystack = buffer if isinstance(buffer, (bytes, bytearray)) else bytes(buffer)
    budget = 4 * len(haystack) + 4096
    at = haystack.find(needle, offset)
    while at >= 0:
        found = read_frame(haystack, at, marker, 0)
        claimed = FRAME_BYTES + int.from_bytes(haystack[at + 8 : at + 12], "little")
        if claimed <= len(haystack) - at:
            budget -= claimed  # checksummed, or near enough to it
        if isinstance(found, Frame) and found.first_lsn >= least_lsn:
            yield found
            least_lsn = found.next_lsn
            at = haystack.find(needle, found.end)
            continue
        if budget < 0:
            raise SearchExhausted
        at = haystack.find(needle, at + 1)


class SearchExhausted(Exception):
    """The search for intact frames gave up: the bytes hold too many frames that claim too much."""
