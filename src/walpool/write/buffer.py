"""The buffer of SyncMode.NONE: encoded entries of this process that are appended together later.

Holds: an entry whose `add` returned is in the buffer, or in the log, and after `close` in the log; one whose `add`
raised is in neither. What an exception left unappended stays, in order. A forked child starts with an empty one,
because its parent will append what was buffered. No thread exists while the buffer is empty, and none is started, and
nothing is logged, while the buffer's lock is held.
"""

import logging
import threading
from typing import Protocol

from walpool.errors import LogClosed, WALError
from walpool.shared.slot_rows import BUFFERED, SlotRow
from walpool.system.locks import itself, mutex
from walpool.system.threads import Helpers

log = logging.getLogger("walpool")


class Owner(Protocol):
    """The writer of the entries."""

    def append(self, body: bytes, count: int, largest: int) -> int:
        """`largest`: encoded bytes of the largest entry. The first LSN."""

    def last_body(self) -> bytes | None:
        """The last that was published, so that an interrupted caller can tell."""


class Buffer:
    def __init__(
        self,
        path: str,
        owner: Owner,
        limit_bytes: int,
        linger_s: float,
    ) -> None:
        self._path = path
        self._owner = owner
        self._limit_bytes = limit_bytes
        self._linger_s = linger_s
        self._lock = mutex()
        self._bodies: list[bytes] = []
        self._bytes = 0
        self._closed = False
        self._lingering = False  # a thread will append what is here, or is about to be started for that
        self._helpers = Helpers()
        self._wake: threading.Event | None = None  # of that thread
        self.row: SlotRow | None = None

    def add(self, body: bytes) -> None:
        self._check_not_inside()
        start_thread = False
        try:
            with self._lock:
                self._check_open()
                if self._bodies and self._bytes + len(body) > self._limit_bytes:
                    self._flush()
                self._bodies.append(body)
                self._bytes += len(body)
                self._tell()
                start_thread = not self._lingering
                self._lingering = True
            if start_thread:
                self._start_lingering()
        except BaseException:
            self._withdraw(body)
            if start_thread and self._bodies and not self._closed:  # those that others added meanwhile
                self._start_lingering()
            raise

    def flush(self) -> None:
        """Append what is buffered."""
        self._check_not_inside()
        with self._lock:
            self._flush()

    def append_after(self, body: bytes, count: int, largest: int) -> int:
        """Append what is buffered, and then this frame: all of them in the order they came."""
        self._check_not_inside()
        with self._lock:
            self._check_open()
            self._flush()
            return self._owner.append(body, count, largest)

    def close(self) -> None:
        """Append what is buffered and take nothing more. When it cannot be appended the buffer stays open."""
        self._check_not_inside()
        with self._lock:
            self._flush()
            self._closed = True
            wake = self._wake
        if wake is not None:
            wake.set()
            self._helpers.join()

    def _check_not_inside(self) -> None:
        if self._lock._is_owned():
            raise itself(self._path)

    def _check_open(self) -> None:
        if self._closed:
            raise LogClosed(f"{self._path}: the writer is closed")

    def _flush(self) -> None:
        if not self._bodies:
            return
        body = b"".join(self._bodies)
        try:
            self._owner.append(body, len(self._bodies), max(map(len, self._bodies)))
        except BaseException:
            if self._owner.last_body() is body:  # an interrupt came between the publication and us
                self._empty()
            raise
        self._empty()

    def _empty(self) -> None:
        self._bodies, self._bytes = [], 0
        self._tell()

    def _tell(self) -> None:
        if self.row is not None:
            self.row.words[BUFFERED] = self._bytes

    def _withdraw(self, body: bytes) -> None:
        """Its `add` raises: the caller may add it again, so it must not be appended from here as well."""
        with self._lock:
            for at in range(len(self._bodies) - 1, -1, -1):
                if self._bodies[at] is body:
                    del self._bodies[at]
                    self._bytes -= len(body)
                    self._tell()

    # The thread

    def _start_lingering(self) -> None:
        self._lingering = True
        self._wake = wake = threading.Event()  # made now: gevent may have replaced it since the writer was made
        thread = self._helpers.thread(self._linger, "walpool-linger", wake)
        try:
            self._helpers.start(thread)  # at interpreter exit the writer's atexit hook appends what is left
        except BaseException as error:
            self._lingering = False
            if not isinstance(error, RuntimeError):
                raise  # an interrupt; a thread that was started all the same finds that there is nothing to do
            self.flush()  # no thread can be started: then nothing lingers

    def _linger(self, wake: threading.Event) -> None:
        said = ""
        while True:
            wake.wait(self._linger_s)
            try:
                with self._lock:
                    if self._bodies:
                        self._flush()
                    self._lingering = False
                    return
            except (LogClosed, ReferenceError):
                return
            except (WALError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("%s: buffered entries could not be appended, and stay buffered: %s", self._path, error)
