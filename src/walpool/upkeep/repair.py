"""Repair: what a recovery of the whole log would do, and doing it; and, when somebody says so, forgetting what it kept.

Holds: nothing is deleted unasked: segments behind a cut move to quarantine/, and no segment changes. A log that a
writer has open is not repaired.
"""

import logging
import os
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from walpool.errors import LogNotFound, UnsafeLog
from walpool.format.names import SLOTS_LOCK, segment_name
from walpool.opening.aside import Aside, discard
from walpool.opening.opening import maintenance, rebuild
from walpool.opening.recovery import RecoveryReport
from walpool.opening.survey import Place, survey
from walpool.options import RecoveryMode, WriterOptions
from walpool.read.source import wait_for_append
from walpool.shared.catalog import list_segments
from walpool.shared.control import Control, ControlUnusable, LogState
from walpool.shared.slots import any_alive
from walpool.system.failures import typed_errors
from walpool.system.files import Directory

logger = logging.getLogger("walpool")


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What a repair would do, with this mode."""

    path: str
    mode: RecoveryMode
    next_lsn: int  # the log would end before it
    cut: Place | None
    intact_behind: int  # intact entries behind the cut
    skipped: tuple[Place, ...]
    quarantine: tuple[str, ...]  # segments that would move aside

    @property
    def needed(self) -> bool:
        return self.cut is not None or bool(self.skipped)


def plan_repair(path: str | os.PathLike[str], mode: RecoveryMode) -> RepairPlan:
    """Look, and touch nothing. Raises CorruptLog where `mode` would refuse, LogNotFound.

    Beside writers it looks as far as they have published: what lies behind is theirs, and nobody repairs it meanwhile.
    """
    with require_log(path) as directory:
        return _plan(directory, mode)


def _plan(directory: Directory, mode: RecoveryMode) -> RepairPlan:
    look = partial(survey, directory, mode, whole=True, wait=partial(wait_for_append, directory))
    found = look(published=_published(directory))
    while not found.segments and list_segments(directory):  # retention has removed all that had been published by then
        found = look(published=_published(directory))
    behind = [first for first in found.segments if first >= found.next_lsn] if found.cut is not None else []
    return RepairPlan(
        path=directory.path,
        mode=mode,
        next_lsn=found.next_lsn,
        cut=found.cut,
        intact_behind=found.intact_behind,
        skipped=tuple(found.skipped),
        quarantine=tuple(segment_name(first) for first in behind),
    )


def _published(directory: Directory) -> LogState | None:
    """How far the log goes, when a writer has it open and we can see that.

    None without a living writer, also where the control block could be believed: a repair goes by the segments alone.
    """
    try:
        slots_lock = directory.open(SLOTS_LOCK)
    except (FileNotFoundError, UnsafeLog):
        return None
    with slots_lock:
        try:
            control = Control.attach(directory, writable=False)
        except (ControlUnusable, UnsafeLog):
            return None
        with closing(control):
            return control.state() if any_alive(slots_lock) else None


def repair(path: str | os.PathLike[str], options: WriterOptions) -> RecoveryReport:
    """Do it, with `options.recovery` as the mode. Raises UnsafeLog while a writer has the log open."""
    with require_log(path) as directory:
        directory.check_ours()
        with maintenance(directory, options):
            report = rebuild(directory, options, "a repair was asked for", whole=True)
    for line in report.told(directory.path):  # when no lock is held any more
        logger.warning("%s", line)
    return report


def discard_quarantine(path: str | os.PathLike[str], options: WriterOptions) -> Aside:
    """Remove what was moved aside; how much that was. Writers go on meanwhile. Raises UnsafeLog, LogNotFound."""
    with require_log(path) as directory, typed_errors(directory.path):
        directory.check_ours()
        with maintenance(directory, options):
            return discard(directory)


def require_log(path: str | os.PathLike[str]) -> Directory:
    """The directory of a log that is there; a writer would make one. Raises LogNotFound."""
    directory = Directory(path)
    try:
        if not list_segments(directory):
            raise LogNotFound(directory.path, "the directory holds no log")
        return directory
    except BaseException:
        directory.close()
        raise
