"""SIGKILL at any moment of real work, in one of several writers or in all of them."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.crash.sweep import in_child
from tests.oracle import second
from tests.processes import workers
from tests.support import Ack, Channel, Ledger, Start, append_op, judge, read_log, reap, until
from walpool import SyncMode, WALWriter

LIMIT = 30_000


class Herd:
    """Writers that append until they are killed, forked because that is quick. Their ledgers tell how far they are."""

    def __init__(self, log: Path, acks: Path, mode: SyncMode) -> None:
        self._log = log
        self._acks = acks
        self._mode = mode
        self._started = 0
        self.living: dict[str, int] = {}

    def start(self) -> None:
        name = f"w{self._started}"
        self._started += 1
        pid = os.fork()
        if pid == 0:
            in_child(lambda: self._append(name))
        self.living[name] = pid

    def _append(self, name: str) -> None:
        ledger = Ledger(self._acks, name)
        with WALWriter(self._log, self._mode, LIMIT) as writer:
            for op in range(1 << 60):
                ledger.append(writer, op)

    def acknowledged(self, name: str) -> int:
        try:
            return (self._acks / name).stat().st_size // Ledger.ACK_BYTES
        except FileNotFoundError:
            return 0

    def wait_until_each_goes_on(self, operations: int) -> None:
        goals = {name: self.acknowledged(name) + operations for name in self.living}
        until(lambda: all(self.acknowledged(name) >= goal for name, goal in goals.items()), f"{list(goals)} go on")

    def kill(self, *names: str) -> None:
        for name in names:
            os.kill(self.living[name], signal.SIGKILL)
        for name in names:
            assert reap(self.living.pop(name)) == -signal.SIGKILL


def judge_after_kills(log: Path, acks: Path) -> None:
    """Everything that was acknowledged is there; of each killed writer, at most the operation it was at."""
    told: dict[str, list[Ack]] = Ledger.read_all(acks)
    entries = read_log(log)
    judge(entries, told, {name: [theirs[-1].op + 1 if theirs else 0] for name, theirs in told.items()})
    second.agree(log, entries, exact=False)


def kill_one_after_another(channel: Channel, log: Path, acks: Path, seed: int, rounds: int) -> None:
    chance = random.Random(seed)
    acks.mkdir()
    herd = Herd(log, acks, SyncMode.NORMAL)
    for _ in range(4):
        herd.start()
    herd.wait_until_each_goes_on(1)
    for _ in range(rounds):
        herd.wait_until_each_goes_on(chance.randrange(20))
        herd.kill(chance.choice(list(herd.living)))
        herd.wait_until_each_goes_on(1)
        herd.start()
    herd.wait_until_each_goes_on(1)
    herd.kill(*herd.living)
    judge_after_kills(log, acks)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [20])
def test_one_of_four_writers_is_killed_again_and_again(
    child: Start, log: Path, tmp_path: Path, seed: int, rounds: int
) -> None:
    child(kill_one_after_another, log, tmp_path / "acks", seed, rounds).result()


def kill_all_at_once(channel: Channel, log: Path, acks: Path, mode: SyncMode, seed: int, rounds: int) -> None:
    chance = random.Random(seed)
    acks.mkdir()
    herd = Herd(log, acks, mode)
    for _ in range(rounds):
        for _ in range(3):
            herd.start()
        herd.wait_until_each_goes_on(1 + chance.randrange(30))
        herd.kill(*herd.living)
        with WALWriter(log, size_limit=LIMIT) as writer:
            assert writer.recovery_report is None, writer.recovery_report
            assert len(writer.metrics.snapshot().writers) == 1
    judge_after_kills(log, acks)
    with WALWriter(log) as writer:
        append_op(writer, "after", 0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [SyncMode.NORMAL, SyncMode.FULL])
def test_all_writers_are_killed_at_once_and_nothing_has_to_be_recovered(
    child: Start, log: Path, tmp_path: Path, mode: SyncMode, seed: int
) -> None:
    child(kill_all_at_once, log, tmp_path / "acks", mode, seed, 10).result()


def test_a_reader_that_is_killed_harms_nobody(child: Start, log: Path, tmp_path: Path) -> None:
    acks = tmp_path / "acks"
    writer = child(workers.append_until_told, log, acks, "w", LIMIT)
    assert writer.receive() == "ready"
    reader = child(workers.follow, log, 1 << 60, False)
    assert reader.receive() == "ready"
    reader.kill()
    assert reader.died() == -signal.SIGKILL
    size = (acks / "w").stat().st_size
    until(lambda: (acks / "w").stat().st_size > size, "the writer goes on")
    writer.send("enough")
    assert writer.result() > 0
    judge(read_log(log), Ledger.read_all(acks))
