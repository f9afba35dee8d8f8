"""The committer: makes published batches durable, one sync for everyone who waits.

Holds: the durable LSN is stored in one line, below, by whoever holds sync.lock; it rises only to what was published
before the sync began. A sync that fails is final: the pages may be gone from the cache though a second sync
would succeed, so the log is poisoned for every process until it has been recovered.
Lock: sync.lock, never waited for: who does not get it waits for the durable LSN to pass, and tries again.
"""

import logging
import threading
from collections.abc import Callable

from walpool.errors import LogClosed, SyncFailed, UnsafeLog, WALError
from walpool.format.names import segment_name
from walpool.shared.catalog import list_segments
from walpool.shared.control import (
    DURABLE,
    EXPECTED,
    LAST_SYNC_NS,
    LEADING,
    POISONED,
    STOPPED,
    SYNC_ERRNO,
    SYNC_NS,
    SYNCED_BATCHES,
    SYNCS,
    LogState,
)
from walpool.shared.poison import poison, sync_failed
from walpool.shared.slot_rows import DOING, IDLE, SYNC, SYNC_WAITS, SYNCING, SYNCS_LED, SlotRow
from walpool.system.calls import calls
from walpool.system.files import File
from walpool.system.locks import LOCK_UN, try_lock
from walpool.system.threads import start
from walpool.upkeep.opening import OpenLog

log = logging.getLogger("walpool")

LOOK_AGAIN_S = 60e-6  # a waiter's sleep between two looks at the durable LSN, once the sync should be over
TRY_ANYWAY = 16  # looks after which a waiter tries to lead though a leader seems to be at work: it may be dead
GATHER_S = 50e-6  # the most a leader waits for the batches it expects
UNSEEN = 0.8e-9  # of the ns the last sync took: how long a waiter does not look at all
LONGEST_NS = 20_000_000  # a sync of many bytes says nothing about the next one


