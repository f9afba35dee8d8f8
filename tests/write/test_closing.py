"""close() beside every other call in other threads: success or LogClosed, and what was acknowledged is in the log."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import DEADLINE_S, open_fds, open_under, read_log, run_threads, until
from walpool import LogBusy, LogClosed, LogReplaced, SyncMode, WALEntry, WALMetrics, WALReader, WALWriter
from walpool.system.calls import calls
from walpool.write import committer

CALLS: dict[str, Callable[[WALWriter], object]] = {
    "put": lambda writer: writer.put(b"k", b"v"),
    "batch": lambda writer: writer.append_batch([]),
    "sync": lambda writer: (writer.put(b"k", b"v"), writer.sync()),
    "rotate": lambda writer: (writer.put(b"k", b"v"), writer.rotate()),
    "checkpoint": lambda writer: writer.checkpoint(0),
    "prune": lambda writer: writer.prune(),
    "size": lambda writer: writer.size,
    "metrics": lambda writer: writer.metrics.snapshot(),
}


@pytest.fixture(autouse=True)
def threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("mode", list(SyncMode))
def test_a_call_beside_close_succeeds_or_says_closed(memory: Path, mode: SyncMode, name: str) -> None:
    for number in range(8):
        writer = WALWriter(memory / f"{number}", mode)
        writer.put(b"k", b"v")
        begun = threading.Semaphore(0)

        def use(writer: WALWriter = writer, begun: threading.Semaphore = begun) -> None:
            try:
                while True:
                    CALLS[name](writer)
                    begun.release()
            except LogClosed:
                pass

        def close(writer: WALWriter = writer, begun: threading.Semaphore = begun) -> None:
            begun.acquire()
            writer.close()

        run_threads(use, use, close)


def test_what_was_put_beside_a_close_is_in_the_log_when_put_returned(memory: Path) -> None:
    for number in range(40):
        log = memory / f"{number}"
        writer = WALWriter(log, SyncMode.NONE)
        begun = threading.Event()
        returned = [0]

        def put(writer: WALWriter = writer, begun: threading.Event = begun, returned: list[int] = returned) -> None:
            try:
                while True:
                    writer.put(b"%d" % returned[0], b"v")
                    returned[0] += 1
                    begun.set()
            except LogClosed:
                pass

        def close(writer: WALWriter = writer, begun: threading.Event = begun) -> None:
            begun.wait(60)
            writer.close()

        run_threads(put, close)
        assert [entry.key for entry in read_log(log)] == [b"%d" % n for n in range(returned[0])]


@pytest.mark.usefixtures("linux")
def test_a_closed_writer_keeps_no_descriptor_though_it_is_referenced(memory: Path) -> None:
    kept = []
    for number in range(5):
        writer = WALWriter(memory / "log")
        writer.put(b"%d" % number, b"")
        writer.close()
        kept.append(writer)
    with WALReader(memory / "log") as reader:
        assert len(reader.read_all()) == 5
    assert not [path for path in open_fds().values() if str(memory) in path]


# In the middle of an append


def inside(writer: WALWriter, do: Callable[[], object]) -> list[BaseException]:
    """Have `do` come in the middle of the writer's next append, as a signal handler does; what it raised."""
    raised: list[BaseException] = []
    appender = writer._handle.open().appender
    really = appender._pwrite

    def pwrite(*args: Any) -> int:
        appender._pwrite = really
        try:
            do()
        except BaseException as error:
            raised.append(error)
        return really(*args)

    appender._pwrite = pwrite
    appender._look_first()  # so that it is Python's
    return raised


@pytest.mark.parametrize(("mode", "interval"), [*((mode, None) for mode in SyncMode), (SyncMode.NORMAL, 3600.0)])
def test_a_close_in_the_middle_of_another_writers_append_can_be_tried_again(
    memory: Path, mode: SyncMode, interval: float | None
) -> None:
    first = WALWriter(memory / "log")
    second = WALWriter(memory / "log", mode, linger_s=3600.0, sync_interval_s=interval)
    second.put(b"before", b"")
    raised = inside(first, second.close)
    first.put(b"first", b"")
    assert [type(error) for error in raised] == [LogBusy]
    assert "this thread is in the middle of a call on this log" in str(raised[0])
    second.put(b"after", b"")  # it has not called itself closed
    second.close()
    second.close()
    with pytest.raises(LogClosed):
        second.put(b"late", b"")
    first.close()
    assert sorted(entry.key for entry in read_log(memory / "log")) == [b"after", b"before", b"first"]


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize("mode", list(SyncMode))
def test_a_close_in_the_middle_of_its_own_append_takes_effect_or_can_be_tried_again(
    memory: Path, mode: SyncMode
) -> None:
    writer = WALWriter(memory / "log", mode, linger_s=3600.0)
    writer.put(b"before", b"")
    raised = inside(writer, writer.close)
    try:
        writer.put(b"in between", b"")
        writer.sync()
    except LogClosed:
        pass  # the sync: by then it is closed
    if mode is SyncMode.NONE:
        assert [type(error) for error in raised] == [LogBusy], "what is buffered is on its way"
        writer.put(b"after", b"")
    else:
        assert raised == []
        with pytest.raises(LogClosed):
            writer.put(b"after", b"")
    writer.close()
    assert open_under(memory) == []
    expected = [b"before", b"in between", b"after"]
    assert [entry.key for entry in read_log(memory / "log")] == expected[: 3 if mode is SyncMode.NONE else 2]


