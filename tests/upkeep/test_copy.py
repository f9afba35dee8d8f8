"""Copying a log while it is written to: what the copy holds, and that nothing half-made is ever left behind."""

import errno
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import walpool
from tests.crash.faults import Killed, Trace, failing_at, killed_at, watched
from tests.crash.scripts import after_a_failed_sync
from tests.format import layout
from tests.oracle import second
from tests.read.logs import contents, copy_of, entries, entry_of, fill, make, read, segment_files, spans
from tests.support import Channel, Start
from walpool import (
    CopyReport,
    CorruptLog,
    LogBusy,
    LogNotFound,
    Retention,
    UnsafeLog,
    WALError,
    WALReader,
    WALWriter,
)
from walpool.shared.catalog import CHUNK_BYTES
from walpool.system.calls import calls
from walpool.system.files import Directory
from walpool.system.locks import try_lock
from walpool.upkeep.copy import TEMPORARY
from walpool.upkeep.verify import verify

COUNT = 40


@pytest.fixture
def log(tmp_path: Path) -> Path:
    make(tmp_path / "log", COUNT)
    return tmp_path / "log"


@pytest.fixture
def dest(tmp_path: Path) -> Iterator[Path]:
    """Where a copy goes. Whatever is there in the end is a whole log, and nothing else is in its files."""
    yield tmp_path / "copy"
    if segment_files(tmp_path / "copy"):
        second.agree(tmp_path / "copy", read(tmp_path / "copy").entries, state=second.State.CLOSED)


def beside(dest: Path) -> set[str]:
    """What there is, other than the log."""
    return set(os.listdir(dest.parent)) - {"log"}


# What it holds


def test_a_copy_is_the_log_and_a_log_of_its_own(log: Path, dest: Path) -> None:
    with WALWriter(log, mode=0o640) as writer:
        writer.checkpoint(11)
        fill(writer, 3)
        before = {name: data for name, data in contents(log).items() if name.endswith(".wal")}
        report = walpool.copy(log, dest)
        assert report == CopyReport(
            str(dest),
            1,
            COUNT + 4,
            len(before),
            sum(file.stat().st_size for file in segment_files(dest)),
            report.reflinked,
        )
        assert read(dest).entries == entries(1, COUNT + 4)
        assert verify(dest).findings == []
        assert walpool.checkpoint(dest) == 11
        assert {file.name for file in dest.iterdir()} == {*before, "checkpoint", "origin"}
        assert (dest / "origin").read_bytes()[8:24] != (log / "origin").read_bytes()[8:24], "the log's id is its own"
        assert {name: data for name, data in contents(log).items() if name.endswith(".wal")} == before
    with WALWriter(dest) as writer:
        assert writer.append(entry_of(COUNT + 4)) == COUNT + 4
        assert writer.checkpoint(3) == 11
    assert read(log).entries == entries(1, COUNT + 4), "the copy's writer wrote into the log"


def test_a_copy_has_files_of_its_own_with_the_modes_of_the_log(log: Path, dest: Path) -> None:
    log.chmod(0o750)
    segment_files(log)[1].chmod(0o640)
    walpool.copy(log, dest)
    assert stat.S_IMODE(dest.stat().st_mode) == 0o750
    for mine, theirs in zip(segment_files(dest), segment_files(log), strict=True):
        assert mine.stat().st_mode == theirs.stat().st_mode
        assert mine.stat().st_ino != theirs.stat().st_ino
        assert mine.stat().st_nlink == 1


def test_a_copy_of_a_pruned_log_starts_where_the_log_does(log: Path, dest: Path) -> None:
    with WALWriter(log) as writer:
        writer.checkpoint(20)
        first = writer.prune().first_lsn
    report = walpool.copy(log, dest)
    assert (report.first_lsn, report.next_lsn) == (first, COUNT + 1)
    assert read(dest).entries == entries(first, COUNT + 1)


def test_a_log_without_an_entry_is_copied(tmp_path: Path, dest: Path) -> None:
    WALWriter(tmp_path / "log").close()
    report = walpool.copy(tmp_path / "log", dest)
    assert (report.first_lsn, report.next_lsn, read(dest).entries) == (1, 1, [])


def test_zeros_and_appends_behind_the_tail_are_not_copied(log: Path, dest: Path) -> None:
    file = segment_files(log)[-1]
    data = file.read_bytes().rstrip(b"\0")
    file.write_bytes(data + b"an append under way" + bytes(9000))
    walpool.copy(log, dest)
    assert (dest / file.name).read_bytes() == data
    assert verify(dest).findings == []


