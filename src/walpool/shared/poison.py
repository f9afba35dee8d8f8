"""The mark of a failed sync: a file that outlives every process and the control block.

Holds: while it is there, nobody appends; only a recovery, with maintenance and append held, takes it away.
"""

from walpool.errors import SyncFailed, WALError
from walpool.format.names import MAX_LSN, SYNC_FAILED
from walpool.shared.control import POISONED, STOPPED, SYNC_ERRNO, Control, durable_when_poisoned
from walpool.system import processes
from walpool.system.files import CREATE, Directory


def poison(directory: Directory, control: Control, errno: int) -> None:
    """Tell every process, now and later, that a sync failed. Lock: sync."""
    control.words[SYNC_ERRNO] = errno
    control.halves[STOPPED] = POISONED  # first: it reaches whoever maps the block at once
    high, low = processes.boot_id()
    try:
        with directory.open(SYNC_FAILED, CREATE) as file:
            file.write(f"{high:016x}{low:016x} {control.durable_lsn} {errno}\n".encode(), 0)
            file.sync()
        directory.sync()
    except (OSError, WALError):
        pass  # the disk is failing: then the block carries the mark alone, until the reboot


def is_poisoned(directory: Directory, control: Control | None = None) -> bool:
    return (control is not None and control.is_poisoned) or directory.identity(SYNC_FAILED) is not None


def refuse_poisoned(directory: Directory, control: Control | None) -> None:
    """Raises SyncFailed: nothing is removed from such a log before it was recovered."""
    if is_poisoned(directory, control):
        raise SyncFailed(
            5,
            f"{directory.path}: a sync failed, and nothing is removed from the log before it was recovered: close every"
            " writer of it and open it again",
        )


def first_doubtful(directory: Directory, control: Control | None) -> int | None:
    """The first LSN whose bytes may be in the page cache and not on disk, or None when the cache is of another boot.

    0 when nobody says from where on: then what the segments vouch for is not in doubt, and everything above it is.
    Without `control`, a block of another layout is asked before the mark: it may be the only one that says so.
    """
    if control is not None and control.is_poisoned:
        return _above(control.durable_lsn)
    durable_lsn = durable_when_poisoned(directory) if control is None else None
    if durable_lsn is not None:
        return _above(durable_lsn)
    try:
        with directory.open(SYNC_FAILED) as file:
            boot, stated, *_ = file.read(256, 0).split() or [b""]
        return _above(int(stated)) if boot == b"%016x%016x" % processes.boot_id() else None
    except FileNotFoundError:
        return None
    except ValueError:
        return 0  # a mark whose own write failed, or was cut


def _above(durable_lsn: int) -> int:
    """The LSN behind it; a number that no log reaches says nothing."""
    return durable_lsn + 1 if 0 <= durable_lsn < MAX_LSN else 0


def lift(directory: Directory) -> None:
    """Lock: maintenance and append, after a recovery made everything durable."""
    if is_poisoned(directory):
        directory.unlink(SYNC_FAILED)
        directory.sync()


def sync_failed(path: str, errno: int, durable_lsn: int) -> SyncFailed:
    return SyncFailed(
        errno or 5,
        f"{path}: a sync failed; what is above LSN {durable_lsn} may be lost; close every writer of this log and open"
        " it again to recover",
    )
