"""Running the `walpool` command as a process of its own: every one is reaped, and killed at its deadline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

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


class Running:
    """A command under way. Whatever still runs at `end` is killed."""

    def __init__(self, args: list[str], stdin: int = subprocess.DEVNULL, **options: Any) -> None:
        self.process = subprocess.Popen(
            [*WALPOOL, *args], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )
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
            out, err = self.process.communicate(timeout=DEADLINE_S)
        finally:
            self.end()
        return Ended(self.process.returncode, out or b"", self._err + err.decode())

    def end(self) -> None:
        self._deadline.cancel()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


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
