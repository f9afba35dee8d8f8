"""The segments of a log: which there are, opening one, making one.

Holds: a segment's name states its first LSN; a directory may hold any other files, which are ignored.
"""

from typing import NamedTuple

from walpool.errors import CorruptLog, UnsafeLog
from walpool.format.entry import MAX_KEY_BYTES, MAX_VALUE_BYTES
from walpool.format.frame import FRAME_BYTES
from walpool.format.header import HEADER_BYTES, WALHeader
from walpool.format.names import parse_segment_name, segment_name
from walpool.options import MAX_SIZE_LIMIT
from walpool.system import processes
from walpool.system.files import CREATE, READ, WRITE, Directory, File

MAX_SEGMENTS = 1_000_000
MOST_SPARSE_BYTES = 4 * MAX_SIZE_LIMIT  # of a segment file that is next to nothing but holes
CHUNK_BYTES = 1 << 20
_ZEROS = bytes(CHUNK_BYTES)


class Segment(NamedTuple):
    """An open segment file and its decoded header."""

    file: File
    header: WALHeader


def list_segments(directory: Directory) -> list[int]:
    """The first LSN of every segment, ascending."""
    found = [lsn for lsn in map(parse_segment_name, directory.names()) if lsn is not None]
    if len(found) > MAX_SEGMENTS:
        raise UnsafeLog(directory.path, f"{len(found)} segments are more than the {MAX_SEGMENTS} that walpool handles")
    return sorted(found)


def open_segment(directory: Directory, first_lsn: int, *, writable: bool = False, name: str | None = None) -> Segment:
    """Raises FileNotFoundError when it is gone, CorruptLog when its header is damaged or not its own.

    `name` is that of a copy that is called something else.

    UnsafeLog for a huge sparse file: walpool writes the zeros of a segment, and to read those would take hours.
    """
    file = directory.open(name or segment_name(first_lsn), WRITE if writable else READ)
    try:
        size = file.stat.st_size
        if size > MOST_SPARSE_BYTES and file.stat.st_blocks * 512 < size >> 4:
            raise UnsafeLog(file.path, f"refused: a file of {size} bytes that is next to nothing but holes")
        header = WALHeader.decode(file.read(HEADER_BYTES, 0), file.path)
        if header.first_lsn != first_lsn:
            raise CorruptLog(file.path, 40, first_lsn, f"the header says the segment starts at LSN {header.first_lsn}")
    except BaseException:
        file.close()
        raise
    return Segment(file, header)


def new_marker() -> int:
    """That of a new segment: random, and never 0."""
    return processes.random_word() & 0xFFFFFFFF


def header_is_torn(directory: Directory, name: str) -> bool:
    """Whether a segment's header was never written whole: too short, or zeros. Anything else is damage."""
    with directory.open(name) as file:
        head = file.read(HEADER_BYTES, 0)
    return len(head) < HEADER_BYTES or not any(head)


def holds_frames(directory: Directory, first_lsn: int) -> bool:
    """Whether anything stands where a segment's first frame would."""
    with directory.open(segment_name(first_lsn)) as file:
        return file_holds_frames(file)


def used_range(file: File, offset: int) -> tuple[int, int]:
    """Where other than zeros stands from `offset` on: all of that, and frames with zeros at their ends; or (end, end).

    One pass without room for more than a chunk: a sparse file may be larger than the memory.
    """
    first = last = None
    at = offset
    while chunk := file.read(CHUNK_BYTES, at):
        if chunk != _ZEROS[: len(chunk)]:
            first, last = at if first is None else first, at + len(chunk)
        at += len(chunk)
    if first is None or last is None:
        return at, at
    # A marker may begin with zeros; behind an entry's header no more than its key and value can be zeros.
    return max(offset, first - 4), min(at, last + MAX_KEY_BYTES + MAX_VALUE_BYTES)


def is_zero(file: File, offset: int) -> bool:
    """Whether nothing but zeros, or nothing, is in a file from `offset` on."""
    while chunk := file.read(CHUNK_BYTES, offset):
        if chunk != _ZEROS[: len(chunk)]:
            return False
        offset += len(chunk)
    return True


def file_holds_frames(file: File) -> bool:
    return any(file.read(FRAME_BYTES, HEADER_BYTES))


def create_segment(directory: Directory, header: WALHeader, file_mode: int) -> Segment:
    """Make a segment, or finish one that a killed process left without a whole header.

    Lock: append. Nothing can be in a file of this name but a header and zeros, because frames are appended to a
    segment only after the control block names it; a file that holds more is another log's, or the block is old.
    """
    name = segment_name(header.first_lsn)
    try:
        file = directory.open(name, CREATE, file_mode)
    except FileExistsError:
        file = directory.open(name, WRITE)
        if file_holds_frames(file):
            file.close()
            raise UnsafeLog(
                directory.join(name),
                "a segment that the control block does not know is in the way of the next one; "
                "close every writer and open the log again to recover",
            ) from None
    try:
        file.write(header.encode(), 0)
    except BaseException:
        file.close()  # without a whole header it is nobody's segment: the next rotation finishes it
        raise
    return Segment(file, header)
