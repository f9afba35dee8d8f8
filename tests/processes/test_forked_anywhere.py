"""A fork at any moment: the child stores nothing on behalf of its parent's calls, holds nothing of it, and works."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash.failpoints import appends_by
from tests.crash.interruptions import Interruption, warm_up
from tests.support import Channel, Start, open_fds, read_log, reap, until
from walpool import Retention, SyncMode, WALMetrics, WALReader, WALWriter
from walpool.shared.pins import all_pins
from walpool.system.calls import calls
from walpool.system.files import Directory

LIMIT = 4_000
MOST = 3_000  # bytecodes of a call
HELD = 3  # exit code: what a helper thread is just mapping or renaming may stay open in a child
LOCK = ".lock"


class Forks:
    """A handler that forks. The child says what it holds, goes on in the call that was interrupted, and works."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.parent = os.getpid()
        self.child: int | None = None
        self.held: list[str] = []

    def __call__(self) -> None:
        self.child = os.fork()
        if self.child == 0:
            threading.excepthook = lambda raised: os._exit(1)  # nothing of the parent's runs on in a thread of ours
            self.held = [path for path in open_fds().values() if str(self.log) in path]
            if any(path.endswith(LOCK) for path in self.held):
                self.end(f"held {self.held}")

    @property
    def in_child(self) -> bool:
        return os.getpid() != self.parent

    def end(self, complaint: str = "") -> None:
        if complaint:
            os.write(2, complaint.encode() + b"\n")
        os._exit(1 if complaint else HELD if self.held else 0)

    def reap(self, where: str) -> bool:
        """Whether it held a descriptor, other than of a lock."""
        if self.child is None:
            return False
        code = reap(self.child)
        assert code in (0, HELD), f"{where}: the child ended with {code}"
        return code == HELD


MODES = [(mode, False) for mode in SyncMode] + [(SyncMode.NORMAL, True)]  # and whether it is mapped
each_mode = pytest.mark.parametrize(
    ("mode", "mapped"), MODES, ids=[f"{mode.name}{'-mapped' * mapped}" for mode, mapped in MODES]
)


def fork_in_the_middle(
    channel: Channel, log: Path, mode: SyncMode, mapped: bool, what: str, step: int, by_core: bool
) -> int:
    with appends_by(by_core), WALWriter(log, mode, LIMIT, linger_s=3600.0, mapped=mapped) as writer:
        calls: dict[str, Callable[[], object]] = {
            "put": lambda: writer.put(b"key", b"value"),
            "sync": lambda: (writer.put(b"key", b"value"), writer.sync()),
            "rotate": lambda: (writer.put(b"key", b"value"), writer.rotate()),
        }
        warm_up(calls[what])
        n, before, held = 1, writer.sync(), 0
        while True:
            forks = Forks(log)
            at = Interruption(n, forks, bytecodes=True)
            where = f"{what}, forked at bytecode {n}"
            try:
                at.during(calls[what])
                if forks.in_child:
                    writer.put(b"child", b"")
                    writer.sync()
                    forks.end()
            except BaseException as error:
                if forks.in_child:
                    forks.end(f"{where}: {error!r}")
                raise
            held += forks.reap(where)
            now = writer.sync()
            assert now > before, f"{where}: the log went back from LSN {before} to {now}"
            before = now
            if not at.came or n > MOST:
                assert held <= n // step // 4, f"{held} children held a descriptor"
                return n
            n += step


@pytest.mark.usefixtures("linux")
@each_mode
@pytest.mark.parametrize(
    "what", ["put", pytest.param("sync", marks=pytest.mark.slow), pytest.param("rotate", marks=pytest.mark.slow)]
)
def test_a_fork_in_the_middle_of_a_call_lets_both_go_on(
    child: Start, memory: Path, mode: SyncMode, mapped: bool, what: str
) -> None:
    log = memory / "log"
    assert child(fork_in_the_middle, log, mode, mapped, what, 17 if what == "rotate" else 37, False).result() > 100
    entries = read_log(log)
    assert [entry.lsn for entry in entries] == list(range(1, len(entries) + 1))


@pytest.mark.usefixtures("linux")
@each_mode
def test_a_fork_around_an_append_of_the_core_lets_both_go_on(
    child: Start, memory: Path, mode: SyncMode, mapped: bool
) -> None:
    log = memory / "log"
    assert child(fork_in_the_middle, log, mode, mapped, "put", 1 if mode is SyncMode.NORMAL else 37, True).result() > 5
    entries = read_log(log)
    assert [entry.lsn for entry in entries] == list(range(1, len(entries) + 1))


