"""Cursors: what is handed out, what a commit promises, who has one, and what forks, pickles, threads and closes do."""

from __future__ import annotations

import errno
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import walpool
from tests.crash.taps import Call, tapped
from tests.support import Channel, Start, open_under, reap, run_threads, until
from walpool import (
    CorruptLog,
    Cursor,
    IOFailed,
    LogBusy,
    LogClosed,
    LogNotFound,
    LogReplaced,
    LSNUnavailable,
    Retention,
    SyncFailed,
    SyncMode,
    UnsafeLog,
    WALEntry,
    WALMetrics,
    WALReader,
    WALWriter,
)
from walpool.format.names import CURSORS
from walpool.shared.cursors.positions import COPY_BYTES, POSITION_BYTES, unpack


@pytest.fixture
def writer(log: Path) -> Iterator[WALWriter]:
    with WALWriter(log, size_limit=4096) as writer:
        yield writer


def fill(writer: WALWriter, count: int, size: int = 10) -> None:
    for number in range(count):
        writer.put(b"key %d" % number, bytes(size))


def taken(cursor: Cursor, timeout: float = 0) -> list[int]:
    return [entry.lsn for entry in cursor.follow(timeout)]


# What is handed out


def test_a_new_cursor_begins_with_the_first_entry_and_the_next_owner_behind_the_last_commit(writer: WALWriter) -> None:
    fill(writer, 10)
    with Cursor(writer.path, "etl") as cursor:
        assert cursor.position == 0
        for entry in cursor.follow(timeout=0):
            if entry.lsn == 6:
                break
            assert cursor.commit(entry.lsn) == entry.lsn == cursor.position
        assert taken(cursor) == [7, 8, 9, 10], "what was not taken comes next time"
    with Cursor(writer.path, "etl") as cursor, Cursor(writer.path, "other") as other:
        assert (cursor.position, other.position) == (5, 0)
        assert taken(cursor) == [6, 7, 8, 9, 10]
        assert taken(other) == [*range(1, 11)]


def test_nothing_is_handed_out_that_is_not_durable_and_the_cursor_makes_it_so(writer: WALWriter) -> None:
    fill(writer, 3)
    assert writer.metrics.snapshot().durable_lsn < 3
    with Cursor(writer.path, "etl") as cursor:
        for entry in cursor.follow(timeout=0):
            assert writer.metrics.snapshot().durable_lsn >= entry.lsn


def test_a_cursor_waits_for_the_sync_that_somebody_leads(log: Path) -> None:
    with WALWriter(log, SyncMode.FULL) as writer, Cursor(log, "etl") as cursor:
        found: list[int] = []
        follow = threading.Thread(target=lambda: found.extend(taken(cursor, 0.3)))
        follow.start()
        for _ in range(20):
            writer.put(b"key", b"")
        follow.join()
        assert found == [*range(1, 21)]


def test_batches_are_those_that_were_appended_and_of_one_that_was_begun_the_rest(writer: WALWriter) -> None:
    for _ in range(3):
        writer.append_batch([WALEntry.put(b"a", b""), WALEntry.put(b"b", b"")])
    with Cursor(writer.path, "etl") as cursor:
        assert next(cursor.follow()).lsn == 1
        assert [[entry.lsn for entry in batch.entries] for batch in cursor.batches()] == [[2], [3, 4], [5, 6]]
        cursor.commit(3)
    with Cursor(writer.path, "etl") as cursor:
        assert [(batch.first_lsn, batch.count) for batch in cursor.batches()] == [(4, 1), (5, 2)]
        fill(writer, 1)
        assert [batch.first_lsn for batch in cursor.batches()] == [7]


def test_what_was_committed_meanwhile_is_passed_by(writer: WALWriter) -> None:
    fill(writer, 4)
    with Cursor(writer.path, "etl") as cursor:
        assert taken(cursor) == [1, 2, 3, 4]
        fill(writer, 6)
        writer.sync()
        cursor.commit(8)
        assert taken(cursor) == [9, 10]


# Commits


