"""A handle: what a writer is between its calls: a path and options, and, while the log is open, a session.

Holds: a forked child, an unpickled copy and a writer whose control block was replaced open the log again on their next
use. Whatever may run in the middle of one of these calls, a signal handler, a finaliser or another thread, may call any
of them: it works, or raises at once. Warnings are logged when no lock is held any more.
"""

import logging
from collections.abc import Callable
from typing import TypeVar
from weakref import ref

from walpool.errors import BatchTooLarge, LogBusy, LogClosed, LogFull, WALError
from walpool.format.entry import Body
from walpool.format.frame import FRAME_BYTES
from walpool.format.header import HEADER_BYTES
from walpool.opening.opening import OpenLog, open_log
from walpool.opening.recovery import RecoveryReport
from walpool.options import SyncMode, WriterOptions
from walpool.shared.counters import counters_of
from walpool.shared.slot_rows import SlotRow, claim
from walpool.staging.at_exit import Closable, close_at_exit, forget
from walpool.staging.buffer import Buffer
from walpool.system.failures import in_words, nothing_appended, say_once, typed_error
from walpool.system.forks import reopen_after_fork
from walpool.system.locks import itself
from walpool.system.threads import leave, mutex
from walpool.upkeep.room import make_room
from walpool.write.appender import Appender
from walpool.write.place import Put, Retired
from walpool.write.rotation import check_fits
from walpool.write.session import Left, Session

logger = logging.getLogger("walpool")

_Result = TypeVar("_Result")
_Error = TypeVar("_Error", bound=BaseException)


