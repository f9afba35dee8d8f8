"""Watching a log: one look after another, each with what happened since the one before.

Holds: no lock is taken and nothing is made; a log whose control block is replaced meanwhile is watched on.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from walpool import WALMetrics
from walpool.cli.exits import one_line
from walpool.cli.live.figures import ENDED, duration, rate
from walpool.cli.output import amount
from walpool.errors import LogReplaced, UnsafeLog
from walpool.shared.control import ControlUnusable
from walpool.shared.figures.fields import THIS_PROCESS, WriterRow
from walpool.shared.figures.snapshot import Delta, Snapshot
from walpool.system import clock


class Look(NamedTuple):
    now: Snapshot
    since: Delta  # the look before; of the first, nothing


class Watch:
    def __init__(self, path: str) -> None:
        """Raises LogNotFound, ControlUnusable."""
        self._path = path
        self._metrics = WALMetrics.attach(path)
        self._last = self._metrics.snapshot()

    @property
    def first(self) -> Snapshot:
        return self._last

    def look(self) -> Look:
        """Raises LogNotFound when the log is gone, LogReplaced when another one is in its place, ControlUnusable."""
        try:
            now = self._metrics.snapshot()
        except LogReplaced as error:
            with suppress(ControlUnusable, UnsafeLog):
                WALMetrics.attach(self._path).close()
            raise error
        found = Look(now, now.delta(self._last))
        self._last = now
        return found

    def close(self) -> None:
        self._metrics.close()


def rates(look: Look) -> dict[str, float]:
    """What a second of the time since the last look had."""
    since = look.since
    return {
        "entries_per_s": since.entries_per_s,
        "bytes_per_s": since.bytes_per_s,
        "batches_per_s": since.per_s(since.batches),
        "syncs_per_s": since.per_s(since.syncs),
        "rotations_per_s": since.per_s(since.rotations),
        "failures_per_s": since.per_s(since.failures),
        "lock_waits_per_s": since.per_s(since.lock_waits),
        "batches_per_sync": since.batches / since.syncs if since.syncs else 0.0,
    }


def as_dict(look: Look) -> dict[str, object]:
    """One look for machines."""
    since = look.since
    times = {
        "sync_duration": since.sync_duration.as_dict(),
        "append_duration": since.append_duration.as_dict(),
        "lock_wait": since.lock_wait.as_dict(),
        "batch_entries": since.batch_entries.as_dict(),
    }
    now = {name: value for name, value in look.now.as_dict().items() if name not in NOT_SHOWN}
    return {"time": clock.time_ns() / 1e9, "seconds": since.seconds, "rates": rates(look), "since": times, "now": now}


NOT_SHOWN = (*THIS_PROCESS, "taken_at")  # the process that takes the snapshot is the one that watches


def line(look: Look, clock_text: str) -> str:
    """One look on one line."""
    now, since = look
    last_lsn = now.next_lsn - 1
    parts = [
        clock_text,
        f"{rate(since.entries_per_s)} entries/s",
        f"{amount(since.bytes_per_s)}/s",
        f"LSN {last_lsn:,}, {max(0, last_lsn - now.durable_lsn):,} not durable",
        f"{len(now.writers):,} writers" + (f" ({len(now.killed_writers):,} {ENDED})" if now.killed_writers else ""),
    ]
    if since.syncs:
        syncs = since.sync_duration
        parts.append(
            f"{rate(since.per_s(since.syncs))} syncs/s of {since.batches / since.syncs:,.1f} batches,"
            f" p50 {duration(syncs.quantile(0.5))} p99 {duration(syncs.quantile(0.99))}"
        )
    if since.lock_waits:
        parts.append(f"lock waits p99 {duration(since.lock_wait.quantile(0.99))}")
    if since.failures:
        parts.append(f"{since.failures:,} failed")
    behind = max(now.cursors, key=lambda row: row.lag_entries, default=None)
    if behind is not None and behind.lag_entries:
        parts.append(f"cursor {behind.name} {behind.lag_entries:,} behind, {duration(behind.lag_seconds)}")
    parts += [f"{who(row)}: {one_line(row.last_error)}" for row in errors(now)[:1]]
    return "  ".join(parts)


def errors(now: Snapshot) -> list[WriterRow]:
    """The rows of writers with an error, the newest first."""
    rows = [row for row in (*now.writers, *now.killed_writers) if row.last_error]
    return sorted(rows, key=lambda row: -row.last_error_at)


def who(row: WriterRow) -> str:
    return one_line(row.name or row.process or f"pid {row.pid}{' of another pid namespace' if row.elsewhere else ''}")
