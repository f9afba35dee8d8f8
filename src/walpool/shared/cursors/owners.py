"""Owners: who has a cursor open. This is what cursors.lock is for: a cursor's name stands for some bytes of it.

The first of them is held by whoever has the cursor; the one behind it with the number of the owner's writer slot says
who that is. The kernel drops both when the owner dies, however.

Holds: nothing is ever written to the file. Which bytes a name stands for follows from the name alone, so nobody has to
agree on it; that two names stand for the same has a chance of one in 2**45.
"""

import hashlib
import threading
from weakref import ref

from walpool.errors import LogBusy, UnsafeLog
from walpool.format.frame import MAX_SLOTS
from walpool.format.names import CURSORS_LOCK
from walpool.shared.control import Control, ControlUnusable
from walpool.shared.slots import owner_of
from walpool.system import clock
from walpool.system.files import Directory, File
from walpool.system.locks import ByteLocks, lock_mode

_REGION = 1 << 17  # bytes of a name
_HASH_BITS = 45
assert MAX_SLOTS < _REGION and _REGION << _HASH_BITS < 1 << 63
POLL_S = 0.01  # between two tries of who waits

_open: dict[tuple[tuple[int, int], str], tuple["ref[Owners]", int]] = {}  # by file and name; and by which thread


def _first_byte(name: str) -> int:
    digest = hashlib.sha256(name.encode()).digest()
    return (int.from_bytes(digest[:8], "little") & ((1 << _HASH_BITS) - 1)) * _REGION


class Owners:
    """What one process, or one object of it, has open; closing it gives all back."""

    def __init__(self, directory: Directory) -> None:
        self.file = directory.open_or_create(CURSORS_LOCK, lock_mode(directory.mode_of_files()))
        self._locks = ByteLocks(self.file)
        self._names: set[str] = set()

    def try_take(self, name: str) -> bool:
        if not self._locks.try_hold(_first_byte(name)):
            return False
        self._names.add(name)
        _open[self.file.place, name] = ref(self), threading.get_ident()
        return True

    def take(self, directory: Directory, name: str, timeout_s: float | None) -> None:
        """Wait until nobody has it. Raises LogBusy with who does."""
        deadline = None if timeout_s is None else clock.monotonic() + timeout_s
        while not self.try_take(name):
            owner, thread = _open.get((self.file.place, name), (None, 0))
            if owner is not None and owner() is not None and thread == threading.get_ident():
                raise LogBusy(
                    f"{directory.path}: this thread has cursor {name!r} open already, and would wait for itself"
                )
            if deadline is not None and clock.monotonic() >= deadline:
                who = who_has(directory, name)
                raise LogBusy(f"{directory.path}: cursor {name!r} was not free for {timeout_s} s: {who} has it")
            clock.sleep(POLL_S)

    def say_who(self, name: str, slot: int) -> None:
        self._locks.try_hold(_first_byte(name) + 1 + slot)

    def give_back(self, name: str) -> None:
        """With all that says who has it."""
        self._names.discard(name)
        _open.pop((self.file.place, name), None)
        self._locks.release(_first_byte(name), _REGION)

    def is_taken(self, name: str) -> bool:
        """By others."""
        return _owner_slot(self._locks, name) is not None

    def close(self) -> None:
        for name in self._names:
            _open.pop((self.file.place, name), None)
        self.file.close()


def _owner_slot(locks: ByteLocks, name: str) -> int | None:
    """The slot of who has it, -1 when that does not say, None when nobody has."""
    first = _first_byte(name)
    held = list(locks.held_by_others(first + _REGION, first=first))
    if not held or held[0] != first:
        return None
    return held[1] - first - 1 if len(held) > 1 else -1


def open_locks(directory: Directory) -> File | None:
    """To look who has what; None where nobody has, or we may not look."""
    try:
        return directory.open(CURSORS_LOCK)
    except (FileNotFoundError, UnsafeLog):
        return None


def owner_slots(directory: Directory, names: list[str]) -> dict[str, int]:
    """Of the names that somebody has, the writer slot of who does; -1 where that is not known."""
    file = open_locks(directory) if names else None
    if file is None:
        return {}
    with file:
        found = {name: _owner_slot(ByteLocks(file), name) for name in names}
    return {name: slot for name, slot in found.items() if slot is not None}


def who_has(directory: Directory, name: str) -> str:
    """For people."""
    slot = owner_slots(directory, [name]).get(name, -1)
    try:
        control = Control.attach(directory, writable=False)
    except (ControlUnusable, UnsafeLog):
        return "another process"
    try:
        return "another process" if slot < 0 else str(owner_of(control, slot))
    finally:
        control.close()
