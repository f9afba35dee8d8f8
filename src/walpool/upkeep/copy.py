"""Copy: a log's copy that is right by construction, made while writers write.

The checkpoint is read first, then how far the log goes is noted, and then segments are copied: sealed ones whole, the
active one up to the noted tail. Nothing before that tail changes any more, so what is copied is the log as it was then.

Holds: the copy has a temporary name until it is whole, verified and on disk; whoever is killed leaves that name alone,
and the next copy to the same place removes it. Segments are copied or reflinked, never linked: a file with two names
could be changed under the other. The log is only read.
"""

import logging
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from walpool.errors import CorruptLog, LogBusy, LogNotFound, UnsafeLog, WALError
from walpool.format.names import CHECKPOINT, CURSORS, ORIGIN, parse_segment_name, segment_name
from walpool.options import RecoveryMode
from walpool.read.scan import scan_segment
from walpool.read.source import wait_for_append
from walpool.read.verdict import Asker, Verdict, judge
from walpool.read.window import FrameWindow
from walpool.shared.catalog import CHUNK_BYTES, header_is_torn, list_segments
from walpool.shared.checkpoint import read_checkpoint, write_checkpoint
from walpool.shared.control import Control, ControlUnusable
from walpool.shared.cursors.positions import Found, find_positions, make_cursors, open_cursors, write_new
from walpool.shared.origin import new_origin, write_origin
from walpool.shared.pins import Pin
from walpool.system.failures import in_words, typed_errors
from walpool.system.files import CREATE, Directory, File
from walpool.system.locks import try_lock
from walpool.system.paths import make_directory, parent_of, remove_directory, set_mode
from walpool.system.reflink import reflink
from walpool.upkeep.repair import require_log
from walpool.upkeep.verify import verify

logger = logging.getLogger("walpool")

