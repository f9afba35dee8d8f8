"""The origin: which log this is, and how much of its beginning retention has removed.

    at  size  field
     0     8  magic      WALORIGN
     8    16  id         random, of this log; a copy that walpool makes has one of its own
    24     8  first_lsn  the first LSN that retention has kept; 1: it removed nothing
    32     8  last_ns    appended_at of the last entry when it removed some last: no later one is less
    40     4  crc        CRC32C of the bytes before
    44     4  reserved   0

A file of 40 bytes, as an earlier version made it, has no last_ns.

Holds: the file is replaced whole, under one rename, and durable before retention removes what it covers. So a segment
that is missing at the beginning was removed by somebody else unless this says otherwise. A log without the file, as
older ones are, and one whose file is damaged, says nothing. Lock: maintenance.
"""

import struct
from typing import NamedTuple

from walpool.errors import UnsafeLog, WALError
from walpool.format.names import MAX_LSN, ORIGIN
from walpool.native.select import crc32c
from walpool.system import processes
from walpool.system.files import CREATE, READ, Directory

_STATED = struct.Struct("<8s 16s Q Q")
_END = struct.Struct("<I I")
ORIGIN_BYTES = 48
assert _STATED.size + _END.size == ORIGIN_BYTES
_EARLIER_BYTES = 40
_MAGIC = b"WALORIGN"
_NEW = f"{ORIGIN}.tmp"


class Origin(NamedTuple):
    id: bytes
    first_lsn: int
    last_append_ns: int = 0


def new_origin(first_lsn: int = 1) -> Origin:
    words = processes.random_word(), processes.random_word()
    return Origin(b"".join(word.to_bytes(8, "little") for word in words), first_lsn)


def read_origin(directory: Directory, *, to_replace: bool = False) -> Origin | None:
    """What it says, or None when it says nothing. Raises UnsafeLog for a file that we may not read, `to_replace` it."""
    try:
        file = directory.open(ORIGIN, READ)
    except FileNotFoundError:
        return None
    except UnsafeLog as error:
        if to_replace and isinstance(error.__cause__, PermissionError):
            raise  # with another id in its place this would be another log to everybody who has it open
        return None
    with file:
        data = file.read(ORIGIN_BYTES + 1, 0)
    if len(data) not in (ORIGIN_BYTES, _EARLIER_BYTES):
        return None
    stated, end = data[: -_END.size], data[-_END.size :]
    magic, log_id, first_lsn, last_append_ns = _STATED.unpack(stated.ljust(_STATED.size, b"\0"))
    if magic != _MAGIC or _END.unpack(end)[0] != crc32c(stated) or not 1 <= first_lsn <= MAX_LSN:
        return None
    return Origin(log_id, first_lsn, last_append_ns)


def log_id(directory: Directory) -> bytes | None:
    """The id of the log that is in the directory now, or None when nothing says it."""
    found = read_origin(directory)
    return found.id if found is not None else None


def is_another(directory: Directory, known: bytes | None) -> bool:
    """Whether the log in the directory is certainly not the one whose id is `known`.

    A new log says its id before it has a segment: ask after a segment was opened, and that was not another one's.
    """
    found = log_id(directory) if known is not None else None
    return found is not None and found != known


def write_origin(directory: Directory, origin: Origin, file_mode: int, *, durable: bool) -> None:
    """Durable when this returns, if asked for: a log whose note is lost says nothing, and that is no finding."""
    stated = _STATED.pack(_MAGIC, *origin)
    directory.unlink(_NEW)  # of a process that was killed here
    try:
        with directory.open(_NEW, CREATE, file_mode) as file:
            file.write(stated + _END.pack(crc32c(stated), 0), 0)
            if durable:
                file.sync()
        directory.rename(_NEW, ORIGIN)
    except WALError:
        directory.unlink(_NEW)  # on a full disk it would be in the way of what makes room
        raise
    if durable:
        directory.sync()
