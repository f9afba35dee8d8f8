"""Who waits for news of another process is woken, and sleeps no longer than it takes when nobody wakes it.

Where a wake-up is what a test is about, nobody wakes by himself within its time: a minute is each longest sleep.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import DEADLINE_S, Channel, Start, run_threads, until
from walpool import SyncMode, WALEntry, WALReader, WALWriter
from walpool.read import follow
from walpool.shared.control import GROWTH, SYNC_OVER, Control
from walpool.shared.wakeups import Wakeups
from walpool.system.calls import calls
from walpool.system.files import Directory
from walpool.write import committer

NEVER_S = 60.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nobody can be woken here: everybody looks by himself")


@pytest.fixture
def control(log: Path) -> Iterator[Control]:
    with WALWriter(log, metrics=False), Directory(log) as directory:
        control = Control.attach(directory, writable=True)
        yield control
        control.close()


def asleep(control: Control, kind: int) -> Callable[[], bool]:
    return lambda: control.words[kind] == 1


# Followers


def follow_asleep(channel: Channel, log: Path, durable_only: bool) -> list[int]:
    follow.ASLEEP_S = NEVER_S
    with WALReader(log, start="end") as reader:
        return [next(reader.follow(durable_only=durable_only)).lsn]


def put(log: Path, sync_mode: SyncMode) -> None:
    with WALWriter(log, sync_mode) as writer:
        writer.put(b"k", b"v")


def put_batch(log: Path, sync_mode: SyncMode) -> None:
    with WALWriter(log, sync_mode) as writer:
        writer.append_batch([WALEntry.put(b"k", b"v")] * 10)


def put_and_sync(log: Path, sync_mode: SyncMode) -> None:
    with WALWriter(log, sync_mode) as writer:
        writer.put(b"k", b"v")
        writer.sync()


@pytest.mark.parametrize("sync_mode", list(SyncMode))
@pytest.mark.parametrize("append", [put, put_batch])
def test_a_follower_is_woken_by_an_append(
    control: Control, log: Path, child: Start, sync_mode: SyncMode, append: Callable[[Path, SyncMode], None]
) -> None:
    follower = child(follow_asleep, log, False)
    until(asleep(control, GROWTH), "the follower sleeps")
    append(log, sync_mode)
    assert follower.result() == [1]
    assert not control.words[GROWTH], "nobody pays for who was woken"


@pytest.mark.parametrize("sync_mode", list(SyncMode))
def test_a_follower_of_what_is_durable_is_woken_by_a_sync(
    control: Control, log: Path, child: Start, sync_mode: SyncMode
) -> None:
    follower = child(follow_asleep, log, True)
    until(asleep(control, SYNC_OVER), "the follower sleeps")
    put_and_sync(log, sync_mode)
    assert follower.result() == [1]


def test_all_followers_are_woken_and_a_killed_one_is_nobodys_trouble(control: Control, log: Path, child: Start) -> None:
    killed = child(follow_asleep, log, False)
    until(asleep(control, GROWTH), "the follower sleeps")
    killed.kill()
    killed.died()
    control.words[GROWTH] = 0
    others = []
    for _ in range(3):
        others.append(child(follow_asleep, log, False))
        until(asleep(control, GROWTH), "another follower sleeps")
        control.words[GROWTH] = 0
    control.words[GROWTH] = 1
    put(log, SyncMode.NORMAL)
    assert [other.result() for other in others] == [[1]] * 3


def test_a_follower_that_may_not_say_that_it_waits_looks_by_itself(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really_open = calls.open

    def open_(name: str, flags: int, *args: int, **options: int) -> int:
        if name == "control" and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return really_open(name, flags, *args, **options)

    with WALWriter(log) as writer, WALReader(log) as reader:
        monkeypatch.setattr(calls, "open", open_)
        began = time.monotonic()
        reader._reading.wait(False, DEADLINE_S, 0.001)
        assert time.monotonic() - began < DEADLINE_S
        assert not writer._handle.open().log.control.words[GROWTH]


# Syncs


def test_who_waits_for_anothers_sync_is_woken_by_its_end(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "ASLEEP_S", NEVER_S)
    really_sync = calls.fdatasync
    with WALWriter(log, SyncMode.FULL) as one, WALWriter(log, SyncMode.FULL) as other:
        words = other._handle.open().log.control.words

        def sync(fd: int) -> None:
            monkeypatch.setattr(calls, "fdatasync", really_sync)
            until(lambda: words[SYNC_OVER] == 1, "the other one waits for this sync")
            really_sync(fd)

        monkeypatch.setattr(calls, "fdatasync", sync)
        run_threads(lambda: one.put(b"k", b"one"), lambda: other.put(b"k", b"other"))
    with WALReader(log) as reader:
        assert len(reader.read_all()) == 2


def fail_to_sync(channel: Channel, log: Path) -> str:
    """Lead a sync that fails, once the parent says so."""

    really_sync = calls.fdatasync

    def sync(fd: int) -> None:
        calls.fdatasync = really_sync  # for the mark that says so
        channel.send("syncing")
        channel.receive()
        raise OSError(errno.EIO, "Input/output error")

    with WALWriter(log, SyncMode.FULL) as writer:
        calls.fdatasync = sync
        try:
            writer.put(b"k", b"v")
        except OSError as error:
            return type(error).__name__
    return "nothing was said"


def wait_for_a_sync(channel: Channel, log: Path) -> str:
    committer.ASLEEP_S = NEVER_S
    try:
        with WALWriter(log, SyncMode.FULL) as writer:
            channel.send("open")
            channel.receive()
            writer.put(b"k", b"v")
    except OSError as error:
        return type(error).__name__
    return "nothing was said"


def test_who_waits_for_a_sync_that_fails_is_woken(control: Control, log: Path, child: Start) -> None:
    leader, waiter = child(fail_to_sync, log), child(wait_for_a_sync, log)
    assert (leader.receive(), waiter.receive()) == ("syncing", "open")
    waiter.send("put")
    until(asleep(control, SYNC_OVER), "it waits for the sync")
    leader.send("fail")
    assert leader.result() == waiter.result() == "SyncFailed"


def test_a_killed_leader_keeps_nobody_asleep(control: Control, log: Path, child: Start) -> None:
    leader, waiter = child(fail_to_sync, log), child(sync_beside, log)
    assert (leader.receive(), waiter.receive()) == ("syncing", "open")
    waiter.send("put")
    until(asleep(control, SYNC_OVER), "it waits for the sync")
    leader.kill()
    assert waiter.result() == 2


def sync_beside(channel: Channel, log: Path) -> int:
    with WALWriter(log, SyncMode.FULL) as writer:
        channel.send("open")
        channel.receive()
        return writer.put(b"k", b"v")


# The protocol, at each of its joints


def sleep_until_woken(control: Control, is_there: Callable[[], bool]) -> None:
    began = time.monotonic()
    Wakeups(control, GROWTH).wait(is_there, DEADLINE_S, DEADLINE_S)
    assert time.monotonic() - began < DEADLINE_S, "nobody woke it"


def test_news_that_is_there_already_keeps_nobody_asleep(control: Control) -> None:
    sleep_until_woken(control, lambda: True)


@pytest.mark.parametrize("wakers", [1, 2])
def test_news_between_the_look_and_the_sleep_keeps_nobody_asleep(control: Control, wakers: int) -> None:
    """Also when another publisher, who looked before, takes the flag away again."""

    def comes_now() -> bool:
        for number in range(wakers):
            control.words[GROWTH] = 1
            Wakeups(control, GROWTH).wake(7 + number)
        return False

    sleep_until_woken(control, comes_now)


def test_where_nobody_waits_nobody_is_woken(control: Control, monkeypatch: pytest.MonkeyPatch) -> None:
    def wake(address: int) -> None:
        raise AssertionError("nobody waits")

    monkeypatch.setattr(calls, "futex_wake", wake)
    Wakeups(control, GROWTH).wake(1)
    assert control.words[GROWTH + 1] == 0


@pytest.mark.parametrize("refusal", [errno.ENOSYS, errno.EPERM, errno.EFAULT])
def test_where_the_system_refuses_who_waits_looks_by_itself(
    control: Control, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(calls, "futex_wait", refuse)
    monkeypatch.setattr(calls, "futex_wake", refuse)
    Wakeups(control, GROWTH).wait(lambda: False, NEVER_S, 0.001)
    Wakeups(control, GROWTH).wake(1)


def test_under_a_sleep_that_is_not_the_systems_nobody_sleeps_in_another_way(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(calls, "sleep", lambda seconds: slept.append(seconds))
    Wakeups(control, GROWTH).wait(lambda: False, NEVER_S, 0.25)
    assert slept == [0.25]
    assert not control.words[GROWTH]


def test_a_sleep_is_over_when_its_time_is(control: Control) -> None:
    Wakeups(control, GROWTH).wait(lambda: False, 0.001, NEVER_S)