def test_a_lower_commit_changes_nothing_and_one_that_is_not_durable_is_refused(writer: WALWriter) -> None:
    fill(writer, 5)
    with Cursor(writer.path, "etl") as cursor:
        writer.sync()
        assert cursor.commit(4) == 4
        assert cursor.commit(2) == 4
        fill(writer, 1)
        for wrong in (-1, 6, 7, 1 << 70):
            with pytest.raises(ValueError, match="durable up to LSN 5"):
                cursor.commit(wrong)
        for kind in ("5", 5.0, True, None):
            with pytest.raises(TypeError):
                cursor.commit(kind)  # type: ignore[arg-type]
        assert cursor.position == 4


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "é", "x" * 65, "a\n", "a@1of2", "~"])
def test_a_name_that_could_be_something_else_is_refused(writer: WALWriter, name: str) -> None:
    with pytest.raises(ValueError):
        Cursor(writer.path, name)
    with pytest.raises(TypeError):
        Cursor(writer.path, 5)  # type: ignore[arg-type]


def synced(name: str, calls_made: list[str], inode: int) -> Callable[..., Any]:
    def tap(called: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if called in ("fdatasync", "pwrite", "fcntl") and os.fstat(args[0]).st_ino == inode:
            calls_made.append(called)
        return call(*args, **kwargs)

    return tap


def test_a_commit_is_on_disk_when_it_returns_unless_it_was_told_otherwise(writer: WALWriter, log: Path) -> None:
    fill(writer, 5)
    writer.sync()
    with Cursor(log, "etl") as cursor:
        made: list[str] = []
        with tapped(synced("etl", made, (log / CURSORS / "etl").stat().st_ino)):
            cursor.commit(1)
            assert [name for name in made if name != "fcntl"][:1] == ["pwrite"] and made[-1] != "pwrite"
            made.clear()
            cursor.commit(2, sync=False)
            cursor.commit(3, sync=False)
            assert made == ["pwrite", "pwrite"]
            cursor.commit(3)
            assert made[-1] != "pwrite" and made.count("pwrite") == 2, "nothing is written, and all of it is synced"
    assert (log / CURSORS / "etl").stat().st_size == POSITION_BYTES


def test_commits_without_a_sync_never_write_over_what_is_on_disk(writer: WALWriter, log: Path) -> None:
    fill(writer, 9)
    writer.sync()
    file = log / CURSORS / "etl"
    with Cursor(log, "etl") as cursor:
        cursor.commit(1)
        before = file.read_bytes()
        _, copy = unpack(before)
        there = slice(copy * COPY_BYTES, (copy + 1) * COPY_BYTES)
        for lsn in range(2, 9):
            cursor.commit(lsn, sync=False)
            assert file.read_bytes()[there] == before[there]


def test_a_commit_whose_sync_fails_is_none_and_the_next_one_makes_another_file(writer: WALWriter, log: Path) -> None:
    fill(writer, 5)
    writer.sync()
    file = log / CURSORS / "etl"
    with Cursor(log, "etl") as cursor:
        cursor.commit(1)
        inode = file.stat().st_ino

        def fail(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if name == "fdatasync" and os.fstat(args[0]).st_ino == inode:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*args, **kwargs)

        with tapped(fail), pytest.raises(IOFailed):
            cursor.commit(3)
        assert cursor.position == 1
        found = unpack(file.read_bytes())
        assert found is not None and found[0].lsn == 1, "what retention goes by is what is on disk"
        assert cursor.commit(4) == 4
        assert file.stat().st_ino != inode
        assert cursor.commit(5) == 5
    with Cursor(log, "etl") as cursor:
        assert cursor.position == 5


# Who has it


def hold(channel: Channel, log: Path) -> None:
    with Cursor(log, "etl") as cursor:
        channel.send(os.getpid())
        for entry in cursor.follow(timeout=30):
            cursor.commit(entry.lsn, sync=entry.lsn % 2 == 0)
            channel.send(entry.lsn)


def test_a_second_owner_is_told_who_has_it_and_gets_it_at_once_when_that_is_killed(
    writer: WALWriter, log: Path, child: Start
) -> None:
    fill(writer, 4)
    first = child(hold, log)
    pid = first.receive()
    assert [first.receive() for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(LogBusy, match=rf"cursor 'etl' was not free for 0.01 s: process {pid}"):
        Cursor(log, "etl", lock_timeout=0.01)
    (row,) = writer.metrics.snapshot().cursors
    assert (row.is_open, row.pid, row.position, row.lag_entries, row.lag_seconds) == (True, pid, 4, 0, 0.0)
    assert len(writer.metrics.snapshot().writers) == 1, "a cursor is no writer"
    got: list[int] = []

    def take_over() -> None:
        with Cursor(log, "etl") as cursor:
            got.append(cursor.position)

    def kill() -> None:
        time.sleep(0.02)
        first.kill()

    run_threads(take_over, kill)
    assert got == [4], "a commit that was not synced survives a kill"
    assert not writer.metrics.snapshot().cursors[0].is_open


def test_a_thread_does_not_wait_for_itself(writer: WALWriter) -> None:
    fill(writer, 1)
    with Cursor(writer.path, "etl"), pytest.raises(LogBusy, match="wait for itself"):
        Cursor(writer.path, "etl")
    Cursor(writer.path, "etl").close()


def test_threads_of_one_process_take_turns(writer: WALWriter) -> None:
    fill(writer, 1)
    inside: list[int] = []

    def use() -> None:
        with Cursor(writer.path, "etl"):
            inside.append(1)
            assert sum(inside) == 1
            time.sleep(0.002)
            inside.append(-1)

    run_threads(*[use] * 4)


# Other lives


def test_a_forked_child_hears_that_its_parent_has_it_and_the_parent_goes_on(writer: WALWriter) -> None:
    fill(writer, 3)
    with Cursor(writer.path, "etl") as cursor:
        following = cursor.follow(timeout=0)
        assert next(following).lsn == 1
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert [*following] == []  # of the parent's: it gives nothing, or says that it is closed
            except LogClosed:
                code = 0
            try:
                cursor.commit(1)
                code = 2
            except LogBusy:
                pass
            os._exit(code)
        assert reap(pid) in (0, 1)
        assert cursor.commit(1) == 1
        assert [entry.lsn for entry in following] == [2, 3]
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        assert reap(pid) == 0
        with pytest.raises(LogBusy):
            run_threads(lambda: Cursor(writer.path, "etl", lock_timeout=0))
    with Cursor(writer.path, "etl", lock_timeout=1) as cursor:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if waits_until_free(cursor) == 1 else 1)
        cursor.close()
        assert reap(pid) == 0


def waits_until_free(cursor: Cursor) -> int:
    give_up = time.monotonic() + 30
    while True:
        try:
            with cursor:
                return cursor.position
        except LogBusy:
            assert time.monotonic() < give_up
            time.sleep(0.001)


def test_a_pickled_cursor_opens_where_it_is_used(writer: WALWriter) -> None:
    fill(writer, 3)
    with Cursor(writer.path, "etl", lock_timeout=0.01) as cursor:
        writer.sync()
        cursor.commit(2)
        copy = pickle.loads(pickle.dumps(cursor))
        with pytest.raises(LogBusy):
            copy.commit(3)
    assert taken(copy) == [3]
    copy.close()


def test_another_thread_may_commit_and_close(writer: WALWriter) -> None:
    fill(writer, 50)
    cursor = Cursor(writer.path, "etl")
    handed: list[int] = []
    ended: list[BaseException] = []

    def follow() -> None:
        try:
            for entry in cursor.follow():
                handed.append(entry.lsn)
        except LogClosed as error:
            ended.append(error)

    def commit() -> None:
        until(lambda: len(handed) == 50, "all are handed out")
        for lsn in handed:
            cursor.commit(lsn, sync=lsn % 10 == 0)
        cursor.close()

    run_threads(follow, commit)
    assert ended and cursor.position == 50
    cursor.close()
    for use in (lambda: cursor.commit(1), lambda: taken(cursor), lambda: [*cursor.batches()], cursor.__enter__):
        with pytest.raises(LogClosed):
            use()


def test_nothing_stays_open_and_nobody_is_kept_out_by_one_that_was_forgotten(writer: WALWriter, log: Path) -> None:
    fill(writer, 2)
    before = open_under(log)
    for _ in range(2):
        with Cursor(log, "etl") as cursor:
            assert taken(cursor) == [1, 2]
        assert open_under(log) == before
    forgotten = Cursor(log, "etl")
    assert next(forgotten.follow()).lsn == 1
    del forgotten
    import gc

    gc.collect()
    Cursor(log, "etl", lock_timeout=1).close()


# What becomes of the log


def test_without_a_log_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound):
        Cursor(tmp_path / "nowhere", "etl")
    assert not list(tmp_path.iterdir())


