"""A witness: it looks at a log now and then, and what it has seen must hold later.

What a reader was given is there later, the same; what a durable follower was given is at or below the durable LSN, and
after a power cut there, too. Where a reader saw the end, nothing appears later of an author who had ended by then. LSNs
are dense, and neither `appended_at` nor the figures of a snapshot go back.

Holds: it looks while everybody else stands still, so what it sees at once has to fit together. It takes no lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from walpool import (
    ControlUnusable,
    LogNotFound,
    LSNUnavailable,
    ReadBatch,
    Snapshot,
    UnsafeLog,
    WALEntry,
    WALMetrics,
    WALReader,
)
from walpool.format.names import CONTROL

FIGURES = ("next_lsn", "durable_lsn", "writes_total")
OF_ONE_BLOCK = ("batches_total", "bytes_written", "rotation_count", "sync_total")  # recounted where it was removed


class Witness:
    """`pin`: what it has not read yet, retention keeps."""

    def __init__(self, log: Path, *, pin: bool = False) -> None:
        self.log = log
        self.next_lsn = 1  # where it saw the end
        self.durable_lsn = 0  # up to where it was told that entries are on disk
        self.missed = 0  # entries that retention removed before it looked
        self._pin = pin
        self._entries: dict[int, WALEntry] = {}
        self._appended_at = 0
        self._figures: tuple[Snapshot, bytes] | None = None  # and of which control block
        self._ended: dict[str, int] = {}  # authors, and where the end was then
        self._reader: WALReader[bytes] | None = None
        self._durable: WALReader[bytes] | None = None  # follows
        self._metrics: WALMetrics | None = None

    def look(self) -> Witness:
        """Everything that came since the last look."""
        try:
            self._read()
            self._follow()
            self._count()
        except LogNotFound:
            pass
        except UnsafeLog as error:
            assert "hard links" in error.reason, error  # a recovery ended in its middle: the next one takes one away
        return self

    def ended(self, author: str) -> None:
        """From now on nothing of that author appears: whoever looked saw what there is of it. Asked after a look."""
        self._ended.setdefault(author, self.next_lsn)

    def holds(self, entries: Iterable[WALEntry], first_lsn: int) -> None:
        """Raises AssertionError unless a log that begins at `first_lsn`, and has these, has all that was seen of it."""
        there = {entry.lsn: entry for entry in entries}
        for lsn, seen in self._entries.items():
            if lsn >= first_lsn:
                assert there.get(lsn) == seen, f"a reader saw {seen}, and there is {there.get(lsn)}"

    def close(self) -> None:
        for each in (self._reader, self._durable, self._metrics):
            if each is not None:
                each.close()
        self._reader = self._durable = self._metrics = None

    # One look

    def _read(self) -> None:
        for batch in self._batches():
            assert batch.first_lsn >= self.next_lsn, f"LSN {batch.first_lsn} comes after {self.next_lsn - 1}"
            assert batch.first_lsn == self.next_lsn or self.missed, f"LSN {self.next_lsn} is passed over"
            assert batch.appended_at >= self._appended_at, f"LSN {batch.first_lsn} was appended before the one before"
            self._appended_at = batch.appended_at
            for entry in batch.entries:
                self._see(entry)
            self.next_lsn = batch.first_lsn + batch.count
        assert self._reader is not None
        end = self._reader.last_lsn + 1
        assert end == self.next_lsn, f"the log is said to end before LSN {end}, and reading ends before {self.next_lsn}"

    def _batches(self) -> Iterator[ReadBatch[bytes]]:
        while True:
            try:
                if self._reader is None:
                    self._reader = WALReader(self.log, self.next_lsn if self._entries else None, pin=self._pin)
                    if not self._entries:
                        self._pass_to(self._reader.next_lsn)
                yield from self._reader.batches()
                return
            except LSNUnavailable as error:
                assert not self._pin, f"a reader with a pin was at LSN {self.next_lsn}: {error}"
                assert error.first_available > self.next_lsn, f"LSN {self.next_lsn} is there: {error}"
                self._pass_to(error.first_available)
                if self._reader is not None:
                    self._reader.close()
                self._reader = WALReader(self.log, self.next_lsn)

    def _pass_to(self, lsn: int) -> None:
        self.missed += max(0, lsn - self.next_lsn)
        self.next_lsn = max(self.next_lsn, lsn)

    def _see(self, entry: WALEntry) -> None:
        author = bytes(entry.key).partition(b"/")[0].decode()
        end = self._ended.get(author)
        assert end is None or entry.lsn < end, (
            f"LSN {end} was the next when {author} had ended, and LSN {entry.lsn} is {author}'s: {entry}"
        )
        self._entries[entry.lsn] = entry

    def _follow(self) -> None:
        """Up to what is durable."""
        while True:
            try:
                if self._durable is None:
                    self._durable = WALReader(self.log)
                for entry in self._durable.follow(timeout=0, durable_only=True):
                    seen = self._entries.get(entry.lsn, entry)
                    assert entry == seen, f"a follower was given {entry}, and a reader {seen}"
                    self.durable_lsn = entry.lsn
                return
            except LSNUnavailable as error:
                assert self._durable is not None
                self._durable.close()
                self._durable = WALReader(self.log, error.first_available)

    def _count(self) -> None:
        try:
            if self._metrics is None:
                self._metrics = WALMetrics.attach(self.log)
            now = self._metrics.snapshot()
        except ControlUnusable:
            return  # none has opened it yet, or since the boot
        block = (self.log / CONTROL).read_bytes()[:64]  # what it is known by: it has a random generation
        before, before_block = self._figures or (now, block)
        for name in FIGURES if block != before_block else FIGURES + OF_ONE_BLOCK:
            was, is_ = getattr(before, name), getattr(now, name)
            assert is_ >= was, f"{name} was {was}, and is {is_}"
        assert now.next_lsn == self.next_lsn, f"the next LSN is {now.next_lsn}, and reading ends before {self.next_lsn}"
        assert self.durable_lsn <= now.durable_lsn < now.next_lsn, (
            f"a durable follower was given LSN {self.durable_lsn}; durable is {now.durable_lsn}, next {now.next_lsn}"
        )
        assert self._durable is not None and self._durable.next_lsn > now.durable_lsn, (
            f"durable is {now.durable_lsn}, and a follower is given what comes before {self._durable}"
        )
        self._figures = now, block
