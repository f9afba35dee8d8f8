"""Batch: entries collected and appended together, or not at all."""

from collections.abc import Callable
from types import TracebackType

from walpool.format.entry import Bytes, WALEntry

_NEW, _OPEN, _OVER = range(3)


class Batch:
    """What `writer.batch()` gives: appended when its `with` block ends, dropped when the block raises.

    It takes entries inside of that one block only. `lsns` is the range of their LSNs, once appended. Outside of the
    block, or in a second one, every method raises RuntimeError: what it was given would be lost, or there twice.
    """

    def __init__(self, append: Callable[[list[WALEntry]], range]) -> None:
        self._append = append
        self._entries: list[WALEntry] = []
        self._state = _NEW
        self.lsns = range(0)

    def put(self, key: Bytes, value: Bytes, timestamp: int | None = None) -> None:
        """Add a put. `timestamp` defaults to ns since the epoch."""
        self._add(WALEntry.put(key, value, timestamp))

    def delete(self, key: Bytes, timestamp: int | None = None) -> None:
        """Add a delete."""
        self._add(WALEntry.delete(key, timestamp))

    def append(self, entry: WALEntry) -> None:
        """Add an entry."""
        self._add(entry)

    def _add(self, entry: WALEntry) -> None:
        if self._state != _OPEN:
            raise RuntimeError(
                "a batch takes entries inside its `with` block only: with writer.batch() as batch: batch.put(...)"
            )
        self._entries.append(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self) -> "Batch":
        if self._state != _NEW:
            raise RuntimeError("a batch is used for one `with` block: ask the writer for another one")
        self._state = _OPEN
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state = _OVER
        if kind is None:
            self.lsns = self._append(self._entries)
