"""Where a reader starts and ends: the first entry there is, the end, an LSN on either side; and what the log has."""

import pickle
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import walpool
from tests.format import layout
from tests.read.logs import copy_of, entries, entry_of, fill, make, read, segment_files
from walpool import CorruptLog, LogClosed, LogNotFound, LogReplaced, LSNUnavailable, RecoveryMode, WALReader, WALWriter
from walpool.system.calls import calls

COUNT = 40


@pytest.fixture
def log(tmp_path: Path) -> Path:
    make(tmp_path / "log", COUNT)
    return tmp_path / "log"


@pytest.fixture(params=["live", "copy"])
def any_log(request: pytest.FixtureRequest, log: Path, tmp_path: Path) -> Path:
    return log if request.param == "live" else copy_of(log, tmp_path / "copy")


def prune(log: Path, segments: int) -> int:
    """Remove the oldest segments; the first LSN that is left."""
    files = segment_files(log)
    for file in files[:segments]:
        file.unlink()
    return int(files[segments].stem)


def test_a_reader_starts_at_the_first_entry_there_is(any_log: Path) -> None:
    assert read(any_log).entries == entries(1, COUNT + 1)
    first = prune(any_log, 3)
    assert read(any_log).entries == read(any_log, start=None).entries == entries(first, COUNT + 1)
    with pytest.raises(LSNUnavailable) as caught:
        WALReader(any_log, start=1)
    assert caught.value.first_available == first


def test_what_retention_removes_before_the_first_look_is_not_missed_without_a_start(any_log: Path) -> None:
    with WALReader(any_log) as reader, WALReader(any_log, start=1) as strict:
        first = prune(any_log, 2)
        assert reader.read_all() == entries(first, COUNT + 1)
        with pytest.raises(LSNUnavailable):
            strict.read_all()
    with WALReader(any_log) as reader:
        reader.read_entry()
        prune(any_log, 2)
        with pytest.raises(LSNUnavailable):
            reader.read_all()


def test_end_is_a_place_to_follow_from(log: Path) -> None:
    with WALWriter(log) as writer, WALReader(log, start="end") as reader:
        assert (reader.next_lsn, reader.read_all()) == (COUNT + 1, [])
        fill(writer, 3)
        assert list(reader.follow(timeout=0)) == entries(COUNT + 1, COUNT + 4)


def test_the_end_of_a_copy_is_where_its_frames_end(log: Path, tmp_path: Path) -> None:
    copy = copy_of(log, tmp_path / "copy")
    for file, end in ((copy, COUNT + 1), (segment_files(copy)[1], int(segment_files(copy)[2].stem))):
        with WALReader(file, start="end") as reader:
            assert (reader.next_lsn, reader.last_lsn, reader.read_all()) == (end, end - 1, [])


def test_a_pin_of_a_reader_at_the_end_keeps_nothing_before_it(log: Path) -> None:
    with WALWriter(log, size_limit=420) as writer, WALReader(log, start="end", pin=True) as reader:
        writer.checkpoint(COUNT)
        assert writer.prune().held_by_pins == 0
        first = int(segment_files(log)[0].stem)
        assert first == int(segment_files(log)[-1].stem)
        fill(writer, 20)
        writer.checkpoint(COUNT + 20)
        assert writer.prune().held_by_pins > 0
        assert reader.read_all() == entries(COUNT + 1, COUNT + 21)


@pytest.mark.parametrize("end", [1, 2, 5, 6, 7, 8, 20, COUNT, COUNT + 1, COUNT + 9])
def test_a_reader_ends_before_its_end_also_inside_a_batch(any_log: Path, end: int) -> None:
    for start in (None, 1, 5, 6, 7, 30):
        expected = entries(start or 1, min(end, COUNT + 1))
        with WALReader(any_log, start, end) as reader:
            assert reader.read_all() == expected
            assert reader.read_entry() is None
        with WALReader(any_log, start, end) as reader:
            assert [entry for batch in reader.batches() for entry in batch.entries] == expected
            assert reader.stats.entries == len(expected)


