"""The committer: makes published batches durable, one sync for everyone who waits.

Holds: the durable LSN is stored in one line, below, by whoever holds sync.lock; it rises only to what was published
before the sync began. A sync that fails is final: the pages may be gone from the cache though a second sync
would succeed, so the log is poisoned for every process until it has been recovered.
Lock: sync.lock, never waited for: who does not get it waits for the durable LSN to pass, and tries again.
"""

import threading
from collections.abc import Callable
from functools import partial
from logging import ERROR

from walpool.errors import LogBusy, LogClosed, LogReplaced, SyncFailed, UnsafeLog, WALError
from walpool.format.names import CONTROL, segment_name
from walpool.opening.opening import OpenLog
from walpool.shared.catalog import list_segments
from walpool.shared.control import (
    DURABLE,
    EXPECTED,
    LAST_SYNC_NS,
    LEADING,
    SYNC_ERRNO,
    SYNC_NS,
    SYNC_OVER,
    SYNCED_BATCHES,
    SYNCS,
    LogState,
)
from walpool.shared.origin import read_origin
from walpool.shared.poison import poison, sync_failed
from walpool.shared.slot_rows import DOING, IDLE, SYNC, SYNC_WAITS, SYNCING, SYNCS_LED, SlotRow
from walpool.shared.slots import leading
from walpool.shared.wakeups import Wakeups
from walpool.system.calls import calls
from walpool.system.failures import in_words, over, say_once
from walpool.system.files import File
from walpool.system.threads import Helpers, Waker, leave

NOT_IN_FORCE = (
    "the control block was removed or replaced while the log was open: what was appended since then may not count, and"
    " is not durable; close every writer of this log and open it again"
)
# Who waits for somebody else's sync is woken when that is over. Where nobody can be woken he sleeps for most of the
# time that the last sync took, and then looks at the durable LSN again and again: a sleep that is too long delays every
# writer of the log, a look costs 1 us and a wake-up.
UNSEEN = 0.8e-9  # this share of the last sync's ns is slept through,
LOOK_AGAIN_S = 60e-6  # and so much between two looks after that
LONGEST_NS = 20_000_000  # a sync that took longer had many bytes to write: the next one will not
# The block may name a leader that was killed: after so many looks, or so long a sleep, and once before it gives up,
# one tries to lead all the same.
TRY_ANYWAY = 16
ASLEEP_S = 20e-3
GATHER_S = 50e-6  # the most a leader waits for the batches it expects


