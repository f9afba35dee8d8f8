"""Copies of a log in use, made file by file with other tools: which open as a prefix is decided from the evidence.

A model of tar and cp reads each file from its front to its back, in pieces, and the log grows and rotates between two
pieces, into prepared segments too. What was there when the copier began is always in the copy. A copy is refused when
the log ends in it before an LSN that its own bytes call durable, because a lost block would leave the same; and then
whoever is told reads what else may have made it so, and what to do. The control block tells
the copy from the original, so an opening reads all of it: an early hole is not found years later by a reader.
"""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from crc32c import crc32c

from tests.read.logs import entries, entry_of, fill, read, segment_files
from walpool import CorruptLog, RecoveryMode, WALWriter
from walpool.options import WriterOptions
from walpool.system.files import Directory
from walpool.upkeep.prepare import prepare
from walpool.upkeep.repair import repair
from walpool.upkeep.verify import verify

SIZE_LIMIT = 6000
HINTS = ("tar, cp, rsync", "walpool copy", "--mode point-in-time")


class Copier:
    """tar reads as many bytes as the file had when it was opened, cp reads on to its end."""

    def __init__(self, log: Path, to: Path, writer: WALWriter, dice: random.Random) -> None:
        self._log, self._to, self._writer, self._dice = log, to, writer, dice
        self._like_tar = dice.random() < 0.5
        self._piece = dice.choice([100, 512, 2000])
        self._busy = dice.choice([0.05, 0.2, 1.0])  # how often something is appended between two pieces,
        self._pace = dice.choice([2, 15, 60])  # and how many entries at most
        self._sync = dice.choice([0.0, 0.3, 1.0])

    def run(self) -> None:
        """The names are those when it begins; now and then it looks for new ones once more, as a second run does."""
        order = self._dice.choice(["sorted", "reversed", "any"])
        self._to.mkdir()
        for _ in range(self._dice.choice([1, 2])):
            names = sorted(path.name for path in self._log.iterdir() if not (self._to / path.name).exists())
            if order == "reversed":
                names.reverse()
            elif order == "any":
                self._dice.shuffle(names)
            self._copy(names)

    def _copy(self, names: list[str]) -> None:
        for name in names:
            self._write()
            try:
                with (self._log / name).open("rb", buffering=0) as file:
                    left = (self._log / name).stat().st_size if self._like_tar else 1 << 30
                    with (self._to / name).open("wb") as out:
                        while left > 0 and (data := file.read(min(self._piece, left))):
                            out.write(data)
                            left -= len(data)
                            self._write()
                        if self._like_tar:
                            out.write(bytes(left))  # tar keeps to the size that it wrote into its header
                (self._to / name).chmod(0o600)
            except FileNotFoundError:
                pass  # it says so, and goes on

    def _write(self) -> None:
        if self._dice.random() >= self._busy:
            return
        if self._dice.random() < 0.8:
            prepare(Directory(self._log), SIZE_LIMIT, 0o600)
        fill(self._writer, self._dice.randrange(self._pace + 1))
        if self._dice.random() < self._sync:
            self._writer.sync()


def frames_in(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(first LSN, end LSN, durable LSN it states) of every frame with its checksum, wherever it stands."""
    marker = data[56:60]
    at = data.find(marker, 64)
    while at >= 0:
        if at + 48 <= len(data):
            crc, length, count, first, _, durable = struct.unpack_from("<IIIQQQ", data, at + 4)
            body = data[at + 48 : at + 48 + length]
            if crc == crc32c(data[at + 8 : at + 48], crc32c(body, int.from_bytes(marker, "little"))):
                yield first, first + count, durable
                at += 47 + length
        at = data.find(marker, at + 1)


def evidence(copy: Path) -> tuple[int, int]:
    """One past the last LSN up to which the copy has everything, and the highest durable LSN that it states."""
    next_lsn, durable_lsn = 1, 0
    for file in segment_files(copy):
        data = file.read_bytes()
        if len(data) < 64 or not any(data[:64]):
            continue
        durable_lsn = max(durable_lsn, struct.unpack_from("<Q", data, 48)[0])
        for first, end, stated in frames_in(data):
            durable_lsn = max(durable_lsn, stated)
            if first == next_lsn:
                next_lsn = end
    return next_lsn, durable_lsn


def copied(memory: Path, round_: int) -> tuple[Path, int, int]:
    """The copy of round `round_`, and the log's next LSN before and after it was made."""
    dice = random.Random(round_)
    log, copy = memory / "log", memory / "copy"
    with WALWriter(log, size_limit=SIZE_LIMIT) as writer:
        fill(writer, dice.randrange(30))
        if dice.random() < 0.8:
            prepare(Directory(log), SIZE_LIMIT, 0o600)
            writer.rotate()
            fill(writer, dice.randrange(20))
        writer.sync()
        before = writer.metrics.snapshot().next_lsn
        Copier(log, copy, writer, dice).run()
        return copy, before, writer.metrics.snapshot().next_lsn


@pytest.mark.parametrize("round_", [*range(10), *(pytest.param(n, marks=pytest.mark.slow) for n in range(10, 60))])
def test_a_copy_by_files_is_a_prefix_or_is_refused_with_the_way_out(memory: Path, round_: int) -> None:
    copy, before, after = copied(memory, round_)
    next_lsn, durable_lsn = evidence(copy)
    assert before <= next_lsn <= after
    expected = entries(1, next_lsn)

    found = read(copy)
    assert found.entries == expected
    if found.error is not None:
        assert isinstance(found.error, CorruptLog)
        assert all(hint in str(found.error) for hint in HINTS), found.error
    report = verify(copy)
    assert report.damaged == (found.error is not None)
    if report.damaged:
        told = " ".join(finding.reason for finding in report.findings)
        assert all(hint in told for hint in HINTS), told

    refused = None
    try:
        with WALWriter(copy, size_limit=SIZE_LIMIT) as writer:
            assert writer.metrics.snapshot().next_lsn == next_lsn
    except CorruptLog as error:
        refused = error
    assert (refused is not None) == (next_lsn <= durable_lsn), (next_lsn, durable_lsn, refused)
    if refused is not None:
        assert all(hint in str(refused) for hint in HINTS), refused
    if next_lsn <= durable_lsn:
        repair(copy, WriterOptions(recovery=RecoveryMode.POINT_IN_TIME))
    with WALWriter(copy, size_limit=SIZE_LIMIT) as writer:
        assert writer.append(entry_of(next_lsn)) == next_lsn
    after_it = read(copy)
    assert (after_it.error, after_it.entries) == (None, entries(1, next_lsn + 1))
    assert not verify(copy).damaged
