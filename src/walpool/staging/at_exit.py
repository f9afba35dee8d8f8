"""What happens to buffered entries when a process ends in order: they are appended; and making a signal such an end."""

import atexit
import sys
import warnings
from collections.abc import Iterable
from typing import NoReturn, Protocol
from weakref import WeakSet

from walpool.errors import WALError
from walpool.system.failures import in_words
from walpool.system.locks import held_by_this_thread
from walpool.system.signals import SIGTERM, on_signals
from walpool.system.threads import members


class Closable(Protocol):
    def close(self) -> None: ...


_buffering: "WeakSet[Closable]" = WeakSet()
_unclosed: list[Closable] = []  # freed in the middle of an append on their log: their buffers wait for the end


def close_at_exit(writer: Closable) -> None:
    """Close this writer when the process ends, unless `forget` comes first. Call it in the process that will end."""
    _buffering.add(writer)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _close_all, exitpriority=0)  # a worker ends with os._exit, past atexit, and runs these


def forget(writer: Closable) -> None:
    _buffering.discard(writer)


def keep(writer: Closable) -> None:
    """For a writer that was freed at a moment at which it cannot append."""
    _unclosed.append(writer)


class Freeable(Protocol):
    def let_go_of_freed(self) -> None: ...


def close_freed(writer: Closable, handle: Freeable) -> None:
    """What `__del__` does with a writer that is open: it warns, and appends what is buffered."""
    if sys.is_finalizing():
        # When the interpreter ends, its daemon threads are frozen, perhaps with a lock that close() would wait for;
        # what a buffer held was appended by the exit hook, and the system frees the rest.
        return
    if held_by_this_thread():
        handle.let_go_of_freed()
        keep(writer)  # the collector came by in the middle of a call: nothing of the user's may run now
        return
    warnings.warn(f"unclosed {writer!r}", ResourceWarning, source=writer, stacklevel=3)
    try:
        writer.close()
    except (OSError, WALError):
        handle.let_go_of_freed()
        writer.close()


def _close_all() -> None:
    """Every one of them, whatever another one raises; then say which could not."""
    failed: list[str] = []
    for writer in {*members(_buffering), *_unclosed}:
        try:
            writer.close()
        except BaseException as error:
            failed.append(f"{writer!r} could not append its buffer at exit: {in_words(error)}")
    for text in failed:
        try:
            warnings.warn(text, RuntimeWarning, stacklevel=1)
        except RuntimeWarning as raised:  # python -W error
            print(raised, file=sys.stderr)


atexit.register(_close_all)


def flush_at_signals(signals: Iterable[int] = (SIGTERM,)) -> None:
    """Have these signals end the process in order, so that what SyncMode.NONE has buffered is appended.

    Without this, SIGTERM, and every other signal whose default is to end the process, takes what is buffered with it:
    so do `multiprocessing.Pool` as a context manager, which ends its workers by SIGTERM, and a container's stop. With
    it the signal raises SystemExit(128 + its number) in the main thread: `finally` and `with` blocks run, writers are
    closed, then the process ends. Call it in the main thread of each process that has such writers (in a pool: in its
    initializer). SIGKILL and `os._exit` cannot be caught.

    Args:
        signals (default (15,)): numbers of signals; 15 is SIGTERM. Their handlers until now are replaced.

    Raises:
        ValueError: outside of the main thread, where Python handles no signals: call it there.
    """
    on_signals(signals, _end)


def _end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)
