"""WALWriter: appends to a log that other threads and processes append to at the same time.

Holds: a writer is a path and options, and, while open, what `open_log` gave; a forked child, an unpickled copy and a
writer whose control block was replaced open it again on their next use.
"""

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from walpool.errors import LogClosed, WALError
from walpool.format.entry import DELETE_BITS, PUT_BITS, Bytes, WALEntry, encode_entries, encode_one
from walpool.format.frame import FRAME_BYTES
from walpool.format.header import HEADER_BYTES
from walpool.format.names import MAINTENANCE_LOCK
from walpool.options import DEFAULT_SIZE_LIMIT, RecoveryMode, Retention, SyncMode, WriterOptions
from walpool.shared.counters import counters_of
from walpool.shared.metrics import WALMetrics
from walpool.shared.slot_rows import SlotRow, claim_row
from walpool.system.calls import calls
from walpool.system.files import typed_error, typed_errors
from walpool.system.locks import Maintenance, reopen_after_fork
from walpool.upkeep.checkpoint import state_checkpoint
from walpool.upkeep.opening import OpenLog, lock_mode, open_log
from walpool.upkeep.recovery import RecoveryReport
from walpool.upkeep.retention import PruneReport, prune
from walpool.write.appender import Appender, Retired
from walpool.write.at_exit import close_at_exit, forget
from walpool.write.batch import Batch
from walpool.write.buffer import Buffer
from walpool.write.committer import Committer
from walpool.write.coordinator import Coordinator
from walpool.write.rotation import check_fits, check_size_limit

log = logging.getLogger("walpool")


