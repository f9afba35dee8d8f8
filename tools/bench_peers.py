"""What walpool is measured against: LMDB, SQLite and plain files, each doing the same appends.

Holds: a store is opened in a directory and gives `put_all(keys)`, which appends each key with VALUE by itself, in
the plainest loop the library allows; no store pays for a wrapper call that another does not.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import lmdb

KEY_BYTES = 16
VALUE = b"v" * 100
LMDB_BYTES = 4 << 30  # of address space: the file itself grows as needed
SQLITE_BUSY_S = 300.0  # longer than any job: a writer waits, it does not fail
INSERT = "INSERT INTO log(key, value) VALUES (?, ?)"

PutAll = Callable[[Sequence[bytes]], None]
Store = Callable[[Path], AbstractContextManager[PutAll]]


def make_keys(count: int, writer: int = 0) -> list[bytes]:
    """Ascending, and no two the same for any two writers."""
    return [(writer << 64 | number).to_bytes(KEY_BYTES, "big") for number in range(count)]


@contextmanager
def lmdb_mapped(directory: Path) -> Iterator[PutAll]:
    """Without sync, written through the memory map: the fastest that LMDB has."""
    with closing(open_lmdb(directory, sync=False, writemap=True)) as environment:
        yield lmdb_put_all(environment)


@contextmanager
def lmdb_unsynced(directory: Path) -> Iterator[PutAll]:
    with closing(open_lmdb(directory, sync=False)) as environment:
        yield lmdb_put_all(environment)


@contextmanager
def lmdb_synced(directory: Path) -> Iterator[PutAll]:
    with closing(open_lmdb(directory, sync=True)) as environment:
        yield lmdb_put_all(environment)


def open_lmdb(directory: Path, sync: bool, writemap: bool = False) -> lmdb.Environment:
    return lmdb.open(str(directory / "lmdb"), map_size=LMDB_BYTES, sync=sync, metasync=sync, writemap=writemap)


def lmdb_put_all(environment: lmdb.Environment) -> PutAll:
    def put_all(keys: Sequence[bytes]) -> None:
        for key in keys:
            with environment.begin(write=True) as transaction:
                transaction.put(key, VALUE)

    return put_all


def lmdb_multi_batches(directory: Path, batches: Sequence[Sequence[bytes]]) -> Callable[[], None]:
    """One transaction and one putmulti a batch; the lists of pairs are built here, before the clock starts."""
    environment = open_lmdb(directory, sync=False, writemap=True)
    pairs = [[(key, VALUE) for key in keys] for keys in batches]

    def work() -> None:
        for batch in pairs:
            with environment.begin(write=True) as transaction:
                transaction.cursor().putmulti(batch)

    return work


def lmdb_put_batches(directory: Path, batches: Sequence[Sequence[bytes]]) -> Callable[[], None]:
    """One transaction a batch and a put an entry."""
    environment = open_lmdb(directory, sync=False, writemap=True)

    def work() -> None:
        for keys in batches:
            with environment.begin(write=True) as transaction:
                put = transaction.put
                for key in keys:
                    put(key, VALUE)

    return work


@contextmanager
def sqlite_off(directory: Path) -> Iterator[PutAll]:
    with sqlite(directory, "OFF") as put_all:
        yield put_all


@contextmanager
def sqlite_full(directory: Path) -> Iterator[PutAll]:
    with sqlite(directory, "FULL") as put_all:
        yield put_all


@contextmanager
def sqlite(directory: Path, synchronous: str) -> Iterator[PutAll]:
    opened = sqlite3.connect(directory / "log.db", timeout=SQLITE_BUSY_S, isolation_level=None)  # None: autocommit
    with closing(opened) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("CREATE TABLE IF NOT EXISTS log (lsn INTEGER PRIMARY KEY, key BLOB, value BLOB)")

        def put_all(keys: Sequence[bytes]) -> None:
            execute = connection.execute
            for key in keys:
                execute(INSERT, (key, VALUE))

        yield put_all


@contextmanager
def plain_append(directory: Path) -> Iterator[PutAll]:
    """No lock, no format, no checksum: what the kernel asks for the bytes alone."""
    descriptor = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def put_all(keys: Sequence[bytes]) -> None:
        write = os.write
        for key in keys:
            write(descriptor, key + VALUE)

    try:
        yield put_all
    finally:
        os.close(descriptor)


@contextmanager
def plain_synced(directory: Path) -> Iterator[PutAll]:
    """The plain loop of a careful program: write, fdatasync, again."""
    descriptor = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def put_all(keys: Sequence[bytes]) -> None:
        write, fdatasync = os.write, os.fdatasync
        for key in keys:
            write(descriptor, key + VALUE)
            fdatasync(descriptor)

    try:
        yield put_all
    finally:
        os.close(descriptor)
