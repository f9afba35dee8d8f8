"""Programs as users write them, with the types they may rely on. Checked by mypy --strict and by pyright; never run."""

from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import walpool
from walpool import Operation, RecoveryMode, SyncMode, WALEntry, WALReader, WALWriter


def values_are_bytes(path: Path) -> list[str]:
    with WALReader(path) as reader:
        return [entry.value.decode() for entry in reader]


def a_dictionary_of_the_latest(path: str) -> dict[bytes, bytes]:
    return {entry.key: entry.value for entry in WALReader(path)}


def one_entry(path: str) -> bytes:
    entry = WALReader(path, start=7, end=9, mode=RecoveryMode.SALVAGE).read_entry()
    assert_type(entry, WALEntry | None)
    return entry.key + entry.value if entry is not None else b""


def followers(path: str) -> Iterator[tuple[int, str]]:
    reader: WALReader = WALReader(path, "end")
    for entry in reader.follow(timeout=1.0, durable_only=True):
        if entry.operation is Operation.PUT:
            yield entry.lsn, entry.key.decode() + entry.value.decode()


def batches(path: str) -> list[bytes]:
    found: list[bytes] = []
    for batch in WALReader(path).batches():
        assert_type(batch.entries, list[WALEntry])
        found += [entry.value for entry in batch.entries]
    return found


def views(path: str) -> int:
    total = 0
    with WALReader(path, zero_copy=True) as reader:
        for entry in reader:
            assert_type(entry.value, memoryview)
            total += entry.value.nbytes + entry.key.nbytes
        assert_type(reader.read_all(), list[WALEntry[memoryview]])
    return total


def views_or_bytes(path: str, zero_copy: bool) -> int:
    return sum(len(entry.value) for entry in WALReader(path, zero_copy=zero_copy))


def a_function_of_an_entry(entry: WALEntry) -> WALEntry:
    assert_type(entry.value, bytes)
    return entry._replace(lsn=entry.lsn + 1)


def made_entries() -> list[WALEntry]:
    entries = [WALEntry.put(b"key", bytearray(b"value")), WALEntry.delete(memoryview(b"key"), timestamp=3)]
    assert_type(entries[0].value, bytes)
    return [WALEntry.decode(entry.encode()) for entry in entries]


def a_function_of_a_reader(reader: WALReader) -> range:
    first: int = reader.first_lsn
    last: int = reader.last_lsn
    return range(first, last + 1)


def appended(path: str) -> range:
    with WALWriter(path, SyncMode.FULL) as writer:
        lsns = writer.append_batch(made_entries())
        durable: int = writer.sync()
        assert durable >= lsns[-1]
        return lsns


def the_checkpoint(path: Path) -> int:
    return walpool.checkpoint(path)


def a_copy(path: Path) -> int:
    report = walpool.copy(path, path.with_name("copy"))
    return report.next_lsn - report.first_lsn
