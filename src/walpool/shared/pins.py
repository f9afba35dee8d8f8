"""Pins: a reader's request to keep what it has not read yet (`WALReader(pin=True)`); this is what pins.lock is for.

A pin is a shared lock on the byte of pins.lock whose number is the first LSN of the segment being read; everything from
there on is kept. The kernel drops it when its reader dies. Retention overrides pins beyond a cap, so that a forgotten
reader cannot fill the disk.

Holds: nothing is ever written to the file, so whoever may read the log may pin.
"""

from collections.abc import Callable

from walpool.format.names import MAX_LSN, PINS_LOCK
from walpool.system.files import READ, Directory
from walpool.system.locks import ByteLocks


class Pin:
    """One reader's pin; it moves forward with the reader."""

    def __init__(self, directory: Directory) -> None:
        """Raises FileNotFoundError where the log has no pins.lock: a copy, which nobody prunes."""
        self._file = directory.open(PINS_LOCK, READ)
        self._locks = ByteLocks(self._file)
        self._at = 0

    def move(self, first_lsn: int) -> None:
        if first_lsn != self._at:
            self._locks.share(first_lsn)  # the new one first: there is no moment without a pin
            if self._at:
                self._locks.release(self._at)
            self._at = first_lsn

    def close(self) -> None:
        self._file.close()


def pin_from(directory: Directory, segments: Callable[[], list[int]], lsn: int) -> Pin | None:
    """A pin on the segment that has `lsn`; None where the log has no pins.lock."""
    try:
        pin = Pin(directory)
    except FileNotFoundError:
        return None
    there = segments()
    pin.move(max((first for first in there if first <= lsn), default=there[0]))
    return pin


def all_pins(directory: Directory) -> list[int]:
    """The first LSNs that readers still want, each once."""
    try:
        file = directory.open(PINS_LOCK)
    except FileNotFoundError:
        return []
    with file:
        return list(ByteLocks(file).held_by_others(MAX_LSN))


def oldest_pin(directory: Directory) -> int:
    """The first LSN that some reader still wants, or MAX_LSN."""
    return min(all_pins(directory), default=MAX_LSN)
