"""Threads that take turns: only one runs at a time, and whose turn is next is drawn from a seed.

A thread can lose its turn at every system call of walpool's and at every mutex. Whatever it would wait for (a mutex, a
flock, a wake-up, a time, another thread's end) lets another go on. When nobody can, and nobody waits for a time, that
is a deadlock, and found at once. The clock is our own.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from tests.crash.taps import Call, tapped
from tests.support import DEADLINE_S
from walpool.system import threads
from walpool.system.calls import calls

MOST_TURNS = 50_000
STEP_S = 1e-6
USERS_OF_MUTEXES = ("system.locks", "shared.wakeups", "staging.buffer", "write.handle", "write.coordinator")
USERS_OF_WAKERS = ("staging.buffer", "write.committer")


class Stopped(BaseException):
    """Another thread has found what is wrong."""


class Turn:
    """One thread's."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.baton = threading.Semaphore(0)
        self.until: Callable[[], bool] | None = None  # what it waits for
        self.due: float | None = None  # and until when
        self.done = False


class Turns:
    def __init__(self, chance: random.Random) -> None:
        self.now = 0.0
        self.count = 0
        self.error: BaseException | None = None
        self._chance = chance
        self._turns: list[Turn] = []
        self._by_thread: dict[int, Turn] = {}
        self._helpers: dict[threading.Thread, Turn] = {}
        self._wakes: Counter[int] = Counter()  # by address
        self._over = threading.Semaphore(0)

    # For whoever lets threads loose

    def run(self, **targets: Callable[[], None]) -> None:
        """All of them to their ends, and those of helpers that they start; raises what any raised."""
        started = [threading.Thread(target=self._run, args=(Turn(name), run)) for name, run in targets.items()]
        for thread in started:
            thread.daemon = True
            self._turns.append(thread._args[0])  # type: ignore[attr-defined]
            thread.start()
        self._turns[0].baton.release()
        assert self._over.acquire(timeout=DEADLINE_S), f"threads wait outside of our sight: {self._where()}"
        for thread in (*started, *self._helpers):
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), f"{thread.name} has not ended"
        if self.error is not None:
            raise self.error

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Whatever waits in walpool waits here."""
        with ExitStack() as stack:
            for name in USERS_OF_MUTEXES:
                stack.enter_context(patch(f"walpool.{name}.mutex", lambda *_: Mutex(self)))
            for name in USERS_OF_WAKERS:
                stack.enter_context(patch(f"walpool.{name}.Waker", lambda: Waker(self)))
            stack.enter_context(patch.object(threads, "start", self._start))
            stack.enter_context(patch.object(threads.Helpers, "join", lambda helpers: self._join(helpers)))
            for name in ("monotonic", "sleep", "futex_wait", "futex_wake"):
                stack.enter_context(patch.object(calls, name, getattr(self, f"_{name}")))
            stack.enter_context(tapped(self._tap))
            yield

    # For the thread whose turn it is

    def point(self) -> None:
        """It may be another's turn now."""
        self.wait()

    def wait(self, until: Callable[[], bool] | None = None, seconds: float | None = None) -> None:
        """Until that is so, or the time is over."""
        mine = self._by_thread.get(threading.get_ident())
        if mine is None:
            assert until is None or until(), "nobody else runs who could end this wait"
            return
        if self.error is not None:
            if until is None and seconds is None:
                return  # it cleans up
            raise Stopped
        mine.until, mine.due = until, None if seconds is None else self.now + seconds
        self._pass_on()
        if not mine.baton.acquire(timeout=DEADLINE_S):
            self._fail(AssertionError(f"threads wait outside of our sight: {self._where()}"))
        if self.error is not None:
            raise Stopped

    def _pass_on(self) -> None:
        self.now += STEP_S
        self.count += 1
        left = [turn for turn in self._turns if not turn.done]
        if not left:
            self._over.release()
            return
        if self.count > MOST_TURNS:
            self._fail(AssertionError(f"no end after {MOST_TURNS} turns: {self._where()}"))
            return
        ready = [turn for turn in left if self._can_go_on(turn)]
        if not ready:
            dues = [turn.due for turn in left if turn.due is not None]
            if not dues:
                self._fail(AssertionError(f"a deadlock: {self._where()}"))
                return
            self.now = min(dues)
            ready = [turn for turn in left if self._can_go_on(turn)]
        self._chance.choice(ready).baton.release()

    def _can_go_on(self, turn: Turn) -> bool:
        if turn.until is not None and turn.until():
            return True
        return (turn.until is None and turn.due is None) or (turn.due is not None and self.now >= turn.due)

    def _run(self, turn: Turn, run: Callable[[], None]) -> None:
        turn.baton.acquire()
        self._by_thread[threading.get_ident()] = turn
        try:
            if self.error is None:
                run()
        except Stopped:
            pass
        except BaseException as error:
            self._fail(error)
        turn.done = True
        del self._by_thread[threading.get_ident()]
        if self.error is None:
            self._pass_on()
        elif all(each.done for each in self._turns):
            self._over.release()

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        for turn in self._turns:
            turn.baton.release()

    def _where(self) -> str:
        return ", ".join(
            f"{turn.name} {'waits' if turn.until is not None else 'runs'}" for turn in self._turns if not turn.done
        )

    # What walpool calls

    def _tap(self, name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.point()
        if name != "flock" or args[1] != fcntl.LOCK_EX:
            return call(*args, **kwargs)
        while True:
            try:
                return call(args[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.point()

    def _monotonic(self) -> float:
        self.now += STEP_S
        return self.now

    def _sleep(self, seconds: float) -> None:
        self.wait(seconds=seconds)

    def _futex_wait(self, address: int, value: int, seconds: float) -> None:
        if ctypes.c_uint32.from_address(address).value != value:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        before = self._wakes[address]
        self.wait(lambda: self._wakes[address] != before, seconds)

    def _futex_wake(self, address: int) -> None:
        self._wakes[address] += 1

    def _start(self, thread: threading.Thread, asked_for: threads.Note, refused: threads.Note) -> None:
        asked_for(thread)
        turn, run = Turn(thread.name), thread.run
        thread.run = lambda: self._run(turn, run)  # type: ignore[method-assign]
        self._helpers[thread] = turn
        self._turns.append(turn)
        thread.start()

    def _join(self, helpers: threads.Helpers) -> None:
        for thread in [*helpers._threads, *helpers._interrupted]:
            turn = self._helpers[thread]
            if turn is not self._by_thread.get(threading.get_ident()):
                self.wait(lambda turn=turn: turn.done)


class Mutex:
    """See walpool.system.threads.Mutex."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._owner = 0
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = threading.get_ident()
        if self._owner != me:
            self._turns.point()
            if self._owner and not blocking:
                return False
            if self._owner:
                self._turns.wait(lambda: not self._owner)
            self._owner = me
        self._depth += 1
        return True

    def release(self) -> None:
        if self._owner != threading.get_ident():
            raise RuntimeError("cannot release un-acquired lock")
        self._depth -= 1
        if not self._depth:
            self._owner = 0

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _is_owned(self) -> bool:
        return self._owner == threading.get_ident()


class Waker:
    """See walpool.system.threads.Waker."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._set = False

    def wait(self, seconds: float) -> None:
        self._turns.wait(lambda: self._set, seconds)
        self._set = False

    def set(self) -> None:
        self._set = True
