"""WALMetrics: what the log and this process have done, read without a lock and without any effect on writers.

The log's totals come from the state in force, so they count what every process appended and never go backwards when
one dies; so do the sums of all slot rows. Counters of reads are this process's own.
"""

import os

from walpool.errors import LogClosed, LogNotFound, UnsafeLog
from walpool.format.frame import FRAME_BYTES
from walpool.format.names import CONTROL, SLOTS_LOCK
from walpool.shared import slots
from walpool.shared.catalog import list_segments
from walpool.shared.control import COMMIT, SYNC_NS, SYNCS, Control
from walpool.shared.counters import ProcessCounters, counters_of
from walpool.shared.histogram import BUCKETS, Histogram
from walpool.shared.pins import all_pins
from walpool.shared.slot_rows import (
    APPEND,
    BATCH,
    LOCK_WAIT,
    SHARED_ROW,
    SYNC,
    TOTALS,
    Failures,
    RowValues,
    read_rows,
)
from walpool.shared.snapshot import ProcessNames, ReaderRow, Snapshot, writer_row
from walpool.system import clock
from walpool.system.files import Directory


class WALMetrics:
    """A read-only view of one log's figures."""

    def __init__(self, directory: Directory, control: Control, counters: ProcessCounters, *, owned: bool) -> None:
        self._directory = directory
        self._control = control
        self._counters = counters
        self._owned = owned
        self._names = ProcessNames()
        self._closed = False

    @classmethod
    def attach(cls, path: str | os.PathLike[str]) -> "WALMetrics":
        """Read the figures of a log from any process.

        Raises LogNotFound when there is none, ControlUnusable for a copy or a log that nobody opened since the boot.
        """
        directory = Directory(path)
        return cls(directory, _attach(directory), counters_of(directory.path), owned=True)

    def snapshot(self) -> Snapshot:
        if self._closed or self._directory.fd < 0:
            raise LogClosed("these metrics, or the writer they belong to, are closed")
        if self._owned:
            self._keep_up()
        control = self._control
        durable_lsn = control.durable_lsn  # before the state: it must not seem ahead of what is published
        commit = control.words[COMMIT]
        holder = control.appending_slot(commit)
        state = control.state()
        rows = read_rows(self._directory)
        living = {slot: slots.pid_of(control, slot) for slot in self._living(rows)}
        by_slot = {row.slot: row for row in rows}
        totals = {name: sum(row.totals[name] for row in rows) for name in TOTALS}
        failures = Failures(*(totals[kind] for kind in Failures._fields))
        mine = self._counters.values()
        wrote, read = state.entries, mine["reads_total"]
        return Snapshot(
            writes_total=wrote,
            writes_failed=sum(failures),
            batches_total=state.batches,
            bytes_written=state.bytes,
            sync_total=control.words[SYNCS],
            sync_seconds_total=control.words[SYNC_NS] / 1e9,
            rotation_count=state.sequence - 1,
            reads_total=read,
            reads_failed=mine["reads_failed"],
            bytes_read=mine["bytes_read"],
            corrupted_entries=mine["corrupted_entries"],
            avg_entry_size=max(0, state.bytes - FRAME_BYTES * state.batches) / wrote if wrote else 0.0,
            max_entry_size=state.max_entry_bytes,
            current_file_size=state.tail,
            files_opened=mine["files_opened"],
            write_success_rate=_rate(wrote, sum(failures)),
            read_success_rate=_rate(read, mine["reads_failed"]),
            next_lsn=state.next_lsn,
            durable_lsn=durable_lsn,
            segments=len(list_segments(self._directory)),
            taken_at=clock.monotonic(),
            failures_by_kind=failures,
            lock_waits=totals["contended"],
            lock_holder=holder if holder in living else None,  # a killed one left its mark and lost the lock
            sync_waits=totals["sync_waits"],
            writers=tuple(writer_row(slot, pid, by_slot, self._names) for slot, pid in living.items()),
            killed_writers=tuple(
                writer_row(row.slot, row.pid, by_slot, self._names)
                for row in rows
                if not row.closed and row.slot not in living and row.slot != SHARED_ROW
            ),
            readers=tuple(
                ReaderRow(first_lsn, max(0, state.next_lsn - first_lsn)) for first_lsn in all_pins(self._directory)
            ),
            lock_wait=_with_rest(_merged(rows, LOCK_WAIT), totals["batches"], 0),
            sync_duration=_merged(rows, SYNC),
            append_duration=_merged(rows, APPEND),
            batch_entries=_with_rest(_merged(rows, BATCH), totals["batches"], 1),
        )

    def _keep_up(self) -> None:
        """Go over to the block that has replaced ours. Raises LogNotFound for a log that is gone, ControlUnusable."""
        if self._directory.identity(CONTROL) == (self._control.file.stat.st_dev, self._control.file.stat.st_ino):
            return
        directory = Directory(self._directory.path)
        control = _attach(directory)
        self._control.close()
        self._directory.close()
        self._directory, self._control = directory, control

    def _living(self, rows: list[RowValues]) -> list[int]:
        try:
            file = self._directory.open(SLOTS_LOCK)
        except FileNotFoundError:
            return []
        except UnsafeLog:  # who may only read may not look at the locks: then a writer lives until it says otherwise
            return [row.slot for row in rows if not row.closed and row.slot != SHARED_ROW]
        try:
            return list(slots.alive(file))
        finally:
            file.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._owned:
                self._control.close()
                self._directory.close()

    def __enter__(self) -> "WALMetrics":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _attach(directory: Directory) -> Control:
    if not list_segments(directory):
        raise LogNotFound(directory.path, "the directory holds no log")
    return Control.attach(directory, writable=False)


def _merged(rows: list[RowValues], which: int) -> Histogram:
    unit = rows[0].histograms[which].unit if rows else 1.0
    return sum((row.histograms[which] for row in rows), Histogram(unit=unit))


def _with_rest(found: Histogram, total: int, units: int) -> Histogram:
    """The histogram, with all of `total` that it does not count at a value of `units`: nobody records the usual."""
    counts = list(found.counts or (0,) * BUCKETS)
    rest = max(0, total - found.count)
    counts[units] += rest
    return Histogram(tuple(counts), found.sum + rest * units * found.unit, found.unit)


def _rate(good: int, bad: int) -> float:
    return 100.0 * good / (good + bad) if good + bad else 100.0
