"""Reading a log's checkpoint, and stating it: one at a time, never back, and never ahead of what is durable.

A power cut that ended the log below its checkpoint would have new entries take LSNs that nobody needs any more.
"""

import os
from collections.abc import Callable

from walpool.errors import CorruptLog
from walpool.opening.opening import OpenLog, maintenance
from walpool.options import WriterOptions
from walpool.shared.checkpoint import read_checkpoint, write_checkpoint
from walpool.system.failures import typed_errors
from walpool.upkeep.repair import require_log


def checkpoint(path: str | os.PathLike[str]) -> int:
    """The checkpoint of the log at `path`: nothing at or below this LSN is needed any more; 0 when nobody said so.

    Reads one small file, beside whoever appends. `WALWriter.checkpoint` states it.

    Args:
        path: the log's directory.

    Raises:
        LogNotFound: mend the path.
        CorruptLog: the file is damaged: state the checkpoint again.
        UnsafeLog: mend what it names.
        IOFailed: retry when the cause is gone.
    """
    with require_log(path) as directory:
        return read_checkpoint(directory)


def state_checkpoint(log: OpenLog, lsn: int, options: WriterOptions, settle: Callable[[int], int]) -> int:
    """The checkpoint in force afterwards: `lsn`, or a later one that was stated before. `settle`: the committer's."""
    if type(lsn) is not int:
        raise TypeError(f"lsn must be an int, not {type(lsn).__name__}")
    last_lsn = log.control.state().next_lsn - 1
    if not 0 <= lsn <= last_lsn:
        raise ValueError(f"a checkpoint at LSN {lsn} is impossible: the log ends at {last_lsn}")
    settle(lsn)
    with maintenance(log.directory, options), typed_errors(log.directory.path):
        try:
            stated = read_checkpoint(log.directory)
        except CorruptLog:
            stated = -1  # it is damaged, and replaced now
        if lsn > stated:
            write_checkpoint(log.directory, lsn, options.mode)
        else:
            log.directory.sync()  # whoever stated it may have been killed, or failed, before its name was durable
        return max(lsn, stated)
