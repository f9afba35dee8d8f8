"""Odd machines: clocks that lie, process ids that repeat, disks that are slow or dead, and programs that inherit."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.sweep import in_child
from tests.crash.test_kills_under_load import Herd, judge_after_kills
from tests.processes import workers
from tests.support import (
    METHODS,
    Ack,
    Channel,
    Ledger,
    Start,
    append_op,
    judge,
    keys,
    read_log,
    reap,
    run_threads,
    until,
)
from walpool import Retention, SyncMode, WALError, WALMetrics, WALReader, WALWriter
from walpool.system import processes
from walpool.system.calls import calls
from walpool.upkeep.verify import verify

NOW_NS = 1_790_000_000 * 10**9
TEN_YEARS_NS = 10 * 365 * 86400 * 10**9
Clock = Callable[[int], int]  # from the number of looks to ns
CLOCKS: dict[str, Clock] = {
    "ten years ahead": lambda look: NOW_NS + TEN_YEARS_NS + look,
    "ten years behind": lambda look: NOW_NS - TEN_YEARS_NS + look,
    "frozen": lambda look: NOW_NS,
    "at the epoch": lambda look: 0,
    "running backwards": lambda look: NOW_NS - look * 10**9,
    "jumping": lambda look: NOW_NS + (look % 3 - 1) * TEN_YEARS_NS,
}


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    looks = iter(range(1 << 60))
    monkeypatch.setattr(calls, "time_ns", lambda: clock(next(looks)))


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_order_is_by_lsn_whatever_the_clocks_say(log: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    acks: dict[str, list[Ack]] = {"odd": [], "right": []}

    def append(writer: WALWriter, author: str, op: int) -> None:
        lsns = append_op(writer, author, op)
        acks[author].append(Ack(op, lsns.start, lsns.stop))

    right = WALWriter(log, size_limit=20_000, sync_interval_s=0.001)
    set_clock(monkeypatch, clock)
    odd = WALWriter(log, SyncMode.FULL, 20_000, retention=Retention(max_age=3600 * 24 * 365 * 100))
    for op in range(100):
        append(odd, "odd", op)
        append(right, "right", op)
    odd.checkpoint(0)
    odd.prune()
    odd.close()
    right.close()
    (log / "control").unlink()
    with WALWriter(log) as writer:  # a recovery that has this clock, too
        append(writer, "odd", 100)
    judge(read_log(log), acks)
    assert not verify(log).damaged
    with WALMetrics.attach(log) as metrics:
        metrics.snapshot()


def test_after_a_boot_with_a_younger_clock_the_log_is_read_anew_and_waits_for_nothing(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boot id differs, monotonic time starts over: stamps of the last boot lie in the future."""
    acks = []
    for boot, uptime_s in enumerate((1e9, 1.0, 1e6)):
        monkeypatch.setattr(processes, "boot_id", lambda boot=boot: (boot + 1, 7))
        start = calls.monotonic()
        monkeypatch.setattr(
            calls, "monotonic", lambda real=calls.monotonic, start=start, up=uptime_s: up + real() - start
        )
        with WALWriter(log, SyncMode.FULL, lock_timeout=30) as writer:
            assert writer.recovery_report is not None
            for op in range(boot * 20, boot * 20 + 20):
                lsns = append_op(writer, "a", op)
                acks.append(Ack(op, lsns.start, lsns.stop))
            with WALWriter(log, SyncMode.FULL, lock_timeout=30) as other:
                assert other.recovery_report is None
    judge(read_log(log), {"a": acks})


def append_with_a_common_pid(channel: Channel, log: Path, acks: Path, name: str) -> None:
    calls.getpid = lambda: 7
    workers.append_until_killed(channel, log, acks, name, 20_000, SyncMode.NORMAL)


def test_processes_of_one_pid_are_told_apart_by_their_locks(child: Start, log: Path, tmp_path: Path) -> None:
    """As in two containers, and as when a number comes again."""
    acks = tmp_path / "acks"
    writers = [child(append_with_a_common_pid, log, acks, f"w{n}") for n in range(3)]
    for each in writers:
        assert each.receive() == "ready"
    with WALMetrics.attach(log) as metrics:
        assert len(metrics.snapshot().writers) == 3
        writers[0].kill()
        writers[0].died()
        assert len(metrics.snapshot().writers) == 2, "of the same number two live on"
        for each in writers[1:]:
            each.kill()
            each.died()
        assert metrics.snapshot().writers == ()
    judge_after_kills(log, acks)


