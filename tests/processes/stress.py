"""Stress: everything that may happen to a log at once, and a witness that has read all of it before it was removed.

Writers in every sync mode with several threads each, rotation, checkpoints and retention, followers, a monitor; and
SIGKILL for any of them but the witness, which holds a pin from LSN 1 on and judges at the end.
"""

from __future__ import annotations

import random
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zlib import crc32

from tests.oracle import second
from tests.support import METHODS, Ack, Channel, Child, Ledger, entries_of, judge, run_threads, until
from walpool import LSNUnavailable, Retention, SyncMode, WALEntry, WALMetrics, WALReader, WALWriter

LIMIT = 30_000
THREADS = 2
MOST_OPS = {SyncMode.NONE: 1500, SyncMode.NORMAL: 1000, SyncMode.FULL: 300}  # of one thread: the judge takes them all
KEPT_LSNS = 1000  # a checkpoint stays so far behind
MODES = tuple(SyncMode)


def write(channel: Channel, log: Path, folder: Path, name: str, mode: SyncMode, seed: int) -> None:
    """Append from several threads until somebody says enough."""
    enough = threading.Event()
    with WALWriter(log, mode, LIMIT, retention=Retention(), name=name) as writer:
        channel.send("ready")

        def append(thread: int) -> None:
            author = f"{name}t{thread}"
            if mode is SyncMode.NONE:
                append_buffered(writer, folder, author, enough, random.Random(seed + thread))
                return
            ledger = Ledger(folder / "acks", author)
            for op in range(MOST_OPS[mode]):
                if enough.is_set():
                    break
                ledger.append(writer, op)
            ledger.close()

        def wait() -> None:
            channel.receive()
            enough.set()

        run_threads(wait, *[lambda thread=thread: append(thread) for thread in range(THREADS)])


def append_buffered(
    writer: WALWriter, folder: Path, author: str, enough: threading.Event, chance: random.Random
) -> None:
    """NONE tells no LSN. What is known after a sync: these operations stand behind the one before, and not behind this.

    Its notes: the first operation, and the LSNs that bound it and those up to the next note.
    """
    ledger = Ledger(folder / "synced", author)
    op = durable = 0
    while op < MOST_OPS[SyncMode.NONE] and not enough.is_set():
        first = op
        for op in range(first, first + chance.randrange(1, 40)):
            entries = entries_of(author, op)
            if len(entries) > 1:
                writer.append_batch(entries)
            else:
                writer.append(entries[0])
        op += 1
        before, durable = durable, writer.sync()
        ledger.note(Ack(first, before, durable, 0, op))
    ledger.close()


def keep(channel: Channel, log: Path, seed: int) -> int:
    """Rotate, checkpoint and prune until somebody says enough; the checkpoint in force."""
    chance = random.Random(seed)
    with WALWriter(log, SyncMode.NORMAL, LIMIT, retention=Retention(), name="keeper") as writer:
        channel.send("ready")
        while not channel.connection.poll(chance.uniform(0, 0.05)):
            if chance.random() < 0.3:
                writer.rotate()
            durable = writer.sync()
            writer.checkpoint(max(0, durable - KEPT_LSNS))
            writer.prune()
        return writer.checkpoint(0)  # the one in force: this keeper may have come too late to state any


def monitor(channel: Channel, log: Path) -> int:
    """Look again and again, until somebody says enough: no figure goes back, durable is never ahead. How many looks."""
    looks = 0
    last = (0, 0, 0, 0, 0)
    with WALMetrics.attach(log) as metrics:
        channel.send("ready")
        while not channel.connection.poll():
            now = metrics.snapshot()
            figures = (now.next_lsn, now.durable_lsn, now.writes_total, now.lock_waits, now.sync_total)
            assert all(new >= old for new, old in zip(figures, last, strict=True)), f"{figures} after {last}"
            assert now.durable_lsn < now.next_lsn
            last = figures
            looks += 1
    return looks


