"""Somebody removes or replaces files of a log that writers have open: they notice, and nobody starts a second log."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.processes import workers
from tests.support import Start, keys, open_fds, read_log
from walpool import LogReplaced, Retention, SyncMode, UnsafeLog, WALError, WALWriter
from walpool.opening import opening
from walpool.shared.catalog import list_segments
from walpool.system.files import Directory
from walpool.upkeep.verify import verify
from walpool.write import committer
from walpool.write.coordinator import Coordinator

SOON = 1001  # appends


def append_until_refused(writer: WALWriter) -> UnsafeLog:
    """As fast as can be: the clock has no part in it."""
    for _ in range(SOON):
        try:
            writer.put(b"k", b"")
        except UnsafeLog as error:
            return error
    raise AssertionError(f"{SOON} appends went through")


def replace(path: Path) -> None:
    """Another file of the same name, with the same content."""
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    os.chmod(copy, 0o600)
    os.rename(copy, path)


@pytest.fixture(autouse=True)
def newcomers_decide_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They give a slot that is held a while to prove that it is only being opened; here it never is."""
    monkeypatch.setattr(opening, "TRANSIENT_S", 0.02)


FILES = ["append.lock", "sync.lock", "slots.lock", "control"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["remove", "replace"])
def test_a_writer_notices_soon_and_a_newcomer_is_refused_until_it_has_closed(log: Path, name: str, harm: str) -> None:
    writer = WALWriter(log)
    writer.put(b"k", b"")
    if harm == "remove":
        (log / name).unlink()
    else:
        replace(log / name)
    refused = append_until_refused(writer)
    assert name in refused.path
    held = len(read_log(log))
    assert held >= 1
    with pytest.raises(UnsafeLog):
        writer.put(b"k", b"")
    with pytest.raises(UnsafeLog):
        writer.rotate()
    if name != "slots.lock":  # with slots.lock itself gone, nobody can tell that the writer lives
        with pytest.raises(UnsafeLog, match="slots 0"):
            WALWriter(log)
    writer.close()
    with WALWriter(log) as newcomer:
        assert newcomer.put(b"k", b"") == held + 1
    assert len(read_log(log)) == held + 1


@pytest.mark.parametrize("name", FILES)
def test_a_writer_in_another_process_is_named_by_its_slot(child: Start, log: Path, name: str) -> None:
    with WALWriter(log) as first:
        other = child(workers.put_each, log)
        assert other.ask(b"a") == 1
        first.close()
        (log / name).unlink()
        if name != "slots.lock":
            with pytest.raises(UnsafeLog, match="slots 1"):
                WALWriter(log)
        answers = [other.ask(b"b") for _ in range(SOON)]
        assert isinstance(answers[-1], UnsafeLog)
        held = sum(isinstance(answer, int) for answer in answers) + 1
        other.send(None)
        other.result()
    with WALWriter(log) as newcomer:
        assert newcomer.put(b"c", b"") == held + 1
    assert len(read_log(log)) == held + 1


def test_a_killed_writer_is_no_obstacle_after_the_control_block_was_removed(child: Start, log: Path) -> None:
    other = child(workers.put_each, log)
    assert other.ask(b"a") == 1
    (log / "control").unlink()
    other.kill()
    other.died()
    with WALWriter(log) as newcomer:
        assert newcomer.put(b"b", b"") == 2
    assert keys(log) == [b"a", b"b"]


def test_a_rotation_notices_at_once(log: Path) -> None:
    with WALWriter(log) as writer:
        writer.put(b"k", b"")
        (log / "append.lock").unlink()
        with pytest.raises(UnsafeLog):
            writer.rotate()
        assert len(list(log.glob("*.wal"))) == 1


def test_a_removed_directory_is_noticed(log: Path) -> None:
    with WALWriter(log) as writer:
        writer.put(b"k", b"")
        shutil.rmtree(log)
        append_until_refused(writer)
    assert not log.exists()


def test_a_directory_that_another_log_took_the_place_of_is_noticed(log: Path, tmp_path: Path) -> None:
    with WALWriter(log) as writer:
        writer.put(b"k", b"")
        shutil.rmtree(log)
        with WALWriter(log) as other:
            other.put(b"other", b"")
            append_until_refused(writer)
            assert other.put(b"other", b"") == 2
    assert keys(log) == [b"other", b"other"]


def test_a_moved_directory_is_one_log_still(log: Path, tmp_path: Path) -> None:
    """Whoever has it open may go on in it or notice; what is acknowledged is where the log went."""
    with WALWriter(log) as writer:
        writer.put(b"before", b"")
        log.rename(tmp_path / "moved.wal")
        acknowledged = [b"before"]
        try:
            for _ in range(SOON):
                writer.put(b"after", b"")
                acknowledged.append(b"after")
        except UnsafeLog:
            pass
        with WALWriter(tmp_path / "moved.wal") as other:
            acknowledged.append(b"other")
            assert other.put(b"other", b"") == len(acknowledged)
    assert keys(tmp_path / "moved.wal") == acknowledged


def test_a_copied_directory_is_another_log(log: Path, tmp_path: Path) -> None:
    with WALWriter(log) as writer:
        writer.put(b"both", b"")
        shutil.copytree(log, tmp_path / "copy.wal")
        with WALWriter(tmp_path / "copy.wal") as copy:
            assert copy.recovery_report is not None
            assert copy.put(b"copy", b"") == 2
            assert writer.put(b"original", b"") == 2
    assert keys(log) == [b"both", b"original"]
    assert keys(tmp_path / "copy.wal") == [b"both", b"copy"]


