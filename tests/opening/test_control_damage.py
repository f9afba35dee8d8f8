"""A control block that is damaged, old, foreign or gone: the log opens with every acknowledged entry, or says why not.

The block is a cache: whatever is in it, no entry is lost, doubled or invented, and removing the file always helps.
"""

import itertools
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.read.logs import entries, entry_of, fill, read, segment_files
from walpool import UnsafeLog, WALError, WALMetrics, WALWriter
from walpool.opening import opening
from walpool.shared.control import (
    COMMIT,
    CONTROL_BYTES,
    COPIES,
    INTENT,
    LAST_SYNC_NS,
    LEADING,
    STATE,
    STOP,
    LogState,
)
from walpool.system import processes
from walpool.system.calls import calls

COUNT = 14
WORD = 8


@pytest.fixture
def tmp_path(memory: Path) -> Path:
    """What is done to a log's bytes needs no disk, and here hundreds of logs are made and synced."""
    return memory


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is about the disk, so nothing waits for it; and no word of the block may make anyone sleep long."""
    really_sleep = calls.sleep

    def sleep(seconds: float) -> None:
        assert seconds < 1, f"a damaged word makes a writer sleep for {seconds} s"
        really_sleep(seconds)

    monkeypatch.setattr(calls, "sleep", sleep)
    monkeypatch.setattr(calls, "fdatasync", lambda fd: None)
    monkeypatch.setattr(calls, "fsync", lambda fd: None)


def make(log: Path, count: int = COUNT) -> None:
    """Several segments, some of them synced, and an odd commit word or an even one, whichever `count` gives."""
    with WALWriter(log, size_limit=400) as writer:
        fill(writer, count // 2)
        writer.sync()
        fill(writer, count - count // 2)


def control(log: Path) -> bytearray:
    return bytearray((log / "control").read_bytes())


def put_back(log: Path, block: bytes) -> None:
    """In place: the file keeps its inode."""
    with (log / "control").open("r+b") as file:
        file.truncate(len(block))
        file.write(block)


def assert_nothing_lost(log: Path, what: str, count: int = COUNT) -> None:
    """Every acknowledged entry is there after the next opening; the next append comes behind them."""
    acknowledged = entries(1, count + 1)
    before = read(log)  # a reader may believe less than there is, but never something else
    assert before.entries == acknowledged[: len(before.entries)], what
    try:
        with WALWriter(log, size_limit=400) as writer:
            assert writer.append(entry_of(count + 1)) == count + 1, what
            assert writer.sync() == count + 1, what
        added = 1
    except WALError:
        (log / "control").unlink()  # refused: then the segments alone must do
        added = 0
    found = read(log)
    assert (found.entries, found.error) == (entries(1, count + 1 + added), None), what
    with WALWriter(log, size_limit=400) as writer:
        fill(writer, 3)
        writer.sync()
    found = read(log)
    assert (found.entries, found.error) == (entries(1, count + 4 + added), None), what


def assert_each_loses_nothing(
    place: Path, cases: Iterable[tuple[str, Callable[[bytearray], None]]], count: int
) -> None:
    """A fresh log for every case; all that fail are told."""
    failed = []
    for number, (what, change) in enumerate(cases):
        log = place / str(number)
        make(log, count)
        block = control(log)
        change(block)
        put_back(log, block)
        try:
            assert_nothing_lost(log, what, count)
        except Exception as error:
            failed.append(f"{what}: {type(error).__name__} {str(error)[:100]}")
        shutil.rmtree(log)
    assert not failed, "\n".join(failed)


def flipping(at: int, mask: int) -> Callable[[bytearray], None]:
    def change(block: bytearray) -> None:
        block[at] ^= mask

    return change


def setting(word: int, value: int) -> Callable[[bytearray], None]:
    def change(block: bytearray) -> None:
        block[word * WORD : (word + 1) * WORD] = value.to_bytes(WORD, "little")

    return change


MUTATIONS: dict[str, Callable[[bytearray], bytes]] = {
    "zeros": lambda block: bytes(len(block)),
    "ones": lambda block: b"\xff" * len(block),
    "empty": lambda block: b"",
    "one byte": lambda block: bytes(block[:1]),
    "one byte short": lambda block: bytes(block[:-1]),
    "cut to a page": lambda block: bytes(block[:4096]),
    "cut in the state": lambda block: bytes(block[: COPIES[1] + 20]),
    "grown by one byte": lambda block: bytes(block) + b"\0",
    "doubled": lambda block: bytes(block) * 2,
    "the first half zero": lambda block: bytes(len(block) // 2) + bytes(block[len(block) // 2 :]),
    "all zero but the identity": lambda block: bytes(block[: 16 * WORD]) + bytes(len(block) - 16 * WORD),
    "no identity": lambda block: bytes(16 * WORD) + bytes(block[16 * WORD :]),
    "both states exchanged": lambda block: _exchanged(block),
}


def _exchanged(block: bytearray) -> bytes:
    a, b = COPIES
    size = STATE.size
    return bytes(block[:a] + block[b : b + size] + block[a + size : b] + block[a : a + size] + block[b + size :])


@pytest.mark.parametrize("count", [COUNT, COUNT + 1])
@pytest.mark.parametrize("mutate", MUTATIONS.values(), ids=MUTATIONS)
def test_a_spoilt_block_loses_nothing(log: Path, mutate: Callable[[bytearray], bytes], count: int) -> None:
    make(log, count)
    put_back(log, mutate(control(log)))
    assert_nothing_lost(log, "", count)


def test_random_blocks_lose_nothing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)

    def anything(block: bytearray) -> None:
        block[:] = chance.randbytes(len(block))

    def all_but_the_identity(block: bytearray) -> None:
        block[16 * WORD :] = chance.randbytes(len(block) - 16 * WORD)

    cases = [(f"block {n}", anything if n % 2 else all_but_the_identity) for n in range(30)]
    assert_each_loses_nothing(tmp_path, cases, COUNT)


WORDS = [*range(13), COMMIT, INTENT, *range(24, 32), *range(32, 43), *range(48, 59), 512]


def test_a_flipped_byte_in_any_word_loses_nothing(tmp_path: Path) -> None:
    cases = [
        (f"byte {at} of word {word} inverted", flipping(word * WORD + at, 0xFF)) for word in WORDS for at in (0, 7)
    ]
    assert_each_loses_nothing(tmp_path, cases, COUNT)


@pytest.mark.parametrize("count", range(COUNT, COUNT + 4))
@pytest.mark.parametrize("word", [STOP, COMMIT, INTENT])
def test_flipped_bits_of_the_words_that_decide_lose_nothing(tmp_path: Path, word: int, count: int) -> None:
    cases = [
        (f"bit {bit} of word {word} flipped", flipping(word * WORD + bit // 8, 1 << bit % 8))
        for bit in (0, 1, 2, 3, 7, 8, 31, 63)
    ]
    assert_each_loses_nothing(tmp_path, cases, count)


@pytest.mark.parametrize("batches", range(1, 9))
def test_a_commit_word_that_is_one_off_loses_nothing(log: Path, batches: int) -> None:
    """Which state copy counts hangs on its last bit; the other copy is the state before the last batch."""
    with WALWriter(log) as writer:
        for lsn in range(1, batches + 1):
            writer.append(entry_of(lsn))
    block = control(log)
    block[COMMIT * WORD] ^= 1
    put_back(log, block)
    assert_nothing_lost(log, "", batches)


@pytest.mark.slow
@pytest.mark.parametrize("field", LogState._fields)
def test_a_commit_word_that_is_one_off_beside_a_wrong_figure_loses_nothing(tmp_path: Path, field: str) -> None:
    """It looks as if a process had been killed before it published; but what that one filled in cannot be so."""

    def spoil(step: int) -> Callable[[bytearray], None]:
        def change(block: bytearray) -> None:
            commit = int.from_bytes(block[COMMIT * WORD : COMMIT * WORD + WORD], "little")
            state = LogState._make(STATE.unpack_from(block, COPIES[commit & 1]))
            figure = max(0, getattr(state, field) + step)
            STATE.pack_into(block, COPIES[commit & 1], *state._replace(**{field: figure}))
            setting(COMMIT, commit - 1)(block)

        return change

    def garble(block: bytearray) -> None:
        commit = int.from_bytes(block[COMMIT * WORD : COMMIT * WORD + WORD], "little")
        block[COPIES[commit & 1] : COPIES[commit & 1] + STATE.size] = bytes(range(STATE.size))
        setting(COMMIT, commit - 1)(block)

    for count in (COUNT, COUNT + 1):
        cases = [(f"{field} is off by {step}", spoil(step)) for step in (1, -1, 48, 1 << 62, -(1 << 62))]
        cases.append(("all of them are", garble))
        (tmp_path / str(count)).mkdir()
        assert_each_loses_nothing(tmp_path / str(count), cases, count)


def test_a_wrong_time_of_the_last_sync_makes_nobody_wait_for_ever(log: Path) -> None:
    make(log)
    block = control(log)
    setting(LEADING, 1)(block)  # as a killed leader leaves it
    setting(LAST_SYNC_NS, 1 << 62)(block)
    put_back(log, block)
    assert_nothing_lost(log, "")


@pytest.mark.slow
@pytest.mark.parametrize("value", [0, 1, 1 << 63, (1 << 64) - 1], ids=hex)
def test_an_extreme_value_in_any_word_loses_nothing(tmp_path: Path, value: int) -> None:
    cases = [(f"word {word} is {value:#x}", setting(word, value)) for word in WORDS[:-1]]
    assert_each_loses_nothing(tmp_path, cases, COUNT)


@pytest.mark.parametrize("value", [0, 1 << 63, (1 << 64) - 1], ids=hex)
def test_extreme_totals_in_a_void_block_lose_nothing(
    tmp_path: Path, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The totals of a block of another boot are carried over: they must not stop the recovery."""
    boots = itertools.count(1)
    monkeypatch.setattr(processes, "boot_id", lambda: (1, boot))

    def of_another_boot(word: int) -> Callable[[bytearray], None]:
        def change(block: bytearray) -> None:
            nonlocal boot
            setting(word, value)(block)
            boot = next(boots)

        return change

    boot = next(boots)
    words = (*range(24, 32), *range(32, 43), *range(48, 59))
    assert_each_loses_nothing(
        tmp_path, [(f"word {word} is {value:#x}", of_another_boot(word)) for word in words], COUNT
    )


