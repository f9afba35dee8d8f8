"""Opening a log to append to it: find the control block and believe it, or rebuild it from the segments.

The usual opening takes the append lock for a moment only: `_attach` maps the block, claims a slot, and looks under that
lock whether the block can be believed (believe.py). Where it cannot, the opening goes on with the maintenance
lock: it looks once more, because another process may have rebuilt the block meanwhile, then `rebuild` recovers
(recovery.py), and the block that is there then is attached to.

Holds: a process claims a writer slot only while it sees a block it can believe, and checks that block once more under
the append lock; whoever rebuilds holds maintenance and append and sees no slot held. So no block is ever rebuilt under
a living writer, and N processes that open at the same instant end with one block.
"""

import os
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from walpool.errors import LogReplaced, UnsafeLog, WALError
from walpool.format.names import (
    APPEND_LOCK,
    CONTROL,
    MAINTENANCE_LOCK,
    PINS_LOCK,
    SLOTS_LOCK,
    SYNC_LOCK,
    is_walpools,
    parse_segment_name,
)
from walpool.opening.believe import believe
from walpool.opening.recovery import RecoveryReport, recover
from walpool.options import WriterOptions
from walpool.shared import slots
from walpool.shared.catalog import Segment
from walpool.shared.control import COPIED, LOCKS, OTHER_LAYOUT, OTHER_VERSION, Control, ControlUnusable
from walpool.shared.poison import first_doubtful, is_poisoned, sync_failed
from walpool.system import clock
from walpool.system.failures import typed_error
from walpool.system.files import WRITE, Directory, File
from walpool.system.filesystems import check_local, check_stores
from walpool.system.locks import Maintenance, ProcessLock, lock_mode
from walpool.system.paths import create_directory

POISON = "a sync failed"
# Slots are held though the block must be rebuilt: by living writers, or by processes that are opening the log as we do,
# and let go as soon as they see that the block is no good. For so long we take them for the latter, and look again.
TRANSIENT_S = 2.0


@dataclass(slots=True, weakref_slot=True)
class OpenLog:
    """A log's files as one writer holds them open; what `open_log` gives.

    The slot is held for as long as `slots_lock` is open: the kernel frees the byte when the process dies.
    """

    directory: Directory
    control: Control
    append_lock: ProcessLock
    sync_lock: ProcessLock
    slots_lock: File
    slot: int
    segment: Segment  # the active one, when the log was opened
    report: RecoveryReport | None = None

    def check_names(self, active: File | None, tail: int) -> None:
        """Raises LogReplaced or UnsafeLog unless names and descriptors still lead to the files that were opened.

        Else this writer would append to files that nobody finds, or take locks that others do not see.

        Args:
            active: the active segment; None when another process has rotated and this one has not opened it yet.
            tail: the published tail, bytes: the active segment must not be shorter.
        """
        self.check_path()
        files = [
            (APPEND_LOCK, self.append_lock.file),
            (CONTROL, self.control.file),
            (SYNC_LOCK, self.sync_lock.file),
            (SLOTS_LOCK, self.slots_lock),
        ]
        if active is not None:
            files.append((os.path.basename(active.path), active))
        for name, file in files:
            if not self.directory.leads_to(name, file):
                why = "the file was removed or replaced while the log was open"
            elif file.was_closed():
                why = "other code of this process has closed the file's descriptor"
            elif file is active and file.size() < tail:
                why = CUT
            else:
                continue
            raise UnsafeLog(file.path, f"{why}; {AGAIN}")

    def check_path(self) -> None:
        """Raises LogReplaced unless the path leads to our directory."""
        why = self.directory.replaced()
        if why is not None:
            raise LogReplaced(
                self.directory.path,
                f"the log was moved, removed or made anew while it was open: {why}; what this process has open is no"
                f" longer the log at this path; {AGAIN}",
            )

    def close(self) -> None:
        """Close everything; the kernel frees the slot. Unlocks nothing, so it is right in a forked child too."""
        self.control.close()
        for file in (self.append_lock.file, self.sync_lock.file, self.slots_lock, self.segment.file):
            file.close()
        self.directory.close()


CUT = "the file was cut below the bytes in use"
LIVING = "somebody replaced files of a live log, or two sandboxes see different boot ids; close them and open again"
AGAIN = "close every writer of this log and open it again"


def open_log(path: str, options: WriterOptions) -> OpenLog:
    """Make the directory if need be, recover if need be, and hold a writer slot in it. Raises WALErrors only."""
    try:
        return _open_log(path, options)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not isinstance(error, WALError):
            raise UnsafeLog(path, "files of the log were removed while it was being opened; open it again") from error
        raise typed_error(error, path) from error


def _open_log(path: str, options: WriterOptions) -> OpenLog:
    create_directory(path, options.mode)
    directory = Directory(path)
    try:
        return _open_in(directory, options)
    except BaseException:
        directory.close()
        raise


