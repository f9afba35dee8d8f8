"""Logs to read: filled by a writer or built by hand, and what reading one came to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.format import layout
from walpool import Operation, WALEntry, WALError, WALReader, WALWriter

SEGMENT_BYTES = 420  # a few small frames


def entry_of(lsn: int, value_bytes: int = 5) -> WALEntry:
    """What entry `lsn` of every log made here holds."""
    operation, key, value, timestamp = layout.item(lsn, value_bytes)
    return WALEntry(Operation(operation), key, value, timestamp, lsn)


def entries(first: int, end: int, value_bytes: int = 5) -> list[WALEntry]:
    return [entry_of(lsn, value_bytes) for lsn in range(first, end)]


def fill(writer: WALWriter, count: int, value_bytes: int = 5) -> list[WALEntry]:
    """Append `count` entries, every third append a batch of up to three; what was appended."""
    done: list[WALEntry] = []
    first = writer.metrics.snapshot().next_lsn
    lsn, end = first, first + count
    while lsn < end:
        size = min(3 if len(done) % 3 == 2 else 1, end - lsn)
        batch = entries(lsn, lsn + size, value_bytes)
        assert list(writer.append_batch(batch)) == [entry.lsn for entry in batch]
        done += batch
        lsn += size
    return done


def make(log: Path, count: int, *, size_limit: int = SEGMENT_BYTES, value_bytes: int = 5) -> list[WALEntry]:
    with WALWriter(log, size_limit=size_limit) as writer:
        return fill(writer, count, value_bytes)


def segment_files(log: Path) -> list[Path]:
    return sorted(log.glob("*.wal"))


def frames_end(data: bytes) -> int:
    """Offset one past the last frame of an undamaged segment; behind it may be zeros that were written ahead."""
    return max((end for _, end, _, _ in layout.spans(data)), default=min(64, len(data)))


def written(file: Path) -> bytes:
    """A segment's bytes without the zeros that were written ahead of its frames."""
    data = file.read_bytes()
    end = frames_end(data)
    return data if any(data[end:]) else data[:end]


def leave_behind_tail(file: Path, leftover: bytes) -> None:
    """Put bytes where the next frame would go."""
    data = file.read_bytes()
    file.write_bytes(data[: frames_end(data)] + leftover)


def copy_of(log: Path, to: Path) -> Path:
    """The segments alone, as a backup has them."""
    to.mkdir()
    for file in segment_files(log):
        (to / file.name).write_bytes(written(file))
    return to


def contents(log: Path) -> dict[str, bytes]:
    """Every file below the directory, by its relative name."""
    return {str(file.relative_to(log)): file.read_bytes() for file in sorted(log.rglob("*")) if file.is_file()}


@dataclass
class Outcome:
    entries: list[WALEntry]
    error: WALError | None


def read(path: Path, **options: Any) -> Outcome:
    """All entries up to the end or an error of walpool's."""
    found: list[WALEntry] = []
    try:
        with WALReader(path, **options) as reader:
            found.extend(reader)
    except WALError as error:
        return Outcome(found, error)
    return Outcome(found, None)


@dataclass
class Span:
    """One frame of a log that was written: where it stands, and its entries."""

    file: str
    offset: int
    end: int
    first_lsn: int
    next_lsn: int


def spans(files: dict[str, bytes]) -> Iterator[Span]:
    for file, data in files.items():
        for offset, end, first_lsn, count in layout.spans(data):
            yield Span(file, offset, end, first_lsn, first_lsn + count)
