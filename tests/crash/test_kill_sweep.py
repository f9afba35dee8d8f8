"""SIGKILL at every system call, in the middle of every write, and between the lines: nothing acknowledged is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import scripts, sweep
from tests.support import Child, Start


def tally(child: Child) -> sweep.Tally:
    """The sweep's result; it says now and then that it goes on."""
    while True:
        kind, value = child.next()
        if kind == "result":
            assert child.died() == 0
            print(value)
            return value


def test_death_at_every_call_of_an_append_beside_a_living_writer(child: Start, memory: Path) -> None:
    found = tally(child(sweep.sweep_beside, memory, scripts.append_in_every_way, "call", 0, 0))
    assert found.died > 300 and found.acknowledged > 1000


@pytest.mark.parametrize(
    "prepare",
    [
        scripts.nothing,
        scripts.of_another_boot,
        scripts.with_a_torn_tail,
        scripts.with_a_torn_header,
        scripts.after_a_failed_sync,
    ],
)
def test_death_at_every_call_of_an_opening(child: Start, memory: Path, prepare: scripts.Prepare) -> None:
    script = scripts.open_and_append_a_little
    found = tally(child(sweep.sweep_alone, memory, script, prepare, "call", 0, 0))
    assert found.died > 60


@pytest.mark.parametrize("share", [100, pytest.param(400, marks=pytest.mark.slow)])
def test_death_at_any_line_beside_a_living_writer(child: Start, memory: Path, share: int, seed: int) -> None:
    found = tally(child(sweep.sweep_beside, memory, scripts.append_in_every_way, "line", share, seed))
    assert found.died > share * 0.7


@pytest.mark.parametrize("prepare", [scripts.nothing, scripts.with_a_torn_tail, scripts.after_a_failed_sync])
def test_death_at_any_line_of_an_opening(child: Start, memory: Path, prepare: scripts.Prepare, seed: int) -> None:
    script = scripts.open_and_append_a_little
    found = tally(child(sweep.sweep_alone, memory, script, prepare, "line", 100, seed))
    assert found.died > 60


def test_death_at_every_call_of_a_coordinator(child: Start, memory: Path) -> None:
    found = tally(child(sweep.sweep_alone, memory, scripts.coordinate, scripts.nothing, "call", 0, 0))
    assert found.died > 300


@pytest.mark.parametrize("share", [100, pytest.param(200, marks=pytest.mark.slow)])
def test_death_at_any_line_of_a_coordinator(child: Start, memory: Path, share: int, seed: int) -> None:
    found = tally(child(sweep.sweep_alone, memory, scripts.coordinate, scripts.nothing, "line", share, seed))
    assert found.died > share * 0.7
