"""The proof: a log is read back and compared with the sources whose lines a pool appended to it.

A stream is a sequence of lines that must be in the log in that order: all that one worker process was handed, and, for
lines that an earlier loading appended, each run of a file (a run is handled by one worker). The digest of a stream is
BLAKE2b over `key NUL value NUL` of its lines; it is computed once from the sources, in the order in which lines were
handed out, and once from the log, in the order of LSNs.

Holds: nothing here believes the pool but for which worker it handed which lines.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from walpool import WALReader
from walpool.cli.pool.lines import Run, file_runs
from walpool.cli.pool.sources import Source

REPORT_EVERY = 50_000  # entries between two calls of `progress`
DIGEST_BYTES = 16
MAX_DIGITS = 12  # of a line number that could be one of ours


class Span(NamedTuple):
    """Consecutive lines of one source."""

    name: bytes
    first_line: int
    lines: int


class Claim(NamedTuple):
    """One statement about the log, and whether it holds."""

    subject: str
    text: str
    holds: bool

    def as_dict(self) -> dict[str, object]:
        return {"subject": self.subject, "claim": self.text, "holds": self.holds}


@dataclass(slots=True)
class Stream:
    """Lines that must be in the log in this order, and how far the log has been compared with them."""

    worker: int  # serial; 0 for lines of an earlier loading
    spans: list[Span] = field(default_factory=list)
    expected: Iterator[bytes] = field(default_factory=lambda: iter(()))  # keys
    found: int = 0
    first_stray_lsn: int = 0  # where another key than the next one stood, 0 if nowhere
    digest: blake2b = field(default_factory=lambda: blake2b(digest_size=DIGEST_BYTES))

    def keys(self) -> Iterator[bytes]:
        return (b"%b:%d" % (name, line) for name, first, count in self.spans for line in range(first, first + count))


class Placements:
    """What the pool says: which worker was handed which lines. `placed` is for the pool to call."""

    def __init__(self) -> None:
        self.by_worker: dict[int, list[Span]] = {}

    def placed(self, worker: int, runs: tuple[Run, ...]) -> None:
        self.by_worker.setdefault(worker, []).extend(Span(run.name, run.first_line, run.count) for run in runs)


def prove(
    log: Path, sources: Sequence[Source], placements: Placements, progress: Callable[[int], None]
) -> tuple[list[Claim], int]:
    """Read all of `log` and compare it with `sources`: the claims, and how many entries were read."""
    owners = {source.name: _Lines(source) for source in sources}
    streams = _streams(owners, placements)
    foreign = doubled = gaps = entries = 0
    first_lsn = lsn = 0
    with WALReader(log) as reader:
        for _, key_bytes, value, _, entry_lsn in reader:
            entries += 1
            if lsn and entry_lsn != lsn + 1:
                gaps += 1
            first_lsn = first_lsn or entry_lsn
            lsn = entry_lsn
            key = bytes(key_bytes)
            name, _, digits = key.rpartition(b":")
            lines = owners.get(name)
            index = int(digits) - 1 if digits.isdigit() and len(digits) <= MAX_DIGITS else -1
            if lines is None or not 0 <= index < lines.count:
                foreign += 1
                continue
            doubled += lines.seen[index]
            lines.seen[index] = 1
            stream = streams[lines.stream[index]]
            stream.found += 1
            if next(stream.expected, b"") != key and not stream.first_stray_lsn:
                stream.first_stray_lsn = lsn
            stream.digest.update(b"%b\0%b\0" % (key, bytes(value)))
            if entries % REPORT_EVERY == 0:
                progress(entries)
    total = sum(lines.count for lines in owners.values())
    missing = total - sum(sum(lines.seen) for lines in owners.values())
    claims = [
        Claim(
            "complete",
            f"{total:,} lines in the sources, {entries:,} entries in the log:"
            f" {missing:,} missing, {doubled:,} doubled, {foreign:,} from elsewhere",
            missing == doubled == foreign == 0,
        ),
        Claim(
            "dense", f"LSNs {first_lsn:,} to {lsn:,}, {gaps:,} gaps", first_lsn == 1 and gaps == 0 and lsn == entries
        ),
    ]
    claims += _compare(owners, streams)
    return claims, entries


class _Lines:
    """The lines of one source: how many, which stream each belongs to, which have been seen in the log."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.starts = [run.first_line for run in file_runs(source)]
        self.count = len(self.read())
        self.stream = array("I", bytes(4 * self.count))  # index of a stream; 0: not handed out in this loading
        self.seen = bytearray(self.count)

    def read(self) -> list[bytes]:
        with self.source.path.open("rb") as file:
            data = file.read(self.source.size)
        lines = data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        return lines

    def left_over(self) -> Iterator[list[Span]]:
        """Of each run, the spans that no worker was handed in this loading, if there are any."""
        for start, end in zip(self.starts, [*self.starts[1:], self.count + 1], strict=True):
            owned = self.stream[start - 1 : end - 1]
            if not any(owned):
                yield [Span(self.source.name, start, end - start)]
                continue
            free = [start + at for at, stream in enumerate(owned) if not stream]
            spans: list[Span] = []
            for line in free:
                if spans and spans[-1].first_line + spans[-1].lines == line:
                    spans[-1] = spans[-1]._replace(lines=spans[-1].lines + 1)
                else:
                    spans.append(Span(self.source.name, line, 1))
            if spans:
                yield spans


