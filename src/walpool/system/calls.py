"""Every operating-system function that walpool uses, by name, in one replaceable place.

Holds: nothing else in walpool names these functions, but for the close of a log's open file (see files.File: it must be
one step). So replacing an attribute of `calls` before a log is opened
lets a test record, fail or interrupt every call. The hot path binds what it needs when a log is opened.
"""

import errno
import fcntl
import mmap
import os
import sys
import time
from typing import Any


class Calls:
    def __init__(self) -> None:
        self.open = os.open
        self.dup = os.dup
        self.close = os.close
        self.fstat = os.fstat
        self.stat = os.stat
        self.statfs = _statfs
        self.listdir = os.listdir
        self.mkdir = os.mkdir
        self.rename = os.rename
        self.rmdir = os.rmdir
        self.unlink = os.unlink
        self.link = os.link
        self.chmod = os.chmod
        self.fchmod = os.fchmod
        self.fchown = os.fchown
        self.ftruncate = os.ftruncate
        self.pwrite = os.pwrite
        self.pread = os.pread
        self.preadv = os.preadv
        self.fsync = os.fsync
        self.fdatasync = getattr(os, "fdatasync", os.fsync)  # macOS: see `full_sync` in files
        self.mmap = mmap.mmap
        self.flock = fcntl.flock
        self.fcntl = fcntl.fcntl
        self.ioctl = fcntl.ioctl
        self.time_ns = time.time_ns
        self.monotonic = time.monotonic
        self.monotonic_ns = time.monotonic_ns
        self.sleep = time.sleep
        self.getpid = os.getpid


def _statfs(fd: int) -> bytes:
    """The struct statfs of an open file as the system filled it: os.statvfs leaves out what file system it is."""
    if _fstatfs is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    buffer = ctypes.create_string_buffer(STATFS_BYTES)
    if _fstatfs(fd, buffer) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return buffer.raw


STATFS_BYTES = 4096  # more than any system's struct statfs
# Loaded with the module: whoever opens a log may have given up the right to read Python's own files by then.
try:
    import ctypes

    _library: Any = ctypes.CDLL(None, use_errno=True)
    _fstatfs = _library["fstatfs$INODE64" if (sys.platform, os.uname().machine) == ("darwin", "x86_64") else "fstatfs"]
except (ImportError, OSError, AttributeError):  # a Python that was built without libffi
    _fstatfs = None

calls = Calls()
