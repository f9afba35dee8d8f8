"""A metrics file of another layout: read as it is, made anew by the first writer of ours, left to those who use it.

The older file is written here word by word, as walpool made it when the layout had the number 1.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from pathlib import Path

import pytest

from tests.crash.faults import Killed, killed_at
from tests.support import Channel, Start
from walpool import Snapshot, WALMetrics, WALWriter
from walpool.shared import rows_file
from walpool.system import processes
from walpool.system.calls import calls

ROW = 1 << 14
LAYOUT = 2  # ours
LAST = 99  # the slot of a writer that ended without close
TOTALS = {  # word, and what stands there, in the life of the row and at the claim
    "batches": (16, 1000, 400), "more_entries": (17, 500, 100), "bytes": (18, 90_000, 10_000),
    "lock_waits": (19, 70, 7), "syncs_led": (20, 60, 6), "sync_waits": (21, 50, 5), "rotations": (22, 40, 4),
    "busy": (27, 31, 1), "full": (28, 22, 2), "sync_failed": (29, 13, 3), "too_large": (30, 14, 4),
    "other": (31, 15, 5),
}  # fmt: skip
FAILURES = ("busy", "full", "sync_failed", "too_large", "other")


def older_row(pid: int, *, closed: bool, name: str = "older") -> bytes:
    identity = (pid, 123, processes.pid_namespace(), 10**18, 1, 10**18 if closed else 0, 0)
    row = bytearray(ROW)
    struct.pack_into("=8Q", row, 0, 2, *identity)
    row[8 * 8 : 8 * 8 + len(name)] = name.encode()
    for word, total, at_claim in TOTALS.values():
        struct.pack_into("=Q", row, word * 8, total)
        struct.pack_into("=Q", row, (word + 16) * 8, at_claim)
    struct.pack_into("=4Q", row, 23 * 8, 77, 1, 5, 10**18 + 10**9)  # buffered, waits for the lock, since, last append
    struct.pack_into("=3Q", row, 48 * 8, 100, 200, 300)  # sums of lock waits, syncs, appends
    struct.pack_into("=2Q", row, 52 * 8, 10**18 + 1, 5)
    row[56 * 8 : 56 * 8 + 5] = b"ouch!"
    for which, bucket in enumerate((10, 11, 12, 3)):
        struct.pack_into("=Q", row, (128 + which * 400 + bucket) * 8, 20 + which)
    return bytes(row)


def write_older(log: Path, rows: dict[int, bytes], layout: int = 1) -> bytes:
    """By slot; -1 is the row that all slots beyond the last share."""
    file = bytearray((2 + max(rows) + 1) * ROW)
    struct.pack_into("<3Q", file, 0, int.from_bytes(b"WALPROWS", "big"), layout, ROW)
    for slot, row in rows.items():
        file[(2 + slot) * ROW : (3 + slot) * ROW] = row
    (log / "metrics").write_bytes(file)
    return bytes(file)


def layout_of(log: Path) -> int:
    return int.from_bytes((log / "metrics").read_bytes()[8:16], "little")


def look(log: Path) -> Snapshot:
    with WALMetrics.attach(log) as metrics:
        return metrics.snapshot()


def assert_all_is_there(found: Snapshot, rows: int) -> None:
    """Of so many rows, the last of them a killed writer's."""
    total = {name: rows * count for name, (_, count, _) in TOTALS.items()}
    assert found.failures_by_kind == tuple(total[kind] for kind in FAILURES)
    assert (found.lock_waits, found.sync_waits) == (total["lock_waits"], total["sync_waits"])
    assert found.writes_failed == sum(total[kind] for kind in FAILURES)
    assert (found.sync_duration.count, found.sync_duration.sum) == (rows * 21, pytest.approx(rows * 200 * 256e-9))
    assert (found.append_duration.count, found.append_duration.sum) == (rows * 22, pytest.approx(rows * 300 * 256e-9))
    assert (found.lock_wait.counts[10], found.lock_wait.count) == (rows * 20, total["batches"])
    assert (found.batch_entries.counts[3], found.batch_entries.count) == (rows * 23, total["batches"])
    assert found.batch_entries.sum == total["batches"] + total["more_entries"]
    (killed,) = [row for row in found.killed_writers if row.slot == LAST]
    own = {name: count - before for name, (_, count, before) in TOTALS.items()}
    assert (killed.name, killed.sync_mode, killed.opened_at) == ("older", "normal", 1e9)
    assert killed.entries == own["batches"] + own["more_entries"]
    for name in ("batches", "bytes", "lock_waits", "syncs_led", "sync_waits", "rotations"):
        assert getattr(killed, name) == own[name], name
    assert killed.failures_by_kind == tuple(own[kind] for kind in FAILURES)
    assert (killed.buffered_bytes, killed.state, killed.last_append_at) == (77, "waiting for the lock", 1e9 + 1)
    assert (killed.last_error, killed.last_error_at) == ("ouch!", pytest.approx(1e9))