def append_as_pid_1(channel: Channel, log: Path, acks: Path, name: str) -> str | None:
    """In a pid namespace of its own, from which it is killed at the word; why not, if there can be none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform != "linux" or libc.unshare(0x20000000) != 0:
        return f"no pid namespace of one's own: {os.strerror(ctypes.get_errno())}"
    pid = os.fork()
    if pid == 0:
        assert os.getpid() == 1
        in_child(lambda: workers.append_until_killed(channel, log, acks, name, 20_000, SyncMode.NORMAL))
    channel.receive()
    os.kill(pid, 9)
    reap(pid)
    return None


def test_writers_in_two_containers_are_both_pid_1(child: Start, log: Path, tmp_path: Path) -> None:
    acks = tmp_path / "acks"
    writers = [child(append_as_pid_1, log, acks, f"w{n}") for n in range(2)]
    for each in writers:
        kind, word = each.next()
        if kind == "result":
            pytest.skip(word)
        assert word == "ready"
    with WALMetrics.attach(log) as metrics:
        assert len(metrics.snapshot().writers) == 2
        writers[0].send("enough")
        assert writers[0].result() is None
        assert len(metrics.snapshot().writers) == 1
        size = (acks / "w1").stat().st_size
        until(lambda: (acks / "w1").stat().st_size > size, "the other goes on")
        writers[1].send("enough")
        writers[1].result()
    judge_after_kills(log, acks)


# Disks


def test_appends_and_rotations_go_on_while_the_disk_takes_its_time(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that does not end stalls those who asked for one, and nobody else."""
    asked, go_on = threading.Event(), threading.Event()
    fdatasync = calls.fdatasync

    def slow(fd: int) -> None:
        asked.set()
        assert go_on.wait(60)
        fdatasync(fd)

    normal = WALWriter(log, size_limit=2_000)
    full = [WALWriter(log, SyncMode.FULL, 2_000) for _ in range(4)]
    monkeypatch.setattr(calls, "fdatasync", slow)

    def meanwhile() -> None:
        assert asked.wait(60)
        for _ in range(100):
            normal.put(b"normal", b"v" * 100)
        assert normal.metrics.snapshot().rotation_count > 5
        assert normal.metrics.snapshot().durable_lsn == 0
        go_on.set()

    run_threads(meanwhile, *[lambda writer=writer: writer.put(b"full", b"") for writer in full])
    snapshot = normal.metrics.snapshot()
    assert snapshot.durable_lsn >= 4
    for writer in (normal, *full):
        writer.close()
    assert sorted(keys(log)) == [b"full"] * 4 + [b"normal"] * 100


ENOUGH = 3_000  # operations


def append_until_the_disk_dies(log: Path, acks: Path, name: str, mode: SyncMode, dead: Path) -> None:
    """Every call that reaches the disk fails once the file `dead` is there."""

    def mortal(call: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **named: object) -> object:
            if os.path.exists(dead):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*args, **named)

        return run

    for each in ("pwrite", "pread", "preadv", "fsync", "fdatasync", "ftruncate", "rename", "unlink", "open", "link"):
        setattr(calls, each, mortal(getattr(calls, each)))
    ledger = Ledger(acks, name)
    writer = WALWriter(log, mode, 20_000)
    try:
        for op in range(1 << 40):
            if op == ENOUGH:  # where a sync takes long, the others would fill the log that is judged meanwhile
                until(dead.exists, "the disk dies")
            ledger.append(writer, op)
    except WALError:
        pass
    for _ in range(3):
        try:
            writer.put(b"never", b"")
            raise AssertionError("an append on a dead disk")
        except WALError:
            pass
    writer.close()


