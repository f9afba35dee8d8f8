"""Seek: reading from an LSN in the middle of a large segment, without reading all that comes before it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.format import layout
from tests.read.logs import entries, entry_of, make, read
from walpool import CorruptLog, RecoveryMode, WALReader, WALWriter
from walpool.system.calls import calls

MARKER = 0x0BADCAFE


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """One segment of 8 MB in a log without a control block, and how many entries it holds."""
    count = 20_000
    log = tmp_path_factory.mktemp("large")
    return layout.write_segments(log, {1: layout.segment(1, layout.single(1, count, 70))}), count


def test_every_start_in_a_large_segment_is_found(large: tuple[Path, int]) -> None:
    log, count = large
    for start in [1, 2, 3, *range(97, count, 997), count - 1, count]:
        with WALReader(log, start=start) as reader:
            found = [entry for entry, _ in zip(reader, range(3), strict=False)]
        assert found == entries(start, min(start + 3, count + 1), 70)
    with WALReader(log, start=count + 1) as reader:
        assert reader.read_all() == []


def test_a_start_near_the_end_reads_a_small_part_of_the_segment(
    large: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, count = large
    (file,) = log.glob("*.wal")
    total = 0
    real_pread, real_preadv = calls.pread, calls.preadv

    def counted(number: Any) -> Any:
        nonlocal total
        total += number if isinstance(number, int) else len(number)
        return number

    monkeypatch.setattr(calls, "pread", lambda *args: counted(real_pread(*args)))
    monkeypatch.setattr(calls, "preadv", lambda *args: counted(real_preadv(*args)))
    with WALReader(log, start=count - 5) as reader:
        assert reader.read_all() == entries(count - 5, count + 1, 70)
    assert 0 < total < file.stat().st_size / 8


def test_batches_larger_than_what_a_search_looks_at_are_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    make(log, 60, size_limit=64 << 20, value_bytes=100_000)
    for start in (1, 2, 17, 18, 19, 30, 59, 60):
        with WALReader(log, start=start) as reader:
            assert reader.read_entry() == entry_of(start, 100_000)


def frames_in_payloads() -> Iterator[tuple[int, bytes, Any]]:
    """(LSN, frame, item): now and then the value is a piece of the very segment it is in, as written so far."""
    data = layout.header(marker=MARKER)
    for lsn in range(1, 501):
        if lsn % 50:
            item = layout.item(lsn, 200)
        else:
            cut = 64 if lsn % 100 else max(64, len(data) - 150_000)
            item = 1, b"the log so far", data[cut : cut + 400_000], lsn
        frame = layout.frame(lsn, [item], marker=MARKER)
        yield lsn, frame, item
        data += frame


@pytest.mark.parametrize("mode", [RecoveryMode.TOLERATE_TAIL, RecoveryMode.SALVAGE])
def test_a_log_whose_values_are_its_own_frames_is_read_right_from_every_start(
    tmp_path: Path, mode: RecoveryMode
) -> None:
    """The payloads hold intact frames with the segment's marker and plausible LSNs."""
    built = list(frames_in_payloads())
    data = layout.header(marker=MARKER) + b"".join(frame for _, frame, _ in built)
    log = layout.write_segments(tmp_path / "log", {1: data})
    items = [item for _, _, item in built]
    for start in [1, 49, 50, 51, *range(62, 500, 29), 499, 500]:
        with WALReader(log, start=start, mode=mode) as reader:
            for at, entry in enumerate(reader, start):
                assert entry.lsn == at
                assert tuple(entry[:4]) == items[at - 1]
        assert at == 500


def test_a_log_whose_values_are_segments_of_other_logs_is_read_right_from_every_start(tmp_path: Path) -> None:
    other = tmp_path / "other"
    make(other, 3000, size_limit=64 << 20, value_bytes=20)
    (file,) = other.glob("*.wal")
    value = file.read_bytes()
    log = tmp_path / "log"
    with WALWriter(log) as writer:
        for lsn in range(1, 31):
            writer.put(b"%d" % lsn, value, lsn)
    for start in range(1, 31):
        with WALReader(log, start=start) as reader:
            entry = reader.read_entry()
        assert entry is not None
        assert (entry.lsn, entry.key, entry.value == value) == (start, b"%d" % start, True)


def test_a_start_behind_damage_never_gives_an_entry_from_before_it(tmp_path: Path) -> None:
    count = 3000
    data = bytearray(layout.segment(1, layout.single(1, count, 50)))
    spans = list(layout.spans(bytes(data)))
    data[spans[1000][0] + 20] ^= 1  # LSN 1001
    log = layout.write_segments(tmp_path / "log", {1: bytes(data)})
    for start in (990, 1000, 1001, 1002, 1500, 2999):
        found = read(log, start=start)
        assert found.entries == entries(start, start + len(found.entries), 50)
        assert (found.error is None) == (len(found.entries) == count + 1 - start)
        assert isinstance(found.error, CorruptLog | None)
        salvaged = read(log, start=start, mode=RecoveryMode.SALVAGE)
        assert salvaged.error is None
        assert salvaged.entries == [entry for entry in entries(start, count + 1, 50) if entry.lsn != 1001]
