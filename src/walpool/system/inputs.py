"""Files that are no log's, read once from front to back.

Holds: a file is what was opened, known by its device and inode; its name may lead elsewhere by then.
"""

import errno
import os
import stat
from types import TracebackType


class NotRegular(OSError):
    """A directory, a FIFO, a device: what has no size, and perhaps no end."""


class InputFile:
    """One regular file, open for reading."""

    _fd = -1

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises NotRegular and every other OSError of opening; a FIFO does not block it."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        found = os.fstat(self._fd)
        self.identity = (found.st_dev, found.st_ino)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise NotRegular(errno.EINVAL, "not a regular file", os.fspath(path))

    def size(self) -> int:
        """Bytes, now; 0 also of files that the kernel makes up as they are read (/proc)."""
        return os.fstat(self._fd).st_size

    def read(self, size: int) -> bytes:
        """The next bytes, at most so many; none at the end."""
        return os.read(self._fd, size)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> "InputFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
