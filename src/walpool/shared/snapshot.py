"""A snapshot: the figures of a log at one moment, and the difference of two."""

import dataclasses
from dataclasses import dataclass, field

from walpool.shared.histogram import Histogram
from walpool.shared.slot_rows import ROWS, SHARED_ROW, STATES, Failures, RowValues
from walpool.shared.slots import Owner
from walpool.system import processes

NO_FAILURES = Failures()
MOST_NAMES = 4096


@dataclass(frozen=True, slots=True)
class WriterRow:
    """One writer. What it counted is 0 when it was opened with metrics=False."""

    slot: int
    pid: int  # 0 when unknown
    process: str  # the process's name, "" when unknown or in another pid namespace
    name: str = ""  # the writer's, as it was opened
    sync_mode: str = ""
    opened_at: float = 0.0  # seconds since the epoch
    shares_row: bool = False  # with others beyond the last slot row: then these are figures of all of them, and rough
    entries: int = 0
    batches: int = 0
    bytes: int = 0  # of frames
    failures: int = 0  # appends that raised,
    failures_by_kind: Failures = NO_FAILURES  # by what they raised
    lock_waits: int = 0  # appends that found the append lock taken
    syncs_led: int = 0
    sync_waits: int = 0  # appends and calls of sync() that waited for another's sync
    rotations: int = 0
    buffered_bytes: int = 0  # SyncMode.NONE: not appended yet
    last_append_at: float = 0.0  # seconds since the epoch, to a tenth; 0.0 before the first
    state: str = "idle"  # or what it waits for,
    state_since: float = 0.0  # since then
    last_error: str = ""
    last_error_at: float = 0.0
    elsewhere: bool = False  # of another pid namespace, or an unknown one: where we are, `pid` is not this writer


@dataclass(frozen=True, slots=True)
class ReaderRow:
    """One place that readers with a pin hold (pin=True): the first LSN of the segment they read."""

    first_lsn: int
    lag: int  # entries appended since, at most


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The figures at one moment. Bytes and seconds; rates are per cent, 100.0 when nothing happened."""

    writes_total: int  # entries in the life of the log
    writes_failed: int  # appends that raised, of all writers with metrics
    batches_total: int
    bytes_written: int  # of frames
    sync_total: int
    sync_seconds_total: float
    rotation_count: int
    reads_total: int  # entries this process read
    reads_failed: int
    bytes_read: int
    corrupted_entries: int  # damaged places this process met while reading
    avg_entry_size: float  # bytes: 16 + key + value, over all entries
    max_entry_size: int
    current_file_size: int  # the active segment, up to its published tail
    files_opened: int  # segments this process opened
    write_success_rate: float
    read_success_rate: float
    next_lsn: int
    durable_lsn: int
    checkpoint: int  # nothing at or below this LSN is needed any more; 0 when nobody said so
    segments: int
    taken_at: float = field(compare=False)  # seconds of the monotonic clock
    failures_by_kind: Failures
    lock_waits: int  # appends that found the append lock taken
    lock_holder: int | None  # slot of the writer whose append is under way, now
    sync_waits: int  # appends and calls of sync() that another's sync made durable
    writers: tuple[WriterRow, ...]  # that live
    killed_writers: tuple[WriterRow, ...]  # that ended without close, however, and whose slot nobody has taken since
    readers: tuple[ReaderRow, ...]  # with a pin
    lock_wait: Histogram  # seconds, of all appends: those that did not wait count as 0
    sync_duration: Histogram  # seconds
    append_duration: Histogram  # seconds; about one append in a thousand is timed
    batch_entries: Histogram  # entries of each batch

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
        """What happened since an earlier snapshot of the same log."""
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
    """What happened between two snapshots."""

    seconds: float
    entries: int
    batches: int
    bytes: int
    failures: int
    lock_waits: int
    syncs: int
    rotations: int
    writer_entries: dict[int, int]  # by slot
    writer_bytes: dict[int, int]
    lock_wait: Histogram
    sync_duration: Histogram
    append_duration: Histogram
    batch_entries: Histogram

    def per_s(self, count: float) -> float:
        """A count of this time as a rate; 0.0 when no time has passed."""
        return count / self.seconds if self.seconds else 0.0

    @property
    def entries_per_s(self) -> float:
        return self.per_s(self.entries)

    @property
    def bytes_per_s(self) -> float:
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
        state_since=own["state_since_ns"] / 1e9,
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
