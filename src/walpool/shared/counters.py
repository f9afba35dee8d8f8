"""What this process did with a log: counters that are its own, not the log's.

Holds: one object per log directory and process; a forked child starts from zero.
"""

import threading

from walpool.system.locks import reopen_after_fork


class ProcessCounters:
    """Plain counters of one process. `add` is for threads; nothing here is on the way of an append that succeeds."""

    FIELDS = ("reads_total", "reads_failed", "bytes_read", "corrupted_entries", "files_opened")

    def __init__(self) -> None:
        self.after_fork()
        reopen_after_fork(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._values = dict.fromkeys(self.FIELDS, 0)

    def add(self, **counts: int) -> None:
        with self._lock:
            for name, count in counts.items():
                self._values[name] += count

    def values(self) -> dict[str, int]:
        with self._lock:
            return dict(self._values)


_by_path: dict[str, ProcessCounters] = {}


def counters_of(path: str) -> ProcessCounters:
    """This process's counters of the log at an absolute path."""
    found = _by_path.get(path)
    return found if found is not None else _by_path.setdefault(path, ProcessCounters())
