"""WALReader: which entries it gives, from where, and what it tells about itself."""

import mmap
import os
import pickle
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.format import layout
from tests.read.logs import contents, copy_of, entries, entry_of, fill, make, read, segment_files, written
from tests.support import open_under
from walpool import (
    CorruptLog,
    LogClosed,
    LogNotFound,
    LSNUnavailable,
    Operation,
    RecoveryMode,
    SyncMode,
    UnsafeLog,
    UnsupportedVersion,
    WALEntry,
    WALReader,
    WALWriter,
)
from walpool.system.calls import calls
from walpool.upkeep.verify import verify

COUNT = 40


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """40 entries in several segments."""
    path = tmp_path / "log"
    make(path, COUNT)
    assert len(segment_files(path)) > 5
    return path


@pytest.fixture(params=["live", "closed", "copy"])
def any_log(request: pytest.FixtureRequest, log: Path, tmp_path: Path) -> Any:
    """The same log with a writer at work, without one, and as a copy without a control block."""
    if request.param == "live":
        with WALWriter(log):
            yield log
    else:
        yield log if request.param == "closed" else copy_of(log, tmp_path / "copy")


# Which entries


def test_every_entry_comes_once_and_in_order(any_log: Path) -> None:
    for mode in RecoveryMode:
        with WALReader(any_log, mode=mode) as reader:
            assert reader.read_all() == entries(1, COUNT + 1)
            assert reader.read_all() == []
            assert reader.stats.damaged == 0


def test_reading_starts_at_any_lsn(any_log: Path) -> None:
    for start in range(1, COUNT + 10):
        with WALReader(any_log, start=start) as reader:
            assert reader.next_lsn >= start
            assert reader.read_all() == entries(start, COUNT + 1), start


def test_past_the_end_is_empty_until_the_log_gets_there(log: Path) -> None:
    with WALReader(log, start=COUNT + 3) as reader, WALReader(log) as other:
        assert reader.read_entry() is None
        other.read_all()
        with WALWriter(log, size_limit=500) as writer:
            fill(writer, 2)
            assert reader.read_entry() is None
            assert other.read_all() == entries(COUNT + 1, COUNT + 3)
            fill(writer, 30)
        assert reader.read_all() == entries(COUNT + 3, COUNT + 33)
        assert other.read_all() == entries(COUNT + 3, COUNT + 33)


def test_past_the_end_of_a_copy_is_empty_until_the_copy_gets_there(log: Path, tmp_path: Path) -> None:
    copy = copy_of(log, tmp_path / "copy")
    with WALReader(copy, start=COUNT + 3) as reader, WALReader(copy) as other:
        assert reader.read_entry() is None
        other.read_all()
        with WALWriter(copy) as writer:
            fill(writer, 9)
        assert other.read_all() == entries(COUNT + 1, COUNT + 10)
        assert reader.read_all() == entries(COUNT + 3, COUNT + 10)


def test_entry_by_entry_batch_by_batch_and_all_the_rest_can_be_mixed(log: Path) -> None:
    with WALReader(log) as reader:
        found = [reader.read_entry(), reader.read_entry(), reader.read_entry()]
        found.append(next(iter(reader)))
        found.extend(entry for entry, _ in zip(reader, range(3), strict=False))
        batch = next(reader.batches())
        at = found[-1].lsn if found[-1] else 0
        assert found == entries(1, at + 1)
        rest = reader.read_all()
        assert rest == entries(batch.first_lsn + batch.count, COUNT + 1)


def test_batches_are_those_that_were_appended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    sizes = [1, 5, 2, 1, 9]
    with WALWriter(log, size_limit=600) as writer:
        lsn = 1
        for size in sizes:
            writer.append_batch(entries(lsn, lsn + size))
            lsn += size
    with WALReader(log) as reader:
        batches = list(reader.batches())
    assert [batch.count for batch in batches] == sizes
    assert [batch.first_lsn for batch in batches] == [1, 2, 7, 9, 10]
    assert [entry for batch in batches for entry in batch.entries] == entries(1, lsn)
    times = [batch.appended_at for batch in batches]
    assert times == sorted(times)
    with WALReader(log, start=4) as reader:
        assert [(batch.first_lsn, batch.count) for batch in reader.batches()] == [(4, 3), (7, 2), (9, 1), (10, 9)]


def test_appends_that_come_while_reading_are_read(log: Path) -> None:
    found = []
    with WALReader(log) as reader, WALWriter(log, size_limit=500) as writer:
        for entry in reader:
            found.append(entry)
            if entry.lsn < 3 * COUNT:
                fill(writer, 1)
    assert found == entries(1, 4 * COUNT)