def test_what_is_appended_meanwhile_is_not_in_the_copy(log: Path, dest: Path) -> None:
    with WALWriter(log, size_limit=420) as writer:
        report = walpool.copy(log, dest, lambda done, total: fill(writer, 3) and None)
        assert writer.metrics.snapshot().next_lsn > COUNT + 20
    assert report.next_lsn == COUNT + 1
    assert read(dest).entries == entries(1, COUNT + 1)


def test_a_log_without_a_control_block_is_copied_as_far_as_its_frames_go(log: Path, tmp_path: Path, dest: Path) -> None:
    archive = copy_of(log, tmp_path / "archive")
    last = segment_files(archive)[-1]
    *_, span = spans({last.name: last.read_bytes()})
    last.write_bytes(last.read_bytes()[:-3] + bytes(500))  # a torn tail
    report = walpool.copy(archive, dest)
    assert report.next_lsn == span.first_lsn
    assert read(dest).entries == entries(1, span.first_lsn)
    assert verify(dest).findings == []
    shutil.rmtree(dest)
    (archive / layout.name(span.first_lsn)).write_bytes(bytes(64))  # a rotation that was cut
    assert walpool.copy(archive, dest).next_lsn == span.first_lsn
    assert len(segment_files(dest)) == len(segment_files(archive)) - 1


