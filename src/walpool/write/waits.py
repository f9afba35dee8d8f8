"""What appends take down of time: waits for the append lock, now and then how long an append takes, and when one was.

Holds: a wait is counted once, by whichever thread comes to count it, outside of the lock; a writer without a row counts
nothing. Neither costs an append that finds the lock free, and is not the one in a thousand, a look at a clock.
"""

from collections.abc import Callable

from walpool.shared.slot_rows import APPEND, DOING, IDLE, LAST_APPEND_NS, SINCE_NS, WAITING, SlotRow
from walpool.system.calls import calls
from walpool.system.locks import LOCK_EX, Flock, ProcessLock

LOCK_NS = 5_000  # a lock that took no longer was free
CONTENDED_FOR = 64  # appends for which a lock that was taken is waited for at once: to try first costs 2 us;
TIMED_WAITS = 8  # of those, one in so many is timed: with all of them 4 writers on 2 cores made 6 per cent less


class Waits:
    contended = 0  # for how many appends more the lock is waited for at once; the core, too, counts it down
    appended_ns = _told_ns = 0  # when the last append was that looked around
    sample = False  # the next append is to be timed: a clock around each would cost 2 per cent

    def __init__(self, lock: ProcessLock, row: SlotRow | None) -> None:
        self._take: Flock = lock.take
        self._fd = lock.fd
        self._row = row
        self._monotonic_ns = calls.monotonic_ns
        self._waited_ns: list[int] = []  # not counted yet

    def begin(self) -> None:
        """The lock was tried, and is not free."""
        self.contended = CONTENDED_FOR + 1

    def take(self) -> None:
        """Wait for the lock."""
        self.contended -= 1
        if self.contended == CONTENDED_FOR:
            self._timed_take(1)
        elif self.contended % TIMED_WAITS:
            self._take(self._fd, LOCK_EX)
        else:
            self._timed_take(TIMED_WAITS)

    def _timed_take(self, weight: int) -> None:
        """Say that we wait, and take it down `weight` times."""
        if self._row is None:
            self._take(self._fd, LOCK_EX)
            return
        words = self._row.words
        words[SINCE_NS] = began = self._monotonic_ns()
        words[DOING] = WAITING
        try:
            self._take(self._fd, LOCK_EX)
        finally:
            words[DOING] = IDLE
        waited_ns = self._monotonic_ns() - began
        if waited_ns > LOCK_NS:
            self._waited_ns += [waited_ns] * weight

    def timed(self, append: Callable[[bytes, int, int], int], *body: *tuple[bytes, int, int]) -> int:
        """`append(*body)`, and take down how long it takes."""
        self.sample = False
        began = calls.monotonic_ns()
        first_lsn = append(*body)
        assert self._row is not None
        self._row.record_ns(APPEND, calls.monotonic_ns() - began)
        return first_lsn

    def not_appended(self) -> None:
        """What looked around was not appended."""
        self.appended_ns = self._told_ns

    def __bool__(self) -> bool:
        return bool(self._waited_ns) or self.appended_ns != self._told_ns

    def count(self) -> None:
        """Outside the lock, with the other chores."""
        if self._row is not None:
            self._row.count_waits(self._waited_ns)
            appended_ns = self.appended_ns
            if appended_ns != self._told_ns:
                self._row.words[LAST_APPEND_NS] = self._told_ns = appended_ns

    def refuse(self, refuse: Flock) -> None:
        """From now on `refuse` takes the lock: the row is somebody else's, or nobody's."""
        self._take = refuse
