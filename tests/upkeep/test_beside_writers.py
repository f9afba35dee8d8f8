"""One look is no proof: what reads a log without its control block, beside a writer, looks again before it says damage.

In most tests the writer acts at the worst moment, between the look at a place and the look behind it: that is when the
system is asked for bytes (`calls.pread`) for the first time after the frames were read (`calls.preadv`).
"""

import fcntl
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.format import layout
from tests.read.logs import copy_of, entries, fill, make, read, segment_files
from tests.support import Channel, Start
from walpool import CorruptLog, LogNotFound, LogReplaced, RecoveryMode, Retention, WALReader, WALWriter
from walpool.cli import dump
from walpool.system.calls import calls
from walpool.upkeep.repair import plan_repair
from walpool.upkeep.verify import verify

COUNT, MORE = 6, 4
STRICT = RecoveryMode.STRICT
Look = Callable[[Path], None]


def read_the_file(mode: RecoveryMode) -> Look:
    def look(log: Path) -> None:
        found = read(segment_files(log)[-1], mode=mode)
        assert found.error is None
        assert found.entries in (entries(1, COUNT + 1), entries(1, COUNT + MORE + 1))

    return look


def read_the_log(mode: RecoveryMode) -> Look:
    def look(log: Path) -> None:
        found = read(log, mode=mode)
        assert found.error is None
        assert found.entries in (entries(1, COUNT + 1), entries(1, COUNT + MORE + 1))

    return look


def verify_the_log(log: Path) -> None:
    assert verify(log).findings == []


def verify_the_file(log: Path) -> None:
    assert verify(segment_files(log)[-1]).findings == []


def dump_the_file(log: Path) -> None:
    assert {row.kind for row in dump.rows(str(segment_files(log)[-1]))} == {"header", "frame", "end"}


def plan(mode: RecoveryMode) -> Look:
    def look(log: Path) -> None:
        found = plan_repair(log, mode)
        assert not found.needed
        assert found.next_lsn in (COUNT + 1, COUNT + MORE + 1)

    return look


LOOKS: dict[str, Look] = {
    **{f"file, {mode.value}": read_the_file(mode) for mode in RecoveryMode},
    **{f"log, {mode.value}": read_the_log(mode) for mode in RecoveryMode},
    **{f"repair, {mode.value}": plan(mode) for mode in RecoveryMode},
    "verify the log": verify_the_log,
    "verify the file": verify_the_file,
    "dump the file": dump_the_file,
}


def at_the_first_look_behind(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """`act` happens once: after frames were read, before the next look at anything."""
    really_pread, really_preadv = calls.pread, calls.preadv
    state = {"frames": False, "done": False}

    def preadv(*args: Any) -> int:
        state["frames"] = True
        return really_preadv(*args)

    def pread(*args: Any) -> bytes:
        if state["frames"] and not state["done"]:
            state["done"] = True
            act()
        return really_pread(*args)

    monkeypatch.setattr(calls, "preadv", preadv)
    monkeypatch.setattr(calls, "pread", pread)


@pytest.mark.parametrize("space", [0, 50_000], ids=["growing", "prepared"])
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_frames_that_came_meanwhile_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Look, space: int
) -> None:
    """The window saw zeros, or the end of the file; behind it there are frames by now."""
    whole = layout.segment(1, layout.single(1, COUNT + MORE))
    ends = [end for _, end, lsn, _ in layout.spans(whole) if lsn >= COUNT]
    log = layout.write_segments(tmp_path / "log", {1: whole[: ends[0]] + bytes(space)})
    file = segment_files(log)[0]

    def append() -> None:
        with file.open("r+b") as out:
            for start, end in pairwise(ends):
                out.seek(start)
                out.write(whole[start:end])

    at_the_first_look_behind(monkeypatch, append)
    look(log)


@pytest.mark.parametrize("seen", [10, 48, 60, -3])
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_frame_seen_half_written_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: Look, seen: int
) -> None:
    whole = layout.segment(1, layout.single(1, COUNT + MORE))
    start, end = next((at, end) for at, end, lsn, _ in layout.spans(whole) if lsn == COUNT + 1)
    half = whole[: start + seen if seen > 0 else end + seen]
    log = layout.write_segments(tmp_path / "log", {1: half + bytes(9000)})
    file = segment_files(log)[0]
    at_the_first_look_behind(monkeypatch, lambda: file.write_bytes(whole + bytes(8000)))
    look(log)