def test_a_log_that_was_made_anew_is_another_one(writer: WALWriter, log: Path) -> None:
    fill(writer, 3)
    with Cursor(log, "etl") as cursor:
        assert taken(cursor) == [1, 2, 3]
        log.rename(log.with_name("moved"))
        with WALWriter(log) as another:
            fill(another, 3)
        with pytest.raises(LogReplaced):
            cursor.commit(2)
        with pytest.raises(LogReplaced):
            taken(cursor)
    with Cursor(log, "etl") as cursor:
        assert cursor.position == 0


def test_a_cursor_opens_a_log_after_a_reboot_as_a_writer_would(log: Path) -> None:
    with WALWriter(log) as writer:
        fill(writer, 5)
    (log / "control").unlink()
    with Cursor(log, "etl") as cursor:
        assert taken(cursor) == [1, 2, 3, 4, 5]


def test_a_recovery_that_ends_the_log_below_a_cursor_takes_it_back(log: Path, caplog: pytest.LogCaptureFixture) -> None:
    with WALWriter(log) as writer:
        fill(writer, 3)
        size = writer.size
        fill(writer, 5)
        with Cursor(log, "etl") as cursor, Cursor(log, "low") as low:
            writer.sync()
            cursor.commit(8)
            low.commit(2)
    (log / "control").unlink()
    segment = max(log.glob("*.wal"))
    os.truncate(segment, size)
    with WALWriter(log) as writer:
        assert writer.recovery_report is not None
        assert writer.recovery_report.cursors == (("etl", 8),)
        assert "cursor 'etl' was at LSN 8 and the log ends at LSN 3" in caplog.text
        fill(writer, 2)
        with Cursor(log, "etl") as cursor, Cursor(log, "low") as low:
            assert (cursor.position, taken(cursor)) == (3, [4, 5])
            assert (low.position, taken(low)) == (2, [3, 4, 5])


