"""Signals: SIGTERM and SIGHUP end every command as Ctrl-C does, wherever it was started."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import termios
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import until
from walpool import WALWriter
from walpool.cli.ingest import source
from walpool.cli.pool.feed import FileFeed
from walpool.cli.pool.ledger import Ledger
from walpool.cli.pool.lines import Intake

from .conftest import WALPOOL, Running, Start, entries, wait_for_entries, write_lines

TERM, HUP = signal.SIGTERM, signal.SIGHUP
# Words, and what says that the command is at work: a line of stdout or of stderr.
LONG_RUNNING = {
    "cat": (["cat", "LOG", "--follow"], "stdout"),
    "export": (["export", "LOG", "--port", "0"], "stderr"),
    "monitor": (["monitor", "LOG", "--plain", "--interval", "0.05"], "stdout"),
}


@pytest.fixture
def held(log: Path) -> Path:
    """A log with an entry."""
    with WALWriter(log) as writer:
        writer.put(b"key", b"value")
    return log


def at_work(start: Start, log: Path, command: str, **options: object) -> Running:
    words, stream = LONG_RUNNING[command]
    running = start(*(log if word == "LOG" else word for word in words), **options)
    assert getattr(running.process, stream).readline()
    return running


@pytest.mark.parametrize("number", [TERM, HUP])
@pytest.mark.parametrize("command", LONG_RUNNING)
def test_a_command_that_goes_on_for_ever_ends_in_order(
    start: Start, held: Path, command: str, number: signal.Signals
) -> None:
    running = at_work(start, held, command)
    running.process.send_signal(number)
    ended = running.wait()
    assert ended.code == 128 + number
    assert ended.err == ""


@pytest.mark.parametrize("number", [TERM, HUP])
def test_no_line_that_was_read_from_stdin_is_lost(start: Start, log: Path, number: signal.Signals) -> None:
    running = start("ingest", log, "--verbose", stdin=subprocess.PIPE)
    assert running.process.stdin is not None
    running.process.stdin.write(b"one\ntwo\n")
    running.process.stdin.flush()
    running.read_worker()  # so the lines have been read
    running.process.send_signal(number)
    ended = running.wait()
    assert ended.code == 128 + number
    assert "interrupted; every line that was read is in the log" in ended.err
    assert [entry.value for entry in entries(log)] == [b"one", b"two"]


def test_half_a_line_that_looks_packed_is_not_lost(start: Start, log: Path) -> None:
    running = start("ingest", log, "--verbose", stdin=subprocess.PIPE)
    assert running.process.stdin is not None
    running.process.stdin.write(b"BZ")
    running.process.stdin.flush()
    until(lambda: (log / "ingest.lock").exists(), "the log is open")
    until(lambda: drained(running.process.stdin), "the bytes have been read")
    running.process.send_signal(TERM)
    assert running.wait().code == 128 + TERM
    assert [entry.value for entry in entries(log)] == [b"BZ"]


def drained(pipe: Any) -> bool:
    waiting = array("i", [0])
    fcntl.ioctl(pipe.fileno(), termios.FIONREAD, waiting)
    return waiting[0] == 0


def test_a_signal_ends_the_skipping_of_what_is_in_already(log: Path, tmp_path: Path) -> None:
    files = [write_lines(tmp_path / f"file{number}", 10) for number in range(3)]
    ledger = Ledger({str(file).encode(): 10 for file in files})
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(), 1):
            ledger.note(f"{file}:{number}".encode(), line)
    feed = FileFeed([source(str(file)) for file in files], ledger, 1000, Intake())
    feed.end_early()
    assert feed.take() is None
    assert feed.skipped == 0


def test_workers_leave_a_signal_to_the_whole_group_to_their_parent(start: Start, log: Path) -> None:
    """A service manager signals every process of the service."""
    running = start("ingest", log, "--verbose", "--workers", "1", stdin=subprocess.PIPE)
    assert running.process.stdin is not None
    running.process.stdin.write(b"one\n")
    running.process.stdin.flush()
    worker = running.read_worker()
    wait_for_entries(log, 1)  # so it has come as far as to its work
    os.kill(worker, TERM)
    running.process.stdin.write(b"two\n")
    running.process.stdin.flush()
    wait_for_entries(log, 2)
    running.process.send_signal(TERM)
    ended = running.wait()
    assert ended.code == 128 + TERM
    assert "0 of them replaced" in ended.text


def test_a_command_that_nobody_reads_ends_all_the_same(start: Start, log: Path) -> None:
    with WALWriter(log) as writer:
        for _ in range(100):
            writer.put(b"key", bytes(100_000))
    running = start("cat", log, "--format", "raw")
    assert running.process.stdout is not None
    assert running.process.stdout.read(1)  # the rest does not fit the pipe
    running.process.send_signal(TERM)
    assert running.process.wait(60) == 128 + TERM


def ignoring(*numbers: signal.Signals) -> Callable[[], None]:
    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    return ignore


def test_what_nohup_ignores_stays_ignored_and_sigterm_ends_it(start: Start, held: Path) -> None:
    running = at_work(start, held, "cat", preexec_fn=ignoring(HUP, signal.SIGINT))
    running.process.send_signal(HUP)
    running.process.send_signal(signal.SIGINT)
    with WALWriter(held) as writer:
        writer.put(b"second", b"value")
    assert running.process.stdout is not None
    assert b"second" in running.process.stdout.readline()
    running.process.send_signal(TERM)
    assert running.wait().code == 128 + TERM


def test_an_ignored_sigterm_is_not_inherited(start: Start, held: Path) -> None:
    running = at_work(start, held, "cat", preexec_fn=ignoring(TERM))
    running.process.send_signal(TERM)
    assert running.wait().code == 128 + TERM


@pytest.mark.usefixtures("linux")
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="makes a pid namespace")
@pytest.mark.parametrize("command", LONG_RUNNING)
def test_the_first_process_of_a_container_ends_too(held: Path, command: str) -> None:
    words, stream = LONG_RUNNING[command]
    words = [str(held) if word == "LOG" else word for word in words]
    shell = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--", *WALPOOL, *words]
    with subprocess.Popen(shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as container:
        try:
            assert getattr(container, stream).readline()
            (first,) = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
            os.kill(int(first), TERM)
            assert container.wait(60) == 128 + TERM
        finally:
            container.kill()