# A log that was recovered meanwhile


def recover_beside(log: Path) -> None:
    """Somebody removes the file by which writers are known to live, and opens the log: a new block is in force."""
    (log / "slots.lock").unlink()
    with WALWriter(log) as another:
        assert another.recovery_report is not None


@pytest.mark.parametrize("mode", [SyncMode.NORMAL, SyncMode.FULL])
def test_a_writer_whose_log_was_recovered_goes_on_in_the_log_that_it_opens_anew(memory: Path, mode: SyncMode) -> None:
    log = memory / "log"
    writer = WALWriter(log, mode)
    writer.put(b"before", b"")
    writer.sync()
    old = writer._handle.open().log.control
    recover_beside(log)
    writer.append_batch([WALEntry.put(b"after", b""), WALEntry.put(b"and on", b"")])
    if mode is SyncMode.FULL:  # it settled in the block that is in force now
        assert WALMetrics.attach(log).snapshot().durable_lsn == 3
    assert writer._handle.open().log.control is not old
    assert writer.sync() == 3
    writer.close()
    assert [entry.key for entry in read_log(log)] == [b"before", b"after", b"and on"]


@pytest.mark.usefixtures("linux")
@pytest.mark.parametrize("mode", [SyncMode.NORMAL, SyncMode.FULL])
def test_threads_that_find_the_block_replaced_at_once_do_not_wait_for_each_other(memory: Path, mode: SyncMode) -> None:
    for number in range(10):
        log = memory / f"{number}"
        writer = WALWriter(log, mode)
        writer.put(b"before", b"")
        recover_beside(log)
        run_threads(*[lambda writer=writer: writer.put(b"after", b"")] * 4)
        writer.close()
        assert len(read_log(log)) == 5
    assert open_under(memory) == []


@pytest.mark.parametrize("recovered", [True, False])
def test_nothing_is_called_durable_in_a_block_that_no_name_leads_to(memory: Path, recovered: bool) -> None:
    """A recovery that somebody else's writer made meanwhile does not know of it."""
    log = memory / "log"
    full, normal = WALWriter(log, SyncMode.FULL), WALWriter(log)
    full.put(b"before", b"")
    (log / "control").unlink()
    if recovered:
        recover_beside(log)
    for call in (lambda: full.put(b"after", b""), normal.sync):
        with pytest.raises(LogReplaced, match="the control block was removed or replaced"):
            call()
    full.close()
    normal.close()
    with WALWriter(log, SyncMode.FULL) as writer:
        writer.put(b"again", b"")
    assert [entry.key for entry in read_log(log)][-1] == b"again"


def test_an_append_that_is_timed_beside_close_succeeds(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it would have counted, when the log was closed between the append and the count, is not counted."""
    writer = WALWriter(memory / "log")
    looks: list[int] = []

    def monotonic_ns() -> int:
        looks.append(1)
        if len(looks) == 2:
            run_threads(writer.close)
        return 0

    session = writer._handle.session
    assert session is not None
    session.appender.waits.sample = True
    with monkeypatch.context() as patch:
        patch.setattr(calls, "monotonic_ns", monotonic_ns)
        assert writer.put(b"k", b"v") == 1
    assert len(looks) >= 2
    assert [entry.lsn for entry in read_log(memory / "log")] == [1]


def test_a_close_waits_for_the_thread_that_keeps_the_sync_interval(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be at work still, and what it works with is closed next."""
    ends: list[str] = []
    go_on, joined = threading.Event(), threading.Event()
    join = threading.Thread.join

    def told(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name == "walpool-interval":
            joined.set()
        join(thread, timeout)

    def last_step(path: str, what: str) -> None:
        go_on.wait(DEADLINE_S)
        ends.append("the thread")

    def close() -> None:
        writer.close()
        ends.append("the close")

    monkeypatch.setattr(threading.Thread, "join", told)
    monkeypatch.setattr(committer, "over", last_step)
    writer = WALWriter(memory / "log", sync_interval_s=1e-3)
    writer.put(b"key", b"value")
    until(lambda: writer.metrics.snapshot().durable_lsn == 1, "the thread has synced")
    closing = threading.Thread(target=close)
    closing.start()
    until(lambda: joined.is_set() or bool(ends), "the close has come to the thread")
    go_on.set()
    join(closing)
    assert ends == ["the thread", "the close"]