def test_after_a_failed_sync_a_cursor_lets_go_so_that_the_log_can_be_recovered(log: Path) -> None:
    with WALWriter(log) as writer:
        fill(writer, 2)
        cursor = Cursor(log, "etl")
        assert taken(cursor) == [1, 2]
        fill(writer, 1)

        def fail(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if name == "fdatasync":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*args, **kwargs)

        with pytest.raises(SyncFailed), WALWriter(log) as other, tapped(fail):
            other.sync()
        with pytest.raises(SyncFailed):
            taken(cursor, 1)
        with pytest.raises(LogClosed):
            taken(cursor)
    with Cursor(log, "etl") as cursor:
        assert taken(cursor) == [1, 2, 3]


# Retention


def segments(log: Path) -> int:
    return len(list(log.glob("*.wal")))


@pytest.mark.parametrize(
    "rule",
    [
        Retention(max_segments=1),
        Retention(max_bytes=0),
        Retention(max_age=0.0),
        Retention(),
    ],
    ids=["count", "bytes", "age", "checkpoint"],
)
def test_whatever_a_rule_says_what_a_cursor_has_not_committed_stays(log: Path, rule: Retention) -> None:
    with WALWriter(log, size_limit=1200, retention=None) as writer, Cursor(log, "etl") as cursor:
        fill(writer, 60, 100)
        writer.checkpoint(60)
        before = segments(log)
        with WALWriter(log, size_limit=1200, retention=rule) as pruner:
            report = pruner.prune()
            assert report.removed == () and report.held_by_cursors == before - 1
            cursor.commit(30)
            assert pruner.prune().first_lsn <= 31
            assert taken(cursor)[0] == 31
            cursor.commit(60)
            assert pruner.prune().held_by_cursors == 0 and segments(log) == 1
    with WALWriter(log, size_limit=1200, retention=rule) as writer:
        fill(writer, 60, 100)
        writer.checkpoint(120)
    with WALWriter(log, retention=Retention(max_segments=1, cursors=False)) as writer:
        assert writer.prune().held_by_cursors == 0 and segments(log) == 1