@pytest.mark.parametrize("look", [f"log, {STRICT.value}", f"repair, {STRICT.value}", "verify the log"])
def test_a_look_waits_for_an_append_that_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    """The frame stays half written until somebody has waited for the append lock."""
    whole = layout.segment(1, layout.single(1, COUNT + MORE))
    start, end = next((at, end) for at, end, lsn, _ in layout.spans(whole) if lsn == COUNT + MORE)
    log = layout.write_segments(tmp_path / "log", {1: whole[: start + 60]})
    file = segment_files(log)[0]
    lock = os.open(log / "append.lock", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def sleep(seconds: float) -> None:
        file.write_bytes(whole)
        fcntl.flock(lock, fcntl.LOCK_UN)

    monkeypatch.setattr(calls, "sleep", sleep)
    try:
        LOOKS[look](log)
    finally:
        os.close(lock)
    assert file.stat().st_size == end, "it was waited for"


def test_what_is_still_damaged_at_the_second_look_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bytearray(layout.segment(1, layout.single(1, COUNT + MORE)))
    start = next(at for at, _, lsn, _ in layout.spans(bytes(whole)) if lsn == COUNT)
    for damaged in (
        whole[: start + 9] + b"\xff" + whole[start + 10 :],
        whole[:start] + bytes(30) + whole[start + 30 :],
    ):
        log = layout.write_segments(tmp_path / "log", {1: bytes(damaged)})
        assert isinstance(read(log).error, CorruptLog)
        assert isinstance(read(segment_files(log)[0]).error, CorruptLog)
        assert verify(log).damaged
        assert plan_repair(log, RecoveryMode.SALVAGE).needed


def test_a_segment_that_retention_removes_while_a_log_is_verified_is_no_gap(tmp_path: Path) -> None:
    log = tmp_path / "log"
    make(log, 60)
    files = segment_files(log)

    def prune(done: int, total: int) -> None:
        for file in files[:4]:
            file.unlink(missing_ok=True)

    report = verify(log, prune)
    assert (report.findings, report.next_lsn) == ([], 61)


@pytest.mark.parametrize("gone", range(1, 6))
def test_a_plan_lives_through_retention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: int) -> None:
    log = tmp_path / "log"
    make(log, 60)
    copy_of(log, tmp_path / "copy")
    really_open = calls.open
    files = segment_files(log)

    def opens(path: Any, *args: Any, **options: Any) -> int:
        if path == files[gone].name:
            for file in files[: gone + 1]:
                file.unlink(missing_ok=True)
        return really_open(path, *args, **options)

    monkeypatch.setattr(calls, "open", opens)
    found = plan_repair(log, RecoveryMode.TOLERATE_TAIL)
    assert (found.needed, found.next_lsn) == (False, 61)
    assert not files[gone].exists()


# Real writers


def write_until_told(channel: Channel, log: Path, size_limit: int) -> int:
    with WALWriter(log, size_limit=size_limit, retention=Retention(max_segments=4)) as writer:
        fill(writer, 10, 50)
        channel.send("ready")
        while not channel.connection.poll():
            fill(writer, 10, 50)
        return writer.metrics.snapshot().next_lsn


@pytest.mark.slow
@pytest.mark.parametrize("size_limit", [20_000, 200_000])
def test_a_busy_log_seen_from_outside_is_never_damaged(tmp_path: Path, child: Start, size_limit: int) -> None:
    log = tmp_path / "log"
    writer = child(write_until_told, log, size_limit)
    assert writer.receive() == "ready"
    last = 0
    for _ in range(40):
        try:
            with WALReader(segment_files(log)[-1], mode=RecoveryMode.STRICT) as reader:
                for entry in reader:
                    last = max(last, entry.lsn)
            assert verify(segment_files(log)[-1]).findings == []
        except (LogNotFound, LogReplaced, FileNotFoundError):
            pass  # it was the last when we looked
        for mode in (RecoveryMode.TOLERATE_TAIL, RecoveryMode.STRICT):
            assert not plan_repair(log, mode).needed
        assert verify(log).findings == []
    writer.send("enough")
    assert 0 < last < writer.result()
