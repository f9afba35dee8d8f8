"""Hostile bytes: spoilt headers, frames, entries, segments, control blocks and small files, by the hundred thousand.

What the mutators are and what is judged: hostile.py and hostile_logs.py.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest

from tests.crash import hostile
from tests.format import layout
from tests.read.logs import read
from tests.support import Channel, Start
from tools import fuzz
from walpool import RecoveryMode, UnsafeLog, WALError, WALWriter
from walpool.system.calls import calls
from walpool.upkeep.verify import verify

INPUTS = 200_000
HALVES = 2


@pytest.mark.slow
@pytest.mark.parametrize("half", range(HALVES))
def test_hostile_bytes_give_what_was_appended_or_a_typed_error(memory: Path, seed: int, half: int) -> None:
    done = hostile.prove(memory, seed + half, INPUTS // HALVES)
    assert sum(done.values()) >= INPUTS // HALVES
    for name in hostile.TARGETS:
        assert any(what.startswith(name) for what in done), f"nothing was done of {name}"
    for name in ("header", "entry", "body", "frames", "checkpoint", "cursor", "control"):
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


# Large ones


def read_in_a_corner(channel: Channel, log: Path, most_bytes: int) -> dict[str, str]:
    """What reading, verifying and opening come to in a process that cannot have much more memory than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + most_bytes, used + most_bytes))
    came = {}
    for mode in RecoveryMode:
        found = read(log, mode=mode)
        came[mode.value] = f"{len(found.entries)} {type(found.error).__name__}"
    try:
        came["verify"] = ", ".join(finding.kind for finding in verify(log).findings)
    except WALError as error:
        came["verify"] = type(error).__name__
    try:
        with WALWriter(log) as writer:
            came["open"] = str(writer.put(b"key", b"value"))
    except WALError as error:
        came["open"] = type(error).__name__
    return came


BEHIND = {
    "nothing": b"",
    "a huge frame": layout.frame(3, [layout.item(3)])[:8]
    + b"\xf0\xff\xff\xff"
    + layout.frame(3, [layout.item(3)])[12:],
    "a count that fits": b"".join((layout.frame(3, [layout.item(3)])[:8], b"\0\0\0\xc0", b"\0\0\0\1", bytes(32))),
}


@pytest.mark.slow
@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("size", [1 << 29, 1 << 40], ids=["512 MiB", "1 TiB"])
def test_a_sparse_segment_takes_no_memory(memory: Path, child: Start, linux: None, size: int, behind: str) -> None:
    """Two entries, a frame that claims as much as it can, and holes; a terabyte of them is refused."""
    log = layout.write_segments(memory / "log", {1: layout.segment(1, layout.single(1, 2)) + BEHIND[behind]})
    os.truncate(log / layout.name(1), size)
    came = child(read_in_a_corner, log, hostile.MOST_BYTES).result()
    if size == 1 << 40:
        assert set(came.values()) == {"0 UnsafeLog", "UnsafeLog"}, came
    else:
        assert came["tolerate_tail"] == came["salvage"] == came["point_in_time"] == "2 NoneType", came
        assert came["strict"] == ("2 CorruptLog" if behind != "nothing" else "2 NoneType"), came
        assert came["verify"] == ("torn tail" if behind != "nothing" else ""), came
        assert came["open"] == "3", came


@pytest.mark.slow
def test_a_listing_of_more_segments_than_a_million_is_refused(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout.write_segments(log, {1: layout.segment(1, layout.single(1, 2))})
    names = [layout.name(lsn) for lsn in range(1, 1_000_002)]
    monkeypatch.setattr(calls, "listdir", lambda fd: names)
    assert isinstance(read_error(log), UnsafeLog)
    with pytest.raises(UnsafeLog):
        verify(log)


def read_error(log: Path) -> WALError | None:
    try:
        return read(log).error
    except WALError as error:
        return error
