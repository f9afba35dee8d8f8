"""Every error walpool raises on purpose. Each carries its coordinates as attributes and survives pickling."""

import os
from typing import Any


class WALError(Exception):
    """Base of all walpool errors."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[WALError], args: tuple[Any, ...], state: dict[str, Any]) -> WALError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class LogClosed(WALError):
    """The writer, reader or metrics object was used after `close()`."""


class LogNotFound(WALError, FileNotFoundError):
    """There is no log at the path: nothing there, or a directory without a segment."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.reason = reason


class LogBusy(WALError, TimeoutError):
    """Another process, another thread, or an unfinished call of this very thread had what was waited for.

    `lsns` is empty when nothing was appended: try again. Otherwise these entries are in the log and not known to be
    durable: call `sync()`, do not append them again.
    """

    def __init__(self, reason: str, lsns: range = range(0)) -> None:
        super().__init__(reason)
        self.lsns = lsns


class EntryTooLarge(WALError, ValueError):
    """A key is over 1 MiB or a value over 10 MiB. Nothing was appended."""


class BatchTooLarge(WALError, ValueError):
    """The batch cannot fit an empty segment of this `size_limit`. Nothing was appended."""


class LogFull(WALError, OSError):
    """No space (or over a quota or file size limit); `errno` says which. Nothing was appended; retry when there is."""


class IOFailed(WALError, OSError):
    """The system refused a call (EIO, EMFILE, EROFS, ...); `errno` says why. Nothing was appended."""


class SyncFailed(WALError, OSError):
    """A sync failed: what was not durable may be lost. Close every writer and reopen to recover."""


class LSNUnavailable(WALError, LookupError):
    """The LSN was removed by retention; `first_available` is the first that is still there."""

    def __init__(self, lsn: int, first_available: int) -> None:
        super().__init__(f"LSN {lsn} is no longer in the log: the first available is {first_available}")
        self.lsn = lsn
        self.first_available = first_available


class UnsupportedVersion(WALError):
    """The bytes were written by a newer walpool; upgrade to read them. They are not damaged."""


class UnsafeLog(WALError):
    """Refused because going on could harm data: a symlink, a foreign owner, a replaced lock file, ..."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.reason = reason


class LogReplaced(UnsafeLog):
    """What is open is no longer what the path leads to: the log was moved, removed, or made anew. Open it again."""


class CorruptLog(WALError, ValueError):
    """Stored bytes are damaged. `path`, `offset` (bytes), `lsn` (the LSN expected there) and `reason` say where."""

    def __init__(self, path: str | os.PathLike[str], offset: int, lsn: int, reason: str) -> None:
        place = os.fspath(path)
        super().__init__(f"{place}: damage at offset {offset} (LSN {lsn}): {reason}; see `walpool verify`")
        self.path = place
        self.offset = offset
        self.lsn = lsn
        self.reason = reason
