"""The buffer of SyncMode.NONE: encoded entries of this process that are appended together later.

Holds: what an exception left unappended is still in the buffer, in order; an entry whose `add` raised is not.
A forked child starts with an empty one, because its parent will append what was buffered. No thread exists while the
buffer is empty.
"""

import logging
import threading
from collections.abc import Callable

from walpool.errors import WALError
from walpool.shared.slot_rows import BUFFERED, SlotRow
from walpool.system.threads import start

log = logging.getLogger("walpool")


class Buffer:
    def __init__(
        self,
        append: Callable[[bytes, int, int], int],
        last_published: Callable[[], object],
        limit_bytes: int,
        linger_s: float,
    ) -> None:
        self._append = append  # (body, count, largest entry's bytes) -> first LSN
        self._last_published = last_published  # the last body that this writer published
        self._limit_bytes = limit_bytes
        self._linger_s = linger_s
        self._lock = threading.Lock()
        self._bodies: list[bytes] = []
        self._bytes = 0
        self._largest = 0
        self._timer: threading.Timer | None = None
        self.row: SlotRow | None = None

    def add(self, body: bytes) -> None:
        with self._lock:
            if self._bodies and self._bytes + len(body) > self._limit_bytes:
                self._flush()
            self._bodies.append(body)
            self._bytes += len(body)
            self._largest = max(self._largest, len(body))
            if self.row is not None:
                self.row.words[BUFFERED] = self._bytes
            if self._timer is None:
                self._linger()

    def flush(self) -> None:
        with self._lock:
            if self._bodies:
                self._flush()

    def append_after(self, body: bytes, count: int, largest: int) -> int:
        """Append what is buffered, and then this frame: all of them in the order they came."""
        with self._lock:
            if self._bodies:
                self._flush()
            return self._append(body, count, largest)

    def _flush(self) -> None:
        body = b"".join(self._bodies)
        try:
            self._append(body, len(self._bodies), self._largest)
        except BaseException:
            if self._last_published() is body:  # an interrupt came between the publication and us
                self._bodies, self._bytes, self._largest = [], 0, 0
            raise
        self._bodies, self._bytes, self._largest = [], 0, 0
        if self.row is not None:
            self.row.words[BUFFERED] = 0

    def _linger(self) -> None:
        timer = threading.Timer(self._linger_s, self._lingered)
        timer.daemon = True  # at interpreter exit the writer's atexit hook appends what is left
        start(timer)
        self._timer = timer  # only now: one that an interrupt kept from starting would keep others from being made

    def _lingered(self) -> None:
        with self._lock:
            self._timer = None
            try:
                if self._bodies:
                    self._flush()
            except WALError as error:
                log.warning("buffered entries could not be appended, and stay buffered: %s", error)
                self._linger()

    def stop(self) -> None:
        """No timer outlives its writer."""
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
