"""Format 1.0 is fixed: these bytes must be read as these entries for ever, and written again byte for byte.

A failure here means that logs in the field can no longer be read. Do not change the files; find the code that moved.
"""

from pathlib import Path

import pytest
from crc32c import crc32c

from walpool import Operation, RecoveryMode, WALEntry, WALHeader, WALReader, WALWriter
from walpool.format.entry import encode_entries
from walpool.format.frame import FRAME_REST, seal
from walpool.upkeep.verify import verify

HERE = Path(__file__).parent
SEGMENT = bytes.fromhex((HERE / "segment-1.0.hex").read_text())
ALONE = bytes.fromhex((HERE / "entry-1.0.hex").read_text())
NAME = "00000000000000000041.wal"

HEADER = WALHeader(
    created_at=1_767_225_600_000_000_000, sequence=3, first_lsn=41, durable_lsn=40, marker=0x5EEDF00D
)  # fmt: skip
PUT, DELETE = Operation.PUT, Operation.DELETE
# (appended_at, durable_lsn, writer), entries
BATCHES = [
    ((1_767_225_600_000_000_005, 40, 0), [WALEntry(PUT, b"user:1", b"ada", 7, 41)]),
    (
        (1_767_225_600_000_000_005, 41, 2),
        [
            WALEntry(DELETE, b"user:1", b"", 8, 42),
            WALEntry(PUT, b"", b"", 0, 43),
            WALEntry(PUT, "größe".encode(), b"\0\xff\r\n", (1 << 64) - 1, 44),
        ],
    ),
    ((1_767_225_600_123_456_789, 41, 0xFFFF), [WALEntry(PUT, bytes(range(256)), b"WALPOOL\0" * 20, 1, 45)]),
    ((1_767_225_600_123_456_789, 45, 1), [WALEntry(DELETE, b"k" * 9_000, b"", 9, 46)]),
]
ENTRIES = [entry for _, entries in BATCHES for entry in entries]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The golden segment alone in a directory, as a copy or an archive has it."""
    (tmp_path / NAME).write_bytes(SEGMENT)
    return tmp_path


@pytest.mark.parametrize("mode", RecoveryMode)
def test_the_golden_segment_is_read_as_its_entries(log: Path, mode: RecoveryMode) -> None:
    for path in (log, log / NAME):
        with WALReader(path, start=41, mode=mode) as reader:
            assert reader.read_all() == ENTRIES
        with WALReader(path, start=44, mode=mode, initial_capacity=1) as reader:
            assert reader.read_all() == ENTRIES[3:]


def test_the_golden_segments_batches_say_when_and_by_whom(log: Path) -> None:
    with WALReader(log, start=41) as reader:
        found = [(batch.appended_at, batch.writer, batch.entries) for batch in reader.batches()]
    assert found == [(time, writer, entries) for (time, _, writer), entries in BATCHES]


def test_the_golden_segments_header_is_read() -> None:
    assert WALHeader.decode(SEGMENT) == HEADER


def test_the_golden_segment_is_without_a_finding(log: Path) -> None:
    report = verify(log)
    assert (report.findings, report.batches, report.entries, report.next_lsn) == ([], 4, 6, 47)


def test_a_writer_goes_on_behind_the_golden_segment_and_leaves_it_as_it_is(log: Path) -> None:
    with WALWriter(log) as writer:
        assert writer.put(b"more", b"", 1) == 47
    assert (log / NAME).read_bytes() == SEGMENT
    with WALReader(log, start=41) as reader:
        assert reader.read_all() == [*ENTRIES, WALEntry(PUT, b"more", b"", 1, 47)]


def test_the_same_entries_are_encoded_to_the_golden_bytes() -> None:
    parts = [HEADER.encode()]
    for (appended_at, durable_lsn, writer), entries in BATCHES:
        body, count, _ = encode_entries(entries)
        rest = FRAME_REST.pack(len(body), count, entries[0].lsn, appended_at, durable_lsn, len(body), 0, writer)
        parts.append(seal(HEADER.marker, crc32c(body, HEADER.marker), rest, body))
    assert b"".join(parts) == SEGMENT


def test_the_golden_entry_alone_is_read_and_written() -> None:
    entry = WALEntry(PUT, b"user:1", b"ada", 7)
    assert WALEntry.decode(ALONE) == entry
    assert entry.encode() == ALONE
