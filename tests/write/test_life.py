"""A writer's life: opened, closed, collected, pickled, taken along to other processes."""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import Channel, Start, keys, open_fds, reap, run_threads, until
from walpool import LogClosed, SyncMode, WALEntry, WALMetrics, WALReader, WALWriter, flush_at_signals
from walpool.shared.control import RETIRED, STOPPED
from walpool.staging import at_exit
from walpool.write.handle import Handle


def test_close_may_be_called_again(log: Path) -> None:
    writer = WALWriter(log)
    writer.put(b"k", b"v")
    writer.close()
    writer.close()
    assert keys(log) == [b"k"]


def test_a_with_block_closes_the_writer_whatever_happens_in_it(log: Path) -> None:
    with pytest.raises(ZeroDivisionError), WALWriter(log) as writer:
        writer.put(b"k", b"v")
        raise ZeroDivisionError
    with pytest.raises(LogClosed):
        writer.put(b"k", b"v")
    assert keys(log) == [b"k"]


@pytest.mark.parametrize("mode", SyncMode)
def test_use_after_close_says_so(log: Path, mode: SyncMode) -> None:
    writer = WALWriter(log, mode)
    writer.close()
    uses = [
        lambda: writer.put(b"k", b"v"),
        lambda: writer.delete(b"k"),
        lambda: writer.append(WALEntry.put(b"k", b"v")),
        lambda: writer.append_batch([WALEntry.put(b"k", b"v")]),
        lambda: writer.append_batch([]),
        writer.sync,
        writer.rotate,
        lambda: writer.size,
        lambda: writer.metrics,
        writer.__enter__,
    ]
    for use in uses:
        with pytest.raises(LogClosed):
            use()
    with pytest.raises(LogClosed), writer.batch() as batch:
        batch.put(b"k", b"v")
    assert keys(log) == []
    assert writer.path == str(log)
    assert "closed" in repr(writer)


def use_and_close(log: Path, mode: SyncMode) -> None:
    with WALWriter(log, mode, 200) as writer, WALWriter(log, mode, 200) as other:
        for _ in range(5):
            writer.put(b"k", b"v" * 50)
            other.put(b"k", b"v" * 50)
        writer.sync()
        other.rotate()


@pytest.mark.parametrize("use", [lambda writer: writer.put(b"k", b"v"), WALWriter.rotate], ids=["put", "rotate"])
def test_a_call_that_finds_the_control_block_replaced_opens_the_log_again(
    log: Path, use: Callable[[WALWriter], object]
) -> None:
    with WALWriter(log) as writer:
        writer.put(b"k", b"v")
        with open(log / "control", "r+b") as block:
            block.seek(STOPPED * 4)
            block.write(RETIRED.to_bytes(4, sys.byteorder))  # what a recovery leaves in the block it replaces
        use(writer)
        assert writer.put(b"last", b"v") == len(keys(log))


