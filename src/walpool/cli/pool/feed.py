"""Feeds: where the crew's parcels come from, files or stdin or one after another.

Holds: a line of a file that the log holds already is never given again; a line of stdin is always new. `take` never
waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from io import FileIO
from typing import Protocol

from walpool.cli.exits import CommandError, Exit
from walpool.cli.pool.ledger import Ledger
from walpool.cli.pool.lines import PARCEL_BYTES, Intake, LineCutter, Parcel, Run, file_runs, parcels
from walpool.cli.pool.sources import Source, SourceError
from walpool.cli.pool.unpack import Damaged, Unpacker
from walpool.system.clock import monotonic

STDIN_NAME = b"-"
READ_BYTES = 256 * 1024
LINGER_S = 0.2  # how long a line of stdin waits for company


class Feed(Protocol):
    @property
    def ended(self) -> bool:
        """No parcel will come any more."""

    def take(self) -> Parcel | None:
        """The next parcel; None if there is none yet, or none any more."""

    @property
    def waits_on(self) -> int | None:
        """The descriptor whose bytes the next parcel needs, if it needs any; `pump` is then to be called."""

    def pump(self) -> None:
        """Read what `waits_on` has."""

    @property
    def patience_s(self) -> float | None:
        """After how many seconds to try `take` again even if `waits_on` has nothing."""

    def end_early(self) -> bool:
        """Take in nothing more, but give what was taken in; False if nothing can be lost by stopping at once."""


class FileFeed:
    """The lines of files that the log does not hold yet. What is wrong with a file is noted, and the next one read."""

    waits_on: int | None = None
    patience_s: float | None = None

    def __init__(self, sources: Sequence[Source], ledger: Ledger, parcel_bytes: int, intake: Intake) -> None:
        self.ended = False
        self.skipped = 0  # lines
        self.skipped_bytes = 0
        self._ledger = ledger
        self._intake = intake
        self._stopped = False
        self._parcels = parcels(self._missing(sources), parcel_bytes)

    def _missing(self, sources: Sequence[Source]) -> Iterator[Run]:
        for source in sources:
            if self._stopped:
                return
            try:
                yield from self._missing_of(source)
            except CommandError as error:  # of this source: what stands in others goes in all the same
                self._intake.failed(error)

    def _missing_of(self, source: Source) -> Iterator[Run]:
        for run in file_runs(source, self._intake, partial(self._ledger.check_length, source)):
            if self._stopped:
                return  # what is skipped takes time too, and there may be much of it
            missing = list(self._ledger.missing(run))
            self.skipped += run.count - sum(part.count for part in missing)
            self.skipped_bytes += len(run.data) - sum(len(part.data) for part in missing)
            yield from missing

    def take(self) -> Parcel | None:
        parcel = next(self._parcels, None)
        self.ended = parcel is None
        return parcel

    def pump(self) -> None:
        raise AssertionError("a file is read by take")

    def end_early(self) -> bool:
        self._stopped = True
        return False  # starting again takes up the rest


class StdinFeed:
    """The lines of a pipe or terminal, as they come: a parcel goes out when it is full, or after `LINGER_S`."""

    def __init__(self, stdin: FileIO, name: bytes, first_line: int, intake: Intake) -> None:
        self.ended = False
        self._stdin = stdin
        self._name = name
        self._intake = intake
        self._unpacker = Unpacker()
        self._cutter = LineCutter(name, first_line, intake)
        self._runs: list[Run] = []
        self._size = 0
        self._since_s = 0.0  # when the oldest of the collected runs came
        self._no_more = False

    @property
    def waits_on(self) -> int | None:
        return None if self._no_more else self._stdin.fileno()

    @property
    def patience_s(self) -> float | None:
        return max(0.0, self._since_s + LINGER_S - monotonic()) if self._runs else None

    def pump(self) -> None:
        try:
            data = self._stdin.read(READ_BYTES)  # one read: what is there, at least a byte, or the end
            if data is None:
                return  # somebody made it non-blocking
            for unpacked in self._unpacker.feed(data) if data else self._unpacker.finish():
                self._collect(self._cutter.feed(unpacked))
        except (Damaged, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            code = Exit.IO if isinstance(error, OSError) else Exit.DIFFERENCE
            self._fail(SourceError(self._name, code, reason or str(error)))
        except CommandError as error:
            self._fail(error)
        else:
            if not data:
                self.end_early()

    def _fail(self, error: CommandError) -> None:
        self._intake.failed(error)
        self._no_more = True  # what came in whole lines before goes in

    def _collect(self, runs: Iterator[Run]) -> None:
        for run in runs:
            if not self._runs:
                self._since_s = monotonic()
            self._runs.append(run)
            self._size += len(run.data)

    def take(self) -> Parcel | None:
        parcel = None
        if self._runs and (self._size >= PARCEL_BYTES or self._no_more or self.patience_s == 0.0):
            parcel = Parcel(tuple(self._runs))
            self._runs, self._size = [], 0
        self.ended = self._no_more and not self._runs
        return parcel

    def end_early(self) -> bool:
        if not self._no_more:
            self._no_more = True
            with suppress(Damaged):  # what came of packed data is not all of it
                for unpacked in self._unpacker.finish():
                    self._collect(self._cutter.feed(unpacked))
            self._collect(self._cutter.finish())
        return True


class ChainFeed:
    """One feed after another."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = list(feeds)

    @property
    def ended(self) -> bool:
        return not self._feeds

    def take(self) -> Parcel | None:
        while self._feeds:
            parcel = self._feeds[0].take()
            if self._feeds[0].ended:
                self._feeds.pop(0)
            if parcel is not None or (self._feeds and self._feeds[0].waits_on is not None):
                return parcel
        return None

    @property
    def waits_on(self) -> int | None:
        return self._feeds[0].waits_on if self._feeds else None

    @property
    def patience_s(self) -> float | None:
        return self._feeds[0].patience_s if self._feeds else None

    def pump(self) -> None:
        self._feeds[0].pump()

    def end_early(self) -> bool:
        del self._feeds[1:]
        return self._feeds[0].end_early() if self._feeds else True
