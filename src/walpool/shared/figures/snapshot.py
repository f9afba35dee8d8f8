"""A snapshot: the figures of a log at one moment, and the difference of two."""

from dataclasses import asdict, dataclass

from walpool.shared.figures.fields import (
    OF_LOG,
    OF_WRITER,
    CursorRow,
    Failures,
    LogFigures,
    ReaderRow,
    WriterRow,
    table,
)
from walpool.shared.figures.histogram import Histogram
from walpool.shared.rows_file import ROWS, SHARED_ROW
from walpool.shared.slot_rows import IDLE, STATES, RowValues
from walpool.shared.slots import Owner
from walpool.system import clock, processes

MOST_NAMES = 4096


@dataclass(frozen=True, slots=True)
@table()
class Snapshot(LogFigures):
    """The figures at one moment. Rates are per cent, 100.0 when nothing happened. docs/metrics.md says who counts."""

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON; of a histogram count, sum, quantiles and max."""
        plain = {name: getattr(self, name) for name in OF_LOG}
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


def _row_as_dict(row: WriterRow | ReaderRow | CursorRow) -> dict[str, object]:
    if not isinstance(row, WriterRow):
        return asdict(row)
    return {name: getattr(row, name) for name in OF_WRITER} | {"failures_by_kind": row.failures_by_kind._asdict()}


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
        failures=sum(failures),
        failures_by_kind=failures,
        last_append_at=own["last_append_ns"] / 1e9,
        state=STATES[own["state"]] if own["state"] < len(STATES) else "unknown",
        state_since=round(clock.time_ns() / 1e9 - ago_s, 1) if since_ns else 0.0,
        state_seconds=ago_s if own["state"] != IDLE else 0.0,
        last_error=row.error if row.error_ns >= row.opened_ns else "",
        last_error_at=row.error_ns / 1e9 if row.error_ns >= row.opened_ns else 0.0,
        elsewhere=bool(owner.pid) and not here,
        **{name: own[name] for name, figure in OF_WRITER.items() if figure.word is not None},
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
