"""WALMetrics: what the log and this process have done, read without a lock and without any effect on writers.

The log's totals come from the state in force, so they count what every process appended and never go backwards when
one dies; so do the sums of all slot rows. Counters of reads are this process's own.
Holds: whoever is in the middle of a snapshot has what it looks through to itself, or keeps it from being closed: no
descriptor's number is used after its close.
"""

import os
from typing import NamedTuple

from walpool.errors import CorruptLog, LogClosed, LogNotFound, LogReplaced, UnsafeLog, UnsupportedVersion, WALError
from walpool.format.frame import FRAME_BYTES
from walpool.format.names import CONTROL, SLOTS_LOCK
from walpool.shared import slots
from walpool.shared.catalog import list_segments, open_segment
from walpool.shared.checkpoint import read_checkpoint
from walpool.shared.control import COMMIT, LOCKS, SYNC_NS, SYNCS, Control, LogState
from walpool.shared.counters import ProcessCounters, counters_of
from walpool.shared.cursors.lag import cursor_rows
from walpool.shared.figures.fields import SHOWN_BY_BOTH, TOTALS, Failures, ReaderRow
from walpool.shared.figures.histogram import BUCKETS, Histogram
from walpool.shared.figures.snapshot import ProcessNames, Snapshot, writer_row
from walpool.shared.origin import is_another, log_id
from walpool.shared.pins import all_pins
from walpool.shared.rows_file import SHARED_ROW
from walpool.shared.slot_rows import (
    APPEND,
    BATCH,
    LOCK_WAIT,
    SYNC,
    RowValues,
    read_rows,
    unit_of,
)
from walpool.shared.slots import Owner
from walpool.system import clock
from walpool.system.failures import typed_error
from walpool.system.files import Directory
from walpool.system.forks import in_forked_children


class _View(NamedTuple):
    """What a snapshot looks through."""

    directory: Directory
    control: Control


class _Mark(NamedTuple):
    """What a log is known by, once its control block is another one."""

    place: tuple[int, int]  # device and inode of the directory
    state: LogState
    locks: list[int]