@pytest.fixture
def older(log: Path) -> Path:
    """A log with the rows of a closed writer and of one that ended without close."""
    WALWriter(log, metrics=False).close()
    write_older(log, {0: older_row(1, closed=True), LAST: older_row(2, closed=False)})
    return log


def test_an_older_file_is_read_as_it_is(older: Path) -> None:
    before = (older / "metrics").read_bytes()
    assert_all_is_there(look(older), rows=2)
    assert (older / "metrics").read_bytes() == before


def test_the_first_writer_makes_an_older_file_anew_and_no_total_is_lost(older: Path) -> None:
    with WALWriter(older, name="newer", metrics=False):
        assert layout_of(older) == 1, "who is not counted leaves it alone"
    for number in (1, 2):
        with WALWriter(older, name="newer") as writer:
            assert layout_of(older) == LAYOUT
            if number == 1:
                assert_all_is_there(look(older), rows=2)
            (row,) = look(older).writers
            assert (row.name, row.entries, row.lock_waits, row.failures, row.last_error) == ("newer", 0, 0, 0, "")
            writer.put(b"key", b"value")
            assert look(older).writers[0].entries == 1
        found = look(older)
        assert found.batch_entries.sum == 2 * 1500 + number
    assert not (older / "metrics.tmp").exists()


def test_the_row_that_many_slots_share_is_taken_over(log: Path) -> None:
    WALWriter(log, metrics=False).close()
    write_older(log, {-1: older_row(1, closed=False), LAST: older_row(2, closed=False)})
    WALWriter(log).close()
    assert layout_of(log) == LAYOUT
    assert_all_is_there(look(log), rows=2)


@pytest.mark.parametrize("size", [ROW, 2 * ROW - 1, 2 * ROW + 100, (3 + LAST) * ROW - 8])
def test_an_older_file_that_was_cut_is_made_anew_all_the_same(older: Path, size: int) -> None:
    os.truncate(older / "metrics", size)
    with WALWriter(older) as writer:
        writer.put(b"key", b"value")
        assert look(older).writers[0].entries == 1
    assert layout_of(older) == LAYOUT


def hold(channel: Channel, log: Path) -> None:
    """A writer whose row is of the other version: walpool of today writes none, so the test writes one in its name."""
    with WALWriter(log, metrics=False) as writer:
        channel.send("open")
        channel.receive()
        writer.put(b"key", b"value")


@pytest.mark.parametrize("layout", [1, 99])
def test_a_file_that_a_living_writer_of_another_version_counts_in_is_left_to_it(
    log: Path, child: Start, layout: int, caplog: pytest.LogCaptureFixture
) -> None:
    writer = child(hold, log)
    assert writer.receive() == "open"
    before = write_older(log, {0: older_row(writer.pid, closed=False), LAST: older_row(2, closed=False)}, layout)
    with caplog.at_level(logging.WARNING, "walpool"), WALWriter(log) as own:
        assert own.put(b"key", b"value") == 1
        assert "another version of walpool has this log open" in caplog.text
        assert "will not show in the metrics" in caplog.text
        assert (log / "metrics").read_bytes() == before
        if layout == 1:
            assert [row.name for row in look(log).writers] == ["older", ""]
            assert look(log).writers[0].batches == 600
        writer.send("end")
        writer.result()
        WALWriter(log).close()  # beside the one that is not counted
        assert (log / "metrics").read_bytes() == before if layout == 99 else layout_of(log) == LAYOUT
    assert layout == 99 or look(log).batch_entries.count == 2000


