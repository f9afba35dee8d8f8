"""What a log appended in its life stays counted when its control block is void, and is a sane guess without one."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.read.logs import entry_of, segment_files, written
from walpool import RecoveryMode, Retention, WALEntry, WALWriter
from walpool.options import WriterOptions
from walpool.shared.control import COPIES, LogState
from walpool.shared.figures.snapshot import Snapshot
from walpool.system import processes
from walpool.upkeep.repair import repair

FRAME, ENTRY = 48, 16
FIGURES = ("writes_total", "batches_total", "bytes_written", "avg_entry_size", "max_entry_size")


@pytest.fixture
def reboot(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    boots = itertools.count(1)

    def boot() -> None:
        number = next(boots)
        monkeypatch.setattr(processes, "boot_id", lambda: (7, number))

    return boot


def append(log: Path, seed: int, count: int = 60, *, size_limit: int = 4000, sync: bool = True) -> Snapshot:
    """Batches of random sizes, and the figures after them."""
    draw = random.Random(seed)
    with WALWriter(log, size_limit=size_limit) as writer:
        for _ in range(count):
            writer.append_batch(
                [WALEntry.put(b"k", bytes(draw.randrange(60)), timestamp=1) for _ in range(draw.choice((1, 1, 2, 7)))]
            )
        if sync:
            writer.sync()
        return writer.metrics.snapshot()


def reopen(log: Path) -> Snapshot:
    with WALWriter(log, size_limit=4000) as writer:
        assert writer.recovery_report is not None
        return writer.metrics.snapshot()


def assert_same(after: Snapshot, before: Snapshot) -> None:
    assert [getattr(after, name) for name in FIGURES] == [getattr(before, name) for name in FIGURES]


def test_after_a_reboot_all_figures_are_what_they_were(log: Path, seed: int, reboot: Callable[[], None]) -> None:
    for round_ in range(3):
        before = append(log, seed + round_, sync=round_ != 1)
        reboot()
        assert_same(reopen(log), before)
        reboot()
        assert_same(reopen(log), before)  # nothing was appended in between


def test_zeros_that_were_written_ahead_are_no_frames(log: Path, reboot: Callable[[], None]) -> None:
    before = append(log, 1)
    newest = segment_files(log)[-1]
    with newest.open("ab") as file:
        file.write(bytes(1 << 20))
    reboot()
    assert_same(reopen(log), before)


def test_what_retention_removed_stays_counted(log: Path, seed: int, reboot: Callable[[], None]) -> None:
    append(log, seed)
    with WALWriter(log, size_limit=4000, retention=Retention()) as writer:
        writer.checkpoint(writer.metrics.snapshot().next_lsn - 2)
        assert writer.prune().removed
        before = writer.metrics.snapshot()
    reboot()
    assert_same(reopen(log), before)


@pytest.mark.parametrize("old_at", [0, 1, 20, 59])
def test_a_block_that_is_older_than_the_segments_is_brought_up_to_date_by_their_frames(
    log: Path, seed: int, old_at: int, reboot: Callable[[], None]
) -> None:
    """A power cut leaves the block as it was written back last."""
    old = b""
    draw = random.Random(seed)
    with WALWriter(log, size_limit=2000) as writer:
        for number in range(60):
            if number == old_at:
                old = (log / "control").read_bytes()
            writer.append_batch([entry_of(1, draw.randrange(90)) for _ in range(draw.choice((1, 1, 3)))])
            if number % 10 == 5:
                writer.sync()
        before = writer.metrics.snapshot()
    (log / "control").write_bytes(old)
    reboot()
    after = reopen(log)
    if old_at:
        assert (after.writes_total, after.batches_total) == (before.writes_total, before.batches_total)
        assert after.bytes_written == before.bytes_written
    else:  # a block that knows of no entry is as good as none
        assert after.bytes_written == pytest.approx(before.bytes_written, rel=0.01)
    assert ENTRY < after.avg_entry_size <= after.max_entry_size


def test_entries_that_a_power_cut_took_are_taken_off(log: Path, reboot: Callable[[], None]) -> None:
    with WALWriter(log) as writer:
        for _ in range(10):
            writer.put(b"key", bytes(100))
    (segment,) = segment_files(log)
    os.truncate(segment, 64 + 6 * (FRAME + ENTRY + 103) + 20)
    reboot()
    after = reopen(log)
    assert after.writes_total == after.batches_total == 6
    assert after.bytes_written == 6 * (FRAME + ENTRY + 103)
    assert after.avg_entry_size == ENTRY + 103


def gone(log: Path) -> None:
    (log / "control").unlink()


def damaged(log: Path) -> None:
    (log / "control").write_bytes(b"x" * (log / "control").stat().st_size)


@pytest.mark.parametrize("harm", [gone, damaged])
def test_without_a_block_what_is_there_is_counted(log: Path, seed: int, harm: Callable[[Path], None]) -> None:
    """All of it, when recovery reads all of it; else batches are as the rest on average."""
    before = append(log, seed, size_limit=1 << 20)
    harm(log)
    after = reopen(log)
    assert (after.writes_total, after.batches_total) == (before.writes_total, before.batches_total)
    assert after.bytes_written == before.bytes_written == sum(len(written(file)) - 64 for file in segment_files(log))
    assert after.avg_entry_size == before.avg_entry_size <= after.max_entry_size


@pytest.mark.parametrize("harm", [gone, damaged])
def test_without_a_block_what_nobody_can_say_is_as_the_rest(log: Path, seed: int, harm: Callable[[Path], None]) -> None:
    append(log, seed, 200)
    with WALWriter(log, size_limit=4000, retention=Retention()) as writer:
        writer.rotate()  # nothing of the active segment helps
        before = writer.metrics.snapshot()
        writer.checkpoint(before.next_lsn // 3)
        writer.prune()
    harm(log)
    after = reopen(log)
    assert after.writes_total == before.writes_total
    for name in ("batches_total", "bytes_written", "avg_entry_size"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=0.4), name
    assert ENTRY < after.avg_entry_size <= after.max_entry_size


@pytest.mark.parametrize("field", ["batches", "bytes", "next_lsn"])
@pytest.mark.parametrize("value", [0, 1, 1 << 40])
def test_a_void_block_whose_figures_contradict_each_other_is_not_believed(
    log: Path, field: str, value: int, reboot: Callable[[], None]
) -> None:
    before = append(log, 5, sync=False)
    block = bytearray((log / "control").read_bytes())
    for copy in COPIES:
        at = copy + 8 * LogState._fields.index(field)
        block[at : at + 8] = value.to_bytes(8, "little")
    (log / "control").write_bytes(block)
    reboot()
    after = reopen(log)
    assert after.writes_total == before.writes_total
    if (field, value) not in (("next_lsn", 1 << 40), ("batches", 1)):  # these a log can have
        assert after.bytes_written == pytest.approx(before.bytes_written, rel=0.3)
        assert after.batches_total == pytest.approx(before.batches_total, rel=0.3)
    assert after.batches_total <= after.writes_total
    assert after.avg_entry_size <= after.max_entry_size


def test_a_log_without_entries_has_no_figures(log: Path) -> None:
    WALWriter(log).close()
    (log / "control").unlink()
    after = reopen(log)
    assert (after.batches_total, after.bytes_written, after.avg_entry_size, after.max_entry_size) == (0, 0, 0.0, 0)


def test_after_a_repair_that_cuts_entries_the_average_is_one_that_entries_have(log: Path) -> None:
    """Batches that were counted and are gone are not counted among those that are left."""
    batch_bytes = FRAME + 5 * (ENTRY + 21)
    with WALWriter(log) as writer:
        for _ in range(20):
            writer.append_batch([WALEntry.put(b"k", bytes(20), 1)] * 5)
    (segment,) = segment_files(log)
    data = bytearray(segment.read_bytes())
    data[64 + 2 * batch_bytes + 60] ^= 1
    segment.write_bytes(data)
    repair(log, WriterOptions(recovery=RecoveryMode.POINT_IN_TIME))
    with WALWriter(log) as writer:
        after = writer.metrics.snapshot()
    assert (after.writes_total, after.batches_total, after.bytes_written) == (10, 2, 2 * batch_bytes)
    assert after.avg_entry_size == after.max_entry_size == ENTRY + 21


@pytest.mark.parametrize("mode", [RecoveryMode.SALVAGE, RecoveryMode.POINT_IN_TIME])
def test_after_a_repair_no_entry_is_larger_on_average_than_at_most(log: Path, seed: int, mode: RecoveryMode) -> None:
    draw = random.Random(seed)
    for round_ in range(6):
        append(log, seed + round_, draw.randrange(5, 60), size_limit=1000, sync=False)
        victim = draw.choice(segment_files(log))
        data = bytearray(victim.read_bytes())
        data[draw.randrange(len(data))] ^= 1
        victim.write_bytes(data)
        if round_ % 2:
            (log / "control").unlink()
        repair(log, WriterOptions(recovery=mode))
        with WALWriter(log, size_limit=1000, recovery=mode) as writer:
            after = writer.metrics.snapshot()
        assert after.avg_entry_size <= after.max_entry_size
        assert after.batches_total <= after.writes_total
