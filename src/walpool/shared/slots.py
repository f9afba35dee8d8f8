"""Writer slots: which writers are alive. The owner of slot n holds a lock on byte n of slots.lock as long as it lives.

Holds: the kernel frees the byte at the moment its holder dies; process ids are only told to people.
"""

from collections.abc import Iterator

from walpool.errors import UnsafeLog
from walpool.shared.control import COMMIT, LEADING, SLOT_PIDS, SLOT_ROWS, Control
from walpool.system import processes
from walpool.system.files import File
from walpool.system.locks import ByteLocks

MAX_SLOTS = 1 << 16  # a frame says its writer's slot in 16 bits


class Slot:
    """This writer's slot, held from construction until `close` of the file."""

    def __init__(self, file: File, control: Control) -> None:
        locks = ByteLocks(file)
        for number in range(MAX_SLOTS):
            if locks.try_hold(number):
                break
        else:
            raise UnsafeLog(file.path, f"all {MAX_SLOTS} writer slots are taken")
        self.number = number
        if number < SLOT_ROWS:
            control.words[SLOT_PIDS + number] = processes.pid()


def alive(file: File) -> Iterator[int]:
    """Slots whose writers live, other than those held through this very `file`."""
    return ByteLocks(file).held_by_others(MAX_SLOTS)


def any_alive(file: File) -> bool:
    """Whether there is such a slot: slot 0 is one, too."""
    return next(alive(file), None) is not None


def pid_of(control: Control, slot: int) -> int:
    """The process id that slot's writer stated, 0 when unknown."""
    return control.words[SLOT_PIDS + slot] if slot < SLOT_ROWS else 0


def appending(control: Control) -> str:
    """For people, of whoever waits for the append lock: which writer has it, or an empty string when none says so."""
    slot = control.appending_slot(control.words[COMMIT])
    if slot is None:
        return ""
    pid = pid_of(control, slot)
    return f"; slot {slot}, process {pid} {processes.describe(pid)}".rstrip() + ", is in the middle of an append"


def leading(control: Control) -> str:
    """The same of whoever waits for a sync: which writer leads one."""
    slot = control.words[LEADING] - 1
    if slot < 0:
        return ""
    pid = pid_of(control, slot)
    return f"; slot {slot}, process {pid} {processes.describe(pid)}".rstrip() + ", is at it"
