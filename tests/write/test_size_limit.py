"""The size limit of a segment: exact to the byte, whoever rotates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import keys, read_log
from walpool import BatchTooLarge, SyncMode, WALEntry, WALReader, WALWriter
from walpool.system import processes

HEADER, FRAME, ENTRY = 64, 48, 16
SMALLEST = HEADER + FRAME + ENTRY
LARGEST = 4 << 30


def sizes(log: Path) -> list[int]:
    """Bytes of header and frames in each segment; what is allocated may be more, but not past the limit."""
    found = []
    for path in sorted(log.glob("*.wal")):
        with WALReader(path) as reader:
            reader.read_all()
            found.append(HEADER + reader.stats.bytes)
    return found


def largest_file(log: Path) -> int:
    return max(path.stat().st_size for path in log.glob("*.wal"))


def test_a_frame_that_fits_exactly_stays_and_one_byte_more_goes_into_the_next_segment(log: Path) -> None:
    limit = HEADER + 3 * (FRAME + ENTRY + 10)
    with WALWriter(log, size_limit=limit) as writer:
        for _ in range(3):
            writer.put(b"", bytes(10))
        assert writer.size == limit
        assert sizes(log) == [limit]
        writer.put(b"", b"")
        assert sizes(log) == [limit, HEADER + FRAME + ENTRY]
        writer.rotate()
        writer.put(b"", bytes(10))
        writer.put(b"", bytes(10))
        writer.put(b"", bytes(11))
        assert sizes(log)[2:] == [limit - FRAME - ENTRY - 10, HEADER + FRAME + ENTRY + 11]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [SMALLEST, SMALLEST + 1, 200, 333, 1000, 4096])
def test_no_segment_is_ever_larger_than_the_limit(log: Path, limit: int) -> None:
    with WALWriter(log, size_limit=limit) as writer:
        for n in range(300):
            writer.put(b"", bytes(n * 7 % (limit - SMALLEST + 1)), 1)
            assert writer.size <= limit
            if n % 50 == 0:
                assert largest_file(log) <= limit
    assert largest_file(log) <= limit
    assert len(sizes(log)) > 1
    assert [len(entry.value) for entry in read_log(log)] == [n * 7 % (limit - SMALLEST + 1) for n in range(300)]


def test_the_smallest_limit_takes_one_empty_entry_a_segment(log: Path) -> None:
    with WALWriter(log, size_limit=SMALLEST) as writer:
        assert [writer.put(b"", b"") for _ in range(5)] == [1, 2, 3, 4, 5]
        with pytest.raises(BatchTooLarge):
            writer.put(b"k", b"")
        assert writer.delete(b"") == 6
    assert sizes(log) == [SMALLEST] * 6


@pytest.mark.parametrize("limit", [SMALLEST - 1, 0, -1, LARGEST + 1])
def test_a_limit_out_of_range_is_refused_before_anything_is_made(log: Path, limit: int) -> None:
    with pytest.raises(ValueError):
        WALWriter(log, size_limit=limit)
    assert not log.exists()


@pytest.mark.parametrize("limit", [1e6, "64", None, True])
def test_a_limit_that_is_no_int_is_refused(log: Path, limit: Any) -> None:
    with pytest.raises(TypeError):
        WALWriter(log, size_limit=limit)
    assert not log.exists()


def test_the_largest_limit_is_taken(log: Path) -> None:
    with WALWriter(log, size_limit=LARGEST) as writer:
        assert writer.put(b"k", b"v") == 1


def test_a_batch_that_fills_a_segment_is_taken_and_one_byte_more_is_refused(log: Path) -> None:
    limit = 1000
    room = limit - HEADER - FRAME - 2 * ENTRY
    with WALWriter(log, size_limit=limit) as writer:
        assert writer.append_batch([WALEntry.put(b"", bytes(room)), WALEntry.delete(b"")]) == range(1, 3)
        with pytest.raises(BatchTooLarge):
            writer.append_batch([WALEntry.put(b"", bytes(room)), WALEntry.delete(b"!")])
        with pytest.raises(ValueError, match="1000"), writer.batch() as batch:
            batch.put(b"", bytes(room + 1))
            batch.delete(b"")
        with pytest.raises(BatchTooLarge):
            writer.put(b"", bytes(room + ENTRY + 1))
        assert writer.put(b"", bytes(room + ENTRY)) == 3
    assert sizes(log) == [limit, limit]


def test_what_cannot_fit_is_refused_in_sync_mode_none_at_once(log: Path) -> None:
    with WALWriter(log, SyncMode.NONE, 1000) as writer:
        with pytest.raises(BatchTooLarge):
            writer.put(b"", bytes(1000 - SMALLEST + 1))
        writer.put(b"", bytes(1000 - SMALLEST))
        writer.put(b"", b"after")
    assert [len(entry.value) for entry in read_log(log)] == [1000 - SMALLEST, 5]
    assert largest_file(log) <= 1000


def test_another_limit_applies_when_the_log_is_opened_again(log: Path) -> None:
    with WALWriter(log, size_limit=10_000) as writer:
        writer.put(b"", bytes(5_000))
    with WALWriter(log, size_limit=1_000) as writer:
        writer.put(b"", bytes(100))
        assert writer.size == HEADER + FRAME + ENTRY + 100
        with pytest.raises(BatchTooLarge):
            writer.put(b"", bytes(1_000))
    with WALWriter(log, size_limit=10_000) as writer:
        writer.put(b"", bytes(9_000))
    assert [len(entry.value) for entry in read_log(log)] == [5_000, 100, 9_000]


def test_writers_with_different_limits_each_keep_their_own(log: Path) -> None:
    with WALWriter(log, size_limit=1_000) as small, WALWriter(log, size_limit=10_000) as large:
        large.put(b"", bytes(900))
        assert small.put(b"", bytes(100)) == 2
        assert sizes(log) == [HEADER + FRAME + ENTRY + 900, HEADER + FRAME + ENTRY + 100]
        large.put(b"", bytes(5_000))
        assert len(sizes(log)) == 2
        small.put(b"", b"")
        assert len(sizes(log)) == 3


def test_a_smaller_limit_is_kept_where_zeros_were_written_further_ahead(log: Path) -> None:
    with WALWriter(log, SyncMode.FULL, 4096) as far, WALWriter(log, SyncMode.FULL, 300) as near:
        far.put(b"k", b"v")
        for _ in range(5):
            near.put(b"k", b"v" * 60)
            assert near.size <= 300


def test_rotate_seals_the_segment_now(log: Path) -> None:
    with WALWriter(log) as writer:
        writer.rotate()
        assert len(sizes(log)) == 1, "an empty segment is not sealed: the next would have its name"
        writer.put(b"a", b"")
        writer.rotate()
        writer.rotate()
        writer.put(b"b", b"")
        writer.rotate()
    names = [path.name for path in sorted(log.glob("*.wal"))]
    assert names == [f"{lsn:020d}.wal" for lsn in (1, 2, 3)]
    with WALWriter(log) as writer:
        assert writer.put(b"c", b"") == 3
    assert keys(log) == [b"a", b"b", b"c"]


def test_another_writer_goes_on_in_the_segment_that_one_started(log: Path) -> None:
    with WALWriter(log) as one, WALWriter(log) as other:
        one.put(b"a", b"")
        other.put(b"b", b"")
        one.rotate()
        other.put(b"c", b"")
        other.rotate()
        other.put(b"d", b"")
        one.put(b"e", b"")
    assert len(sizes(log)) == 3
    with WALReader(log) as reader:
        assert [bytes(entry.key) for entry in reader] == [b"a", b"b", b"c", b"d", b"e"]


def test_segments_are_told_apart_though_all_their_markers_are_the_same(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are random, so that happens."""
    monkeypatch.setattr(processes, "random_word", lambda: 0x5EED_0001_5EED_F00D)
    with WALWriter(log) as one, WALWriter(log) as other:
        for lsn in range(1, 10, 2):
            assert one.put(b"one", b"") == lsn
            one.rotate()
            assert other.put(b"other", b"") == lsn + 1
    with WALReader(log) as reader:
        assert [entry.key for entry in reader] == [b"one", b"other"] * 5
