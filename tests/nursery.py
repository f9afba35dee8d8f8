"""A process that has imported what children need, and forks one whenever a test wants one: a tenth of a start's work.

Holds: it has one thread, and nothing of walpool's was ever called in it, so what a child finds is what a fresh
interpreter would find after its imports. A child stays unreaped, and its number taken, until its line is closed.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENOUGH = b"."  # instead of a module
STOPPED, ENDED = "stopped", "ended"  # what a line says of its child, with the signal or the exit code

# In the process of the tests


class Nursery:
    def __init__(self) -> None:
        self._mine, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from tests.nursery import main; main()", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._mutex = threading.Lock()
        self._owner = os.getpid()

    def fork(self, module: str, channel: int) -> Forked:
        """A child that has imported `module` and does what its channel says, in the environment that comes first."""
        line, theirs = Pipe()
        with self._mutex:
            with theirs:
                socket.send_fds(self._mine, [module.encode()], [channel, 1, 2, theirs.fileno()])
            return Forked(line.recv(), line)

    @property
    def is_ours(self) -> bool:
        return os.getpid() == self._owner

    def end(self) -> None:
        with self._mine, suppress(BrokenPipeError):
            self._mine.send(ENOUGH)  # its closing alone may not be seen: what a test forked has this socket, too
        self._process.wait()


class Forked:
    """A child, as its owner sees it."""

    def __init__(self, pid: int, line: Connection) -> None:
        self.pid = pid
        self.code: int | None = None  # once it has ended: as an exit code, or minus the signal that killed it
        self._line = line

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def stop(self, longest_s: float) -> bool:
        """Whether it stands still, and has not ended instead."""
        os.kill(self.pid, signal.SIGSTOP)
        return self._line.poll(longest_s) and self._line.recv()[0] == STOPPED

    def wait(self, longest_s: float) -> int | None:
        """Its code; None: it has not ended."""
        while self.code is None and self._line.poll(longest_s):
            kind, code = self._line.recv()
            if kind == ENDED:
                self.code = code
        return self.code

    def end(self, longest_s: float) -> None:
        if not self._line.closed:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # not reaped yet, so the group is its own
            self.wait(longest_s)
            self._line.close()


_nursery: Nursery | None = None


def fork(module: str, channel: int) -> Forked:
    """Out of this process's own nursery."""
    global _nursery
    if _nursery is None or not _nursery.is_ours:
        _nursery = Nursery()
    return _nursery.fork(module, channel)


def end() -> None:
    global _nursery
    if _nursery is not None and _nursery.is_ours:
        _nursery.end()
        _nursery = None


atexit.register(end)


# In the nursery


def main() -> None:
    channel = serve(socket.socket(fileno=int(sys.argv[1])))
    if channel is not None:
        from tests.support import run_first

        connection = Connection(channel)
        os.environ.clear()
        os.environ.update(connection.recv())
        run_first(connection)


def serve(control: socket.socket) -> int | None:
    """In a child: its end of the channel. In the nursery: None, once nobody wants children any more."""
    import tests.support  # noqa: F401

    woken, wake = socket.socketpair()
    for each in (woken, wake):
        each.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake.fileno())
    lines: dict[int, Connection] = {}
    told: set[int] = set()
    while True:
        ready = wait([control, woken, *lines.values()])
        if woken in ready:
            woken.recv(1 << 16)
            for pid, line in lines.items():
                if pid not in told and tell(pid, line):
                    told.add(pid)
        for pid, line in [(pid, line) for pid, line in lines.items() if line in ready]:
            line.close()  # its owner has: nobody sends a signal to this number any more
            del lines[pid]
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            told.discard(pid)
        if control in ready:
            name, fds, *_ = socket.recv_fds(control, 1 << 10, 4)
            if name in (b"", ENOUGH):
                for pid in lines:
                    os.killpg(pid, signal.SIGKILL)
                return None
            channel, out, err, theirs = fds
            with suppress(Exception):  # then the child says why
                importlib.import_module(name.decode())
            assert threading.active_count() == 1
            gc.freeze()  # no child's collection looks at, and so copies, what was imported
            line = Connection(theirs)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.setsid()  # so that its end reaches what it forks, too
                os.dup2(out, 1)
                os.dup2(err, 2)
                line.send(os.getpid())
                for mine in (control, woken, wake):
                    mine.close()
                for other in (line, *lines.values()):
                    other.close()
            for fd in (out, err):
                os.close(fd)
            if pid == 0:
                return channel
            os.close(channel)
            lines[pid] = line


def tell(pid: int, line: Connection) -> bool:
    """Whether it has ended; and that, or that it was stopped, to its owner."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    stopped = None
    with suppress(ChildProcessError):  # there are none that can stop any more
        stopped = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)
    with suppress(OSError):  # its owner is gone
        if stopped is not None:
            line.send((STOPPED, stopped.si_status))
        if ended is not None:
            line.send((ENDED, ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status))
    return ended is not None
