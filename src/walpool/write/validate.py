"""What a writer is given, checked when it is opened: types, signs and units; each error says what would be right.

Raises TypeError for a value of another kind, ValueError for one out of range.
"""

import os
from math import isfinite

from walpool.format.entry import ENTRY_BYTES
from walpool.format.frame import FRAME_BYTES
from walpool.format.header import HEADER_BYTES
from walpool.options import MAX_SIZE_LIMIT, RecoveryMode, Retention, SyncMode, WriterOptions

SMALLEST_LIMIT = HEADER_BYTES + FRAME_BYTES + ENTRY_BYTES
LONGEST_NAME_BYTES = 64  # what a slot's row has room for


def check_path(path: object) -> str:
    """The absolute path."""
    place = os.fspath(path)  # type: ignore[call-overload]  # TypeError for what is no path
    if not isinstance(place, str):
        raise TypeError("path must be str or os.PathLike[str]")
    if not place:
        raise ValueError("path is empty: name the directory of the log")
    if "\0" in place:
        raise ValueError("path contains a zero byte")
    return os.path.abspath(place)


def check_options(options: WriterOptions) -> WriterOptions:
    check_size_limit(options.size_limit)
    _kind("sync_mode", options.sync_mode, SyncMode)
    _kind("recovery", options.recovery, RecoveryMode)
    for name in ("metrics", "mapped", "allow_network_fs", "allow_other_files"):
        _kind(name, getattr(options, name), bool)
    for name in ("lock_timeout", "sync_interval_s"):
        if getattr(options, name) is not None:
            _seconds(name, getattr(options, name))
    _seconds("linger_s", options.linger_s)
    if options.sync_interval_s == 0:
        raise ValueError("sync_interval_s is 0: for durable appends use SyncMode.FULL")
    if options.mapped and options.sync_mode is not SyncMode.NORMAL:
        raise ValueError(f"mapped is for SyncMode.NORMAL, and not for {options.sync_mode}: leave it out")
    _kind("buffer_bytes", options.buffer_bytes, int)
    if options.buffer_bytes < 1:
        raise ValueError(f"buffer_bytes must be at least 1, not {options.buffer_bytes}")
    _kind("mode", options.mode, int)
    if options.mode & ~0o777 or options.mode & 0o600 != 0o600 or options.mode & 0o002:
        raise ValueError(
            f"mode {options.mode:#o} is not possible: it is that of the files, at least 0o600, never writable by all"
        )
    if options.name is not None:
        _kind("name", options.name, str)
    if options.retention is not None:
        _kind("retention", options.retention, Retention)
    return options


def check_size_limit(size_limit: int) -> int:
    """The bytes of a segment."""
    _kind("size_limit", size_limit, int, " of bytes")
    if not SMALLEST_LIMIT <= size_limit <= MAX_SIZE_LIMIT:
        raise ValueError(
            f"size_limit {size_limit} is out of range: a segment takes {SMALLEST_LIMIT} (a header and the smallest"
            f" frame) to {MAX_SIZE_LIMIT} bytes"
        )
    return size_limit


def _kind(name: str, value: object, kind: type, unit: str = "") -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        article = "an" if kind.__name__[0] in "aeio" else "a"
        raise TypeError(f"{name} must be {article} {kind.__name__}{unit}, not {type(value).__name__}")


def _seconds(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a number of seconds from 0, not {value}")
