"""Signals: what a program asks for when one comes, and the end of a command by one of them.

A command ends by SIGINT (Ctrl-C), SIGTERM (kill, a service manager) and SIGHUP (the terminal went away).

Holds: each of them arrives as Ctrl-C does. Handlers are installed explicitly, because the kernel drops a signal for the
first process of a container that has none; a SIGINT or SIGHUP that was ignored at the start stays ignored: that is what
nohup and a shell's background jobs ask for.
"""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGTERM = int(signal.SIGTERM)
STAY_IGNORED = (signal.SIGINT, signal.SIGHUP)
ENDING = (*STAY_IGNORED, signal.SIGTERM)
CODE_OF_SIGNAL = 128  # a shell says 128 + its number when a signal ended a command

_came: list[int] = []  # in this order, since `interrupting` began
_held = False
_waiting: list[Callable[[], None]] = []  # for the end of `held`


def on_signals(signals: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> None:
    """Call `handler` in the main thread when one of them comes. Raises ValueError outside of the main thread."""
    for number in signals:
        signal.signal(number, handler)


@contextmanager
def interrupting() -> Iterator[None]:
    """Inside, each of these signals raises KeyboardInterrupt, unless `handled` says otherwise."""
    _came.clear()
    with handled(_interrupt):
        yield


def came() -> bool:
    """Whether the command was told to end."""
    return bool(_came)


def exit_code() -> int | None:
    """What SIGTERM or SIGHUP asks for if it came first; after Ctrl-C, each command has its own answer."""
    return CODE_OF_SIGNAL + _came[0] if _came and _came[0] != signal.SIGINT else None


@contextmanager
def handled(on_signal: Callable[[int], None]) -> Iterator[None]:
    """Inside, each of these signals calls `on_signal`. In a thread that is not the main one, nothing changes."""

    def handler(number: int, frame: FrameType | None) -> None:
        _came.append(number)
        if _held and not _waiting:
            _waiting.append(lambda: on_signal(number))
        else:
            on_signal(number)  # also the second one inside `held`: then what is held takes too long

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    try:
        for number in ENDING:
            found = signal.getsignal(number)
            if found is not None and not (found is signal.SIG_IGN and number in STAY_IGNORED):
                before[number] = found
                signal.signal(number, handler)
        yield
    finally:
        for number, found in before.items():
            signal.signal(number, found)


class held:
    """What is done inside is done whole: a signal is answered at its end. A class, so that entering it is one step."""

    def __enter__(self) -> None:
        global _held
        if threading.current_thread() is threading.main_thread():  # the only one that handlers run in
            _held = True

    def __exit__(self, *exception: object) -> None:
        global _held
        if threading.current_thread() is threading.main_thread():
            _held = False
            while _waiting:
                _waiting.pop()()


@contextmanager
def blocked() -> Iterator[None]:
    """Inside, none of these signals arrives; a process that is forked inside says `ignore_all`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_all() -> None:
    """For a process whose parent answers: it ends when its parent says so, or is gone."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def leave_to_parent() -> None:
    """For a worker: Ctrl-C and the end of the terminal are its parent's to answer, which ends it by SIGTERM."""
    for number in STAY_IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _interrupt(number: int) -> None:
    raise KeyboardInterrupt
