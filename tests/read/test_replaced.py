"""A log that is moved, removed or made anew under a reader: it says so once it has no more to give, and never waits.

A recovery, a rewrite, retention and a copy that grows under new names are none of these.
"""

import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.read.logs import copy_of, entries, entry_of, fill, make, read, segment_files
from tests.support import Channel, Start
from walpool import CorruptLog, LogReplaced, LSNUnavailable, SyncFailed, SyncMode, UnsafeLog, WALReader, WALWriter
from walpool.read.follow import CHECK_S, LONGEST_S
from walpool.system.calls import calls

COUNT = 12


def moved(log: Path) -> None:
    log.rename(log.with_name("old"))


def removed(log: Path) -> None:
    shutil.rmtree(log)


def moved_and_made_anew(log: Path) -> None:
    moved(log)
    make(log, 5)


def removed_and_made_anew(log: Path) -> None:
    removed(log)
    make(log, 2 * COUNT, value_bytes=7)


def emptied(log: Path) -> None:
    for file in list(log.iterdir()):
        file.unlink()


def emptied_and_made_anew(log: Path) -> None:
    emptied(log)
    make(log, 5)


def emptied_and_grown_past(log: Path) -> None:
    emptied(log)
    make(log, 3 * COUNT, value_bytes=7)


def another_in_its_place(log: Path) -> None:
    make(log.with_name("another"), COUNT)
    moved(log)
    log.with_name("another").rename(log)


CHANGES = [
    moved,
    removed,
    moved_and_made_anew,
    removed_and_made_anew,
    emptied,
    emptied_and_made_anew,
    emptied_and_grown_past,
    another_in_its_place,
]
Change = Callable[[Path], None]


