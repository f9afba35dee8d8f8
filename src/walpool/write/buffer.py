"""The buffer of SyncMode.NONE: encoded entries of this process that are appended together later.

Holds: what an exception left unappended is still in the buffer, in order; an entry whose `add` raised is not.
A forked child starts with an empty one, because its parent will append what was buffered.
"""

import threading
from collections.abc import Callable


class Buffer:
    def __init__(self, append: Callable[[bytes, int, int], int], limit_bytes: int) -> None:
        self._append = append  # (body, count, largest entry's bytes)
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._bodies: list[bytes] = []
        self._bytes = 0
        self._largest = 0

    def add(self, body: bytes) -> None:
        with self._lock:
            if self._bodies and self._bytes + len(body) > self._limit_bytes:
                self._flush()
            self._bodies.append(body)
            self._bytes += len(body)
            self._largest = max(self._largest, len(body))

    def flush(self) -> None:
        with self._lock:
            if self._bodies:
                self._flush()

    def _flush(self) -> None:
        self._append(b"".join(self._bodies), len(self._bodies), self._largest)
        self._bodies, self._bytes, self._largest = [], 0, 0
