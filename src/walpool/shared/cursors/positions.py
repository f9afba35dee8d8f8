"""Positions: what each cursor has committed, a file of 64 bytes for each, in cursors/.

    at  size  field      of each of two copies, at 0 and 32
     0     4  magic      WCUR
     4     4  crc        CRC32C of bytes 8-31
     8     8  sequence   the whole copy with the higher one counts
    16     8  lsn        the last that was committed; 0: none
    24     8  start_lsn  the first that is wanted as long as none was

Holds: a file is made under another name, and durable before it has its own. After that it is written in place, and
never the copy that is known to be on disk: so a kill or a power cut leaves what was committed before, or now.
Lock: that of its cursor (owners.py); for a recovery, maintenance and append, with no cursor open.
"""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from walpool.errors import CorruptLog, UnsafeLog, WALError
from walpool.format.names import CURSORS, MAX_LSN
from walpool.native.select import crc32c
from walpool.system.files import CREATE, WRITE, Directory, File
from walpool.system.paths import make_subdirectory, subdirectory

_COPY = struct.Struct("<4s I Q Q Q")
COPY_BYTES = 32
POSITION_BYTES = 2 * COPY_BYTES
assert _COPY.size == COPY_BYTES
_MAGIC = b"WCUR"
_SUMMED = 8  # from here on
_NEW = "~"  # behind a name, while the file is made: no cursor's name has it
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_FILE = re.compile(r"([A-Za-z0-9._-]{1,64})(?:@(0|[1-9][0-9]{0,3})of([1-9][0-9]{0,3}))?", re.ASCII)


class Position(NamedTuple):
    sequence: int
    lsn: int
    start_lsn: int

    @property
    def wanted_lsn(self) -> int:
        """The first that its cursor still needs."""
        return max(self.lsn + 1, self.start_lsn)

    def at(self, lsn: int) -> "Position":
        return Position(self.sequence + 1, lsn, self.start_lsn)

    def taken_back(self, last_lsn: int) -> "Position":
        """Where a log that ends at `last_lsn` leaves it."""
        return Position(self.sequence + 1, min(self.lsn, last_lsn), min(self.start_lsn, last_lsn + 1))


class Found(NamedTuple):
    """A cursor's file, and what is in it."""

    name: str  # of the file
    position: Position | None
    problem: str = ""  # why there is no position


def check_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a cursor's name must be a str, not {type(name).__name__}")
    if _NAME.fullmatch(name) is None or name in (".", ".."):
        raise ValueError(f"a cursor's name is 1 to 64 of A-Z a-z 0-9 . _ - and not {name!r}")
    return name


def part_name(group: str, part: int, parts: int) -> str:
    """The file of one part of a group."""
    return f"{group}@{part}of{parts}"


def parse_name(name: str) -> tuple[str, int, int] | None:
    """The cursor or group whose file is called so, which part of how many, or 0 of 0; None for no cursor's file."""
    found = _FILE.fullmatch(name)
    if found is None or name in (".", ".."):
        return None
    return found[1], int(found[2] or 0), int(found[3] or 0)


# The file


def pack(position: Position) -> bytes:
    data = _COPY.pack(_MAGIC, 0, *position)
    return _MAGIC + crc32c(data[_SUMMED:]).to_bytes(4, "little") + data[_SUMMED:]


def unpack(data: bytes) -> tuple[Position, int] | None:
    """The position in force and which copy has it; None when neither is whole."""
    found = []
    for at in (0, 1):
        copy = data[at * COPY_BYTES : (at + 1) * COPY_BYTES]
        if len(copy) < COPY_BYTES or len(data) != POSITION_BYTES:
            continue
        magic, crc, *fields = _COPY.unpack(copy)
        position = Position(*fields)
        possible = position.lsn <= MAX_LSN and 1 <= position.start_lsn <= MAX_LSN
        if magic == _MAGIC and crc == crc32c(copy[_SUMMED:]) and possible:
            found.append((position, at))
    return max(found, default=None)


