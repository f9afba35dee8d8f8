"""Hostile bytes: spoilt headers, frames, entries, segments, control blocks and small files, by the hundred thousand.

What the mutators are and what is judged: hostile.py and hostile_logs.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import hostile

INPUTS = 200_000
HALVES = 2


@pytest.mark.parametrize("half", range(HALVES))
def test_hostile_bytes_give_what_was_appended_or_a_typed_error(memory: Path, seed: int, half: int) -> None:
    done = hostile.prove(memory, seed + half, INPUTS // HALVES)
    assert sum(done.values()) >= INPUTS // HALVES
    for name in hostile.TARGETS:
        assert any(what.startswith(name) for what in done), f"nothing was done of {name}"
    for name in ("header", "entry", "body", "frames", "checkpoint", "control"):
        assert done[f"{name} read"] and done[f"{name} refused"], done
    assert done["segment opened"] and done["segment verified damaged"] and done["control rebuilt"], done
