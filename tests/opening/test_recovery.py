"""Recovery as a whole: it changes no segment, it can be repeated and interrupted, and errors have names."""

import errno
import gc
import os
import shutil
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from tests.crash.faults import WATCHED, Killed, failing_at, killed_at, watched
from tests.format import layout
from tests.read.logs import contents, copy_of, entries, entry_of, fill, make, read, segment_files, written
from tests.support import open_under
from walpool import (
    LogFull,
    LogNotFound,
    RecoveryMode,
    SyncFailed,
    SyncMode,
    UnsafeLog,
    WALEntry,
    WALError,
    WALReader,
    WALWriter,
)
from walpool.format.header import WALHeader
from walpool.opening.aside import move_aside
from walpool.opening.rewrite import rewrite
from walpool.system import processes
from walpool.system.calls import calls
from walpool.system.files import Directory
from walpool.upkeep.verify import verify

COUNT = 14
Build = Callable[[Path], None]


# Logs that need recovery


def nothing_there(log: Path) -> None:
    """Creation goes the same way."""


def clean(log: Path) -> None:
    make(log, COUNT)
    (log / "control").unlink()


def rotated_and_empty(log: Path) -> None:
    with WALWriter(log, size_limit=400) as writer:
        fill(writer, COUNT)
        writer.sync()
        writer.rotate()
    (log / "control").unlink()


def torn_tail(log: Path) -> None:
    clean(log)
    file = segment_files(log)[-1]
    file.write_bytes(written(file)[:-7])


def hole_before_later_segments(log: Path) -> None:
    """As a power cut leaves it: a hole in unsynced bytes, and whole segments behind it."""
    segments, lsn = {}, 1
    for sequence in range(1, 6):
        data = layout.segment(lsn, layout.single(lsn, 4), sequence=sequence, marker=sequence)
        segments[lsn] = data
        lsn += 4
    hole = bytearray(segments[9])
    hole[-30:] = bytes(30)
    segments[9] = bytes(hole)
    layout.write_segments(log, segments)


def half_a_rotation(log: Path) -> None:
    clean(log)
    (log / layout.name(COUNT + 1)).write_bytes(b"WALPOOL")


def leftovers_of_killed_recoveries(log: Path) -> None:
    torn_tail(log)
    (log / "control.00112233445566aa.tmp").write_bytes(bytes(100))
    (log / "rewrite.tmp").write_bytes(b"half a rewrite")


def failed_sync(log: Path) -> None:
    real = calls.fdatasync

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, "injected")

    with WALWriter(log, size_limit=400) as writer:
        fill(writer, 9)
        writer.sync()
        calls.fdatasync = failing
        try:
            fill(writer, 11)  # several segments, all of them in doubt
            writer.sync()
        except SyncFailed:
            pass
        finally:
            calls.fdatasync = real
    assert (log / "sync.failed").exists()


BUILDS = [
    nothing_there,
    clean,
    rotated_and_empty,
    torn_tail,
    hole_before_later_segments,
    half_a_rotation,
    leftovers_of_killed_recoveries,
    failed_sync,
]


@pytest.fixture
def tmp_path(memory: Path) -> Path:
    """What is done to a log's bytes needs no disk, and here hundreds of logs are made and synced."""
    return memory


