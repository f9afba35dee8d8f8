"""WALWriter: appends to a log that other threads and processes append to at the same time.

Holds: what is public and what it promises; how it is kept stands in handle.py, session.py and appender.py.
It is longer than a file may be because most of it is docstrings.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

from walpool.errors import EntryTooLarge
from walpool.format.entry import DELETE_BITS, PUT_BITS, Bytes, WALEntry, bad_timestamp, encode_entries, encode_one
from walpool.opening.recovery import RecoveryReport
from walpool.options import DEFAULT_SIZE_LIMIT, RecoveryMode, Retention, SyncMode, WriterOptions
from walpool.shared.metrics import WALMetrics
from walpool.staging.at_exit import close_freed
from walpool.system.calls import calls
from walpool.system.failures import typed_errors
from walpool.system.locks import itself
from walpool.upkeep.checkpoint import state_checkpoint
from walpool.upkeep.retention import PruneReport, apply_retention
from walpool.write.batch import Batch
from walpool.write.handle import Handle
from walpool.write.validate import check_options, check_path


class WALWriter:
    """A log's directory, open for appending, beside any number of other writers in this and other processes.

    Threads may share one; it may be used after a fork, and pickled to another process. A `with` block closes it.

    In SyncMode.NONE what ends the process takes buffered entries with it, unless it ends in order: SIGKILL, SIGTERM and
    every other signal that nobody handles (`flush_at_signals` makes SIGTERM an end in order), `os._exit`, with which
    some pools end their workers, and leaving a `multiprocessing.Pool` used as a context manager.

    >>> import walpool
    >>> with walpool.WALWriter("events.wal", walpool.SyncMode.FULL) as writer:
    ...     print(writer.put(b"key", b"value"), writer.append_batch([walpool.WALEntry.delete(b"key")] * 2))
    1 range(2, 4)

    Args:
        path: the log's directory; it is made, with its parents, when it is not there.
        sync_mode (default SyncMode.NORMAL): what an append has survived when it returns.
        size_limit (default 64 << 20): the most bytes a segment takes; it applies from the next rotation.
        lock_timeout (default None): seconds; bounds every wait for another process, which ends as LogBusy then. Such a
            writer polls, and can lose to those that wait in the kernel. None waits there for as long as it takes.
        mode (default 0o600): that of the files; 0o660 shares the log with a group.
        metrics (default True): count what this writer does in a slot row, for WALMetrics.
        name (default None): for people, in WALMetrics; at most 64 bytes of it.
        recovery (default RecoveryMode.TOLERATE_TAIL): what to do about damage when the log has to be recovered first.
        buffer_bytes (default 256 * 1024): SyncMode.NONE: entries are appended when so many bytes are buffered,
        linger_s (default 0.05): so many seconds after the first of them, at `sync()`, `close()` and the end of the
            process in order.
        sync_interval_s (default None): seconds, in SyncMode.NORMAL: whatever this writer appended is on disk after at
            most twice so many and two syncs, as long as it lives; on a slower disk appends wait for it.
        retention (default None): applied in the background, by whichever process rotated. None removes nothing.
        mapped (default False): SyncMode.NORMAL on Linux: store into mapped segments instead of writing to them, for
            little more than half of the CPU time. The price: whoever cuts the segment short, and a disk that fails,
            kill the process (SIGBUS), and `sync()` takes longer, up to twice the CPU time. See docs/durability.md.
        allow_network_fs (default False): open a log on NFS, SMB, FUSE, ..., where writers on two machines overwrite
            each other's entries, and durable is what the server calls so.
        allow_other_files (default False): make a log in a directory that holds other files.

    Raises:
        TypeError, ValueError: for an option that cannot be.
        LogBusy: retry.
        LogFull, IOFailed: retry when the cause is gone.
        UnsafeLog: mend what it names.
        Unsupported: leave `mapped` out, or move the log: on its file system stores may fail.
        SyncFailed: close every other writer of the log and open it again; while the disk fails, it stays so.
        CorruptLog: see `walpool verify` and `walpool repair`.
        UnsupportedVersion: upgrade walpool.
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
        mapped: bool = False,
        allow_network_fs: bool = False,
        allow_other_files: bool = False,
    ) -> None:
        place = check_path(path)
        options = WriterOptions(
            sync_mode=SyncMode(sync_mode), size_limit=size_limit, lock_timeout=lock_timeout, mode=mode, metrics=metrics,
            name=name, recovery=RecoveryMode(recovery), buffer_bytes=buffer_bytes, linger_s=linger_s,
            sync_interval_s=sync_interval_s, retention=retention, mapped=mapped,
            allow_network_fs=allow_network_fs,
            allow_other_files=allow_other_files,
        )  # fmt: skip
        self._prepare(place, check_options(options))
        self._handle.open()

    def _prepare(self, path: str, options: WriterOptions) -> None:
        self._handle = Handle(path, options, self)
        self._time_ns = calls.time_ns

    # Appending

    def append(self, entry: WALEntry) -> int:
        """Append one entry and return its LSN; 0 in SyncMode.NONE: it is not known yet.

        After every error but LogBusy with `lsns`, SyncFailed and, in FULL, LogReplaced nothing was appended.

        Args:
            entry: what WALEntry.put or WALEntry.delete gave, or a reader; its `lsn` plays no part.

        Raises:
            TypeError, ValueError: for what is no entry.
            EntryTooLarge, BatchTooLarge: split it.
            LogFull, IOFailed: retry when the cause is gone.
            LogBusy: see its `lsns`: empty, retry; else they are in the log: call `sync()`.
            SyncFailed: close every writer of the log and open it again. In FULL the entry is in the log, perhaps not on
                disk; when the message says that `sync()` tries again, call that.
            LogReplaced, UnsafeLog, CorruptLog: close, find out who changed the files, and open again.
            LogClosed: another thread closed the writer, or you did.
        """
        try:
            body = encode_entries((entry,))
        except EntryTooLarge as error:
            raise self._handle.failed(error) from None
        return self._handle.append_or_buffer(body.data)

    def put(self, key: Bytes, value: Bytes, timestamp: int | None = None) -> int:
        """Append a put and return its LSN; 0 in SyncMode.NONE.

        Args:
            key, value: bytes-like, at most 1 MiB and 10 MiB.
            timestamp (default None): yours, from 0 to 2**64 - 1; None is ns since the epoch.

        Raises:
            TypeError, ValueError: for what is no bytes or no timestamp.
            EntryTooLarge, BatchTooLarge, LogFull, IOFailed, LogBusy, SyncFailed: as `append`.
            LogReplaced, UnsafeLog, CorruptLog, LogClosed: as `append`.
        """
        hot_put = self._handle.hot_put
        if hot_put is not None and (lsn := hot_put(key, value, timestamp)):
            return lsn
        if timestamp is None:
            timestamp = self._time_ns()
        elif type(timestamp) is not int:
            raise bad_timestamp(timestamp)
        try:
            data = encode_one(PUT_BITS, key, value, timestamp)
        except EntryTooLarge as error:
            raise self._handle.failed(error) from None
        appender = self._handle.hot  # what follows is what `append_or_buffer` does, two calls less: 0.1 us each
        if appender is not None:
            if appender.is_ours():
                raise self._handle.failed(itself(self._handle.path))
            try:
                append, waits = appender.append, appender.waits
                lsn = waits.timed(appender.place, data, 1, len(data)) if waits.sample else append(data, 1, len(data))
            except BaseException as error:
                lsn = self._handle.not_appended(appender, error, data)
            if lsn:
                if appender.chores.due:
                    self._handle.do_chores()
                return lsn
        return self._handle.append_or_buffer(data)

    def delete(self, key: Bytes, timestamp: int | None = None) -> int:
        """Append a delete and return its LSN; 0 in SyncMode.NONE.

        Args:
            key: bytes-like, at most 1 MiB.
            timestamp (default None): as in `put`.

        Raises:
            TypeError, ValueError: as `put`.
            EntryTooLarge, BatchTooLarge, LogFull, IOFailed, LogBusy, SyncFailed: as `append`.
            LogReplaced, UnsafeLog, CorruptLog, LogClosed: as `append`.
        """
        if timestamp is None:
            timestamp = self._time_ns()
        elif type(timestamp) is not int:
            raise bad_timestamp(timestamp)
        try:
            data = encode_one(DELETE_BITS, key, b"", timestamp)
        except EntryTooLarge as error:
            raise self._handle.failed(error) from None
        return self._handle.append_or_buffer(data)

    def append_batch(self, entries: Iterable[WALEntry]) -> range:
        """Append all entries as one frame, or none; the range of their LSNs. In SyncMode.NONE too, at once.

        Args:
            entries: WALEntry objects; all are encoded before anything is appended.

        Raises:
            TypeError, ValueError: for what is no entry.
            EntryTooLarge, BatchTooLarge, LogFull, IOFailed, LogBusy, SyncFailed: as `append`.
            LogReplaced, UnsafeLog, CorruptLog, LogClosed: as `append`.
        """
        try:
            body = encode_entries(entries)
        except EntryTooLarge as error:
            raise self._handle.failed(error) from None
        count = body.entries
        if not count:
            self._handle.open()
            return range(0)
        if self._handle.buffer is not None:
            first_lsn = self._handle.append_after_buffer(body)
        elif self._handle.options.sync_mode is SyncMode.FULL:
            first_lsn = self._handle.append_durable(body)
        else:
            first_lsn = self._handle.append(body)
        return range(first_lsn, first_lsn + count)

    def batch(self) -> Batch:
        """A context manager that appends what is put into it as one batch, unless its block raises.

        Raises:
            RuntimeError: the batch is used a second time: ask for another one.
            TypeError, ValueError: out of `put` and `delete`, and then out of the block: nothing was appended.
            EntryTooLarge, BatchTooLarge, LogFull, IOFailed, LogBusy, SyncFailed: as `append`.
            LogReplaced, UnsafeLog, CorruptLog, LogClosed: as `append`.
        """
        return Batch(self.append_batch)

    def sync(self) -> int:
        """Make everything that is in the log, and what this writer buffered, durable; the durable LSN.

        Raises:
            LogBusy: another process has been syncing for longer than `lock_timeout`: retry.
            SyncFailed: close every writer of the log and open it again to recover; or, when the message says so, retry.
            LogReplaced, LogClosed: as `append`.
            LogFull, IOFailed, UnsafeLog, CorruptLog: as `append`, of what was buffered; it stays buffered.
        """
        self._handle.open()
        if self._handle.buffer is not None:
            self._handle.buffer.flush(self._handle)
        return self._handle.call(lambda session: session.committer.settle(session.log.control.state().next_lsn - 1))

    def rotate(self) -> None:
        """Seal the active segment now and start the next; nothing to do when it is empty.

        Raises:
            LogFull, IOFailed, LogBusy, SyncFailed, LogReplaced, UnsafeLog, CorruptLog, LogClosed: as `append`.
        """
        if self._handle.buffer is not None:
            self._handle.buffer.flush(self._handle)
        with typed_errors(self._handle.path):
            rotated = self._handle.call(lambda session: session.appender.rotate())
        if rotated:
            self._handle.do_chores()

    def checkpoint(self, lsn: int) -> int:
        """State that nothing at or below `lsn` is needed any more; durable when this returns the LSN in force.

        It never goes back: a lower `lsn` changes nothing. What it covers is made durable first.

        Args:
            lsn: from 0 to the last LSN of the log.

        Raises:
            TypeError, ValueError: for what is no LSN, or one that is not appended.
            LogBusy: nothing was stated: retry.
            LogFull, IOFailed, UnsafeLog: retry when the cause is gone; it may have been stated.
            SyncFailed, LogReplaced, LogClosed: as `sync`.
        """
        return self._handle.call(
            lambda session: state_checkpoint(session.log, lsn, self._handle.options, session.committer.settle)
        )

    def prune(self) -> PruneReport:
        """Apply this writer's retention rules (without any: the checkpoint) now instead of in the background.

        Raises:
            LogBusy: nothing was removed: retry.
            SyncFailed: a sync of the log failed: nothing is removed from it before it was opened again.
            CorruptLog: the checkpoint file is damaged: state the checkpoint again; or a segment: see `walpool verify`.
            LogFull, IOFailed, UnsafeLog: retry when the cause is gone; what was removed until then is gone.
            LogClosed: the writer was closed.
        """
        return self._handle.call(lambda session: apply_retention(session.log, self._handle.options))

    @property
    def path(self) -> str:
        """The log's directory, absolute."""
        return self._handle.path

    @property
    def size(self) -> int:
        """Bytes in the active segment, header included.

        Raises:
            LogClosed: the writer was closed.
        """
        return self._handle.call(lambda session: session.log.control.state().tail)

    @property
    def metrics(self) -> WALMetrics:
        """The log's figures; valid until this writer is closed.

        Raises:
            LogClosed: the writer was closed.
        """
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

        Raises:
            LogFull, IOFailed, UnsafeLog, CorruptLog: the buffer cannot be appended, and the writer stays open: retry.
            SyncFailed, LogReplaced: likewise, also of what `sync_interval_s` promised: as `append`.
            LogBusy: another process, or another thread's call, took longer than `lock_timeout`: retry.
        """
        self._handle.close()

    def __enter__(self) -> "WALWriter":
        self._handle.open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        handle = self.__dict__.get("_handle")  # __del__ runs for a half-made object too
        if handle is not None and not handle.closed and handle.session is not None:
            close_freed(self, handle)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpickle, (self._handle.path, self._handle.options)

    def __repr__(self) -> str:
        handle = self._handle
        return f"<WALWriter {handle.path} {'closed' if handle.closed else handle.options.sync_mode.name}>"


def _unpickle(path: str, options: WriterOptions) -> WALWriter:
    writer = WALWriter.__new__(WALWriter)
    writer._prepare(path, options)
    return writer
