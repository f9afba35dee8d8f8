"""What an append returns is an LSN, 0 where it is not known yet. Checked by mypy --strict and by pyright; never run."""

from walpool import SyncMode, WALEntry, WALWriter


def lsns_are_ints(path: str) -> int:
    with WALWriter(path, SyncMode.NORMAL) as writer:
        lsn: int = writer.put(b"key", b"value")
        lsn = max(lsn, writer.delete(b"key"))
        return lsn + writer.append(WALEntry.put(b"key", b"value"))