class Committer:
    def __init__(self, opened: OpenLog, row: SlotRow | None, lock_timeout_s: float | None) -> None:
        self._log = opened
        self._row = row
        self._words = opened.control.words
        self._news = Wakeups(opened.control, SYNC_OVER)
        self._lock = opened.sync_lock
        self._lock_timeout_s = lock_timeout_s
        self._synced: File | None = None  # the active segment, as the leader last synced it
        self._directory_synced = 0  # first LSN of the last segment whose name is known to be durable
        self._closed = False
        self._promised = 0, 0.0  # with an interval: the LSN up to which all is to be durable, and by when
        self._again = False  # something was appended since the thread last synced
        self._helpers = Helpers()
        self._thread: threading.Thread | None = None
        self._wakers: set[Waker] = set()  # of the threads

    def settle(self, lsn: int, *, background: bool = False) -> int:
        """Return when everything up to `lsn` is on disk: the durable LSN then.

        Raises SyncFailed: of a sync, which is final, or because none could be tried, which is not; LogBusy when another
        process has been at it for longer than the lock timeout; LogReplaced when nobody can find what would be synced.
        In the background it waits for as long as it takes, but ends with LogClosed as soon as `close` is called.
        """
        try:
            return self._settle(lsn, background)
        except (OSError, UnsafeLog) as error:
            if isinstance(error, (SyncFailed, LogBusy, LogReplaced)):
                raise
            raise SyncFailed(
                getattr(error, "errno", None) or 5,
                f"{in_words(error)}; up to LSN {lsn} the log is appended and not known to be on disk;"
                " sync() tries again",
            ) from error

    def _settle(self, lsn: int, background: bool) -> int:
        words, row = self._words, self._row
        if words[DURABLE] >= lsn:
            return words[DURABLE]
        if row is not None:
            row.doing(SYNCING)
        try:
            return self._wait_or_lead(lsn, background)
        finally:
            if row is not None:
                row.words[DOING] = IDLE

    def _wait_or_lead(self, lsn: int, background: bool) -> int:
        words = self._words
        give_up = None
        if self._lock_timeout_s is not None and not background:
            give_up = calls.monotonic() + self._lock_timeout_s
        looks = 0
        mine: list[int] = []  # durable LSNs that a sync of this very call gave
        overslept = False
        while words[DURABLE] < lsn:
            if self._log.control.is_poisoned:
                raise self._failed()
            if background and self._closed:
                raise LogClosed(f"{self._log.directory.path}: the writer was closed by another thread")
            late = give_up is not None and calls.monotonic() >= give_up
            impatient = overslept or late or looks % TRY_ANYWAY == TRY_ANYWAY - 1
            if (impatient or not words[LEADING]) and self._try_lead(lsn, mine):
                continue
            if late and words[DURABLE] < lsn:  # whoever had the lock may have been done meanwhile
                raise LogBusy(
                    f"{self._lock.file.path}: LSN {lsn} is not known to be on disk after {self._lock_timeout_s} s"
                    f"{leading(self._log.control)}"
                )
            look_again_s = max(LOOK_AGAIN_S, 0 if looks else min(words[LAST_SYNC_NS], LONGEST_NS) * UNSEEN)
            began = calls.monotonic()
            longest_s = ASLEEP_S if give_up is None else max(0.0, min(ASLEEP_S, give_up - began))
            self._news.wait(lambda: words[DURABLE] >= lsn or not words[LEADING], longest_s, look_again_s)
            overslept = calls.monotonic() - began >= ASLEEP_S
            looks += 1
        if looks and not mine and self._row is not None and not background:
            self._row.add(SYNC_WAITS)
        return words[DURABLE]

    def _try_lead(self, lsn: int, mine: list[int]) -> bool:
        """False: another process is at it. Whatever came out, who waits for that is woken once the lock is free."""
        try:
            led = self._lock.try_run(partial(self._lead, lsn, mine))
        except BaseException:
            self._news.wake(self._words[SYNCS])
            raise
        if led:
            self._news.wake(self._words[SYNCS])
        return bool(led)

    def _lead(self, lsn: int, mine: list[int]) -> bool:
        """Sync what is published. Lock: sync."""
        words = self._words
        durable_lsn = words[DURABLE]
        if durable_lsn >= lsn:
            return True
        if self._log.control.is_poisoned:
            raise self._failed()  # since we looked: a sync may succeed now, and the disk have nothing
        words[LEADING] = self._log.slot + 1
        try:
            self._gather()
            state = self._log.control.state()  # noted before the sync begins
            began = calls.monotonic()  # no wall clock: one that stands still would never end a wait
            self._sync(durable_lsn, state)
        finally:
            words[LEADING] = 0
        words[DURABLE] = state.next_lsn - 1
        mine.append(state.next_lsn - 1)
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

        Then look that the names lead to what was synced: what nobody can open is not durable. An error of a sync
        poisons the log; one of opening a file, or of that look, does not: nothing was lost by it.
        """
        directory = self._log.directory
        new = state.segment != self._directory_synced
        if self._synced is None or self._synced_lsn != state.segment:
            self._use(directory.open(segment_name(state.segment)), state.segment)
        assert self._synced is not None
        if state.segment > durable_lsn + 1:
            for first_lsn in self._sealed(durable_lsn, state):
                try:
                    sealed = directory.open(segment_name(first_lsn))
                except FileNotFoundError:
                    self._check_removed(first_lsn)
                    continue
                try:
                    self._or_poison(sealed.sync)
                    self._check_name(first_lsn, sealed, sealed=True)
                finally:
                    sealed.close()
        self._or_poison(self._synced.sync)
        if new:
            self._or_poison(directory.sync)
        self._check_name(state.segment, self._synced, sealed=False)
        self._log.check_path()
        if directory.identity(CONTROL) != self._log.control.file.place:
            raise LogReplaced(directory.join(CONTROL), NOT_IN_FORCE)
        self._directory_synced = state.segment

    def _check_name(self, first_lsn: int, file: File, *, sealed: bool) -> None:
        """Raises UnsafeLog unless a segment's name leads to the file that was synced."""
        found = self._log.directory.identity(segment_name(first_lsn))
        if sealed and found is None:
            self._check_removed(first_lsn)
        elif found != file.place:
            raise self._replaced(first_lsn)

    def _check_removed(self, first_lsn: int) -> None:
        """A sealed segment is gone: nobody needs it durable if that was retention."""
        origin = read_origin(self._log.directory)
        if origin is not None and origin.first_lsn <= first_lsn:
            raise self._replaced(first_lsn)

    def _replaced(self, first_lsn: int) -> LogReplaced:
        return LogReplaced(
            self._log.directory.join(segment_name(first_lsn)),
            "the segment was removed or replaced while the log was open: what was appended to it is nowhere to be"
            " found, and is not durable; close every writer of this log and open it again",
        )

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

    _synced_lsn = 0  # first LSN of the segment that `_synced` is

    def _use(self, file: File, first_lsn: int) -> None:
        old, self._synced, self._synced_lsn = self._synced, file, first_lsn
        if old is not None:
            old.close()

    def _failed(self) -> SyncFailed:
        return sync_failed(self._log.directory.path, self._words[SYNC_ERRNO], self._words[DURABLE])

    # SyncMode.NORMAL with an interval

    def sync_within(self, seconds: float, and_then: Callable[[], None]) -> None:
        """Make what this writer has appended durable, `seconds` from now; `and_then` asks for the next call.

        When syncs take so long that something is not durable after twice the time, this waits for the disk itself: so
        what is appended and not durable is bounded, however slow the disk is.
        """
        words = self._words
        lsn, due = self._promised
        if words[DURABLE] >= lsn:
            self._promised = self._log.control.state().next_lsn - 1, calls.monotonic() + 2 * seconds
        elif calls.monotonic() > due:
            self.settle(lsn)
        self._again = True  # before the look at the thread, which looks here after it has ended its turn
        there = self._thread
        if (there is None or self._helpers.refused(there)) and not self._closed:
            waker = Waker()
            self._wakers.add(waker)
            thread = self._helpers.thread(self._sync_now_and_then, "walpool-interval", waker, seconds, and_then)
            self._thread = thread
            try:
                self._helpers.start(thread)
            except BaseException:
                if not self._helpers.will_run(thread):
                    self._thread = None
                if self._helpers.refused(thread):  # else it may run all the same, and has to be woken
                    self._wakers.discard(waker)
                raise

    def _sync_now_and_then(self, waker: Waker, seconds: float, and_then: Callable[[], None]) -> None:
        try:
            self._sync_while_wanted(waker, seconds, and_then)
        finally:
            self._wakers.discard(waker)

    def _sync_while_wanted(self, waker: Waker, seconds: float, and_then: Callable[[], None]) -> None:
        path = self._log.directory.path
        while self._again:
            waker.wait(seconds)
            if self._closed:
                return
            self._again = False
            and_then()  # both first: an append that comes during the sync needs the next one
            try:
                self.settle(self._log.control.state().next_lsn - 1, background=True)
            except LogClosed:
                return  # close() has settled what this was for
            except (WALError, OSError) as error:
                say_once(path, "interval", in_words(error), ERROR)  # the next append says so to its caller, if it lasts
            else:
                over(path, "interval")
            if not self._again:
                self._thread = None  # and look once more: an append may have seen the thread a moment ago
                if self._again:
                    self._thread = threading.current_thread()

    def stop(self) -> None:
        """What waits in the background gives up."""
        self._closed = True
        for waker in list(self._wakers):
            waker.set()

    def close(self) -> None:
        """When nobody is in a call any more."""
        self.stop()
        self._helpers.join()
        try:
            with self._lock.mutex:
                self._lock.drop()
                if self._synced is not None:
                    self._synced.close()
        finally:
            leave(self._lock.mutex)
