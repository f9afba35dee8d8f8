"""A consumer: a log as a cursor or a member of a group has it open.

It is open as a writer has it, with a slot: so a log that needs a recovery gets it, nobody recovers it under a cursor's
feet, and who consumes can lead a sync. It appends nothing.

Holds: whoever waits for a cursor's name has no slot yet: a log with a failed sync can be recovered meanwhile.
"""

import logging

from walpool.errors import LogClosed, LogReplaced, UnsafeLog
from walpool.format.names import CURSORS, CURSORS_LOCK
from walpool.opening.opening import AGAIN, open_log
from walpool.options import RecoveryMode, WriterOptions
from walpool.read.reading import Reading
from walpool.read.window import INITIAL_CAPACITY
from walpool.shared.counters import counters_of
from walpool.shared.cursors.owners import Owners
from walpool.shared.cursors.positions import make_cursors
from walpool.shared.poison import sync_failed
from walpool.system.files import Directory
from walpool.upkeep.repair import require_log
from walpool.write.session import Session

logger = logging.getLogger("walpool")


class Consumer:
    def __init__(self, path: str, lock_timeout: float | None, allow_network_fs: bool) -> None:
        """Nothing is open yet but what names are waited for with. Raises LogNotFound, UnsafeLog."""
        self.path = path
        self.directory = require_log(path)  # a writer would make what is not there
        try:
            self.directory.check_ours()
            self.options = WriterOptions(
                lock_timeout=lock_timeout,
                mode=self.directory.mode_of_files(),
                metrics=False,
                allow_network_fs=allow_network_fs,
            )
            self.owners = Owners(self.directory)
        except BaseException:
            self.directory.close()
            raise
        self.cursors: Directory | None = None
        self._session: Session | None = None
        self.forked = False
        self._notes: list[str] = []

    def open(self) -> None:
        """Open the log: when the name is ours."""
        opened = open_log(self.path, self.options)
        self._session = Session(opened, self.options, None, counters_of(self.path))
        if opened.directory.place != self.directory.place:
            raise LogReplaced(self.path, "another log was put in its place while it was being opened; open it again")
        self.cursors = make_cursors(self.directory)
        self._notes = opened.report.told(self.path) if opened.report is not None else []

    def tell(self) -> None:
        """When no lock is held."""
        for line in self._notes:
            logger.warning("%s", line)

    @property
    def session(self) -> Session:
        if self._session is None or self.forked:
            raise LogClosed(f"{self.path}: the cursor is closed, or its parent's")
        return self._session

    def reading(self, start: int) -> Reading[bytes]:
        found: Reading[bytes] = Reading(
            self.path, start, None, RecoveryMode.TOLERATE_TAIL, INITIAL_CAPACITY, False, False
        )
        if found.cursor.source.directory.place != self.directory.place:
            found.close()
            self.session.log.check_path()
        return found

    def settle(self, lsn: int) -> int:
        """The durable LSN, once `lsn` is: by our own sync where nobody else's is under way."""
        session = self.session
        return session.call(lambda: session.committer.settle(lsn))

    @property
    def durable_lsn(self) -> int:
        return self.session.log.control.durable_lsn

    @property
    def last_lsn(self) -> int:
        """That is published."""
        return self.session.log.control.state().next_lsn - 1

    def check_sound(self) -> None:
        """Raises SyncFailed once a sync of the log failed, in whatever process: whoever has it open lets go of it."""
        control = self.session.log.control
        if control.is_poisoned:
            raise sync_failed(self.path, 0, control.durable_lsn)

    def check_names(self) -> None:
        """Raises LogReplaced or UnsafeLog unless names still lead to what we have open."""
        assert self.cursors is not None
        self.session.log.check_path()
        for name, opened in ((CURSORS_LOCK, self.owners.file), (CURSORS, self.cursors)):
            if not self.directory.leads_to(name, opened):
                raise UnsafeLog(
                    self.directory.join(name), f"it was removed or replaced while a cursor was open; {AGAIN}"
                )

    def close(self) -> None:
        """The names are free last: whoever waits for one finds all else done."""
        try:
            if self._session is not None:
                self._session.close()
        finally:
            if self.cursors is not None:
                self.cursors.close()
            self.owners.close()
            self.directory.close()

    def drop(self) -> None:
        """In a forked child: all of it is the parent's."""
        self.forked = True
        if self._session is not None:
            self._session.drop()
        self.owners.close()
