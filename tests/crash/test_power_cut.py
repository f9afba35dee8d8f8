"""A power cut at any moment: what was called durable is there, and nothing that nobody appended."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.crash import power_cut
from tests.crash.disk import Disk, Event, Model
from tests.support import MAPPED
from walpool import SyncMode, WALWriter

slow = pytest.mark.slow


@pytest.mark.parametrize(("part", "states"), [(0, 500), pytest.param(1, 2_500, marks=slow)])
def test_power_cuts(memory: Path, part: int, states: int, seed: int) -> None:
    """`states`: distinct, and others each time; in the larger part all seeded bugs are found, see seeded."""
    counts = power_cut.prove(memory, seed + part * 1_000_000, states)
    print(dict(counts))
    assert counts["crash states"] >= states
    assert counts["states of a recovery"] > 50 or states < 2_500


@pytest.mark.skipif(not MAPPED, reason="stores into mapped segments are for Linux")
@pytest.mark.parametrize("states", [400, pytest.param(4_000, marks=slow)])
def test_power_cuts_in_the_middle_of_stores(memory: Path, states: int, seed: int) -> None:
    counts = power_cut.prove(memory, seed, states, ["mapped"])
    print(dict(counts))


@pytest.mark.slow
def test_power_cuts_in_a_recovery(memory: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_cut, "NESTED_SHARE", 0.3)
    counts = power_cut.prove(memory, seed, 900)
    print(dict(counts))
    assert counts["states of a recovery"] > 450


def test_each_rule_removes_what_its_words_say_and_pins_copies_and_a_failed_sync_keep_the_rest(
    memory: Path, seed: int
) -> None:
    """Without a cut: what a run judges by itself costs a hundredth of all that its cuts may leave."""
    for number in range(50):
        power_cut.record(power_cut.SCRIPTS["rules"], memory / f"{number}", random.Random(f"{seed} {number}"))


@pytest.mark.slow
def test_what_a_rule_keeps_no_cut_takes(memory: Path, seed: int) -> None:
    counts = power_cut.prove(memory, seed, 400, ["rules"])
    print(dict(counts))


def rebuild_after_a_rotation(told: power_cut.Told, chance: random.Random) -> None:
    """What a rotation left to do was never done; then the control block is lost, and another process opens the log."""
    with WALWriter(told.log) as writer:
        stopped = power_cut.stop_coordinators(told.log)
        told.append(writer, SyncMode.NORMAL)
        told.sync(writer)
        writer.rotate()
        told.append(writer, SyncMode.NORMAL)
    os.unlink(told.log / "control")
    with WALWriter(told.log) as writer:
        told.sync(writer)
    stopped.close()


@pytest.mark.slow
def test_no_name_survives_a_recovery_alone(memory: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new segment says that all before it is durable: so are their names, or the log has a hole."""
    monkeypatch.setitem(power_cut.SCRIPTS, "rebuilt after a rotation", rebuild_after_a_rotation)
    explorer = power_cut.Explorer(memory)
    for number in range(20):
        explorer.explore("rebuilt after a rotation", seed + number)


# The disk itself


def states(disk: Disk, name: str) -> set[bytes | None]:
    chance = random.Random(1)
    return {disk.draw(chance, 512, [b"other"]).files.get(name) for _ in range(400)}


def played(model: Model, *events: Event) -> Disk:
    disk = Disk(model)
    for event in events:
        disk.play(event)
    return disk


MADE = Event("create", (0, "a", 1))
WRITTEN = Event("write", (1, 0, b"x" * 512))
AGAIN = Event("write", (1, 512, b"y" * 512))


def test_what_was_not_synced_may_be_there_or_not() -> None:
    found = states(played(Model.WEAK, MADE, WRITTEN, AGAIN), "a")
    assert {None, b"", b"x" * 512, b"x" * 512 + b"y" * 512, bytes(512) + b"y" * 512} <= found


def test_what_was_synced_is_there() -> None:
    disk = played(Model.WEAK, MADE, WRITTEN, Event("sync", (1, 2, False)), Event("sync", (0, 3, True)))
    assert states(disk, "a") == {b"x" * 512}


def test_a_file_without_its_name_is_lost_to_the_weak_and_not_to_the_strong() -> None:
    synced = MADE, WRITTEN, Event("sync", (1, 2, False))
    assert None in states(played(Model.WEAK, *synced), "a")
    assert states(played(Model.STRONG, *synced), "a") == {b"x" * 512}


def test_a_write_that_came_after_a_sync_began_is_not_covered_by_it() -> None:
    disk = played(Model.STRONG, MADE, WRITTEN, AGAIN, Event("sync", (1, 2, True)))
    assert b"x" * 512 in states(disk, "a")


def test_what_a_failed_sync_was_for_no_later_sync_makes_durable() -> None:
    failed = MADE, WRITTEN, Event("sync failed", (1, 2)), Event("sync", (1, 3, True))
    assert b"" in states(played(Model.STRONG, *failed), "a")
