"""`walpool stat`: where a log stands: its positions, segments, totals, and the writers that live.

Holds: no lock is taken and nothing is made. A log without a control block that counts (a copy, or one that nobody has
opened since the last boot) is described by its segments, as far as the last of them says it.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass

from walpool import WALMetrics
from walpool.cli import arguments
from walpool.cli.exits import Exit, one_line
from walpool.cli.live.figures import cursor_text, failure_kinds, spread, writer_table
from walpool.cli.output import amount, print_json
from walpool.errors import CorruptLog, LogReplaced, UnsafeLog
from walpool.format.names import segment_name
from walpool.opening.aside import Aside, look_aside
from walpool.read.scan import scan_segment
from walpool.read.window import FrameWindow
from walpool.shared.catalog import list_segments
from walpool.shared.checkpoint import read_checkpoint
from walpool.shared.control import ControlUnusable
from walpool.shared.figures.fields import THIS_PROCESS
from walpool.shared.figures.snapshot import Snapshot
from walpool.system.files import Directory
from walpool.upkeep.repair import require_log

OPEN_IT = "a writer that opens the log makes a new one; until then, cat, dump and verify read it as it is"
ROWS_SHOWN = 10  # of segments, the newest, for people; JSON has them all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", type=arguments.place, metavar="LOG", help="the log's directory")


def run(args: argparse.Namespace) -> Exit:
    found = look(args.log)
    if args.json:
        print_json(found.as_dict())
    else:
        print(render(found))
    return Exit.OK


@dataclass(frozen=True, slots=True)
class SegmentRow:
    name: str
    first_lsn: int
    bytes: int  # of the file
    state: str  # "sealed", "active", or "last" when nobody says which is active


@dataclass(frozen=True, slots=True)
class Standing:
    """A log at one moment."""

    path: str
    first_lsn: int  # of the first segment
    next_lsn: int
    durable_lsn: int
    segments: tuple[SegmentRow, ...]
    snapshot: Snapshot | None  # None: there is no control block that counts,
    reason: str  # because of this
    checkpoint: int | None  # None: the file is damaged
    quarantine: Aside

    def as_dict(self) -> dict[str, object]:
        """Ready for JSON; `totals` and `writers` are null without a control block that counts."""
        totals = None if self.snapshot is None else self.snapshot.as_dict()
        writers = None if totals is None else totals.pop("writers")
        killed = None if totals is None else totals.pop("killed_writers")
        readers = None if totals is None else totals.pop("readers")
        cursors = None if totals is None else totals.pop("cursors")
        for name in NOT_TOTALS:
            if totals is not None:
                totals.pop(name, None)
        return {
            "path": self.path,
            "first_lsn": self.first_lsn,
            "next_lsn": self.next_lsn,
            "durable_lsn": self.durable_lsn,
            "checkpoint": self.checkpoint,
            "bytes": sum(row.bytes for row in self.segments),
            "segments": [asdict(row) for row in self.segments],
            "totals": totals,
            "writers": writers,
            "killed_writers": killed,
            "readers": readers,
            "cursors": cursors,
            "unusable_control": self.reason or None,
            "quarantine": self.quarantine._asdict(),
        }


# What a snapshot counts for the process that takes it, which is us: we have done nothing. And what stands elsewhere.
NOT_TOTALS = (*THIS_PROCESS, "next_lsn", "durable_lsn", "segments", "taken_at")


def look(path: str) -> Standing:
    """The log at `path` now. Raises LogNotFound, UnsafeLog, UnsupportedVersion."""
    snapshot: Snapshot | None = None
    reason = ""
    try:
        with WALMetrics.attach(path) as metrics:
            snapshot = metrics.snapshot()
    except LogReplaced:
        raise
    except (ControlUnusable, UnsafeLog) as error:  # also one that nobody can open: the segments may be there
        reason = error.reason
    with require_log(path) as directory:
        first_lsns = list_segments(directory)
        rows = []
        for first_lsn in first_lsns:
            try:
                size = directory.size_of(segment_name(first_lsn))
            except FileNotFoundError:
                continue  # removed by retention since the names were read
            last = "last" if snapshot is None else "active"
            state = last if first_lsn == first_lsns[-1] else "sealed"
            rows.append(SegmentRow(segment_name(first_lsn), first_lsn, size, state))
        if snapshot is not None:
            next_lsn, durable_lsn = snapshot.next_lsn, snapshot.durable_lsn
        else:
            scan = scan_segment(directory, first_lsns[-1], None, FrameWindow())
            next_lsn, durable_lsn = scan.next_lsn, scan.durable_lsn
        return Standing(
            directory.path, first_lsns[0], next_lsn, durable_lsn, tuple(rows), snapshot, reason,
            _checkpoint(directory), _quarantine(directory),
        )  # fmt: skip


def _checkpoint(directory: Directory) -> int | None:
    try:
        return read_checkpoint(directory)
    except CorruptLog:
        return None


def _quarantine(directory: Directory) -> Aside:
    try:
        return look_aside(directory)
    except UnsafeLog:
        return Aside(0, 0)  # somebody put another thing in its place; whoever needs it refuses that


def render(found: Standing) -> str:
    """For people."""
    last_lsn = found.next_lsn - 1
    lines = [
        one_line(found.path),
        f"entries   {last_lsn - found.first_lsn + 1:,}"
        + (f": LSN {found.first_lsn} to {last_lsn}" if last_lsn >= found.first_lsn else " yet")
        + f", durable through {found.durable_lsn} ({max(0, last_lsn - found.durable_lsn):,} behind)",
    ]
    if found.checkpoint is None:
        lines.append("checkpoint  damaged: state it again with `walpool checkpoint`")
    elif found.checkpoint:
        lines.append(f"checkpoint  LSN {found.checkpoint}: nothing at or below it is needed any more")
    if found.reason:
        lines += [f"control   {found.reason}: these are the segments' own figures", f"          {OPEN_IT}"]
    lines += _totals(found.snapshot) if found.snapshot is not None else []
    lines.append(f"segments  {len(found.segments):,}, {amount(sum(row.bytes for row in found.segments))}")
    hidden = len(found.segments) - ROWS_SHOWN
    lines += [f"          {hidden:,} older ones, all sealed"] if hidden > 0 else []
    lines += [f"          {row.name}  {row.bytes:>13,} bytes  {row.state}" for row in found.segments[-ROWS_SHOWN:]]
    if found.quarantine.files:
        lines.append(
            f"aside     {found.quarantine.files:,} files in quarantine/, {amount(found.quarantine.bytes)};"
            " `walpool prune --quarantine` removes them"
        )
    return "\n".join(lines)


def _totals(totals: Snapshot) -> list[str]:
    return [
        f"appended  {totals.batches_total:,} batches, {amount(totals.bytes_written)};"
        f" entries of {totals.avg_entry_size:,.0f} bytes on average, {totals.max_entry_size:,} at most",
        f"failed    {totals.writes_failed:,} appends{failure_kinds(totals.failures_by_kind)}",
        f"synced    {totals.sync_total:,} times, {spread(totals.sync_duration)}; {totals.rotation_count:,} rotations",
        f"append    {spread(totals.append_duration)} (sampled); {totals.lock_waits:,} waited for the lock,"
        f" {spread(totals.lock_wait)} over all",
        f"writers   {len(totals.writers)} alive"
        + (f", {len(totals.killed_writers)} ended without close" if totals.killed_writers else ""),
        *(f"          {line}" for line in writer_table(totals)),
        *(f"reader    on LSN {row.first_lsn:,}, {row.lag:,} behind" for row in totals.readers),
        *(f"cursor    {cursor_text(row)}" for row in totals.cursors),
    ]
