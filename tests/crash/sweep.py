"""Kill sweeps: fork a victim, let it die at a chosen point, and have a survivor look at what it left.

Two kinds. Beside: the survivor has the log open all the time; after each death it appends, and reads what came since
the last. Alone: every victim finds a log of its own, prepared; after its death the survivor opens that, appends, and
reads all. Acknowledged operations are there once and in order, and nothing else but what was in doubt. A witness looks
before, in between and afterwards.
"""

from __future__ import annotations

import gc
import os
import pickle
import random
import select
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash import scripts
from tests.crash.failpoints import DieInCore, appends_by, cannot_build
from tests.crash.proof import repeatable
from tests.crash.scripts import ANSWER, BUFFERED, CHECKPOINT, END, KEPT, LIMIT, Prepare, Script, teller
from tests.crash.taps import MOMENTS, DieAtCall, DieAtLine, DieAtStore, kill_self, stores, tapped, told_of_stores
from tests.crash.witness import Witness
from tests.oracle import second
from tests.support import DEADLINE_S, MAPPED, Ack, append_op, judge, reap
from walpool import Retention, WALReader, WALWriter

VICTIMS_PER_LOG = 40
PATIENCE_S = DEADLINE_S / 3


class Point(NamedTuple):
    """Where a victim dies: at the n-th of all calls, which is `what`, at the n-th line or store, or inside the core."""

    what: str
    n: int
    moment: str = ""
    part: float = 0.5  # of a write that is torn

    def __str__(self) -> str:
        if self.what in ("line", "store", "core"):
            return f"{self.what} {self.n} {self.moment}"
        part = f" at {self.part}" if self.moment == "torn" else ""
        return f"call {self.n}, {self.moment} {self.what}{part}"

    def death(self, act: Callable[[], object] = kill_self) -> DieAtCall | DieAtLine | DieAtStore | DieInCore:
        if self.what == "core":
            return DieInCore(self.n, self.moment)
        if self.what == "line":
            return DieAtLine(self.n)
        if self.what == "store":
            return DieAtStore(self.n, self.moment, act)
        return DieAtCall(self.n, self.moment, self.part, act)


class Scene(NamedTuple):
    """What victims do, and what they find."""

    script: Script
    prepare: Prepare | None = None  # None: beside a survivor that has the log open
    author: str = "v"
    first_op: int = 0
    doubt: int = 1  # operations that may be there without an answer
    removal: str = ""  # why segments may be gone: "retention", "checkpoint"
    pins: bool = False  # whether a dead reader's pin is looked for


FINDS = (
    scripts.nothing,
    scripts.of_another_boot,
    scripts.with_a_torn_tail,
    scripts.with_a_torn_header,
    scripts.after_a_failed_sync,
)
SCENES = {
    "append": Scene(scripts.append_in_every_way),
    "append a little": Scene(scripts.append_a_little, first_op=scripts.FIRST_OP),
    "mapped": Scene(scripts.append_mapped),
    "coordinate": Scene(scripts.coordinate, scripts.nothing, removal="retention"),
    "checkpoint and prune": Scene(scripts.state_checkpoints_and_prune, scripts.nothing, removal="checkpoint"),
    "buffer": Scene(scripts.buffer_and_close, doubt=BUFFERED),
    "large batches": Scene(scripts.append_large_batches, author="large-v"),
    "consume": Scene(scripts.consume_and_commit),
    "read": Scene(scripts.read_and_follow, scripts.in_several_segments, pins=True),
    **{f"open {each.__name__}": Scene(scripts.open_and_append_a_little, each) for each in FINDS},
}
KINDS = {"call": 3, "store": 2, "line": 2}  # and how often each is drawn
if not cannot_build():
    KINDS["core"] = 2  # at a failpoint of it


class Tally(NamedTuple):
    points: int
    died: int
    acknowledged: int


Progress = Callable[[str], object]  # is told now and then that it goes on