def let_the_disk_die(channel: Channel, log: Path, folder: Path) -> None:
    acks = folder / "acks"
    acks.mkdir()
    pids = []
    for number, mode in enumerate([SyncMode.NORMAL, SyncMode.FULL] * 2):
        pid = os.fork()
        if pid == 0:
            in_child(lambda n=number, mode=mode: append_until_the_disk_dies(log, acks, f"w{n}", mode, folder / "dead"))
        pids.append(pid)
    names = [acks / f"w{number}" for number in range(4)]
    until(lambda: all(path.exists() and path.stat().st_size > 200 for path in names), "all four append")
    (folder / "dead").touch()
    assert [reap(pid) for pid in pids] == [0] * 4
    judge_after_kills(log, acks)
    with WALWriter(log, SyncMode.FULL) as writer:  # the disk is back
        append_op(writer, "after", 0)
    assert bytes(read_log(log)[-1].key).startswith(b"after/")


def test_all_writers_stop_when_the_disk_dies_and_nothing_acknowledged_is_lost(
    child: Start, log: Path, tmp_path: Path
) -> None:
    child(let_the_disk_die, log, tmp_path).result()


# Fairness


def press_for_the_lock(channel: Channel, log: Path, acks: Path, mode: SyncMode) -> list[int]:
    acks.mkdir()
    herd = Herd(log, acks, mode)
    for _ in range(8):
        herd.start()
    names = list(herd.living)
    herd.wait_until_each_goes_on(10)
    before = {name: herd.acknowledged(name) for name in names}
    herd.wait_until_each_goes_on(100)
    made = [herd.acknowledged(name) - before[name] for name in names]
    herd.kill(*names)
    judge_after_kills(log, acks)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("mode", [SyncMode.NORMAL, SyncMode.FULL])
def test_none_of_eight_writers_that_press_for_the_lock_starves(
    child: Start, log: Path, tmp_path: Path, mode: SyncMode
) -> None:
    """How fair it is, the benchmark says; here each of them goes on, within the deadline of every wait."""
    made = child(press_for_the_lock, log, tmp_path / "acks", mode).result()
    assert min(made) >= 100, made


# What programs inherit

LIST = "import os, sys; print([p for p in (os.readlink(f'/proc/self/fd/{f}') for f in range(64) "
LIST += "if os.path.exists(f'/proc/self/fd/{f}')) if sys.argv[1] in p])"


def held_below(channel: Channel, place: str) -> list[str]:
    found = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(64) if os.path.exists(f"/proc/self/fd/{fd}")]
    return [path for path in found if place in path]


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize("method", METHODS)
def test_a_started_process_has_none_of_our_files(child: Start, log: Path, method: str) -> None:
    with WALWriter(log) as writer, WALReader(log, pin=True):
        writer.put(b"k", b"v")
        assert child(held_below, str(log), method=method).result() == []


@pytest.mark.usefixtures("linux")
def test_a_program_has_none_of_our_files_though_it_inherits_what_it_can(log: Path) -> None:
    with WALWriter(log) as writer, WALReader(log, pin=True):
        writer.put(b"k", b"v")
        mine, theirs = os.pipe()
        for how in ({"close_fds": False}, {"pass_fds": (theirs,)}):
            done = subprocess.run(
                [sys.executable, "-c", LIST, str(log)], capture_output=True, text=True, timeout=60, check=True, **how
            )
            assert done.stdout.strip() == "[]"
        os.close(mine)
        os.close(theirs)


def become_another_program(channel: Channel, log: Path) -> None:
    """exec, in the middle of an append: the lock and the slot are gone with the program that held them."""

    def enter() -> None:
        channel.send("inside")
        os.execv(sys.executable, [sys.executable, "-c", "import sys; sys.stdin.read()"])

    gate = workers.Gate(enter)
    writer = WALWriter(log)
    writer.put(b"before", b"")
    os.dup2(channel.connection.fileno(), 0)  # what the program reads until the test ends
    gate.armed = True
    writer.put(b"inside", b"")


def test_a_program_that_takes_over_a_process_keeps_neither_its_lock_nor_its_slot(child: Start, log: Path) -> None:
    other = child(become_another_program, log)
    assert other.receive() == "inside"
    with WALWriter(log, lock_timeout=30) as writer:
        assert writer.put(b"mine", b"") == 2
        until(lambda: len(writer.metrics.snapshot().writers) == 1, "the other's slot is free")
        os.kill(other.pid, 0)  # it lives
    assert keys(log) == [b"before", b"mine"]
