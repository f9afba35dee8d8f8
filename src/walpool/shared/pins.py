"""Pins: a reader's request to keep what it has not read yet (`WALReader(pin=True)`); this is what pins.lock is for.

A pin is a shared lock on the byte of pins.lock whose number is the first LSN of the segment being read; everything from
there on is kept. The kernel drops it when its reader dies. Retention overrides pins beyond a cap, so that a forgotten
reader cannot fill the disk.

Holds: nothing is ever written to the file, so whoever may read the log may pin. Whoever removes a segment has its byte
alone meanwhile, and whoever pins looks afterwards whether the segment is still there: so no pin comes too late unseen.
"""

from collections.abc import Callable

from walpool.errors import UnsafeLog
from walpool.format.names import MAX_LSN, PINS_LOCK
from walpool.system.files import READ, WRITE, Directory
from walpool.system.locks import ByteLocks


class Pin:
    """One reader's pin; it moves forward with the reader."""

    def __init__(self, directory: Directory) -> None:
        """Raises FileNotFoundError where the log has no pins.lock: a copy, which nobody prunes."""
        self._file = directory.open(PINS_LOCK, READ)
        self._locks = ByteLocks(self._file)
        self.at = 0  # the segment's first LSN; 0: nowhere

    def begin(self, segments: Callable[[], list[int]], start: int) -> None:
        """Hold the segment that has LSN `start`, or the first behind it that is not being removed: it stays."""
        while there := segments():
            at = max((at for at, first in enumerate(there) if first <= start), default=0)
            for first_lsn in there[at:]:
                if self.move(first_lsn) and first_lsn in segments():
                    return
            if segments() == there:  # and nobody removes the last
                raise UnsafeLog(self._file.path, "refused: the system does not let us lock a byte of it")

    def move(self, first_lsn: int) -> bool:
        """False while that segment is being removed, whoever pins it: then the pin stays where it is."""
        if first_lsn != self.at:
            if not self._locks.share(first_lsn):  # the new one first: there is no moment without a pin
                return False
            if self.at:
                self._locks.release(self.at)
            self.at = first_lsn
        return True

    def close(self) -> None:
        self._file.close()


class Removal:
    """Of segments: it keeps readers from pinning them, until it is closed."""

    def __init__(self, directory: Directory) -> None:
        try:
            self._locks: ByteLocks | None = None
            self._file = directory.open(PINS_LOCK, WRITE)
            self._locks = ByteLocks(self._file)
        except FileNotFoundError:
            pass  # then nobody can pin

    def shut_out(self, first_lsn: int) -> bool:
        """Whether nobody has that segment pinned: from now on nobody can."""
        return self._locks is None or self._locks.try_hold(first_lsn)

    def close(self) -> None:
        if self._locks is not None:
            self._file.close()


def all_pins(directory: Directory) -> list[int]:
    """The first LSNs that readers still want, each once."""
    try:
        file = directory.open(PINS_LOCK)
    except FileNotFoundError:
        return []
    with file:
        return list(ByteLocks(file).held_by_others(MAX_LSN, shared=True))


def oldest_pin(directory: Directory) -> int:
    """The first LSN that some reader still wants, or MAX_LSN."""
    return min(all_pins(directory), default=MAX_LSN)