def test_nothing_behind_the_published_tail_is_read(log: Path) -> None:
    last = segment_files(log)[-1]
    marker = int.from_bytes(last.read_bytes()[56:60], "little")
    end = len(written(last))
    for leftover in (layout.frame(COUNT + 1, [(1, b"not", b"published", 1)], marker=marker), b"junk" * 30, bytes(100)):
        last.write_bytes(last.read_bytes()[:end] + leftover)
        for mode in RecoveryMode:
            assert read(log, mode=mode).entries == entries(1, COUNT + 1)
            assert read(log, mode=mode).error is None


def test_a_segment_that_the_log_has_not_switched_to_is_not_read(log: Path) -> None:
    follower = log / layout.name(COUNT + 1)
    for left in (b"", layout.header(COUNT + 1)[:30], layout.header(COUNT + 1)):
        follower.write_bytes(left)
        for mode in RecoveryMode:
            assert (read(log, mode=mode).entries, read(log, mode=mode).error) == (entries(1, COUNT + 1), None)


def test_files_that_are_not_ours_are_ignored(any_log: Path) -> None:
    (any_log / "notes.txt").write_text("hello")
    (any_log / "1.wal").write_bytes(b"not twenty digits")
    (any_log / "00000000000000000000.wal").write_bytes(b"LSNs start at 1")
    (any_log / f"{layout.name(5)}.bak").write_bytes(b"a backup")
    (any_log / "quarantine").mkdir()
    (any_log / "quarantine" / layout.name(7)).write_bytes(b"evidence")
    for start in (1, 6, 20):
        assert read(any_log, start=start).entries == entries(start, COUNT + 1)


# One segment file


def test_one_segment_file_is_read_alone(log: Path) -> None:
    found = []
    for file in segment_files(log):
        first = int(file.stem)
        with WALReader(file) as reader:
            part = reader.read_all()
        assert part[0].lsn == first
        assert read(file, start=first + 1).entries == part[1:]
        assert read(file, start=1).entries == part
        assert read(file, start=COUNT + 5).entries == []
        found += part
    assert found == entries(1, COUNT + 1)


@pytest.mark.parametrize("name", [None, "x.wal", "renamed.bin", layout.name(7)])
def test_a_segment_file_needs_nothing_around_it_and_may_have_any_name(
    log: Path, tmp_path: Path, name: str | None
) -> None:
    file = segment_files(log)[2]
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    copy = alone / (name or file.name)
    shutil.copy(file, copy)
    assert read(copy).entries == read(file).entries != []
    assert (verify(copy).findings, verify(copy).path) == ([], str(copy))
    first = int(file.stem)
    with WALReader(copy, start=first + 1) as reader:
        assert (reader.first_lsn, reader.read_all()) == (first, read(file).entries[1:])
    data = bytearray(copy.read_bytes())
    data[30] ^= 1
    copy.write_bytes(data)
    assert isinstance(read(copy).error, CorruptLog)


def test_what_only_looks_like_a_segment_file_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "x.wal"
    for data in (b"", b"WALPOO", bytes(100), b"somebody else's"):
        place.write_bytes(data)
        with pytest.raises(UnsafeLog, match="nor a segment file"):
            WALReader(place)


def test_following_one_segment_file_ends_with_it(log: Path) -> None:
    file = segment_files(log)[-1]
    with WALReader(file) as reader:
        first = len(list(reader.follow(timeout=0)))
        assert first > 0
        with WALWriter(log, size_limit=1 << 20) as writer:
            fill(writer, 3)
        assert list(reader.follow(timeout=0)) == entries(COUNT + 1, COUNT + 4)


# Buffers


@pytest.mark.parametrize("capacity", [1, 47, 48, 64, 1000, 8192, 1 << 20])
def test_the_buffer_grows_to_the_largest_frame_and_says_so(tmp_path: Path, capacity: int) -> None:
    log = tmp_path / "log"
    sizes = [10, 3000, 20, 200_000, 50_000, 1]
    with WALWriter(log) as writer:
        for size in sizes:
            writer.put(b"key", bytes(size), 1)
    with WALReader(log, initial_capacity=capacity) as reader:
        assert reader.stats.peak_buffer_size == reader.stats.initial_capacity == capacity
        assert [len(entry.value) for entry in reader] == sizes
        stats = reader.stats
    largest = 48 + 16 + 3 + 200_000
    assert stats.initial_capacity == capacity
    assert stats.peak_buffer_size == max(capacity, largest)
    assert (stats.buffer_resizes == 0) == (capacity >= largest)
    assert stats.buffer_resizes <= 2 * len(sizes)
    frames = sum(48 + 16 + 3 + size for size in sizes)
    assert (stats.entries, stats.batches, stats.bytes, stats.segments) == (6, 6, frames, 1)


