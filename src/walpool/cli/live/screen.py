"""The monitor's screen, of Textual (extra `monitor`).

Holds: one timer looks at the log and draws everything from that look; keys change only how it is drawn. What goes
wrong with the log ends the screen, and is said when the terminal is a person's again.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, TextIO

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.drivers.linux_driver import LinuxDriver
from textual.screen import ModalScreen
from textual.widgets import Footer, Sparkline, Static

from walpool.cli.exits import one_line
from walpool.cli.live.figures import ENDED, aligned, cursor_text, duration, rate, spread
from walpool.cli.live.watch import Look, Watch, as_dict, errors, who
from walpool.cli.output import amount
from walpool.errors import WALError
from walpool.shared.figures.fields import WriterRow
from walpool.shared.figures.histogram import Histogram
from walpool.shared.figures.snapshot import Delta, Snapshot
from walpool.system import signals
from walpool.system.processes import Usage

LOOKS_KEPT = 240
LEAST_COLUMNS, LEAST_ROWS = 80, 24
BAR = 16
SYNC_BOUNDS = {"< 128 us": 128e-6, "< 512 us": 512e-6, "< 2 ms": 2.1e-3, "< 8 ms": 8.4e-3, "longer": float("inf")}
SORTS = ("slot", "entries/s", "written", "failed", "CPU")
COLUMNS = ("slot", "pid", "name", "mode", "entries/s", "entries", "written", "failed", "CPU %", "RSS MB", "state")
HELP = """\
s  sort the writers by the next column     p  pause, and go on
r  begin the plot and the window anew      c  copy the last look as JSON
?  this help                               q  quit

Rates are those since the last look; latencies those of the window, since r or since the start.
An append is timed about once in a thousand. A lock wait counts every append: one that did not wait as 0.
A writer that ended without close is shown until another takes its slot.
CPU and memory are those of the whole process. * marks figures of all writers beyond the last row."""


def show(app: MonitorApp) -> None:
    """Run the screen until somebody quits; a signal quits it too, so that the terminal is left as it was found."""
    app.driver_class = Terminal
    Terminal.file = sys.stderr
    asyncio.run(_show(app))


class Terminal(LinuxDriver):
    """Textual's driver, writing to our stderr: a terminal that is gone must not end the thread that writes to it.

    The screen would wait for that thread for ever.
    """

    file: ClassVar[TextIO]  # Textual puts another in its place while it runs

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._file = self.file  # type: ignore[assignment]  # Textual's says that it is Python's first stderr


async def _show(app: MonitorApp) -> None:
    loop = asyncio.get_running_loop()
    asked = False

    def quit_app(number: int) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt  # it did not do so the first time
        asked = True
        loop.call_soon_threadsafe(app.exit)

    with signals.handled(quit_app):
        await app.run_async()


class Help(ModalScreen[None]):
    BINDINGS: ClassVar[list[BindingType]] = [("escape,question_mark,q", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        yield Static(HELP, id="help")


class MonitorApp(App[None]):
    TITLE = "walpool monitor"
    CSS = """
    #help { width: 100%; height: auto; margin: 2 2; padding: 1 2; border: round; }
    Help { align: center middle; }
    Sparkline { height: 3; }
    #figures { height: 8; }
    #left { width: 1fr; height: 8; } #right { width: 1fr; height: 8; }
    #scroll { height: 1fr; min-height: 4; }
    #below { height: auto; max-height: 6; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("s", "sort", "Sort"),
        ("p", "pause", "Pause"),
        ("r", "reset", "Reset"),
        ("c", "copy", "Copy JSON"),
        ("question_mark", "help", "Help"),
        ("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),  # else it says that q quits
    ]

    def __init__(self, path: str, watch: Watch, interval_s: float) -> None:
        super().__init__()
        self._path = one_line(path)
        self._watch = watch
        self._interval_s = interval_s
        self._begin: Snapshot = watch.first
        self._rates: deque[float] = deque([0.0] * 2, maxlen=LOOKS_KEPT)
        self._looked: Look | None = None
        self._sort = 0
        self.paused = False
        self.ended_by: WALError | None = None
        # Kept, not looked up: under the help, or at the end, the screen that is shown has none of them.
        self._text = {name: Static(id=name, markup=False) for name in ("head", "left", "right", "writers", "rest")}
        self._plot = Sparkline(self._rates)
        self._usage = Usage()
        self._lines = 0  # in the table of writers
        self._usages: dict[int, tuple[float, int]] = {}

    def compose(self) -> ComposeResult:
        yield self._text["head"]
        with Horizontal(id="figures"):
            yield self._text["left"]
            yield self._text["right"]
        yield self._plot
        with VerticalScroll(id="scroll"):
            yield self._text["writers"]
        with VerticalScroll(id="below"):
            yield self._text["rest"]
        yield Footer()

    def on_mount(self) -> None:
        self.look()
        self.set_interval(self._interval_s, self.look)

    def look(self) -> None:
        """The timer: look, and draw."""
        if self.paused or not self.is_running:
            return
        try:
            self._looked = self._watch.look()
        except WALError as error:
            self.ended_by = error
            self.exit()
            return
        self._rates.append(self._looked.since.entries_per_s)
        pids = {row.pid for row in self._looked.now.writers if row.process}
        self._usages = self._usage.look(pids)
        self.draw()

    def draw(self) -> None:
        if self._looked is None:
            return
        now, since = self._looked
        window = now.delta(self._begin)
        width, height = self.size
        if width < LEAST_COLUMNS or height < LEAST_ROWS:
            self._text["head"].update(f"{width}x{height}: the screen needs {LEAST_COLUMNS}x{LEAST_ROWS}")
            return
        paused = "  PAUSED" if self.paused else ""
        self._text["head"].update(
            f"{self._path}  {rate(since.entries_per_s)} entries/s  {amount(since.bytes_per_s)}/s{paused}"
        )
        self._text["left"].update("\n".join(left(now, since)), layout=False)
        self._text["right"].update("\n".join(right(window)), layout=False)
        self._plot.data = list(self._rates)
        self._draw_writers(now, since)
        self._text["rest"].update("\n".join(below(now)))

    def _draw_writers(self, now: Snapshot, since: Delta) -> None:
        rows = [(row, self._cells(row, since, killed=False)) for row in now.writers]
        rows += [(row, self._cells(row, since, killed=True)) for row in now.killed_writers]
        key = SORT_KEYS[SORTS[self._sort]]
        rows.sort(key=lambda pair: key(pair[0], pair[1], since))
        lines = aligned([COLUMNS, *(cells for _, cells in rows)])
        # As one text: a DataTable of 64 rows took 20 per cent of a core at 2 Hz.
        self._text["writers"].update("\n".join(lines), layout=len(lines) != self._lines)
        self._lines = len(lines)

    def _cells(self, row: WriterRow, since: Delta, *, killed: bool) -> tuple[str, ...]:
        usage = None if killed else self._usages.get(row.pid)
        return (
            f"{row.slot}{'*' if row.shares_row else ''}",
            str(row.pid or "?"),
            who(row),
            row.sync_mode or "-",
            rate(since.per_s(since.writer_entries.get(row.slot, 0))) if not killed else "-",
            f"{row.entries:,}",
            amount(row.bytes),
            f"{row.failures:,}",
            f"{usage[0]:.0f}" if usage else "-",
            f"{usage[1] / 1e6:,.0f}" if usage else "-",
            ENDED if killed else state(row),
        )

    def on_resize(self) -> None:
        self.draw()

    def action_sort(self) -> None:
        self._sort = (self._sort + 1) % len(SORTS)
        self.draw()

    def action_pause(self) -> None:
        self.paused = not self.paused
        self.draw()

    def action_reset(self) -> None:
        if self._looked is not None:
            self._begin = self._looked.now
            self._rates.clear()
            self._rates.extend([0.0] * 2)
            self.draw()

    def action_copy(self) -> None:
        if self._looked is not None:
            self.copy_to_clipboard(json.dumps(as_dict(self._looked)))
            self.notify("copied")

    def action_help(self) -> None:
        self.push_screen(Help())


