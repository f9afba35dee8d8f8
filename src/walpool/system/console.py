"""The console: the environment a command was started in, and its output, which is whole or an error.

Holds: what is written to stdout is written to the last byte, whatever kind of file it is, or raises; what cannot be
said on stderr is dropped, and changes nothing; descriptors 0 to 2 are never a file of a log.
"""

import errno
import io
import os
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

from walpool.system import signals

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

BUFFER_BYTES = 64 * 1024
PIPE_BYTES = 4096  # a pipe that is ready takes so many without blocking (PIPE_BUF of Linux)
HURRIED_S = 1.0


def setting(name: str) -> str:
    """The environment variable, or an empty string."""
    return os.environ.get(name, "")


def screen_is_possible() -> bool:
    """Whether this is a terminal that can show more than lines, with somebody before it."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return setting("TERM") not in ("", "dumb") and all(each is not None and each.isatty() for each in streams)


class Output(io.BufferedIOBase):
    """A buffer above one descriptor: it keeps what is not written yet, and knows of every byte whether it is.

    It waits where the descriptor is non-blocking; once the command was told to end, for a second. `forgiving`: what
    cannot be written is dropped. `outlives_readers`: so is what nobody reads any more.

    In Python, because those of C lose the rest of a short write, or write it twice, when a signal handler raises.
    """

    def __init__(self, fd: int, *, forgiving: bool = False) -> None:
        self.forgiving = forgiving
        self.outlives_readers = False
        self._fd = fd
        self._buffer = bytearray()
        self._lock = RLock()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._most = BUFFER_BYTES if is_file else PIPE_BYTES

    def write(self, data: "ReadableBuffer", /) -> int:
        with self._lock:
            before = len(self._buffer)
            self._buffer += data
            size = len(self._buffer) - before
            if len(self._buffer) >= BUFFER_BYTES:
                self.flush()
            return size

    def flush(self) -> None:
        """Write all of it. An error leaves in the buffer exactly what was not written."""
        with self._lock:
            try:
                while self._buffer:
                    self._write_some()
            except OSError as error:
                if not self.forgiving and not (self.outlives_readers and isinstance(error, BrokenPipeError)):
                    raise
                self._buffer.clear()

    def _write_some(self) -> None:
        # Not after a write that is told to end: a terminal or pipe that nobody reads would hold us for ever.
        if not self._poll.poll(HURRIED_S * 1000 if signals.came() else None):
            raise TimeoutError(errno.ETIMEDOUT, "nobody reads the output")
        chunk = bytes(memoryview(self._buffer)[: self._most])
        with signals.held():  # between these two, an exception would have the chunk written twice
            try:
                del self._buffer[: os.write(self._fd, chunk)]
            except BlockingIOError:
                pass  # ready for less than we have, and nothing taken

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True


@contextmanager
def whole_output() -> Iterator[None]:
    """Inside, sys.stdout and sys.stderr are as promised above; a path that the encoding cannot show is escaped."""
    _occupy_standard_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout = _stream(sys.stdout, 1, forgiving=False)
    sys.stderr = _stream(sys.stderr, 2, forgiving=True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _stream(found: TextIO | None, fd: int, *, forgiving: bool) -> TextIO:
    if found is not None and not (isinstance(found, io.TextIOWrapper) and _descriptor(found) == fd):
        return found  # somebody put another in its place
    output = Output(fd, forgiving=forgiving)
    return io.TextIOWrapper(
        cast(BinaryIO, output),
        encoding=None if found is None else found.encoding,
        errors="backslashreplace",
        line_buffering=forgiving or output.isatty() or (found is not None and found.write_through),
    )


def _descriptor(stream: io.TextIOWrapper) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def _occupy_standard_descriptors() -> None:
    """What was closed by whoever started us leads nowhere: a log's file in its place would be printed into."""
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        os.set_inheritable(fd, True)  # our own processes must not find it free either
    os.close(fd)


def let_readers_go() -> None:
    """From now on a reader of stdout that goes away is no error: the result of the command stays what it is."""
    if (output := _output()) is not None:
        output.outlives_readers = True


def drop_output() -> None:
    """Forget what is still buffered for stdout, and what comes: it cannot be written, and that has been said."""
    if (output := _output()) is not None:
        output.forgiving = True


def _output() -> Output | None:
    output = getattr(sys.stdout, "buffer", None)
    return output if isinstance(output, Output) else None
