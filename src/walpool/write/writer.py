"""WALWriter: appends to a log that other threads and processes append to at the same time.

Holds: what is public and what it promises; how it is kept stands in handle.py, session.py and appender.py.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from walpool.errors import EntryTooLarge, WALError
from walpool.format.entry import DELETE_BITS, PUT_BITS, Bytes, WALEntry, bad_timestamp, encode_entries, encode_one
from walpool.format.names import MAINTENANCE_LOCK
from walpool.options import DEFAULT_SIZE_LIMIT, RecoveryMode, Retention, SyncMode, WriterOptions
from walpool.shared.metrics import WALMetrics
from walpool.shared.poison import refuse_poisoned
from walpool.system.calls import calls
from walpool.system.files import typed_errors
from walpool.system.locks import Maintenance, held_by_this_thread, itself
from walpool.upkeep.checkpoint import state_checkpoint
from walpool.upkeep.opening import lock_mode
from walpool.upkeep.recovery import RecoveryReport
from walpool.upkeep.retention import PruneReport, prune
from walpool.write.appender import Appender
from walpool.write.at_exit import keep
from walpool.write.batch import Batch
from walpool.write.handle import Handle
from walpool.write.session import Session
from walpool.write.validate import check_options, check_path


class WALWriter:
    """A log's directory, open for appending.

    `path` is made, with its parents, when it is not there. `size_limit` is the most bytes a segment takes, and applies
    from the next rotation. `lock_timeout` (seconds) bounds every wait for another process: LogBusy then, whose `lsns`
    says whether something was appended; such a writer polls, and can lose to those that wait in the kernel. `mode` is
    that of the files (0o660: for a group). `recovery` says what to do about damage when the log has to be recovered
    first. `name` is for people.
    In SyncMode.NONE entries are appended when `buffer_bytes` are buffered, `linger_s` after the first of them, at
    `sync()`, `close()` and the end of the process in order. What ends it otherwise takes them with it: SIGKILL, SIGTERM
    and every other signal that nobody handles (`flush_at_signals` makes SIGTERM an end in order), `os._exit`, with
    which some pools end their workers, and leaving a `multiprocessing.Pool` used as a context manager.
    With `sync_interval_s` whatever this writer appended is on disk after at most twice so many seconds and two syncs,
    as long as it lives; on a disk that is slower an append waits for it.
    `retention` is applied in the background, by whichever process rotated. `allow_network_fs` opens a log on NFS, SMB,
    FUSE, ..., where writers on two machines overwrite each other's entries, and durable is what the server calls so.
    `allow_other_files` makes a log in a directory that holds other files.
    One object may be shared by threads, used after a fork, and pickled to another process.

    Raises TypeError and ValueError for options that cannot be; UnsafeLog (mend what it names), LogBusy (try again),
    LogFull (make room), CorruptLog (see `walpool verify` and `walpool repair`), UnsupportedVersion (upgrade).
    """

    _handle: Handle

    def __init__(
        self,
        path: str | os.PathLike[str],
        sync_mode: SyncMode = SyncMode.NORMAL,
        size_limit: int = DEFAULT_SIZE_LIMIT,
        *,
        lock_timeout: float | None = None,
        mode: int = 0o600,
        metrics: bool = True,
        name: str | None = None,
        recovery: RecoveryMode = RecoveryMode.TOLERATE_TAIL,
        buffer_bytes: int = 256 * 1024,
        linger_s: float = 0.05,
        sync_interval_s: float | None = None,
        retention: Retention | None = None,
        allow_network_fs: bool = False,
        allow_other_files: bool = False,
    ) -> None:
        place = check_path(path)
        options = WriterOptions(
            sync_mode=SyncMode(sync_mode),
            size_limit=size_limit,
            lock_timeout=lock_timeout,
            mode=mode,
            metrics=metrics,
            name=name,
            recovery=RecoveryMode(recovery),
            buffer_bytes=buffer_bytes,
            linger_s=linger_s,
            sync_interval_s=sync_interval_s,
            retention=retention,
            allow_network_fs=allow_network_fs,
            allow_other_files=allow_other_files,
        )
        self._prepare(place, check_options(options))
        self._handle.open()

    def _prepare(self, path: str, options: WriterOptions) -> None:
        self._handle = Handle(path, options, self)
        self._time_ns = calls.time_ns

    @property
    def _appender(self) -> Appender:
        return self._handle.open().appender

    # Appending

    def append(self, entry: WALEntry) -> int:
        """Append one entry and return its LSN; 0 in SyncMode.NONE: it is not known yet.

        Raises EntryTooLarge and BatchTooLarge (split it), TypeError and ValueError, and nothing was appended; LogFull
        and IOFailed (nothing was appended: try again when the cause is gone), LogBusy (see its `lsns`), SyncFailed
        (close every writer and open again), LogReplaced and UnsafeLog (close, and find out who changed the files),
        LogClosed.
        """
        body, _, largest = self._encode((entry,))
        return self._handle.append_or_buffer(body, largest)

    def put(self, key: Bytes, value: Bytes, timestamp: int | None = None) -> int:
        """Append a put and return its LSN (0 in SyncMode.NONE). `timestamp` defaults to ns since the epoch.

        Raises what `append` raises.
        """
        if timestamp is None:
            timestamp = self._time_ns()
        elif type(timestamp) is not int:
            raise bad_timestamp(timestamp)
        try:
            body = encode_one(PUT_BITS, key, value, timestamp)
        except EntryTooLarge as error:
            raise self._handle.failed(error) from None
        appender = self._handle.hot
        if appender is not None:
            if appender.is_ours():
                raise self._handle.failed(itself(self._handle.path))
            try:
                append = appender.timed_append if appender.timed else appender.append
                lsn = append(body, 1, len(body))  # what `_append` does, one call less: 0.1 us of a put
            except BaseException as error:
                return self._handle.not_appended(appender, error, body, 1, len(body))
            if appender.chores:
                self._handle.do_chores()
            return lsn
        return self._handle.append_or_buffer(body, len(body))

    def delete(self, key: Bytes, timestamp: int | None = None) -> int:
        """Append a delete and return its LSN (0 in SyncMode.NONE). Raises what `append` raises."""
        if timestamp is None:
            timestamp = self._time_ns()
        elif type(timestamp) is not int:
            raise bad_timestamp(timestamp)
        try:
            body = encode_one(DELETE_BITS, key, b"", timestamp)
        except EntryTooLarge as error:
            raise self._handle.failed(error) from None
        return self._handle.append_or_buffer(body, len(body))

    def append_batch(self, entries: Iterable[WALEntry]) -> range:
        """Append all entries as one frame, or none; the range of their LSNs. In SyncMode.NONE too, at once.

        Raises what `append` raises.
        """
        body, count, largest = self._encode(entries)
        if not count:
            self._handle.open()
            return range(0)
        if self._handle.buffer is not None:
            first_lsn = self._handle.append_after_buffer(body, count, largest)
        elif self._handle.options.sync_mode is SyncMode.FULL:
            first_lsn = self._handle.append_durable(body, count, largest)
        else:
            first_lsn = self._handle.append(body, count, largest)
        return range(first_lsn, first_lsn + count)

    def batch(self) -> Batch:
        """A context manager that appends what is put into it as one batch, unless its block raises."""
        return Batch(self.append_batch)

    def _encode(self, entries: Iterable[WALEntry]) -> tuple[bytes, int, int]:
        try:
            return encode_entries(entries)
        except EntryTooLarge as error:
            raise self._handle.failed(error) from None

    def sync(self) -> int:
        """Make everything that is in the log, and what this writer buffered, durable; the durable LSN.

        Raises LogBusy when another process has been syncing for longer than the lock timeout (call it again),
        SyncFailed (close every writer and open again to recover), LogReplaced, LogClosed.
        """
        self._handle.open()
        if self._handle.buffer is not None:
            self._handle.buffer.flush(self._handle)
        return self._handle.call(lambda session: session.committer.settle(session.log.control.state().next_lsn - 1))

    def rotate(self) -> None:
        """Seal the active segment now and start the next; nothing to do when it is empty. Raises as `append` does."""
        if self._handle.buffer is not None:
            self._handle.buffer.flush(self._handle)
        with typed_errors(self._handle.path):
            rotated = self._handle.call(lambda session: session.appender.rotate())
        if rotated:
            self._handle.do_chores()

    def checkpoint(self, lsn: int) -> int:
        """State that nothing at or below `lsn` is needed any more; durable when this returns the LSN in force.

        It never goes back: a lower `lsn` changes nothing. Raises ValueError for an LSN not appended, LogBusy (nothing
        was stated: call it again), SyncFailed.
        """
        return self._handle.call(
            lambda session: state_checkpoint(session.log, lsn, self._handle.options, session.committer.settle)
        )

    def prune(self) -> PruneReport:
        """Apply this writer's retention rules (without any: the checkpoint) now instead of in the background.

        Raises LogBusy, SyncFailed for a log of which a sync failed: nothing is removed from it.
        """
        options = self._handle.options

        def remove(session: Session) -> PruneReport:
            log = session.log
            refuse_poisoned(log.directory, log.control)
            with Maintenance(log.directory, MAINTENANCE_LOCK, options.lock_timeout, lock_mode(options)):
                return prune(log.directory, log.control.state(), options.retention or Retention())

        return self._handle.call(remove)

    @property
    def path(self) -> str:
        """The log's directory, absolute."""
        return self._handle.path

    @property
    def size(self) -> int:
        """Bytes in the active segment, header included."""
        return self._handle.call(lambda session: session.log.control.state().tail)

    @property
    def metrics(self) -> WALMetrics:
        """The log's figures; valid until this writer is closed."""
        log = self._handle.open().log
        return WALMetrics._of(log.directory, log.control, self._handle.counters, owned=False)

    @property
    def recovery_report(self) -> RecoveryReport | None:
        """What recovery did when this writer opened the log, or None when nothing had to be done."""
        return self._handle.report

    # Its life

    def close(self) -> None:
        """Append what is buffered and let go of the log. May be called again, and by any thread: calls that are under
        way in others end first. In the middle of an append of this very thread it takes effect when that has ended.

        When the buffer cannot be appended (LogFull, LogBusy, ...) that is raised, and the writer stays open.
        """
        self._handle.close()

    def __enter__(self) -> "WALWriter":
        self._handle.open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        handle = self.__dict__.get("_handle")  # __del__ runs for a half-made object too
        if handle is None or handle.closed or handle.session is None or sys.is_finalizing():
            # When the interpreter ends, its daemon threads are frozen, perhaps with a lock that close() would wait for;
            # what a buffer held was appended by the exit hook, and the system frees the rest.
            return
        if held_by_this_thread():
            handle.let_go_of_freed()
            keep(self)  # the collector came by in the middle of a call: nothing of the user's may run now
            return
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        try:
            self.close()
        except (OSError, WALError):
            handle.let_go_of_freed()
            self.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpickle, (self._handle.path, self._handle.options)

    def __repr__(self) -> str:
        handle = self._handle
        return f"<WALWriter {handle.path} {'closed' if handle.closed else handle.options.sync_mode.name}>"


def _unpickle(path: str, options: WriterOptions) -> WALWriter:
    writer = WALWriter.__new__(WALWriter)
    writer._prepare(path, options)
    return writer
