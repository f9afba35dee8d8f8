"""The file of slot rows: its header, where a row stands, and what becomes of a file that another version has made.

A file of an older layout is read as it is, each row in the words of ours. The first writer of ours to come makes it
anew, whole and under one rename, so that nothing that was counted is lost; but not while a writer of that version
lives, which has its row mapped. Every layout has words 0-15 of a row, and the header, as they are here.
Lock: a slot of the caller's; maintenance, to make a file anew.
"""

from walpool.errors import UnsafeLog, WALError
from walpool.format.frame import MAX_SLOTS
from walpool.format.names import MAINTENANCE_LOCK, METRICS, NEW_METRICS, SLOTS_LOCK
from walpool.shared.control import OTHER_VERSION, SLOT_PIDS, Control
from walpool.system.files import CREATE, WRITE, Directory, File
from walpool.system.locks import ByteLocks, Maintenance
from walpool.system.shared_words import WORD

MAGIC = int.from_bytes(b"WALPROWS", "big")
LAYOUT = 2
ROW_BYTES = 1 << 14  # whole pages on every machine, so that a writer maps its own row and no other
ROWS = 1024  # slots with a row of their own
SHARED_ROW = -1  # the row of all other slots
CLAIMS, PID, STARTED_NS, PID_NAMESPACE, OPENED_NS, MODE, CLOSED_NS = range(7)
HEADER = b"".join(word.to_bytes(8, "little") for word in (MAGIC, LAYOUT, ROW_BYTES))
NOT_OURS = "not a metrics file of this version; remove it when no writer has the log open"
WAIT_S = 10.0  # for maintenance: figures are not worth more
_LOW = (1 << 32) - 1


# By layout: a word of an older row, the word of ours where it stands, and how many words stand so.
_OLDER = {
    1: (
        (0, 0, 16),  # identity and name
        (16, 16, 7), (27, 23, 5),  # counters
        (32, 48, 7), (43, 55, 5),  # counters at the claim
        (23, 80, 4),  # gauges
        (48, 88, 3),  # sums
        (52, 96, 2), (56, 104, 16),  # last error, its text
        (128, 128, 1600),  # histograms
    ),
}  # fmt: skip


def place_of(row: int) -> int:
    return (2 + row) * ROW_BYTES


def layout_of(file: File) -> int | None:
    """One that we can read, ours or older; 0 for one that we cannot; None for a file that has no rows at all."""
    head = file.read(len(HEADER), 0)
    magic, layout, row_bytes = (int.from_bytes(head[at : at + WORD], "little") for at in (0, WORD, 2 * WORD))
    if magic != MAGIC:
        return None
    return layout if row_bytes == ROW_BYTES and layout in (LAYOUT, *_OLDER) else 0


def in_our_words(row: bytes, layout: int) -> bytes:
    """A row of an older layout, as it would be in ours."""
    if layout == LAYOUT:
        return row
    found = bytearray(ROW_BYTES)
    for old, new, count in _OLDER[layout]:
        found[new * WORD : (new + count) * WORD] = row[old * WORD : (old + count) * WORD]
    return bytes(found)


def open_rows(directory: Directory, slot: int, file_mode: int) -> File:
    """The file, made if need be, or made anew; for the writer that has `slot`. Raises WALError or OSError."""
    file = _open_or_make(directory, file_mode)
    layout = layout_of(file)
    if layout == LAYOUT:
        return file
    file.close()
    if layout is None:
        raise UnsafeLog(file.path, NOT_OURS)
    with Maintenance(directory, MAINTENANCE_LOCK, WAIT_S, file_mode):
        file = _open_or_make(directory, file_mode)
        layout = layout_of(file)
        if layout == LAYOUT:
            return file  # another writer of ours was here first
        try:
            if _is_in_use(directory, file, slot):
                raise UnsafeLog(file.path, OTHER_VERSION)
            if not layout:
                raise UnsafeLog(file.path, NOT_OURS)
            _make_anew(directory, file, layout, file_mode)
        finally:
            file.close()
        return directory.open(METRICS, WRITE)


def _open_or_make(directory: Directory, file_mode: int) -> File:
    file = directory.open_or_create(METRICS, file_mode)
    try:
        if file.size() < 2 * ROW_BYTES:  # new: whoever comes at the same instant writes the same
            file.write(HEADER.ljust(2 * ROW_BYTES, b"\0"), 0)
    except BaseException:
        file.close()
        raise
    return file


def _is_in_use(directory: Directory, file: File, own_slot: int) -> bool:
    """Whether some slot is held by the very writer that claimed the row: then it has the file mapped, and counts there.

    That a slot is held is not enough: its row may be of an earlier writer, and the present one may count nothing.
    """
    control = Control.attach(directory, writable=False)
    slots_lock = directory.open(SLOTS_LOCK)
    try:
        for slot in ByteLocks(slots_lock).held_by_others(MAX_SLOTS):
            row = slot if slot < ROWS else SHARED_ROW
            words = memoryview(file.read(ROW_BYTES, place_of(row)).ljust(ROW_BYTES, b"\0")).cast("Q")
            if slot == own_slot or not words[CLAIMS] or words[CLOSED_NS]:
                continue
            claimed = words[PID] & _LOW | (words[PID_NAMESPACE] & _LOW) << 32
            if row == SHARED_ROW or control.words[SLOT_PIDS + slot] == claimed:
                return True
        return False
    finally:
        slots_lock.close()
        control.close()


def _make_anew(directory: Directory, file: File, layout: int, file_mode: int) -> None:
    directory.unlink(NEW_METRICS)  # of a process that was killed here
    try:
        new = directory.open(NEW_METRICS, CREATE, file_mode)
        try:
            new.write(HEADER.ljust(ROW_BYTES, b"\0"), 0)
            for at in range(ROW_BYTES, file.size(), ROW_BYTES):
                row = file.read(ROW_BYTES, at).ljust(ROW_BYTES, b"\0")
                new.write(in_our_words(row, layout), at)
            new.sync()  # before the name: a power cut must not leave an empty file in place of what was counted
        finally:
            new.close()
        directory.rename(NEW_METRICS, METRICS)
    except (OSError, WALError):
        directory.unlink(NEW_METRICS)  # on a full disk it would be in the way of what makes room
        raise