class WALMetrics:
    """A read-only view of one log's figures: `WALMetrics.attach(path)` in any process, or `writer.metrics`.

    It takes no lock and has no effect on writers. Threads, signal handlers and forked children may use it. A writer's
    ends with its writer. docs/metrics.md lists all figures.

    >>> import walpool
    >>> with walpool.WALWriter("events.wal") as writer:
    ...     lsn = writer.put(b"key", b"value")
    ...     with walpool.WALMetrics.attach("events.wal") as metrics:
    ...         before = metrics.snapshot()
    ...         lsns = writer.append_batch([walpool.WALEntry.delete(b"key")] * 3)
    ...         print(before.writes_total, metrics.snapshot().delta(before).entries)
    1 3

    Raises:
        TypeError: when it is called itself: use `attach`.
    """

    def __init__(self) -> None:
        raise TypeError("figures are those of a log: WALMetrics.attach(path), or the metrics of a writer")

    @classmethod
    def _of(cls, directory: Directory, control: Control, counters: ProcessCounters, *, owned: bool) -> "WALMetrics":
        self = cls.__new__(cls)
        self._prepare(directory, control, counters, owned)
        return self

    def _prepare(self, directory: Directory, control: Control, counters: ProcessCounters, owned: bool) -> None:
        view = _View(directory, control)
        self._view: _View | None = view  # None: closed, or of the process that forked us
        # By what an attached log is known once its block, or this process, is another.
        self._mark: _Mark | None = _mark(view) if owned else None
        self._id = log_id(directory) if owned else None
        self._path = directory.path
        self._counters = counters
        self._owned = owned
        self._names = ProcessNames()
        self._closed = False
        self._forks = 0
        in_forked_children(self, WALMetrics._after_fork)

    @classmethod
    def attach(cls, path: str | os.PathLike[str]) -> "WALMetrics":
        """Read the figures of a log from any process.

        Args:
            path: the log's directory.

        Raises:
            LogNotFound: there is none: retry once a writer has made it, or mend the path.
            ControlUnusable: a copy, or a log that nobody opened since the boot: retry once a writer has opened it.
            UnsafeLog: mend what it names.
            IOFailed: retry when the cause is gone.
        """
        directory = Directory(path)
        try:
            return cls._of(directory, _attach(directory), counters_of(directory.path), owned=True)
        except BaseException:
            directory.close()
            raise

    def snapshot(self) -> Snapshot:
        """The figures now.

        Raises:
            LogClosed: these metrics, or the writer they belong to, are closed.
            LogReplaced: the log was moved, removed or made anew: attach again.
            ControlUnusable: its control block cannot be believed: retry once a writer has opened the log.
            UnsafeLog, IOFailed: the system refuses the look: retry when the cause is gone.
        """
        while True:
            forks = self._forks
            try:
                return self._look(self._view_now() if self._owned else self._view_of_writer())
            except (WALError, OSError, ValueError) as error:  # ValueError: the block is not mapped any more
                if self._forks == forks or self._closed:
                    if isinstance(error, ValueError) and not isinstance(error, WALError):
                        raise self._is_closed() from None
                    raise
                # Forked in a signal handler, in the middle of it: what we looked through was the parent's.

    def _look(self, view: _View) -> Snapshot:
        directory, control = view
        durable_lsn = control.durable_lsn  # before the state: it must not seem ahead of what is published
        commit = control.words[COMMIT]
        holder = control.appending_slot(commit)
        state = control.state()
        rows = read_rows(directory)
        cursors, consumers = cursor_rows(directory, control, state)
        living = {slot: slots.owner_of(control, slot) for slot in _living(directory, rows) if slot not in consumers}
        by_slot = {row.slot: row for row in rows}
        totals = {name: sum(row.totals[name] for row in rows) for name in TOTALS}
        failures = Failures(*(totals[kind] for kind in Failures._fields))
        mine = self._counters.values()
        wrote = state.entries
        return Snapshot(
            writes_total=wrote,
            writes_failed=sum(failures),
            batches_total=state.batches,
            bytes_written=state.bytes,
            sync_total=control.words[SYNCS],
            sync_seconds_total=control.words[SYNC_NS] / 1e9,
            rotation_count=state.sequence - 1,
            avg_entry_size=max(0, state.bytes - FRAME_BYTES * state.batches) / wrote if wrote else 0.0,
            max_entry_size=state.max_entry_bytes,
            current_file_size=state.tail,
            write_success_rate=_rate(wrote, sum(failures)),
            read_success_rate=_rate(mine["reads_total"], mine["reads_failed"]),
            next_lsn=state.next_lsn,
            durable_lsn=durable_lsn,
            checkpoint=_checkpoint(directory),
            segments=len(list_segments(directory)),
            taken_at=clock.monotonic(),
            failures_by_kind=failures,
            lock_holder=holder if holder in living else None,  # a killed one left its mark and lost the lock
            writers=tuple(writer_row(slot, owner, by_slot, self._names) for slot, owner in living.items()),
            killed_writers=tuple(
                writer_row(row.slot, Owner.of(row.pid, row.pid_namespace), by_slot, self._names)
                for row in rows
                if not row.closed
                and row.slot not in living
                and row.slot != SHARED_ROW
                and _had_it_last(row, slots.owner_of(control, row.slot))
            ),
            readers=tuple(
                ReaderRow(first_lsn, max(0, state.next_lsn - first_lsn)) for first_lsn in all_pins(directory)
            ),
            cursors=cursors,
            lock_wait=_with_rest(_merged(rows, LOCK_WAIT), totals["batches"], 0),
            sync_duration=_merged(rows, SYNC),
            append_duration=_merged(rows, APPEND),
            batch_entries=_with_rest(_merged(rows, BATCH), totals["batches"], 1),
            **{name: totals[name] for name in SHOWN_BY_BOTH},
            **mine,
        )

    def _view_of_writer(self) -> _View:
        """Through a descriptor of our own: the writer may be closed in another thread, and its numbers used again."""
        if self._view is None or self._view.directory.fd < 0 or self._closed:
            raise self._is_closed()
        directory, control = self._view
        try:
            mine = directory.again()
        except OSError as error:
            if directory.fd < 0:
                raise self._is_closed() from None
            raise typed_error(error, directory.path) from error
        if mine.place != directory.place:
            raise self._is_closed()
        return _View(mine, control)

    def _is_closed(self) -> LogClosed:
        return LogClosed(f"{self._path}: these metrics, or the writer they belong to, are closed")

    def _view_now(self) -> _View:
        """What leads to the log now; goes over to the block that has replaced ours."""
        view = self._view  # before the look at `_closed`: close() sets that first
        if self._closed:
            raise self._is_closed()
        if view is not None:
            self._mark = _mark(view)
        mark = self._mark
        assert mark is not None, "a child was forked from what had a view"
        there = self._there(mark)
        if view is not None:
            mapped = view.control.file.stat
            if view.directory.identity(CONTROL) == (mapped.st_dev, mapped.st_ino):
                return view
            there = there or view.directory
        if there is None:
            raise UnsafeLog(self._path, "refused: this process may not open the directory any more")
        try:
            view = _View(there, _attach(there))
        except LogNotFound:
            raise self._replaced("removed") from None
        if is_another(there, self._id) or not _is_same_log(mark, view):
            raise self._replaced("removed, and another one made in its place")
        self._view = view
        if self._closed:  # meanwhile
            self._view = None
            raise self._is_closed()
        return view

    def _there(self, mark: _Mark) -> Directory | None:
        """The directory that the path leads to, or None when we may not look any more. Raises LogReplaced."""
        try:
            there = Directory(self._path)
        except LogNotFound:
            raise self._replaced("moved or removed") from None
        except UnsafeLog as error:
            if isinstance(error.__cause__, PermissionError):
                return None  # rights were given up since: that is no answer
            raise self._replaced("moved or removed") from error
        if there.place != mark.place:
            raise self._replaced("moved or removed, and another directory is in its place")
        return there

    def _replaced(self, how: str) -> LogReplaced:
        return LogReplaced(self._path, f"the log whose figures these are was {how}; attach again")

    def _after_fork(self) -> None:
        """In a forked child: let go of the parent's descriptors; the next snapshot opens its own."""
        view, self._view = self._view, None
        self._forks += 1
        self._names = ProcessNames()
        if view is not None and self._owned:
            view.control.close()
            view.directory.close()

    def close(self) -> None:
        """May be called again. What another thread's snapshot looks through is closed when that is done."""
        self._closed = True
        if self._owned:
            self._view = None

    def __enter__(self) -> "WALMetrics":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _attach(directory: Directory) -> Control:
    if not list_segments(directory):
        raise LogNotFound(directory.path, "the directory holds no log")
    return Control.attach(directory, writable=False)


