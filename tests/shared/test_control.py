"""The control block: what is published at once, who may believe it, and what is carried into the next one."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from tests.read.logs import fill
from tests.support import open_under
from walpool import LogFull, UnsafeLog, WALWriter
from walpool.shared import control as control_module
from walpool.shared.control import (
    COMMIT,
    CONTROL_BYTES,
    COPIES,
    DURABLE,
    INTENT,
    LOCKS,
    SLOT_PIDS,
    SLOT_ROWS,
    STATE,
    STOP,
    SYNC_NS,
    SYNCS,
    Control,
    ControlUnusable,
    LogState,
    Totals,
    create_control,
    last_totals,
    leftover,
    retire_existing,
)
from walpool.system import processes
from walpool.system.calls import calls
from walpool.system.files import Directory

WORD = 8


def state(number: int) -> LogState:
    """States of which no two share a field."""
    return LogState(*(number * 1000 + at for at in range(len(LogState._fields))))


@pytest.fixture
def directory(log: Path) -> Iterator[Directory]:
    log.mkdir()
    for name in LOCKS:
        (log / name).touch()
    opened = Directory(log)
    yield opened
    opened.close()


@pytest.fixture
def control(directory: Directory) -> Iterator[Control]:
    create_control(directory, state(0), 7, Totals(), 0o600)
    attached = Control.attach(directory, writable=True)
    yield attached
    attached.close()


# State


def test_a_new_block_has_the_state_that_it_was_made_with(control: Control) -> None:
    assert control.state() == state(0)
    assert control.durable_lsn == 7
    assert control.words[COMMIT] == 0
    assert control.words[STOP] == 0


def test_each_published_state_is_in_force_and_the_one_before_stays_in_the_other_copy(control: Control) -> None:
    for number in range(1, 8):
        control.publish(state(number))
        assert control.state() == state(number)
        assert control.words[COMMIT] == number
        other = LogState._make(STATE.unpack_from(control.bytes, COPIES[~number & 1]))
        assert other == state(number - 1)


def test_a_state_that_is_filled_but_not_published_does_not_count(control: Control) -> None:
    """A process killed before its last store changed nothing."""
    control.publish(state(1))
    for number in (2, 3):
        STATE.pack_into(control.bytes, COPIES[~control.words[COMMIT] & 1], *state(number))
        assert control.state() == state(1)
    control.publish(state(4))
    assert control.state() == state(4)


def test_every_mapping_sees_a_published_state_at_once(directory: Directory, control: Control) -> None:
    other = Control.attach(directory, writable=False)
    control.publish(state(5))
    control.words[DURABLE] = 99
    assert other.state() == state(5)
    assert other.durable_lsn == 99
    other.close()


def test_a_state_that_moves_while_it_is_read_is_read_again(control: Control) -> None:
    """The reader's first copy is spoilt half-way by two publications; it must not hand out the mixture."""
    control.publish(state(1))
    real = control.words
    loads = 0

    class MovingWords:
        def __getitem__(self, at: int) -> int:
            nonlocal loads
            loads += 1
            if loads == 2:  # the state was copied; now its copy is written over and the commit word moves
                control.words = real
                control.publish(state(2))
                control.publish(state(3))
                control.words = self  # type: ignore[assignment]
            return real[at]

    control.words = MovingWords()  # type: ignore[assignment]
    found = control.state()
    control.words = real
    assert found == state(3)
    assert loads == 4


def test_a_reader_beside_a_publisher_never_sees_a_mixture(directory: Directory, control: Control) -> None:
    reader = Control.attach(directory, writable=False)
    stop = threading.Event()
    mixtures: list[LogState] = []

    def look() -> None:
        last = 0
        while not stop.is_set():
            found = reader.state()
            number = found.segment // 1000
            if found != state(number) or number < last:
                mixtures.append(found)
            last = number

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(1, 20_000):
        control.publish(state(number))
    stop.set()
    thread.join()
    reader.close()
    assert mixtures == []


def test_a_read_only_mapping_cannot_be_written(directory: Directory, control: Control) -> None:
    reader = Control.attach(directory, writable=False)
    with pytest.raises(TypeError):
        reader.words[DURABLE] = 1
    reader.close()


def test_the_layout_has_room_for_every_field() -> None:
    assert STATE.size == len(LogState._fields) * WORD
    a, b = COPIES
    assert a + STATE.size <= b
    assert b + STATE.size <= SLOT_PIDS * WORD
    assert CONTROL_BYTES == (SLOT_PIDS + SLOT_ROWS) * WORD
    taken = [COMMIT, INTENT, DURABLE, SYNCS, SYNC_NS, STOP]
    assert len(set(taken)) == len(taken)
    assert all(at * WORD < a for at in taken)
    for at in (*taken, SLOT_PIDS):
        assert at * WORD % 8 == 0


