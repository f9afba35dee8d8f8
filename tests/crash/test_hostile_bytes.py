"""Hostile bytes: spoilt headers, frames, entries, segments, control blocks and small files, by the hundred thousand.

What the mutators are and what is judged: hostile.py and hostile_logs.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.crash import hostile
from tools import fuzz

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


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_every_target_of_the_fuzzer_takes_the_seeds_of_its_corpus(tmp_path: Path, target: str) -> None:
    """And bytes that are nothing, the first that it tries."""
    assert {*hostile.TARGETS, "segment"} == set(fuzz.TARGETS)
    fuzz.make_corpus(target, tmp_path / "corpus", 1)
    place = tmp_path / "log"
    place.mkdir()
    check = fuzz.check_of(target, place)
    seeds = [file.read_bytes() for file in (tmp_path / "corpus").iterdir()]
    assert len(seeds) > fuzz.SEEDS // 3
    for data in (*seeds, b"", b"\0", b"\1", bytes(100)):
        check(data)
    assert list(place.iterdir()) == []


def test_without_atheris_the_fuzzer_says_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    assert fuzz.run("header", 10, tmp_path, 1) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "walpool[fuzz]" in said