@pytest.fixture(params=["live", "copy"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make(tmp_path / "log", COUNT, size_limit=64 << 20)
    return tmp_path / "log" if request.param == "live" else copy_of(tmp_path / "log", tmp_path / "copy")


@pytest.mark.parametrize("durable_only", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_follower_says_that_its_log_is_another_one(log: Path, change: Change, durable_only: bool) -> None:
    with WALReader(log) as reader:
        assert reader.read_all() == entries(1, COUNT + 1)
        change(log)
        with pytest.raises(LogReplaced) as caught:
            list(reader.follow(timeout=0, durable_only=durable_only))
        assert caught.value.path == str(log)
        assert isinstance(caught.value, UnsafeLog)
        with pytest.raises(LogReplaced):  # and again
            list(reader.follow(timeout=0, durable_only=durable_only))


@pytest.mark.parametrize("change", CHANGES)
def test_a_reader_says_so_when_it_has_nothing_more_to_give(log: Path, change: Change) -> None:
    with WALReader(log) as reader:
        assert reader.read_entry() == entry_of(1)
        change(log)
        try:
            while reader.read_entry() is not None:
                pass
        except LogReplaced:
            return
        with pytest.raises(LogReplaced):
            reader.read_entry()


@pytest.mark.parametrize("durable_only", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_follower_that_was_given_nothing_knows_its_log_by_its_id(
    log: Path, change: Change, durable_only: bool
) -> None:
    if not (log / "origin").exists():
        shutil.copy(log.with_name("log") / "origin", log)
    with WALReader(log, start="end") as reader:
        assert list(reader.follow(timeout=0, durable_only=durable_only)) == []
        change(log)
        for _ in range(2):
            with pytest.raises(LogReplaced):
                list(reader.follow(timeout=0, durable_only=durable_only))


@pytest.mark.parametrize("is_copy", [False, True])
def test_what_is_read_on_in_the_next_segment_is_of_the_same_log(tmp_path: Path, is_copy: bool) -> None:
    log = tmp_path / "log"
    make(log, 60)
    if is_copy:
        origin = log / "origin"
        log = copy_of(log, tmp_path / "copy")
        shutil.copy(origin, log)
    second = int(segment_files(log)[1].stem)
    with WALReader(log) as reader:
        found = [reader.read_entry()]
        emptied(log)
        make(log, 60)  # its second segment begins where that of the old one began
        with pytest.raises(LogReplaced):
            while True:
                found.append(reader.read_entry())
    assert found == entries(1, second)


def test_a_log_that_does_not_say_its_id_is_known_by_what_was_read(log: Path) -> None:
    (log / "origin").unlink(missing_ok=True)
    with WALReader(log) as reader:
        assert reader.read_all() == entries(1, COUNT + 1)
        assert list(reader.follow(timeout=0)) == []
        emptied(log)
        make(log, COUNT, value_bytes=7)
        with pytest.raises(LogReplaced):
            list(reader.follow(timeout=0))


def test_a_follower_that_waits_notices_within_100_ms(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clock is the sleeping it does."""
    now = 1000.0
    looked: list[float] = []
    really_stat = calls.stat

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def stat(path: str, **options: object) -> os.stat_result:
        if path == str(log):
            looked.append(now)
        return really_stat(path, **options)

    monkeypatch.setattr(calls, "sleep", sleep)
    monkeypatch.setattr(calls, "monotonic", lambda: now)
    with WALReader(log) as reader:
        monkeypatch.setattr(calls, "stat", stat)
        assert len(list(reader.follow(timeout=3))) == COUNT
    gaps = [b - a for a, b in pairwise(looked)]
    assert max(gaps) < 0.1
    assert len(looked) < 3 / CHECK_S + 2, "it looks only now and then"
    assert CHECK_S + LONGEST_S < 0.1


def follow_until_replaced(channel: Channel, log: Path) -> str:
    try:
        with WALReader(log) as reader:
            for entry in reader.follow(timeout=60):
                channel.send(entry.lsn)
    except LogReplaced as error:
        return error.reason
    return "nothing was said"


@pytest.mark.parametrize("change", [moved, removed, another_in_its_place])
def test_a_follower_that_sleeps_in_another_process_ends(tmp_path: Path, child: Start, change: Change) -> None:
    log = tmp_path / "log"
    make(log, 3)
    follower = child(follow_until_replaced, log)
    assert [follower.receive() for _ in range(3)] == [1, 2, 3]
    change(log)
    assert "was moved or removed" in follower.result()


def test_where_we_may_not_look_is_no_finding(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_stat = calls.stat

    def stat(path: str, **options: object) -> os.stat_result:
        if path == str(log):
            raise PermissionError(13, "Permission denied", path)
        return really_stat(path, **options)

    with WALReader(log) as reader:
        monkeypatch.setattr(calls, "stat", stat)
        assert list(reader.follow(timeout=0)) == entries(1, COUNT + 1)
        assert reader.read_all() == reader.read_all() == []


# What is no replacement


def test_a_recovery_replaces_the_block_and_not_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    make(log, COUNT)
    with WALReader(log) as reader:
        reader.read_all()
        for round_ in range(1, 4):
            (log / "control").unlink()
            make_more(log, 5)
            assert list(reader.follow(timeout=0)) == entries(COUNT + 5 * round_ - 4, COUNT + 5 * round_ + 1)


def make_more(log: Path, count: int) -> None:
    with WALWriter(log, size_limit=420) as writer:
        fill(writer, count)


def test_a_rewrite_after_a_failed_sync_replaces_segments_and_not_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader stands in a file that moves to quarantine; its batches are in another one, with other neighbours."""
    log = tmp_path / "log"
    make(log, 5, size_limit=64 << 20)
    reader = WALReader(log)
    behind = WALReader(log)
    assert reader.read_all() == entries(1, 6)
    assert behind.read_entry() == entry_of(1)

    def fails(fd: int) -> None:
        raise OSError(5, "Input/output error")

    writer = WALWriter(log, SyncMode.NORMAL)
    fill(writer, 4)
    writer.rotate()
    fill(writer, 4)
    monkeypatch.setattr(calls, "fdatasync", fails)
    with pytest.raises(SyncFailed):
        writer.sync()
    monkeypatch.undo()
    writer.close()
    make_more(log, 3)
    assert (log / "quarantine").exists()
    expected = read(log).entries
    assert len(expected) == 16
    with reader, behind:
        assert list(reader.follow(timeout=0)) == expected[5:]
        assert list(behind.follow(timeout=0)) == expected[1:]


def test_retention_is_no_replacement(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with WALWriter(log, size_limit=420) as writer, WALReader(log) as reader, WALReader(log) as late:
        fill(writer, COUNT)
        assert late.read_entry() == entry_of(1)
        assert reader.read_all() == entries(1, COUNT + 1)
        writer.rotate()
        writer.checkpoint(COUNT)
        writer.prune()
        assert list(reader.follow(timeout=0)) == []
        fill(writer, 4)
        assert list(reader.follow(timeout=0)) == entries(COUNT + 1, COUNT + 5)
        with pytest.raises(LSNUnavailable):
            late.read_all()


def test_a_copy_whose_files_are_replaced_by_longer_ones_is_the_same_log(tmp_path: Path) -> None:
    """As rsync does: each under a temporary name, then renamed."""
    log, copy = tmp_path / "log", tmp_path / "copy"
    make(log, 4)
    copy_of(log, copy)
    with WALReader(copy) as reader:
        found = reader.read_all()
        while len(found) < 40:
            make_more(log, 6)
            for file in segment_files(log):
                shutil.copy(file, copy / ".tmp")
                (copy / ".tmp").rename(copy / file.name)
            more = list(reader.follow(timeout=0))
            assert len(more) == 6
            found += more
        assert found == entries(1, 41)


def test_where_what_comes_next_is_gone_another_log_at_the_path_is_told_first(tmp_path: Path) -> None:
    """Not that retention removed it: of a log that is there no more."""
    log = tmp_path / "log"
    make(log, COUNT, size_limit=300)
    second = int(segment_files(log)[1].stem)
    for replaced, error in ((False, LSNUnavailable), (True, LogReplaced)):
        with WALReader(log, start=1) as reader:
            for lsn in range(1, second):
                entry = reader.read_entry()
                assert entry is not None
                assert entry.lsn == lsn
            for first in (1, second):
                (log / f"{first:020d}.wal").rename(tmp_path / str(first))
            if replaced:
                another_in_its_place(log)
            with pytest.raises(error):
                reader.read_entry()
        if not replaced:
            for first in (1, second):
                (tmp_path / str(first)).rename(log / f"{first:020d}.wal")


def test_a_header_that_cannot_be_read_is_no_damage_of_a_log_that_is_another_one_by_now(tmp_path: Path) -> None:
    log = tmp_path / "log"
    make(log, COUNT, size_limit=300)
    copy = copy_of(log, tmp_path / "copy")
    second = segment_files(copy)[1]
    for replaced, error in ((False, CorruptLog), (True, LogReplaced)):
        with WALReader(copy) as reader:
            for _ in range(1, int(second.stem)):
                reader.read_entry()
            data = second.read_bytes()
            second.write_bytes(bytes([data[0] ^ 1]) + data[1:])
            if replaced:
                another_in_its_place(copy)
            with pytest.raises(error):
                reader.read_entry()
        if not replaced:
            second.write_bytes(data)