@pytest.mark.parametrize("value", [3, 4, 1 << 31, (1 << 32) - 1], ids=hex)
def test_a_stop_word_that_nobody_stores_stops_nobody(log: Path, value: int) -> None:
    make(log)
    block = control(log)
    setting(STOP, value)(block)
    put_back(log, block)
    with WALWriter(log, size_limit=400) as writer:
        fill(writer, 1)
    assert_nothing_lost(log, "", COUNT + 1)


@pytest.mark.parametrize("word", range(24, 59))
def test_a_figure_that_no_log_has_in_a_void_block_stops_no_recovery(log: Path, word: int) -> None:
    make(log)
    block = control(log)
    setting(word, (1 << 64) - 1)(block)
    put_back(log, block)
    (log / "append.lock").rename(log / "aside")  # so that the block is void and its totals are carried over
    with WALWriter(log) as writer:
        assert writer.recovery_report is not None
    assert_nothing_lost(log, "")


# Gone, foreign, old


def test_a_block_that_was_removed_loses_nothing(log: Path) -> None:
    make(log)
    (log / "control").unlink()
    assert_nothing_lost(log, "")


def test_a_block_in_whose_place_a_directory_stands_is_refused(log: Path) -> None:
    make(log)
    (log / "control").unlink()
    (log / "control").mkdir()
    with pytest.raises(UnsafeLog):
        WALWriter(log)
    (log / "control").rmdir()
    assert_nothing_lost(log, "")