def test_beyond_the_cap_the_log_goes_on_and_the_cursor_hears_how_much_it_missed(log: Path) -> None:
    rule = Retention(max_segments=2, max_pinned_bytes=4000)
    with WALWriter(log, size_limit=1200, retention=rule) as writer, Cursor(log, "etl") as cursor:
        fill(writer, 10, 100)
        assert next(cursor.follow()).lsn == 1
        cursor.commit(1)
        cursor.close()
        fill(writer, 90, 100)
        (row,) = writer.metrics.snapshot().cursors
        first_lsn = writer.prune().first_lsn
        assert first_lsn > 2
        (row,) = writer.metrics.snapshot().cursors
        assert (row.lag_entries, row.missed) == (99, first_lsn - 2) and row.lag_seconds > 0
        size = sum(file.stat().st_size for file in log.glob("*.wal"))
        assert 0 < row.lag_bytes <= size
    with Cursor(log, "etl") as cursor:
        for _ in range(2):
            with pytest.raises(LSNUnavailable, match=f"missed {first_lsn - 2} entries, LSN 2 to") as missed:
                taken(cursor)
        error = pickle.loads(pickle.dumps(missed.value))
        assert (error.lsn, error.first_available, error.missed) == (2, first_lsn, first_lsn - 2)
        cursor.commit(error.first_available - 1)
        assert taken(cursor) == [*range(first_lsn, 101)]


