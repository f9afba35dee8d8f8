"""Lines: cut input into runs of whole lines, and collect runs into parcels that one worker handles at a time.

Holds: a line is what stands before a line feed; a carriage return belongs to the line. What stands behind the last line
feed of a file may be half a line whose rest is still to come: it is one only if somebody says that the file is final.
Every run's data ends with a line feed, added where the input has none. Where runs are cut depends only on the content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from walpool.cli.exits import CommandError
from walpool.cli.pool.sources import Source, printable, read
from walpool.format.entry import ENTRY_BYTES, MAX_VALUE_BYTES
from walpool.format.frame import FRAME_BYTES
from walpool.format.header import HEADER_BYTES
from walpool.options import DEFAULT_SIZE_LIMIT

PARCEL_BYTES = 1024 * 1024
MIN_PARCEL_BYTES = 16 * 1024
PARCELS_PER_WORKER = 8  # when there is little input: enough for every worker to get its share
MOST_SAID = 10  # of lines that are too long: the others are counted


class LongLines(StrEnum):
    """What becomes of a line over the limit; those before and behind it go in, and keep their numbers."""

    ERROR = "error"  # it is left out, and the exit status says so
    SKIP = "skip"  # it is left out
    SPLIT = "split"  # it is cut into lines of the limit, each with a number of its own


@dataclass(slots=True)
class Intake:
    """How lines are taken in, and what was not."""

    say: Callable[[str], None] = lambda text: None
    final: bool = True
    long_lines: LongLines = LongLines.ERROR
    size_limit: int = DEFAULT_SIZE_LIMIT  # bytes of a segment: a line must fit one
    too_long: int = 0  # lines
    held_back: int = 0  # last lines without a line feed
    problems: list[CommandError] = field(default_factory=list)

    def limit(self, name: bytes, line: int) -> int:
        """The most bytes that this line may have."""
        room = self.size_limit - HEADER_BYTES - FRAME_BYTES - ENTRY_BYTES
        return min(MAX_VALUE_BYTES, room - len(b"%b:%d" % (name, line)))

    def found_long(self, name: bytes, line: int) -> None:
        self.too_long += 1
        if self.long_lines is LongLines.ERROR and self.too_long <= MOST_SAID:
            limit = self.limit(name, line)
            self.say(f"{printable(name)}:{line}: the line is over the limit of {limit:,} bytes, and was left out")

    def failed(self, error: CommandError) -> None:
        self.problems.append(error)
        self.say(str(error))


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive lines of one source."""

    name: bytes
    first_line: int  # from 1
    count: int
    data: bytes

    def lines(self) -> list[bytes]:
        return self.data[:-1].split(b"\n")

    def part(self, start: int, end: int, lines: list[bytes]) -> Run:
        """The run of `lines[start:end]`, where `lines` is `self.lines()`."""
        return Run(self.name, self.first_line + start, end - start, b"\n".join(lines[start:end]) + b"\n")


@dataclass(frozen=True, slots=True)
class Parcel:
    """What one worker appends before it answers: the lines of the runs, in this order."""

    runs: tuple[Run, ...]

    @property
    def count(self) -> int:
        return sum(run.count for run in self.runs)


