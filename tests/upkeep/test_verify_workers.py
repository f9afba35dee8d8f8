"""Verify with workers: the same report, whoever has read; and how it ends when one of them does not come to its end."""

from __future__ import annotations

import os
import signal
from multiprocessing import active_children
from pathlib import Path
from random import Random

import pytest

from tests.format import layout
from tests.read.logs import make, segment_files
from tests.read.test_plan import random_log
from walpool import LogReplaced, UnsupportedVersion, WorkerFailed
from walpool.read.source import Source
from walpool.upkeep import verify as verifying
from walpool.upkeep.check import Check
from walpool.upkeep.verify import verify


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "PIECE_BYTES", 1500)


def test_the_report_is_the_same_whoever_has_read(tmp_path: Path, seed: int) -> None:
    chance = Random(seed)
    damaged = 0
    for number in range(10):
        log = random_log(chance, tmp_path / f"log{number}")
        for _ in range(chance.choice([0, 1, 2, 3])):
            file = chance.choice(segment_files(log))
            data = bytearray(file.read_bytes())
            at = chance.randrange(len(data) or 1)
            match chance.randrange(4):
                case 0 if data:
                    data[at] ^= 1 << chance.randrange(8)
                case 1:
                    data[at : at + 100] = bytes(len(data[at : at + 100]))
                case 2 if len(segment_files(log)) > 1:
                    file.unlink()
                    continue
                case _:
                    del data[at:]
            file.write_bytes(data)
        alone = verify(log)
        assert verify(log, workers=3) == alone, (seed, number)
        damaged += alone.damaged
    assert damaged


def test_progress_comes_to_all_there_is(tmp_path: Path) -> None:
    make(tmp_path / "log", 200, size_limit=1500)
    said: list[tuple[int, int]] = []
    verify(tmp_path / "log", lambda *numbers: said.append(numbers), workers=2)
    assert said == sorted(said) and said[-1][0] == said[-1][1] and len(said) > 3


def test_a_worker_that_is_killed_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "log", 200, size_limit=1500)
    real = Check.run

    def run(check: Check) -> object:
        if check._found.first_lsn > 100:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(check)

    monkeypatch.setattr(Check, "run", run)
    with pytest.raises(WorkerFailed, match="was killed by SIGKILL"):
        verify(tmp_path / "log", workers=2)
    assert active_children() == []


def test_what_ends_a_verification_ends_it_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {first: layout.segment(first, layout.single(first, 20), marker=first) for first in range(1, 200, 20)}
    parts[101] = layout.header(101, version=0x0200) + parts[101][64:]
    log = layout.write_segments(tmp_path / "log", parts)
    with pytest.raises(UnsupportedVersion):
        verify(log)
    with pytest.raises(UnsupportedVersion):
        verify(log, workers=2)
    make(tmp_path / "other", 100)
    monkeypatch.setattr(Source, "id", property(lambda source: os.urandom(16)))
    with pytest.raises(LogReplaced, match="another log"):
        verify(tmp_path / "other", workers=2)
