"""Batch: entries collected and appended together, or not at all."""

from collections.abc import Callable
from types import TracebackType

from walpool.format.entry import Bytes, WALEntry, make_put

_NEW, _OPEN, _OVER = range(3)


class Batch:
    """What `writer.batch()` gives: appended when its `with` block ends, dropped when the block raises.

    It takes entries inside of that one block only: what it was given outside would be lost, or there twice. The end of
    the block raises what `WALWriter.batch` says, and then nothing of it was appended.

    >>> import walpool
    >>> with walpool.WALWriter("events.wal") as writer:
    ...     with writer.batch() as batch:
    ...         batch.put(b"a", b"1")
    ...         batch.delete(b"b")
    >>> batch.lsns
    range(1, 3)

    Args:
        append: of the writer that made it: a batch is not made by hand.

    Attributes:
        lsns: the range of its entries' LSNs, once appended; before that, and for no entries, an empty one.
    """

    def __init__(self, append: Callable[[list[WALEntry]], range]) -> None:
        self._append = append
        self._entries: list[WALEntry] = []
        self._state = _NEW
        self.lsns = range(0)

    def put(self, key: Bytes, value: Bytes, timestamp: int | None = None) -> None:
        """Add a put.

        Args:
            key, value: bytes-like; copied now.
            timestamp (default None): yours, from 0 to 2**64 - 1; None is ns since the epoch.

        Raises:
            TypeError, ValueError: for what is no bytes or no timestamp; it was not added.
            RuntimeError: outside of the block: ask the writer for another batch.
        """
        entry = make_put(key, value, timestamp)
        if self._state != _OPEN:
            raise _outside()
        self._entries.append(entry)  # what `_add` does: half of the time of a put

    def delete(self, key: Bytes, timestamp: int | None = None) -> None:
        """Add a delete.

        Args:
            key: bytes-like; copied now.
            timestamp (default None): as in `put`.

        Raises:
            TypeError, ValueError, RuntimeError: as `put`.
        """
        self._add(WALEntry.delete(key, timestamp))

    def append(self, entry: WALEntry) -> None:
        """Add an entry.

        Args:
            entry: what WALEntry.put or WALEntry.delete gave, or a reader; its `lsn` plays no part.

        Raises:
            RuntimeError: outside of the block: ask the writer for another batch.
        """
        self._add(entry)

    def _add(self, entry: WALEntry) -> None:
        if self._state != _OPEN:
            raise _outside()
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


def _outside() -> RuntimeError:
    return RuntimeError(
        "a batch takes entries inside its `with` block only: with writer.batch() as batch: batch.put(...)"
    )