def test_the_table_in_the_docstring_has_every_word_that_has_a_name() -> None:
    table = control_module.__doc__ or ""
    for at in (STOP, COMMIT, INTENT, DURABLE, SYNCS, SYNC_NS):
        assert f"\n{at:>8}  " in table
    assert f"{COPIES[0] // WORD:>5}-{COPIES[0] // WORD + len(LogState._fields) - 1}" in table


# Who may believe it


def sealed(block: bytearray) -> bytearray:
    """With an identity checksum that fits."""
    block[7 * WORD : 8 * WORD] = crc32c(bytes(block[8 * WORD : 13 * WORD]), crc32c(bytes(block[: 6 * WORD]))).to_bytes(
        WORD, "little"
    )
    return block


def changed(block: bytes, word: int, *, sealed_again: bool) -> bytearray:
    data = bytearray(block)
    data[word * WORD] ^= 1
    return sealed(data) if sealed_again else data


def rewrite(directory: Directory, block: bytes) -> None:
    with Path(directory.join("control")).open("r+b") as file:
        file.truncate(len(block))
        file.write(block)


@pytest.mark.parametrize("word", range(13))
@pytest.mark.parametrize("sealed_again", [False, True])
def test_any_change_of_the_identity_makes_the_block_unusable(
    directory: Directory, control: Control, word: int, sealed_again: bool
) -> None:
    control.close()
    block = Path(directory.join("control")).read_bytes()
    rewrite(directory, changed(block, word, sealed_again=sealed_again))
    # With the checksum mended, the random generation and the lock files' inodes may differ: nothing here knows them.
    believed = sealed_again and (word in (5, 7) or word >= 10)
    for writable in (False, True):
        if believed:
            Control.attach(directory, writable=writable).close()
        else:
            with pytest.raises(ControlUnusable):
                Control.attach(directory, writable=writable)