def read_position(file: File) -> tuple[Position, int]:
    """Raises CorruptLog, which says what to do then."""
    found = unpack(file.read(POSITION_BYTES + 1, 0))
    if found is None:
        name = file.path.rsplit("/", 1)[-1]
        raise CorruptLog(file.path, 0, 0, f"neither copy of the cursor's position is whole; {way_out(name)}")
    return found


def way_out(name: str) -> str:
    """For people, of a file that is of no use."""
    return (
        f"`walpool cursors LOG --reset {name.split('@')[0]}` has it begin with the first entry there is (with --to LSN:"
        " behind that one)"
    )


def write_new(cursors: Directory, name: str, position: Position, file_mode: int) -> None:
    """Make the file, or another in its place; durable when this returns."""
    new = name + _NEW
    cursors.unlink(new)  # of a process that was killed here
    try:
        with cursors.open(new, CREATE, file_mode) as file:
            file.write(pack(position) + bytes(COPY_BYTES), 0)
            file.sync()
        cursors.rename(new, name)
    except (OSError, WALError):
        cursors.unlink(new)
        raise
    cursors.sync()


def write_copy(file: File, copy: int, position: Position) -> None:
    file.write(pack(position), copy * COPY_BYTES)


# The directory


def open_cursors(directory: Directory) -> Directory | None:
    """None where the log has had no cursor yet."""
    try:
        return subdirectory(directory, CURSORS)
    except FileNotFoundError:
        return None


def make_cursors(directory: Directory) -> Directory:
    """The same, made if need be; its name is not durable yet."""
    return make_subdirectory(directory, CURSORS)


def find_positions(directory: Directory, *, sync: bool = False) -> list[Found]:
    """Those of all cursors, by name; `sync`: and what is read was made durable, too."""
    cursors = open_cursors(directory)
    if cursors is None:
        return []
    with cursors:
        return [*_read_all(cursors, sync)]


def _read_all(cursors: Directory, sync: bool) -> Iterator[Found]:
    for name in sorted(name for name in cursors.names() if parse_name(name) is not None):
        try:
            with cursors.open(name) as file:
                position, _ = read_position(file)
                if sync:
                    file.sync()
        except FileNotFoundError:
            continue  # deleted meanwhile
        except (CorruptLog, UnsafeLog) as error:
            yield Found(name, None, error.reason)
        else:
            yield Found(name, position)


def oldest_wanted(directory: Directory) -> int:
    """The first LSN that some cursor still needs, or MAX_LSN. Of a damaged one, nobody knows: so it needs all.

    What was committed and is not on disk yet is made so: else a power cut could take the cursor back below what
    retention has removed by it.
    """
    found = find_positions(directory, sync=True)
    return min((each.position.wanted_lsn if each.position is not None else 1 for each in found), default=MAX_LSN)


def take_back(directory: Directory, next_lsn: int, file_mode: int) -> list[tuple[str, int]]:
    """Set those that lie beyond the log's end back to that end; their names, and where they were.

    Else entries that are appended later would have LSNs that these have committed, and never be handed out.
    Lock: maintenance and append, and no cursor open.
    """
    cursors = open_cursors(directory)
    if cursors is None:
        return []
    taken = []
    with cursors:
        for name in cursors.names():
            if name.endswith(_NEW) and parse_name(name.removesuffix(_NEW)) is not None:
                cursors.unlink(name)
        for found in _read_all(cursors, sync=False):
            if found.position is not None and found.position.wanted_lsn > next_lsn:
                write_new(cursors, found.name, found.position.taken_back(next_lsn - 1), file_mode)
                taken.append((found.name, found.position.lsn))
    return taken


def open_position(cursors: Directory, name: str) -> File:
    """To commit to. FileNotFoundError passes."""
    return cursors.open(name, WRITE)
