"""A feed: what comes next for a cursor, of what is durable; it makes durable what nobody else does.

After a power cut, LSNs above the durable one are given again, to other entries: whoever had gone past them would never
see those. So nothing else is handed out.

Holds: one thread at a time moves it; `close` in another ends that thread's iteration with LogClosed.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from walpool.consume.consumer import Consumer
from walpool.errors import LogClosed, LSNUnavailable
from walpool.format.entry import WALEntry
from walpool.read.reading import ReadBatch, Reading
from walpool.system.locks import itself
from walpool.system.threads import leave, mutex

E = TypeVar("E")
_Result = TypeVar("_Result")


class Feed(Generic[E], ABC):
    """As `read.follow` follows it."""

    is_over = False

    def __init__(self, consumer: Consumer, name: str) -> None:
        self._consumer = consumer
        self._name = name
        self._mutex = mutex()
        self._closed = False
        self.first_lsn = 0  # what is below it was found to be removed
        self.reading: Reading[bytes] | None = None
        self.pending: Iterator[E] = iter(())

    @abstractmethod
    def start_lsn(self) -> int:
        """The LSN that a new reading begins with."""

    @abstractmethod
    def take(self) -> bool:
        """Have in hand what comes next."""

    def has_news(self, durable_only: bool) -> bool:
        return self.alone(self._look)

    def advance(self, durable_only: bool) -> bool:
        return self.alone(self.take)

    def check_log(self) -> None:
        self.alone(self._check)

    def wait(self, durable_only: bool, longest_s: float, look_again_s: float) -> None:
        reading = self.reading
        try:
            if reading is not None:
                reading.wait(False, longest_s, look_again_s)  # what is only published, we make durable
        except (ValueError, AttributeError):  # another thread has closed what we wait with
            if not self._closed:
                raise

    def _check(self) -> None:
        self._consumer.check_sound()
        self.opened().check_log()

    def _look(self) -> bool:
        """Whether there is more that is durable, once what is published is made so."""
        reading = self.opened()
        if reading.has_news(True):
            return True
        last_lsn = self._consumer.last_lsn
        if last_lsn < reading.cursor.unread_lsn:
            return False
        self._consumer.settle(last_lsn)
        return True

    def opened(self) -> Reading[bytes]:
        if self.reading is None:
            self.reading = self._consumer.reading(self.start_lsn())
        return self.reading

    def restart(self) -> None:
        """Read from `start_lsn` on."""
        reading, self.reading = self.reading, None
        if reading is not None:
            reading.close()

    def alone(self, body: Callable[[], _Result]) -> _Result:
        if self._mutex._is_owned():
            raise itself(self._consumer.path)
        try:
            return self._run(body)  # a frame of its own: see ProcessLock.run
        except LSNUnavailable as error:
            self.first_lsn = error.first_available
            self.restart()
            self._consumer.settle(error.first_available - 1)  # whoever passes it by commits that
            raise LSNUnavailable(error.lsn, error.first_available, self._consumer.path, self._name) from None
        finally:
            leave(self._mutex)

    def _run(self, body: Callable[[], _Result]) -> _Result:
        with self._mutex:
            if self._closed:
                raise LogClosed(f"{self._consumer.path}: the cursor is closed")
            return body()

    def drop_in_hand(self) -> None:
        """Whoever holds the iterator gets LogClosed, and not the rest of it."""
        deque(self.pending, 0)

    def close(self) -> None:
        self._closed = True
        self.drop_in_hand()
        if not self._mutex._is_owned():  # else the very call that we interrupt has to end first
            with self._mutex:
                self.restart()

    def drop(self) -> None:
        """In a forked child, where another thread of the parent may have been inside."""
        self._closed = True
        self.drop_in_hand()
        self._mutex = mutex()
        self.restart()


class Entries(Feed[WALEntry[bytes]]):
    """A cursor's. `wanted` is the first LSN that was not committed: what is before it is passed by."""

    def __init__(self, consumer: Consumer, name: str, wanted: Callable[[], int]) -> None:
        super().__init__(consumer, name)
        self._wanted = wanted
        self._first_lsn = 0  # that was not handed out, where a batch was begun

    def start_lsn(self) -> int:
        return max(self._first_lsn, self._wanted())

    def opened(self) -> Reading[bytes]:
        reading = self.reading
        if reading is not None and reading.next_lsn < self._wanted():
            self.restart()
        return super().opened()

    def take(self) -> bool:
        reading = self.opened()
        taken = reading.take(self._consumer.durable_lsn)
        reading.count()
        self.pending = reading.pending
        return taken

    def put_back(self) -> None:
        """What is left of a batch that was begun."""
        self.alone(self._put_back)

    def _put_back(self) -> None:
        reading = self.reading
        if reading is not None and reading.left:
            self._first_lsn = reading.next_lsn
            self.drop_in_hand()
            self.restart()

    def next_batch(self) -> ReadBatch[bytes] | None:
        return self.alone(lambda: self.opened().next_batch(self._consumer.durable_lsn))


class Batches:
    """The same, batch by batch."""

    is_over = False

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self.pending: Iterator[ReadBatch[bytes]] = iter(())

    def has_news(self, durable_only: bool) -> bool:
        self._entries.put_back()
        return self._entries.has_news(durable_only)

    def advance(self, durable_only: bool) -> bool:
        batch = self._entries.next_batch()
        self.pending = iter(() if batch is None else (batch,))
        return batch is not None

    def check_log(self) -> None:
        self._entries.check_log()

    def wait(self, durable_only: bool, longest_s: float, look_again_s: float) -> None:
        self._entries.wait(durable_only, longest_s, look_again_s)