@pytest.mark.parametrize("size", [0, 1, 4096, CONTROL_BYTES - 1, CONTROL_BYTES + 1])
def test_a_block_of_another_size_is_not_even_mapped(
    directory: Directory, control: Control, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.close()
    block = Path(directory.join("control")).read_bytes()
    rewrite(directory, (block + b"\0")[:size])

    def forbidden(*args: Any, **named: Any) -> Any:
        raise AssertionError("a touch past the end of the file would be SIGBUS")

    monkeypatch.setattr(calls, "mmap", forbidden)
    with pytest.raises(ControlUnusable, match=f"{size} bytes"):
        Control.attach(directory, writable=True)


def test_a_missing_block_is_unusable(directory: Directory) -> None:
    with pytest.raises(ControlUnusable, match="no control block"):
        Control.attach(directory, writable=True)


def test_a_copied_block_does_not_pass_for_the_original(directory: Directory, control: Control, tmp_path: Path) -> None:
    shutil.copytree(directory.path, tmp_path / "copy")
    copy = Directory(tmp_path / "copy")
    with pytest.raises(ControlUnusable, match="copy"):
        Control.attach(copy, writable=False)
    copy.close()


def test_a_block_of_another_boot_is_unusable(
    directory: Directory, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    high, low = processes.boot_id()
    for other in ((high + 1, low), (high, low - 1), (low, high)):
        monkeypatch.setattr(processes, "boot_id", lambda other=other: other)
        with pytest.raises(ControlUnusable, match="boot"):
            Control.attach(directory, writable=False)


@pytest.mark.parametrize("plant", ["symlink", "hard link", "fifo"])
def test_a_block_that_is_not_a_plain_file_is_refused(
    directory: Directory, control: Control, tmp_path: Path, plant: str
) -> None:
    import os

    place = Path(directory.join("control"))
    place.rename(tmp_path / "elsewhere")
    actions: dict[str, Callable[[], object]] = {
        "symlink": lambda: place.symlink_to(tmp_path / "elsewhere"),
        "hard link": lambda: place.hardlink_to(tmp_path / "elsewhere"),
        "fifo": lambda: os.mkfifo(place),
    }
    actions[plant]()
    with pytest.raises(UnsafeLog):
        Control.attach(directory, writable=True)


def test_a_failed_attach_gives_its_descriptor_back(directory: Directory, control: Control) -> None:
    control.close()
    block = Path(directory.join("control")).read_bytes()
    before = open_under(Path(directory.path))
    for spoilt in (b"", bytes(CONTROL_BYTES), changed(block, 3, sealed_again=True)):
        rewrite(directory, spoilt)
        for _ in range(5):
            with pytest.raises(ControlUnusable):
                Control.attach(directory, writable=True)
    assert open_under(Path(directory.path)) == before


# Replacing it


def test_a_replaced_block_tells_whoever_still_maps_it(directory: Directory, control: Control) -> None:
    assert control.words[STOP] == 0
    create_control(directory, state(9), 8, Totals(), 0o600)
    assert control.words[STOP] == control_module.RETIRED
    fresh = Control.attach(directory, writable=False)
    assert fresh.state() == state(9)
    assert fresh.words[STOP] == 0
    assert fresh.file.stat.st_ino != control.file.stat.st_ino
    fresh.close()


def test_a_retired_block_is_not_attached_to(directory: Directory, control: Control) -> None:
    control.halves[control_module.STOPPED] = control_module.RETIRED
    with pytest.raises(ControlUnusable, match="replaced"):
        Control.attach(directory, writable=False)


def test_no_other_byte_is_touched_when_a_block_is_retired(directory: Directory, control: Control) -> None:
    before = Path(directory.join("control")).read_bytes()
    retire_existing(directory)
    after = Path(directory.join("control")).read_bytes()
    assert [at for at in range(CONTROL_BYTES) if before[at] != after[at]] == [STOP * WORD]


@pytest.mark.parametrize("size", [0, 5, CONTROL_BYTES - 1, CONTROL_BYTES + 8])
def test_a_file_too_odd_to_be_marked_is_replaced_all_the_same(directory: Directory, size: int) -> None:
    Path(directory.join("control")).write_bytes(b"x" * size)
    create_control(directory, state(1), 0, Totals(), 0o600)
    fresh = Control.attach(directory, writable=False)
    assert fresh.state() == state(1)
    fresh.close()


def test_a_block_is_in_place_whole_or_not_at_all(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full while it is written: the old one stays, and no temporary file does."""
    create_control(directory, state(1), 0, Totals(), 0o600)

    def full(*args: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(calls, "pwrite", full)
        with pytest.raises(LogFull):
            create_control(directory, state(2), 0, Totals(), 0o600)
    still = Control.attach(directory, writable=False)
    assert still.state() == state(1)
    still.close()
    assert not [name for name in directory.names() if leftover(name)]


def test_a_block_is_real_blocks_and_not_a_hole(directory: Directory, control: Control) -> None:
    """A store into a hole on a full disk is SIGBUS."""
    assert Path(directory.join("control")).stat().st_blocks * 512 >= CONTROL_BYTES


def test_leftovers_are_recognised_by_their_name() -> None:
    assert leftover("control.0123456789abcdef.tmp")
    for name in ("control", "control.tmp.bak", "checkpoint.tmp", "00000000000000000001.wal"):
        assert not leftover(name)


# Totals


def test_totals_are_read_from_a_block_that_is_void_in_all_else(
    directory: Directory, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.publish(state(3))
    control.words[SYNCS], control.words[SYNC_NS] = 11, 12
    control.halves[control_module.STOPPED] = control_module.RETIRED
    monkeypatch.setattr(processes, "boot_id", lambda: (1, 2))
    wanted = Totals(state(3).next_lsn, state(3).batches, state(3).max_entry_bytes, 11, 12, state(3).bytes)
    assert last_totals(directory) == wanted
    create_control(directory, state(4), 0, last_totals(directory), 0o600)
    fresh = Control.attach(directory, writable=False)
    assert (fresh.words[SYNCS], fresh.words[SYNC_NS]) == (11, 12)
    fresh.close()


def test_there_are_no_totals_in_a_block_that_is_damaged_foreign_or_gone(directory: Directory, control: Control) -> None:
    place = Path(directory.join("control"))
    block = place.read_bytes()
    for spoilt in (b"", block[:-1], bytes(CONTROL_BYTES), changed(block, 1, sealed_again=True),
                   changed(block, 4, sealed_again=False)):  # fmt: skip
        place.write_bytes(spoilt)
        assert last_totals(directory) == Totals()
    place.unlink()
    assert last_totals(directory) == Totals()
    place.symlink_to("elsewhere")
    assert last_totals(directory) == Totals()


def test_the_words_of_a_live_log_are_what_the_writer_did(log: Path) -> None:
    with WALWriter(log, size_limit=400) as writer:
        fill(writer, 10)
        writer.sync()
        fill(writer, 3)
        directory = Directory(log)
        attached = Control.attach(directory, writable=False)
        found = attached.state()
        assert found.next_lsn == 14
        assert found.entries == 13
        assert found.tail == writer.size
        assert 10 <= attached.durable_lsn <= 13
        assert attached.words[INTENT] <= attached.words[COMMIT]
        for name in LOCKS:
            assert attached.lock_inode(name) == (log / name).stat().st_ino
        attached.close()
        directory.close()
