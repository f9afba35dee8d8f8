"""Kill sweeps: fork a victim, let it die at a chosen point, and have a survivor look at what it left.

Two kinds. `beside`: the survivor has the log open all the time; after each death it appends, and reads what came since
the last. `alone`: every victim finds a log of its own, prepared; after its death the survivor opens that, appends, and
reads all. Acknowledged operations are there once and in order, and nothing else but the one that was in doubt.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash.scripts import ANSWER, END, KEPT, LIMIT, Prepare, Script, coordinate, teller
from tests.crash.taps import MOMENTS, DieAtCall, DieAtLine, tapped
from tests.support import DEADLINE_S, Ack, Channel, append_op, judge
from walpool import WALReader, WALWriter

VICTIMS_PER_LOG = 40
PATIENCE_S = DEADLINE_S / 3


class Point(NamedTuple):
    """Where a victim dies: at the n-th of all calls, which is `what`, or at the n-th line."""

    what: str
    n: int
    moment: str = ""

    def __str__(self) -> str:
        return f"line {self.n}" if self.what == "line" else f"call {self.n}, {self.moment} {self.what}"


class Tally(NamedTuple):
    points: int
    died: int
    acknowledged: int


def sweep_beside(channel: Channel, folder: Path, script: Script, what: str, share: int, seed: int) -> Tally:
    """A victim for every point, or for `share` of them, drawn by `seed`."""
    sweep = Sweep(channel, folder, script, what, share, seed)
    log = folder / "dry.wal"
    for round_, point in enumerate(sweep.points(log)):
        if round_ % VICTIMS_PER_LOG == 0:
            shutil.rmtree(log)
            log = folder / f"{round_}.wal"
            sweep.survivor.ask("open", log)
        author = f"v{round_}"
        sweep.one(log, author, point, lambda acks, doubt, author=author: ("check_news", author, acks, doubt))
    return sweep.end()


def sweep_alone(
    channel: Channel, folder: Path, script: Script, prepare: Prepare, what: str, share: int, seed: int
) -> Tally:
    sweep = Sweep(channel, folder, script, what, share, seed)
    before: list[Ack] = []
    prepared = folder / "prepared.wal"
    prepare(prepared, lambda *answer: answer[0] == END or before.append(Ack(*answer)))
    log = folder / "dry.wal"
    _copy(prepared, log)
    for round_, point in enumerate(sweep.points(log)):
        shutil.rmtree(log, ignore_errors=True)
        log = folder / f"{round_}.wal"
        _copy(prepared, log)

        def ask(acks: list[Ack], in_doubt: int, log: Path = log) -> tuple[Any, ...]:
            return "check_all", log, {"before": before, "v": acks}, in_doubt, script is coordinate

        sweep.one(log, "v", point, ask)
    return sweep.end()


def _copy(prepared: Path, log: Path) -> None:
    if prepared.exists():
        shutil.copytree(prepared, log)


class Sweep:
    def __init__(self, channel: Channel, folder: Path, script: Script, what: str, share: int, seed: int) -> None:
        self._channel = channel
        self._folder = folder
        self._script = script
        self._what = what
        self._share = share
        self._seed = seed
        self._rounds = self._died = self._acknowledged = 0
        self.survivor = Survivor()

    def points(self, log: Path) -> list[Point]:
        """How many there are shows when nobody dies."""
        points: list[Point] = []
        if self._what == "line":
            lines = DieAtLine(0)
            _run_with(lines, lambda: self._script(log, "v", lambda *_: None))
            points += [Point("line", n) for n in range(1, lines.count + 1)]
        else:
            seen = DieAtCall(0, "before")
            _run_with(seen, lambda: self._script(log, "v", lambda *_: None))
            for n, name in enumerate(seen.names, 1):
                points += [Point(name, n, moment) for moment in MOMENTS.get(name, ("before",))]
        if self._share:
            random.Random(self._seed).shuffle(points)
        return points[: self._share or None]

    def one(self, log: Path, author: str, point: Point, ask: Callable[[list[Ack], int], tuple[Any, ...]]) -> None:
        try:
            code, acks, ended = self._run_victim(log, author, point)
            assert code == -signal.SIGKILL or (ended and code == 0), f"the victim ended with {code}"
            self.survivor.ask(*ask(acks, acks[-1].op + 1 if acks else 0))
        except AssertionError as error:
            raise AssertionError(f"a victim died at {point} (round {self._rounds}, {log}): {error}") from None
        self._died += code != 0
        self._acknowledged += len(acks)
        self._rounds += 1
        if self._rounds % 20 == 0:
            self._channel.send(f"{self._rounds} rounds")  # so that nobody thinks we hang

    def _run_victim(self, log: Path, author: str, point: Point) -> tuple[int, list[Ack], bool]:
        """How it ended, what it was told, and whether it came to its end."""
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            counter = DieAtLine(point.n) if point.what == "line" else DieAtCall(point.n, point.moment)
            in_child(lambda: _run_with(counter, lambda: self._script(log, author, teller(write_end))))
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

    def end(self) -> Tally:
        self.survivor.end()
        return Tally(self._rounds, self._died, self._acknowledged)


def _run_with(counter: DieAtLine | DieAtCall, run: Callable[[], None]) -> None:
    if isinstance(counter, DieAtCall):
        with tapped(counter):
            run()
    else:
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


def reap(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


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

    def end(self) -> None:
        self._connection.send(None)
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

    def open(self, log: Path) -> None:
        self.close()
        self._log = log
        self._writer = WALWriter(log, size_limit=LIMIT)
        self._next_lsn = 1

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def check_news(self, author: str, acks: list[Ack], in_doubt: int) -> None:
        assert self._writer is not None
        mine = self._append(self._writer, f"after-{author}")
        with WALReader(self._log, start=self._next_lsn) as reader:
            entries = reader.read_all()
        judge(entries, {author: acks, f"after-{author}": mine}, {author: [in_doubt]}, first_lsn=self._next_lsn)
        self._next_lsn += len(entries)

    def check_all(self, log: Path, acks: dict[str, list[Ack]], in_doubt: int, pruned: bool) -> None:
        with WALWriter(log, size_limit=LIMIT) as writer:
            acks["after"] = self._append(writer, "after")
        first_lsn = 1
        if pruned:
            segments = sorted(int(path.stem) for path in log.glob("*.wal"))
            first_lsn = segments[0]
            assert first_lsn == 1 or len(segments) >= KEPT, f"retention left only {segments}"
            acks = {author: [ack for ack in theirs if ack.first_lsn >= first_lsn] for author, theirs in acks.items()}
        with WALReader(log, start=first_lsn) as reader:
            entries = reader.read_all()
        judge(entries, acks, {"v": [in_doubt]}, first_lsn)
        with WALWriter(log) as writer:
            assert writer.recovery_report is None, f"the log needs another recovery: {writer.recovery_report}"

    def _append(self, writer: WALWriter, author: str) -> list[Ack]:
        acks = []
        for op in range(2):
            lsns = append_op(writer, author, op)
            acks.append(Ack(op, lsns.start, lsns.stop))
        writer.sync()
        return acks
