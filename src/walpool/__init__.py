"""walpool: a write-ahead log that several processes append to at once."""

from walpool.errors import (
    BatchTooLarge,
    CorruptLog,
    EntryTooLarge,
    IOFailed,
    LogBusy,
    LogClosed,
    LogFull,
    LogNotFound,
    LogReplaced,
    LSNUnavailable,
    SyncFailed,
    UnsafeLog,
    UnsupportedVersion,
    WALError,
)
from walpool.format.entry import Operation, WALEntry
from walpool.format.header import WALHeader
from walpool.options import RecoveryMode, Retention, SyncMode
from walpool.read.reader import ReaderStats, WALReader
from walpool.shared.metrics import WALMetrics
from walpool.upkeep.checkpoint import checkpoint
from walpool.upkeep.copy import CopyReport, copy
from walpool.upkeep.recovery import RecoveryReport
from walpool.write.writer import WALWriter

__version__ = "0.1.0"

__all__ = [
    "BatchTooLarge",
    "CopyReport",
    "CorruptLog",
    "EntryTooLarge",
    "IOFailed",
    "LSNUnavailable",
    "LogBusy",
    "LogClosed",
    "LogFull",
    "LogNotFound",
    "LogReplaced",
    "Operation",
    "ReaderStats",
    "RecoveryMode",
    "RecoveryReport",
    "Retention",
    "SyncFailed",
    "SyncMode",
    "UnsafeLog",
    "UnsupportedVersion",
    "WALEntry",
    "WALError",
    "WALHeader",
    "WALMetrics",
    "WALReader",
    "WALWriter",
    "checkpoint",
    "copy",
]
