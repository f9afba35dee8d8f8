"""Cursors by hand: look at all of a log's, set one to another place, or forget one.

Holds: nobody has a cursor open while it is set or deleted, and no retention goes by it meanwhile.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack, closing

from walpool.errors import CorruptLog, UnsafeLog
from walpool.opening.opening import maintenance
from walpool.options import WriterOptions
from walpool.read.scan import scan_segment
from walpool.read.window import FrameWindow
from walpool.shared.catalog import list_segments
from walpool.shared.control import Control, ControlUnusable, LogState
from walpool.shared.cursors.lag import cursor_rows
from walpool.shared.cursors.owners import Owners
from walpool.shared.cursors.positions import (
    Position,
    check_name,
    open_cursors,
    open_position,
    parse_name,
    read_position,
    write_new,
)
from walpool.shared.figures.fields import CursorRow
from walpool.system.failures import typed_errors
from walpool.system.files import Directory
from walpool.upkeep.repair import require_log


def list_cursors(path: str | os.PathLike[str]) -> tuple[CursorRow, ...]:
    """Also of a copy, and of a log that nobody has opened since the boot: then as far as its frames go."""
    with require_log(path) as directory:
        try:
            control = Control.attach(directory, writable=False)
        except (ControlUnusable, UnsafeLog):
            return cursor_rows(directory, None, _state_of_frames(directory))[0]
        with closing(control):
            return cursor_rows(directory, control, control.state())[0]


def _state_of_frames(directory: Directory) -> LogState:
    last = list_segments(directory)[-1]
    scan = scan_segment(directory, last, None, FrameWindow(1 << 18))
    return LogState._make([0] * len(LogState._fields))._replace(segment=last, tail=scan.end, next_lsn=scan.next_lsn)


def set_cursor(path: str | os.PathLike[str], name: str, lsn: int, options: WriterOptions) -> list[str]:
    """Have it, or all parts of the group, go on behind `lsn`; 0: with the first entry there is. The names of its files.

    Raises LogBusy while somebody has one open.
    """

    def put(directory: Directory, cursors: Directory, each: str) -> None:
        try:
            with open_position(cursors, each) as file:
                sequence = read_position(file)[0].sequence
        except CorruptLog:
            sequence = 0
        write_new(cursors, each, Position(sequence + 1, lsn, list_segments(directory)[0]), options.mode)

    return _of_each(path, name, options, put)


def delete_cursor(path: str | os.PathLike[str], name: str, options: WriterOptions) -> list[str]:
    """Forget it, or all parts of the group: durable when this returns. Raises LogBusy while somebody has one open."""

    def remove(directory: Directory, cursors: Directory, each: str) -> None:
        cursors.unlink(each)
        cursors.sync()

    return _of_each(path, name, options, remove)


def _of_each(
    path: str | os.PathLike[str],
    name: str,
    options: WriterOptions,
    change: Callable[[Directory, Directory, str], None],
) -> list[str]:
    check_name(name)
    with ExitStack() as stack:
        directory = stack.enter_context(require_log(path))
        directory.check_ours()
        owners = stack.enter_context(closing(Owners(directory)))
        stack.enter_context(typed_errors(directory.path))
        cursors = open_cursors(directory)
        if cursors is None:
            return []
        stack.enter_context(cursors)
        files = [file for file in sorted(cursors.names()) if (parse_name(file) or ("",))[0] == name]
        for file in files:
            owners.take(directory, file, options.lock_timeout)
        with maintenance(directory, options):
            for file in files:
                change(directory, cursors, file)
        return files
