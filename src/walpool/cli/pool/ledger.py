"""The ledger: which lines of which sources a log holds already, with a checksum of each.

Holds: only puts whose key is `name:line` of a source that was asked for are noted; 4 bytes a line. A line that is in
the log with another text than the source has now is a `SourceChanged`, never skipped; but for the last one, if what the
log holds is its beginning: then it was taken before it was whole, and is missing.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from zlib import crc32

from walpool import LSNUnavailable, Operation, WALReader
from walpool.cli.exits import CommandError, Exit
from walpool.cli.pool.lines import Parcel, Run
from walpool.cli.pool.sources import Source, printable

REPORT_EVERY = 100_000  # entries between two calls of `progress`
MOST_GAP = 1 << 20  # lines: somebody else's key must not make the notes huge
MAX_DIGITS = 18  # of a line number; somebody else's key may end in a megabyte of them


class SourceChanged(CommandError):
    """A source is not what it was when some of its lines were appended."""

    def __init__(self, name: bytes, line: int, what: str) -> None:
        super().__init__(Exit.DIFFERENCE, f"{printable(name)}:{line}: {what}; it was neither skipped nor appended")


class Ledger:
    """Notes the lines of the sources in `line_limits`; a line number over a source's limit is not one of its lines.

    `None` says that nobody knows how many lines a source has.
    """

    def __init__(self, line_limits: Mapping[bytes, int | None]) -> None:
        self._limits = dict(line_limits)
        self._sums: dict[bytes, array[int]] = {name: array("I") for name in self._limits}  # 0: not in the log
        self._far: dict[bytes, dict[int, int]] = {name: {} for name in self._limits}  # those behind a gap
        self.highest = dict.fromkeys(self._limits, 0)  # over the limit or not

    def note(self, key: bytes, value: bytes) -> None:
        name, _, digits = key.rpartition(b":")
        sums = self._sums.get(name)
        if sums is None or not digits.isdigit() or digits.startswith(b"0") or len(digits) > MAX_DIGITS:
            return
        line = int(digits)
        if line > self.highest[name]:
            self.highest[name] = line
        held = len(sums)
        limit = self._limits[name]
        if line <= held:
            sums[line - 1] = checksum(value)
        elif limit is None or line <= limit:
            if line > held + MOST_GAP:
                self._far[name][line] = checksum(value)
                return
            if line > held + 1:
                sums.frombytes(bytes(sums.itemsize * (line - held - 1)))
            sums.append(checksum(value))

    def read(self, log: Path, start: int, progress: Callable[[int], None] = lambda entries: None) -> None:
        """Note every line in `log` from LSN `start` to its end. Raises LSNUnavailable if `start` was removed."""
        with WALReader(log, start=start) as reader:
            entries = 0
            for entry in reader:
                if entry.operation == Operation.PUT:
                    self.note(bytes(entry.key), bytes(entry.value))
                entries += 1
                if entries % REPORT_EVERY == 0:
                    progress(entries)
        progress(entries)

    def missing(self, run: Run) -> Iterator[Run]:
        """The parts of `run` that are not in the log. Raises SourceChanged if the log has another text for a line."""
        sums = self._held(run)
        if not any(sums):
            yield run
            return
        lines = run.lines()
        start: int | None = None  # of the missing lines before `index`
        for index, line in enumerate(lines):
            held = sums[index] if index < len(sums) else 0
            if not held or (
                held != checksum(line) and self._is_beginning(held, line, run.name, run.first_line + index)
            ):
                start = index if start is None else start
                continue
            if held != checksum(line):
                raise SourceChanged(run.name, run.first_line + index, "the log holds this line with another text")
            if start is not None:
                yield run.part(start, index, lines)
                start = None
        if start is not None:
            yield run.part(start, len(lines), lines)

    def _held(self, run: Run) -> Sequence[int]:
        """The checksums of a run's lines, 0 for those that are not in the log; perhaps without zeros at the end."""
        sums = self._sums[run.name][run.first_line - 1 : run.first_line - 1 + run.count]
        far = self._far[run.name]
        if not far:
            return sums
        found = [*sums, *(0 for _ in range(run.count - len(sums)))]
        return [held or far.get(line, 0) for line, held in enumerate(found, run.first_line)]

    def _is_beginning(self, held: int, line: bytes, name: bytes, number: int) -> bool:
        if number != self.highest[name]:
            return False
        total = 0
        for at in range(len(line) - 1):
            total = crc32(line[at : at + 1], total)
            if (total or 1) == held:
                return True
        return False

    def check_length(self, source: Source, lines: int) -> None:
        """Raises SourceChanged if the log holds lines behind the end of the source, which has `lines` of them."""
        highest = self.highest[source.name]
        if highest > lines:
            what = f"the log holds this line, but the file has only {lines:,} lines now"
            raise SourceChanged(source.name, highest, what)


def checksum(value: bytes) -> int:
    return crc32(value) or 1  # 0 says that the line is not in the log


def for_sources(sources: Iterable[Source], others: Iterable[bytes] = ()) -> Ledger:
    """A ledger for whole files; of the names in `others` only the highest line is noted."""
    limits = {source.name: source.most_lines for source in sources}
    return Ledger({**dict.fromkeys(others, 0), **limits})


def read_whole(ledger: Ledger, log: Path, progress: Callable[[int], None]) -> int:
    """Note everything `log` still holds; the first LSN that was there (1 unless retention removed some)."""
    try:
        ledger.read(log, 1, progress)
    except LSNUnavailable as error:
        ledger.read(log, error.first_available, progress)
        return error.first_available
    return 1


def without_published(parcel: Parcel, log: Path, start: int) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """What of `parcel` is in the log at or behind LSN `start`, and what is missing: both in the parcel's order."""
    last_lines: dict[bytes, int] = {}
    for run in parcel.runs:
        last_lines[run.name] = max(last_lines.get(run.name, 0), run.first_line + run.count - 1)
    ledger = Ledger(last_lines)
    ledger.read(log, start)
    missing: list[Run] = []
    published: list[Run] = []
    for run in parcel.runs:
        at = run.first_line
        lines = run.lines()
        for rest in ledger.missing(run):
            if rest.first_line > at:
                published.append(run.part(at - run.first_line, rest.first_line - run.first_line, lines))
            missing.append(rest)
            at = rest.first_line + rest.count
        if at < run.first_line + run.count:
            published.append(run.part(at - run.first_line, run.count, lines))
    return tuple(published), tuple(missing)
