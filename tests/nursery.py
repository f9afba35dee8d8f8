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
    """`main`: a function, as "module:name", that imports what its children need and then becomes one by `serve`."""

    def __init__(self, main: str) -> None:
        self._mine, theirs = socket.socketpair()
        module, name = main.split(":")
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {module} import {name}; {name}()", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._mutex = threading.Lock()
        self._owner = os.getpid()

    def fork(self, module: str, channel: int, streams: tuple[int, int, int]) -> Forked:
        """A child that has imported `module` and does what its channel says."""
        line, theirs = Pipe()
        with self._mutex:
            with theirs:
                socket.send_fds(self._mine, [module.encode()], [channel, theirs.fileno(), *streams])
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


CHILDREN, COMMANDS = "tests.nursery:children", "tests.nursery:commands"
_nurseries: dict[str, Nursery] = {}
_making = threading.Lock()


def fork(main: str, module: str, channel: int, streams: tuple[int, int, int] = (0, 1, 2)) -> Forked:
    """Out of a nursery of this process's own."""
    with _making:  # two threads make one
        nursery = _nurseries.get(main)
        if nursery is None or not nursery.is_ours:
            nursery = _nurseries[main] = Nursery(main)
    return nursery.fork(module, channel, streams)


def end() -> None:
    for nursery in _nurseries.values():
        if nursery.is_ours:
            nursery.end()
    _nurseries.clear()


atexit.register(end)


# In the nursery


def children() -> None:
    import tests.support

    connection = serve()
    if connection is not None:
        os.environ.clear()
        os.environ.update(connection.recv())
        tests.support.run_first(connection)


def commands() -> None:
    """As `python -m walpool` does; nothing of walpool is imported before a fork but what every command imports."""
    import walpool.cli.main

    connection = serve()
    if connection is not None:
        environment, place, words = connection.recv()
        connection.close()
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(place)
        sys.argv[:] = ["walpool", *words]
        sys.exit(walpool.cli.main.run())


def serve() -> Connection | None:
    """In a child: its end of the channel. In the nursery: None, once nobody wants children any more."""
    control = socket.socket(fileno=int(sys.argv[1]))
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
            name, fds, *_ = socket.recv_fds(control, 1 << 10, 5)
            if name in (b"", ENOUGH):
                for pid in lines:
                    os.killpg(pid, signal.SIGKILL)
                return None
            channel, theirs, *streams = fds
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
                for fd, stream in enumerate(streams):
                    os.dup2(stream, fd)
                line.send(os.getpid())
                for mine in (control, woken, wake):
                    mine.close()
                for other in (line, *lines.values()):
                    other.close()
            for stream in streams:
                os.close(stream)
            if pid == 0:
                return Connection(channel)
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
