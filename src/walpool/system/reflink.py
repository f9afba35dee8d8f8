"""Reflinks: a file that shares another's blocks until one of the two is changed, where the file system can do that."""

import errno
import sys

from walpool.system.calls import calls
from walpool.system.failures import typed_error
from walpool.system.files import File

_FICLONE = 0x40049409  # <linux/fs.h>; the same on x86-64 and arm64
_CANNOT = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}


def reflink(source: File, to: File) -> bool:
    """Make the empty file `to` a copy of `source` without copying; False where that cannot be, and nothing changed."""
    if sys.platform != "linux":
        return False
    try:
        calls.ioctl(to.fd, _FICLONE, source.fd)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise typed_error(error, to.path) from error
    return True