class Committer:
    def __init__(self, opened: OpenLog, row: SlotRow | None) -> None:
        self._log = opened
        self._row = row
        self._words = opened.control.words
        self._mutex = threading.Lock()  # one leader among our threads
        self._synced: File | None = None  # the active segment, as the leader last synced it
        self._directory_synced = 0  # first LSN of the last segment whose name is known to be durable
        self._closed = False
        self._timer: threading.Timer | None = None

    def settle(self, lsn: int) -> int:
        """Return when everything up to `lsn` is on disk: the durable LSN then.

        Raises SyncFailed: of a sync, which is final, or because none could be tried, which is not.
        """
        try:
            return self._settle(lsn)
        except (OSError, UnsafeLog) as error:
            if isinstance(error, SyncFailed):
                raise
            raise SyncFailed(
                getattr(error, "errno", None) or 5,
                f"{error}; up to LSN {lsn} the log is appended and not known to be on disk; sync() tries again",
            ) from error

    def _settle(self, lsn: int) -> int:
        words, row = self._words, self._row
        if words[DURABLE] >= lsn:
            return words[DURABLE]
        if row is not None:
            row.doing(SYNCING)
        try:
            return self._wait_or_lead(lsn)
        finally:
            if row is not None:
                row.words[DOING] = IDLE

    def _wait_or_lead(self, lsn: int) -> int:
        words, halves = self._words, self._log.control.halves
        looks = 0
        while words[DURABLE] < lsn:
            if halves[STOPPED] == POISONED:
                raise self._failed()
            if (not words[LEADING] or looks % TRY_ANYWAY == TRY_ANYWAY - 1) and self._lead(lsn):
                continue
            calls.sleep(max(LOOK_AGAIN_S, 0 if looks else min(words[LAST_SYNC_NS], LONGEST_NS) * UNSEEN))
            looks += 1
        if looks and self._row is not None:
            self._row.add(SYNC_WAITS)
        return words[DURABLE]

    def _lead(self, lsn: int) -> bool:
        """Sync what is published, if nobody else is at it."""
        if self._mutex.locked():
            return False
        with self._mutex:
            if self._closed:
                raise LogClosed(f"{self._log.directory.path}: the writer was closed by another thread")
            fd = self._log.sync_lock.fd
            try:
                if not try_lock(fd):
                    return False
                words = self._words
                durable_lsn = words[DURABLE]
                if durable_lsn >= lsn:
                    return True
                words[LEADING] = 1
                self._gather()
                state = self._log.control.state()  # noted before the sync begins
                began = calls.monotonic()  # no wall clock: one that stands still would never end a wait
                try:
                    self._sync(durable_lsn, state)
                finally:
                    words[LEADING] = 0
                words[DURABLE] = state.next_lsn - 1
                took_ns = int((calls.monotonic() - began) * 1e9)
                words[SYNCS] = words[SYNCS] + 1
                words[SYNC_NS] = words[SYNC_NS] + took_ns
                words[LAST_SYNC_NS] = min(took_ns, LONGEST_NS)
                words[EXPECTED] = max(0, self._log.control.state().batches - words[SYNCED_BATCHES])
                words[SYNCED_BATCHES] = state.batches
                if self._row is not None:
                    self._row.add(SYNCS_LED)
                    self._row.record_ns(SYNC, took_ns)
                return True
            finally:
                calls.flock(fd, LOCK_UN)

    def _gather(self) -> None:
        """Wait a moment for the writers that the last sync let go: one sync for them and for those it left waiting.

        With what it left waiting counted in, 8 writers share a sync by 5.9 instead of 5.1 and 16 by 10 instead of 9.5.
        """
        words = self._words
        wanted = words[SYNCED_BATCHES] + words[EXPECTED]
        give_up = calls.monotonic() + GATHER_S
        while self._log.control.state().batches < wanted and calls.monotonic() < give_up:
            calls.sleep(0)

    def _sync(self, durable_lsn: int, state: LogState) -> None:
        """Sync every segment with entries above `durable_lsn`, in order, and the directory if one is new.

        An error of a sync poisons the log; one of opening a file does not: nothing was lost by it.
        """
        directory = self._log.directory
        new = state.segment != self._directory_synced
        if self._synced is None or new:
            self._use(directory.open(segment_name(state.segment)))
        assert self._synced is not None
        if state.segment > durable_lsn + 1:
            for first_lsn in self._sealed(durable_lsn, state):
                try:
                    sealed = directory.open(segment_name(first_lsn))
                except FileNotFoundError:
                    continue  # removed by retention: nobody needs it durable
                try:
                    self._or_poison(sealed.sync)
                finally:
                    sealed.close()
        self._or_poison(self._synced.sync)
        if new:
            self._or_poison(directory.sync)
            self._directory_synced = state.segment

    def _sealed(self, durable_lsn: int, state: LogState) -> list[int]:
        """Sealed segments that may have entries above `durable_lsn`."""
        sealed = [first for first in list_segments(self._log.directory) if first < state.segment]
        while len(sealed) > 1 and sealed[1] <= durable_lsn + 1:
            del sealed[0]
        return sealed

    def _or_poison(self, sync: Callable[[], None]) -> None:
        try:
            sync()
        except OSError as error:
            poison(self._log.directory, self._log.control, error.errno or 5)
            raise self._failed() from error

    def _use(self, file: File) -> None:
        old, self._synced = self._synced, file
        if old is not None:
            old.close()

    def _failed(self) -> SyncFailed:
        return sync_failed(self._log.directory.path, self._words[SYNC_ERRNO], self._words[DURABLE])

    def sync_within(self, seconds: float, and_then: Callable[[], None]) -> None:
        """Make what is published by then durable, `seconds` from now; then `and_then`, for the next append."""
        if self._timer is not None:
            return  # it waits already, and will cover this too
        timer = threading.Timer(seconds, self._sync_published, (and_then,))
        timer.daemon = True
        start(timer)
        self._timer = timer

    def _sync_published(self, and_then: Callable[[], None]) -> None:
        self._timer = None
        and_then()  # both first: an append that comes during the sync needs the next one
        try:
            self.settle(self._log.control.state().next_lsn - 1)
        except LogClosed:
            pass  # close() has settled what this timer was for
        except (WALError, OSError) as error:
            log.error("%s", error)  # the log is poisoned: the next append says so to its caller

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._mutex:
            self._closed = True
            if self._synced is not None:
                self._synced.close()