@pytest.mark.parametrize("how", ["bytes in place", "copied", "moved"])
@pytest.mark.parametrize("other_count", [COUNT, 3, 60])
def test_another_logs_block_loses_nothing(log: Path, tmp_path: Path, how: str, other_count: int) -> None:
    make(log)
    make(tmp_path / "other", other_count)
    other = tmp_path / "other" / "control"
    if how == "bytes in place":
        put_back(log, other.read_bytes())
    elif how == "copied":
        (log / "control").unlink()
        shutil.copy(other, log / "control")
    else:
        other.rename(log / "control")
    assert_nothing_lost(log, "")


@pytest.mark.parametrize("age", ["one batch", "one rotation", "many"])
def test_an_old_copy_of_the_block_loses_nothing(log: Path, age: str) -> None:
    """As a file-by-file restore of a backup leaves it: same inode, same boot, older content."""
    for old_count in range(1, 9):
        with WALWriter(log, size_limit=400) as writer:
            fill(writer, old_count)
        old = bytes(control(log))
        with WALWriter(log, size_limit=400) as writer:
            if age == "one batch":
                fill(writer, 1)
            elif age == "one rotation":
                writer.rotate()
                fill(writer, 2)
            else:
                fill(writer, 20)
            writer.sync()
            count = writer.metrics.snapshot().next_lsn - 1
        put_back(log, old)
        assert_nothing_lost(log, f"{old_count} entries before the copy was made", count)
        shutil.rmtree(log)


