"""Schedules: two or three threads use one writer in turns that a seed draws, and one of them may close it.

What was answered is in the log, once, whole, and in an order that fits the answers; what was refused is not. And the
log can be used afterwards without a recovery.
"""

from __future__ import annotations

import logging
import random
import shutil
import threading
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.crash.proof import repeatable
from tests.crash.turns import Turns
from tests.support import Ack, append_op, entries_of, judge
from walpool import LogClosed, SyncMode, WALReader, WALWriter

LIMIT = 1200
ACTIONS = ("append", "append", "append", "batch", "sync", "snapshot", "rotate")


class Schedule:
    def __init__(self, log: Path, chance: random.Random) -> None:
        self.log = log
        self.counts: Counter[str] = Counter()
        self._turns = Turns(chance)
        self._chance = chance
        self._mode = chance.choice(list(SyncMode))
        self._acks: dict[str, list[Ack]] = {}
        self._buffered: list[tuple[str, int]] = []  # author and operation
        self._closing = False

    def play(self) -> None:
        interval_s = 0.001 if self._mode is SyncMode.NORMAL and self._chance.random() < 0.3 else None
        with self._turns.in_force():
            self._writer = WALWriter(
                self.log, self._mode, LIMIT, buffer_bytes=400, linger_s=0.001, sync_interval_s=interval_s
            )
            scripts = {}
            for number in range(self._chance.choice((2, 2, 3))):
                actions = self._chance.choices(ACTIONS, k=self._chance.randrange(2, 6))
                if number == 0 and self._chance.random() < 0.6:
                    actions[self._chance.randrange(len(actions)) :] = ["close"]
                scripts[f"t{number}"] = self._script(f"t{number}", actions)
            try:
                self._turns.run(**scripts)
            finally:
                if self._turns.error is None:
                    self._writer.close()
        self._judge()
        self.counts["turns"] += self._turns.count

    def _script(self, author: str, actions: list[str]) -> Callable[[], None]:
        acks = self._acks[author] = []

        def run() -> None:
            op = 0
            for action in actions:
                try:
                    if action in ("append", "batch"):
                        op += 6 - op % 7 if action == "batch" else 0
                        self._append(author, op, acks)
                        op += 1
                    elif action == "sync":
                        told = acks[-1].end_lsn - 1 if acks else 0
                        durable_lsn = self._writer.sync()
                        assert durable_lsn >= told, f"sync() says {durable_lsn}, and {told} was appended before"
                    elif action == "snapshot":
                        told = acks[-1].end_lsn if acks else 1
                        found = self._writer.metrics.snapshot()
                        assert told <= found.next_lsn > found.durable_lsn, found
                    elif action == "rotate":
                        self._writer.rotate()
                    else:
                        self._closing = True
                        self._writer.close()
                    self.counts[action] += 1
                except LogClosed:
                    assert self._closing, f"{action} says that the writer is closed, and nobody has closed it"
                    self.counts["closed"] += 1

        return run

    def _append(self, author: str, op: int, acks: list[Ack]) -> None:
        before = self._turns.count
        if self._mode is not SyncMode.NONE or len(entries_of(author, op)) > 1:
            lsns = append_op(self._writer, author, op)
            acks.append(Ack(op, lsns.start, lsns.stop, before + 1, self._turns.count + 2))
            if self._mode is SyncMode.FULL and not self._closing:
                durable_lsn = self._writer.metrics.snapshot().durable_lsn
                assert durable_lsn >= lsns.stop - 1, f"LSN {lsns.stop - 1} was answered, and durable is {durable_lsn}"
        else:
            self._writer.append(entries_of(author, op)[0])
            self._buffered.append((author, op))

    def _judge(self) -> None:
        with WALWriter(self.log) as writer:
            assert writer.recovery_report is None, f"the log had to be recovered: {writer.recovery_report}"
            assert len(writer.metrics.snapshot().writers) == 1, "a slot is still held"
        with WALReader(self.log) as reader:
            entries = reader.read_all()
        places = {bytes(entry.key): entry.lsn for entry in entries}
        for author, op in self._buffered:
            lsn = places.get(bytes(entries_of(author, op)[0].key))
            assert lsn is not None, f"operation {op} of {author} was buffered, and is lost"
            self._acks[author].append(Ack(op, lsn, lsn + 1))
        judge(entries, self._acks)


def prove(folder: Path, seed: int, count: int, progress: Callable[[str], object] = lambda _: None) -> Counter[str]:
    """`count` schedules."""
    logging.getLogger("walpool").setLevel(logging.CRITICAL)
    found: Counter[str] = Counter()
    for number in range(seed, seed + count):
        log = folder / "scheduled.wal"
        schedule = Schedule(log, random.Random(number))
        with repeatable(prove, number, 1):
            try:
                schedule.play()
            except Exception as error:
                said = str(error) if isinstance(error, AssertionError) else traceback.format_exc()
                raise AssertionError(said) from None
        found += schedule.counts
        found["schedules"] += 1
        shutil.rmtree(log)
        if number % 20 == 0:
            progress(f"{found['schedules']} schedules")
    assert threading.active_count() == 1, threading.enumerate()
    return found
