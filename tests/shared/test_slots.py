"""Writer slots: the kernel says which writers live."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from walpool import UnsafeLog
from walpool.shared import slots
from walpool.shared.control import (
    COMMIT,
    INTENT,
    INTENT_SLOT_BITS,
    LOCKS,
    SLOT_PIDS,
    Control,
    LogState,
    Totals,
    create_control,
)
from walpool.shared.slots import Owner, Slot, alive, owner_of
from walpool.system import processes
from walpool.system.files import READ, WRITE, Directory, File


@pytest.fixture
def directory(log: Path) -> Iterator[Directory]:
    log.mkdir()
    for name in LOCKS:
        (log / name).touch()
    opened = Directory(log)
    create_control(opened, LogState(*range(len(LogState._fields))), 0, Totals(), 0o600)
    yield opened
    opened.close()


@pytest.fixture
def control(directory: Directory) -> Iterator[Control]:
    attached = Control.attach(directory, writable=True)
    yield attached
    attached.close()


def another(directory: Directory) -> File:
    return directory.open("slots.lock", WRITE)


def test_slots_are_given_from_zero_and_freed_when_the_file_is_closed(directory: Directory, control: Control) -> None:
    files = [another(directory) for _ in range(4)]
    assert [Slot(file, control).number for file in files] == [0, 1, 2, 3]
    looking = directory.open("slots.lock", READ)
    assert list(alive(looking)) == [0, 1, 2, 3]
    files[1].close()
    assert list(alive(looking)) == [0, 2, 3]
    with_hole = another(directory)
    assert Slot(with_hole, control).number == 1
    for file in (*files, with_hole):
        file.close()
    assert list(alive(looking)) == []
    looking.close()


def test_a_writer_does_not_count_itself_among_the_others(directory: Directory, control: Control) -> None:
    mine, other = another(directory), another(directory)
    Slot(mine, control)
    assert list(alive(mine)) == []
    Slot(other, control)
    assert list(alive(mine)) == [1]
    assert list(alive(other)) == [0]
    mine.close()
    other.close()


def test_looking_takes_no_slot(directory: Directory, control: Control) -> None:
    looking = directory.open("slots.lock", READ)
    for _ in range(3):
        assert list(alive(looking)) == []
    file = another(directory)
    assert Slot(file, control).number == 0
    file.close()
    looking.close()


def test_many_living_slots_are_all_seen(directory: Directory, control: Control) -> None:
    """The kernel names some lock of a range, not the lowest."""
    files = [another(directory) for _ in range(40)]
    numbers = [Slot(file, control).number for file in files]
    for at in (0, 1, 7, 20, 38):
        files[at].close()
        numbers[at] = -1
    looking = directory.open("slots.lock", READ)
    assert list(alive(looking)) == [number for number in numbers if number >= 0]
    for file in (*files, looking):
        file.close()


def test_a_slot_says_whose_it_is(directory: Directory, control: Control) -> None:
    file = another(directory)
    slot = Slot(file, control)
    assert owner_of(control, slot.number).pid == processes.pid()
    assert owner_of(control, slot.number) == Owner.of(processes.pid(), processes.pid_namespace())
    assert owner_of(control, slot.number).is_of(processes.pid_namespace())
    assert owner_of(control, 60_000).pid == 0, "beyond the rows of the block nobody knows"
    file.close()


@pytest.mark.parametrize(
    ("namespace", "text"),
    [
        (lambda: processes.pid_namespace() ^ 1, "slot 0, a process of another pid namespace (pid 1 there), is in"),
        (lambda: 0, "slot 0, a process of an unknown pid namespace (pid 1 there), is in"),
        (processes.pid_namespace, f"slot 0, process 1 {processes.describe(1)}, is in"),
    ],
    ids=["another", "unknown", "ours"],
)
def test_a_process_of_another_pid_namespace_is_not_taken_for_one_of_ours(
    directory: Directory, control: Control, namespace: Callable[[], int], text: str
) -> None:
    """Each container has a process 1; the one that we would name is innocent."""
    control.words[SLOT_PIDS] = 1 | (namespace() & 0xFFFFFFFF) << 32
    control.words[INTENT] = control.words[COMMIT] + 1
    assert text in slots.appending(control)


def test_a_slot_beyond_the_words_names_no_process(directory: Directory, control: Control) -> None:
    control.words[INTENT] = control.words[COMMIT] + 1 | 2000 << INTENT_SLOT_BITS
    assert slots.appending(control) == "; slot 2000, a process that does not say which, is in the middle of an append"


def test_when_all_slots_are_taken_the_next_writer_is_refused(
    directory: Directory, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "MAX_SLOTS", 2)
    files = [another(directory) for _ in range(3)]
    Slot(files[0], control)
    Slot(files[1], control)
    with pytest.raises(UnsafeLog, match="all 2 writer slots"):
        Slot(files[2], control)
    for file in files:
        file.close()