def test_a_close_that_did_not_see_the_session_that_is_opened_is_heard_by_who_opens_it(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes, in another thread, when the session is there and nobody has it yet."""
    use_and_close(log, SyncMode.NORMAL)
    gc.collect()
    before = open_fds()
    real = Handle._open_session
    sessions: list[Any] = []  # else the collector would close what is open in them

    def opened_too_late(handle: Handle, notes: list[str]) -> Any:
        found = real(handle, notes)
        sessions.append(found)
        handle.closed = True
        return found

    monkeypatch.setattr(Handle, "_open_session", opened_too_late)
    with pytest.raises(LogClosed):
        WALWriter(log)
    assert open_fds() == before


def test_closing_frees_every_descriptor_and_the_slot(log: Path) -> None:
    use_and_close(log, SyncMode.NORMAL)
    gc.collect()
    before = open_fds()
    for mode in SyncMode:
        use_and_close(log, mode)
    gc.collect()
    assert open_fds() == before
    with WALMetrics.attach(log) as metrics:
        assert metrics.snapshot().writers == ()


def test_an_opening_that_fails_leaves_no_descriptor_behind(log: Path) -> None:
    with WALWriter(log) as writer:
        writer.put(b"k", b"v")
    (log / "append.lock").unlink()
    (log / "append.lock").symlink_to("/dev/null")
    del writer
    gc.collect()
    before = open_fds()
    for _ in range(5):
        with pytest.raises(Exception, match="refused"):
            WALWriter(log)
    gc.collect()
    assert open_fds() == before


@pytest.mark.parametrize("mode", SyncMode)
def test_a_writer_that_is_collected_open_warns_and_keeps_every_entry(log: Path, mode: SyncMode) -> None:
    writer = WALWriter(log, mode, linger_s=0.001)
    writer.put(b"k", b"v")
    before = open_fds()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del writer
        until(lambda: gc.collect() >= 0 and bool(caught), "the writer is collected once its entries have lingered")
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert "unclosed" in str(caught[0].message)
    assert len(open_fds()) < len(before)
    assert keys(log) == [b"k"]


def test_a_writer_that_is_closed_warns_of_nothing(log: Path) -> None:
    writer = WALWriter(log)
    writer.close()
    del writer
    gc.collect()  # a warning is an error in this test run


def test_a_pickled_writer_opens_the_log_where_it_is_unpickled(log: Path) -> None:
    with WALWriter(log, SyncMode.FULL, 200) as writer:
        writer.put(b"a", b"")
        with pickle.loads(pickle.dumps(writer)) as copy:
            assert copy.path == writer.path
            assert copy.put(b"b", bytes(60)) == 2
            assert writer.metrics.snapshot().segments == 2, "size_limit came along"
            assert writer.metrics.snapshot().durable_lsn == 2, "sync_mode came along"
        assert writer.put(b"c", b"") == 3


def test_a_pickled_writer_does_not_take_buffered_entries_along(log: Path) -> None:
    with WALWriter(log, SyncMode.NONE) as writer:
        writer.put(b"a", b"")
        with pickle.loads(pickle.dumps(writer)) as copy:
            copy.put(b"b", b"")
        assert keys(log) == [b"b"]
    assert keys(log) == [b"b", b"a"]


def append_with(channel: Channel, writer: WALWriter, key: bytes) -> int | None:
    with writer:
        return writer.put(key, b"v")


@pytest.mark.parametrize("method", ["subprocess", "spawn", "forkserver"])
def test_a_writer_is_passed_to_another_process(child: Start, log: Path, method: str) -> None:
    with WALWriter(log) as writer:
        writer.put(b"a", b"")
        assert child(append_with, writer, b"b", method=method).result() == 2
        assert writer.put(b"c", b"") == 3
    assert keys(log) == [b"a", b"b", b"c"]


def test_closing_while_other_threads_append_loses_nothing_that_was_acknowledged(log: Path) -> None:
    writer = WALWriter(log, size_limit=4096)
    acknowledged: list[tuple[int, bytes]] = []
    started = threading.Barrier(5)

    def append(thread: int) -> None:
        started.wait(60)
        try:
            for n in range(100_000):
                key = b"%d/%d" % (thread, n)
                lsn = writer.put(key, b"v")
                assert lsn is not None
                acknowledged.append((lsn, key))
        except LogClosed:
            pass

    def close() -> None:
        started.wait(60)
        while len(acknowledged) < 1000:
            pass
        writer.close()

    run_threads(close, *[lambda thread=thread: append(thread) for thread in range(4)])
    found = keys(log)
    assert all(found[lsn - 1] == key for lsn, key in acknowledged)
    assert len(found) == len(acknowledged)


def test_a_writer_that_was_never_opened_can_be_collected(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Exception, match="file"):
            WALWriter(path)
    gc.collect()


def fork_and_leave(channel: Channel, log: Path) -> None:
    writer = WALWriter(log)
    writer.put(b"a", b"")
    pid = os.fork()
    if pid == 0:
        writer.close()  # what the child never used costs its parent nothing
        os._exit(0)
    assert reap(pid) == 0
    with WALMetrics.attach(log) as metrics:
        assert len(metrics.snapshot().writers) == 1, "the parent still has its slot"
    assert writer.put(b"b", b"") == 2
    writer.close()


def test_a_forked_child_that_closes_the_writer_does_not_close_its_parents(child: Start, log: Path) -> None:
    child(fork_and_leave, log).result()
    assert keys(log) == [b"a", b"b"]


def buffer_until_sigterm(channel: Channel, log: Path) -> None:
    flush_at_signals()
    writer = WALWriter(log, SyncMode.NONE, linger_s=3600.0)
    for number in range(10):
        writer.put(b"%d" % number, b"")
    try:
        channel.send("buffered")
        while True:
            signal.pause()
    except SystemExit as end:
        assert end.code == 128 + signal.SIGTERM
        at_exit._close_all()  # as the interpreter does at its end
        os._exit(143)


def test_a_signal_ends_a_process_in_order_if_that_was_asked_for(child: Start, log: Path) -> None:
    ending = child(buffer_until_sigterm, log)
    assert ending.receive() == "buffered"
    os.kill(ending.pid, signal.SIGTERM)
    assert ending.died() == 143
    assert [entry.key for entry in WALReader(log)] == [b"%d" % number for number in range(10)]


pooled: WALWriter


def buffer_in_a_pool(log: str) -> None:
    flush_at_signals()
    global pooled
    pooled = WALWriter(log, SyncMode.NONE, linger_s=3600.0)


def put_in_a_pool(number: int) -> None:
    pooled.put(b"%d" % number, b"")


def test_a_pool_used_as_a_context_manager_loses_nothing_then(log: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2, buffer_in_a_pool, (str(log),)) as pool:
        pool.map(put_in_a_pool, range(20), chunksize=1)
    assert sorted(int(entry.key) for entry in WALReader(log)) == list(range(20))


def close_many_at_exit(channel: Channel, folder: Path) -> None:
    """One of them cannot be closed: the others are, whatever it raises, also under -W error."""
    warnings.simplefilter("error")
    writers = [WALWriter(folder / f"{n}", SyncMode.NONE, lock_timeout=0.01, linger_s=3600.0) for n in range(6)]
    for writer in writers:
        writer.put(b"k", b"")
    with (folder / "3" / "append.lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        at_exit._close_all()


def test_at_exit_every_writer_is_closed_whatever_another_one_raises(child: Start, tmp_path: Path) -> None:
    child(close_many_at_exit, tmp_path).died()
    for number in range(6):
        assert len(WALReader(tmp_path / f"{number}").read_all()) == (number != 3)