def prove(folder: Path, seed: int, count: int, progress: Progress = lambda _: None) -> Counter[str]:
    """`count` victims of all scenes die at points drawn by `seed`."""
    found: Counter[str] = Counter()
    chance = random.Random(seed)
    parts = [(name, kind, weight) for name in SCENES for kind, weight in KINDS.items()]
    whole = sum(weight for _, _, weight in parts)
    with repeatable(prove, seed, count):
        for at, (name, kind, weight) in enumerate(parts):
            left = count - found["kills"]
            wanted = left if at == len(parts) - 1 else count * weight // whole
            while wanted > 0:
                tally = sweep(folder, SCENES[name], kind, chance, wanted, progress)
                found.update({"kills": tally.died, f"kills: {name}, {kind}": tally.died})
                found["acknowledged operations"] += tally.acknowledged
                found["judged by the oracle"] += tally.points
                wanted -= tally.died
    return found


def sweep(folder: Path, scene: Scene, kind: str, chance: random.Random | None, share: int, progress: Progress) -> Tally:
    """A victim for every point; with `chance`, for `share` of them, drawn by it."""
    stores()
    told_of_stores()
    gc.collect()
    gc.freeze()  # what is here now is shared with every victim: no collection of theirs looks at it
    place = folder / "sweep"
    place.mkdir()
    points = points_of(scene, kind, place)
    if chance is not None:
        points = [point._replace(part=chance.random()) for point in chance.choices(points, k=share)]
    running = Sweep(place, scene, progress)
    try:
        if scene.prepare is None:
            running.beside(points)
        else:
            running.alone(points, scene.prepare)
    except AssertionError as error:
        running.end(failed=True)
        raise AssertionError(f"{scene.script.__name__}, {kind}: {error}") from None
    tally = running.end()
    shutil.rmtree(place)
    return tally


def points_of(scene: Scene, kind: str, place: Path) -> list[Point]:
    """How many there are shows when nobody dies."""

    def dry() -> list[Point]:
        log = place / "dry.wal"
        if scene.prepare is not None:
            scene.prepare(log, lambda *_: None)
        else:
            WALWriter(log, size_limit=LIMIT).close()  # as the survivor does
        death: Any = Point(kind, 0, "before").death()
        run_with(death, lambda: scene.script(log, f"{scene.author}0", lambda *_: None))
        if kind == "core":
            return [Point("core", n, moment) for n, moment in death.points()]
        if kind == "line":
            return [Point("line", n) for n in range(1, death.count + 1)]
        if kind == "store":
            return [Point("store", n, moment) for n in range(1, death.count + 1) for moment in ("before", "after")]
        return [
            Point(name, n, moment) for n, name in enumerate(death.names, 1) for moment in MOMENTS.get(name, ("before",))
        ]

    points: list[Point] = in_fork(dry)
    shutil.rmtree(place / "dry.wal")
    return points


