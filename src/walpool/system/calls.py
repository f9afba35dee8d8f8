"""Every operating-system function that walpool uses, by name, in one replaceable place.

Holds: nothing else in walpool names these functions, but for the close of a log's open file (see files.File: it must be
one step). So replacing an attribute of `calls` before a log is opened
lets a test record, fail or interrupt every call. The hot path binds what it needs when a log is opened. The core, which
makes some of these calls in C, is used by logs that are opened while all of those are the originals.
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
        self.lseek = os.lseek
        self.mmap = mmap.mmap
        self.madvise = mmap.mmap.madvise
        self.store = _store
        self.flock = fcntl.flock
        self.fcntl = fcntl.fcntl
        self.ioctl = fcntl.ioctl
        self.time_ns = time.time_ns
        self.monotonic = time.monotonic
        self.monotonic_ns = time.monotonic_ns
        self.sleep = time.sleep
        self.futex_wait = _futex_wait
        self.futex_wake = _futex_wake
        self.getpid = os.getpid


def _store(mapped: memoryview, start: int, data: bytes) -> None:
    """Into a mapped file: no call of the system, and seen by whoever looks at those all the same."""
    mapped[start : start + len(data)] = data


def _statfs(fd: int) -> bytes:
    """The struct statfs of an open file as the system filled it: os.statvfs leaves out what file system it is."""
    if _fstatfs is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    buffer = ctypes.create_string_buffer(STATFS_BYTES)
    if _fstatfs(fd, buffer) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return buffer.raw


def _futex_wait(address: int, value: int, seconds: float) -> None:
    """Sleep until somebody wakes those at the address, at most `seconds`; not at all if the word has changed."""
    whole = int(seconds)
    timeout = _Timespec(whole, int((seconds - whole) * 1e9))
    _call_futex(address, _FUTEX_WAIT, value, ctypes.byref(timeout))


def _futex_wake(address: int) -> None:
    """Wake all who sleep at the address, in whatever process."""
    _call_futex(address, _FUTEX_WAKE, _EVERYBODY, None)


def _call_futex(address: int, operation: int, value: int, timeout: Any) -> None:
    if _syscall is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _syscall(_SYS_FUTEX, address, operation, value, timeout, None, 0) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


_FUTEX_WAIT, _FUTEX_WAKE = 0, 1  # between processes: without FUTEX_PRIVATE_FLAG
_EVERYBODY = 0x7FFFFFFF
_SYS_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "loongarch64": 98, "ppc64le": 221, "s390x": 238}.get(
    os.uname().machine
)
STATFS_BYTES = 4096  # more than any system's struct statfs
# Loaded with the module: whoever opens a log may have given up the right to read Python's own files by then.
try:
    import ctypes

    _library: Any = ctypes.CDLL(None, use_errno=True)
    _fstatfs = _library["fstatfs$INODE64" if (sys.platform, os.uname().machine) == ("darwin", "x86_64") else "fstatfs"]

    class _Timespec(ctypes.Structure):
        _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))

    _syscall: Any = None
    if sys.platform == "linux" and sys.maxsize > 1 << 32 and _SYS_FUTEX is not None:  # elsewhere longs are too short
        _syscall = _library["syscall"]
        _syscall.restype = ctypes.c_long
        _syscall.argtypes = (
            ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p,
            ctypes.c_uint32,
        )  # fmt: skip
except (ImportError, OSError, AttributeError):  # a Python that was built without libffi
    _fstatfs = _syscall = None

calls = Calls()
_originals = vars(calls).copy()


def are_originals(*names: str) -> bool:
    """Whether nobody has replaced these: then the core may make the same calls of the system by itself."""
    return all(getattr(calls, name) is _originals[name] for name in names)