def test_the_first_slot_without_a_row_of_its_own_counts_in_the_shared_one(
    log: Path, child: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = child(hold, log)
    assert writer.receive() == "open"
    before = write_older(log, {-1: older_row(writer.pid, closed=False), LAST: older_row(2, closed=False)})
    monkeypatch.setattr(rows_file, "ROWS", 0)  # its slot is 0
    with WALWriter(log):
        assert (log / "metrics").read_bytes() == before
    writer.send("end")
    writer.result()


def test_who_only_has_the_slot_of_a_killed_writer_of_another_version_is_none(log: Path, child: Start) -> None:
    """As when a pool was killed, and all of its successors open the log at once."""
    successor = child(hold, log)
    assert successor.receive() == "open"
    write_older(log, {0: older_row(successor.pid + 1, closed=False), LAST: older_row(2, closed=False)})
    with WALWriter(log) as writer:
        assert layout_of(log) == LAYOUT
        writer.put(b"key", b"value")
        assert [row.entries for row in look(log).writers if row.pid == os.getpid()] == [1]
    successor.send("end")
    successor.result()


def open_and_put(channel: Channel, log: Path) -> None:
    channel.send("ready")
    channel.receive()
    with WALWriter(log) as writer:
        for _ in range(20):
            writer.put(b"key", b"value")


def test_writers_that_come_at_the_same_instant_make_one_file_and_count_all(older: Path, child: Start) -> None:
    children = [child(open_and_put, older) for _ in range(4)]
    for each in children:
        assert each.receive() == "ready"
    for each in children:
        each.send("go")
    for each in children:
        each.result()
    assert layout_of(older) == LAYOUT
    assert look(older).batch_entries.count == 2 * 1000 + 4 * 20


def test_a_file_of_an_unknown_layout_costs_the_metrics_and_no_append(
    log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    WALWriter(log, metrics=False).close()
    before = write_older(log, {LAST: older_row(2, closed=False)}, layout=99)
    with caplog.at_level(logging.WARNING, "walpool"), WALWriter(log) as writer:
        assert writer.put(b"key", b"value") == 1
        assert "not a metrics file of this version" in caplog.text
        assert look(log).killed_writers == ()
    assert (log / "metrics").read_bytes() == before


def test_who_is_killed_while_the_file_is_made_anew_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    number = 0
    while True:
        log = tmp_path / str(number)
        WALWriter(log, metrics=False).close()
        write_older(log, {0: older_row(1, closed=True), 1: older_row(3, closed=True), 2: older_row(2, closed=True)})
        with killed_at(number) as trace:
            try:
                WALWriter(log, name="killed").close()
            except Killed:
                pass
        with WALWriter(log, name="next"):
            assert layout_of(log) == LAYOUT, trace.hit
            found = look(log)
            assert (found.batch_entries.count, found.lock_waits) == (3000, 210), trace.hit
            assert "next" in [row.name for row in found.writers], trace.hit
        assert not (log / "metrics.tmp").exists()
        if not trace.hit:
            break
        number += 1
    assert number > 10


def test_a_full_disk_leaves_the_older_file_and_says_what_is_wrong(
    older: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = (older / "metrics").read_bytes()
    pwrite = calls.pwrite

    def no_room(fd: int, data: bytes, offset: int) -> int:
        if len(data) >= ROW:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(calls, "pwrite", no_room)
    with caplog.at_level(logging.WARNING, "walpool"), WALWriter(older) as writer:
        assert writer.put(b"key", b"value") == 1
        assert "full" in caplog.text and "another version" not in caplog.text
    assert (older / "metrics").read_bytes() == before
    assert not (older / "metrics.tmp").exists()
