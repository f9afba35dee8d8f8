"""Cursor: a named position in a log, of one consumer at a time.

Holds: what it hands out is durable, in LSN order, from behind the last commit on; after a kill, whoever opens it next
goes on there. So each entry is handed out at least once, and what was committed never again.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from walpool.consume.committed import Committed, make
from walpool.consume.consumer import Consumer
from walpool.consume.feed import Batches, Entries
from walpool.consume.life import Life
from walpool.errors import LogClosed
from walpool.format.entry import WALEntry
from walpool.read.reading import ReadBatch
from walpool.shared.cursors.positions import check_name


class _Open(NamedTuple):
    consumer: Consumer
    committed: Committed
    feed: Entries

    def close(self) -> None:
        try:
            self.committed.sync()
        finally:
            self.committed.close()


class Cursor(Life[_Open]):
    """The named position `name` in the log at `path`: what was committed is not handed out again, whoever comes next.

    A new one begins with the first entry there is. One object at a time has it open, in whatever process, as long as
    that lives. It hands out durable entries only, and makes durable what nobody else does. It belongs to one thread,
    but `commit`, `position` and `close` may be called from any. A forked child and an unpickled copy open it for
    themselves on their next use, and go on behind the last commit; the child gets LogBusy as long as its parent has it.

    >>> import walpool
    >>> with walpool.WALWriter("events.wal") as writer:
    ...     lsns = writer.append_batch([walpool.WALEntry.put(b"a", b"1"), walpool.WALEntry.put(b"b", b"2")])
    >>> with walpool.Cursor("events.wal", "etl") as cursor:
    ...     for entry in cursor.follow(timeout=0):
    ...         print(entry.lsn, entry.key)
    ...         position = cursor.commit(entry.lsn)
    1 b'a'
    2 b'b'

    Args:
        path: the log's directory.
        name: 1 to 64 of A-Z a-z 0-9 . _ -
        lock_timeout (default None): seconds to wait for whoever has it open, and for other locks; None waits for ever.
        allow_network_fs (default False): as for a writer.

    Raises:
        TypeError, ValueError: for what is no name.
        LogNotFound: mend the path, or retry once a writer has made the log.
        LogBusy: another has it open; the message says who: retry.
        CorruptLog: its file is damaged: `walpool cursors LOG --reset NAME`; or a segment is: see `walpool verify`.
        SyncFailed: a sync of the log failed: open it again when every writer was closed.
        UnsafeLog, UnsupportedVersion: mend what it names, or upgrade walpool.
        LogReplaced, LogFull, IOFailed: retry when the cause is gone.
    """

    _committed: Committed | None = None  # also once it is closed

    def __init__(
        self,
        path: str | os.PathLike[str],
        name: str,
        *,
        lock_timeout: float | None = None,
        allow_network_fs: bool = False,
    ) -> None:
        self._prepare(os.path.abspath(os.fspath(path)), check_name(name), lock_timeout, allow_network_fs)
        self._opened()

    def _open_in(self, consumer: Consumer) -> _Open:
        timeout = 0.0 if self._is_child else self._lock_timeout  # its parent may be waiting for it
        consumer.owners.take(consumer.directory, self._name, timeout)
        consumer.open()
        consumer.owners.say_who(self._name, consumer.session.log.slot)
        make(consumer, [self._name])
        committed = Committed(consumer, self._name)
        self._committed = committed
        return _Open(consumer, committed, Entries(consumer, self._name, lambda: committed.position.wanted_lsn))

    # Reading

    def follow(self, timeout: float | None = None) -> Iterator[WALEntry[bytes]]:
        """Durable entries behind the last commit, and then as they come. What a caller who stops has not taken, comes
        next time.

        Args:
            timeout (default None): end after so many seconds without news; None waits for ever.

        Raises:
            LSNUnavailable: retention has removed entries that were not committed; `missed` says how many. To go on all
                the same, commit `first_available - 1`.
            SyncFailed: a sync failed; the cursor is closed: open another when every writer was closed, too.
            LogBusy: another process has been syncing for longer than `lock_timeout`: retry.
            CorruptLog: a segment is damaged: see `walpool verify`.
            LogReplaced: another log, or none, is at the path by now: open it again.
            UnsupportedVersion: upgrade walpool.
            UnsafeLog, IOFailed: the system refuses a call: retry when the cause is gone.
            LogClosed: the cursor was closed.
        """
        return self._follow(self._opened().feed, timeout)

    def batches(self, timeout: float | None = 0.0) -> Iterator[ReadBatch[bytes]]:
        """The same as batches, as they were appended; of one that was begun, or committed in part, the rest.

        Args:
            timeout (default 0.0): end after so many seconds without news; 0.0 gives what there is; None waits for ever.

        Raises:
            LSNUnavailable, SyncFailed, LogBusy, CorruptLog, LogReplaced: as `follow`.
            UnsupportedVersion, UnsafeLog, IOFailed, LogClosed: as `follow`.
        """
        return self._follow(Batches(self._opened().feed), timeout)

    # Committing

    @property
    def position(self) -> int:
        """The last LSN that was committed; 0 for a new cursor. Also once it is closed."""
        return 0 if self._committed is None else self._committed.lsn

    def commit(self, lsn: int, sync: bool = True) -> int:
        """State that everything up to `lsn` is done: the position then. A lower one changes nothing.

        Args:
            lsn: at most the durable LSN: that of an entry that was handed out always is.
            sync (default True): return when it is on disk; False survives a kill, and a power cut from the next
                synced commit, or `close`, on.

        Raises:
            TypeError, ValueError: for what is no LSN, or one that is not durable.
            IOFailed, LogFull: nothing was committed, and what was without a sync is not any more; `position` says where
                that leaves it: retry when the cause is gone.
            LogReplaced, UnsafeLog: what was open is not at the path any more: open it again.
            LogBusy: this very thread was interrupted in the middle of a commit: retry.
            LogClosed: the cursor was closed.
        """
        if type(lsn) is not int:
            raise TypeError(f"lsn must be an int, not {type(lsn).__name__}")
        self._opened()
        return self._alone(lambda: self._commit(lsn, sync))

    def _commit(self, lsn: int, sync: bool) -> int:
        there = self._open
        if there is None:
            raise LogClosed(f"{self._path}: cursor {self._name!r} was closed by another thread")
        consumer, committed, _ = there
        self._check_durable(lsn, consumer)
        if lsn > committed.lsn:
            committed.write(lsn)
        if sync:
            committed.sync()
        return committed.lsn

    # Its life

    def close(self) -> None:
        """Make durable what was committed, and let another have it. May be called again, and by any thread.

        Raises:
            IOFailed, LogFull, LogReplaced, UnsafeLog: what was committed without a sync may be lost; it is closed.
            LogBusy: as `commit`; or another thread's call took longer than `lock_timeout`; it is closed.
        """
        self._end()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpickle, (self._path, self._name, self._lock_timeout, self._allow_network_fs)

    def __repr__(self) -> str:
        return f"<Cursor {self._name} of {self._path} {'closed' if self._closed else f'at LSN {self.position}'}>"


def _unpickle(path: str, name: str, lock_timeout: float | None, allow_network_fs: bool) -> Cursor:
    cursor = Cursor.__new__(Cursor)
    cursor._prepare(path, name, lock_timeout, allow_network_fs)
    return cursor