def _mark(view: _View) -> _Mark:
    return _Mark(view.directory.place, view.control.state(), _locks(view.control))


def _locks(control: Control) -> list[int]:
    return [control.lock_inode(name) for name in LOCKS]


def _is_same_log(mark: _Mark, view: _View) -> bool:
    """Whether the log behind a new control block is the old one, recovered.

    A recovery changes no segment and goes on in one with a higher sequence number, as does a rewrite; the one that was
    active may have been removed by retention or moved aside since. A log that was made anew begins at sequence 1.
    """
    try:
        segment = open_segment(view.directory, mark.state.segment)
    except (FileNotFoundError, CorruptLog, UnsafeLog, UnsupportedVersion):
        return view.control.state().sequence > mark.state.sequence and _locks(view.control) == mark.locks
    segment.file.close()
    return segment.header.marker == mark.state.marker or segment.header.sequence > mark.state.sequence


def _checkpoint(directory: Directory) -> int:
    try:
        return read_checkpoint(directory)
    except (CorruptLog, UnsafeLog):
        return 0  # it covers nothing, and whoever goes by it is told


def _living(directory: Directory, rows: list[RowValues]) -> list[int]:
    try:
        file = directory.open(SLOTS_LOCK)
    except FileNotFoundError:
        return []
    except UnsafeLog:  # who may only read may not look at the locks: then a writer lives until it says otherwise
        return [row.slot for row in rows if not row.closed and row.slot != SHARED_ROW]
    try:
        return list(slots.alive(file))
    finally:
        file.close()


def _had_it_last(row: RowValues, owner: Owner) -> bool:
    """Whether nobody, who counts nothing, has taken the slot since; `owner` says who had it last, in this boot."""
    return not owner.pid or owner.has(row.pid, row.pid_namespace)


def _merged(rows: list[RowValues], which: int) -> Histogram:
    return sum((row.histograms[which] for row in rows), Histogram(unit=unit_of(which)))


def _with_rest(found: Histogram, total: int, units: int) -> Histogram:
    """The histogram, with all of `total` that it does not count at a value of `units`: nobody records the usual."""
    counts = list(found.counts or (0,) * BUCKETS)
    rest = max(0, total - found.count)
    counts[units] += rest
    return Histogram(tuple(counts), found.sum + rest * units * found.unit, found.unit)


def _rate(good: int, bad: int) -> float:
    return 100.0 * good / (good + bad) if good + bad else 100.0
