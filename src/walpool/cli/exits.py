"""How a command ends: the exit codes, and the one line that a person reads for each thing that can go wrong.

Holds: the same failure has the same code in every command.
"""

from __future__ import annotations

from enum import IntEnum

from walpool import errors
from walpool.system.failures import in_words


class Exit(IntEnum):
    OK = 0
    DIFFERENCE = 1  # damage, or a difference, was found
    USAGE = 2  # the command cannot be carried out as it was given
    NO_LOG = 3  # there is no log at that path
    BUSY = 4  # another process holds what was waited for
    IO = 74  # the machine or the file system said no (EX_IOERR of sysexits.h)
    INTERRUPTED = 130  # Ctrl-C, as a shell says it


class CommandError(Exception):
    """A command cannot go on; `str()` is the line for the person."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


# The first class that fits decides: LogNotFound, LogFull and SyncFailed are OSErrors as well.
CODES: tuple[tuple[type[BaseException], Exit], ...] = (
    (errors.LogNotFound, Exit.NO_LOG),
    (errors.LogBusy, Exit.BUSY),
    (errors.CorruptLog, Exit.DIFFERENCE),
    (errors.EntryTooLarge, Exit.USAGE),
    (errors.BatchTooLarge, Exit.USAGE),
    (errors.LSNUnavailable, Exit.USAGE),
    (errors.WALError, Exit.IO),
    (KeyboardInterrupt, Exit.INTERRUPTED),
    (OSError, Exit.IO),
)
EXPECTED: tuple[type[BaseException], ...] = (CommandError, *(kind for kind, _ in CODES))


def describe(error: BaseException) -> tuple[Exit, str]:
    """The exit code and the line for an error of one of the kinds in `EXPECTED`."""
    if isinstance(error, CommandError):
        return error.code, str(error)
    code = next(code for kind, code in CODES if isinstance(error, kind))
    if isinstance(error, KeyboardInterrupt):
        return code, "interrupted"
    if isinstance(error, errors.WALError):
        return code, one_line(in_words(error))
    assert isinstance(error, OSError), "the last of CODES"
    return code, _system_line(error)


def one_line(text: str) -> str:
    """`text` with line ends and control characters escaped: a file name must not draw on the person's terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _system_line(error: OSError) -> str:
    reason = in_words(error)
    return one_line(f"{error.filename}: {reason}" if error.filename is not None else reason)