class Handle:
    def __init__(self, path: str, options: WriterOptions, writer: Closable) -> None:
        self.path = path
        self.options = options
        self.closed = False
        self.session: Session | None = None
        self.hot: Appender | None = None  # of a session in SyncMode.NORMAL: the short way of `put`,
        self.hot_put: Put | None = None  # and the shortest, where the core runs
        self.report: RecoveryReport | None = None
        self.counters = counters_of(path)
        self.buffer: Buffer | None = self._new_buffer() if options.sync_mode is SyncMode.NONE else None
        self._opening = mutex()
        self._writer = ref(writer)
        reopen_after_fork(self)

    def _new_buffer(self) -> Buffer:
        limit_bytes = min(self.options.buffer_bytes, self.options.size_limit - HEADER_BYTES - FRAME_BYTES)
        return Buffer(self.path, limit_bytes, self.options.linger_s)

    def published(self, data: bytes) -> bool:
        """See Owner."""
        session = self.session
        return session is not None and session.appender.published(data) is not None

    def open(self) -> Session:
        """The session; opens the log if need be: at first, in a forked child, or when it has been recovered."""
        session = self.session
        if session is not None:
            return session
        if self._opening._is_owned():
            raise itself(self.path)
        notes: list[str] = []
        try:
            session, report = self._open_session(notes)  # a frame of its own: see ProcessLock.run
        except BaseException:
            leave(self._opening)
            raise
        if self.closed:  # by another thread, which did not see the session
            self.let_go(session)
            raise LogClosed(f"{self.path}: the writer is closed")
        for note in notes:
            say_once(self.path, "metrics", note)
        for line in report.told(self.path) if report is not None else []:
            logger.warning("%s", line)
        return session

    def _open_session(self, notes: list[str]) -> tuple[Session, RecoveryReport | None]:
        """The session, and the report if a recovery was needed just now."""
        with self._opening:
            if self.closed:
                raise LogClosed(f"{self.path}: the writer is closed")
            if self.session is not None:
                return self.session, None
            opened = self._open_log()
            session = Session(opened, self.options, self._claim_row(opened, notes), self.counters)
            self.report = opened.report
            self.session = session
            if self.options.sync_mode is SyncMode.NORMAL:
                self.hot = session.appender
                self.hot_put = None if self.hot.core is None else self.hot.core.put
            writer = self._writer()
            if self.buffer is not None and writer is not None:
                self.buffer.row = session.row
                close_at_exit(writer)
            self.counters.add(files_opened=1)
            return session, opened.report

    def _open_log(self) -> OpenLog:
        try:
            return open_log(self.path, self.options)
        except LogFull:
            if self.options.retention is None or not make_room(self.path, self.options).removed:
                raise
        return open_log(self.path, self.options)

    def _claim_row(self, opened: OpenLog, notes: list[str]) -> SlotRow | None:
        options = self.options
        if not options.metrics:
            return None
        try:
            return claim(opened.directory, opened.slot, options.mode, options.sync_mode, options.name)
        except (WALError, OSError) as error:
            notes.append(f"{self.path}: this writer will not show in the metrics: {in_words(error)}")
            return None

    def call(self, body: Callable[[Session], _Result]) -> _Result:
        """`body(session)`: nothing of the session is closed before it returns."""
        session = self.open()
        try:
            return session.call(lambda: body(session))
        except Exception as error:
            if not self._goes_on(session, error):
                raise
        return self.call(body)

    def _goes_on(self, session: Session, error: Exception) -> bool:
        """For the `except` of a call of `session`: whether it has to be made again, in another one."""
        if session.forked:
            return True  # this is a child, forked in the middle of it: what was open was the parent's
        if isinstance(error, Retired):
            if self.session is session:
                self.let_go(session)
            return True
        if not isinstance(error, Left):
            return False
        if self.closed:
            raise LogClosed(*error.args) from None
        return True  # another thread found the block replaced, and has let go of the session

    def append_or_buffer(self, data: bytes) -> int:
        """Of one entry."""
        if self.buffer is None:
            body = tuple.__new__(Body, (data, 1, len(data)))
            return self.append_durable(body) if self.options.sync_mode is SyncMode.FULL else self.append(body)
        self.open()  # a closed writer says so now, not when the buffer is full
        try:
            check_fits(FRAME_BYTES + len(data), self.options.size_limit)
        except BatchTooLarge as error:
            raise self.failed(error) from None
        self.buffer.add(data, self)
        return 0

    def append_for(self, buffer: Buffer, body: Body) -> int:
        """See Owner."""
        return self._append(body) if buffer is self.buffer else 0

    def append_after_buffer(self, body: Body) -> int:
        """SyncMode.NONE: a batch whose LSNs are known at once."""
        while True:
            self.open()
            assert self.buffer is not None
            first_lsn = self.buffer.append_after(body, self)
            if first_lsn:
                return first_lsn

    def append_durable(self, body: Body) -> int:
        """SyncMode.FULL: a close in another thread waits until it is on disk."""
        session = self.open()
        appended: list[int] = []

        def append() -> None:
            if session.log.sync_lock.is_ours():
                raise self.failed(itself(self.path))  # before anything is appended that could not be made durable
            appended.append(self.append(body))
            self._settle(session, range(appended[0], appended[0] + body.entries))

        try:
            session.call(append)
        except Exception as error:
            if appended or not self._goes_on(session, error):
                raise
        return appended[0] if appended else self.append_durable(body)

    def _settle(self, session: Session, lsns: range) -> None:
        try:
            if self.session is session or self.closed:
                session.committer.settle(lsns.stop - 1)  # not through `call`: who closed it in between waits for us
            else:  # the append found the block replaced, and went into the log that was opened anew
                self.call(lambda session: session.committer.settle(lsns.stop - 1))
        except LogBusy as error:
            busy = LogBusy(
                f"{error}; LSN {lsns.start} to {lsns.stop - 1} are in the log: do not append them again, call sync()",
                lsns,
            )
            raise self.failed(busy) from None
        except WALError as error:
            raise self.failed(error) from error.__cause__
        except ValueError:
            if not session.forked:
                raise
        else:
            return
        self.call(lambda session: session.committer.settle(lsns.stop - 1))

    def append(self, body: Body) -> int:
        first_lsn = self._append(body)
        self.do_chores()
        return first_lsn

    def _append(self, body: Body) -> int:
        appender = self.open().appender
        if appender.is_ours():
            raise self.failed(itself(self.path))
        try:
            if appender.waits.sample:
                return appender.waits.timed(appender.place, *body)
            core = appender.core
            if core is not None:
                first_lsn = core.append(body.data, body.entries, body.largest)
                if first_lsn:
                    return first_lsn
            return appender.append(body.data, body.entries, body.largest)
        except BaseException as error:
            first_lsn = self.not_appended(appender, error, body.data)
        return first_lsn or self._append(body)  # not in the `except`: see `not_appended`

    def do_chores(self) -> None:
        """See Owner."""
        session = self.session
        if session is not None and session.chores.due:
            session.do_chores()

    def not_appended(self, appender: Appender, error: BaseException, data: bytes) -> int:
        """For the `except` of a call of `appender`: the first LSN if it was appended all the same; 0: try again.

        Behind the `except`, not in it: what ends the next wait would have to tell of this error, too.
        """
        first_lsn = appender.after_exception(data)
        if first_lsn is not None:
            return first_lsn
        session = self.session
        if session is not None and session.closing:
            session.close_if_left()
        if isinstance(error, Retired) or appender.forked:
            if session is not None and session.appender is appender:
                self.let_go(session)
            return 0
        self.failed(error)
        try:
            if isinstance(error, WALError):
                raise nothing_appended(error).with_traceback(error.__traceback__) from error.__cause__
            if isinstance(error, OSError):
                raise nothing_appended(typed_error(error, self.path)) from error
            raise error
        finally:
            del error  # or it would keep, in a cycle with this frame, what our callers have

    def failed(self, error: _Error) -> _Error:
        """Count a call that raises."""
        session = self.session
        row = None if session is None else session.row
        if row is not None and not isinstance(error, LogClosed):
            try:
                row.count_failure(error)
            except ValueError:
                pass  # it was closed meanwhile
        return error

    def close(self) -> None:
        """See WALWriter.close."""
        if self.closed:
            return
        session = self.session
        if session is not None:
            session.log.append_lock.check_others()  # a thread that we waited for could be waiting for us
        if self.buffer is not None:
            self.buffer.close(self)
        session = self.session
        if self.options.sync_interval_s is not None and session is not None:
            try:
                session.call(lambda: session.committer.settle(session.log.control.state().next_lsn - 1))
            except LogClosed:
                pass  # its promise outlives the writer, and another thread has kept it
        self.closed = True
        writer = self._writer()
        if writer is not None:
            forget(writer)
        self.let_go(self.session)

    def let_go(self, session: Session | None) -> None:
        if session is not None:
            if self.session is session:
                self.session = self.hot = self.hot_put = None
            session.close()

    def let_go_of_freed(self) -> None:
        """The collector has closed the files of the session that it found with us: what is buffered needs another."""
        self.session = self.hot = self.hot_put = None

    def after_fork(self) -> None:
        """In a forked child: close the parent's descriptors (an unlock would free its lock) and start over."""
        self._opening = mutex()  # another thread may have held the old one
        session, self.session, self.hot = self.session, None, None
        self.hot_put = None
        if session is not None:
            session.drop()
        if self.buffer is not None:
            self.buffer = self._new_buffer()
