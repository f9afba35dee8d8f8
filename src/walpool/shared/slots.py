"""Writer slots: which writers are alive. The owner of slot n holds a lock on byte n of slots.lock as long as it lives.

Holds: the kernel frees the byte at the moment its holder dies; process ids are only told to people, and as ours only
when they are of our pid namespace: two containers may share a log, and each has a process 1.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from walpool.errors import UnsafeLog, WALError
from walpool.format.frame import MAX_SLOTS
from walpool.shared.control import COMMIT, LEADING, NOBODY, SLOT_PIDS, SLOT_ROWS, Control
from walpool.shared.slot_rows import read_rows
from walpool.system import processes
from walpool.system.files import Directory, File
from walpool.system.locks import ByteLocks

_LOW = (1 << 32) - 1


class Slot:
    """This writer's slot, held from construction until `close` of the file."""

    def __init__(self, file: File, control: Control) -> None:
        locks = ByteLocks(file)
        for number in range(MAX_SLOTS):
            if locks.try_hold(number):
                break
        else:
            raise UnsafeLog(file.path, f"all {MAX_SLOTS} writer slots are taken: close some writers")
        self.number = number
        if number < SLOT_ROWS:
            namespace = processes.pid_namespace() & _LOW
            control.words[SLOT_PIDS + number] = processes.pid() & _LOW | namespace << 32


class Owner(NamedTuple):
    """What a slot's writer stated of itself; 0 is unknown."""

    pid: int
    namespace: int  # the low 32 bits

    @classmethod
    def of(cls, pid: int, namespace: int) -> "Owner":
        return cls(pid, namespace & _LOW)

    def is_of(self, namespace: int) -> bool:
        """Whether the process id is one of that pid namespace."""
        return self.namespace == namespace & _LOW

    def has(self, pid: int, namespace: int) -> bool:
        """Whether this is, as far as it says, the process with that id in that namespace."""
        return self.pid == pid and (not self.namespace or self.is_of(namespace))

    def __str__(self) -> str:
        ours = processes.pid_namespace()
        if not self.pid:
            return "a process that does not say which"
        if self.is_of(ours):
            return f"process {self.pid} {processes.describe(self.pid)}".rstrip()
        which = "another" if self.namespace and ours else "an unknown"
        return f"a process of {which} pid namespace (pid {self.pid} there)"


def alive(file: File) -> Iterator[int]:
    """Slots whose writers live, other than those held through this very `file`."""
    return ByteLocks(file).held_by_others(MAX_SLOTS)


def any_alive(file: File) -> bool:
    """Whether there is such a slot: slot 0 is one, too."""
    return next(alive(file), None) is not None


def owner_of(control: Control, slot: int) -> Owner:
    word = control.words[SLOT_PIDS + slot] if slot < SLOT_ROWS else 0
    return Owner(word & _LOW, word >> 32)


def holders(directory: Directory, held: Iterable[int]) -> str:
    """For people, of whoever finds slots held: the writers in them, as far as their rows say who they are."""
    try:
        rows = {row.slot: row for row in read_rows(directory)}
    except WALError:
        rows = {}
    found = [(slot, rows.get(slot)) for slot in held]
    who = [str(Owner.of(row.pid, row.pid_namespace)) if row is not None else "unknown" for _, row in found]
    return f"the writers in slots {', '.join(str(slot) for slot, _ in found)} ({', '.join(who)})"


def appending(control: Control) -> str:
    """For people, of whoever waits for the append lock: which writer has it, or an empty string when none says so."""
    slot = control.appending_slot(control.words[COMMIT])
    if slot is None or slot == NOBODY:
        return ""
    return f"; slot {slot}, {owner_of(control, slot)}, is in the middle of an append"


def leading(control: Control) -> str:
    """The same of whoever waits for a sync: which writer leads one."""
    slot = control.words[LEADING] - 1
    return f"; slot {slot}, {owner_of(control, slot)}, is at it" if slot >= 0 else ""
