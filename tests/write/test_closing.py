"""close() beside every other call in other threads: success or LogClosed, and what was acknowledged is in the log."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import open_fds, read_log, run_threads
from walpool import LogClosed, SyncMode, WALReader, WALWriter

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