def follow(channel: Channel, log: Path, durable_only: bool) -> list[tuple[int, int]]:
    """Start where the log starts now, and follow until somebody says enough: LSN and checksum of what came."""
    found: list[tuple[int, int]] = []
    start = 1
    channel.send("ready")
    while not found:
        try:
            with WALReader(log, start, pin=True) as reader:
                while not channel.connection.poll():
                    found += [(entry.lsn, checksum(entry)) for entry in reader.follow(0.02, durable_only)]
                break
        except LSNUnavailable as error:
            start = error.first_available  # pruned between the look and the pin
    return found


def checksum(entry: WALEntry) -> int:
    return crc32(bytes(entry.key) + bytes(entry.value))


def witness(channel: Channel, log: Path, folder: Path) -> list[tuple[int, int]]:
    """Read everything from LSN 1 until the last writer has closed, and judge it: LSN and checksum of each entry."""
    entries: list[WALEntry] = []
    with WALReader(log, pin=True) as reader:
        channel.send("ready")
        while not channel.connection.poll():
            entries += reader.follow(0.02)
        entries += reader.follow(0)
    judge_all(entries, folder)
    return [(entry.lsn, checksum(entry)) for entry in entries]


def judge_all(entries: list[WALEntry], folder: Path) -> None:
    """`judge`, for authors that know their LSNs and for those that know bounds."""
    acks = Ledger.read_all(folder / "acks")
    in_doubt: dict[str, Iterable[int]] = {
        author: (range(theirs[-1].op + 1, theirs[-1].op + 2) if theirs else range(1)) for author, theirs in acks.items()
    }
    there = places(entries)
    for author, notes in Ledger.read_all(folder / "synced").items():
        found = there.get(author, {})
        assert list(found) == list(range(len(found))), f"{author}: what was buffered earlier is not there: {found}"
        acks[author] = []
        end = 0
        for first, low, high, _, end in notes:
            for op in range(first, end):
                assert op in found, f"operation {op} of {author} was synced at LSN {high} and is lost"
                place = found[op]
                assert low < place.start < place.stop <= high + 1, f"operation {op} of {author}: {place}, {low}-{high}"
                acks[author].append(Ack(op, place.start, place.stop))
        in_doubt[author] = range(end, end + 1000)
    judge(entries, acks, in_doubt)


def places(entries: list[WALEntry]) -> dict[str, dict[int, range]]:
    """Where each author's operations stand, by their keys alone."""
    found: dict[str, dict[int, range]] = {}
    for entry in entries:
        author, op, index, _ = bytes(entry.key).decode().split("/")
        ops = found.setdefault(author, {})
        ops[int(op)] = range(ops[int(op)].start if int(index) else entry.lsn, entry.lsn + 1)
    return found


