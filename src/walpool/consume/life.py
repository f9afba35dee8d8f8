"""The life of what consumes by name: opened, used, forked, pickled, closed.

Holds: what is open is one object, which is there whole or not at all. A forked child lets go of its parent's and opens
its own on the next use. After a failed sync it is closed: a slot that is held would keep everybody from recovering.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, Self, TypeVar

from walpool.consume.consumer import Consumer
from walpool.consume.feed import Feed
from walpool.errors import LogClosed, SyncFailed
from walpool.read.follow import Followed, follow
from walpool.system.forks import in_forked_children
from walpool.system.locks import itself
from walpool.system.threads import leave, mutex

E = TypeVar("E")
_Result = TypeVar("_Result")


class Open(Protocol):
    @property
    def consumer(self) -> Consumer: ...
    @property
    def feed(self) -> Feed: ...  # type: ignore[type-arg]  # of whatever
    def close(self) -> None:
        """What was committed is on disk, and its files are closed."""


Opened = TypeVar("Opened", bound=Open)


class Life(ABC, Generic[Opened]):
    def _prepare(self, path: str, name: str, lock_timeout: float | None, allow_network_fs: bool) -> None:
        self._path = path
        self._name = name
        self._lock_timeout = lock_timeout
        self._allow_network_fs = allow_network_fs
        self._mutex = mutex()  # of who commits, opens or closes
        self._open: Opened | None = None
        self._closed = self._is_child = False
        in_forked_children(self, Life._after_fork)

    @property
    def name(self) -> str:
        """As it was opened."""
        return self._name

    @property
    def path(self) -> str:
        """The log's directory, absolute."""
        return self._path

    @abstractmethod
    def close(self) -> None:
        """Make durable what was committed, and let another have the name."""

    def __enter__(self) -> Self:
        self._opened()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def _open_in(self, consumer: Consumer) -> Opened:
        """Wait for the name, and have all open."""

    def _opened(self) -> Opened:
        there = self._open
        if there is not None:
            return there
        consumers: list[Consumer] = []
        try:
            there = self._alone(lambda: self._open_now(consumers))
        except BaseException:
            for consumer in consumers:
                consumer.close()
            raise
        for consumer in consumers:
            consumer.tell()
        return there

    def _open_now(self, consumers: list[Consumer]) -> Opened:
        self._check_open()
        if self._open is None:
            consumers.append(Consumer(self._path, self._lock_timeout, self._allow_network_fs))
            self._open = self._open_in(consumers[0])
        return self._open

    def _check_open(self) -> None:
        if self._closed:
            raise LogClosed(f"{self._path}: {self._name!r} was closed")

    def _alone(self, body: Callable[[], _Result]) -> _Result:
        if self._mutex._is_owned():
            raise itself(self._path)
        try:
            return self._run(body)  # a frame of its own: see ProcessLock.run
        finally:
            leave(self._mutex)

    def _run(self, body: Callable[[], _Result]) -> _Result:
        with self._mutex:
            return body()

    def _follow(self, feed: Followed[E], timeout_s: float | None) -> Iterator[E]:
        try:
            yield from follow(feed, timeout_s, True)
        except SyncFailed:
            try:
                self._end()
            except Exception:  # what it says comes of the same cause
                pass
            raise

    def _check_durable(self, lsn: int, consumer: Consumer) -> None:
        durable_lsn = consumer.durable_lsn
        if not 0 <= lsn <= durable_lsn:
            raise ValueError(
                f"LSN {lsn} cannot be committed by {self._name!r}: the log is durable up to LSN {durable_lsn}"
            )

    def _end(self) -> None:
        if self._mutex._is_owned():
            raise itself(self._path)
        self._closed = True
        there = self._open
        if there is not None:
            there.feed.close()  # first: a thread that follows may be in the middle of a sync
        consumers: list[Consumer] = []
        try:
            self._alone(lambda: self._close_open(consumers))
        finally:
            for consumer in consumers:
                consumer.close()

    def _close_open(self, consumers: list[Consumer]) -> None:
        there, self._open = self._open, None
        if there is not None:
            consumers.append(there.consumer)  # closed behind the mutex: it joins threads
            there.feed.close()
            there.close()

    def _after_fork(self) -> None:
        self._mutex = mutex()  # another thread may have held the old one
        there, self._open = self._open, None
        self._is_child = True
        if there is not None:
            there.consumer.drop()
            there.feed.drop()
