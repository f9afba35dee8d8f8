"""The buffer of SyncMode.NONE: encoded entries of this process that are appended together later.

Holds: an entry whose `add` returned is in the buffer, or in the log, and after `close` in the log; one whose `add`
raised is in neither. What an exception left unappended stays, in order. A forked child starts with an empty one,
because its parent will append what was buffered. No thread exists while the buffer is empty, and none is started, and
nothing is logged, while the buffer's lock is held.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar
from weakref import ref

from walpool.errors import LogClosed, WALError
from walpool.format.entry import Body
from walpool.shared.slot_rows import BUFFERED, SlotRow
from walpool.system.failures import in_words, over, say_once
from walpool.system.locks import itself
from walpool.system.threads import Helpers, Waker, leave, mutex

_Result = TypeVar("_Result")


class Owner(Protocol):
    """The writer of the entries. The buffer has no reference to it: a cycle would keep an open log too long."""

    def append_for(self, buffer: "Buffer", body: Body) -> int:
        """The first LSN, or 0 in a child that was forked meanwhile: what was in the buffer, or on its way into it, is
        the parent's to append.
        """

    def published(self, data: bytes) -> bool:
        """Whether this was the last body that was published, for an interrupted caller."""

    def do_chores(self) -> None:
        """What appends have left to do; they may start threads."""


class Buffer:
    def __init__(
        self,
        path: str,
        limit_bytes: int,
        linger_s: float,
    ) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._linger_s = linger_s
        self._lock = mutex()
        self._bodies: list[bytes] = []
        self._bytes = 0
        self._closed = False
        self._lingering = False  # a thread will append what is here, or is about to be started for that
        self._helpers = Helpers()
        self._wakers: set[Waker] = set()  # of the threads
        self.row: SlotRow | None = None

    def add(self, body: bytes, owner: Owner) -> None:
        """Take an entry."""
        self._check_not_inside()
        start_thread = False
        try:
            start_thread = self._add(body, owner)  # a frame of its own: see ProcessLock.run
            if start_thread:
                self._start_lingering(owner)
            owner.do_chores()
        except BaseException:
            leave(self._lock)
            self._withdraw(body)
            if self._bodies and not self._closed and (start_thread or not self._lingering):  # of others, meanwhile
                self._start_lingering(owner)
            raise

    def flush(self, owner: Owner) -> None:
        """Append what is buffered."""
        self._alone(partial(self._flush, owner))
        owner.do_chores()

    def append_after(self, body: Body, owner: Owner) -> int:
        """Append what is buffered, and then this frame: all of them in the order they came.

        The first LSN; 0 in a child that was forked in the middle of it: then it is still to be done.
        """

        def append() -> int:
            self._check_open()
            self._flush(owner)
            return owner.append_for(self, body)

        first_lsn = self._alone(append)
        owner.do_chores()
        return first_lsn

    def close(self, owner: Owner) -> None:
        """Append what is buffered and take nothing more. When it cannot be appended the buffer stays open."""

        def close() -> None:
            self._flush(owner)
            self._closed = True

        self._alone(close)
        for waker in list(self._wakers):
            waker.set()
        self._helpers.join()

    def _alone(self, body: Callable[[], _Result]) -> _Result:
        self._check_not_inside()
        try:
            return self._locked(body)
        except BaseException:
            leave(self._lock)
            raise

    def _locked(self, body: Callable[[], _Result]) -> _Result:
        with self._lock:
            return body()

    def _add(self, body: bytes, owner: Owner) -> bool:
        """Whether nobody will append it in time so far."""
        with self._lock:
            self._check_open()
            if self._bodies and self._bytes + len(body) > self._limit_bytes:
                self._flush(owner)
            self._bodies.append(body)
            self._bytes += len(body)
            self._tell()
            alone, self._lingering = not self._lingering, True
            return alone

    def _check_not_inside(self) -> None:
        if self._lock._is_owned():
            raise itself(self._path)

    def _check_open(self) -> None:
        if self._closed:
            raise LogClosed(f"{self._path}: the writer is closed")

    def _flush(self, owner: Owner) -> None:
        """Append all of it as one frame; what an exception left unappended stays. Lock: the buffer's."""
        if not self._bodies:
            return
        data = b"".join(self._bodies)
        try:
            owner.append_for(self, Body(data, len(self._bodies), max(map(len, self._bodies))))
            self._bodies, self._bytes = [], 0
            self._tell()
        except BaseException:
            if owner.published(data):  # an interrupt came between the publication and here
                self._bodies, self._bytes = [], 0
            raise

    def _tell(self) -> None:
        row = self.row
        if row is not None:
            try:
                row.words[BUFFERED] = self._bytes
            except ValueError:
                pass  # it is closed, or this is a forked child, and it was the parent's

    def _withdraw(self, body: bytes) -> None:
        """Its `add` raises: the caller may add it again, so it must not be appended from here as well."""
        try:
            with self._lock:
                for at in range(len(self._bodies) - 1, -1, -1):
                    if self._bodies[at] is body:
                        del self._bodies[at]
                self._bytes = sum(map(len, self._bodies))  # whatever the interrupt kept from being counted
                self._tell()
        finally:
            leave(self._lock)

    # The thread

    def _start_lingering(self, owner: Owner) -> None:
        self._lingering = True
        for other in list(self._wakers):
            other.set()  # of a thread whose start was interrupted: it finds that there is nothing to do
        waker = Waker()
        self._wakers.add(waker)
        thread = self._helpers.thread(self._linger, "walpool-linger", waker, ref(owner))
        try:
            self._helpers.start(thread)  # at interpreter exit the writer's atexit hook appends what is left
        except BaseException as error:
            self._lingering = False
            if self._helpers.refused(thread):  # else it may run all the same, and has to be woken
                self._wakers.discard(waker)
            if not isinstance(error, RuntimeError):
                raise  # an interrupt; a thread that was started all the same finds that there is nothing to do
            self.flush(owner)  # no thread can be started: then nothing lingers

    def _linger(self, waker: Waker, owned_by: "ref[Owner]") -> None:
        try:
            self._append_when_due(waker, owned_by)
        finally:
            self._wakers.discard(waker)

    def _append_when_due(self, waker: Waker, owned_by: "ref[Owner]") -> None:
        """The thread: append after `linger_s` what is here then, and end; where that fails, wait and try again.

        It has a weak reference to the writer, so that a thread which waits keeps no writer that nobody else has.
        """
        while True:
            waker.wait(self._linger_s)
            owner = owned_by()
            if owner is None:
                return  # it was freed, and has closed the buffer
            try:
                with self._lock:
                    if self._bodies:
                        self._flush(owner)
                    self._lingering = False
                over(self._path, "buffer")
                owner.do_chores()
                return
            except LogClosed:
                return
            except (WALError, OSError) as error:
                text = f"{self._path}: buffered entries could not be appended, and stay buffered: {in_words(error)}"
                say_once(self._path, "buffer", text)