def test_large_files_are_copied_in_pieces(tmp_path: Path, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(*args: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(calls, "ioctl", ioctl)
    log = tmp_path / "log"
    with WALWriter(log) as writer:
        for value in range(3):
            writer.put(b"key", bytes([value + 1]) * (CHUNK_BYTES * 3 // 2))
        writer.rotate()
        writer.put(b"key", b"value")
    told: list[tuple[int, int]] = []
    report = walpool.copy(log, dest, lambda done, total: told.append((done, total)))
    assert report.reflinked == 0
    assert [(e.key, e.value) for e in read(dest).entries] == [(e.key, e.value) for e in read(log).entries]
    assert told == sorted(told)
    assert len(told) > 4


def test_where_the_file_system_can_blocks_are_shared(log: Path, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FICLONE does, only that this one copies: not every machine has a file system that can."""

    def ioctl(to: int, request: int, source: int) -> int:
        assert request == 0x40049409
        os.pwrite(to, os.pread(source, 1 << 20, 0), 0)
        return 0

    monkeypatch.setattr(calls, "ioctl", ioctl)
    report = walpool.copy(log, dest)
    assert report.reflinked == report.segments - 1, "the active segment is copied up to the tail"
    assert read(dest).entries == entries(1, COUNT + 1)


def append_until_told(channel: Channel, log: Path, name: str) -> int:
    with WALWriter(log, size_limit=30_000) as writer:
        number = 0
        while number < 4000 and not channel.connection.poll():
            lsns = writer.append_batch([walpool.WALEntry.put(name.encode(), b"%d" % number * 20)] * (1 + number % 3))
            number += 1
            if number % 500 == 1:
                channel.send(lsns[-1])
        channel.receive()
        return number


def test_copies_beside_busy_writers_are_prefixes(tmp_path: Path, child: Start) -> None:
    log = tmp_path / "log"
    writers = [child(append_until_told, log, name) for name in "ab"]
    acknowledged = max(writer.receive() for writer in writers)
    copies = []
    for number in range(5):
        acknowledged = max(acknowledged, *(writer.receive() for writer in writers))
        copies.append((acknowledged, walpool.copy(log, tmp_path / f"copy {number}")))
    for writer in writers:
        writer.send("enough")
    for writer in writers:
        while writer.next()[0] != "result":
            pass
    everything = read(log).entries
    for acknowledged, report in copies:
        assert report.next_lsn > acknowledged
        assert read(Path(report.path)).entries == everything[: report.next_lsn - 1]
        second.agree(Path(report.path), everything[: report.next_lsn - 1], state=second.State.CLOSED)


# Retention


def prune_all(writer: WALWriter) -> None:
    fill(writer, 12)
    writer.checkpoint(writer.metrics.snapshot().next_lsn - 1)
    writer.prune()


def test_retention_keeps_what_is_being_copied(log: Path, dest: Path) -> None:
    with WALWriter(log, size_limit=420, retention=Retention()) as writer:
        report = walpool.copy(log, dest, lambda done, total: prune_all(writer))
        assert writer.prune().first_lsn > COUNT
    assert (report.first_lsn, read(dest).entries) == (1, entries(1, COUNT + 1))


def test_a_copy_of_a_log_that_retention_prunes_in_spite_of_pins_starts_later(log: Path, dest: Path) -> None:
    files = [int(file.stem) for file in segment_files(log)]

    def prune(done: int, total: int) -> None:
        for first in files[:4]:
            (log / layout.name(first)).unlink(missing_ok=True)

    report = walpool.copy(log, dest, prune)
    assert (report.first_lsn, report.next_lsn) == (files[4], COUNT + 1)
    assert read(dest).entries == entries(files[4], COUNT + 1)


def test_a_log_of_which_nothing_is_left_is_copied_as_it_is_then(log: Path, dest: Path) -> None:
    old = segment_files(log)
    with WALWriter(log, size_limit=420) as writer:

        def prune(done: int, total: int) -> None:
            if old[0].exists():
                writer.rotate()
                fill(writer, 5)
                for file in old:
                    file.unlink(missing_ok=True)

        report = walpool.copy(log, dest, prune)
    assert (report.first_lsn, report.next_lsn) == (COUNT + 1, COUNT + 6)
    assert read(dest).entries == entries(COUNT + 1, COUNT + 6)


# What is refused


def a_file(place: Path) -> None:
    place.write_bytes(b"precious")


def a_directory(place: Path) -> None:
    place.mkdir()


def a_dangling_link(place: Path) -> None:
    place.symlink_to("nowhere")


@pytest.mark.parametrize("plant", [a_file, a_directory, a_dangling_link])
def test_a_copy_replaces_nothing(log: Path, dest: Path, plant: Callable[[Path], None]) -> None:
    plant(dest)
    before = dest.lstat()
    with pytest.raises(UnsafeLog, match="it exists already"):
        walpool.copy(log, dest)
    assert dest.lstat() == before
    assert beside(dest) == {"copy"}


def test_what_is_no_place_for_a_copy_is_refused(log: Path, dest: Path) -> None:
    for place in (dest / "in" / "nowhere", log / "inside", Path("/")):
        with pytest.raises(UnsafeLog):
            walpool.copy(log, place)
    for nothing in (dest.with_name("missing"), dest.parent):
        with pytest.raises(LogNotFound):
            walpool.copy(nothing, dest)
    assert beside(dest) == set()
    assert "inside" not in os.listdir(log)


def test_a_directory_above_the_copy_may_be_a_link(log: Path, dest: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "above").symlink_to("elsewhere")
    walpool.copy(log, tmp_path / "above" / "copy")
    assert read(tmp_path / "elsewhere" / "copy").entries == entries(1, COUNT + 1)


@pytest.mark.parametrize("at", [0, 2, -1])
def test_a_damaged_log_gives_no_copy_and_says_where_it_is_damaged(log: Path, dest: Path, at: int) -> None:
    file = segment_files(log)[at]
    data = bytearray(file.read_bytes())
    span = next(spans({file.name: bytes(data)}))
    data[span.offset + 50] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptLog) as caught:
        walpool.copy(log, dest)
    assert (caught.value.path, caught.value.offset, caught.value.lsn) == (str(file), span.offset, span.first_lsn)
    assert beside(dest) == set()


def test_a_log_that_misses_a_segment_gives_no_copy(log: Path, dest: Path) -> None:
    segment_files(log)[2].unlink()
    with pytest.raises(CorruptLog):
        walpool.copy(log, dest)
    assert beside(dest) == set()


def test_two_copies_to_one_place_are_one_too_many(log: Path, dest: Path) -> None:
    other = dest.with_name(dest.name + TEMPORARY)
    other.mkdir()
    held = Directory(other)
    assert try_lock(held.fd)
    with pytest.raises(LogBusy, match="another copy"):
        walpool.copy(log, dest)
    assert beside(dest) == {other.name}
    held.close()
    walpool.copy(log, dest)
    assert beside(dest) == {"copy"}


def test_somebody_elses_files_under_the_temporary_name_stay(log: Path, dest: Path) -> None:
    other = dest.with_name(dest.name + TEMPORARY)
    other.mkdir()
    (other / "precious").write_bytes(b"mine")
    with pytest.raises(UnsafeLog, match="precious"):
        walpool.copy(log, dest)
    assert (other / "precious").read_bytes() == b"mine"


# Nothing half-made is left


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(calls, "fsync", lambda fd: None)  # hundreds of copies: the disk's time is not what is tested
    monkeypatch.setattr(calls, "fdatasync", lambda fd: None)
    with WALWriter(tmp_path / "log", size_limit=420) as writer:
        fill(writer, 7)
        writer.checkpoint(3)
    return tmp_path / "log"


def until_it_succeeds(dest: Path, attempt: Callable[[int], Trace | None]) -> int:
    """How many calls there were in which something could go wrong."""
    for number in range(2000):
        if attempt(number) is None:
            return number
    raise AssertionError("it never ended")


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_in_any_call_leaves_nothing(small: Path, dest: Path, code: int) -> None:
    def attempt(number: int) -> Trace | None:
        with failing_at(number, code) as trace:
            try:
                walpool.copy(small, dest)
            except (WALError, OSError):
                assert trace.hit
                assert beside(dest) == set(), trace.hit
                return trace
        assert read(dest).entries == entries(1, 8)
        assert beside(dest) == {"copy"}
        shutil.rmtree(dest)
        return trace if trace.hit else None  # an error that did no harm: of a look that has another way

    assert until_it_succeeds(dest, attempt) > 60


def test_an_interrupt_in_any_call_leaves_nothing(small: Path, dest: Path) -> None:
    def attempt(number: int) -> Trace | None:
        came = False

        def before(now: int, name: str) -> None:
            nonlocal came
            if now == number and not came:
                came = True
                raise KeyboardInterrupt

        with watched(before) as trace:
            try:
                walpool.copy(small, dest)
            except KeyboardInterrupt:
                assert beside(dest) == set(), trace.hit
                return trace
        assert beside(dest) == {"copy"}
        shutil.rmtree(dest)
        return None

    assert until_it_succeeds(dest, attempt) > 60


def test_a_kill_at_any_call_leaves_the_temporary_name_at_most_and_the_next_copy_removes_it(
    small: Path, dest: Path
) -> None:
    temporary = dest.name + TEMPORARY
    left: set[frozenset[str]] = set()

    def attempt(number: int) -> Trace | None:
        with killed_at(number) as trace:
            try:
                walpool.copy(small, dest)
            except Killed:
                pass
        if not trace.hit:
            return None
        there = frozenset(beside(dest))
        left.add(there)
        assert there <= {temporary} or there == {"copy"}, trace.hit
        if "copy" not in there:
            walpool.copy(small, dest)
        assert beside(dest) == {"copy"}
        assert read(dest).entries == entries(1, 8)
        shutil.rmtree(dest)
        return trace

    assert until_it_succeeds(dest, attempt) > 60
    assert left == {frozenset(), frozenset({temporary}), frozenset({"copy"})}


def copy_slowly(channel: Channel, log: Path, dest: Path) -> None:
    def progress(done: int, total: int) -> None:
        channel.send(done)
        channel.receive()

    walpool.copy(log, dest, progress)


def test_a_killed_copy_leaves_a_name_that_the_next_one_takes_over(log: Path, dest: Path, child: Start) -> None:
    copying = child(copy_slowly, log, dest)
    copying.receive()
    copying.ask("go on")
    assert beside(dest) == {dest.name + TEMPORARY}
    with pytest.raises(LogBusy):
        walpool.copy(log, dest)
    copying.kill()
    assert copying.died() == -signal.SIGKILL
    with WALReader(log) as reader:
        last = reader.last_lsn
    assert walpool.copy(log, dest).next_lsn == last + 1
    assert beside(dest) == {"copy"}


def test_copying_gives_every_descriptor_back(log: Path, dest: Path, linux: None) -> None:
    before = os.listdir("/proc/self/fd")
    walpool.copy(log, dest)
    with pytest.raises(UnsafeLog):
        walpool.copy(log, dest)
    assert os.listdir("/proc/self/fd") == before


def test_a_copy_in_the_moment_of_a_recovery_begins_again(memory: Path) -> None:
    """At each file that the copy opens. After a failed sync, a recovery writes segments anew, under other names."""
    number, came = 0, True
    while came:
        log, came, opened = memory / f"{number}", False, 0
        after_a_failed_sync(log, lambda *_: None)

        def recover(now: int, name: str, log: Path = log, at: int = number) -> None:
            nonlocal came, opened
            if name == "open" and not came:
                opened += 1
                if opened > at:
                    came = True
                    WALWriter(log).close()

        with watched(recover):
            walpool.copy(log, memory / "copy")
        assert read(memory / "copy") == read(log)
        shutil.rmtree(memory / "copy")
        shutil.rmtree(log)
        number += 1
    assert number > 10


def test_what_is_missing_before_a_segment_that_was_being_made_is_damage_and_no_end(tmp_path: Path) -> None:
    """The torn header says where that segment would begin: up to there its predecessor has to reach."""
    log = layout.write_segments(tmp_path / "log", {1: layout.segment(1, layout.single(1, 3)), 5: b"WALPOOL"})
    with pytest.raises(CorruptLog):
        walpool.copy(log, tmp_path / "copy")
    (log / layout.name(5)).rename(log / layout.name(4))
    assert walpool.copy(log, tmp_path / "copy").next_lsn == 4