def _streams(owners: dict[bytes, _Lines], placements: Placements) -> list[Stream]:
    """Every stream, and in `owners` which of them each line belongs to."""
    streams = [Stream(0)]  # none: index 0 says that no stream was found yet
    for worker, spans in sorted(placements.by_worker.items()):
        _add(streams, owners, Stream(worker, spans))
    for lines in owners.values():
        if 0 in lines.stream:
            for spans in list(lines.left_over()):  # all, before the first is given a stream
                _add(streams, owners, Stream(0, spans))
    return streams


def _add(streams: list[Stream], owners: dict[bytes, _Lines], stream: Stream) -> None:
    number = len(streams)
    for name, first, count in stream.spans:
        owners[name].stream[first - 1 : first - 1 + count] = array("I", [number]) * count
    stream.expected = stream.keys()
    streams.append(stream)


def _compare(owners: dict[bytes, _Lines], streams: list[Stream]) -> Iterator[Claim]:
    """Two claims for each worker, and two for all lines of earlier loadings together."""
    earlier_lines = earlier_runs = strays = differing = 0
    for stream in streams[1:]:
        expected = _digest_of_sources(owners, stream)
        ordered = not stream.first_stray_lsn and next(stream.expected, None) is None
        same = stream.digest.digest() == expected.digest()
        if stream.worker:
            text = f"{stream.found:,} lines in the order in which they were handed out"
            if not ordered:
                where = f"at LSN {stream.first_stray_lsn:,}" if stream.first_stray_lsn else "at the end"
                text = f"{stream.found:,} lines, but not in the order in which they were handed out: {where}"
            found = stream.digest.hexdigest()
            digests = f"{found} from the log" + (
                ", as from the sources" if same else f", {expected.hexdigest()} expected"
            )
            yield Claim("order", f"worker {stream.worker}: {text}", ordered)
            yield Claim("digest", f"worker {stream.worker}: {digests}", same)
            continue
        earlier_lines += stream.found
        earlier_runs += 1
        strays += not ordered
        differing += not same
    if earlier_runs:
        of = f"{earlier_lines:,} lines of an earlier loading, in {earlier_runs:,} runs of files"
        yield Claim("order", f"{of}: {strays:,} runs out of the file's order", strays == 0)
        yield Claim("digest", f"{of}: {differing:,} runs differ from the sources", differing == 0)


def _digest_of_sources(owners: dict[bytes, _Lines], stream: Stream) -> blake2b:
    digest = blake2b(digest_size=DIGEST_BYTES)
    name: bytes | None = None
    lines: list[bytes] = []
    for span in stream.spans:
        if span.name != name:
            name, lines = span.name, owners[span.name].read()
        values = lines[span.first_line - 1 : span.first_line - 1 + span.lines]
        digest.update(b"".join(b"%b:%d\0%b\0" % (name, n, line) for n, line in enumerate(values, span.first_line)))
    return digest
