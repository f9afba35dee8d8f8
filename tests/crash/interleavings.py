"""Interleavings: at any call and any store of one process, another does one whole operation; then the first goes on.

A run draws from its seed a scene, a point of it, what happens there, and what becomes of the first: mostly it goes on,
now and then it dies. Now and then a third process does an operation in the middle of the second's. Beside them are a
writer that does nothing, in slot 0, where the scene lets one be, and two readers, one with a pin, who see all of it as
witnesses. What everybody was told, and what they saw, must fit what is in the log in the end.

An operation that waits for a lock of the one that stands still is given up at once, and counted as blocked.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, NamedTuple

from tests.crash import scripts, sweep
from tests.crash.others import BLOCKED, DONE, OPERATIONS, Actor, Found, Nested, Other, Third, coordinators_in_turn
from tests.crash.proof import repeatable
from tests.crash.scenes import SCENES, SEEN, Scene
from tests.crash.scripts import CHECKPOINT, END, Tell
from tests.crash.sweep import PATIENCE_S, Point, in_child, in_fork, run_with
from tests.crash.taps import kill_self, stores, told_of_stores
from tests.support import Ack, reap

DEATHS = 1 / 5  # of the first
NESTED = 1 / 5
NESTED_POINTS = 60  # calls or stores of an operation in which another is nested; few have more
KINDS = ("call", "store")
LEAST_DONE = 1 / 3  # of the operations, the others are blocked


class Run(NamedTuple):
    scene: str
    point: Point  # of the first
    what: str  # another does there
    nested: Nested = None
    dies: bool = False

    def __str__(self) -> str:
        nested = f", and in it at {self.nested[0]}: {self.nested[1]}" if self.nested is not None else ""
        return f"{self.scene}, {self.point}: {self.what}{nested}{'; then it dies' if self.dies else ''}"


class Sweep:
    """Runs, one after another, with the same two others."""

    def __init__(self, folder: Path) -> None:
        self.found: Counter[str] = Counter()
        self._folder = folder
        self._points: dict[tuple[str, str], list[Point]] = {}
        self._prepared: dict[str, list[Ack]] = {}
        self._third = Actor(Third)
        self._other = Actor(Other, self._third)

    def end(self) -> None:
        self._other.end()
        self._third.end()

    def draw(self, chance: random.Random, scenes: Sequence[str]) -> Run:
        scene = chance.choice(scenes)
        point = chance.choice(self.points_of(scene, chance.choice(KINDS)))
        point = point._replace(part=chance.random())
        what = chance.choice(list(OPERATIONS))
        nested: Nested = None
        if chance.random() < NESTED and what != "fork":  # the child would stop there, too
            n = chance.randrange(1, NESTED_POINTS)
            nested = Point(chance.choice(KINDS), n, "before"), chance.choice(list(OPERATIONS))
        return Run(scene, point, what, nested, chance.random() < DEATHS)

    def play(self, run: Run, chance: random.Random) -> None:
        try:
            self._play(run, SCENES[run.scene], chance)
        except AssertionError as error:
            raise AssertionError(f"{run}: {error}") from None

    def _play(self, run: Run, scene: Scene, chance: random.Random) -> None:
        log = self._folder / "one.wal"
        before = self._prepare(run.scene, scene, log)
        read_late, look_late = chance.random() < 0.5, chance.random() < 0.5
        self._third.ask("begin_watch", log, not scene.alone, read_late)
        self._other.ask("begin", log, "other", not scene.alone and chance.random() < 0.5)
        went: list[tuple[str, str]] = []

        def interrupt(tell: Callable[[object], None]) -> None:
            tell(self._other.ask("do", run.what, run.nested))
            self._third.ask("look", not look_late)
            if run.dies:
                kill_self()

        acks: list[Ack] = []
        ended = False
        seen = 0
        code, told = self._first(log, scene, run.point, interrupt)
        for message in told:
            if isinstance(message, str):
                raise AssertionError(f"the first ended with {message}")
            if isinstance(message, list):
                went = message
            elif message[0] == END:
                ended = True
            elif message[0] == SEEN:
                seen = message[1]
            elif message[0] != CHECKPOINT:
                acks.append(Ack(*message))
        assert (ended and code == 0) or (run.dies and code == -signal.SIGKILL), f"the first ended with {code}"
        if seen:
            durable_lsn = self._third.ask("durable_lsn")
            assert seen <= durable_lsn or not durable_lsn, f"it was given LSN {seen}, and durable is {durable_lsn}"
        doubt: dict[str, range] = {}
        if code:
            first = acks[-1].op + 1 if acks else scene.first_op
            doubt[scene.author] = range(first, first + scene.doubt)
            self._third.ask("died", scene.author)
        everybodys = {scene.author: acks, **self._other.ask("finish")}
        if before:
            everybodys["before"] = before
        removal = scene.removal or "prune" in (run.what, run.nested and run.nested[1])
        self._third.ask("judge", Found(everybodys, doubt, removal, scene.alone))
        shutil.rmtree(log)
        self._count(run.scene, went, code)

    def _first(
        self, log: Path, scene: Scene, point: Point, interrupt: Callable[[Callable[[object], None]], None]
    ) -> tuple[int, list[Any]]:
        """How it ended, and what it was told, or did wrong."""
        mine, theirs = Pipe(duplex=False)
        pid = os.fork()
        if pid == 0:

            def play() -> None:
                coordinators_in_turn()
                tell: Tell = lambda *answer: theirs.send(answer)  # noqa: E731
                try:
                    run_with(point.death(lambda: interrupt(theirs.send)), lambda: scene.script(log, scene.author, tell))
                except BaseException:
                    theirs.send(traceback.format_exc())

            in_child(play)
        theirs.close()
        told = []
        with mine:
            try:
                while mine.poll(PATIENCE_S):
                    told.append(mine.recv())
                os.kill(pid, signal.SIGKILL)
                told.append("nothing: it hung")
            except EOFError:
                pass
        return reap(pid), told

    def _count(self, name: str, went: list[tuple[str, str]], code: int) -> None:
        self.found["interleavings"] += bool(went)
        self.found["interleavings: two deep"] += len(went) > 1
        self.found["interleavings: then dead"] += bool(went) and code != 0
        self.found[f"interleavings: {name}"] += bool(went)
        for what, how in went:
            self.found.update({how: 1, f"{how}: {what}": 1})

    # What a scene has

    def _prepare(self, name: str, scene: Scene, log: Path) -> list[Ack]:
        if scene.prepare is None:
            return []
        prepared = self._folder / f"{scene.prepare.__name__}.wal"
        if name not in self._prepared:

            def make() -> list[Ack]:
                before: list[Ack] = []
                shutil.rmtree(prepared, ignore_errors=True)
                assert scene.prepare is not None
                scene.prepare(prepared, lambda *answer: answer[0] == END or before.append(Ack(*answer)))
                return before

            self._prepared[name] = in_fork(make)
        if prepared.exists():
            shutil.copytree(prepared, log)
        return self._prepared[name]

    def points_of(self, name: str, kind: str) -> list[Point]:
        if (name, kind) not in self._points:
            scene = SCENES[name]
            swept = sweep.Scene(scene.script, scene.prepare or scripts.in_several_segments, scene.author)
            place = self._folder / "dry"
            place.mkdir()
            self._points[name, kind] = sweep.points_of(swept, kind, place) or [Point("call", 1, "before")]
            place.rmdir()
        return self._points[name, kind]


def prove(
    folder: Path, seed: int, count: int, progress: Callable[[str], object] = lambda _: None, scenes: str = ""
) -> Counter[str]:
    """`count` interleavings, of all scenes or of those whose names are given, with commas between."""
    names = scenes.split(", ") if scenes else list(SCENES)
    with _sweep(folder) as running:
        number = seed
        while running.found["interleavings"] < count:
            with repeatable(prove, number, 1, f", scenes={scenes!r}" if scenes else ""):
                chance = random.Random(number)
                running.play(running.draw(chance, names), chance)
            number += 1
            if number % 20 == 0:
                progress(f"{running.found['interleavings']} interleavings")
    done, blocked = running.found[DONE], running.found[BLOCKED]
    assert count < 100 or done > LEAST_DONE * (done + blocked), f"{done} operations were done, {blocked} were blocked"
    return running.found


def at_every_point(
    folder: Path, scene: str, kind: str, what: str, skip: float, progress: Callable[[str], object] = lambda _: None
) -> Counter[str]:
    """One operation, at every call or every store of one scene, but for the share `skip` of them at its beginning."""
    with _sweep(folder) as running:
        points = running.points_of(scene, kind)
        for n, point in enumerate(points[int(skip * len(points)) :]):
            running.play(Run(scene, point, what), random.Random(n))
            if n % 20 == 0:
                progress(f"{kind} {n}")
    return running.found


@contextmanager
def _sweep(folder: Path) -> Iterator[Sweep]:
    stores()
    told_of_stores()
    gc.collect()
    gc.freeze()  # what is here now is shared with every child
    logging.getLogger("walpool").setLevel(logging.CRITICAL)
    place = folder / "interleavings"
    place.mkdir()
    running = Sweep(place)
    try:
        yield running
    finally:
        running.end()
    shutil.rmtree(place)