def test_what_retention_goes_by_was_made_durable_first(log: Path) -> None:
    """Else a power cut could take the cursor back below what is gone."""
    with WALWriter(log, size_limit=1200) as writer, Cursor(log, "etl") as cursor:
        fill(writer, 60, 100)
        writer.checkpoint(60)
        cursor.commit(60, sync=False)
        inode = (log / CURSORS / "etl").stat().st_ino
        order: list[str] = []

        def tap(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if name == "unlink" and str(args[0]).endswith(".wal"):
                order.append("removed")
            elif name in ("fdatasync", "fcntl") and args[0] >= 0 and os.fstat(args[0]).st_ino == inode:
                order.append("synced")
            return call(*args, **kwargs)

        with tapped(tap):
            assert writer.prune().removed
        assert order[0] == "synced" and "removed" in order


# Copies, other hands, other files


def test_a_copy_has_the_cursors_where_they_were(writer: WALWriter, log: Path, tmp_path: Path) -> None:
    fill(writer, 5)
    with Cursor(log, "etl") as cursor:
        writer.sync()
        cursor.commit(3)
        walpool.copy(log, tmp_path / "copy")
        with Cursor(tmp_path / "copy", "etl") as other:
            assert (other.position, taken(other)) == (3, [4, 5])
            other.commit(5)
        assert taken(cursor) == [4, 5] and cursor.position == 3
    assert (tmp_path / "copy" / CURSORS).stat().st_mode == (log / CURSORS).stat().st_mode


def spoil(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    data[COPY_BYTES + 20] ^= 1
    file.write_bytes(data)


def test_a_damaged_file_is_an_error_that_names_the_way_out_and_keeps_the_log(
    writer: WALWriter, log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(writer, 100, 100)
    with Cursor(log, "etl") as cursor:
        writer.sync()
        cursor.commit(50)
        cursor.commit(99)
    spoil(log / CURSORS / "etl")
    with pytest.raises(CorruptLog, match="walpool cursors LOG --reset etl"):
        Cursor(log, "etl")
    with WALMetrics.attach(log) as metrics:
        assert "neither copy" in metrics.snapshot().cursors[0].problem
    with WALWriter(log, retention=Retention(max_segments=1)) as pruner:
        assert pruner.prune().held_by_cursors > 0, "nobody knows what it needs"
    walpool.copy(log, tmp_path / "copy")
    assert "the copy does not have it" in caplog.text
    assert not (tmp_path / "copy" / CURSORS / "etl").exists()


def test_a_position_that_the_log_never_had_is_no_position(writer: WALWriter, log: Path, tmp_path: Path) -> None:
    """Else what is appended up to there would be passed by."""
    fill(writer, 3)
    with WALWriter(tmp_path / "other") as other:
        fill(other, 9)
        with Cursor(tmp_path / "other", "etl") as cursor:
            assert len(taken(cursor)) == 9
            cursor.commit(9)
    Cursor(log, "etl").close()
    (log / CURSORS / "etl").write_bytes((tmp_path / "other" / CURSORS / "etl").read_bytes())
    with pytest.raises(CorruptLog, match="at LSN 9, and the log ends at LSN 3"):
        Cursor(log, "etl")


def test_one_damaged_copy_is_the_commit_before(writer: WALWriter, log: Path) -> None:
    fill(writer, 9)
    file = log / CURSORS / "etl"
    with Cursor(log, "etl") as cursor:
        writer.sync()
        cursor.commit(4)
        cursor.commit(7)
    data = file.read_bytes()
    for at in range(POSITION_BYTES):
        spoilt = bytearray(data)
        spoilt[at] ^= 0x40
        found = unpack(bytes(spoilt))
        assert found is not None and found[0].lsn in (4, 7)
    for size in (0, 1, 32, 63, 65):
        assert unpack(data.ljust(65, b"\0")[:size]) is None


def test_files_that_could_lead_elsewhere_are_refused(writer: WALWriter, log: Path, tmp_path: Path) -> None:
    fill(writer, 2)
    with Cursor(log, "etl") as cursor:
        writer.sync()
        cursor.commit(1)
    file = log / CURSORS / "etl"
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    with pytest.raises(UnsafeLog):
        Cursor(log, "etl")
    assert writer.metrics.snapshot().cursors[0].problem
    file.unlink()
    os.link(elsewhere, file)
    with pytest.raises(UnsafeLog, match="hard links"):
        Cursor(log, "etl")
    file.unlink()
    (log / CURSORS).rmdir()
    (tmp_path / "folder").mkdir()
    (log / CURSORS).symlink_to(tmp_path / "folder")
    with pytest.raises(UnsafeLog, match="symbolic link"):
        Cursor(log, "etl")
    assert writer.metrics.snapshot().cursors == ()
    assert not list((tmp_path / "folder").iterdir())


def test_a_folder_that_anyone_may_write_to_is_refused_by_who_commits(
    writer: WALWriter, log: Path, tmp_path: Path
) -> None:
    """Who only reads may meet such a one: media without modes show every folder so."""
    fill(writer, 2)
    Cursor(log, "etl").close()
    for place in (log / CURSORS, log / CURSORS / "etl"):
        before = place.stat().st_mode
        place.chmod(before | 0o002)
        with pytest.raises(UnsafeLog, match="chmod o-w"):
            Cursor(log, "etl")
        assert len(writer.metrics.snapshot().cursors) == 1
        walpool.copy(log, tmp_path / f"copy of {place.name}")
        place.chmod(before)


def test_files_have_the_mode_of_the_log(log: Path) -> None:
    with WALWriter(log, mode=0o640) as writer:
        fill(writer, 1)
    os.umask(os.umask(0o077))
    with Cursor(log, "etl"):
        modes = {path.name: path.stat().st_mode & 0o7777 for path in (log / CURSORS, log / CURSORS / "etl")}
        assert modes == {CURSORS: log.stat().st_mode & 0o7777, "etl": 0o640}
        assert (log / "cursors.lock").stat().st_mode & 0o777 == 0o600


def test_a_file_that_was_removed_under_an_open_cursor_is_noticed_by_a_commit(writer: WALWriter, log: Path) -> None:
    fill(writer, 3)
    writer.sync()
    cursor = Cursor(log, "etl")
    (log / CURSORS / "etl").unlink()
    with pytest.raises(UnsafeLog, match="removed or replaced"):
        cursor.commit(2)
    cursor.close()


def test_a_reader_beside_it_is_not_disturbed(writer: WALWriter, log: Path) -> None:
    fill(writer, 30, 400)
    with Cursor(log, "etl") as cursor, WALReader(log) as reader:
        assert taken(cursor) == [entry.lsn for entry in reader]
