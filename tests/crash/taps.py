"""Taps on every system call that walpool makes: count them, fail one of them, die at one of them.

Holds: a tap is installed before a log is opened, because the hot path binds its calls then; `tapped` takes it off.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import walpool
from walpool.system.calls import calls

Call = Callable[..., Any]
HARMLESS = {"time_ns", "monotonic", "sleep", "getpid"}  # they neither fail nor change anything
NAMES = sorted(name for name, value in vars(calls).items() if callable(value) and name not in HARMLESS)


@contextmanager
def tapped(tap: Callable[[str, Call, tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """Inside, every call of walpool's goes through `tap(name, call, args, kwargs)`."""
    before = {name: getattr(calls, name) for name in NAMES}

    def through(name: str, call: Call) -> Call:
        return lambda *args, **kwargs: tap(name, call, args, kwargs)

    for name, call in before.items():
        setattr(calls, name, through(name, call))
    try:
        yield
    finally:
        for name, call in before.items():
            setattr(calls, name, call)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = {  # of a call, at which dying makes a difference; everywhere else `after` is the next one's `before`
    "pwrite": ("before", "torn", "after"),
    "rename": ("before", "after"),
    "link": ("before", "after"),
    "unlink": ("before", "after"),
    "flock": ("before", "after"),
}


class DieAtCall:
    """Die at the n-th call: before it, after it, or, for a write, when half of it is done. `names`: those seen."""

    def __init__(self, n: int, moment: str) -> None:
        self.n = n
        self.moment = moment
        self.names: list[str] = []

    def __call__(self, name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.names.append(name)
        if len(self.names) != self.n:
            return call(*args, **kwargs)
        if self.moment == "torn" and name == "pwrite":
            fd, data, offset = args
            call(fd, bytes(data)[: len(data) // 2], offset)
        elif self.moment != "before":
            call(*args, **kwargs)
        kill_self()


_SOURCE = str(Path(walpool.__file__).parent)
_ROOMS = tuple(os.path.join(_SOURCE, room) + os.sep for room in ("write", "shared", "upkeep", "system"))


class DieAtLine:
    """Die before the n-th line that walpool executes: so between any two stores into the control block, too."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.count = 0

    def start(self) -> None:
        threading.settrace(self._call)  # threads that are started from now on
        sys.settrace(self._call)

    def stop(self) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(_ROOMS) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self.n:
                kill_self()
        return self._line


class FailOnce:
    """The n-th call of one name fails, once; `count` goes on."""

    def __init__(self, name: str, n: int, error: int) -> None:
        self.name = name
        self.n = n
        self.error = error
        self.count = 0
        self.hit = False

    def __call__(self, name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == self.name and not (name == "flock" and args[1] == fcntl.LOCK_UN):  # an unlock cannot fail
            self.count += 1
            if self.count == self.n:
                self.hit = True
                if name == "close":
                    call(*args, **kwargs)  # whatever close says, the descriptor is gone
                raise OSError(self.error, os.strerror(self.error))
        return call(*args, **kwargs)


class ShortWrite:
    """The n-th write does a part of its bytes; what it answers next is up to `then`: go on, or an errno."""

    def __init__(self, n: int, part: Callable[[int], int], then: int = 0) -> None:
        self.n = n
        self.part = part
        self.then = then
        self.count = 0
        self.hit = False

    def __call__(self, name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "pwrite":
            self.count += 1
            if self.count == self.n:
                self.hit = True
                fd, data, offset = args
                part = self.part(len(data))
                return call(fd, bytes(data)[:part], offset) if part else 0
            if self.count == self.n + 1 and self.then:
                raise OSError(self.then, os.strerror(self.then))
        return call(*args, **kwargs)