Progress = Callable[[int, int], None]  # bytes copied, bytes there are
TEMPORARY = ".walpool-copy"  # behind the name of the copy that is being made
FILES = (CHECKPOINT, ORIGIN)  # what a copy holds besides segments and cursors, each also with `.tmp`
ATTEMPTS = 5  # to copy anything of a log that retention removes meanwhile, all of it


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What `walpool.copy` made.

    Attributes:
        path: of the copy, absolute.
        first_lsn: the first in it.
        next_lsn: one past the last in it; the same as `first_lsn` when the log has no entry.
        segments: how many.
        bytes: of segment files.
        reflinked: segments that share their blocks with the log's until one of the two changes.
    """

    path: str
    first_lsn: int
    next_lsn: int
    segments: int
    bytes: int
    reflinked: int


class _End(NamedTuple):
    """How far the log went when the copy was begun."""

    segment: int  # first LSN of the last segment
    tail: int  # offset one past its last frame
    next_lsn: int


def copy(path: str | os.PathLike[str], dest: str | os.PathLike[str], progress: Progress | None = None) -> CopyReport:
    """Copy the log at `path` to `dest`, which must not exist and is a log of its own, while writers write.

    The copy has every entry that was published when it was begun, from the first that retention has left, the
    checkpoint, and each cursor where it was then; it is verified and on disk when this returns. A pin keeps retention
    from what is not copied yet, up to `Retention.max_pinned_bytes`; beyond that the copy starts later. Whatever is
    raised, there is no `dest` then.

    Args:
        path: the log's directory.
        dest: the copy's; its parent is there, and is not the log.
        progress (default None): called now and then with (bytes copied, bytes there are).

    Raises:
        LogNotFound: mend the path.
        UnsafeLog: `dest` exists, or another reason that it names: mend that.
        LogBusy: another copy to `dest` is being made: wait for that one; or retention was faster, five times: retry.
        CorruptLog: the log is damaged: see `walpool verify` and `walpool repair`.
        UnsupportedVersion: upgrade walpool.
        LogFull, IOFailed: retry when the cause is gone.
    """
    with require_log(path) as source:
        parent, name = parent_of(dest)
        with parent, typed_errors(parent.join(name)):  # syncs and locks
            if parent.identity(name) is not None:
                raise UnsafeLog(parent.join(name), "refused: it exists already, and a copy replaces nothing")
            if parent.place == source.place:
                raise UnsafeLog(parent.join(name), "refused: it would be inside the log")
            return _copy(source, parent, name, progress or (lambda done, total: None))


def _copy(source: Directory, parent: Directory, name: str, progress: Progress) -> CopyReport:
    with _take_place(parent, name) as work:
        try:
            made = _fill(source, work, progress)
            _check(source, work, made.next_lsn)
            set_mode(work, source.stat.st_mode & 0o7777)
            work.sync()
            parent.rename(name + TEMPORARY, name)
            parent.sync()
            return CopyReport(parent.join(name), *made)
        except BaseException:
            _discard(parent, name, work)
            raise


# The place


def _take_place(parent: Directory, name: str) -> Directory:
    """The empty directory that will be the copy. Whoever holds its lock is at work; what a killed one left goes."""
    temporary = name + TEMPORARY
    while True:
        made = False
        try:
            try:
                make_directory(parent, temporary)
                made = True
            except FileExistsError:
                pass
            work = Directory(parent.join(temporary))
            if not try_lock(work.fd):
                raise LogBusy(f"{parent.join(name)}: another copy to it is being made")
            if parent.leads_to(temporary, work):
                _empty(work)
                return work
        except LogNotFound:
            continue  # somebody else's copy was whole, or given up, just now
        except BaseException:
            if made:
                remove_directory(parent, temporary)
            raise


def _empty(work: Directory) -> None:
    _remove_cursors(work)
    names = work.names()
    strange = [name for name in names if parse_segment_name(name) is None and name.removesuffix(".tmp") not in FILES]
    if strange:
        raise UnsafeLog(work.path, f"refused: it has the name of a copy in the making, and holds {strange[0]!r}")
    for name in names:
        work.unlink(name)


def _discard(parent: Directory, name: str, work: Directory) -> None:
    """Leave nothing: also not a copy that is whole and not known to be on disk."""
    temporary = name + TEMPORARY
    try:
        if parent.leads_to(name, work):
            parent.rename(name, temporary)
        _remove_cursors(work)
        for each in work.names():
            work.unlink(each)
        remove_directory(parent, temporary)
    except (OSError, WALError) as error:
        logger.warning(
            "%s: what there was of the copy could not be removed: %s", parent.join(temporary), in_words(error)
        )


# The copying


class _Made(NamedTuple):
    first_lsn: int
    next_lsn: int
    segments: int
    bytes: int
    reflinked: int


def _fill(source: Directory, work: Directory, progress: Progress) -> _Made:
    for _ in range(ATTEMPTS):
        checkpoint = _checkpoint(source)  # before the end is noted: it is never above what the log has
        cursors = find_positions(source)  # likewise
        pin = _pin(source)
        try:
            end = _note_end(source)
            made = _copy_segments(source, work, end, pin, progress)
        finally:
            if pin is not None:
                pin.close()
        if made is None:
            _clear(work)
            continue  # retention has removed all that there was, or a recovery has made the log another one
        if checkpoint:
            write_checkpoint(work, checkpoint, made[1])
        _write_cursors(source, work, cursors, made[1])
        write_origin(work, new_origin(made[0].first_lsn), made[1], durable=True)  # an id of its own
        return made[0]
    raise LogBusy(f"{source.path}: retention removed segments faster than they were copied, {ATTEMPTS} times")


def _checkpoint(source: Directory) -> int:
    try:
        return read_checkpoint(source)
    except CorruptLog as error:
        logger.warning("%s; the copy has none", error)
        return 0  # then nothing is covered: more is kept, never less


def _write_cursors(source: Directory, work: Directory, found: list[Found], file_mode: int) -> None:
    if not found:
        return
    with make_cursors(work) as cursors:
        for name, position, problem in found:
            if position is None:
                logger.warning("%s: %s; the copy does not have it", source.join(f"{CURSORS}/{name}"), problem)
            else:
                write_new(cursors, name, position, file_mode)
        set_mode(cursors, source.stat.st_mode & 0o7777)
        cursors.sync()


def _remove_cursors(work: Directory) -> None:
    """Of a copy that is not whole."""
    cursors = open_cursors(work)
    if cursors is not None:
        with cursors:
            for name in cursors.names():
                cursors.unlink(name)
        remove_directory(work, CURSORS)


def _pin(source: Directory) -> Pin | None:
    try:
        pin = Pin(source)
    except FileNotFoundError:
        return None  # nobody has opened it yet, so nobody prunes it
    pin.begin(partial(list_segments, source), 0)
    return pin


def _note_end(source: Directory) -> _End:
    """What is published; of a log that has no usable control block, what its frames say, as a recovery would."""
    try:
        control = Control.attach(source, writable=False)
    except (ControlUnusable, UnsafeLog):
        return _end_of_frames(source)
    with closing(control):
        state = control.state()
    return _End(state.segment, state.tail, state.next_lsn)


def _end_of_frames(source: Directory) -> _End:
    """Where the last segment ends that has a whole header. Raises CorruptLog where a reader would, at that end."""
    following = None
    for first_lsn in reversed(list_segments(source)):
        scan = scan_segment(source, first_lsn, following, FrameWindow(1 << 18), wait=partial(wait_for_append, source))
        if not scan.sequence and following is None and header_is_torn(source, segment_name(first_lsn)):
            following = first_lsn  # it was being made when everything ended
            continue
        problem = scan.problem
        if problem is not None:
            vouched = problem.whole is not None or scan.next_lsn <= scan.durable_lsn
            followed = problem.followed or following is not None
            if judge(Asker.READER, RecoveryMode.TOLERATE_TAIL, vouched=vouched, followed=followed) is Verdict.REFUSE:
                raise CorruptLog(scan.path, problem.offset, scan.next_lsn, problem.reason)
        return _End(first_lsn, scan.end, scan.next_lsn)
    raise LogNotFound(source.path, "the directory holds no segment that was made whole")


def _clear(work: Directory) -> None:
    for first_lsn in list_segments(work):
        work.unlink(segment_name(first_lsn))


def _copy_segments(
    source: Directory, work: Directory, end: _End, pin: Pin | None, progress: Progress
) -> tuple[_Made, int] | None:
    """What was copied and the mode of its files; None when the log is not as it was at `end`."""
    segments = [first for first in list_segments(source) if first <= end.segment]
    first_lsn = done = copied = reflinked = mode = 0
    total = sum(_size(source, first) for first in segments)
    for at in segments:
        if pin is not None:
            pin.move(at)
        try:
            file = source.open(segment_name(at))
        except FileNotFoundError:
            if list_segments(source)[:1] <= [at]:
                return None  # a recovery has moved it aside, or written others in its place
            _clear(work)  # retention is ahead of us, and has removed them, too: oldest first
            first_lsn = done = copied = reflinked = 0
            continue
        mode = file.stat.st_mode & 0o777
        with file, work.open(segment_name(at), CREATE, mode) as to:
            if at < end.segment and reflink(file, to):
                reflinked += 1
            else:
                _copy_bytes(file, to, end.tail if at == end.segment else file.size(), done, total, progress)
            to.sync()
            done += to.size()
        progress(min(done, total), total)
        first_lsn = first_lsn or at
        copied += 1
    if not copied or list_segments(work)[-1] != end.segment:
        return None
    return _Made(first_lsn, end.next_lsn, copied, done, reflinked), mode


def _size(source: Directory, first_lsn: int) -> int:
    try:
        return source.size_of(segment_name(first_lsn))
    except FileNotFoundError:
        return 0


def _copy_bytes(file: File, to: File, size: int, done: int, total: int, progress: Progress) -> None:
    for at in range(0, size, CHUNK_BYTES):
        chunk = file.read(min(CHUNK_BYTES, size - at), at)
        if not chunk:
            return  # trimmed meanwhile: only zeros were behind
        to.write(chunk, at)
        progress(min(done + at + len(chunk), total), total)


def _check(source: Directory, work: Directory, next_lsn: int) -> None:
    """Read the copy back. What is wrong with it is wrong with the log."""
    report = verify(work.path)
    for finding in report.findings:
        if finding.is_damage:
            place = source.join(os.path.basename(finding.path))
            raise CorruptLog(place, finding.offset, finding.lsn, f"{finding.reason}; no copy was made")
    if report.next_lsn != next_lsn:
        last = segment_name(list_segments(work)[-1])
        raise CorruptLog(source.join(last), 0, report.next_lsn, f"the copy ends here and not at LSN {next_lsn}")
