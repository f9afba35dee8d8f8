"""Who holds the append lock: stopped, killed, forked away, waited for with and without patience."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.processes import workers
from tests.support import Channel, Start, has_ended, keys, reap, run_threads, until, waits_for_flock
from walpool import LogBusy, SyncMode, WALEntry, WALWriter


def test_a_timeout_raises_busy_while_the_holder_stands_inside_and_harms_nothing(child: Start, log: Path) -> None:
    with WALWriter(log, lock_timeout=0.02) as writer:
        holder = child(workers.stand_inside, log)
        assert holder.receive() == "inside"
        attempts = [
            lambda: writer.put(b"k", b"v"),
            lambda: writer.append_batch([WALEntry.put(b"k", b"v")] * 3),
            writer.rotate,
        ]
        for attempt in attempts:
            with pytest.raises(LogBusy) as busy:
                attempt()
            assert isinstance(busy.value, TimeoutError)
            assert f"process {holder.pid} " in str(busy.value)
        with pytest.raises(LogBusy, match=f"process {holder.pid} "):
            WALWriter(log, lock_timeout=0.02)
        holder.send("go on")
        assert holder.result() == [1, 2, 3]
        assert writer.put(b"mine", b"") == 4
    assert keys(log) == [b"before", b"inside", b"after", b"mine"]


def test_a_none_writer_that_times_out_keeps_its_buffer(child: Start, log: Path) -> None:
    with WALWriter(log, SyncMode.NONE, lock_timeout=0.02, linger_s=3600.0) as writer:
        holder = child(workers.stand_inside, log)
        assert holder.receive() == "inside"
        writer.put(b"mine", b"")
        with pytest.raises(LogBusy):
            writer.sync()
        holder.send("go on")
        holder.result()
    assert keys(log) == [b"before", b"inside", b"after", b"mine"]


def test_a_thread_that_times_out_behind_another_thread_raises_busy(log: Path) -> None:
    entered, release = threading.Event(), threading.Event()

    def enter() -> None:
        entered.set()
        assert release.wait(60)

    gate = workers.Gate(enter)
    try:
        with WALWriter(log, lock_timeout=0.02) as writer:
            gate.armed = True
            thread = threading.Thread(target=writer.put, args=(b"inside", b""), daemon=True)
            thread.start()
            assert entered.wait(60)
            with pytest.raises(LogBusy):
                writer.put(b"busy", b"")
            release.set()
            thread.join(60)
            assert writer.put(b"after", b"") == 2
    finally:
        gate.remove()
    assert keys(log) == [b"inside", b"after"]


@pytest.mark.usefixtures("linux")
def test_others_wait_for_a_stopped_holder_and_go_on_when_it_does(child: Start, log: Path) -> None:
    holder = child(workers.stand_inside, log)
    assert holder.receive() == "inside"
    holder.stop()
    holder.send("go on")  # it cannot: it is stopped
    waiting = [child(workers.put_one, log, b"waited", {}) for _ in range(2)]
    until(lambda: all(waits_for_flock(each.pid) for each in waiting), "both wait for the lock in the kernel")
    with pytest.raises(LogBusy):
        WALWriter(log, lock_timeout=0.02)
    assert keys(log) == [b"before"], "a reader does not wait"
    holder.go_on()
    assert holder.result()[:2] == [1, 2]
    for each in waiting:
        assert each.receive() == "ready"
        each.result()
    assert sorted(keys(log)) == [b"after", b"before", b"inside", b"waited", b"waited"]


def test_a_killed_holder_leaves_the_lock_free_and_no_trace(child: Start, log: Path) -> None:
    with WALWriter(log) as writer:
        for _ in range(3):
            holder = child(workers.stand_inside, log)
            assert holder.receive() == "inside"
            holder.kill()
            assert holder.died() == -signal.SIGKILL
            assert writer.put(b"mine", b"") is not None
    assert keys(log) == [b"before", b"mine"] * 3


def fork_while_a_thread_stands_inside(channel: Channel, log: Path) -> list[bytes]:
    entered, release = threading.Event(), threading.Event()

    def enter() -> None:
        entered.set()
        assert release.wait(60)

    gate = workers.Gate(enter)
    writer = WALWriter(log)
    gate.armed = True
    thread = threading.Thread(target=writer.put, args=(b"inside", b""))
    thread.start()
    assert entered.wait(60)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert writer.put(b"child", b"") == 2
            writer.close()
            code = 0
        finally:
            os._exit(code)
    until(lambda: waits_for_flock(pid) or has_ended(pid), "the child waits for the lock that its parent's thread holds")
    release.set()
    thread.join(60)
    assert reap(pid) == 0
    assert writer.put(b"parent", b"") == 3
    writer.close()
    return keys(log)


@pytest.mark.usefixtures("linux")
def test_a_child_forked_in_the_middle_of_an_append_waits_for_it_and_appends(child: Start, log: Path) -> None:
    assert child(fork_while_a_thread_stands_inside, log).result() == [b"inside", b"child", b"parent"]


def fork_an_idle_child_inside(channel: Channel, log: Path) -> None:
    """The child never touches the writer; this process is killed while its other thread stands inside."""
    entered = threading.Event()

    def enter() -> None:
        entered.set()
        threading.Event().wait()

    gate = workers.Gate(enter)
    writer = WALWriter(log)
    writer.put(b"before", b"")
    gate.armed = True
    threading.Thread(target=writer.put, args=(b"inside", b""), daemon=True).start()
    assert entered.wait(60)
    if os.fork() == 0:
        channel.send(os.getpid())
        channel.receive()  # nothing comes: it ends when the test does
        os._exit(0)
    threading.Event().wait()


def test_an_idle_forked_child_does_not_keep_its_killed_parents_lock_or_slot(child: Start, log: Path) -> None:
    parent = child(fork_an_idle_child_inside, log)
    idle = parent.receive()
    os.kill(idle, 0)
    parent.kill()
    assert parent.died() == -signal.SIGKILL
    with WALWriter(log, lock_timeout=30) as writer:
        assert writer.put(b"mine", b"") == 2
        os.kill(idle, 0)  # it lives
        assert len(writer.metrics.snapshot().writers) == 1
    assert keys(log) == [b"before", b"mine"]


def put_fifty(writer: WALWriter, name: bytes) -> None:
    for n in range(50):
        writer.put(b"%b/%d" % (name, n), b"x" * 50)


def use_one_writer_on_both_sides(channel: Channel, log: Path, mode: SyncMode) -> None:
    writer = WALWriter(log, mode, 2_000)
    writer.put(b"parent/0", b"x" * 50)
    pids = []
    for number in range(3):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                names = [b"child%d.%d" % (number, thread) for thread in range(2)]
                run_threads(*[lambda name=name: put_fifty(writer, name) for name in names])
                writer.close()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
        for n in range(20):
            writer.put(b"parent/%d" % (1 + number * 20 + n), b"x" * 50)
    for pid in pids:
        assert reap(pid) == 0
    writer.put(b"parent/61", b"x" * 50)
    writer.close()


@pytest.mark.parametrize("mode", SyncMode)
def test_a_writer_carried_over_a_fork_is_used_on_both_sides(child: Start, log: Path, mode: SyncMode) -> None:
    child(use_one_writer_on_both_sides, log, mode).result()
    found = keys(log)
    assert len(found) == len(set(found)) == 62 + 3 * 2 * 50
    authors = {key.split(b"/")[0] for key in found}
    for author in authors:
        mine = [int(key.split(b"/")[1]) for key in found if key.split(b"/")[0] == author]
        assert mine == list(range(len(mine))), f"{author!r} is out of order"
    assert len(authors) == 7


def fork_again_and_again(channel: Channel, log: Path, depth: int) -> None:
    writer = WALWriter(log)
    for level in range(depth):
        writer.put(b"%d" % level, b"")
        pid = os.fork()
        if pid:
            assert reap(pid) == 0
            writer.put(b"%d back" % level, b"")
            if level:
                writer.close()
                os._exit(0)
            break
    else:
        writer.close()
        os._exit(0)
    writer.close()


def test_a_writer_survives_a_fork_in_a_fork_in_a_fork(child: Start, log: Path) -> None:
    child(fork_again_and_again, log, 4).result()
    assert keys(log) == [b"0", b"1", b"2", b"3", b"3 back", b"2 back", b"1 back", b"0 back"]


def fork_during_a_sync(channel: Channel, log: Path) -> int:
    """Fork while another thread leads a sync; the child's own sync must not wait for ever, nor free its parent's."""
    from walpool.system.calls import calls

    entered, release = threading.Event(), threading.Event()
    fdatasync = calls.fdatasync

    def wait(fd: int) -> None:
        entered.set()
        assert release.wait(60)
        fdatasync(fd)

    writer = WALWriter(log)
    writer.put(b"parent", b"")
    calls.fdatasync = wait
    thread = threading.Thread(target=writer.sync)
    thread.start()
    assert entered.wait(60)
    pid = os.fork()
    if pid == 0:
        calls.fdatasync = fdatasync
        code = 1
        try:
            assert writer.put(b"child", b"") == 2
            assert writer.sync() == 2
            writer.close()
            code = 0
        finally:
            os._exit(code)
    until(lambda: writer.metrics.snapshot().next_lsn == 3, "the child has appended")
    release.set()
    thread.join(60)
    assert reap(pid) == 0
    durable = writer.sync()
    writer.close()
    return durable


def test_a_fork_in_the_middle_of_a_sync_is_no_obstacle_to_either_side(child: Start, log: Path) -> None:
    assert child(fork_during_a_sync, log).result() == 2