class Sweep:
    def __init__(self, folder: Path, scene: Scene, progress: Progress) -> None:
        self._folder = folder
        self._scene = scene
        self._progress = progress
        self._rounds = self._died = self._acknowledged = 0
        self._survivor = Survivor()

    def beside(self, points: list[Point]) -> None:
        log = self._folder / "none.wal"
        for round_, point in enumerate(points):
            if round_ % VICTIMS_PER_LOG == 0:
                shutil.rmtree(log, ignore_errors=True)
                log = self._folder / f"{round_}.wal"
                self._survivor.ask("open", log, MAPPED and bool(round_ // VICTIMS_PER_LOG % 2))
            author = f"{self._scene.author}{round_}"

            def ask(acks: list[Ack], doubt: range, author: str = author) -> None:
                self._survivor.ask("check_news", author, acks, doubt)

            self._one(log, author, point, ask)

    def alone(self, points: list[Point], prepare: Prepare) -> None:
        prepared = self._folder / "prepared.wal"

        def make() -> list[Ack]:
            before: list[Ack] = []
            prepare(prepared, lambda *answer: answer[0] == END or before.append(Ack(*answer)))
            return before

        before: list[Ack] = in_fork(make)
        log = self._folder / "one.wal"
        for point in points:
            if prepared.exists():
                shutil.copytree(prepared, log)
            self._survivor.ask("look_first", log)

            def ask(acks: list[Ack], doubt: range) -> None:
                self._survivor.ask("check_all", log, self._scene, {"before": before, self._scene.author: acks}, doubt)

            self._one(log, self._scene.author, point, ask)
            shutil.rmtree(log)

    def _one(self, log: Path, author: str, point: Point, ask: Callable[[list[Ack], range], None]) -> None:
        try:
            code, acks, ended = self._run_victim(log, author, point)
            assert code == -signal.SIGKILL or (ended and code == 0), f"the victim ended with {code}"
            appended = [ack for ack in acks if ack.op < CHECKPOINT]
            first = appended[-1].op + 1 if appended else self._scene.first_op
            ask(acks, range(first, first + self._scene.doubt))
        except AssertionError as error:
            raise AssertionError(f"a victim died at {point} (round {self._rounds}, {log}): {error}") from None
        self._died += code != 0
        self._acknowledged += len(acks)
        self._rounds += 1
        if self._rounds % 20 == 0:
            self._progress(f"{self._rounds} rounds")

    def _run_victim(self, log: Path, author: str, point: Point) -> tuple[int, list[Ack], bool]:
        """How it ended, what it was told, and whether it came to its end."""
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            in_child(lambda: run_with(point.death(), lambda: self._scene.script(log, author, teller(write_end))))
        os.close(write_end)
        told = b""
        try:
            while True:
                ready, _, _ = select.select([read_end], [], [], PATIENCE_S)
                if not ready:
                    os.kill(pid, signal.SIGKILL)
                    reap(pid)
                    raise AssertionError(f"it hung instead, after {len(told) // ANSWER.size} answers")
                data = os.read(read_end, 1 << 16)
                if not data:
                    break
                told += data
        finally:
            os.close(read_end)
        answers = [Ack(*fields) for fields in ANSWER.iter_unpack(told)]
        ended = bool(answers) and answers[-1].op == END
        return reap(pid), answers[:-1] if ended else answers, ended

    def end(self, *, failed: bool = False) -> Tally:
        self._survivor.end(failed=failed)
        return Tally(self._rounds, self._died, self._acknowledged)


def run_with(counter: DieAtLine | DieAtStore | DieAtCall | DieInCore, run: Callable[[], None]) -> None:
    if isinstance(counter, DieAtCall):
        with tapped(counter):
            run()
    else:
        with appends_by(isinstance(counter, DieInCore)):
            counter.start()
            try:
                run()
            finally:
                counter.stop()


def in_child(run: Callable[[], None]) -> None:
    code = 1
    try:
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def in_fork(run: Callable[[], Any]) -> Any:
    """What `run` returns in a child: what it does to this process's modules and threads is gone with it."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:

        def tell() -> None:
            data = pickle.dumps(run())
            while data:
                data = data[os.write(write_end, data) :]

        in_child(tell)
    os.close(write_end)
    with open(read_end, "rb") as file:
        answer = file.read()
    assert reap(pid) == 0, "a dry run failed"
    return pickle.loads(answer)


class Survivor:
    """The process that looks at what victims left. It is forked before any of them."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        self._pid = os.fork()
        if self._pid == 0:
            self._connection.close()
            in_child(lambda: _survive(theirs))
        theirs.close()

    def ask(self, what: str, *args: Any) -> None:
        self._connection.send((what, *args))
        assert self._connection.poll(PATIENCE_S), f"the survivor hangs in {what}"
        trouble = self._connection.recv()
        assert trouble is None, f"the survivor sees: {trouble}"

    def end(self, *, failed: bool = False) -> None:
        if failed:
            os.kill(self._pid, signal.SIGKILL)  # ours, and not reaped yet
            reap(self._pid)
            return
        self._connection.send(None)
        self._connection.close()
        assert reap(self._pid) == 0


def _survive(connection: Connection) -> None:
    peer = _Peer()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return  # the sweep has failed, and says why
        if task is None:
            break
        what, *args = task
        try:
            getattr(peer, what)(*args)
        except AssertionError as error:
            connection.send(str(error))
        except BaseException:
            connection.send(traceback.format_exc())
        else:
            connection.send(None)
    peer.close()


class _Peer:
    """In the survivor's process."""

    def __init__(self) -> None:
        self._writer: WALWriter | None = None
        self._log: Path
        self._next_lsn = 1
        self._witness: Witness | None = None

    def open(self, log: Path, mapped: bool) -> None:
        self.close()
        self._log = log
        self._writer = WALWriter(log, size_limit=LIMIT, mapped=mapped)
        self._next_lsn = 1
        self.look_first(log)

    def look_first(self, log: Path) -> None:
        if self._witness is not None:
            self._witness.close()
        self._witness = Witness(log).look()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def check_news(self, author: str, acks: list[Ack], doubt: range) -> None:
        assert self._writer is not None and self._witness is not None
        self._witness.look().ended(author)
        WALWriter(self._log, size_limit=LIMIT).close()  # whoever comes now finds what was seen, and no more
        self._witness.look()
        mine = self._append(self._writer, f"after-{author}")
        with WALReader(self._log, start=self._next_lsn) as reader:
            entries = reader.read_all()
        judge(entries, {author: acks, f"after-{author}": mine}, {author: doubt}, first_lsn=self._next_lsn)
        self._witness.look().holds(entries, self._next_lsn)
        second.agree(self._log, entries, exact=False, from_lsn=self._next_lsn)
        self._next_lsn += len(entries)

    def check_all(self, log: Path, scene: Scene, acks: dict[str, list[Ack]], doubt: range) -> None:
        mine = scene.author
        assert self._witness is not None
        self._witness.look()
        with WALWriter(log, size_limit=LIMIT) as writer:
            acks["after"] = self._append(writer, "after")
            first_lsn = self._first_lsn(writer, scene.removal, [ack for ack in acks[mine] if ack.op == CHECKPOINT])
        acks[mine] = [ack for ack in acks[mine] if ack.op != CHECKPOINT]
        acks = {author: [ack for ack in theirs if ack.first_lsn >= first_lsn] for author, theirs in acks.items()}
        with WALReader(log, start=first_lsn) as reader:
            entries = reader.read_all()
        judge(entries, acks, {mine: doubt}, first_lsn)
        self._witness.look().holds(entries, first_lsn)
        second.agree(log, entries, exact=False)
        with WALWriter(log, retention=Retention(max_segments=1) if scene.pins else None) as writer:
            assert writer.recovery_report is None, f"the log needs another recovery: {writer.recovery_report}"
            if scene.pins:
                report = writer.prune()
                assert report.removed and not report.held_by_pins, f"a dead reader's pin is still there: {report}"

    def _first_lsn(self, writer: WALWriter, removal: str, stated: list[Ack]) -> int:
        """Where the log starts, if it may start there."""
        if not removal:
            return 1
        segments = sorted(int(path.stem) for path in Path(writer.path).glob("*.wal"))
        if removal == "retention":
            assert segments[0] == 1 or len(segments) >= KEPT, f"retention left only {segments}"
            return segments[0]
        in_force = writer.checkpoint(0)  # a lower one changes nothing
        sure = max((ack.first_lsn for ack in stated if ack.end_lsn), default=0)
        asked = max((ack.first_lsn for ack in stated), default=0)
        assert sure <= in_force <= asked, f"the checkpoint in force is {in_force}, stated {sure}, asked for {asked}"
        assert segments[0] <= in_force + 1, f"{segments} are left, and the checkpoint is {in_force}"
        return segments[0]

    def _append(self, writer: WALWriter, author: str) -> list[Ack]:
        acks = []
        for op in range(2):
            lsns = append_op(writer, author, op)
            acks.append(Ack(op, lsns.start, lsns.stop))
        writer.sync()
        return acks
