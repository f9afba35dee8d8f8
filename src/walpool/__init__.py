"""walpool: a write-ahead log that several processes append to at once.

    WALWriter, Batch         append; SyncMode says what an append has survived, Retention what may go
    WALReader                read and follow; RecoveryMode says what damage does
    WALMetrics, Snapshot     look at what the log and each writer do, from any process
    Cursor, CursorGroup      what consumers have done with, by name
    lsn_at                   the LSN with which a moment began
    map_batches, plan        read with several processes; a log in parts, for those of your own
    copy, checkpoint         a copy that is whole, of a log in use; what is not needed any more
    core_in_use              whether the compiled core runs: `walpool doctor` says why not
    WALError                 base of all errors; each says what to do then: retry, reopen or stop

What is public is listed in `walpool.__all__`, and explains itself. The packages below may change at any time, but for
walpool.integrations. README.md has a program, docs/durability.md what survives what.
"""

from walpool.consume.cursor import Cursor
from walpool.consume.group import CursorGroup
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
    Unsupported,
    UnsupportedVersion,
    WALError,
    WorkerFailed,
)
from walpool.format.entry import Operation, WALEntry
from walpool.format.header import WALHeader
from walpool.native.select import core_in_use
from walpool.opening.recovery import RecoveryReport
from walpool.opening.survey import Place
from walpool.options import RecoveryMode, Retention, SyncMode
from walpool.read.parallel import map_batches
from walpool.read.plan import LSNRange, plan
from walpool.read.reader import WALReader
from walpool.read.reading import ReadBatch, ReaderStats
from walpool.read.when import lsn_at
from walpool.shared.control import ControlUnusable
from walpool.shared.figures.fields import CursorRow, Failures, ReaderRow, WriterRow
from walpool.shared.figures.histogram import Histogram
from walpool.shared.figures.snapshot import Delta, Snapshot
from walpool.shared.metrics import WALMetrics
from walpool.staging.at_exit import flush_at_signals
from walpool.upkeep.checkpoint import checkpoint
from walpool.upkeep.copy import CopyReport, copy
from walpool.upkeep.retention import PruneReport
from walpool.write.batch import Batch
from walpool.write.writer import WALWriter

__version__ = "0.2.0"

__all__ = [
    "Batch",
    "BatchTooLarge",
    "ControlUnusable",
    "CopyReport",
    "CorruptLog",
    "Cursor",
    "CursorGroup",
    "CursorRow",
    "Delta",
    "EntryTooLarge",
    "Failures",
    "Histogram",
    "IOFailed",
    "LSNRange",
    "LSNUnavailable",
    "LogBusy",
    "LogClosed",
    "LogFull",
    "LogNotFound",
    "LogReplaced",
    "Operation",
    "Place",
    "PruneReport",
    "ReadBatch",
    "ReaderRow",
    "ReaderStats",
    "RecoveryMode",
    "RecoveryReport",
    "Retention",
    "Snapshot",
    "SyncFailed",
    "SyncMode",
    "UnsafeLog",
    "Unsupported",
    "UnsupportedVersion",
    "WALEntry",
    "WALError",
    "WALHeader",
    "WALMetrics",
    "WALReader",
    "WALWriter",
    "WorkerFailed",
    "WriterRow",
    "checkpoint",
    "copy",
    "core_in_use",
    "flush_at_signals",
    "lsn_at",
    "map_batches",
    "plan",
]
