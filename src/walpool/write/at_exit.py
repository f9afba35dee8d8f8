"""What happens to buffered entries when a process ends in order: they are appended."""

import atexit
import sys
import warnings
from typing import Protocol
from weakref import WeakSet

from walpool.errors import WALError


class Closable(Protocol):
    def close(self) -> None: ...


_buffering: "WeakSet[Closable]" = WeakSet()


def close_at_exit(writer: Closable) -> None:
    """Close this writer when the process ends, unless `forget` comes first. Call it in the process that will end."""
    _buffering.add(writer)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _close_all, exitpriority=0)  # a worker ends with os._exit, past atexit, and runs these


def forget(writer: Closable) -> None:
    _buffering.discard(writer)


def _close_all() -> None:
    for writer in list(_buffering):
        try:
            writer.close()
        except WALError as error:
            warnings.warn(f"{writer!r} could not append its buffer at exit: {error}", RuntimeWarning, stacklevel=1)


atexit.register(_close_all)