class LineCutter:
    """Takes the bytes of one source as they come and gives runs of whole lines."""

    def __init__(self, name: bytes, first_line: int = 1, intake: Intake | None = None) -> None:
        self.name = name
        self.next_line = first_line
        self._intake = intake or Intake()
        self._pending: list[bytes] = []  # the beginning of a line that has not ended
        self._pending_bytes = 0
        self._dropping = False  # it is too long, and its beginning is left out already
        self._cut = False  # it is too long, and its beginning has been handed out in pieces

    def feed(self, data: bytes) -> Iterator[Run]:
        """The runs that are complete with `data`."""
        end = data.rfind(b"\n") + 1
        if end:
            complete = b"".join((*self._pending, data[:end]))
            self._pending, self._pending_bytes = [], 0
            if self._dropping:
                complete = complete[complete.index(b"\n") + 1 :]
                self._dropping = False
                self.next_line += 1
            yield from self._runs(complete)
        if end < len(data) and not self._dropping:
            self._pending.append(data[end:])
            self._pending_bytes += len(data) - end
            yield from self._cut_pending()

    def finish(self, *, final: bool = True) -> Iterator[Run]:
        """The last line, if the source does not end with a line feed; held back unless `final`."""
        rest = b"".join(self._pending)
        self._pending, self._pending_bytes = [], 0
        if self._dropping:
            self._dropping = False
            self.next_line += 1
        elif rest and final:
            yield self._run(rest + b"\n")
        elif rest:
            self._intake.held_back += 1
            self.next_line += 1  # the line is there, only not whole

    def _cut_pending(self) -> Iterator[Run]:
        """What must not wait for its line feed, or the memory would fill."""
        limit = self._intake.limit(self.name, self.next_line)
        if self._pending_bytes <= limit:
            return
        self._found_long()
        if self._intake.long_lines is not LongLines.SPLIT:
            self._pending, self._pending_bytes = [], 0
            self._dropping = True
            return
        *pieces, rest = self._pieces(b"".join(self._pending))
        for piece in pieces:
            yield self._run(piece + b"\n")
        self._pending, self._pending_bytes = [rest], len(rest)
        self._cut = True

    def _found_long(self) -> None:
        if not self._cut:
            self._intake.found_long(self.name, self.next_line)

    def _runs(self, complete: bytes) -> Iterator[Run]:
        """Whole lines as runs: all of them as one, unless a line may be too long; then those between long ones."""
        if len(complete) <= self._intake.limit(self.name, self.next_line + len(complete)):
            self._cut = False
            if complete:
                yield self._run(complete)  # so no line of it is too long
            return
        short: list[bytes] = []
        for line in complete[:-1].split(b"\n"):
            if len(line) <= self._intake.limit(self.name, self.next_line + len(short)):
                short.append(line)
                self._cut = False
                continue
            if short:
                yield self._run(b"\n".join(short) + b"\n")
                short = []
            self._found_long()
            self._cut = False
            if self._intake.long_lines is LongLines.SPLIT:
                for piece in self._pieces(line):
                    yield self._run(piece + b"\n")
            else:
                self.next_line += 1
        if short:
            yield self._run(b"\n".join(short) + b"\n")

    def _pieces(self, line: bytes) -> Iterator[bytes]:
        """Cut at the limit of each piece's own number, wherever the bytes came from."""
        at, number = 0, self.next_line
        while len(line) - at > (limit := max(1, self._intake.limit(self.name, number))):
            yield line[at : at + limit]
            at += limit
            number += 1
        yield line[at:]

    def _run(self, data: bytes) -> Run:
        run = Run(self.name, self.next_line, data.count(b"\n"), data)
        self.next_line += run.count
        return run


def file_runs(
    source: Source, intake: Intake | None = None, on_end: Callable[[int], None] = lambda lines: None
) -> Iterator[Run]:
    """The runs of a file; `on_end` is told how many lines there are. Raises SourceError."""
    intake = intake or Intake()
    cutter = LineCutter(source.name, intake=intake)
    for data in read(source):
        yield from cutter.feed(data)
    yield from cutter.finish(final=intake.final)
    on_end(cutter.next_line - 1)


def parcels(runs: Iterator[Run], parcel_bytes: int) -> Iterator[Parcel]:
    """Collect runs until there are `parcel_bytes` of them: a round trip to a worker for each small file costs more."""
    collected: list[Run] = []
    size = 0
    for run in runs:
        collected.append(run)
        size += len(run.data)
        if size >= parcel_bytes:
            yield Parcel(tuple(collected))
            collected, size = [], 0
    if collected:
        yield Parcel(tuple(collected))


def parcel_bytes_for(total_bytes: int, workers: int) -> int:
    share = total_bytes // (workers * PARCELS_PER_WORKER)
    return max(MIN_PARCEL_BYTES, min(PARCEL_BYTES, share))