def test_stats_count_what_was_read(log: Path) -> None:
    with WALReader(log, start=8) as reader:
        assert reader.stats.entries == 0
        found = reader.read_all()
        stats = reader.stats
    assert stats.entries == len(found) == COUNT - 7
    assert 0 < stats.batches < stats.entries
    starts = [int(file.stem) for file in segment_files(log)]
    assert stats.segments == len(starts) - sum(first <= 8 for first in starts) + 1
    assert stats.damaged == 0


def test_without_copying_keys_and_values_are_views_until_the_next_is_asked_for(any_log: Path) -> None:
    for capacity in (1, 200, 8192):
        found = []
        with WALReader(any_log, zero_copy=True, initial_capacity=capacity) as reader:
            for entry in reader:
                assert type(entry.key) is type(entry.value) is memoryview
                found.append(entry._replace(key=bytes(entry.key), value=bytes(entry.value)))
        assert found == entries(1, COUNT + 1)


def test_views_that_are_handed_out_together_stay_as_they_are(any_log: Path) -> None:
    for capacity in (1, 200, 8192):
        with WALReader(any_log, zero_copy=True, initial_capacity=capacity) as reader:
            kept = [entry for batch in reader.batches() for entry in batch.entries]
        assert all(type(entry.key) is type(entry.value) is memoryview for entry in kept)
        assert kept == entries(1, COUNT + 1)
        with WALReader(any_log, zero_copy=True, initial_capacity=capacity) as reader:
            begun = reader.read_entry()
            assert begun is not None and begun.lsn == 1
            assert reader.read_all() == entries(2, COUNT + 1)
            assert reader.read_all() == []


def test_copied_keys_and_values_stay_as_they_are(any_log: Path) -> None:
    with WALReader(any_log, initial_capacity=1) as reader:
        kept = list(reader)
    assert all(type(entry.key) is type(entry.value) is bytes for entry in kept)
    assert all(type(entry.operation) is Operation for entry in kept)
    assert kept == entries(1, COUNT + 1)


# Reading touches nothing


