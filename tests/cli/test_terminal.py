"""The monitor before a real terminal: every way to end it leaves the terminal as it was found."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from walpool import WALWriter

from .conftest import DEADLINE_S, WALPOOL, Start

ALTERNATE, MAIN = b"\x1b[?1049h", b"\x1b[?1049l"
HIDDEN, SHOWN = b"\x1b[?25l", b"\x1b[?25h"
DRAWN = b"no reader holds a pin"  # the last place of the screen


class Terminal:
    """A command with a terminal of its own, as whose session leader it runs."""

    def __init__(self, words: list[str], term: str) -> None:
        self.out = b""
        self.fd, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (30, 100))
        self.before = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            [*WALPOOL, *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": term}, preexec_fn=lambda: take_terminal(theirs),
        )  # fmt: skip
        os.close(theirs)
        self.give_up = time.monotonic() + DEADLINE_S

    def read_until(self, said: Callable[[bytes], bool]) -> None:
        """Read until it has said so, or has ended."""
        while not said(self.out):
            left = self.give_up - time.monotonic()
            assert left > 0 and select.select([self.fd], [], [], left)[0], self.out
            try:
                self.out += os.read(self.fd, 65536)
            except OSError:  # its last process has closed it
                return

    def end(self) -> int:
        """What it ended with, when everything that it wrote has been read."""
        self.read_until(lambda out: False)
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def reap(self) -> None:
        self.process.kill()
        self.process.wait()
        self.close()


def take_terminal(fd: int) -> None:
    import fcntl

    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def monitor(log: Path) -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []
    with WALWriter(log) as writer:
        writer.put(b"key", b"value")

        def start(term: str = "xterm-256color") -> Terminal:
            started.append(Terminal(["monitor", str(log), "--interval", "0.05"], term))
            return started[-1]

        yield start
        for each in started:
            each.reap()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code"),
    [("q", 0), ("\x03", 0), ("?\x03", 0), (signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["q", "Ctrl-C", "Ctrl-C under the help", "SIGINT", "SIGTERM", "SIGHUP"],
)
def test_every_end_gives_the_terminal_back(
    monitor: Callable[..., Terminal], how: str | signal.Signals, code: int
) -> None:
    terminal = monitor()
    terminal.read_until(lambda out: DRAWN in out)
    if isinstance(how, signal.Signals):
        terminal.process.send_signal(how)
    else:
        os.write(terminal.fd, how.encode())
    assert terminal.end() == code
    assert terminal.out.count(ALTERNATE) == terminal.out.count(MAIN) == 1
    assert terminal.out.rindex(SHOWN) > terminal.out.rindex(HIDDEN)
    assert terminal.out.rindex(MAIN) > terminal.out.rindex(DRAWN)
    assert b"Traceback" not in terminal.out


def test_a_terminal_that_goes_away_ends_it(monitor: Callable[..., Terminal]) -> None:
    terminal = monitor()
    terminal.read_until(lambda out: DRAWN in out)
    terminal.close()
    assert terminal.process.wait(DEADLINE_S) == 129


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_dumb_terminal_gets_lines(monitor: Callable[..., Terminal], term: str) -> None:
    terminal = monitor(term)
    terminal.read_until(lambda out: out.count(b"entries/s") > 1)
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == 143
    assert b"\x1b" not in terminal.out


def test_it_waits_for_a_log_that_is_not_there_yet(start: Start, log: Path) -> None:
    running = start("monitor", log, "--wait", "--plain", "--interval", "0.05")
    assert running.process.stderr is not None and running.process.stdout is not None
    assert b"waiting for the log" in running.process.stderr.readline()
    log.mkdir()
    with WALWriter(log) as writer:
        writer.put(b"key", b"value")
        assert b"LSN " in running.process.stdout.readline()
    running.process.send_signal(signal.SIGINT)
    assert running.wait().code == 0
