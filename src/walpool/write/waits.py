"""Waits for the append lock: taken down while somebody waits, counted later, outside of the lock.

Holds: a wait is counted once, by whichever thread comes to count it; a writer without a row counts nothing.
"""

from walpool.shared.slot_rows import DOING, IDLE, SINCE_NS, WAITING, SlotRow
from walpool.system.calls import calls
from walpool.system.locks import LOCK_EX, ProcessLock

LOCK_NS = 5_000  # a lock that took no longer was free


class Waits:
    def __init__(self, lock: ProcessLock, row: SlotRow | None) -> None:
        self._lock = lock
        self._row = row
        self._monotonic_ns = calls.monotonic_ns
        self._waited_ns: list[int] = []  # not counted yet

    def wait(self, weight: int) -> None:
        """Wait for the lock, say so, and take it down `weight` times."""
        if self._row is None:
            self._lock.take(self._lock.fd, LOCK_EX)
            return
        words = self._row.words
        words[SINCE_NS] = began = self._monotonic_ns()
        words[DOING] = WAITING
        try:
            self._lock.take(self._lock.fd, LOCK_EX)
        finally:
            words[DOING] = IDLE
        waited_ns = self._monotonic_ns() - began
        if waited_ns > LOCK_NS:
            self._waited_ns += [waited_ns] * weight

    def __bool__(self) -> bool:
        return bool(self._waited_ns)

    def count(self) -> None:
        """Outside the lock, with the other chores."""
        if self._row is not None:
            self._row.count_waits(self._waited_ns)
