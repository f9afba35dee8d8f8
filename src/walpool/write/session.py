"""A session: an open log and all that works on it, from the opening to the close.

Holds: calls come and go, each counted while it is inside; what is open is closed when the last of them has left, so no
call ever uses a descriptor number that may be another file's by then. `close` waits for other threads' calls; a call of
the very thread that closes (it was interrupted by whoever closes) ends first, and then closes what was left to it.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

from walpool.errors import LogBusy, LogClosed, WALError
from walpool.opening.opening import OpenLog
from walpool.options import WriterOptions
from walpool.shared.counters import ProcessCounters
from walpool.shared.slot_rows import SlotRow
from walpool.system.calls import calls
from walpool.system.failures import in_words, over, say_once
from walpool.write.appender import Appender, SharingAppender
from walpool.write.chores import Chores
from walpool.write.committer import Committer
from walpool.write.coordinator import Coordinator
from walpool.write.waits import Waits

LOOK_AGAIN_S = 100e-6
LONGEST_S = 5e-3
_Result = TypeVar("_Result")


class Left(LogClosed):
    """The session is closed, or about to be, and nothing was done; the writer may have another session by now."""


class Session:
    def __init__(self, log: OpenLog, options: WriterOptions, row: SlotRow | None, counters: ProcessCounters) -> None:
        self.log = log
        self.row = row
        self._lock_timeout_s = options.lock_timeout
        self.committer = Committer(log, row, options.lock_timeout)
        self.coordinator = Coordinator(log, options, self.committer)
        waits = Waits(log.append_lock, row)
        self.chores = Chores(waits, self.coordinator, self.committer, options.sync_interval_s, counters)
        kind = SharingAppender if row is not None and row.shared else Appender
        self.appender = kind(log, options, row, waits, self.chores)
        self._inside: dict[object, int] = {}  # calls under way: a token of each one's own, and its thread
        self.closing = False
        self.forked = False  # this is a child, and all of it was its parent's
        self._open = [True]  # popped, which no interrupt and no thread can do twice, by the one that closes

    def call(self, body: Callable[[], _Result]) -> _Result:
        """`body()`, with everything open until it has returned. Raises Left once `close` was called."""
        token = object()
        try:
            try:
                self._inside[token] = threading.get_ident()  # first: whoever closes looks here after it has said so
                if self.closing:
                    raise Left(f"{self.log.directory.path}: the writer is closed")
                return body()
            finally:
                self._inside.pop(token, None)
        except BaseException:
            self._inside.pop(token, None)  # an interrupt may have come before the one above
            raise
        finally:
            if self.closing:
                self.close_if_left()

    def do_chores(self) -> None:
        """What appends have left to do. No error comes out: the append succeeded."""
        path = self.log.directory.path
        try:
            if self.closing:
                self.close_if_left()  # somebody interrupted the append to close the writer
            else:
                self.call(self.chores.do)
                over(path, "chores")
        except LogClosed:
            pass
        except BaseException as error:
            if self.forked:
                return  # a child, forked in the middle of it: these are its parent's
            if not isinstance(error, (OSError, RuntimeError, WALError)):  # RuntimeError: no thread can be started
                raise
            say_once(path, "chores", f"{path}: {in_words(error)}; the next append tries again")

    def close(self) -> None:
        """No new calls from now on. Raises LogBusy when other threads' calls take longer than the lock timeout: then
        the last of them closes what is open.
        """
        self.closing = True
        self.coordinator.stop()
        self.committer.stop()
        mine = threading.get_ident()
        if mine in list(self._inside.values()):
            return  # two that are inside and waited for each other would wait for ever: the last to leave closes
        give_up = None if self._lock_timeout_s is None else calls.monotonic() + self._lock_timeout_s
        pause = LOOK_AGAIN_S
        while self._inside:
            if give_up is not None and calls.monotonic() >= give_up:
                raise LogBusy(
                    f"{self.log.directory.path}: another thread's call has not ended within {self._lock_timeout_s} s;"
                    " the log is closed when it has"
                )
            calls.sleep(pause)
            pause = min(2 * pause, LONGEST_S)
        self.close_if_left()

    def close_if_left(self) -> None:
        """Close, once: by whoever finds that nobody is inside any more."""
        if not self.closing or self._inside:
            return
        if self.appender.is_ours():
            self.chores.ask()  # and the append that we interrupted comes here when it has ended
            return
        try:
            self._open.pop()
        except IndexError:
            return
        try:
            self.coordinator.close()
            self.committer.close()
            self.appender.close()
        finally:
            self.log.close()

    def drop(self) -> None:
        """In a forked child: close the parent's descriptors (an unlock would free its lock), and wait for nobody."""
        self.closing = self.forked = True
        self._open.clear()
        self.coordinator.stop()  # whoever was about to start its thread
        self.committer.stop()
        self.appender.drop(forked=True)
        self.log.close()
