"""Failures: what the system refuses, as the walpool error that a caller can act on; and how it is told or logged.

Holds: the error says what to do, and keeps errno and cause. What has no caller is logged once, until it went well.
"""

import errno
import logging
import os
import re
import resource
import stat
from types import TracebackType

from walpool.errors import IOFailed, LogFull, LogNotFound, UnsafeLog, WALError
from walpool.system.calls import calls

logger = logging.getLogger("walpool")

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
                try:
                    raise typed from error
                finally:
                    del typed  # in a cycle with this frame, it would keep what is open for the collector to close


def typed_error(error: OSError, path: str) -> Exception:
    """The walpool error for what the system said about `path`; one that is typed already stays as it is."""
    if isinstance(error, WALError) or error.errno is None:
        return error
    what = explained(error.errno)
    if error.errno in _NO_SPACE:
        return LogFull(error.errno, f"{path}: {what}")
    if error.errno in _REFUSED:
        link = link_at(path, "put the file itself there") if error.errno == errno.ELOOP else None
        return UnsafeLog(path, f"refused: {link or what}")
    return IOFailed(error.errno, f"{path}: {what}")


def no_directory(error: OSError, path: str) -> Exception:
    """For what was to be opened as a log's directory."""
    link = link_at(path, "use that path")
    if error.errno not in (errno.ENOTDIR, errno.ELOOP) or (link is None and error.errno == errno.ELOOP):
        return typed_error(error, path)
    if link is not None:
        return UnsafeLog(path, f"refused: {link}")
    try:
        calls.stat(path, follow_symlinks=False)
    except OSError:
        return LogNotFound(path, "no such log: what should be a directory on the way to it is a file")
    return UnsafeLog(path, "refused: a file, and a log is a directory")


def nothing_appended(error: Exception) -> Exception:
    """The same error, of an append: it says so."""
    if isinstance(error, (LogFull, IOFailed)):
        return type(error)(error.errno, f"{error.strerror}; nothing was appended")
    if isinstance(error, UnsafeLog):
        return type(error)(error.path, f"{error.reason}; nothing was appended")
    return error


def in_words(error: BaseException) -> str:
    """What it says, without the number that str() of an OSError begins with; and the way out, as below."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    return explained(number) if number is not None and said == os.strerror(number) else said


def explained(number: int) -> str:
    """What the system says of an errno, and the way out where that is not plain."""
    what = os.strerror(number)
    if number == errno.EMFILE:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return f"{what}: this process may have {most}; raise the limit (ulimit -n), or close what is not needed"
    if number in (errno.EACCES, errno.EPERM):
        return f"{what}: this process is user {os.geteuid()}"
    way_out = _WAYS_OUT.get(number)
    return what if way_out is None else f"{what}: {way_out}"


_WAYS_OUT = {
    errno.ENOSPC: "make room, and try again",
    errno.EDQUOT: "make room within the quota, or have it raised, and try again",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), and try again",
    errno.ENFILE: "all processes together have as many open as the system allows; raise that (sysctl fs.file-max)",
    errno.ENOTDIR: "something on the way to it is a file",
    errno.EROFS: "whoever writes to a log needs it elsewhere; readers do not mind",
}


def link_at(path: str, way_out: str) -> str | None:
    """What is there, in words, if it is a symbolic link: of one, the system says that it is no directory, or a loop."""
    try:
        if not stat.S_ISLNK(calls.stat(path, follow_symlinks=False).st_mode):
            return None
    except OSError:
        return None
    try:
        return f"a symbolic link, to {os.path.realpath(path, strict=True)}: {way_out}"
    except FileNotFoundError:
        return "a symbolic link that leads nowhere"
    except OSError:
        return "a symbolic link that leads in a circle, or where we may not look"


# Of what has no caller that it could be raised to

MOST_TEXTS = 100
_said: dict[tuple[str, str], dict[str, object]] = {}


def say_once(path: str, subject: str, text: str, level: int = logging.WARNING) -> None:
    """Log what goes wrong beside the calls on a log: once for this process and log, until it is `over`."""
    texts = _said.setdefault((path, subject), {})
    if len(texts) > MOST_TEXTS:
        texts.clear()
    mine = object()
    same = re.sub(r"\d+", "", text)  # whatever LSN, offset or time it was this time
    if texts.setdefault(same, mine) is mine:  # one step: threads that meet the same thing at once say it once
        logger.log(level, "%s", text)


def over(path: str, subject: str) -> None:
    """It went well: when it goes wrong again, that is news."""
    _said.pop((path, subject), None)