SORT_KEYS: dict[str, Callable[[WriterRow, tuple[str, ...], Delta], Any]] = {
    "slot": lambda row, cells, since: row.slot,
    "entries/s": lambda row, cells, since: -since.writer_entries.get(row.slot, 0),
    "written": lambda row, cells, since: -row.bytes,
    "failed": lambda row, cells, since: -row.failures,
    "CPU": lambda row, cells, since: -float(cells[8].replace("-", "-1")),
}


def state(row: WriterRow) -> str:
    """What it does; what it waits for, and for how long."""
    if row.state == "idle":
        return "idle"
    return f"{row.state}, {duration(row.state_seconds)}"


def left(now: Snapshot, since: Delta) -> list[str]:
    last_lsn = now.next_lsn - 1
    waiting = sum(row.state == "waiting for the lock" for row in now.writers)
    holder = next((who(row) for row in now.writers if row.slot == now.lock_holder), None)
    return [
        f"LSN      {last_lsn:,}, durable {now.durable_lsn:,} ({max(0, last_lsn - now.durable_lsn):,} behind)",
        f"batches  {rate(since.per_s(since.batches))}/s" + _of(since.batch_entries.sum, since.batches, "entries"),
        f"syncs    {rate(since.per_s(since.syncs))}/s" + _of(since.batches, since.syncs, "batches"),
        f"lock     {f'appending: {holder}' if holder else 'free'}; {waiting} waiting",
        f"segment  {amount(now.current_file_size)} in the active one of {now.segments:,}",
        f"rotated  {now.rotation_count:,} times, {rate(since.per_s(since.rotations))}/s",
        f"failed   {now.writes_failed:,} appends",
    ]


def right(window: Delta) -> list[str]:
    return [
        f"append   {spread(window.append_duration)}",
        f"sync     {spread(window.sync_duration)}",
        f"wait     {spread(window.lock_wait)}",
        *bars(window.sync_duration),
    ]


def _of(parts: float, count: int, what: str) -> str:
    """How many parts each of them had; nothing where there was none to have any."""
    return f" of {parts / count:,.1f} {what}" if count else ""


def bars(found: Histogram) -> list[str]:
    """The histogram of syncs, by powers of four, drawn with characters that need no colour."""
    rows, seen = [], 0
    for name, bound in SYNC_BOUNDS.items():
        upto = max((count for upper, count in found.buckets() if upper <= bound), default=0)
        rows.append((name, upto - seen))
        seen = upto
    most = max(1, *(count for _, count in rows))
    return [f"{name:>8} {'#' * round(BAR * count / most):<{BAR}} {count:,}" for name, count in rows]


def below(now: Snapshot) -> list[str]:
    lines = [f"reader on LSN {row.first_lsn:,}, {row.lag:,} behind" for row in now.readers]
    lines += [f"cursor {cursor_text(row)}" for row in sorted(now.cursors, key=lambda row: -row.lag_entries)[:4]]
    lines += [f"{who(row)}: {one_line(row.last_error)}" for row in errors(now)[:4]]
    return lines or ["no cursor; no reader holds a pin; no errors"]
