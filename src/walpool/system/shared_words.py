"""A file mapped by every process, seen as 64-bit words.

Holds: a live word is stored whole, through one aligned `memoryview.cast("Q")` store: `struct.pack_into` zeroes its
target first, and other processes read the zeros (12-20 % of loads, measured). Space is allocated before it is mapped:
a store into a hole on a full disk is SIGBUS.
"""

import mmap

from walpool.system.calls import calls
from walpool.system.failures import typed_errors
from walpool.system.files import File

WORD = 8


class SharedWords:
    """The mapping of `size` bytes of one file from `offset`, a multiple of the page size. The file must have them."""

    def __init__(self, file: File, size: int, *, writable: bool, offset: int = 0) -> None:
        protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
        with typed_errors(file.path):
            mapping = calls.mmap(file.fd, size, flags=mmap.MAP_SHARED, prot=protection, offset=offset)
        # Unmapped when the last of these views is gone, never under a thread that still looks at a word.
        self.bytes = memoryview(mapping)
        self.words = self.bytes.cast("Q")


def allocate(file: File, size: int) -> None:
    """Give the file `size` bytes of real blocks, all zero."""
    file.write(bytes(size), 0)  # not posix_fallocate: it is absent on macOS, and the block is a few pages
