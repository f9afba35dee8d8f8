"""Running the `walpool` command as a process of its own: every one is reaped, and killed at its deadline."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

from tests import nursery
from walpool import WALEntry, WALReader

DEADLINE_S = 90.0
WALPOOL = [sys.executable, "-m", "walpool"]


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Command:
    """What Popen is for a program, for a command that a nursery forks."""

    def __init__(self, args: list[str], stdin: int | IO[bytes] = subprocess.DEVNULL, cwd: Path | str = ".") -> None:
        self.stdin: IO[bytes] | None = None
        out, theirs_out = os.pipe()
        err, theirs_err = os.pipe()
        if stdin == subprocess.PIPE:
            theirs_in, mine = os.pipe()
            self.stdin = os.fdopen(mine, "wb")
        elif stdin == subprocess.DEVNULL:
            theirs_in = os.open(os.devnull, os.O_RDONLY)
        else:
            theirs_in = os.dup(stdin if isinstance(stdin, int) else stdin.fileno())
        self.stdout: IO[bytes] | None = os.fdopen(out, "rb")
        self.stderr: IO[bytes] | None = os.fdopen(err, "rb")
        words, theirs = multiprocessing.Pipe()
        streams = theirs_in, theirs_out, theirs_err
        with words, theirs:
            self._forked = nursery.fork(nursery.COMMANDS, "walpool.cli.main", theirs.fileno(), streams)
            words.send((dict(os.environ), os.path.abspath(cwd), args))
        for each in streams:
            os.close(each)
        self.pid = self._forked.pid

    @property
    def returncode(self) -> int | None:
        return self._forked.code

    def poll(self) -> int | None:
        return self._forked.wait(0)

    def wait(self, longest_s: float = DEADLINE_S) -> int:
        code = self._forked.wait(longest_s)
        assert code is not None, f"process {self.pid} still runs after {longest_s} s"
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._forked.kill()

    def communicate(self) -> tuple[bytes, bytes]:
        assert self.stdout is not None and self.stderr is not None
        if self.stdin is not None:
            with suppress(BrokenPipeError):  # it ended without reading all of it
                self.stdin.close()
        said: list[bytes] = []
        reading = threading.Thread(target=lambda out: said.append(out.read()), args=[self.stdout])
        reading.start()
        err = self.stderr.read()
        reading.join()
        self.wait()
        return said[0], err

    def reap(self) -> None:
        self._forked.end(DEADLINE_S)


class Running:
    """A command under way. Whatever still runs at `end` is killed."""

    def __init__(self, args: list[str], **options: Any) -> None:
        self.process: subprocess.Popen[bytes] | Command
        if options.keys() <= {"stdin", "cwd"}:
            self.process = Command(args, **options)
        else:  # a program, if anything is to be done between the fork and its start, or its environment is another
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            self.process = subprocess.Popen([*WALPOOL, *args], **{**pipes, **options})
        self.workers: list[int] = []  # pids, as far as `read_worker` has read them
        self._err = ""
        self._deadline = threading.Timer(DEADLINE_S, self.process.kill)
        self._deadline.start()

    def read_worker(self) -> int:
        """The pid of the next worker that the command says it has started."""
        assert self.process.stderr is not None
        for raw in self.process.stderr:
            line = raw.decode()
            self._err += line
            if "started: pid " in line:
                self.workers.append(int(line.rpartition(" ")[2]))
                return self.workers[-1]
        raise AssertionError(f"the command ended without another worker: {self._err}")

    def close_stdin(self) -> None:
        """The end of its input, for a command that was started with stdin=PIPE."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None

    def kill(self, pid: int | None = None) -> None:
        os.kill(self.process.pid if pid is None else pid, signal.SIGKILL)

    def wait(self) -> Ended:
        try:
            out, err = self.process.communicate()
        finally:
            self.end()
        assert self.process.returncode is not None
        return Ended(self.process.returncode, out or b"", self._err + err.decode())

    def end(self) -> None:
        self._deadline.cancel()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        if isinstance(self.process, Command):
            self.process.reap()


Start = Callable[..., Running]
Run = Callable[..., Ended]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(*args, **Popen options)`: a command that goes on in the background."""
    running: list[Running] = []

    def begin(*args: object, **options: Any) -> Running:
        running.append(Running([str(arg) for arg in args], **options))
        return running[-1]

    yield begin
    for each in running:
        each.end()


@pytest.fixture
def run(start: Start) -> Run:
    """`run(*args, data=b"")`: a command that has ended."""

    def begin(*args: object, data: bytes | None = None, **options: Any) -> Ended:
        if data is None:
            return start(*args, **options).wait()
        running = start(*args, stdin=subprocess.PIPE, **options)
        threading.Thread(target=_feed, args=(running.process.stdin, data)).start()
        assert running.process.stdin is not None
        running.process.stdin = None  # the thread's now
        return running.wait()

    return begin


def _feed(stdin: Any, data: bytes) -> None:
    try:
        with stdin:
            stdin.write(data)
    except BrokenPipeError:
        pass  # the command ended without reading all of it, which its own test judges


def entries(log: Path) -> list[WALEntry]:
    with WALReader(log) as reader:
        return list(reader)


def values_by_key(log: Path) -> dict[bytes, bytes]:
    """What the log holds; fails if a key is in it twice."""
    found = entries(log)
    values = {bytes(entry.key): bytes(entry.value) for entry in found}
    assert len(values) == len(found), "a line is in the log twice"
    return values


def lines_of(*files: Path) -> dict[bytes, bytes]:
    """The keys and values that ingesting these files must give."""
    return {
        f"{file}:{number}".encode(): line
        for file in files
        for number, line in enumerate(file.read_bytes().removesuffix(b"\n").split(b"\n"), 1)
    }


def wait_for_entries(log: Path, count: int) -> None:
    """Follow the log until it has so many."""
    with WALReader(log) as reader:
        for number, _ in enumerate(reader.follow(timeout=DEADLINE_S), 1):
            if number == count:
                return
    raise AssertionError(f"the log did not come to {count} entries")


def write_lines(path: Path, count: int, width: int = 60) -> Path:
    """A file of `count` lines, all different."""
    path.write_bytes(b"".join(b"%b %d %b\n" % (path.name.encode(), n, b"x" * (n * 7 % width)) for n in range(count)))
    return path


def assert_no_traceback(ended: Ended) -> None:
    assert "Traceback" not in ended.err
    assert len(ended.err.splitlines()) == 1, ended.err
