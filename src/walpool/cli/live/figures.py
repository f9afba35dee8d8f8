"""Figures as text: what `stat` and `monitor` say of a snapshot, in the same words."""

from __future__ import annotations

from collections.abc import Sequence

from walpool.cli.exits import one_line
from walpool.cli.output import amount
from walpool.shared.figures.fields import CursorRow, Failures, WriterRow
from walpool.shared.figures.histogram import Histogram
from walpool.shared.figures.snapshot import Snapshot

WRITER_COLUMNS = ("slot", "pid", "name", "mode", "entries", "written", "failed", "buffered", "state")
ENDED = "ended without close"  # killed, or a child that its pool ended, or a process that forgot: nobody can tell
SHOWN = 200  # writers in a table; JSON has them all


def duration(seconds: float) -> str:
    """Three figures and a unit that fits: 0, 12.3 us, 4.56 ms, 7.89 s."""
    for unit, worth in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= worth:
            return f"{seconds / worth:.3g} {unit}"
    return f"{seconds * 1e6:.2g} us" if seconds else "0"


def rate(a_second: float) -> str:
    """Of small ones, two figures: what happens every three seconds is not 0."""
    return f"{a_second:.2g}" if 0 < a_second < 9.95 else f"{a_second:,.0f}"


def spread(times: Histogram) -> str:
    """How long most, nearly all, and the longest took."""
    if not times.count:
        return "none timed"
    return f"p50 {duration(times.quantile(0.5))}, p99 {duration(times.quantile(0.99))}, max {duration(times.max)}"


def failure_kinds(failures: Failures) -> str:
    kinds = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in failures._asdict().items() if count)
    return f": {kinds}" if kinds else ""


def writer_cells(row: WriterRow, *, killed: bool = False) -> tuple[str, ...]:
    """As WRITER_COLUMNS."""
    return (
        str(row.slot) + ("*" if row.shares_row else ""),
        pid_cell(row),
        one_line(row.name or row.process) or "-",
        row.sync_mode or "-",
        f"{row.entries:,}",
        amount(row.bytes),
        f"{row.failures:,}",
        f"{row.buffered_bytes:,}",
        ENDED if killed else row.state,
    )


def cursor_text(row: CursorRow) -> str:
    """How far it is behind, and what is wrong with it."""
    behind = f"{row.lag_entries:,} entries, {amount(row.lag_bytes)}, {duration(row.lag_seconds)} behind"
    missed = f"; missed {row.missed:,} entries" if row.missed else ""
    problem = f"; {one_line(row.problem)}" if row.problem else ""
    return f"{row.name} at LSN {row.position:,}, {behind}{missed}{'' if row.is_open else '; not open'}{problem}"


def pid_cell(row: WriterRow) -> str:
    """The process id; of a process of another pid namespace as it is there, and marked."""
    return f"{row.pid or '?'}{'^' if row.elsewhere else ''}"


def writer_table(found: Snapshot) -> list[str]:
    """The living writers and those that ended without close; the marks of their cells are explained below them."""
    rows = [writer_cells(row) for row in found.writers]
    rows += [writer_cells(row, killed=True) for row in found.killed_writers]
    lines = aligned([WRITER_COLUMNS, *rows[:SHOWN]]) if rows else []
    if len(rows) > SHOWN:
        lines.append(f"and {len(rows) - SHOWN:,} more")
    if any(row.shares_row for row in found.writers):
        lines.append("* figures of all writers beyond the last row, together and rough")
    if any(row.elsewhere for row in (*found.writers, *found.killed_writers)):
        lines.append("^ in another pid namespace, or an unknown one: here this is another process, or none")
    return lines


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, two spaces apart; all but words to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    right = [all(row[at][:1].isdigit() or row[at] in "-?" for row in rows[1:]) for at in range(len(widths))]
    return [
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