def _open_in(directory: Directory, options: WriterOptions) -> OpenLog:
    """Attach; where that cannot be, rebuild under the maintenance lock and attach again."""
    directory.check_ours()
    if not options.allow_network_fs:
        check_local(directory)
    if options.mapped:
        check_stores(directory)
    opened = _attach(directory, options)
    if isinstance(opened, OpenLog):
        return opened
    _check_other_files(directory, options)
    with maintenance(directory, options):
        opened = _attach(directory, options)  # another process may have done it while we waited
        if isinstance(opened, OpenLog):
            return opened
        # cp has copied in any order: what is durable at the end says nothing about the beginning, so all of it is read.
        report = rebuild(directory, options, opened, whole=opened == COPIED)
        opened = _attach(directory, options)
    if isinstance(opened, str):
        raise UnsafeLog(directory.path, f"the log was recovered and still cannot be used: {opened}")
    opened.report = report
    return opened


def _check_other_files(directory: Directory, options: WriterOptions) -> None:
    """Raises UnsafeLog for a directory that is no log yet and holds something else."""
    names = directory.names()
    others = sorted(name for name in names if not is_walpools(name))
    if others and not options.allow_other_files and not any(map(parse_segment_name, names)):
        raise UnsafeLog(
            directory.path,
            f"the directory holds other files ({', '.join(map(repr, others[:3]))}{', ...' if len(others) > 3 else ''})"
            " and is not a log: give the log a directory of its own (or, in Python, pass allow_other_files=True)",
        )


def _attach(directory: Directory, options: WriterOptions) -> OpenLog | str:
    """The open log, or why its control block has to be rebuilt.

    The slot comes before the look under the append lock. The other way round, a process could rebuild the block, seeing
    no slot held, between our look and our claim.
    """
    files: list[File] = []
    control: Control | None = None
    try:
        control = Control.attach(directory, writable=True)
        if is_poisoned(directory, control):
            raise ControlUnusable(POISON)
        for name in LOCKS:
            files.append(directory.open(name, WRITE))
            if files[-1].stat.st_ino != control.lock_inode(name):
                raise ControlUnusable(f"{name} was replaced")
        append_file, sync_file, slots_lock = files
        append_lock = ProcessLock(append_file, options.lock_timeout, partial(slots.appending, control))
        slot = slots.Slot(slots_lock, control)
        segment = append_lock.run(partial(believe, directory, control, slots_lock))
        return OpenLog(directory, control, append_lock, ProcessLock(sync_file), slots_lock, slot.number, segment)
    except (ControlUnusable, FileNotFoundError) as error:
        _close(control, files)  # first of all frees the slot: whoever rebuilds must see none held
        return error.reason if isinstance(error, ControlUnusable) else str(error)
    except BaseException:
        _close(control, files)
        raise


def _close(control: Control | None, files: list[File]) -> None:
    for file in files:
        file.close()
    if control is not None:
        control.close()


def _doubtful(directory: Directory) -> int | None:
    """See `first_doubtful`, by whatever control block is in place."""
    try:
        control = Control.attach(directory, writable=False)
    except ControlUnusable:
        return first_doubtful(directory, None)
    with closing(control):
        return first_doubtful(directory, control)


def maintenance(directory: Directory, options: WriterOptions, *, wait: bool = True) -> Maintenance:
    """The lock of whoever makes, recovers, repairs or prunes a log. Entering raises LogBusy where it is not free."""
    return Maintenance(directory, MAINTENANCE_LOCK, options.lock_timeout if wait else 0, options.mode)


def rebuild(directory: Directory, options: WriterOptions, reason: str, *, whole: bool = False) -> RecoveryReport:
    """Recover, unless a writer lives; raises UnsafeLog or SyncFailed then. Lock: maintenance.

    Whether slots are held is asked under the append lock, under which the recovery runs: a process that claims one
    meanwhile waits for that lock, and then finds that the block it has mapped was retired.

    Args:
        reason: why the block in place cannot be used.
        whole: read every segment, and not only from the highest durable LSN on.
    """
    append_file, sync_file, slots_lock = (directory.open_or_create(name, lock_mode(options.mode)) for name in LOCKS)
    directory.open_or_create(PINS_LOCK, options.mode).close()  # whoever may read may pin, up to the cap
    append_lock = ProcessLock(append_file, options.lock_timeout)
    deadline = clock.monotonic() + TRANSIENT_S

    def unless_alive() -> RecoveryReport | list[int]:
        held = list(slots.alive(slots_lock))
        if held:
            return held
        return recover(directory, options.recovery, reason, options.mode, _doubtful(directory), whole=whole)

    try:
        while True:
            found = append_lock.run(unless_alive)
            if isinstance(found, RecoveryReport):
                return found
            if reason == POISON:
                raise sync_failed(directory.path, 0, (_doubtful(directory) or 1) - 1)
            if clock.monotonic() > deadline:
                who = slots.holders(directory, found)
                way_out = "close them, and try again" if whole else OTHER_VERSION if reason == OTHER_LAYOUT else LIVING
                raise UnsafeLog(directory.path, f"{reason}, but {who} still have the log open: {way_out}")
            clock.sleep(0.01)
    finally:
        for file in (append_file, sync_file, slots_lock):
            file.close()
