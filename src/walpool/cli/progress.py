"""Progress: how far a command is, on stderr: a bar that redraws itself on a terminal, a line now and then elsewhere.

Holds: whatever is said goes above the bar, never into it, and nothing here is written to stdout.
"""

from __future__ import annotations

import sys
from shutil import get_terminal_size
from typing import TextIO

from walpool.cli.exits import one_line
from walpool.cli.output import amount
from walpool.system.clock import monotonic
from walpool.system.console import setting

REDRAW_S = 0.1
PLAIN_S = 10.0  # between two lines where nothing can be redrawn
RATE_OVER_S = 2.0  # the rate shown is that of the last seconds, not since the start
BAR_WIDTH = 24
CLEAR_LINE = "\r\x1b[K"
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"


class Progress:
    """`total_bytes` 0 means that nobody knows how much there is to do."""

    def __init__(self, doing: str, total_bytes: int = 0, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty() and setting("TERM") != "dumb"
        self._colour = self._live and not setting("NO_COLOR")
        self._doing = doing
        self._total_bytes = total_bytes
        self._next_s = monotonic() + (REDRAW_S if self._live else PLAIN_S)
        self._drawn = False
        self._marks = [(monotonic(), 0)]  # when there were how many lines

    def update(self, lines: int, done_bytes: int, skipped_bytes: int = 0) -> None:
        """There are `lines` lines of `done_bytes` now; `skipped_bytes` need not be done."""
        now_s = monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + (REDRAW_S if self._live else PLAIN_S)
        self._marks.append((now_s, lines))
        while len(self._marks) > 2 and now_s - self._marks[1][0] > RATE_OVER_S:
            self._marks.pop(0)
        since_s, since_lines = self._marks[0]
        rate = (lines - since_lines) / max(now_s - since_s, 1e-9)
        text = f"{lines:,} lines  {amount(done_bytes)}  {rate:,.0f} lines/s"
        self._show(text, (done_bytes + skipped_bytes) / self._total_bytes if self._total_bytes else None)

    def count(self, number: int, what: str) -> None:
        """`number` of something with no end known and no rate worth showing."""
        now_s = monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + (REDRAW_S if self._live else PLAIN_S)
            self._show(f"{number:,} {what}", None)

    def share(self, done_bytes: int, total_bytes: int) -> None:
        """So much of what there is."""
        now_s = monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + (REDRAW_S if self._live else PLAIN_S)
            self._show(amount(done_bytes), done_bytes / max(1, total_bytes))

    def _show(self, text: str, share: float | None) -> None:
        percent = "" if share is None else f"{min(share, 1.0):4.0%}  "
        if not self._live:
            print(f"{self._doing}: {percent}{text}", file=self._stream, flush=True)
            return
        bar = ""
        if share is not None:
            full = round(min(share, 1.0) * BAR_WIDTH)
            bar = f"[{'#' * full}{'.' * (BAR_WIDTH - full)}] "
        width = get_terminal_size().columns - 1  # a line that wraps cannot be redrawn
        line = f"{self._doing} {bar}{percent}{text}"[:width]
        if self._colour and bar:
            line = line.replace(bar, f"{GREEN}{bar}{PLAIN}")
        self._stream.write(CLEAR_LINE + line)
        self._stream.flush()
        self._drawn = True

    def clear(self) -> None:
        """Take the bar away; the next update draws it again."""
        if self._drawn:
            self._drawn = False
            self._stream.write(CLEAR_LINE)
            self._stream.flush()

    def say(self, text: str) -> None:
        self.clear()
        print(one_line(text), file=self._stream, flush=True)
        if self._live:
            self._next_s = 0.0  # draw the bar again at once
