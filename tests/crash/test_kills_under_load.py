"""SIGKILL at any moment of real work, in one of several writers or in all of them."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.processes import workers
from tests.support import Ack, Child, Ledger, Start, judge, read_log, until
from walpool import SyncMode, WALWriter

LIMIT = 30_000


def start_writer(child: Start, log: Path, acks: Path, name: str, mode: SyncMode = SyncMode.NORMAL) -> Child:
    writer = child(workers.append_until_killed, log, acks, name, LIMIT, mode)
    assert writer.receive() == "ready"
    return writer


def acknowledged(acks: Path, name: str) -> int:
    return (acks / name).stat().st_size


def judge_after_kills(log: Path, acks: Path) -> None:
    """Everything that was acknowledged is there; of each killed writer, at most the operation it was at."""
    told: dict[str, list[Ack]] = Ledger.read_all(acks)
    entries = read_log(log)
    judge(entries, told, {name: [theirs[-1].op + 1 if theirs else 0] for name, theirs in told.items()})


def test_one_of_four_writers_is_killed_again_and_again(child: Start, log: Path, tmp_path: Path, seed: int) -> None:
    acks = tmp_path / "acks"
    chance = random.Random(seed)
    writers = [start_writer(child, log, acks, f"w{n}") for n in range(4)]
    names = [f"w{n}" for n in range(4)]
    for round_ in range(10):
        victim = chance.randrange(4)
        goal = acknowledged(acks, names[victim]) + chance.randrange(10_000)
        until(lambda victim=victim, goal=goal: acknowledged(acks, names[victim]) >= goal, "the victim goes on")  # type: ignore[misc]
        writers[victim].kill()
        assert writers[victim].died() == -signal.SIGKILL
        others = [name for at, name in enumerate(names) if at != victim]
        before = {name: acknowledged(acks, name) for name in others}
        until(
            lambda before=before: all(acknowledged(acks, name) > size for name, size in before.items()),  # type: ignore[misc]
            "the others go on",
        )
        names[victim] = f"r{round_}"
        writers[victim] = start_writer(child, log, acks, names[victim])
    for writer in writers:
        writer.kill()
    for writer in writers:
        writer.died()
    judge_after_kills(log, acks)


@pytest.mark.parametrize("mode", [SyncMode.NORMAL, SyncMode.FULL])
def test_all_writers_are_killed_at_once_and_nothing_has_to_be_recovered(
    child: Start, log: Path, tmp_path: Path, mode: SyncMode, seed: int
) -> None:
    acks = tmp_path / "acks"
    chance = random.Random(seed)
    for round_ in range(3):
        names = [f"r{round_}w{n}" for n in range(3)]
        writers = [start_writer(child, log, acks, name, mode) for name in names]
        goal = chance.randrange(4_000)
        until(lambda names=names, goal=goal: acknowledged(acks, names[0]) >= goal, "the writers go on")  # type: ignore[misc]
        for writer in writers:
            writer.kill()
        for writer in writers:
            assert writer.died() == -signal.SIGKILL
        with WALWriter(log, size_limit=LIMIT) as writer:
            assert writer.recovery_report is None
        judge_after_kills(log, acks)


def test_a_reader_that_is_killed_harms_nobody(child: Start, log: Path, tmp_path: Path) -> None:
    acks = tmp_path / "acks"
    writer = child(workers.append_until_told, log, acks, "w", LIMIT)
    assert writer.receive() == "ready"
    for _ in range(3):
        reader = child(workers.follow, log, 1 << 60, False)
        assert reader.receive() == "ready"
        goal = acknowledged(acks, "w") + 4_000
        until(lambda goal=goal: acknowledged(acks, "w") >= goal, "the writer goes on")  # type: ignore[misc]
        reader.kill()
        assert reader.died() == -signal.SIGKILL
    writer.send("enough")
    assert writer.result() > 300
    judge(read_log(log), Ledger.read_all(acks))
