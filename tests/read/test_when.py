"""By time: the LSN with which a moment began, compared with a look at every batch."""

import random
import struct
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import walpool
from tests import edges
from tests.format import layout
from tests.read.logs import copy_of, segment_files
from walpool import CorruptLog, LogNotFound, RecoveryMode, WALEntry, WALReader, WALWriter, lsn_at
from walpool.system.calls import calls

FILLS = (4096 - 64 - 48) // 4 - 17  # bytes of a value: four of them fill a segment exactly
MOVES = st.sampled_from([0, 0, 1, 10, 1000, -1, -500])  # of the clock, before a batch


def by_looking(log: Path, when: int) -> int:
    with WALReader(log) as reader:
        lsn = reader.first_lsn
        for batch in reader.batches():
            if batch.appended_at >= when:
                return batch.first_lsn
            lsn = batch.first_lsn + len(batch.entries)
    return lsn


def moments(log: Path) -> list[int]:
    """Each at which a batch was appended, one before and one after; and the ends of time."""
    with WALReader(log) as reader:
        times = {batch.appended_at for batch in reader.batches()}
    return sorted({0, 1 << 64, *(at + by for at in times for by in (-1, 0, 1))})


def build(log: Path, batches: list[tuple[int, int, int]], patch: pytest.MonkeyPatch, size_limit: int = 4096) -> None:
    """Of each: how the clock moves before it, how many entries it has, and how long their values are."""
    now_ns = 10**18
    patch.setattr(calls, "time_ns", lambda: now_ns)
    with WALWriter(log, size_limit=size_limit) as writer:
        for move, count, value_bytes in batches:
            now_ns += move
            writer.append_batch([WALEntry.put(b"k", bytes(value_bytes), 0)] * count)


@layout.examples(30)
@given(st.lists(st.tuples(MOVES, edges.integers(1, 4), st.sampled_from([0, 1, 100, 900, FILLS])), max_size=60))
def test_every_boundary_is_found_whatever_the_clock_did(
    tmp_path_factory: pytest.TempPathFactory, batches: list[tuple[int, int, int]]
) -> None:
    log = tmp_path_factory.mktemp("when") / "log"
    with pytest.MonkeyPatch.context() as patch:
        build(log, batches, patch)
    copy = copy_of(log, log.with_name("copy"))
    for when in moments(log):
        assert lsn_at(log, when) == lsn_at(copy, when) == by_looking(log, when)


def test_large_segments_are_searched_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    chance = random.Random(1)
    batches = [(chance.choice([0, 1, 5, 10**6]), 1, chance.choice([50, 5_000, 200_000])) for _ in range(300)]
    build(log, batches, monkeypatch, size_limit=64 << 20)
    asked = moments(log)[::11]
    expected = [by_looking(log, when) for when in asked]
    total = 0
    real_pread = calls.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        nonlocal total
        data = real_pread(fd, length, offset)
        total += len(data)
        return data

    monkeypatch.setattr(calls, "pread", pread)
    assert [lsn_at(log, when) for when in asked] == expected
    assert total / len(asked) < segment_files(log)[0].stat().st_size / 8