def forbid_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every call that changes a file, or takes a lock that an append waits for, fails the test."""

    def forbidden(*args: Any, **named: Any) -> Any:
        raise AssertionError(f"a read changed something: {args} {named}")

    for name in ("pwrite", "ftruncate", "mkdir", "rename", "unlink", "fchmod", "fsync", "fdatasync", "flock"):
        monkeypatch.setattr(calls, name, forbidden)
    real_open, real_mmap = calls.open, calls.mmap

    def reading_open(path: Any, flags: int, *args: Any, **named: Any) -> int:
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC), "opened for writing"
        return real_open(path, flags, *args, **named)

    def reading_mmap(*args: Any, **named: Any) -> Any:
        assert named["prot"] == mmap.PROT_READ
        return real_mmap(*args, **named)

    monkeypatch.setattr(calls, "open", reading_open)
    monkeypatch.setattr(calls, "mmap", reading_mmap)


@pytest.mark.parametrize("kind", ["closed", "copy"])
def test_reading_makes_no_call_that_changes_a_file_or_takes_a_lock(
    kind: str, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = log if kind == "closed" else copy_of(log, tmp_path / "copy")
    before = contents(path)
    forbid_writes(monkeypatch)
    with WALReader(path) as reader:
        assert reader.read_all() == entries(1, COUNT + 1)
        assert list(reader.follow(timeout=0)) == []
    assert read(path, start=20).entries == entries(20, COUNT + 1)
    assert read(segment_files(path)[0]).entries
    assert not verify(path).findings
    assert contents(path) == before


@pytest.mark.parametrize("kind", ["closed", "copy"])
def test_a_log_on_read_only_media_is_read(log: Path, tmp_path: Path, kind: str) -> None:
    path = log if kind == "closed" else copy_of(log, tmp_path / "copy")
    for file in path.iterdir():
        file.chmod(stat.S_IRUSR)
    path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert read(path).entries == entries(1, COUNT + 1)
        with WALReader(path) as reader:
            assert list(reader.follow(timeout=0)) == entries(1, COUNT + 1)
    finally:
        path.chmod(stat.S_IRWXU)


# Pickling and closing


@pytest.mark.parametrize("read_before", [0, 1, 2, 3, 4, 5, 20, COUNT])
def test_an_unpickled_reader_goes_on_where_the_original_stood(log: Path, read_before: int) -> None:
    with WALReader(log, mode=RecoveryMode.STRICT, initial_capacity=77, zero_copy=False) as reader:
        for _ in range(read_before):
            reader.read_entry()
        with pickle.loads(pickle.dumps(reader)) as other:
            assert other.stats.initial_capacity == 77
            assert other.read_all() == entries(read_before + 1, COUNT + 1)
        assert reader.read_all() == entries(read_before + 1, COUNT + 1)


def test_an_unpickled_reader_keeps_its_options(log: Path) -> None:
    with WALReader(segment_files(log)[1], start=1, mode=RecoveryMode.STRICT, zero_copy=True) as reader:
        expected = len(reader.read_all())
        with pickle.loads(pickle.dumps(WALReader(segment_files(log)[1], zero_copy=True))) as other:
            found = other.read_all()
    assert len(found) == expected
    assert type(found[0].key) is memoryview


@pytest.mark.parametrize("read_before", range(8))  # also in the middle of a batch
def test_a_closed_reader_says_so(log: Path, read_before: int) -> None:
    reader = WALReader(log)
    iterator = iter(reader)
    following = reader.follow(timeout=0)
    batches = reader.batches()
    for _ in range(read_before):
        next(iterator)
    reader.close()
    reader.close()
    for attempt in (
        reader.read_entry,
        reader.read_all,
        lambda: next(iter(reader)),
        lambda: next(reader.batches()),
        lambda: next(reader.follow(timeout=0)),
        lambda: next(iterator),
        lambda: next(following),
        lambda: next(batches),
    ):
        with pytest.raises(LogClosed):
            attempt()
    assert reader.stats.entries >= read_before


def test_a_reader_that_a_forked_child_has_closed_stays_closed(log: Path) -> None:
    """It would open the log for itself otherwise."""
    reader = WALReader(log)
    reader._reading.after_fork()
    reader.close()
    with pytest.raises(LogClosed):
        reader.read_entry()


def test_a_with_block_closes_the_reader(log: Path) -> None:
    with WALReader(log) as reader:
        reader.read_entry()
    with pytest.raises(LogClosed):
        reader.read_all()


def test_closing_gives_every_descriptor_back(any_log: Path) -> None:
    before = open_under(any_log)
    for start in (1, 17, COUNT + 1):
        with WALReader(any_log, start=start) as reader:
            reader.read_entry()
        reader = WALReader(any_log, start=start)
        reader.read_entry()
        del reader
    with pytest.raises(LSNUnavailable):
        segment_files(any_log)[0].unlink()
        WALReader(any_log, start=1)
    assert open_under(any_log) == before


# What cannot be read


@pytest.mark.parametrize("start", [0, -1, 1.0, "1", True, b"1", "END"], ids=repr)
def test_start_must_be_an_lsn(log: Path, start: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        WALReader(log, start=start)


@pytest.mark.parametrize("capacity", [0, -1, 1.5, "8192", None], ids=repr)
def test_a_capacity_must_be_a_number_of_bytes(log: Path, capacity: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        WALReader(log, initial_capacity=capacity)


def test_where_there_is_no_log_the_error_says_so(tmp_path: Path, log: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("hello")
    (tmp_path / "only control").mkdir()
    shutil.copy(log / "control", tmp_path / "only control")
    for place in ("missing", "missing/deep", "empty", "foreign", "only control", "foreign/notes.txt/deeper",
                  "empty/00000000000000000001.wal"):  # fmt: skip
        with pytest.raises(LogNotFound) as caught:
            WALReader(tmp_path / place)
        assert isinstance(caught.value, FileNotFoundError)
        assert caught.value.path == str(tmp_path / place)


def test_what_was_removed_at_the_front_is_named(any_log: Path) -> None:
    files = segment_files(any_log)
    first = int(files[2].stem)
    for file in files[:2]:
        file.unlink()
    for start in (1, first - 1):
        with pytest.raises(LSNUnavailable) as caught:
            WALReader(any_log, start=start)
        assert (caught.value.lsn, caught.value.first_available) == (start, first)
        assert isinstance(caught.value, LookupError)
    assert read(any_log, start=first).entries == entries(first, COUNT + 1)


def test_what_is_removed_while_a_reader_stands_before_it_is_named(log: Path) -> None:
    with WALReader(log, start=1) as reader:
        files = segment_files(log)
        for file in files[:4]:
            file.unlink()
        with pytest.raises(LSNUnavailable) as caught:
            reader.read_entry()
        assert caught.value.first_available == int(files[4].stem)


@pytest.mark.parametrize("mode", RecoveryMode)
def test_a_segment_of_a_newer_walpool_is_newer_in_every_mode(log: Path, mode: RecoveryMode) -> None:
    files = segment_files(log)
    first = int(files[3].stem)
    data = files[3].read_bytes()
    files[3].write_bytes(layout.header(first, version=0x0200, marker=5, sequence=4) + data[64:])
    found = read(log, mode=mode)
    assert isinstance(found.error, UnsupportedVersion)
    assert found.entries == entries(1, first)


UNKNOWN = {
    "few": layout.frame(4, [layout.item(4)], flags=1, raw_length=900),
    "many in little": layout.frame(4, [], count=1000, body=bytes(2000), raw_length=50_000, flags=3),
    "no codec": layout.frame(4, [layout.item(4)], flags=1 << 12),
}


@pytest.mark.parametrize("frame", UNKNOWN)
@pytest.mark.parametrize("mode", RecoveryMode)
def test_a_batch_with_an_unknown_codec_is_newer_in_every_mode(tmp_path: Path, mode: RecoveryMode, frame: str) -> None:
    data = layout.segment(1, layout.single(1, 3)) + UNKNOWN[frame]
    log = layout.write_segments(tmp_path / "log", {1: data + layout.frame(5, [layout.item(5)])})
    found = read(log, mode=mode)
    assert isinstance(found.error, UnsupportedVersion)
    assert found.entries == entries(1, 4)


def test_a_segment_of_a_later_minor_version_is_read(tmp_path: Path) -> None:
    head = layout.header(1, version=0x0105, flags=9, header_size=100, entries_offset=128, reserved=3)
    data = head + b"more header".ljust(64) + layout.segment(1, layout.single(1, 3))[64:]
    log = layout.write_segments(tmp_path / "log", {1: data})
    assert read(log).entries == entries(1, 4)
    assert read(log, start=3).entries == entries(3, 4)
    assert not verify(log).findings


@pytest.mark.parametrize("mode", RecoveryMode)
@pytest.mark.parametrize("offset", [1 << 12, (1 << 32) - 1])
def test_a_segment_whose_header_points_past_its_end_holds_nothing(
    tmp_path: Path, mode: RecoveryMode, offset: int
) -> None:
    data = layout.header(1, version=0x0101, entries_offset=offset) + bytes(50)
    log = layout.write_segments(tmp_path / "log", {1: data, 3: layout.segment(3, layout.single(3, 2), sequence=2)})
    found = read(log, mode=mode)
    expected = entries(3, 5) if mode is RecoveryMode.SALVAGE else []
    assert found.entries == expected
    assert (found.error is None) == (mode in (RecoveryMode.POINT_IN_TIME, RecoveryMode.SALVAGE))
    assert verify(log).damaged


def test_a_log_without_entries_is_empty(tmp_path: Path) -> None:
    log = tmp_path / "log"
    WALWriter(log).close()
    for path in (log, copy_of(log, tmp_path / "copy"), segment_files(log)[0]):
        for mode in RecoveryMode:
            assert (read(path, mode=mode).entries, read(path, mode=mode).error) == ([], None)


def test_what_a_buffering_writer_has_not_appended_is_not_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with WALWriter(log, SyncMode.NONE, linger_s=600) as writer, WALReader(log) as reader:
        assert writer.put(b"key", b"value", 1) == 0
        assert reader.read_entry() is None
        writer.sync()
        assert reader.read_entry() == WALEntry(Operation.PUT, b"key", b"value", 1, 1)


def test_a_block_that_is_in_force_is_not_attached_to_again(tmp_path: Path) -> None:
    with WALWriter(tmp_path / "new") as writer, WALReader(tmp_path / "new") as reader:
        blocks = set()
        for lsn in range(1, 4):
            writer.put(b"key", b"value")
            assert [entry.lsn for entry in reader] == [lsn]
            assert reader.last_lsn == lsn
            blocks.add(reader._reading.cursor.source.control)
        assert len(blocks) == 1


def test_two_readers_of_one_log_do_not_disturb_each_other(log: Path) -> None:
    with WALReader(log) as one, WALReader(log, start=11) as other:
        for lsn in range(1, 20):
            assert one.read_entry() == entry_of(lsn)
            assert other.read_entry() == entry_of(lsn + 10)
