"""Taps on every system call that walpool makes: count them, die at one of them.

Holds: a tap is installed before a log is opened, because the hot path binds its calls then; `tapped` takes it off.
"""

from __future__ import annotations

import ast
import dis
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import walpool
from walpool import SyncMode, WALEntry, WALWriter
from walpool.system.calls import calls

Call = Callable[..., Any]
# They change nothing, and whether they fail is nothing to their callers.
HARMLESS = {"time_ns", "monotonic", "monotonic_ns", "sleep", "getpid", "futex_wait", "futex_wake"}
NAMES = sorted(name for name, value in vars(calls).items() if callable(value) and name not in HARMLESS)

_REAL = {name: getattr(calls, name) for name in NAMES}


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


@contextmanager
def untapped() -> Iterator[None]:
    """Inside, no call goes through a tap: for who only looks. No other thread makes calls meanwhile."""
    before = {name: getattr(calls, name) for name in NAMES}
    vars(calls).update(_REAL)
    try:
        yield
    finally:
        vars(calls).update(before)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


MOMENTS = {  # of a call, at which dying makes a difference; everywhere else `after` is the next one's `before`
    "pwrite": ("before", "torn", "after"),
    "store": ("before", "torn", "after"),
    "rename": ("before", "after"),
    "link": ("before", "after"),
    "unlink": ("before", "after"),
    "flock": ("before", "after"),
}


class DieAtCall:
    """Die at the n-th call: before it, after it, or, for a write, when `part` of it is done. `names`: those seen.

    Or do something else there, `act`, and go on.
    """

    def __init__(self, n: int, moment: str, part: float = 0.5, act: Callable[[], object] = kill_self) -> None:
        self.n = n
        self.moment = moment
        self.part = part
        self.act = act
        self.names: list[str] = []

    def __call__(self, name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.names.append(name)
        if len(self.names) != self.n:
            return call(*args, **kwargs)
        if self.moment == "torn" and name == "pwrite":
            fd, data, offset = args
            call(fd, bytes(data)[: int(len(data) * self.part)], offset)
        elif self.moment == "torn" and name == "store":
            mapped, start, data = args
            call(mapped, start, data[: int(len(data) * self.part)])
        elif self.moment != "before":
            result = call(*args, **kwargs)
            self.act()
            return result
        self.act()
        return call(*args, **kwargs)


_SOURCE = str(Path(walpool.__file__).parent)
_ROOMS = tuple(
    os.path.join(_SOURCE, room) + os.sep for room in ("write", "shared", "read", "opening", "upkeep", "system")
)


class DieAtLine:
    """Die before the n-th line that walpool executes."""

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


class DieAtStore:
    """Die just before or just after the n-th store into words that other processes see; or do something else there."""

    def __init__(self, n: int, moment: str, act: Callable[[], object] = kill_self) -> None:
        self.n = n
        self.moment = moment
        self.act = act
        self.count = 0
        self.places: set[tuple[str, int]] = set()  # file and line of the stores that were counted
        self._stores = stores()

    def start(self) -> None:
        threading.settrace(self._call)
        sys.settrace(self._call)

    def stop(self) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        offsets = self._stores.get((code.co_filename, code.co_firstlineno, code.co_qualname))
        if offsets is None:
            return None
        return partial(self._step, *offsets)

    def _step(self, lines: frozenset[int], offsets: frozenset[int], frame: FrameType, event: str, arg: Any) -> None:
        if self.n and self.count == self.n:
            self._act()  # the store was the instruction before this
        if event == "line":
            frame.f_trace_opcodes = frame.f_lineno in lines  # only there: each event costs
        elif event == "opcode" and frame.f_lasti in offsets:
            self.count += 1
            self.places.add((frame.f_code.co_filename, frame.f_lineno))
            if self.count == self.n and self.moment == "before":
                self._act()

    def _act(self) -> None:
        self.n = 0  # once
        self.act()


def told_of_stores() -> None:
    """Python 3.12 tells of instructions only in functions that were traced before, here or in the parent."""
    if sys.version_info[:2] != (3, 12):
        return
    with tempfile.TemporaryDirectory() as folder:
        for mode in (SyncMode.NORMAL, SyncMode.FULL) * 2:
            tap = DieAtStore(0, "before")
            tap.start()
            try:
                with WALWriter(os.path.join(folder, "log"), mode, 400) as writer:
                    for _ in range(4):
                        writer.put(b"key", bytes(100))
                        writer.append_batch([WALEntry.put(b"key", b"value")] * 2)
                    writer.checkpoint(writer.sync())
                    writer.rotate()
                    writer.prune()
            finally:
                tap.stop()


LIVE = {"words", "_words", "halves", "counts"}  # what the source calls words that others see
FILLS = {"_fill", "pack_into"}


@cache
def stores() -> dict[tuple[str, int, str], tuple[frozenset[int], frozenset[int]]]:
    """Of each function with such stores (its file, first line and name): their lines, and the offsets of instructions.

    Found in the source. To be called before victims are forked: each would look for itself otherwise.
    """
    found = {}
    for room in _ROOMS:
        for file in sorted(Path(room).glob("*.py")):
            tree = ast.parse(file.read_text(), str(file))
            lines, fills = _store_places(tree)
            for code in _codes_in(compile(tree, str(file), "exec")):
                found_here = [
                    each
                    for each in dis.get_instructions(code)
                    if each.positions is not None
                    and (
                        (each.opname == "STORE_SUBSCR" and each.positions.lineno in lines)
                        or (each.opname == "CALL" and (each.positions.lineno, each.positions.col_offset) in fills)
                    )
                ]
                if found_here:
                    found[str(file), code.co_firstlineno, code.co_qualname] = (
                        frozenset(each.positions.lineno for each in found_here if each.positions),
                        frozenset(each.offset for each in found_here),
                    )
    return found


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_in(constant)


def _store_places(tree: ast.AST) -> tuple[set[int], set[tuple[int, int]]]:
    """Lines of statements that assign to live words, and (line, column) of the calls that fill several at once."""
    lines: set[int] = set()
    fills: set[tuple[int, int]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(_is_live(each) for target in targets for each in ast.walk(target)):
                lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FILLS:
            fills.add((node.lineno, node.col_offset))
    return lines, fills


def _is_live(node: ast.AST) -> bool:
    if not isinstance(node, ast.Subscript):
        return False
    of = node.value
    return (isinstance(of, ast.Attribute) and of.attr in LIVE) or (isinstance(of, ast.Name) and of.id in LIVE)
