"""What the child processes of these tests do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import Channel, Ledger, digest, run_threads
from walpool import SyncMode, WALReader, WALWriter
from walpool.system.calls import calls


def append_many(
    channel: Channel, log: Path, acks: Path, name: str, threads: int, ops: int, size_limit: int, mode: SyncMode
) -> None:
    """Say ready, wait for the word, and append from several threads through one writer."""
    with WALWriter(log, mode, size_limit) as writer:
        channel.send("ready")
        channel.receive()

        def append(thread: int) -> None:
            ledger = Ledger(acks, f"{name}t{thread}")
            for op in range(ops):
                ledger.append(writer, op)
            ledger.close()

        run_threads(*[lambda thread=thread: append(thread) for thread in range(threads)])


def append_until_killed(channel: Channel, log: Path, acks: Path, name: str, size_limit: int, mode: SyncMode) -> None:
    ledger = Ledger(acks, name)
    with WALWriter(log, mode, size_limit) as writer:
        channel.send("ready")
        op = 0
        while True:
            ledger.append(writer, op)
            op += 1


def append_until_told(channel: Channel, log: Path, acks: Path, name: str, size_limit: int) -> int:
    """How many operations it was, once somebody says enough."""
    ledger = Ledger(acks, name)
    with WALWriter(log, size_limit=size_limit) as writer:
        channel.send("ready")
        op = 0
        while not channel.connection.poll():
            ledger.append(writer, op)
            op += 1
    ledger.close()
    return op


def follow(channel: Channel, log: Path, count: int, durable_only: bool) -> tuple[list[int], str]:
    """LSNs and digest of the first `count` entries, read while they are appended."""
    found = []
    with WALReader(log) as reader:
        channel.send("ready")
        for entry in reader.follow(durable_only=durable_only):
            found.append(entry)
            if len(found) == count:
                break
    return [entry.lsn for entry in found], digest(found)


def open_at_once(channel: Channel) -> None:
    """For each (log, acks, name, ops): say ready, open the log at the word, append, close at the word.

    The answer is whether a recovery was ours, and the inode of the control block.
    """
    while (task := channel.receive()) is not None:
        log, acks, name, ops = task
        ledger = Ledger(acks, name)
        channel.send("ready")
        channel.receive()
        with WALWriter(log) as writer:
            for op in range(ops):
                ledger.append(writer, op)
            channel.send((writer.recovery_report is not None, (log / "control").stat().st_ino))
            channel.receive()
        ledger.close()
        channel.send("closed")


def rotate_at_once(channel: Channel, log: Path, acks: Path, name: str, rounds: int) -> None:
    ledger = Ledger(acks, name)
    with WALWriter(log) as writer:
        channel.send("ready")
        channel.receive()
        for op in range(rounds):
            writer.rotate()
            ledger.append(writer, op)
            writer.rotate()
    ledger.close()


class Gate:
    """Stands in for `calls.pwrite`: once armed, the next write says `inside` and waits for the word."""

    def __init__(self, enter: Callable[[], None]) -> None:
        self.armed = False
        self._enter = enter
        self._pwrite = calls.pwrite
        calls.pwrite = self

    def __call__(self, fd: int, data: bytes, offset: int) -> int:
        if self.armed:
            self.armed = False
            self._enter()
        return self._pwrite(fd, data, offset)

    def remove(self) -> None:
        calls.pwrite = self._pwrite


def stand_inside(channel: Channel, log: Path, **options: Any) -> list[int | None]:
    """Append; append again and stand still inside, holding the append lock; go on at the word; append once more."""

    def enter() -> None:
        channel.send("inside")
        channel.receive()

    gate = Gate(enter)
    lsns = []
    with WALWriter(log, **options) as writer:
        lsns.append(writer.put(b"before", b""))
        gate.armed = True
        lsns.append(writer.put(b"inside", b""))
        lsns.append(writer.put(b"after", b""))
    return lsns


def put_one(channel: Channel, log: Path, key: bytes, options: dict[str, Any]) -> int | None:
    """Say ready, put at once, and return the LSN."""
    with WALWriter(log, **options) as writer:
        channel.send("ready")
        return writer.put(key, b"")


def put_each(channel: Channel, log: Path) -> None:
    """Put every key that comes through the channel, and answer with the LSN or the error."""
    writer = WALWriter(log)
    while (key := channel.receive()) is not None:
        try:
            channel.send(writer.put(key, b""))
        except Exception as error:
            channel.send(error)
    writer.close()
