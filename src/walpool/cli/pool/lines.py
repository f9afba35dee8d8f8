"""Lines: cut input into runs of whole lines, and collect runs into parcels that one worker handles at a time.

Holds: a line is what stands before a line feed, or before the end of the input; a carriage return belongs to the line.
Every run's data ends with a line feed, added if the input's last line has none. Runs of a file are cut at places that
depend only on its content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from walpool.cli.exits import CommandError, Exit, one_line
from walpool.format.entry import MAX_VALUE_BYTES

RUN_BYTES = 256 * 1024
PARCEL_BYTES = 1024 * 1024
MIN_PARCEL_BYTES = 16 * 1024
PARCELS_PER_WORKER = 8  # when there is little input: enough for every worker to get its share


@dataclass(frozen=True, slots=True)
class Source:
    """A file to load; `name` is what its keys begin with."""

    name: bytes
    path: Path
    size: int  # bytes, when it was looked at


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

    def key(self, index: int) -> bytes:
        return b"%b:%d" % (self.name, self.first_line + index)


@dataclass(frozen=True, slots=True)
class Parcel:
    """What one worker appends before it answers: the lines of the runs, in this order."""

    runs: tuple[Run, ...]

    @property
    def count(self) -> int:
        return sum(run.count for run in self.runs)

    @property
    def size(self) -> int:
        return sum(len(run.data) for run in self.runs)


class LineCutter:
    """Takes the bytes of one source as they come and gives runs of whole lines."""

    def __init__(self, name: bytes, first_line: int = 1) -> None:
        self.name = name
        self.next_line = first_line
        self._pending: list[bytes] = []  # the beginning of a line that has not ended
        self._pending_bytes = 0

    def feed(self, data: bytes) -> Run | None:
        """The run that is complete with `data`, or None. Raises CommandError for a line over the value limit."""
        end = data.rfind(b"\n") + 1
        if not end:
            self._pending.append(data)
            self._pending_bytes += len(data)
            if self._pending_bytes > MAX_VALUE_BYTES:  # refused before the rest of it fills the memory
                raise line_too_long(self.name, self.next_line)
            return None
        complete = b"".join((*self._pending, data[:end]))
        self._keep(data[end:])
        return self._run(complete)

    def finish(self) -> Run | None:
        """The last line, if the source does not end with a line feed."""
        rest = b"".join(self._pending)
        self._keep(b"")
        return self._run(rest + b"\n") if rest else None

    def _keep(self, rest: bytes) -> None:
        self._pending = [rest] if rest else []
        self._pending_bytes = len(rest)

    def _run(self, data: bytes) -> Run:
        run = Run(self.name, self.next_line, data.count(b"\n"), data)
        self.next_line += run.count
        return run


def line_too_long(name: bytes, line: int) -> CommandError:
    return CommandError(Exit.USAGE, f"{printable(name)}:{line}: the line is over the limit of {MAX_VALUE_BYTES} bytes")


def printable(name: bytes) -> str:
    return one_line(name.decode("utf-8", "backslashreplace"))


def file_runs(source: Source, on_end: Callable[[int], None] = lambda lines: None) -> Iterator[Run]:
    """The runs of a file, up to the size it had when it was looked at; `on_end` is told how many lines there were."""
    cutter = LineCutter(source.name)
    left = source.size
    with source.path.open("rb", buffering=0) as file:
        while left and (data := file.read(min(RUN_BYTES, left))):
            left -= len(data)
            if (run := cutter.feed(data)) is not None:
                yield run
    if (run := cutter.finish()) is not None:
        yield run
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
