"""Failing or stopping a process at its n-th system call, and the order of its calls."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.crash.taps import NAMES, Call, tapped

WATCHED = frozenset(NAMES) - {"close"}


class Killed(BaseException):
    """What a killed process would have called next. `close` still works: the kernel closes for the dead."""


@dataclass
class Trace:
    """The calls that were made, in order: name and first two arguments."""

    made: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    hit: str = ""  # the call that a fault was injected into

    def names(self) -> list[str]:
        return [name for name, _ in self.made]

    def of(self, *names: str) -> list[tuple[Any, ...]]:
        return [arguments for name, arguments in self.made if name in names]


@contextmanager
def watched(before: Callable[[int, str], None] = lambda number, name: None) -> Iterator[Trace]:
    """Every call of this thread is noted, after `before` was told its number, from 0; background threads go on."""
    trace = Trace()
    watched_thread = threading.get_ident()

    def tap(name: str, call: Call, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if name not in WATCHED or threading.get_ident() != watched_thread:
            return call(*arguments, **named)
        try:
            before(len(trace.made), name)
        except BaseException:
            trace.hit = trace.hit or f"{name}{arguments[:2]}"
            raise
        trace.made.append((name, arguments[:2]))
        return call(*arguments, **named)

    with tapped(tap):
        yield trace


@contextmanager
def killed_at(number: int) -> Iterator[Trace]:
    """The process is killed before its call `number`: nothing it calls from then on happens."""

    def before(now: int, name: str) -> None:
        if now >= number:
            raise Killed

    with watched(before) as trace:
        yield trace


@contextmanager
def failing_at(number: int, errno: int) -> Iterator[Trace]:
    """Call `number` fails once with this errno, before it does anything. Locks do not fail."""
    failed = False
    now = -1

    def before(_: int, name: str) -> None:
        nonlocal failed, now
        now += name not in ("flock", "fcntl")
        if now == number and not failed:
            failed = True
            raise OSError(errno, f"injected into {name}")

    with watched(before) as trace:
        yield trace