def test_a_removed_segment_is_noticed_by_the_next_who_needs_it(log: Path) -> None:
    with WALWriter(log) as writer, WALWriter(log) as other:
        writer.put(b"k", b"")
        writer.rotate()
        writer.put(b"k", b"")
        (log / f"{2:020d}.wal").unlink()
        with pytest.raises(WALError):
            other.put(b"k", b"")


def test_a_truncated_control_block_kills_nobody(child: Start, log: Path) -> None:
    """A store behind the end of a mapped file would be SIGBUS."""
    other = child(workers.put_each, log)
    assert other.ask(b"a") == 1
    other.send(None)
    other.result()
    for size in (0, 1, 4096, (log / "control").stat().st_size - 1, 1 << 20):
        os.truncate(log / "control", size)
        with WALWriter(log) as writer:
            assert writer.put(b"b", b"") is not None
    assert keys(log) == [b"a"] + [b"b"] * 5


# What is open is what the names lead to


def harm_remove(path: Path) -> None:
    path.unlink()


def harm_rename(path: Path) -> None:
    path.rename(path.with_suffix(".old"))


def harm_cut(path: Path) -> None:
    os.truncate(path, 70)


HARMS = {"removed": harm_remove, "renamed": harm_rename, "replaced": replace, "cut": harm_cut}


def active(log: Path) -> Path:
    return sorted(log.glob("*.wal"))[-1]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("mode", [SyncMode.NORMAL, SyncMode.FULL])
def test_a_writer_notices_what_happened_to_the_active_segment(log: Path, mode: SyncMode, harm: str) -> None:
    with WALWriter(log, mode, size_limit=1 << 20) as writer:
        for _ in range(SOON):
            writer.put(b"k", b"")
        HARMS[harm](active(log))
        refused = append_until_refused(writer)
        assert refused.path.endswith(".wal"), refused
        with pytest.raises(UnsafeLog):
            writer.rotate()


@pytest.mark.parametrize("harm", ["removed", "renamed", "replaced"])
def test_nothing_is_called_durable_in_a_segment_that_no_name_leads_to(log: Path, harm: str) -> None:
    """By the very next sync: it looks again before it says so."""
    with WALWriter(log, SyncMode.FULL, size_limit=1 << 20) as writer:
        durable = writer.put(b"k", b"")
        HARMS[harm](active(log))
        with pytest.raises(LogReplaced, match="not durable"):
            writer.put(b"lost", b"")
        assert writer.metrics.snapshot().durable_lsn == durable
        with pytest.raises(UnsafeLog):
            writer.sync()


@pytest.mark.parametrize("by_retention", [False, True])
def test_a_sealed_segment_that_goes_in_the_middle_of_a_sync_was_retentions_or_is_missed(
    log: Path, monkeypatch: pytest.MonkeyPatch, by_retention: bool
) -> None:
    monkeypatch.setattr(Coordinator, "wake", lambda self: None)  # which would have synced it
    with WALWriter(log, retention=Retention(max_segments=1)) as writer:
        writer.put(b"k", b"")
        writer.rotate()
        writer.put(b"k", b"")

        def names(directory: Directory) -> list[int]:
            found = list_segments(directory)
            if by_retention:
                assert writer.prune().removed == (1,)
            else:
                (log / f"{1:020d}.wal").unlink(missing_ok=True)
            return found

        monkeypatch.setattr(committer, "list_segments", names)
        if by_retention:
            assert writer.sync() == 2
            return
        with pytest.raises(LogReplaced, match="not durable"):
            writer.sync()
        assert writer.metrics.snapshot().durable_lsn == 0


def test_nothing_is_called_durable_in_a_directory_that_the_path_does_not_lead_to(log: Path, tmp_path: Path) -> None:
    with WALWriter(log, SyncMode.FULL) as writer, WALWriter(log) as normal:
        writer.put(b"k", b"")
        log.rename(tmp_path / "moved.wal")
        with WALWriter(log) as other:  # a log of its own
            assert other.put(b"k", b"") == 1
            with pytest.raises(LogReplaced):
                writer.put(b"lost", b"")
            assert isinstance(append_until_refused(normal), LogReplaced)


@pytest.mark.usefixtures("linux")
def test_a_descriptor_that_other_code_closed_and_uses_is_not_written_to(log: Path, tmp_path: Path) -> None:
    writer = WALWriter(log, size_limit=1 << 20)
    writer.put(b"k", b"")
    (number,) = [fd for fd, path in open_fds().items() if path == str(active(log))]
    innocent = os.open(tmp_path / "innocent", os.O_CREAT | os.O_RDWR)
    os.dup2(innocent, number)
    try:
        refused = append_until_refused(writer)
        assert "closed the file's descriptor" in str(refused)
        size = os.stat(tmp_path / "innocent").st_size
        writer.close()
        os.fstat(number)  # the other code's: it is not ours to close
        assert os.stat(tmp_path / "innocent").st_size == size
    finally:
        os.close(number)
        os.close(innocent)


def test_a_beginning_that_is_missing_and_that_retention_did_not_remove_is_a_finding(log: Path) -> None:
    with WALWriter(log, size_limit=400) as writer:
        for _ in range(20):
            writer.put(b"k", bytes(100))
        writer.checkpoint(5)
        first = writer.prune().first_lsn
    assert first > 1
    assert verify(log).findings == []
    sorted(log.glob("*.wal"))[0].unlink()
    (finding,) = verify(log).findings
    assert finding.is_damage and f"LSN {first} to" in finding.reason
    (log / "origin").unlink()  # as of an older log, which says nothing
    assert verify(log).findings == []