def fork_beside(channel: Channel, log: Path) -> int:
    """Forks while two other threads open, append and close; the most descriptors of the log that a child had."""
    stop = threading.Event()

    def open_and_close() -> None:
        while not stop.is_set():
            with WALWriter(log, size_limit=LIMIT) as writer:
                writer.put(b"thread", b"")

    threads = [threading.Thread(target=open_and_close) for _ in range(2)]
    for thread in threads:
        thread.start()
    most = 0
    try:
        for _ in range(60):
            pid = os.fork()
            if pid == 0:
                held = [path for path in open_fds().values() if str(log) in path]
                try:
                    assert not [path for path in held if path.endswith(LOCK)]
                    with WALWriter(log, size_limit=LIMIT, lock_timeout=20) as writer:
                        writer.put(b"child", b"")
                except BaseException as error:
                    os.write(2, f"{error!r}\n".encode())
                    os._exit(100)
                os._exit(len(held))
            code = reap(pid)
            assert 0 <= code < 100, f"the child ended with {code}"
            most = max(most, code)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return most


@pytest.mark.slow
@pytest.mark.usefixtures("linux")
def test_a_fork_beside_threads_that_open_and_close_keeps_what_each_was_just_given_at_most(
    child: Start, memory: Path
) -> None:
    """What is being mapped or renamed just then may stay open. No lock, which is checked in the child."""
    assert child(fork_beside, memory / "log").result() <= 2


def share_a_reader(channel: Channel, log: Path) -> None:
    with WALWriter(log, size_limit=1_000, retention=Retention()) as writer:
        for number in range(100):
            writer.put(b"%d" % number, bytes(60))
        writer.sync()
        reader = WALReader(log, pin=True)
        metrics = WALMetrics.attach(log)
        assert reader.read_entry() is not None
        (pinned,) = all_pins(Directory(log))
        # What a coordinator opens this very moment has no variable yet, and could not be closed in the child.
        until(lambda: "walpool-coordinator" not in {each.name for each in threading.enumerate()}, "it has ended")
        pid = os.fork()
        if pid == 0:
            try:
                assert not [path for path in open_fds().values() if str(log) in path]
                assert [entry.lsn for entry in reader.read_all()] == list(range(2, 101))
                assert metrics.snapshot().next_lsn == 101
            except BaseException as error:
                os.write(2, f"{error!r}\n".encode())
                os._exit(1)
            os._exit(0)
        assert reap(pid) == 0
        assert all_pins(Directory(log)) == [pinned], "the child has moved its parent's pin"
        writer.checkpoint(90)
        assert writer.prune().held_by_pins > 0
        assert [entry.lsn for entry in reader.read_all()] == list(range(2, 101))
        pid = os.fork()
        if pid == 0:
            channel.receive()
            os._exit(0)
        reader.close()
        assert writer.prune().held_by_pins == 0, "an idle child keeps the pin of a reader that its parent has closed"
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@pytest.mark.usefixtures("linux")
def test_a_childs_reader_is_its_own_with_its_own_pin(child: Start, memory: Path) -> None:
    child(share_a_reader, memory / "log").result()


def fork_as_a_thread_is_given(channel: Channel, log: Path, call: str) -> list[str]:
    """Forks whenever another thread, that opens and closes, has a new descriptor; what the children had of the log."""
    real = getattr(calls, call)
    given, forked = threading.Semaphore(0), threading.Semaphore(0)
    held = []

    def and_wait(*args: Any, **named: Any) -> int:
        fd: int = real(*args, **named)
        if threading.current_thread() is thread:
            given.release()
            forked.acquire()
        return fd

    def open_and_close() -> None:
        try:
            with WALWriter(log) as writer:
                writer.put(b"", b"")
                writer.checkpoint(1)
            with WALReader(log, pin=True) as reader:
                list(reader)
        finally:
            done.append(True)
            given.release()

    done: list[bool] = []
    thread = threading.Thread(target=open_and_close)
    setattr(calls, call, and_wait)
    thread.start()
    while not given.acquire() or not done:
        pid = os.fork()
        if pid == 0:
            os._exit(sum(str(log) in path for path in open_fds().values()))
        if code := reap(pid):
            held.append(f"{code} after the fork at {call} {len(held)}")
        forked.release()
    thread.join()
    assert done
    return held


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize("call", ["open", "dup"])
def test_a_child_keeps_no_descriptor_that_another_thread_is_just_given(child: Start, memory: Path, call: str) -> None:
    """It would share a lock that this thread takes next, and keep it, though the parent is killed."""
    assert child(fork_as_a_thread_is_given, memory / "log", call).result() == []
