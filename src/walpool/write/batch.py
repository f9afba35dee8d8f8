"""Batch: entries collected and appended together, or not at all."""

from collections.abc import Callable
from types import TracebackType

from walpool.format.entry import Bytes, WALEntry


class Batch:
    """What `writer.batch()` gives: appended when the `with` block ends, dropped when it raises."""

    def __init__(self, append: Callable[[list[WALEntry]], range]) -> None:
        self._append = append
        self._entries: list[WALEntry] = []
        self.lsns = range(0)  # of the entries, once appended

    def put(self, key: Bytes, value: Bytes, timestamp: int | None = None) -> None:
        self._entries.append(WALEntry.put(key, value, timestamp))

    def delete(self, key: Bytes, timestamp: int | None = None) -> None:
        self._entries.append(WALEntry.delete(key, timestamp))

    def append(self, entry: WALEntry) -> None:
        self._entries.append(entry)

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self) -> "Batch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.lsns = self._append(self._entries)
