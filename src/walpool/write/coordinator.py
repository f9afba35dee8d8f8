"""The rotation coordinator: what a rotation leaves to do, in the background of whichever process rotated.

It prepares the next segment, so that an append that rotates does not wait for the disk; makes sealed segments durable,
so that a power cut takes little and recovery has little to read; trims them; and applies retention.
Holds: one process at a time does it, by a kernel lock that a killed one loses at once; no append waits for it; its
thread exists only while there is something to do.
"""

import threading
from itertools import pairwise
from logging import ERROR

from walpool.errors import LogBusy, LogClosed, WALError
from walpool.format.frame import MAX_SLOTS
from walpool.opening.opening import OpenLog, maintenance
from walpool.options import WriterOptions
from walpool.shared.catalog import list_segments
from walpool.shared.poison import refuse_poisoned
from walpool.system.failures import in_words, over, say_once
from walpool.system.locks import ByteLocks
from walpool.system.threads import Helpers, leave, mutex
from walpool.upkeep.prepare import prepare, trim
from walpool.upkeep.retention import prune
from walpool.write.committer import Committer

PREPARE_FROM_BYTES = 1 << 20  # a smaller segment is made as fast as it is taken
TRIM_BACK = 8  # sealed segments that a coordinator looks at: an earlier one that was killed may have left some
ROLE = MAX_SLOTS  # the byte of slots.lock that the coordinator holds


class Coordinator:
    def __init__(self, opened: OpenLog, options: WriterOptions, committer: Committer) -> None:
        self._log = opened
        self._options = options
        self._committer = committer
        self._lock = mutex()
        self._helpers = Helpers()
        self._thread: threading.Thread | None = None  # that runs, or is about to be started
        self._again = self._closed = False
        self._trimmed_lsn = 0
        self._role = ByteLocks(opened.slots_lock)

    def wake(self) -> None:
        """Do it soon: there was a rotation, or the active segment is half full and the next one should be prepared."""
        self._again = True
        if self._lock._is_owned():
            return  # we interrupt this very call, which starts a thread, or has seen one that looks once more
        thread = self._helpers.thread(self._run, "walpool-coordinator")
        try:
            if self._takes_turn(thread):  # a frame of its own: see ProcessLock.run
                self._helpers.start(thread)
        except BaseException:
            leave(self._lock)
            if self._thread is thread and not self._helpers.will_run(thread):
                self._thread = None  # one that runs all the same ends when it sees that
            raise

    def _takes_turn(self, thread: threading.Thread) -> bool:
        with self._lock:
            there = self._thread
            if (there is not None and not self._helpers.refused(there)) or self._closed:
                return False
            self._thread = thread
            return True

    def _run(self) -> None:
        """The thread: as long as somebody has asked since, and no other thread has taken its place.

        Each time it tries for the role, a byte of slots.lock. Where another process has it, that one does what there is
        to do, and the next rotation asks again.
        """
        path = self._log.directory.path
        while True:
            with self._lock:
                if self._thread is not threading.current_thread():
                    return
                if self._closed or not self._again:
                    self._thread = None
                    return
                self._again = False
            no_room: OSError | None = None
            done = False
            try:
                if self._role.try_hold(ROLE):
                    try:
                        no_room, done = self._coordinate(), True
                    finally:
                        self._role.release(ROLE)
            except LogClosed:
                pass
            except (WALError, OSError) as error:
                say_once(path, "coordinator", in_words(error), ERROR)  # of a sync, the next append tells its caller too
            if no_room is not None:
                say_once(path, "prepare", f"{path}: the next segment could not be prepared: {in_words(no_room)}")
            elif done:
                over(path, "prepare")
            if done:
                over(path, "coordinator")

    def _coordinate(self) -> OSError | None:
        """Why there is no prepared segment, when there should be one."""
        options, directory = self._options, self._log.directory
        no_room = None
        if options.size_limit >= PREPARE_FROM_BYTES:
            no_room = prepare(directory, options.size_limit, options.mode)
        sealed_lsn = self._log.control.state().segment - 1
        if sealed_lsn > self._log.control.durable_lsn:
            self._committer.settle(sealed_lsn, background=True)
        self._trim(sealed_lsn + 1)
        if options.retention is not None:
            refuse_poisoned(directory, self._log.control)
            try:
                with maintenance(directory, options, wait=False):
                    prune(directory, self._log.control.state(), options.retention)
            except LogBusy:
                pass  # somebody creates, recovers or prunes; the next rotation comes
        return no_room

    def _trim(self, active_lsn: int) -> None:
        """Give back the zeros behind the last frames of the segments that were sealed last."""
        segments = [first for first in list_segments(self._log.directory) if first <= active_lsn]
        for first_lsn, next_lsn in list(pairwise(segments))[-TRIM_BACK:]:
            if next_lsn > self._trimmed_lsn:
                try:
                    trim(self._log.directory, first_lsn, next_lsn)
                except FileNotFoundError:
                    pass  # pruned by hand meanwhile
                self._trimmed_lsn = next_lsn

    def stop(self) -> None:
        """Do nothing more; a thread that has not come that far ends there."""
        self._closed = True

    def close(self) -> None:
        """When nobody is in a call any more."""
        self.stop()
        self._helpers.join()
