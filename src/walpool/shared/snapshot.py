"""A snapshot: the figures of a log at one moment, and the difference of two."""

import dataclasses
from dataclasses import dataclass, field

from walpool.shared.histogram import Histogram
from walpool.shared.slot_rows import IDLE, ROWS, SHARED_ROW, STATES, Failures, RowValues
from walpool.shared.slots import Owner
from walpool.system import clock, processes

NO_FAILURES = Failures()
MOST_NAMES = 4096


@dataclass(frozen=True, slots=True)
class WriterRow:
    """One writer. What it counted is 0 when it was opened with metrics=False.

    Attributes:
        slot: its writer slot.
        pid: its process id; 0 when unknown.
        process: the process's name; empty when unknown or in another pid namespace.
        name (default ""): the writer's, as it was opened.
        sync_mode (default ""): a SyncMode's value.
        opened_at (default 0.0): seconds since the epoch.
        shares_row (default False): True beyond slot 1,023: these are figures of all such writers together, and rough.
        entries (default 0): appended by it.
        batches (default 0): frames appended by it; an entry put alone is a batch of one.
        bytes (default 0): of its frames.
        failures (default 0): appends that raised.
        failures_by_kind (default Failures()): the same, by what they raised.
        lock_waits (default 0): appends that found the append lock taken.
        syncs_led (default 0): syncs that it made, for all that waited.
        sync_waits (default 0): appends and calls of sync() that waited for another's sync.
        rotations (default 0): segments that it started.
        buffered_bytes (default 0): SyncMode.NONE: not appended yet.
        last_append_at (default 0.0): seconds since the epoch, to a tenth; 0.0 before the first.
        state (default "idle"): idle, waiting for the lock, or waiting for a sync; who is appending is `lock_holder`.
        state_since (default 0.0): seconds since the epoch: when it last began to wait, to a tenth; 0.0 before
            that.
        state_seconds (default 0.0): how long it has waited, whatever was done to the wall clock; 0.0 when idle.
        last_error (default ""): the message of its last append that raised.
        last_error_at (default 0.0): seconds since the epoch; 0.0 when none did.
        elsewhere (default False): it is of another pid namespace, or an unknown one: where we are, `pid` is not it.
    """

    slot: int
    pid: int
    process: str
    name: str = ""
    sync_mode: str = ""
    opened_at: float = 0.0
    shares_row: bool = False
    entries: int = 0
    batches: int = 0
    bytes: int = 0
    failures: int = 0
    failures_by_kind: Failures = NO_FAILURES
    lock_waits: int = 0
    syncs_led: int = 0
    sync_waits: int = 0
    rotations: int = 0
    buffered_bytes: int = 0
    last_append_at: float = 0.0
    state: str = "idle"
    state_since: float = 0.0
    state_seconds: float = 0.0
    last_error: str = ""
    last_error_at: float = 0.0
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class ReaderRow:
    """One place that readers with a pin (pin=True) hold.

    Attributes:
        first_lsn: of the segment that they read; retention keeps everything from there on.
        lag: entries behind which they are, at most.
    """

    first_lsn: int
    lag: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The figures at one moment. Rates are per cent, 100.0 when nothing happened. docs/metrics.md says who counts what.

    Attributes:
        writes_total: entries appended in the life of the log.
        writes_failed: appends that raised, of all writers with metrics.
        batches_total: frames appended; an entry put alone is a batch of one.
        bytes_written: of frames.
        sync_total: syncs made.
        sync_seconds_total: seconds they took together.
        rotation_count: segments started after the first.
        reads_total: entries that readers of this process handed out.
        reads_failed: damage that ended a reading of this process.
        bytes_read: of frames, by readers of this process.
        corrupted_entries: damaged places that readers of this process met.
        avg_entry_size: bytes: 16 + key + value, over all entries.
        max_entry_size: bytes, of the largest entry.
        current_file_size: bytes of the active segment, up to its published tail.
        files_opened: segments that this process opened.
        write_success_rate: per cent: entries written, of these and the appends that raised.
        read_success_rate: per cent: entries read, of these and the reads that failed.
        next_lsn: the LSN that the next entry gets.
        durable_lsn: everything at or below it is on disk.
        checkpoint: nothing at or below this LSN is needed any more; 0 when nobody said so.
        segments: segment files there are.
        taken_at: when, seconds of the monotonic clock; plays no part in comparisons.
        failures_by_kind: `writes_failed`, by what was raised.
        lock_waits: appends that found the append lock taken.
        lock_holder: slot of the writer whose append is under way now, or None.
        sync_waits: appends and calls of sync() that another's sync made durable.
        writers: those that live.
        killed_writers: those that ended without close, however, and whose slot nobody has taken since.
        readers: places that readers with a pin hold.
        lock_wait: seconds, of all appends; those that did not wait count as 0.
        sync_duration: seconds, of each sync.
        append_duration: seconds; about one append in a thousand is timed.
        batch_entries: entries of each batch.
    """

    writes_total: int
    writes_failed: int
    batches_total: int
    bytes_written: int
    sync_total: int
    sync_seconds_total: float
    rotation_count: int
    reads_total: int
    reads_failed: int
    bytes_read: int
    corrupted_entries: int
    avg_entry_size: float
    max_entry_size: int
    current_file_size: int
    files_opened: int
    write_success_rate: float
    read_success_rate: float
    next_lsn: int
    durable_lsn: int
    checkpoint: int
    segments: int
    taken_at: float = field(compare=False)
    failures_by_kind: Failures
    lock_waits: int
    lock_holder: int | None
    sync_waits: int
    writers: tuple[WriterRow, ...]
    killed_writers: tuple[WriterRow, ...]
    readers: tuple[ReaderRow, ...]
    lock_wait: Histogram
    sync_duration: Histogram
    append_duration: Histogram
    batch_entries: Histogram

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON; of a histogram count, sum, quantiles and max."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in plain.items():
            if isinstance(value, Histogram):
                plain[name] = value.as_dict()
            elif isinstance(value, Failures):
                plain[name] = value._asdict()
            elif isinstance(value, tuple):
                plain[name] = [_row_as_dict(row) for row in value]
        return plain

    def delta(self, previous: "Snapshot") -> "Delta":
        """What happened since an earlier snapshot of the same log.

        Args:
            previous: the earlier one.
        """
        before = {row.slot: row for row in previous.writers}

        def since(name: str) -> int:
            return max(0, int(getattr(self, name)) - int(getattr(previous, name)))

        return Delta(
            seconds=max(0.0, self.taken_at - previous.taken_at),
            entries=since("writes_total"),
            batches=since("batches_total"),
            bytes=since("bytes_written"),
            failures=since("writes_failed"),
            lock_waits=since("lock_waits"),
            syncs=since("sync_total"),
            rotations=since("rotation_count"),
            writer_entries={row.slot: _since(row, before.get(row.slot), "entries") for row in self.writers},
            writer_bytes={row.slot: _since(row, before.get(row.slot), "bytes") for row in self.writers},
            lock_wait=self.lock_wait - previous.lock_wait,
            sync_duration=self.sync_duration - previous.sync_duration,
            append_duration=self.append_duration - previous.append_duration,
            batch_entries=self.batch_entries - previous.batch_entries,
        )


def _row_as_dict(row: WriterRow | ReaderRow) -> dict[str, object]:
    plain = dataclasses.asdict(row)
    if isinstance(row, WriterRow):
        plain["failures_by_kind"] = row.failures_by_kind._asdict()
    return plain


def _since(row: WriterRow, before: WriterRow | None, name: str) -> int:
    same = before is not None and (before.pid, before.opened_at) == (row.pid, row.opened_at)
    return int(getattr(row, name)) - (int(getattr(before, name)) if same else 0)


@dataclass(frozen=True, slots=True)
class Delta:
    """What happened between two snapshots.

    Attributes:
        seconds: between them, by the monotonic clock.
        entries: appended.
        batches: frames appended.
        bytes: of frames.
        failures: appends that raised.
        lock_waits: appends that found the append lock taken.
        syncs: made.
        rotations: segments started.
        writer_entries: entries appended by each living writer, by slot.
        writer_bytes: bytes of frames of each living writer, by slot.
        lock_wait, sync_duration, append_duration: seconds.
        batch_entries: entries of each batch.
    """

    seconds: float
    entries: int
    batches: int
    bytes: int
    failures: int
    lock_waits: int
    syncs: int
    rotations: int
    writer_entries: dict[int, int]
    writer_bytes: dict[int, int]
    lock_wait: Histogram
    sync_duration: Histogram
    append_duration: Histogram
    batch_entries: Histogram

    def per_s(self, count: float) -> float:
        """A count of this time as a rate, per second; 0.0 when no time has passed.

        Args:
            count: of whatever happened in between.
        """
        return count / self.seconds if self.seconds else 0.0

    @property
    def entries_per_s(self) -> float:
        """Entries appended, per second."""
        return self.per_s(self.entries)

    @property
    def bytes_per_s(self) -> float:
        """Bytes of frames appended, per second."""
        return self.per_s(self.bytes)


def writer_row(slot: int, owner: Owner, rows: dict[int, RowValues], names: "ProcessNames") -> WriterRow:
    """The row of the writer in `slot`, if it has one."""
    at = slot if slot < ROWS else SHARED_ROW
    row = rows.get(at)
    here = owner.is_of(names.namespace)
    if row is None or (at != SHARED_ROW and (row.closed or not owner.has(row.pid, row.pid_namespace))):
        # Opened without metrics; the row is of an earlier owner.
        return WriterRow(
            slot, owner.pid, names.of(owner.pid, 0) if here else "", elsewhere=bool(owner.pid) and not here
        )
    if at != SHARED_ROW:
        here = row.pid_namespace == names.namespace
    own = row.own
    failures = Failures(*(own[kind] for kind in Failures._fields))
    since_ns = own["state_since_ns"]
    ago_s = max(0, clock.monotonic_ns() - since_ns) / 1e9
    return WriterRow(
        slot=slot,
        pid=owner.pid,
        process=names.of(owner.pid, 0 if at == SHARED_ROW else row.started_ns) if here else "",
        name=row.name,
        sync_mode=row.sync_mode,
        opened_at=row.opened_ns / 1e9,
        shares_row=at == SHARED_ROW,
        entries=own["batches"] + own["more_entries"],
        batches=own["batches"],
        bytes=own["bytes"],
        failures=sum(failures),
        failures_by_kind=failures,
        lock_waits=own["contended"],
        syncs_led=own["syncs_led"],
        sync_waits=own["sync_waits"],
        rotations=own["rotations"],
        buffered_bytes=own["buffered_bytes"],
        last_append_at=own["last_append_ns"] / 1e9,
        state=STATES[own["state"]] if own["state"] < len(STATES) else "unknown",
        state_since=round(clock.time_ns() / 1e9 - ago_s, 1) if since_ns else 0.0,
        state_seconds=ago_s if own["state"] != IDLE else 0.0,
        last_error=row.error if row.error_ns >= row.opened_ns else "",
        last_error_at=row.error_ns / 1e9 if row.error_ns >= row.opened_ns else 0.0,
        elsewhere=bool(owner.pid) and not here,
    )


class ProcessNames:
    """Names of processes, asked once for each that was started."""

    def __init__(self) -> None:
        self.namespace = processes.pid_namespace()
        self._names: dict[tuple[int, int], str] = {}

    def of(self, pid: int, started_ns: int) -> str:
        if not pid:
            return ""
        name = self._names.get((pid, started_ns))
        if name is None:
            if len(self._names) > MOST_NAMES:
                self._names.clear()
            name = self._names[pid, started_ns] = processes.describe(pid)
        return name
