"""What the first of an interleaving does, beside what victims of the kill sweep do, and what it finds."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.crash import scripts
from tests.crash.scripts import BUFFERED, CHECKPOINT, END, LIMIT, Author, Prepare, Tell
from tests.support import entries_of
from walpool import LSNUnavailable, SyncMode, WALMetrics, WALReader, WALWriter
from walpool.upkeep.verify import verify

SEEN = CHECKPOINT - 1  # told for an operation: a durable follower was given this LSN


def buffer_and_sync(log: Path, name: str, tell: Tell) -> None:
    """SyncMode.NONE, among others: where its entries are, the log tells."""
    with WALWriter(log, SyncMode.NONE, LIMIT, buffer_bytes=400, linger_s=3600.0) as writer:
        for op in range(6):
            for entry in entries_of(name, op):
                writer.append(entry)
        writer.sync()
        with WALReader(log) as reader:
            places = {bytes(entry.key): entry.lsn for entry in reader}
        for op in range(6):
            lsn = places[entries_of(name, op)[0].key]
            tell(op, lsn, lsn + 1)
    tell(END, 0, 0)


def change_everything(log: Path, name: str, tell: Tell) -> None:
    """A rotation, a sync, a checkpoint and a prune, by one that has the log open already."""
    author = Author(name, tell)
    with WALWriter(log, size_limit=LIMIT) as writer:
        author.append(writer, 1)
        writer.rotate()
        lsn = writer.sync()
        tell(CHECKPOINT, lsn, 0)
        writer.checkpoint(lsn)
        writer.prune()
        author.append(writer, 1)
    tell(END, 0, 0)


def rotate(log: Path, name: str, tell: Tell) -> None:
    author = Author(name, tell)
    with WALWriter(log, size_limit=LIMIT) as writer:
        for _ in range(2):
            author.append(writer, 1)
            writer.rotate()
    tell(END, 0, 0)


def follow_what_is_durable(log: Path, name: str, tell: Tell) -> None:
    with WALReader(log, "end") as reader, suppress(LSNUnavailable):  # it has no pin
        for _ in range(3):
            for entry in reader.follow(timeout=0, durable_only=True):
                tell(SEEN, entry.lsn, 0)
    tell(END, 0, 0)


def read_with_a_pin(log: Path, name: str, tell: Tell) -> None:
    """What it has not read is not removed."""
    with WALReader(log, pin=True) as reader:
        before = reader.next_lsn - 1
        for entry in reader:
            assert entry.lsn == before + 1, f"after LSN {before} comes {entry.lsn}"
            before = entry.lsn
    tell(END, 0, 0)


def look_on(log: Path, name: str, tell: Tell) -> None:
    """Nobody who appends, rotates or prunes meanwhile makes figures go back, or is taken for damage."""
    with WALMetrics.attach(log) as metrics:
        first, second = metrics.snapshot(), metrics.snapshot()
        assert (first.next_lsn, first.durable_lsn) <= (second.next_lsn, second.durable_lsn), (first, second)
    report = verify(log)
    assert not [each for each in report.findings if each.kind in ("DAMAGE", "GAP")], report
    tell(END, 0, 0)


class Scene(NamedTuple):
    """`alone`: nobody has the log open at first, and an opening may have to recover it."""

    script: scripts.Script
    prepare: Prepare | None = None
    author: str = "v"
    doubt: int = 1
    removal: bool = False
    alone: bool = False
    first_op: int = 0


SCENES = {
    "append": Scene(scripts.append_a_little, first_op=scripts.FIRST_OP),
    "mapped": Scene(scripts.append_mapped),
    "large batches": Scene(scripts.append_large_batches, author="large-v"),
    "buffer": Scene(buffer_and_sync, doubt=BUFFERED),
    "coordinate": Scene(scripts.coordinate, removal=True),
    "change everything": Scene(change_everything, removal=True),
    "rotate": Scene(rotate),
    "read and follow": Scene(scripts.read_and_follow),
    "read with a pin": Scene(read_with_a_pin),
    "look on": Scene(look_on),
    "consume": Scene(scripts.consume_and_commit),
    "follow what is durable": Scene(follow_what_is_durable, scripts.of_another_boot, alone=True),
    **{
        f"open {each.__name__}": Scene(scripts.open_and_append_a_little, each, alone=True)
        for each in (
            scripts.nothing,
            scripts.in_several_segments,
            scripts.of_another_boot,
            scripts.with_a_torn_tail,
            scripts.with_a_torn_header,
            scripts.after_a_failed_sync,
        )
    },
}
