"""Failures: what the system refuses, as the walpool error that a caller can act on."""

import errno
import os
from types import TracebackType

from walpool.errors import IOFailed, LogFull, UnsafeLog, WALError

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EMLINK}


class typed_errors:
    """An OSError inside becomes the walpool error a caller can act on; errno and cause are kept.

    A class, because an opening enters it 60 times: a generator's context takes 1 us more.
    """

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):  # that, only the caller understands
            typed = typed_error(error, self._path)
            if typed is not error:
                raise typed from error


def typed_error(error: OSError, path: str) -> Exception:
    if isinstance(error, WALError) or error.errno is None:
        return error
    what = os.strerror(error.errno)
    if error.errno in _NO_SPACE:
        return LogFull(error.errno, f"{path}: {what}; nothing was appended, retry when there is room")
    if error.errno in _REFUSED:
        return UnsafeLog(path, f"refused: {what}")
    return IOFailed(error.errno, f"{path}: {what}; nothing was appended")
