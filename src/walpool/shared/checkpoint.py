"""The checkpoint: the durable statement that nothing at or below an LSN is needed any more.

    at  size  field
     0     8  magic      WALPCKPT
     8     8  lsn
    16     8  stated_at  ns since the epoch
    24     4  crc        CRC32C of bytes 0-23
    28     4  reserved   0

Holds: the file is replaced whole, under one rename, and durable before anyone hears of it; its LSN never goes back.
"""

import struct

from walpool.errors import CorruptLog, WALError
from walpool.format.names import CHECKPOINT
from walpool.native.select import crc32c
from walpool.system import clock
from walpool.system.files import CREATE, Directory

CHECKPOINT_FILE = struct.Struct("<8s Q Q I I")
CHECKPOINT_BYTES = 32
assert CHECKPOINT_FILE.size == CHECKPOINT_BYTES
_MAGIC = b"WALPCKPT"
_CRC_AT = 24
_NEW = f"{CHECKPOINT}.tmp"


def read_checkpoint(directory: Directory) -> int:
    """The LSN at or below which nothing is needed, 0 when nobody said so. Raises CorruptLog."""
    try:
        file = directory.open(CHECKPOINT)
    except FileNotFoundError:
        return 0
    with file:
        data = file.read(CHECKPOINT_BYTES + 1, 0)
    if len(data) == CHECKPOINT_BYTES:
        magic, lsn, _, crc, _ = CHECKPOINT_FILE.unpack(data)
        if magic == _MAGIC and crc == crc32c(data[:_CRC_AT]):
            return int(lsn)
    raise CorruptLog(file.path, 0, 0, "this is no whole checkpoint; state it again, or remove the file")


def write_checkpoint(directory: Directory, lsn: int, file_mode: int) -> None:
    """Durable when this returns. Lock: maintenance."""
    stated = CHECKPOINT_FILE.pack(_MAGIC, lsn, clock.time_ns(), 0, 0)
    crc = crc32c(stated[:_CRC_AT])
    directory.unlink(_NEW)  # of a process that was killed here
    try:
        with directory.open(_NEW, CREATE, file_mode) as file:
            file.write(stated[:_CRC_AT] + crc.to_bytes(4, "little") + bytes(4), 0)
            file.sync()
    except (OSError, WALError):
        directory.unlink(_NEW)  # on a full disk it would be in the way of what makes room
        raise
    directory.rename(_NEW, CHECKPOINT)
    directory.sync()