@pytest.fixture(params=BUILDS, ids=lambda build: build.__name__)
def pristine(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A log that needs recovery; tests work on copies of it."""
    path = tmp_path / request.param.__name__
    request.param(path)
    return path


class Copies:
    def __init__(self, pristine: Path, place: Path) -> None:
        self._pristine = pristine
        self._place = place
        self._number = 0

    def fresh(self) -> Path:
        self._number += 1
        path = self._place / str(self._number) / "log"
        if self._pristine.exists():
            shutil.copytree(self._pristine, path)
        return path

    def done(self, path: Path) -> None:
        shutil.rmtree(path.parent, ignore_errors=True)


def recover(path: Path) -> tuple[list[WALEntry], Any]:
    """Open, close and read: the entries, and the report."""
    with WALWriter(path, lock_timeout=10) as writer:
        report = writer.recovery_report
    found = read(path)
    assert found.error is None
    return found.entries, report


def assert_segments_kept(before: dict[str, bytes], log: Path) -> None:
    """Every segment is where it was, or in quarantine, with the bytes it had."""
    after = contents(log)
    for name, data in before.items():
        if name.endswith(".wal"):
            copies = [kept for kept in after if kept == name or kept.startswith(f"quarantine/{name}.")]
            assert any(after[kept] == data for kept in copies), f"{name} was changed or is gone: {copies}"


def open_descriptors(place: Path) -> list[str]:
    gc.collect()
    return open_under(place)


# What holds for each of them


def test_recovery_changes_no_byte_of_a_segment(pristine: Path, tmp_path: Path) -> None:
    log = Copies(pristine, tmp_path).fresh()
    before = contents(log)
    recover(log)
    assert_segments_kept(before, log)


def test_recovering_again_gives_the_same_log(pristine: Path, tmp_path: Path) -> None:
    log = Copies(pristine, tmp_path).fresh()
    first, report = recover(log)
    assert report is not None
    files = contents(log)
    segments = {name: data for name, data in files.items() if name.endswith(".wal") or "quarantine" in name}
    for _ in range(3):
        (log / "control").unlink()
        again, report = recover(log)
        assert again == first
        assert report is not None
        assert (report.cut, report.quarantined, report.intact_behind) == (None, (), 0)
        files = contents(log)
        assert {name: data for name, data in files.items() if name.endswith(".wal") or "quarantine" in name} == segments
    assert recover(log)[1] is None, "a log that was recovered needs no recovery"


def test_a_recovered_log_is_appended_to_and_has_no_damage(pristine: Path, tmp_path: Path) -> None:
    log = Copies(pristine, tmp_path).fresh()
    found, _ = recover(log)
    with WALWriter(log, size_limit=400) as writer:
        more = fill(writer, 12)
        assert writer.sync() == more[-1].lsn
    assert read(log).entries == found + more
    assert not verify(log).damaged
    (log / "control").unlink()
    assert recover(log)[0] == found + more


def test_everything_that_counts_is_durable_after_a_recovery(pristine: Path, tmp_path: Path) -> None:
    log = Copies(pristine, tmp_path).fresh()
    with WALWriter(log) as writer:
        snapshot = writer.metrics.snapshot()
        assert snapshot.durable_lsn == snapshot.next_lsn - 1
        assert snapshot.writes_total == snapshot.next_lsn - 1


@pytest.mark.slow
@pytest.mark.usefixtures("no_disk")
def test_a_recovery_killed_at_any_call_is_finished_by_the_next(pristine: Path, tmp_path: Path) -> None:
    copies = Copies(pristine, tmp_path)
    expected, _ = recover(copies.fresh())
    number = 0
    while True:
        log = copies.fresh()
        before = contents(log) if log.exists() else {}
        with killed_at(number) as trace:
            try:
                WALWriter(log).close()
            except Killed:
                pass
        if not trace.hit:
            break
        place = f"killed before call {number}, {trace.hit}"
        if log.exists() and segment_files(log):
            meanwhile = read(log)
            assert meanwhile.entries == expected[: len(meanwhile.entries)], place
        try:
            found, _ = recover(log)
        except WALError as error:
            raise AssertionError(place) from error
        assert found == expected, place
        assert_segments_kept(before, log)
        copies.done(log)
        number += 1
    assert number > 20


@pytest.mark.slow
@pytest.mark.usefixtures("no_disk")
@pytest.mark.parametrize("code", [errno.EIO])  # others: tests/crash/errors.py
def test_an_error_of_any_call_is_typed_and_the_next_recovery_gives_the_same(
    pristine: Path, tmp_path: Path, code: int
) -> None:
    copies = Copies(pristine, tmp_path)
    expected, _ = recover(copies.fresh())
    number = 0
    untyped: list[str] = []
    descriptors = open_descriptors(tmp_path)
    while True:
        log = copies.fresh()
        before = contents(log) if log.exists() else {}
        with failing_at(number, code) as trace:
            try:
                WALWriter(log).close()
            except WALError:
                pass
            except Exception as error:
                untyped.append(f"call {number}, {trace.hit}: {error!r}")
        place = f"call {number} failed, {trace.hit}"
        if not trace.hit:
            break
        found, _ = recover(log)
        assert found == expected, place
        assert_segments_kept(before, log)
        copies.done(log)
        number += 1
    assert number > 20
    assert not untyped, "\n".join(untyped)
    assert open_descriptors(tmp_path) == descriptors


def test_every_kind_of_call_can_be_failed() -> None:
    assert {"open", "pwrite", "pread", "rename", "unlink", "fdatasync", "fsync", "mmap", "flock", "stat"} <= set(
        WATCHED
    )


# Quarantine


def test_segments_behind_the_cut_move_to_quarantine_newest_first(log: Path) -> None:
    hole_before_later_segments(log)
    before = contents(log)
    with watched() as trace, WALWriter(log) as writer:
        report = writer.recovery_report
    assert report is not None
    assert report.cut is not None
    assert (report.cut.lsn, report.intact_behind) == (12, 8)
    moved = [str(name) for name, _ in trace.of("rename") if str(name).endswith(".wal")]
    assert moved == [layout.name(17), layout.name(13)]
    assert [name.split("/")[1][:24] for name in report.quarantined] == moved
    after = contents(log)
    assert [after[name] for name in report.quarantined] == [before[layout.name(17)], before[layout.name(13)]]
    steps = [str(arguments[0]) for name, arguments in trace.made if name == "rename"]
    assert steps.index("rewrite.tmp") > steps.index(moved[1]), "the old ones must be out of the way first"


def test_what_was_accepted_is_synced_before_it_is_called_durable(log: Path) -> None:
    hole_before_later_segments(log)
    opened: dict[int, str] = {}
    synced: list[str] = []
    real_open, real_sync, real_rename = calls.open, calls.fdatasync, calls.rename
    control_at: list[int] = []
    with pytest.MonkeyPatch.context() as patch:

        def note_open(path: Any, *args: Any, **named: Any) -> int:
            fd = real_open(path, *args, **named)
            opened[fd] = str(path)
            return fd

        def note_sync(fd: int) -> None:
            synced.append(opened[fd])
            real_sync(fd)

        def note_rename(name: Any, to: Any, **named: Any) -> None:
            if to == "control":
                control_at.append(len(synced))
            real_rename(name, to, **named)

        patch.setattr(calls, "open", note_open)
        patch.setattr(calls, "fdatasync", note_sync)
        patch.setattr(calls, "rename", note_rename)
        WALWriter(log).close()
    assert set(synced[: control_at[0]]) >= {layout.name(lsn) for lsn in (1, 5, 9)} | {"rewrite.tmp"}


def test_two_recoveries_that_quarantine_the_same_name_keep_both(log: Path) -> None:
    make(log, COUNT)
    first = segment_files(log)[-1].name
    lsn = int(first[:20])
    evidence = []
    for number in range(3):
        (log / "control").unlink()
        data = bytearray(layout.segment(lsn, layout.single(lsn, 2), sequence=50 + number, marker=5))
        data[64 + number] ^= 1  # its first frame is torn, so nothing in it counts
        (log / first).write_bytes(data)
        evidence.append(bytes(data))
        found, report = recover(log)
        assert found == entries(1, lsn)
        assert len(report.quarantined) == 1
    kept = [data for name, data in contents(log).items() if name.startswith("quarantine/")]
    assert sorted(kept) == sorted(evidence)


def test_blocks_of_another_segment_that_a_power_cut_left_are_no_evidence_of_this_one(log: Path) -> None:
    """The file system gave a new segment blocks that were an older one's, and what was written there did not arrive."""
    make(log, COUNT)
    stale = layout.segment(71, layout.single(71, 4), sequence=3, marker=9, frames_durable=70)
    (log / layout.name(COUNT + 1)).write_bytes(stale)
    (log / "control").unlink()
    found, report = recover(log)
    assert found == entries(1, COUNT + 1)
    assert report is not None and len(report.quarantined) == 1


def test_the_segment_of_a_recovery_has_a_number_that_none_before_it_has(log: Path) -> None:
    """Also where only a segment without its header is read, whose frames say that all before it is durable."""
    first = layout.segment(1, layout.single(1, 3), sequence=6, marker=1)
    second = layout.segment(4, layout.single(4, 2), sequence=7, marker=2, durable_lsn=3)
    last = layout.segment(6, layout.single(6, 2), sequence=8, marker=3, frames_durable=5)
    layout.write_segments(log, {1: first, 4: second, 6: bytes(64) + last[64:]})
    found, _ = recover(log)
    assert [entry.lsn for entry in found] == [1, 2, 3, 4, 5]
    assert [WALHeader.decode(file.read_bytes()).sequence for file in segment_files(log)] == [6, 7, 8]


def test_a_segment_that_a_rewrite_has_overtaken_is_not_gone_on_in(log: Path) -> None:
    """What is written anew has a higher number than the empty segment behind it, which was there before."""
    rotated_and_empty(log)
    files = segment_files(log)
    high, low = processes.boot_id()
    (log / "sync.failed").write_text(f"{high:016x}{low:016x} {int(files[-2].stem) - 1} 5\n")
    found, _ = recover(log)
    assert found == entries(1, COUNT + 1)
    count = len(files)
    numbers = [WALHeader.decode(file.read_bytes()).sequence for file in segment_files(log)]
    assert numbers == [*range(1, count - 1), count + 1, count + 2]


@pytest.mark.parametrize("doubtful", [False, True])
def test_a_move_to_quarantine_that_was_killed_in_the_middle_is_taken_back(log: Path, doubtful: bool) -> None:
    """A file with two names is refused, so a rewrite that was killed between its link and its rename ended the log."""
    make(log, COUNT)
    segment = segment_files(log)[-1]
    (log / "quarantine").mkdir()
    os.link(segment, log / "quarantine" / f"{segment.name}.1")
    (log / "quarantine" / "00000000000000000001.wal.2").write_bytes(b"evidence")
    if doubtful:
        high, low = processes.boot_id()
        (log / "sync.failed").write_text(f"{high:016x}{low:016x} {int(segment.stem) - 1} 5\n")
    (log / "control").unlink()
    found, _ = recover(log)
    assert found == entries(1, COUNT + 1)
    kept = {file.name for file in (log / "quarantine").iterdir()}
    assert f"{segment.name}.1" not in kept
    assert len(kept) == 1 + doubtful


@pytest.mark.parametrize("plant", ["symlink", "file", "fifo"])
def test_what_is_not_a_directory_in_quarantines_place_is_refused(log: Path, tmp_path: Path, plant: str) -> None:
    hole_before_later_segments(log)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = log / "quarantine"
    if plant == "symlink":
        place.symlink_to(elsewhere)
    elif plant == "file":
        place.write_bytes(b"precious")
    else:
        os.mkfifo(place)
    before = contents(log)
    with pytest.raises(UnsafeLog):
        WALWriter(log)
    assert list(elsewhere.iterdir()) == []
    after = contents(log)
    assert {name: after.get(name) for name in before} == before
    place.unlink()
    assert recover(log)[0] == entries(1, 12)


# What the report and the totals say


def test_a_report_says_what_was_read(log: Path) -> None:
    hole_before_later_segments(log)
    with WALWriter(log, recovery=RecoveryMode.POINT_IN_TIME) as writer:
        report = writer.recovery_report
        assert report is not None
        assert (report.segments, report.segments_scanned) == (4, 5)
        assert (report.entries, report.batches) == (19, 19)
        assert (report.durable_lsn, report.next_lsn) == (0, 12)
        assert report.cut is not None
        assert report.cut.path == str(log / layout.name(9))
    with WALWriter(log) as writer:
        assert writer.recovery_report is None


def test_totals_outlive_a_recovery(log: Path) -> None:
    with WALWriter(log, size_limit=400) as writer:
        fill(writer, COUNT)
        writer.sync()
        writer.put(b"largest", bytes(200))
        before = writer.metrics.snapshot()
    control = bytearray((log / "control").read_bytes())
    control[3 * 8] ^= 1  # another boot; the identity's checksum with it
    from crc32c import crc32c

    control[7 * 8 : 8 * 8] = crc32c(bytes(control[8 * 8 : 13 * 8]), crc32c(bytes(control[: 6 * 8]))).to_bytes(
        8, "little"
    )
    (log / "control").write_bytes(control)
    with WALWriter(log) as writer:
        report = writer.recovery_report
        assert report is not None
        assert "boot" in report.reason
        after = writer.metrics.snapshot()
    for name in ("writes_total", "batches_total", "bytes_written", "max_entry_size", "sync_total"):
        assert getattr(after, name) >= getattr(before, name), name
    assert (after.writes_total, after.max_entry_size) == (COUNT + 1, 16 + 7 + 200)
    assert after.batches_total == before.batches_total
    assert after.bytes_written == before.bytes_written


def test_a_copy_gets_its_own_life_and_the_original_stays_as_it_is(log: Path, tmp_path: Path) -> None:
    make(log, COUNT)
    copy = tmp_path / "copy"
    shutil.copytree(log, copy)
    before = contents(log)
    with WALWriter(copy) as writer:
        assert writer.recovery_report is not None
        assert writer.append(entry_of(COUNT + 1)) == COUNT + 1
    assert contents(log) == before
    with WALWriter(log) as writer:
        assert writer.recovery_report is None
        assert writer.put(b"another", b"life") == COUNT + 1
    assert read(copy).entries == entries(1, COUNT + 2)


def test_segments_of_an_archive_become_a_log(log: Path, tmp_path: Path) -> None:
    """Retention removed the front: the first segment does not start at LSN 1."""
    make(log, COUNT)
    copy = copy_of(log, tmp_path / "copy")
    files = segment_files(copy)
    first = int(files[2].stem)
    files[0].unlink()
    files[1].unlink()
    with WALWriter(copy) as writer:
        assert writer.append(entry_of(COUNT + 1)) == COUNT + 1
    assert read(copy, start=first).entries == entries(first, COUNT + 2)


def test_a_directory_with_foreign_files_becomes_a_log_only_if_that_is_asked_for(log: Path) -> None:
    log.mkdir()
    (log / "notes.txt").write_text("hello")
    with pytest.raises(LogNotFound):
        WALReader(log)
    with pytest.raises(UnsafeLog, match=r"notes\.txt.*allow_other_files"):
        WALWriter(log)
    assert [file.name for file in log.iterdir()] == ["notes.txt"], "and nothing was made in it"
    with WALWriter(log, allow_other_files=True) as writer:
        assert writer.put(b"key", b"value") == 1
    with WALWriter(log) as writer:  # now it is a log
        assert writer.put(b"key", b"value") == 2
    assert (log / "notes.txt").read_text() == "hello"


def test_the_files_of_a_recovered_log_have_the_mode_that_was_asked_for(log: Path) -> None:
    hole_before_later_segments(log)
    with WALWriter(log, mode=0o640) as writer:
        writer.put(b"key", b"value")
    assert (log / "control").stat().st_mode & 0o777 == 0o640
    assert (log / layout.name(12)).stat().st_mode & 0o777 == 0o640
    for name in ("append.lock", "sync.lock", "slots.lock", "maintenance.lock"):
        assert (log / name).stat().st_mode & 0o777 == 0o600, "whoever may only read must not lock writers out"


def test_a_rewrite_of_nothing_and_one_without_room_leave_no_file_and_change_none(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(log, 5)
    before = contents(log)
    directory = Directory(log)
    assert rewrite(directory, 6, 0o600) == 0
    assert contents(log) == before

    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(calls, "pwrite", full)
    with pytest.raises(LogFull):
        rewrite(directory, 3, 0o600)
    assert contents(log) == before
    directory.close()


def test_a_mark_that_says_nothing_leaves_what_the_segments_vouch_for_as_it_is(log: Path) -> None:
    """Its own write failed, too: what is above the highest durable LSN is written anew, and nothing below it."""
    with WALWriter(log, SyncMode.FULL, size_limit=300) as writer:
        done = fill(writer, COUNT)
    durable_lsn = int(segment_files(log)[-1].stem) - 1
    below = {file.name: file.stat().st_ino for file in segment_files(log) if int(file.stem) < durable_lsn}
    assert len(below) > 2
    (log / "sync.failed").write_bytes(b"")
    found, _ = recover(log)
    assert found == done
    kept = {file.name: file.stat().st_ino for file in segment_files(log)}
    assert kept.items() >= below.items()


@pytest.mark.parametrize("harm", ["flipped in the middle", "cut at the end"])
def test_only_damage_as_copies_have_it_is_refused_with_how_copies_are_made(
    log: Path, tmp_path: Path, harm: str
) -> None:
    make(log, COUNT, size_limit=64 << 20)
    copy = copy_of(log, tmp_path / "copy")
    (file,) = segment_files(copy)
    data = bytearray(file.read_bytes())
    if harm == "flipped in the middle":
        data[64 + 50] ^= 1
    else:
        del data[-3:]
    file.write_bytes(data)
    with pytest.raises(WALError) as refused:
        WALWriter(copy, recovery=RecoveryMode.STRICT)
    assert "walpool copy" not in str(refused.value)


def test_what_is_written_anew_is_not_looked_for_in_the_segment_before(log: Path) -> None:
    """Which may be damaged: it was on disk, and recovery has no need of it."""
    with WALWriter(log, SyncMode.FULL, size_limit=300) as writer:
        fill(writer, COUNT)
    before, doubtful = segment_files(log)[-3:-1]
    data = bytearray(before.read_bytes())
    data[50] ^= 1
    before.write_bytes(data)
    high, low = processes.boot_id()
    (log / "sync.failed").write_text(f"{high:016x}{low:016x} {int(doubtful.stem) - 1} 5\n")
    made = doubtful.stat().st_ino
    WALWriter(log).close()
    assert doubtful.stat().st_ino != made
    assert before.read_bytes() == data


@pytest.mark.usefixtures("linux")
def test_a_segment_has_its_new_name_on_disk_before_its_old_one_is_forgotten(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(log, COUNT)
    made: list[str] = []

    def told(name: str) -> Callable[..., Any]:
        call = getattr(calls, name)

        def tell(*args: Any, **kwargs: Any) -> Any:
            made.append(name if name == "rename" else os.path.basename(os.readlink(f"/proc/self/fd/{args[0]}")))
            return call(*args, **kwargs)

        return tell

    directory = Directory(log)
    for name in ("rename", "fsync"):
        monkeypatch.setattr(calls, name, told(name))
    move_aside(directory, int(segment_files(log)[-1].stem))
    directory.close()
    assert made == ["rename", "quarantine"]


def test_a_recovery_that_cut_says_where_the_log_ends_now_and_why(log: Path) -> None:
    torn_tail(log)
    with WALWriter(log) as writer:
        report = writer.recovery_report
        last_lsn = writer.metrics.snapshot().next_lsn - 1
    assert report is not None
    assert report.cut is not None
    assert report.told("events") == [
        f"events: recovered; the log ends at LSN {last_lsn} because of damage at offset {report.cut.offset} of"
        f" {report.cut.path}: {report.cut.reason}; 0 intact entries lie behind it and are kept as evidence"
    ]
    for value, name in ((report, "next_lsn"), (report.cut, "offset")):
        assert hash(value) == hash(replace(value))
        assert not hasattr(value, "__dict__")
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 0)
