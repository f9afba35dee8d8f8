"""Every operating-system function that walpool uses, by name, in one replaceable place.

Holds: nothing else in walpool names these functions, so replacing an attribute of `calls` before a log is opened
lets a test record, fail or interrupt every call. The hot path binds what it needs when a log is opened.
"""

import fcntl
import mmap
import os
import time


class Calls:
    def __init__(self) -> None:
        self.open = os.open
        self.close = os.close
        self.fstat = os.fstat
        self.stat = os.stat
        self.listdir = os.listdir
        self.mkdir = os.mkdir
        self.rename = os.rename
        self.unlink = os.unlink
        self.link = os.link
        self.chmod = os.chmod
        self.fchmod = os.fchmod
        self.ftruncate = os.ftruncate
        self.pwrite = os.pwrite
        self.pread = os.pread
        self.preadv = os.preadv
        self.fsync = os.fsync
        self.fdatasync = getattr(os, "fdatasync", os.fsync)  # macOS: see `full_sync` in files
        self.mmap = mmap.mmap
        self.flock = fcntl.flock
        self.fcntl = fcntl.fcntl
        self.time_ns = time.time_ns
        self.monotonic = time.monotonic
        self.sleep = time.sleep
        self.getpid = os.getpid


calls = Calls()