class Round:
    """One log, and everything at once."""

    def __init__(self, folder: Path, seed: int, methods: tuple[str, ...]) -> None:
        self.log = folder / "events.wal"
        self.folder = folder
        self.chance = random.Random(seed)
        self.methods = methods
        self.counts: Counter[str] = Counter()
        self.started: list[Child] = []
        self.living: dict[Child, tuple[str, tuple[Any, ...]]] = {}

    def run(self, kills: int) -> Counter[str]:
        for name in ("acks", "synced"):
            (self.folder / name).mkdir(parents=True)
        WALWriter(self.log).close()
        try:
            witnessing = self.start("witness", self.log, self.folder)
            for mode in MODES:
                self.start_writer(mode)
            self.start("keep", self.log, self.chance.getrandbits(32))
            self.start("monitor", self.log)
            self.start("follow", self.log, True)
            self.start("follow", self.log, False)
            del self.living[witnessing]
            for _ in range(kills):
                self.wait_for_news()
                self.kill_one()
            self.wait_for_news()
            self.end(witnessing)
        finally:
            for each in self.started:
                each.end()
        return self.counts

    def start(self, what: str, *args: Any) -> Child:
        target = {"write": write, "keep": keep, "monitor": monitor, "follow": follow, "witness": witness}[what]
        child = Child(self.chance.choice(self.methods), target, args)
        self.started.append(child)
        self.living[child] = what, args
        assert child.receive() == "ready"
        self.counts["processes"] += 1
        return child

    def start_writer(self, mode: SyncMode) -> None:
        name = f"w{len(self.started)}{mode.value}"
        self.start("write", self.log, self.folder, name, mode, self.chance.getrandbits(32))

    def wait_for_news(self) -> None:
        """Until so many bytes of acknowledgements have come, from whomever; a killed one may have said its last."""
        enough = self.noted() + Ledger.ACK_BYTES * self.chance.randrange(1, 100)
        until(lambda: self.noted() >= enough or not self.busy(), "acknowledgements come")

    def noted(self) -> int:
        return sum(path.stat().st_size for name in ("acks", "synced") for path in (self.folder / name).iterdir())

    def busy(self) -> bool:
        """Whether a writer may have operations left."""
        ends = {}
        for path in (self.folder / "acks").iterdir():
            ends[path.name] = path.stat().st_size // Ledger.ACK_BYTES
        return any(
            ends.get(f"{args[2]}t{thread}", 0) < MOST_OPS[args[3]]
            for what, args in self.living.values()
            if what == "write" and args[3] is not SyncMode.NONE
            for thread in range(THREADS)
        )

    def kill_one(self) -> None:
        child = self.chance.choice(list(self.living))
        what, args = self.living.pop(child)
        child.kill()
        code = child.died()
        if code != -signal.SIGKILL:
            raise AssertionError(f"{what} {args} ended before it was killed: {child.next()}")
        self.counts["kills"] += 1
        if what == "write":
            self.start_writer(args[3])
        else:
            self.start(what, *args)

    def end(self, witnessing: Child) -> None:
        """All stop in order, the witness last; then what is left of the log is what the witness saw."""
        for child in self.living:
            child.send("enough")
        results = {child: child.result() for child in self.living}
        witnessing.send("enough")
        seen = dict(witnessing.result())
        entries = read_rest(self.log)
        assert [seen.get(entry.lsn) for entry in entries] == [checksum(entry) for entry in entries]
        assert entries[-1].lsn == max(seen), "the log ends where the witness was"
        second.agree(self.log, entries, exact=False)
        stated = max(results[child] for child, (what, _) in self.living.items() if what == "keep")
        assert entries[0].lsn <= stated + 1, f"removed up to {entries[0].lsn - 1}, the checkpoint is at {stated}"
        for child, (what, _) in self.living.items():
            if what == "follow":
                followed = results[child]
                lsns = [lsn for lsn, _ in followed]
                assert lsns == list(range(lsns[0], lsns[0] + len(lsns))) if lsns else True, "a follower left some out"
                assert all(seen[lsn] == found for lsn, found in followed), "a follower saw something else"
        self.counts["entries"] += len(seen)
        self.counts["removed"] += entries[0].lsn - 1
        self.counts["acknowledged"] += self.noted() // Ledger.ACK_BYTES


def read_rest(log: Path) -> list[WALEntry]:
    """What retention left of a log that nobody has open."""
    first = min(int(path.stem) for path in log.glob("*.wal"))
    with WALReader(log, first) as reader:
        return reader.read_all()


def one_round(folder: Path, seed: int, methods: tuple[str, ...], kills: int) -> Counter[str]:
    return Round(folder, seed, methods).run(kills)


def prove(folder: Path, seed: int, count: int) -> Counter[str]:
    """`count` rounds of a few seconds each, started in every way there is."""
    total: Counter[str] = Counter()
    for number in range(count):
        place = folder / f"stress-{number}"
        try:
            total += one_round(place, seed + number, ("fork", "fork", *METHODS), 30)
        except AssertionError as error:
            repeat = (
                "python -c 'from pathlib import Path; from tests.processes.stress import prove;"
                f' prove(Path("stress"), {seed + number}, 1)\''
            )
            raise AssertionError(f"{error}\nseed {seed + number}; repeat with: {repeat}") from error
        shutil.rmtree(place)
        total["rounds"] += 1
    return total
