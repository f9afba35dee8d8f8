"""SIGKILL at every system call, at every store, in the middle of every write, and between the lines.

Nothing that was acknowledged is lost, and whoever is beside goes on.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.crash import scripts, sweep
from tests.crash.taps import DieAtStore, stores, told_of_stores
from tests.support import Channel, Child, Start

slow = pytest.mark.slow


def tell_points(channel: Channel, folder: Path, scene: str, kind: str, share: int, seed: int) -> sweep.Tally:
    chance = random.Random(seed) if share else None
    return sweep.sweep(folder, sweep.SCENES[scene], kind, chance, share, channel.send)


def tell_proof(channel: Channel, folder: Path, seed: int, count: int) -> Counter[str]:
    return sweep.prove(folder, seed, count, channel.send)


def result(child: Child) -> Any:
    """The sweep's result; it says now and then that it goes on."""
    while True:
        what, value = child.next()
        if what == "result":
            assert child.died() == 0
            print(value)
            return value


@pytest.mark.parametrize(
    ("scene", "kind", "share", "at_least"),
    [
        ("append a little", "call", 0, 150),
        pytest.param("append a little", "store", 0, 250, marks=slow),
        ("mapped", "call", 40, 35),
        pytest.param("mapped", "call", 0, 400, marks=slow),
        pytest.param("mapped", "store", 0, 500, marks=slow),
        pytest.param("coordinate", "call", 100, 70, marks=slow),
        pytest.param("open nothing", "call", 70, 40, marks=slow),
        pytest.param("open of_another_boot", "call", 70, 40, marks=slow),
        pytest.param("open with_a_torn_tail", "call", 70, 40, marks=slow),
        pytest.param("open with_a_torn_header", "call", 70, 40, marks=slow),
        pytest.param("open after_a_failed_sync", "call", 70, 40, marks=slow),
    ],
)
def test_a_death_at_every_point_loses_nothing(
    child: Start, memory: Path, scene: str, kind: str, share: int, at_least: int, seed: int
) -> None:
    """At every point, or at `share` of very many."""
    found = result(child(tell_points, memory, scene, kind, share, seed))
    assert found.died > at_least


@pytest.mark.slow
def test_deaths_at_points_of_all_scenes_drawn_by_chance_lose_nothing(child: Start, memory: Path, seed: int) -> None:
    found = result(child(tell_proof, memory, seed, 200))
    assert found["kills"] >= 200
    for scene in sweep.SCENES:
        for kind in sweep.KINDS:
            assert found[f"kills: {scene}, {kind}"] > 0, f"{scene}, {kind}: nobody died"
    assert not list(memory.iterdir())


def count_stores(channel: Channel, log: Path) -> set[str]:
    """Functions of which no victim of the append script can die at a store."""
    told_of_stores()
    death = DieAtStore(0, "before")
    death.start()
    scripts.append_a_little(log, "v", lambda *_: None)
    death.stop()
    met = set()
    for (file, _, name), (lines, _) in stores().items():
        if any((file, line) in death.places for line in lines):
            met.add(name)
    return met


def test_the_stores_of_an_append_are_among_the_points(child: Start, memory: Path) -> None:
    met = child(count_stores, memory / "events.wal").result()
    assert met >= {
        "Place.append",
        "Appender._start_next",
        "Committer._lead",
        "Control.publish_filled",
        "SlotRow.__init__",
        "SlotRow.close",
    }, met