def test_what_headers_claim_leads_nobody_past_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame in the middle claims another time: what is found is right, or it is said that the log is damaged."""
    log = tmp_path / "log"
    build(log, [(10, 1, 2000)] * 200, monkeypatch, size_limit=64 << 20)
    (file,) = segment_files(log)
    data = file.read_bytes()
    spans = list(layout.spans(data))
    (log / "control").unlink()
    for claimed in (0, (1 << 64) - 1):
        for at in (0, 1, 100, 150):
            harmed = bytearray(data)
            struct.pack_into("<Q", harmed, spans[at][0] + 24, claimed)
            file.write_bytes(harmed)
            for wanted in range(0, 200, 7):
                when = 10**18 + 10 * (wanted + 1)
                try:
                    assert lsn_at(log, when) == wanted + 1
                except CorruptLog:
                    assert wanted >= at


def test_a_payload_that_holds_frames_of_its_own_segment_leads_nobody_astray(tmp_path: Path) -> None:
    marker = 0x0BADCAFE
    data = layout.header(marker=marker)
    for lsn in range(1, 301):
        value = data[64:] if lsn in (100, 200) else bytes(300)
        data += layout.frame(lsn, [(1, b"k", value, 0)], marker=marker, appended_at=1000 + lsn // 3)
    log = layout.write_segments(tmp_path / "log", {1: data})
    for when in range(999, 1103):
        assert lsn_at(log, when) == by_looking(log, when)


def test_of_a_log_without_entries_it_is_the_next_one(log: Path) -> None:
    with WALWriter(log) as writer:
        assert lsn_at(log, 0) == lsn_at(log, 1 << 63) == 1
        writer.put(b"removed", b"")
        writer.rotate()
        writer.checkpoint(1)
        writer.prune()
        assert lsn_at(log, 0) == lsn_at(log, 1 << 63) == 2


def test_retention_that_is_faster_is_no_error(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is removed between two calls of a search, it gives an LSN that is there, or the next one."""
    with WALWriter(log, size_limit=4096) as writer:
        for lsn in range(1, 40):
            writer.put(b"k", bytes(1000))
            assert lsn
        last = lsn_at(log, time.time_ns())
        real_open, opened = calls.open, 0

        def open_(name: str, *args: int, **options: int) -> int:
            nonlocal opened
            if name.endswith(".wal"):
                opened += 1
                if opened == 2:
                    for file in segment_files(log)[:5]:
                        file.unlink()
            return real_open(name, *args, **options)

        monkeypatch.setattr(calls, "open", open_)
        found = lsn_at(log, 1)
        assert int(segment_files(log)[0].stem) <= found <= last


# Moments


def test_moments_are_ns_or_datetimes(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noon = datetime(2026, 11, 27, 12, tzinfo=UTC)
    now_ns = int(noon.timestamp()) * 10**9
    monkeypatch.setattr(calls, "time_ns", lambda: now_ns)
    with WALWriter(log) as writer:
        writer.put(b"at noon", b"")
        now_ns += 1000  # a microsecond
        writer.put(b"later", b"")
    berlin = timezone(timedelta(hours=1))
    local = noon.astimezone().replace(tzinfo=None)
    for moment in (noon, noon.astimezone(berlin), local, now_ns - 1000):
        assert lsn_at(log, moment) == 1
    for moment in (noon + timedelta(microseconds=1), now_ns, now_ns - 999):
        assert lsn_at(log, moment) == 2
    assert lsn_at(log, noon + timedelta(microseconds=2)) == 3
    for wrong in ("2026-11-27", 1.5, None, True):
        with pytest.raises(TypeError, match="moment"):
            lsn_at(log, wrong)  # type: ignore[arg-type]


def test_a_reader_begins_with_what_was_appended_since(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(log, [(10, 2, 10)] * 50, monkeypatch)
    when = 10**18 + 10 * 31
    with WALReader(log, since=when) as reader:
        assert [entry.lsn for entry in reader] == list(range(61, 101))
    with WALReader(log, end=70, since=datetime.fromtimestamp(0, UTC)) as reader:
        assert [entry.lsn for entry in reader] == list(range(1, 70))
    with pytest.raises(ValueError, match="start and since"):
        WALReader(log, 5, since=when)
    with pytest.raises(TypeError, match="moment"):
        WALReader(log, since="yesterday")  # type: ignore[arg-type]


def test_damage_is_passed_as_the_mode_says(tmp_path: Path) -> None:
    batches = [layout.frame(lsn, [layout.item(lsn)], appended_at=lsn * 10) for lsn in range(1, 10)]
    data = bytearray(layout.header() + b"".join(batches))
    data[64 + sum(map(len, batches[:4])) + 60] ^= 1  # LSN 5
    log = layout.write_segments(tmp_path / "log", {1: bytes(data)})
    with pytest.raises(CorruptLog):
        WALReader(log, since=50)
    with WALReader(log, since=50, mode=RecoveryMode.SALVAGE) as reader:
        assert [entry.lsn for entry in reader] == [6, 7, 8, 9]


def test_where_there_is_no_log_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound):
        walpool.lsn_at(tmp_path / "none", 0)