def test_a_follower_ends_at_its_end_without_waiting(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_sleep(seconds: float) -> None:
        raise AssertionError("the follower waited")

    with WALWriter(log) as writer, WALReader(log, "end", COUNT + 4) as reader:
        fill(writer, 9)
        monkeypatch.setattr(calls, "sleep", no_sleep)
        assert list(reader.follow()) == entries(COUNT + 1, COUNT + 4)
        assert list(reader.follow()) == []
        monkeypatch.undo()


@pytest.mark.parametrize("end", [0, -1, 2.0, "end", True, b"1", datetime(2026, 1, 1)], ids=repr)
def test_an_end_must_be_an_lsn(log: Path, end: Any) -> None:
    with pytest.raises(ValueError, match="end must be an LSN"):
        WALReader(log, 1, end)


def test_a_reader_knows_what_the_log_has(any_log: Path) -> None:
    first = prune(any_log, 2)
    with WALReader(any_log, start=20, end=25) as reader:
        assert (reader.first_lsn, reader.last_lsn) == (first, COUNT)
    with pytest.raises(LogClosed):
        reader.last_lsn  # noqa: B018
    with pytest.raises(LogClosed):
        reader.first_lsn  # noqa: B018


def test_a_reader_of_an_empty_log_knows_that_it_is_empty(tmp_path: Path) -> None:
    with WALWriter(tmp_path / "new") as writer, WALReader(tmp_path / "new") as reader:
        assert (reader.first_lsn, reader.last_lsn) == (1, 0)
        writer.put(b"key", b"value")
        assert (reader.first_lsn, reader.last_lsn) == (1, 1)


def test_a_reader_whose_log_was_emptied_says_so_when_asked_what_it_has(any_log: Path) -> None:
    with WALReader(any_log) as reader:
        for file in segment_files(any_log):
            file.unlink()
        with pytest.raises(LogReplaced):
            reader.first_lsn  # noqa: B018


def test_what_a_log_has_is_asked_of_the_block_in_force(log: Path) -> None:
    with WALReader(log) as reader:
        assert reader.last_lsn == COUNT
        (log / "control").unlink()
        with WALWriter(log) as writer:
            fill(writer, 3)
            assert (reader.last_lsn, reader.first_lsn) == (COUNT + 3, 1)


def test_a_pickled_reader_keeps_its_place_and_its_end(any_log: Path) -> None:
    with WALReader(any_log, end=21) as reader:
        with pickle.loads(pickle.dumps(reader)) as again:
            assert again.read_all() == entries(1, 21)
        assert reader.read_entry() == entry_of(1)
        with pickle.loads(pickle.dumps(reader)) as again:
            assert again.read_all() == entries(2, 21)
    with WALReader(any_log) as reader:
        pickled = pickle.dumps(reader)
        first = prune(any_log, 2)
        with pickle.loads(pickled) as again:
            assert again.read_all() == entries(first, COUNT + 1)


def test_anyone_can_ask_for_the_checkpoint(log: Path) -> None:
    assert walpool.checkpoint(log) == 0
    with WALWriter(log) as writer:
        writer.checkpoint(17)
        assert walpool.checkpoint(str(log)) == 17
    (log / "checkpoint").write_bytes(b"damaged")
    with pytest.raises(CorruptLog):
        walpool.checkpoint(log)
    with pytest.raises(LogNotFound):
        walpool.checkpoint(log.with_name("missing"))
    log.with_name("empty").mkdir()
    with pytest.raises(LogNotFound):
        walpool.checkpoint(log.with_name("empty"))


def test_an_end_among_entries_that_are_lost_gives_none_behind_it(tmp_path: Path) -> None:
    """SALVAGE passes over the damage, and the batch that follows begins behind the end."""
    log = tmp_path / "log"
    data = bytearray(layout.segment(1, [[layout.item(lsn) for lsn in range(at, at + 10)] for at in (1, 11, 21)]))
    _, (offset, *_), _ = layout.spans(bytes(data))
    data[offset + 60] ^= 1
    layout.write_segments(log, {1: bytes(data)})
    for end in range(11, 22):
        for options in ({}, {"zero_copy": True}):
            with WALReader(log, 9, end, mode=RecoveryMode.SALVAGE, **options) as reader:
                assert [entry.lsn for entry in reader] == [9, 10]
                assert reader.read_entry() is None and list(reader.follow(timeout=0)) == []
    assert [entry.lsn for entry in read(log, start=9, end=23, mode=RecoveryMode.SALVAGE).entries] == [9, 10, 21, 22]
