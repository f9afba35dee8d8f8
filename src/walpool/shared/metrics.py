"""WALMetrics: what the log and this process have done, read without a lock and without any effect on writers.

The log's totals come from the state in force, so they count what every process appended and never go backwards when
one dies. Counters of failures and reads are this process's own.
"""

import dataclasses
import os
from dataclasses import dataclass

from walpool.errors import LogClosed, LogNotFound
from walpool.format.frame import FRAME_BYTES
from walpool.format.names import SLOTS_LOCK
from walpool.shared import slots
from walpool.shared.catalog import list_segments
from walpool.shared.control import SYNC_NS, SYNCS, Control
from walpool.shared.counters import ProcessCounters, counters_of
from walpool.system import processes
from walpool.system.files import Directory


@dataclass(frozen=True, slots=True)
class WriterRow:
    """One living writer."""

    slot: int
    pid: int  # 0 when unknown
    process: str  # its name, "" when unknown


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The figures at one moment. Bytes and seconds; rates are per cent, 100.0 when nothing happened."""

    writes_total: int  # entries in the life of the log
    writes_failed: int  # appends of this process that raised
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
    segments: int
    writers: tuple[WriterRow, ...]

    def as_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


class WALMetrics:
    """A read-only view of one log's figures."""

    def __init__(self, directory: Directory, control: Control, counters: ProcessCounters, *, owned: bool) -> None:
        self._directory = directory
        self._control = control
        self._counters = counters
        self._owned = owned
        self._closed = False

    @classmethod
    def attach(cls, path: str | os.PathLike[str]) -> "WALMetrics":
        """Read the figures of a log from any process.

        Raises LogNotFound when there is none, ControlUnusable for a copy or a log that nobody opened since the boot.
        """
        directory = Directory(path)
        if not list_segments(directory):
            raise LogNotFound(directory.path, "the directory holds no log")
        return cls(directory, Control.attach(directory, writable=False), counters_of(directory.path), owned=True)

    def snapshot(self) -> Snapshot:
        if self._closed or self._directory.fd < 0:
            raise LogClosed("these metrics, or the writer they belong to, are closed")
        control = self._control
        durable_lsn = control.durable_lsn  # before the state: it must not seem ahead of what is published
        state = control.state()
        mine = self._counters.values()
        wrote, read = state.entries, mine["reads_total"]
        return Snapshot(
            writes_total=wrote,
            writes_failed=mine["writes_failed"],
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
            write_success_rate=_rate(wrote, mine["writes_failed"]),
            read_success_rate=_rate(read, mine["reads_failed"]),
            next_lsn=state.next_lsn,
            durable_lsn=durable_lsn,
            segments=len(list_segments(self._directory)),
            writers=tuple(self._writers()),
        )

    def _writers(self) -> list[WriterRow]:
        try:
            file = self._directory.open(SLOTS_LOCK)
        except FileNotFoundError:
            return []
        try:
            rows = []
            for slot in slots.alive(file):
                pid = slots.pid_of(self._control, slot)
                rows.append(WriterRow(slot, pid, processes.describe(pid) if pid else ""))
            return rows
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


def _rate(good: int, bad: int) -> float:
    return 100.0 * good / (good + bad) if good + bad else 100.0
