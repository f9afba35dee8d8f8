"""Threads: locks between those of this process, and helpers, which are started and joined here.

Holds: whatever exception a signal handler raises in the middle of a start, a wait or a lock, it reaches the caller as
it is, no lock stays held, and no thread is forgotten. So where Python's own classes run Python code between taking and
freeing a lock, objects of C's, which do it in one step, stand here instead.
"""

import _thread
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

from walpool.errors import LogBusy
from walpool.system.calls import calls
from walpool.system.forks import in_forked_children

STARTING_S = 0.1  # how long a thread whose start was interrupted may take until it runs, if it ever does
LOOK_AGAIN_S = 1e-3
_Member = TypeVar("_Member")


class Mutex(Protocol):
    """Threads of this process, before the lock between processes: an RLock, because it tells whether it is ours."""

    def __enter__(self) -> bool: ...
    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None: ...
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...
    def _is_owned(self) -> bool: ...


_mutexes: "WeakSet[Any]" = WeakSet()


def mutex(timeout_s: float | None = None, path: str = "") -> Mutex:
    """A lock between threads that knows its owner; with a timeout its `with` gives up with LogBusy."""
    made: Any = threading.RLock() if timeout_s is None else _TimedMutex()
    if timeout_s is not None:
        made.timeout_s = max(0.0, min(timeout_s, threading.TIMEOUT_MAX))
        made.path = path  # of what it is for, in the error
    _mutexes.add(made)
    owned: Mutex = made
    return owned


class _TimedMutex(type(threading.RLock())):  # type: ignore[misc]  # its __exit__ stays C's
    timeout_s = 0.0
    path = ""

    def __enter__(self) -> bool:
        try:
            if not self.acquire(True, self.timeout_s):
                raise LogBusy(f"{self.path}: another thread of this process held the lock for {self.timeout_s} s")
            return True
        except BaseException:
            leave(self)
            raise


def leave(mutex: Any) -> None:
    """Let go of it, if an exception kept this thread from doing so."""
    while mutex._is_owned():
        mutex.release()


def mutexes_of_this_thread() -> Iterator[object]:
    """Those that it is inside of."""
    return (each for each in members(_mutexes) if each._is_owned())


def members(of: "WeakSet[_Member]") -> list[_Member]:
    """Of a set that other threads change meanwhile, each that was in it all the time."""
    while True:
        try:
            return list(of)
        except RuntimeError:
            continue  # it has changed its size in the middle


class Waker:
    """Ends the wait of one helper thread. A lock of C's: an interrupt inside of Event.set leaves that held for ever."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # made when the thread is: gevent may have replaced it since the writer was made
        self._lock.acquire()

    def wait(self, seconds: float) -> None:
        self._lock.acquire(timeout=min(seconds, threading.TIMEOUT_MAX))

    def set(self) -> None:
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it was set before


class Helpers:
    """The helper threads of one object. `join` waits for the end of each, whatever interrupted its start."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._interrupted: list[threading.Thread] = []
        self._asked_for: WeakSet[threading.Thread] = WeakSet()
        self._refused: WeakSet[threading.Thread] = WeakSet()  # of them: the system had no thread to give

    def thread(self, target: Callable[..., None], name: str, *args: Any) -> threading.Thread:
        """One that is not started yet."""
        return threading.Thread(target=target, args=args, name=name, daemon=True)

    def will_run(self, thread: threading.Thread) -> bool:
        """Whether it runs, or will, although its start was interrupted."""
        return thread in self._asked_for and not self.refused(thread)

    def refused(self, thread: threading.Thread) -> bool:
        return thread in self._refused

    def start(self, thread: threading.Thread) -> None:
        self._threads = [each for each in self._threads if each.is_alive()]
        try:
            start(thread, self._asked_for.add, self._refused.add)
        except BaseException:
            self._interrupted.append(thread)
            raise
        self._threads.append(thread)

    def join(self) -> None:
        """When they know that they should end. Not for our own, when the last reference to a writer goes in it."""
        give_up = calls.monotonic() + STARTING_S
        for thread in (*self._threads, *self._interrupted):
            while thread is not threading.current_thread():
                try:
                    thread.join()
                    break
                except RuntimeError:  # it does not run yet
                    if calls.monotonic() > give_up:
                        break
                    calls.sleep(LOOK_AGAIN_S)


Note = Callable[[threading.Thread], None]


def start(thread: threading.Thread, asked_for: Note, refused: Note) -> None:
    """`thread.start()`, made in a thread for that alone, where no signal handler runs. Here are only calls of C's.

    An exception out of one, in the middle of the library's start, hides behind an error of its clean-up, and on Python
    3.14 leaves a lock held that every thread of the process needs to begin.
    """
    begun = Waker()
    process = calls.getpid()
    in_forked_children(begun, Waker.set)  # there is no such thread there, and nobody else to say so
    errors: list[BaseException] = []

    def begin() -> None:
        try:
            if calls.getpid() == process:  # else the caller was forked in between, and what it starts is the parent's
                thread.start()
        except BaseException as error:
            refused(thread)
            errors.append(error)
        finally:
            begun.set()

    try:
        _thread.start_new_thread(begin, ())
    except RuntimeError:
        refused(thread)
        raise
    asked_for(thread)
    begun.wait(threading.TIMEOUT_MAX)
    if errors:
        raise errors[0]
