"""Each system call fails, at each place that makes it: an append is acknowledged and there, or refused and not."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash import errors
from tests.crash.taps import NAMES, Call, tapped
from tests.support import Ack, Channel, Start, append_op, judge
from walpool import CorruptLog, IOFailed, LogFull, WALReader, WALWriter
from walpool.system.locks import LOCK_EX, LOCK_UN

GROUPS = {
    "writes": ["pwrite"],
    "opens": ["open"],
    "locks": ["flock", "fcntl", "mmap"],
    "looks": ["stat", "fstat", "close"],
}
GROUPS["others"] = [name for name in NAMES if not any(name in group for group in GROUPS.values())]


def play_group(channel: Channel, folder: Path, names: list[str]) -> Counter[str]:
    faults = [fault for fault in errors.firsts(errors.every(folder)) if fault.name in names]
    return errors.play(folder, faults, channel.send)


def play_some(channel: Channel, folder: Path, seed: int, count: int) -> Counter[str]:
    return errors.prove(folder, seed, count, channel.send)


def result(channel: Any) -> Counter[str]:
    while True:
        what, value = channel.next()
        if what == "result":
            print(value)
            found: Counter[str] = value
            return found


@pytest.mark.parametrize(
    "group", [pytest.param(name, marks=() if name == "locks" else pytest.mark.slow) for name in GROUPS]
)
def test_a_call_that_fails_refuses_what_it_was_for_and_leaves_nothing_behind(
    child: Start, memory: Path, group: str
) -> None:
    """At its first time at each place, with several errors, once and until the fault is lifted."""
    found = result(child(play_group, memory, GROUPS[group]))
    assert found["errors"] > 80 and found["refused"] > 50
    assert not list(memory.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])  # so that two cores share them
def test_faults_drawn_from_all_calls_there_are_do_no_harm(child: Start, memory: Path, half: int, seed: int) -> None:
    assert result(child(play_some, memory, seed + half, 250))["errors"] >= 250
    assert not list(memory.iterdir())


def play_everywhere(channel: Channel, folder: Path, seed: int, count: int) -> Counter[str]:
    return errors.play(folder, errors.nothing_works(folder, seed, count), channel.send)


def test_from_some_moment_on_no_change_succeeds_and_nothing_that_was_acknowledged_is_lost(
    child: Start, memory: Path, seed: int
) -> None:
    """No space, no quota, a dead disk: not one call fails but all in a row, the mark of a failed sync among them."""
    found = result(child(play_everywhere, memory, seed, 8))
    assert found["errors"] >= 20 and found["refused"] > 20
    assert not list(memory.iterdir())


def test_the_calls_that_are_failed_are_all_there_are() -> None:
    assert {"open", "pwrite", "fdatasync", "fsync", "rename", "flock", "mmap", "fchmod"} <= set(NAMES)


def names_met(channel: Channel, folder: Path) -> set[str]:
    return {fault.name for fault in errors.every(folder)}


NOT_IN_THE_SCRIPT = {
    "chmod",
    "fchmod",
    "link",
    "mkdir",
    "getpid",
    "fchown",
    "ioctl",
    "rmdir",
    "store",
}  # ioctl, rmdir: tests/upkeep/test_copy; a store cannot fail


def test_the_script_makes_every_call_but_a_few(child: Start, memory: Path) -> None:
    met = child(names_met, memory).result()
    assert set(NAMES) - met <= NOT_IN_THE_SCRIPT, set(NAMES) - met


def test_a_write_that_keeps_failing_is_refused_each_time_and_works_again_afterwards(log: Path) -> None:
    full = False

    def tap(name: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if full and name == "pwrite":
            fd, data, offset = args
            call(fd, bytes(data)[:7], offset)
            raise OSError(errno.ENOSPC, "full")
        return call(*args, **kwargs)

    with tapped(tap), WALWriter(log) as writer:
        assert writer.put(b"a", b"") == 1
        size = writer.size
        full = True
        for _ in range(3):
            with pytest.raises(LogFull) as refused:
                writer.put(b"refused", b"")
            assert refused.value.errno == errno.ENOSPC
        assert writer.size == size
        full = False
        with WALWriter(log, lock_timeout=2) as another:  # to whom a lock that was not freed would be held
            assert another.put(b"b", b"") == 2
        assert writer.put(b"c", b"") == 3
    with WALReader(log) as reader:
        assert [bytes(entry.key) for entry in reader] == [b"a", b"b", b"c"]


def test_an_unlock_is_not_among_the_calls_that_fail() -> None:
    """It cannot fail, and walpool does not look at what it says."""
    fault = errors.Fault("flock", "", 1, "EIO", True)
    tap = errors.Failing(fault)
    made: list[int] = []
    tap.hit = True  # from now on
    tap("flock", lambda fd, operation: made.append(operation), (0, LOCK_UN), {})
    assert made == [LOCK_UN]
    with pytest.raises(OSError):
        tap("flock", made.append, (0, LOCK_EX), {})


def test_a_segment_that_cannot_be_read_is_an_error_and_the_others_can(log: Path) -> None:
    acks = []
    with WALWriter(log, size_limit=1200) as writer:
        for op in range(30):
            lsns = append_op(writer, "w", op)
            acks.append(Ack(op, lsns.start, lsns.stop))
    segments = sorted(int(path.stem) for path in log.glob("*.wal"))
    assert len(segments) >= 4
    bad = os.stat(log / f"{segments[1]:020d}.wal").st_ino

    def tap(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in ("pread", "preadv") and os.fstat(args[0]).st_ino == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call(*args, **kwargs)

    found = []
    with tapped(tap):
        with WALReader(log) as reader, pytest.raises(IOFailed) as failed:
            found += reader  # as far as it comes
        assert failed.value.errno == errno.EIO and not isinstance(failed.value, CorruptLog)
        assert f"{segments[1]:020d}.wal" in str(failed.value)
        with WALReader(log, start=segments[2]) as reader:
            rest = reader.read_all()
    with WALReader(log) as reader:
        everything = reader.read_all()
    judge(everything, {"w": acks})
    assert found == everything[: segments[1] - 1]
    assert rest == everything[segments[2] - 1 :]