class WALWriter:
    """A log's directory, open for appending.

    `path` is made, with its parents, when it is not there. `size_limit` is the most bytes a segment takes, and applies
    from the next rotation. `lock_timeout` (seconds) makes an append that waits longer raise LogBusy; such a writer
    polls, and can lose to those that wait in the kernel. `mode` is that of the files. `recovery` says what to do about
    damage when the log has to be recovered first. `name` is for people.
    In SyncMode.NONE entries are appended when `buffer_bytes` are buffered, or `linger_s` after the first of them. With
    `sync_interval_s` whatever this writer appended is on disk after so many seconds and a sync, as long as it lives.
    `retention` is applied in the background, by whichever process rotated. `allow_network_fs` opens a log on NFS, SMB,
    FUSE, ..., where writers on two machines overwrite each other's entries, and durable is what the server calls so.
    One object may be shared by threads, used after a fork, and pickled to another process.

    Raises UnsafeLog, LogBusy, LogFull, CorruptLog, UnsupportedVersion.
    """

    _closed = True  # until it is open: __del__ runs for a half-made object too
    _log: OpenLog | None = None

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
    ) -> None:
        place = os.path.abspath(os.fspath(path))
        if not isinstance(place, str):
            raise TypeError("path must be str or os.PathLike[str]")
        options = WriterOptions(
            sync_mode=SyncMode(sync_mode),
            size_limit=check_size_limit(size_limit),
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
        )
        self._prepare(place, options)
        self._reopen()

    def _prepare(self, path: str, options: WriterOptions) -> None:
        self._path = path
        self._options = options
        self._closed = False
        self._opening = threading.RLock()
        self._time_ns = calls.time_ns
        self._one_by_one = options.sync_mode is SyncMode.NORMAL
        self._report: RecoveryReport | None = None
        self._counters = counters_of(path)
        self._row: SlotRow | None = None
        self._buffer: Buffer | None = self._new_buffer() if options.sync_mode is SyncMode.NONE else None
        self._wait_durable = options.sync_mode is SyncMode.FULL
        reopen_after_fork(self)

    def _new_buffer(self) -> Buffer:
        limit_bytes = min(self._options.buffer_bytes, self._options.size_limit - HEADER_BYTES - FRAME_BYTES)
        return Buffer(self._append, lambda: self._log and self._appender.last_body, limit_bytes, self._options.linger_s)

    def _reopen(self) -> Appender:
        """Open the log, again if need be; the appender to use. Slow path: first use in this process."""
        with self._opening:
            if self._closed:
                raise LogClosed(f"{self._path}: the writer is closed")
            if self._log is None:
                opened = open_log(self._path, self._options)
                self._row = claim_row(opened.directory, opened.slot, self._options)
                self._appender = Appender(opened, self._options, self._row)
                self._committer = Committer(opened, self._row)
                self._coordinator = Coordinator(opened, self._options, self._committer)
                self._report = opened.report
                self._log = opened
                if self._buffer is not None:
                    self._buffer.row = self._row
                    close_at_exit(self)
                self._counters.add(files_opened=1)
            return self._appender

    @property
    def _opened(self) -> OpenLog:
        self._reopen()
        assert self._log is not None
        return self._log

    # Appending

    def append(self, entry: WALEntry) -> int | None:
        """Append one entry and return its LSN (None in SyncMode.NONE, where it is not known yet)."""
        body, _, largest = encode_entries((entry,))
        return self._append_or_buffer(body, largest)

    def put(self, key: Bytes, value: Bytes, timestamp: int | None = None) -> int | None:
        """Append a put and return its LSN (None in SyncMode.NONE). `timestamp` defaults to ns since the epoch."""
        body = encode_one(PUT_BITS, key, value, self._time_ns() if timestamp is None else timestamp)
        if self._one_by_one and self._log is not None:
            try:
                lsn = self._appender.append(body, 1, len(body))  # what `_append` does, one call less: 0.1 us of a put
            except BaseException as error:
                return self._not_appended(error, body, 1, len(body))
            if self._appender.chores:
                self._do_chores()
            return lsn
        return self._append_or_buffer(body, len(body))

    def delete(self, key: Bytes, timestamp: int | None = None) -> int | None:
        """Append a delete and return its LSN (None in SyncMode.NONE)."""
        body = encode_one(DELETE_BITS, key, b"", self._time_ns() if timestamp is None else timestamp)
        return self._append_or_buffer(body, len(body))

    def append_batch(self, entries: Iterable[WALEntry]) -> range:
        """Append all entries as one frame, or none; the range of their LSNs. In SyncMode.NONE too, at once."""
        body, count, largest = encode_entries(entries)
        if not count:
            self._reopen()
            return range(0)
        append = self._append if self._buffer is None else self._buffer.append_after
        first_lsn = append(body, count, largest)
        if self._wait_durable:
            self._committer.settle(first_lsn + count - 1)
        return range(first_lsn, first_lsn + count)

    def batch(self) -> Batch:
        """A context manager that appends what is put into it as one batch, unless its block raises."""
        return Batch(self.append_batch)

    def _append_or_buffer(self, body: bytes, largest: int) -> int | None:
        if self._buffer is None:
            lsn = self._append(body, 1, largest)
            if self._wait_durable:
                self._committer.settle(lsn)
            return lsn
        self._reopen()  # a closed writer says so now, not when the buffer is full
        check_fits(FRAME_BYTES + len(body), self._options.size_limit)
        self._buffer.add(body)
        return None

    def _append(self, body: bytes, count: int, largest: int) -> int:
        try:
            appender = self._appender if self._log is not None else self._reopen()
            first_lsn = appender.append(body, count, largest)
        except BaseException as error:
            return self._not_appended(error, body, count, largest)
        if appender.chores:
            self._do_chores()
        return first_lsn

    def _not_appended(self, error: BaseException, body: bytes, count: int, largest: int) -> int:
        if isinstance(error, Retired):
            self._let_go()
            return self._append(body, count, largest)
        if self._row is not None:
            self._row.count_failure(error)
        if isinstance(error, OSError):
            raise typed_error(error, self._path) from error
        raise error

    def _do_chores(self) -> None:
        """What an append now and then leaves to do, outside the lock. No error comes out: the append succeeded."""
        appender = self._appender
        appender.chores = False
        try:
            self._wake_helpers(appender)
        except BaseException as error:
            appender.wanted = appender.chores = True  # an interrupt, too, must not end what sync_interval_s promises
            if not isinstance(error, (OSError, RuntimeError, WALError)):  # RuntimeError: no thread can be started
                raise
            log.warning("%s: %s; the next append tries again", self._path, error)

    def _wake_helpers(self, appender: Appender) -> None:
        appender.count_waits()
        if appender.rotations:
            self._counters.add(files_opened=appender.rotations)
            appender.rotations = 0
        if appender.wanted:
            appender.wanted = False
            self._coordinator.wake()
        if self._options.sync_interval_s is not None:
            self._committer.sync_within(self._options.sync_interval_s, appender.ask_for_chores)

    def sync(self) -> int:
        """Make everything that is in the log, and what this writer buffered, durable; the durable LSN."""
        self._reopen()
        if self._buffer is not None:
            self._buffer.flush()
        return self._committer.settle(self._opened.control.state().next_lsn - 1)

    def rotate(self) -> None:
        """Seal the active segment now and start the next; nothing to do when it is empty."""
        if self._buffer is not None:
            self._buffer.flush()
        appender = self._reopen()
        with typed_errors(self._path):
            rotated = appender.rotate()
        if rotated:
            self._do_chores()

    def checkpoint(self, lsn: int) -> int:
        """State that nothing at or below `lsn` is needed any more; durable when this returns the LSN in force.

        It never goes back: a lower `lsn` changes nothing. Raises ValueError for an LSN not appended, SyncFailed.
        """
        return state_checkpoint(self._opened, lsn, self._options, self._committer.settle)

    def prune(self) -> PruneReport:
        """Apply this writer's retention rules (without any: the checkpoint) now instead of in the background."""
        log, options = self._opened, self._options
        with Maintenance(log.directory, MAINTENANCE_LOCK, options.lock_timeout, lock_mode(options)):
            return prune(log.directory, log.control.state(), options.retention or Retention())

    @property
    def path(self) -> str:
        """The log's directory, absolute."""
        return self._path

    @property
    def size(self) -> int:
        """Bytes in the active segment, header included."""
        return self._opened.control.state().tail

    @property
    def metrics(self) -> WALMetrics:
        """The log's figures; valid until this writer is closed."""
        return WALMetrics(self._opened.directory, self._opened.control, self._counters, owned=False)

    @property
    def recovery_report(self) -> RecoveryReport | None:
        """What recovery did when this writer opened the log, or None when nothing had to be done."""
        return self._report

    # Its life

    def close(self) -> None:
        """Append what is buffered and let go of the log. May be called again.

        When the buffer cannot be appended (LogFull, LogBusy, ...) that is raised, and the writer stays open.
        """
        if self._closed:
            return
        if self._buffer is not None:
            self._buffer.flush()
            self._buffer.stop()
        if self._options.sync_interval_s is not None and self._log is not None:
            self._committer.settle(self._log.control.state().next_lsn - 1)  # its promise outlives the timer
        self._closed = True
        self._let_go()
        forget(self)

    def _let_go(self) -> None:
        with self._opening:
            opened, self._log = self._log, None
            if opened is not None:
                try:
                    self._coordinator.close()
                    self._committer.close()
                    self._appender.close()
                finally:
                    opened.close()

    def after_fork(self) -> None:
        """In a forked child: close the parent's descriptors (an unlock would free its lock) and start over."""
        self._opening = threading.RLock()  # another thread may have held the old one
        opened, self._log, self._row = self._log, None, None  # the row is the parent's
        if opened is not None:
            self._appender.drop()
            opened.close()
        if self._buffer is not None:
            self._buffer = self._new_buffer()

    def __enter__(self) -> "WALWriter":
        self._reopen()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed and self._log is not None and not sys.is_finalizing():
            # When the interpreter ends, its daemon threads are frozen, perhaps with a lock that close() would wait for;
            # what a buffer held was appended by the exit hook below, and the system frees the rest.
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpickle, (self._path, self._options)

    def __repr__(self) -> str:
        return f"<WALWriter {self._path} {'closed' if self._closed else self._options.sync_mode.name}>"


def _unpickle(path: str, options: WriterOptions) -> WALWriter:
    writer = WALWriter.__new__(WALWriter)
    writer._log = None
    writer._prepare(path, options)
    return writer
