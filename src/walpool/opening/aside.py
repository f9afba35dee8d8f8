"""Quarantine: where recovery moves segments that no longer count, under their name and the time; nothing is deleted.

Holds: a name that counts is never missing in between: a segment is replaced under one rename, while the old file has
another name in quarantine already. A move may be cut in the middle, and then a file has both names; the one in the
log's directory counts, and `undo_half_moves` takes the other away before anything is decided.
Lock: maintenance and append, and no writer alive.
"""

from typing import NamedTuple

from walpool.errors import UnsafeLog
from walpool.format.names import QUARANTINE, REWRITE, parse_segment_name, segment_name
from walpool.system import clock
from walpool.system.files import Directory

NEW_SEGMENT = REWRITE


class Aside(NamedTuple):
    """What lies in quarantine."""

    files: int
    bytes: int


def look_aside(directory: Directory) -> Aside:
    """Without a lock: somebody may be moving or removing meanwhile. Raises UnsafeLog."""
    if directory.identity(QUARANTINE) is None:
        return Aside(0, 0)
    with Directory(directory.join(QUARANTINE)) as quarantine:
        return _count(quarantine)


def discard(directory: Directory) -> Aside:
    """Remove all files in quarantine; what was removed is durably gone. Raises UnsafeLog. Lock: maintenance."""
    if directory.identity(QUARANTINE) is None:
        return Aside(0, 0)
    with Directory(directory.join(QUARANTINE)) as quarantine:
        before = _count(quarantine)
        for name in quarantine.names():
            try:
                quarantine.unlink(name)
            except UnsafeLog:
                pass  # a directory: none of ours
        quarantine.sync()
        left = _count(quarantine)
    return Aside(before.files - left.files, before.bytes - left.bytes)


def _count(quarantine: Directory) -> Aside:
    sizes = []
    for name in quarantine.names():
        try:
            sizes.append(quarantine.size_of(name))
        except FileNotFoundError:
            pass  # removed since the names were read
    return Aside(len(sizes), sum(sizes))


def undo_half_moves(directory: Directory) -> None:
    """Take away what a killed recovery left half made: a new segment without a name, a file with two names."""
    directory.unlink(NEW_SEGMENT)
    if directory.identity(QUARANTINE) is None:
        return
    segments = {directory.identity(name) for name in directory.names() if parse_segment_name(name) is not None}
    with _open(directory) as quarantine:
        for name in quarantine.names():
            if quarantine.identity(name) in segments - {None}:
                quarantine.unlink(name)


def move_aside(directory: Directory, first_lsn: int) -> str:
    """The new name, which is durable before the log's directory can be made to forget the old one."""
    with _open(directory) as quarantine:
        aside = _aside(first_lsn)
        directory.rename(segment_name(first_lsn), aside)
        quarantine.sync()
    return aside


def put_in_place(directory: Directory, first_lsn: int, *, replaces: bool) -> str | None:
    """Give NEW_SEGMENT, which is on disk, the name of a segment; what the one that it replaces is called now."""
    aside = None
    if replaces:
        with _open(directory) as quarantine:
            aside = _aside(first_lsn)
            directory.link(segment_name(first_lsn), aside)
            quarantine.sync()
    directory.rename(NEW_SEGMENT, segment_name(first_lsn))
    directory.sync()
    return aside


def _open(directory: Directory) -> Directory:
    """Made if need be; refuses a symlink in its place."""
    directory.make_directory(QUARANTINE)
    return Directory(directory.join(QUARANTINE))


def _aside(first_lsn: int) -> str:
    return f"{QUARANTINE}/{segment_name(first_lsn)}.{clock.time_ns()}"