def test_an_old_copy_from_before_a_rotation_without_an_append_loses_nothing(log: Path) -> None:
    make(log)
    old = bytes(control(log))
    with WALWriter(log) as writer:
        writer.rotate()
    put_back(log, old)
    assert_nothing_lost(log, "")


def test_an_old_copy_from_before_the_first_append_loses_nothing(log: Path) -> None:
    with WALWriter(log) as writer:
        old = bytes(control(log))
        fill(writer, COUNT)
    put_back(log, old)
    assert_nothing_lost(log, "")


def test_a_copy_made_before_a_recovery_loses_nothing(log: Path) -> None:
    make(log)
    shutil.copytree(log, log.with_name("backup"))
    (log / "control").unlink()
    with WALWriter(log) as writer:
        fill(writer, 3)
    put_back(log, (log.with_name("backup") / "control").read_bytes())
    assert_nothing_lost(log, "", COUNT + 3)


def test_a_block_of_another_boot_is_rebuilt(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(log)
    boot = processes.boot_id()
    for other in ((boot[0] ^ 1, boot[1]), (boot[0], boot[1] ^ 1), (0, 0)):
        monkeypatch.setattr(processes, "boot_id", lambda other=other: other)
        with WALWriter(log) as writer:
            assert writer.recovery_report is not None
            assert "boot" in writer.recovery_report.reason
            assert writer.metrics.snapshot().durable_lsn == COUNT
        with WALWriter(log) as writer:
            assert writer.recovery_report is None
    assert_nothing_lost(log, "")


# Lock files, and living writers


@pytest.mark.parametrize("name", ["append.lock", "sync.lock", "slots.lock", "maintenance.lock", "pins.lock"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_lock_file_that_was_removed_or_replaced_loses_nothing(log: Path, name: str, how: str) -> None:
    make(log)
    (log / name).rename(log / "aside")  # kept, so that its inode is not given to the new one
    if how == "replaced":
        (log / name).touch(mode=0o600)
    assert_nothing_lost(log, "")


@pytest.mark.parametrize("name", ["control", "append.lock", "slots.lock", "sync.lock"])
def test_no_block_is_rebuilt_under_a_living_writer(log: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who removed a file of a live log gets an error that names the slots; with slots.lock gone, so is the proof."""
    monkeypatch.setattr(opening, "TRANSIENT_S", 0.0)
    make(log)
    with WALWriter(log) as writer:
        writer.append(entry_of(COUNT + 1))
        (log / name).rename(log / "aside")
        if name != "slots.lock":
            with pytest.raises(UnsafeLog, match="slots 0"):
                WALWriter(log)
            with pytest.raises(UnsafeLog):  # and the living one notices at its next look at its files
                for _ in range(3000):
                    writer.put(b"key", b"value")
    found = read(log)
    (log / "aside").rename(log / name)
    with WALWriter(log) as writer:
        assert found.entries[: COUNT + 1] == entries(1, COUNT + 2)
        writer.put(b"key", b"value")


def test_metrics_of_a_spoilt_block_are_refused_with_a_name(log: Path) -> None:
    make(log)
    for spoilt in (bytes(CONTROL_BYTES), b"", b"\xff" * CONTROL_BYTES):
        put_back(log, spoilt)
        with pytest.raises(WALError):
            WALMetrics.attach(log)


def test_a_state_is_never_believed_ahead_of_the_log(log: Path) -> None:
    """Every field of the state in force is moved ahead a little, as if bytes had been lost behind it."""
    make(log)
    block = control(log)
    commit = int.from_bytes(block[COMMIT * WORD : COMMIT * WORD + WORD], "little")
    at = COPIES[commit & 1]
    state = LogState._make(STATE.unpack_from(block, at))
    for step in (1, 16, 91, 1000):
        for name in ("tail", "next_lsn", "segment", "sequence", "last_frame"):
            changed = bytearray(block)
            STATE.pack_into(changed, at, *state._replace(**{name: getattr(state, name) + step}))
            put_back(log, changed)
            with WALWriter(log) as writer:
                assert writer.metrics.snapshot().next_lsn == COUNT + 1
                assert writer.recovery_report is not None
            block = control(log)
            commit = int.from_bytes(block[COMMIT * WORD : COMMIT * WORD + WORD], "little")
            at = COPIES[commit & 1]
            state = LogState._make(STATE.unpack_from(block, at))
    assert read(log).entries == entries(1, COUNT + 1)
    assert len(segment_files(log)) >= 3
