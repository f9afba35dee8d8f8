"""What this process did with a log: counters that are its own, not the log's.

Holds: one object per log directory and process; a forked child starts from zero. Adding takes no lock: whoever adds
has a cell to itself meanwhile, so threads, signal handlers and finalizers may add in the middle of each other's adding,
and nothing is lost, counted twice, or waited for. A cell only rises, so sums do.
"""

import weakref
from collections import deque
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from walpool.shared.figures.fields import COUNTED_HERE
from walpool.system.forks import reopen_after_fork

Key = TypeVar("Key", bound=Hashable)


class Cells(Generic[Key]):
    """Sums by key."""

    def __init__(self) -> None:
        self._all: list[dict[Key, int]] = []
        self._free: deque[dict[Key, int]] = deque()

    def take(self) -> dict[Key, int]:
        """A cell that nobody else adds to until it is given back. What is in it counts all the time."""
        try:
            return self._free.pop()
        except IndexError:
            cell: dict[Key, int] = {}
            self._all.append(cell)
            return cell

    def give_back(self, cell: dict[Key, int]) -> None:
        self._free.append(cell)

    def add(self, counts: Iterable[tuple[Key, int]]) -> None:
        cell = self.take()
        try:
            for key, count in counts:
                cell[key] = cell.get(key, 0) + count
        finally:
            self._free.append(cell)

    def sum(self, key: Key) -> int:
        return sum([cell.get(key, 0) for cell in self._all.copy()])


class ProcessCounters:
    """Plain counters of one process; nothing here is on the way of an append that succeeds."""

    def __init__(self) -> None:
        self._cells: Cells[str] = Cells()
        self._inherited = dict.fromkeys(COUNTED_HERE, 0)
        reopen_after_fork(self)

    def after_fork(self) -> None:
        self._inherited = self._sums()  # cells stay: readers that the child goes on with have theirs

    def add(self, **counts: int) -> None:
        for name in counts:
            self._inherited[name]  # a KeyError is our bug
        self._cells.add(counts.items())

    def cell_for(self, owner: object) -> dict[str, int]:
        """A cell that `owner` alone adds to, as long as it lives: for what counts so often that `add` would show."""
        cell = self._cells.take()
        for name in COUNTED_HERE:
            cell.setdefault(name, 0)
        weakref.finalize(owner, self._cells.give_back, cell).atexit = False
        return cell

    def values(self) -> dict[str, int]:
        return {name: count - self._inherited[name] for name, count in self._sums().items()}

    def _sums(self) -> dict[str, int]:
        return {name: self._cells.sum(name) for name in COUNTED_HERE}


_by_path: dict[str, ProcessCounters] = {}


def counters_of(path: str) -> ProcessCounters:
    """This process's counters of the log at an absolute path."""
    found = _by_path.get(path)
    return found if found is not None else _by_path.setdefault(path, ProcessCounters())
