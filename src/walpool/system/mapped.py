"""Mapped files that are written by storing into them: no call of the system, and none that could be refused.

A store where the file has no page of its own kills the process (SIGBUS): behind its end, in a hole, or where the file
system has to find room for it and there is none.
Holds: what is mapped was written before, without a hole, and on a file system that keeps what was written in its place
(filesystems.check_stores). A mapping is of one file, whatever its name leads to by then.
"""

import errno
import mmap
import os

from walpool.system.calls import calls
from walpool.system.failures import typed_error, typed_errors
from walpool.system.files import File

# Where the processor may reorder stores, Python cannot store bytes and then the word that publishes them.
STORES_KEEP_THEIR_ORDER = os.uname().machine == "x86_64"
_POPULATE_WRITE = 23  # <asm-generic/mman-common.h>: of Linux 5.14; mmap does not name it


def written_end(file: File, start: int) -> int:
    """How far from `start` the file was written: to its first hole, or to its end."""
    try:
        return calls.lseek(file.fd, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return start  # which is the end of the file
        raise typed_error(error, file.path) from error


def map_to_store(file: File, size: int) -> memoryview:
    """The first `size` bytes of a file, to be stored into. An OSError is typed; ValueError: it is shorter by now."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    with typed_errors(file.path):
        return memoryview(calls.mmap(file.fd, size, flags=mmap.MAP_SHARED, prot=protection))


def fetch(mapped: memoryview, start: int, end: int) -> None:
    """Have the pages there before they are stored into, in one call, which says what a store would die of.

    An OSError passes.
    """
    start -= start % mmap.PAGESIZE
    mapping = mapped.obj
    assert isinstance(mapping, mmap.mmap)
    try:
        calls.madvise(mapping, _POPULATE_WRITE, start, end - start)
    except OSError as error:
        if error.errno != errno.EINVAL:  # an older Linux: each store fetches its page
            raise
