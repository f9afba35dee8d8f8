"""The segment header: 64 bytes, written once before the first frame of a segment.

    at  size  field
     0     8  magic           WALPOOL\\0
     8     2  version         high byte major, low byte minor
    10     2  flags           0
    12     4  header_size     64
    16     4  header_crc      CRC32C of bytes 0-15 and 20-63
    20     4  entries_offset  64
    24     8  created_at      ns since the epoch
    32     8  sequence        file sequence number, from 1, in the order in which segments were made
    40     8  first_lsn
    48     8  durable_lsn     durable LSN when the segment was created, below first_lsn
    56     4  marker          random, per segment, never 0: the sync marker of its frames
    60     4  reserved        0

Every version has the first 20 bytes and the checksum, and nothing is trusted before that was compared. Then another
major version is not damage, and a later minor one may use flags and reserved, and have its first frame further on.
"""

import os
import struct
from dataclasses import dataclass

from walpool.errors import CorruptLog, UnsupportedVersion
from walpool.format.names import MAX_LSN
from walpool.native.select import crc32c

HEADER = struct.Struct("<8s H H I I I Q Q Q Q I I")  # the table above, field by field
HEADER_BYTES = 64
assert HEADER.size == HEADER_BYTES

MAGIC = b"WALPOOL\0"
VERSION = 0x0100
_CRC_AT = 16


@dataclass(frozen=True, slots=True)
class WALHeader:
    """One segment's header, as docs/format.md shows it.

    Attributes:
        created_at: when the segment was made, ns since the epoch.
        sequence: the segment's number in the life of the log, from 1.
        first_lsn: of the first entry that the segment has or will have.
        durable_lsn: everything at or below it was on disk when the segment was made.
        marker: random, never 0: each frame of the segment begins with it.
        version (default 0x0100): of the format: high byte major, low byte minor.
        flags (default 0): none are defined.
        header_size (default 64): bytes.
        entries_offset (default 64): where the first frame stands, bytes.
        reserved (default 0): nothing yet.
    """

    created_at: int
    sequence: int
    first_lsn: int
    durable_lsn: int
    marker: int
    version: int = VERSION
    flags: int = 0
    header_size: int = HEADER_BYTES
    entries_offset: int = HEADER_BYTES
    reserved: int = 0

    def encode(self) -> bytes:
        """The 64 bytes of the header, checksum included.

        Raises:
            ValueError: for a field that does not fit its place.
        """
        blank = self._pack(0)
        return self._pack(crc32c(blank[_CRC_AT + 4 :], crc32c(blank[:_CRC_AT])))

    def _pack(self, crc: int) -> bytes:
        try:
            return HEADER.pack(
                MAGIC,
                self.version,
                self.flags,
                self.header_size,
                crc,
                self.entries_offset,
                self.created_at,
                self.sequence,
                self.first_lsn,
                self.durable_lsn,
                self.marker,
                self.reserved,
            )
        except struct.error as error:
            raise ValueError(f"a header field does not fit its place: {error}") from None

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview, path: str | os.PathLike[str] = "<bytes>") -> "WALHeader":
        """Read a header.

        Args:
            data: bytes-like; the first 64 bytes of a segment file, or more.
            path (default "<bytes>"): the source's name in errors; nothing is opened.

        Raises:
            CorruptLog: for damaged or foreign bytes: see `walpool verify`.
            UnsupportedVersion: for another major version: upgrade walpool.
        """
        if len(data) < HEADER_BYTES:
            raise CorruptLog(path, 0, 0, f"a segment header takes {HEADER_BYTES} bytes, there are {len(data)}")
        raw = bytes(data[:HEADER_BYTES])
        (magic, version, flags, header_size, crc, entries_offset, created_at, sequence, first_lsn, durable_lsn, marker,
         reserved) = HEADER.unpack(raw)  # fmt: skip
        if magic != MAGIC:
            raise CorruptLog(path, 0, 0, "not a walpool segment: the magic number is missing")
        if crc32c(raw[_CRC_AT + 4 :], crc32c(raw[:_CRC_AT])) != crc:
            raise CorruptLog(path, 0, 0, "the segment header's checksum does not match")
        if version >> 8 != VERSION >> 8:
            raise UnsupportedVersion(
                f"{os.fspath(path)}: format version {version >> 8}.{version & 0xFF} was written by another walpool;"
                f" this one reads {VERSION >> 8}.x: upgrade walpool"
            )
        # A later minor version may use flags and reserved; its frames still start where it says they start.
        if entries_offset < HEADER_BYTES or header_size < HEADER_BYTES or entries_offset < header_size:
            raise CorruptLog(path, 0, 0, f"the header gives {entries_offset} as the place of its first frame")
        if version == VERSION and (flags or reserved or entries_offset != HEADER_BYTES or header_size != HEADER_BYTES):
            raise CorruptLog(path, 0, 0, "the header has fields set that version 1.0 does not define")
        if not (1 <= first_lsn <= MAX_LSN and durable_lsn < first_lsn and marker and 1 <= sequence <= MAX_LSN):
            raise CorruptLog(path, 0, first_lsn, "the header's numbers contradict each other")
        return cls(created_at, sequence, first_lsn, durable_lsn, marker, version, flags, header_size, entries_offset,
                   reserved)  # fmt: skip
