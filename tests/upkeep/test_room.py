"""A full disk, marks of failed syncs, and other things that stood in the way of opening a log again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import read_log
from walpool import LogFull, Retention, SyncFailed, SyncMode, WALReader, WALWriter
from walpool.system.calls import calls


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, *, until_removed: bool) -> Iterator[None]:
    """Nothing new can be written, until something is removed, if that helps."""
    removed: list[object] = []
    write, unlink = calls.pwrite, calls.unlink

    def no_room(fd: int, data: bytes, offset: int) -> int:
        if until_removed and removed:
            return write(fd, data, offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def remove(name: str, *, dir_fd: int) -> None:
        unlink(name, dir_fd=dir_fd)
        if name.endswith(".wal") or name == "next.segment":
            removed.append(name)

    with monkeypatch.context() as patch:
        patch.setattr(calls, "pwrite", no_room)
        patch.setattr(calls, "unlink", remove)
        yield


def rebooted(log: Path, count: int = 40) -> None:
    """A log of several segments whose control block is void."""
    with WALWriter(log, size_limit=1_000) as writer:
        for number in range(count):
            writer.put(b"%d" % number, bytes(100))
        writer.checkpoint(writer.sync() - 10)
    (log / "control").unlink()


def test_a_full_disk_after_a_reboot_leaves_nothing_behind(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rebooted(log)
    before = sorted(os.listdir(log))
    with full_disk(monkeypatch, until_removed=False), pytest.raises(LogFull):
        WALWriter(log)
    assert sorted(os.listdir(log)) == before
    WALWriter(log).close()
    assert len(read_log(log)) == 40


def test_what_was_prepared_for_later_makes_room_for_opening(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rebooted(log)
    (log / "next.segment").write_bytes(bytes(1_000))
    (log / "next.segment").chmod(0o600)
    with full_disk(monkeypatch, until_removed=True), WALWriter(log) as writer:
        writer.put(b"there is room", b"")
    assert len(read_log(log)) == 41


def test_a_retention_rule_makes_room_for_opening(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rebooted(log)
    # The note of what is removed takes room, too: a little is left, as root has it.
    with monkeypatch.context() as patch:
        real, full = calls.pwrite, [True]

        def no_room(fd: int, data: bytes, offset: int) -> int:
            if full[0] and len(data) > 64:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(fd, data, offset)

        unlink = calls.unlink

        def remove(name: str, *, dir_fd: int) -> None:
            unlink(name, dir_fd=dir_fd)
            full[0] = full[0] and not name.endswith(".wal")

        patch.setattr(calls, "pwrite", no_room)
        patch.setattr(calls, "unlink", remove)
        with WALWriter(log, retention=Retention()) as writer:
            writer.put(b"there is room", b"")
    entries = WALReader(log).read_all()
    assert entries[-1].key == b"there is room"
    assert [entry.lsn for entry in entries[-11:-1]] == list(range(31, 41)), (
        "what the checkpoint does not cover is there"
    )


@pytest.mark.parametrize("mark", [b"", b"\0" * 40, b"0123 nonsense", b"%032x -5 28\n" % 0])
def test_a_mark_that_says_nothing_costs_no_more_than_what_is_in_doubt(log: Path, mark: bytes) -> None:
    with WALWriter(log, SyncMode.FULL, 1_000, retention=Retention(checkpointed=False, max_segments=3)) as writer:
        for number in range(60):
            writer.put(b"%d" % number, bytes(100))
        first = writer.prune().first_lsn
    assert first > 1
    expected = [entry.key for entry in WALReader(log)]
    (log / "control").unlink()
    (log / "sync.failed").write_bytes(mark)
    (log / "sync.failed").chmod(0o600)
    with WALWriter(log) as writer:
        writer.put(b"next", b"")
    assert [entry.key for entry in WALReader(log)] == [*expected, b"next"]
    assert not (log / "sync.failed").exists()


def test_nothing_is_pruned_from_a_log_of_which_a_sync_failed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = WALWriter(log, size_limit=1_000)
    for number in range(40):
        writer.put(b"%d" % number, bytes(100))
    writer.checkpoint(writer.sync())
    writer.put(b"not durable", b"")
    with monkeypatch.context() as patch:

        def fails(fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(calls, "fdatasync", fails)
        with pytest.raises(SyncFailed):
            writer.sync()
    before = sorted(log.glob("*.wal"))
    with pytest.raises(SyncFailed, match="nothing is removed"):
        writer.prune()
    assert sorted(log.glob("*.wal")) == before
    writer.close()
    with WALWriter(log) as recovered:
        assert recovered.prune().removed


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("synced", [False, True])
def test_a_recovery_goes_on_from_the_last_time_there_is(
    log: Path, monkeypatch: pytest.MonkeyPatch, rotated: bool, synced: bool
) -> None:
    with WALWriter(log) as writer:
        writer.put(b"before", b"")
        if synced:
            writer.sync()
        if rotated:
            writer.rotate()
    (log / "control").unlink()
    real = calls.time_ns
    monkeypatch.setattr(calls, "time_ns", lambda: real() - 3600 * 10**9)
    with WALWriter(log) as writer:
        writer.put(b"after", b"")
    times = [batch.appended_at for batch in WALReader(log).batches()]
    assert times == sorted(times) and len(times) == 2


def test_a_living_writer_in_slot_0_counts(log: Path) -> None:
    """What a killed writer had not published is published by nobody while another may have looked."""
    with WALWriter(log) as lone:
        assert lone.metrics.snapshot().writers[0].slot == 0
        lone.put(b"1", b"")
        control, state = lone._handle.session.log.control, lone._handle.session.log.control.state()  # type: ignore[union-attr]
        whole = WALWriter(log)
        whole.put(b"2", b"")
        # As a writer that died before its last store leaves it: the frame is whole, the other copy is filled.
        control.words[16] -= 1
        control.words[17] = control.words[16] + 1 + (1 << 48)
        whole._handle.session.log.close()  # type: ignore[union-attr]
        whole._handle.closed = True
        assert control.state() == state
        with WALWriter(log) as newcomer:
            assert newcomer.put(b"3", b"") == 2
    assert [entry.key for entry in WALReader(log)] == [b"1", b"3"]
