"""Every error walpool raises on purpose. Each carries its coordinates as attributes and survives pickling.

What to do then is one of three: retry (the same call, perhaps later), reopen (a new writer or reader), or stop (going
on would give the same, or do harm: a person, or a change to the program, comes first).
"""

import os
from typing import Any


class WALError(Exception):
    """Base of all walpool errors.

    What to do: stop, unless the error is one whose class says otherwise.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[WALError], args: tuple[Any, ...], state: dict[str, Any]) -> WALError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class LogClosed(WALError):
    """The writer, reader or metrics object was used after `close()`, which another thread may have called.

    What to do: reopen, with a new object, if there is more to do.
    """


class LogNotFound(WALError, FileNotFoundError):
    """There is no log at the path: nothing there, or a directory without a segment.

    Attributes:
        path: what was opened, absolute.
        reason: what is there instead.

    What to do: retry once a writer has made the log, or mend the path. Only a writer makes one.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.reason = reason


class LogBusy(WALError, TimeoutError):
    """Another process, another thread, or an unfinished call of this very thread had what was waited for.

    Args:
        reason: the message.

    Attributes:
        lsns (default range(0)): the entries that are in the log already and not known to be on disk; empty when
            nothing was appended.

    What to do: retry when `lsns` is empty. Otherwise call `sync()`, and do not append these entries again.
    """

    def __init__(self, reason: str, lsns: range = range(0)) -> None:
        super().__init__(reason)
        self.lsns = lsns


class EntryTooLarge(WALError, ValueError):
    """A key is over 1 MiB or a value over 10 MiB. Nothing was appended.

    What to do: stop. Split the value, or keep it elsewhere and append where: the same entry is refused every time.
    """


class BatchTooLarge(WALError, ValueError):
    """The batch cannot fit an empty segment of this `size_limit`. Nothing was appended.

    What to do: stop. Split the batch, or open the writer with a larger `size_limit`.
    """


class LogFull(WALError, OSError):
    """No space. Nothing was appended, and what was appended before is untouched.

    Attributes:
        errno: ENOSPC for a full disk, EDQUOT for a quota, EFBIG for the largest file that may be.

    What to do: retry when there is room. A checkpoint and `prune()` make some.
    """


class IOFailed(WALError, OSError):
    """The system refused a call. Nothing was appended.

    Attributes:
        errno: why: EIO (the disk), EMFILE (too many open files), EROFS (mounted read-only), ...

    What to do: retry when the cause is gone.
    """


class SyncFailed(WALError, OSError):
    """A sync failed, or could not be tried: what was not durable may be lost.

    After a failed sync every writer of the log, in every process, refuses to append until it was recovered: the kernel
    may have dropped the bytes and call the next sync a success (Rebello et al., "Can Applications Recover from fsync
    Failures?", USENIX ATC 2020). The entries of an append that raises this are in the log, and perhaps not on disk. The
    message says when the sync could not be tried: then the log is not marked, and `sync()` tries again.

    Attributes:
        errno: what the sync was answered; 5 (EIO) when nobody knows.

    What to do: reopen, after every writer of the log was closed: the first to open it recovers. While the disk fails,
    opening raises this again.
    """


class LSNUnavailable(WALError, LookupError):
    """The LSN was removed by retention.

    Args:
        cursor (default ""): the name of the cursor that has missed it.

    Attributes:
        path: the log's directory, or "" where nobody said.
        lsn: the one that was asked for.
        first_available: the first that is still there.
        missed: how many entries are gone from `lsn` on.

    What to do: reopen the reader with `start=first_available`, if what was removed can be missed. A cursor goes on
    behind what it missed once `first_available - 1` is committed.
    """

    def __init__(self, lsn: int, first_available: int, path: str = "", cursor: str = "") -> None:
        where = f"{path}: " if path else ""
        missed = first_available - lsn
        told = f"LSN {lsn} is no longer in the log: the first available is {first_available}"
        if cursor:
            told = (
                f"cursor {cursor!r} missed {missed:,} entries, LSN {lsn} to {first_available - 1}: retention has"
                f" removed them before they were committed; commit({first_available - 1}), or `walpool cursors LOG"
                f" --reset {cursor}`, goes on behind them"
            )
        super().__init__(where + told)
        self.path = path
        self.lsn = lsn
        self.first_available = first_available
        self.missed = missed


class WorkerFailed(WALError):
    """A worker process of `map_batches` could not be started, was killed, or had a function that raised.

    What the function raised is the error's cause, where it can be sent from process to process; the worker's traceback
    stands in the error's notes.

    Attributes:
        path: of the log.
        start, end: the LSNs of the part that was being read, `end` exclusive; what stands before it was handed on, when
            results are in order.
        reason: what happened, in words.

    What to do: stop, and mend what the cause or the reason names. Retry, with fewer workers, when the system has killed
    one for want of memory.
    """

    def __init__(self, path: str | os.PathLike[str], start: int, end: int, reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.start = start
        self.end = end
        self.reason = reason


class UnsupportedVersion(WALError):
    """The bytes were written by a newer walpool. They are not damaged.

    What to do: stop, and upgrade walpool. Repairing would cut off what this version cannot read.
    """


class UnsafeLog(WALError):
    """Refused because going on could harm data: a symlink, a foreign owner, a replaced lock file, ...

    Attributes:
        path: what was refused.
        reason: why, and what would have to be otherwise.

    What to do: stop, mend what `reason` names, and open the log again.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.reason = reason


class Unsupported(WALError):
    """This place cannot do what was asked of it; the message says which can.

    What to do: stop. Leave out what cannot be had here, or move the log.
    """


class LogReplaced(UnsafeLog):
    """What is open is no longer what the path leads to: the log was moved, removed, or made anew.

    Attributes:
        path: that of the log, or of the segment that was removed or replaced.
        reason: what is there now.

    What to do: reopen, to go on with the log that is there now; find out who changed the files. A reader's LSNs say
    nothing about another log.
    """


class CorruptLog(WALError, ValueError):
    """Stored bytes are damaged.

    Attributes:
        path: the file, or "<bytes>" for what was given as bytes.
        offset: of the damaged place in it, bytes.
        lsn: the LSN that was expected there; 0 when none was.
        reason: what is wrong with the bytes.

    What to do: stop. `walpool verify` lists every damaged place, `walpool repair` says what each mode would keep; a
    reader with RecoveryMode.SALVAGE gives what is intact.
    """

    def __init__(self, path: str | os.PathLike[str], offset: int, lsn: int, reason: str) -> None:
        place = os.fspath(path)
        what = f" (LSN {lsn})" if lsn else ""
        look = "" if place.startswith("<") else "; see `walpool verify`"  # it is no file
        super().__init__(f"{place}: damage at offset {offset}{what}: {reason}{look}")
        self.path = place
        self.offset = offset
        self.lsn = lsn
        self.reason = reason
