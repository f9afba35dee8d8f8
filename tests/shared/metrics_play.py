"""Whatever is done to a log, and the model (metrics_model.py) beside it: after each step all figures are the same.

Writers live in this process, in children, and in what those fork; each process has an `Actor`, whose taps steer the
clocks and make locks taken, writes slow and disks full as a plan says. One thing is done at a time; what is done may
stand still in its middle, and be looked at, or killed, there. All follows from the seed.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests import edges
from tests.crash.proof import repeatable
from tests.shared.metrics_look import same, same_in_json, same_in_prometheus, same_since
from tests.shared.metrics_model import PLAIN, Clock, Failed, Figures, Model, Plan, Reader, Size, Stages, frame_bytes
from tests.support import NURSERY, Channel, Child, reap
from walpool import SyncMode, WALEntry, WALError, WALMetrics, WALReader, WALWriter
from walpool.shared.figures.snapshot import Snapshot
from walpool.system import processes
from walpool.system.calls import calls
from walpool.write.coordinator import Coordinator

STEPS = 40
TRY_EX = LOCK_EX | LOCK_NB
Hook = Callable[[], None]


def entries_of(sizes: list[Size]) -> list[WALEntry]:
    return [WALEntry.put(bytes(key), bytes(value), 7) for key, value in sizes]


class Actor:
    """The writers of one process, and what the system does to their calls."""

    def __init__(self, log: Path, hook: Hook) -> None:
        self.log = log
        self.clock = Clock()
        self.writers: dict[str, WALWriter] = {}
        self.boot = 1
        self._hook = hook
        self._plan = PLAIN
        self._armed = ""  # the writer that the plan is for
        self._stages: set[str] = set()  # come past

    @contextmanager
    def steering(self) -> Iterator[None]:
        taps = {
            "time_ns": lambda: self.clock.wall_ns, "monotonic_ns": lambda: self.clock.mono_ns,
            "monotonic": lambda: self.clock.ticks * 2.0**-20, "sleep": self._sleep, "flock": self._flock,
            "pwrite": self._pwrite, "fdatasync": self._fdatasync, "stat": self._stat,
        }  # fmt: skip
        self._real = {name: getattr(calls, name) for name in taps}
        self._wake = Coordinator.wake
        with ExitStack() as stack:
            stack.enter_context(patch.multiple(calls, **taps))
            stack.enter_context(patch.object(Coordinator, "wake", lambda coordinator: None))
            stack.enter_context(patch.object(processes, "boot_id", lambda: (1, self.boot)))
            yield

    # What the system does

    def _sleep(self, seconds: float) -> None:
        self.clock.ticks += max(64, int(seconds * 2**20))

    def _pass(self, stage: str) -> bool:
        """Whether this call comes to the stage for the first time; stands still there if that is planned."""
        first = stage not in self._stages
        self._stages.add(stage)
        if first and stage == self._plan.stage:
            self._hook()
        return first

    def _flock(self, fd: int, operation: int) -> None:
        name, plan = self._name(fd), self._plan
        if name == "append.lock" and self._armed:
            if operation == TRY_EX and (plan.fault == "busy" or (plan.wait_ns and "wait" not in self._stages)):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            if operation == LOCK_EX and plan.wait_ns and self._pass("wait"):
                self.clock.move(plan.wait_ns)
            if operation == LOCK_UN and "write" in self._stages:
                self._pass("published")
        if name == "sync.lock" and operation == TRY_EX and plan.led_by and "led" not in self._stages:
            self._stages.add("led")
            self.writers[plan.led_by].sync()
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._real["flock"](fd, operation)

    def _name(self, fd: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) if fd >= 0 else ""

    def _pwrite(self, fd: int, data: bytes, at: int) -> int:
        if self._armed and at >= 64 and any(data[:4]) and self._name(fd).endswith(".wal"):
            self._pass("write")
            self.clock.move(self._plan.write_ns)
            error = {"full": errno.ENOSPC, "io": errno.EIO}.get(self._plan.fault)
            if error is not None:
                self._stages.discard("write")
                raise OSError(error, os.strerror(error))
        return self._real["pwrite"](fd, data, at)  # type: ignore[no-any-return]

    def _fdatasync(self, fd: int) -> None:
        if self._name(fd).endswith(".wal"):
            self._pass("sync")
            self.clock.ticks += self._plan.sync_ticks
        self._real["fdatasync"](fd)

    def _stat(self, *args: Any, **how: Any) -> os.stat_result:
        if self._plan.fault == "look" and "sync" in self._stages:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._real["stat"](*args, **how)  # type: ignore[no-any-return]

    # What is done

    def do(self, what: str, name: str, plan: Plan, *args: Any) -> Any:
        """What came of it: a text when it raised."""
        self._plan, self._armed, self._stages = plan, name, set()
        try:
            return getattr(self, f"do_{what}")(name, *args)
        except (WALError, ValueError) as error:
            return str(error)
        finally:
            self._plan, self._armed = PLAIN, ""

    def do_open(self, name: str, shown: str, mode: str, limit: int, buffer: int, metrics: bool) -> None:
        timeout = 0.0 if name.startswith("impatient") else None
        self.writers[name] = WALWriter(
            self.log, SyncMode(mode), limit, name=shown, buffer_bytes=buffer, linger_s=3600.0, metrics=metrics,
            lock_timeout=timeout,
        )  # fmt: skip

    def do_append(self, name: str, sizes: list[Size]) -> None:
        self.writers[name].append_batch(entries_of(sizes))

    def do_put(self, name: str, size: Size) -> None:
        key, value = size
        self.writers[name].put(bytes(key), bytes(value), 7)

    do_buffer = do_put

    def do_sync(self, name: str) -> None:
        self.writers[name].sync()

    def do_rotate(self, name: str) -> None:
        self.writers[name].rotate()

    def do_coordinate(self, name: str) -> None:
        coordinator = self.writers[name]._handle.open().coordinator
        self._wake(coordinator)
        thread = coordinator._thread
        if thread is not None:
            thread.join()

    def do_state_checkpoint(self, name: str, lsn: int) -> None:
        self.writers[name].checkpoint(lsn)

    def do_prune(self, name: str) -> None:
        self.writers[name].prune()

    def do_close(self, name: str) -> None:
        self.writers.pop(name).close()

    def do_fork(self, name: str, sizes: list[Size], in_order: bool) -> int:
        """A child that appends through its parent's writer and ends; its process id."""
        pid = os.fork()
        if not pid:
            status = 1
            try:
                self.writers[name].append_batch(entries_of(sizes))
                if in_order:
                    self.writers[name].close()
                status = 0
            finally:
                os._exit(status)
        assert reap(pid) == 0
        return pid


def act(channel: Channel, log: Path) -> None:
    """An actor in a process of its own: it does what it is told, by the clock that it is told."""

    def hook() -> None:
        channel.send(("inside", actor.clock))
        channel.receive()

    actor = Actor(log, hook)
    with actor.steering():
        channel.send(os.getpid())
        while (told := channel.receive()) is not None:
            actor.clock, actor.boot, command = told
            came = actor.do(*command)
            channel.send(("done", actor.clock, came))
        for writer in actor.writers.values():
            writer.close()


class Play:
    """One log, its model, and everybody who has to do with it."""

    def __init__(self, folder: Path, chance: random.Random, children: int) -> None:
        self.chance = chance
        self.log = folder / "log"
        self.here = Actor(self.log, self._inside)
        self.model = Model(self.log, os.getpid())
        self.children: dict[int, Child] = {}
        self.most_children = children
        self.readers: dict[str, WALReader] = {}
        self.where: dict[str, int] = {}  # the process of each writer
        self.metrics: WALMetrics | None = None
        self.before: tuple[Snapshot, Figures] | None = None
        self.number = 0
        self.counts: Counter[str] = Counter()
        self.killing = False
        self._under_way: Stages = iter(())
        self._stage = ""
        self.last = ""

    def run(self, steps: int) -> None:
        with self.here.steering():
            try:
                self.open()
                self.look()
                for _ in range(steps):
                    self.step()
                    self.counts["steps"] += 1
                    self.look()
                self.end()
            finally:
                for child in self.children.values():
                    child.end()
                for reader in self.readers.values():
                    reader.close()
                for writer in self.here.writers.values():
                    writer.close()
                if self.metrics is not None:
                    self.metrics.close()

    def end(self) -> None:
        for name in sorted(self.model.writers):
            self.do("close", name)
        self.look()
        for child in self.children.values():
            child.send(None)
            child.result()

    # Doing

    def do(self, what: str, name: str, plan: Plan = PLAIN, *args: Any) -> Any:
        """The same by the writer and by the model; what came of it."""
        model, self.last = self.model, f"{what} by {name}, {plan}, {args!s:.200}"
        self._under_way, self._stage = self._of_model(what, name, plan, *args), plan.stage
        model.sync_ticks = plan.sync_ticks
        process = self.where[name]
        if process == os.getpid():
            self.here.clock = dataclasses.replace(model.clock)
            came = self.here.do(what, name, plan, *args)
            clock = self.here.clock
        else:
            child = self.children[process]
            child.send((model.clock, self.here.boot, (what, name, plan, *args)))
            while True:
                kind, clock, *rest = child.receive()
                if kind == "done":
                    (came,) = rest
                    break
                self.here.clock = clock
                if self.killing:
                    self._go_to_the_stage()
                    return None
                self._inside()
                child.send("go on")
        self._finish(came)
        assert (clock.wall_ns, clock.mono_ns) == (model.clock.wall_ns, model.clock.mono_ns), "another time has passed"
        model.clock.ticks = clock.ticks
        self.here.clock = dataclasses.replace(model.clock)
        return came

    def _of_model(self, what: str, name: str, plan: Plan, *args: Any) -> Stages:
        match what:
            case "open" | "fork" | "prune":
                return iter(())
            case "put":
                return self.model.append(name, [args[0]], plan)
            case "append" | "sync":
                return getattr(self.model, what)(name, *args, plan)  # type: ignore[no-any-return]
        return getattr(self.model, what)(name, *args)  # type: ignore[no-any-return]

    def _finish(self, came: Any) -> None:
        failed = ""
        try:
            for _ in self._under_way:
                pass
        except Failed as error:
            failed = str(error)
        assert isinstance(came, str) == bool(failed), f"it gave {came!r}, and should {failed or 'succeed'}"
        if failed:
            self.counts[f"failed: {failed}"] += 1
            for row in self.model.rows.values():
                if row.error_ns and not row.error:
                    row.error = came

    def _go_to_the_stage(self) -> None:
        for stage in self._under_way:
            if stage == self._stage:
                return
        raise AssertionError(f"nothing stands still at {self._stage!r}")

    def _inside(self) -> None:
        """Something stands in its middle."""
        self._go_to_the_stage()
        ticks = self.here.clock.ticks
        self.model.clock.ticks = ticks
        self.look()
        self.counts[f"looks inside: {self._stage}"] += 1

    # Steps, drawn

    def step(self) -> None:
        chance = self.chance
        writers = sorted(self.model.writers)
        if not writers:
            self.open()
            return
        name = chance.choice(writers)
        what = chance.choices(
            ["append", "wait", "fail", "buffer", "sync", "tick", "open", "close", "rotate", "coordinate", "checkpoint",
             "read", "fork", "kill", "reboot", "many"],
            [18, 12, 8, 8, 7, 10, 5, 3, 3, 4, 3, 12, 2, 3, 2, 2],
        )[0]  # fmt: skip
        getattr(self, f"step_{what}")(name)

    def sizes(self, name: str) -> list[Size]:
        """Of a batch that fits."""
        limit = self.model.writers[name].limit - 64
        count = self.chance.choice((1, 1, 1, 2, 3, 8, 33))
        sizes = [(self.chance.choice((0, 1, 5)), self.chance.choice((0, 1, 40))) for _ in range(count)]
        while frame_bytes(sizes) > limit:
            sizes.pop()
        if self.chance.random() < 0.1:
            key, value = sizes[-1]
            sizes[-1] = key, value + limit - frame_bytes(sizes)  # it fills a segment exactly
        return sizes

    def plan(self, name: str, **how: Any) -> Plan:
        stages = ["", "", "write", "published"]
        stages += ["wait"] * 2 * ("wait_ns" in how)
        return Plan(
            write_ns=self.chance.choice((0, 255, 256, 3_000, 1_000_000)),
            sync_ticks=self.chance.choice((1, 40, 70_000)), stage=self.chance.choice(stages), **how,
        )  # fmt: skip

    def put(self, name: str, plan: Plan) -> Any:
        sizes = self.sizes(name)
        if len(sizes) == 1 and self.model.writers[name].mode != "none":
            return self.do("put", name, plan, sizes[0])
        if self.model.writers[name].buffered:
            plan = plan._replace(stage="")  # there would be two
        return self.do("append", name, plan, sizes)

    def step_append(self, name: str) -> None:
        self.put(name, self.plan(name))

    def step_wait(self, name: str) -> None:
        if name.startswith("impatient") or self.model.writers[name].buffered:
            return self.step_append(name)
        wait_ns = self.chance.choice(edges.WAITS_NS)
        for _ in range(self.chance.choice((1, 1, 2, 9, 70))):
            self.put(name, self.plan(name, wait_ns=wait_ns))
        self.counts["waits"] += 1

    def step_fail(self, name: str) -> None:
        writer = self.model.writers[name]
        plan = self.plan(name, fault=self.chance.choice(("full", "io")))._replace(stage="")
        match self.chance.choice(("write", "write", "entry", "batch", "busy", "look")):
            case "write":
                self.do("append", name, plan, self.sizes(name))
            case "entry":
                key, value = self.chance.choice(((edges.MAX_KEY + 1, 0), (0, edges.MAX_VALUE + 1)))
                self.do("append", name, PLAIN, [(1, 1), (key, value)])
            case "batch" if writer.mode == "none":
                self.do("buffer", name, PLAIN, (0, writer.limit))
            case "batch":
                self.do("put", name, PLAIN, (0, writer.limit - 64 - 48 - 16 + 1))
            case "busy" if name.startswith("impatient"):
                self.do("append", name, Plan(fault="busy"), self.sizes(name))
            case "look" if writer.mode == "full":
                self.do("append", name, Plan(fault="look"), self.sizes(name))
            case _:
                self.do("append", name, plan, self.sizes(name))

    def step_buffer(self, name: str) -> None:
        if self.model.writers[name].mode == "none":
            for _ in range(self.chance.choice((1, 4, 20))):
                self.do("buffer", name, PLAIN, (self.chance.choice((0, 1, 9)), self.chance.choice((0, 1, 60))))

    def step_sync(self, name: str) -> None:
        beside = [each for each in sorted(self.model.writers) if each != name and self.where[each] == self.where[name]]
        if beside and self.chance.random() < 0.4 and not self.model.writers[name].buffered:
            other = self.chance.choice(beside)
            if not self.model.writers[other].buffered:
                self.do("sync", name, Plan(led_by=other, sync_ticks=3))
                return
        leads = self.model.next_lsn - 1 > self.model.durable or self.model.writers[name].buffered
        stage = "sync" if leads and self.chance.random() < 0.5 else ""
        self.do("sync", name, Plan(sync_ticks=self.chance.choice((0, 1, 1000, 1 << 21)), stage=stage))

    def step_tick(self, name: str) -> None:
        self.model.clock.move(self.chance.choice((1, 99_999_999, 100_000_000, 100_000_001, 5 * 10**9)))
        self.here.clock = dataclasses.replace(self.model.clock)

    def step_open(self, name: str) -> None:
        if len(self.model.writers) < 6:
            self.open()

    def open(self) -> None:
        chance = self.chance
        processes_there = [os.getpid(), *self.children]
        if len(self.children) < self.most_children and chance.random() < 0.6:
            child = Child(NURSERY, act, (self.log,))
            self.children[child.pid] = child
            assert child.receive() == child.pid
            processes_there = [child.pid]
        self.number += 1
        self.model.clock.move(1)  # an error of the slot's last owner came before
        mode = chance.choice(("normal", "normal", "full", "none"))
        kind = chance.choice(("impatient", "patient", "patient")) if mode != "none" else "patient"
        name = f"{kind} {self.number}"
        self.where[name] = chance.choice(processes_there)
        options = name, mode, chance.choice((300, 1000, 1 << 16)), chance.choice((64, 500)), chance.random() < 0.85
        was_usable = bool(self.model.writers) or not self.rebooted
        self.do("open", name, PLAIN, *options)
        assert was_usable or not self.model.writers
        self.rebooted = False
        self.model.open(name, name, self.where[name], *options[1:])
        if self.metrics is None:
            self.metrics = WALMetrics.attach(self.log)

    rebooted = False

    def step_close(self, name: str) -> None:
        self.do("close", name)

    def step_rotate(self, name: str) -> None:
        self.do("rotate", name)

    def step_coordinate(self, name: str) -> None:
        if not self.model.writers[name].buffered:
            self.do("coordinate", name)

    def step_checkpoint(self, name: str) -> None:
        self.do("state_checkpoint", name, PLAIN, self.chance.randrange(self.model.next_lsn))
        if self.chance.random() < 0.6:
            self.do("prune", name)
            self.model.prune()

    def step_fork(self, name: str) -> None:
        writer = self.model.writers[name]
        self.model.clock.move(1)  # as in `open`
        sizes, in_order = self.sizes(name), self.chance.random() < 0.5
        pid = self.do("fork", name, PLAIN, sizes, in_order)
        assert isinstance(pid, int), pid
        key = f"{name} in {pid}"
        model = self.model
        model.open(key, writer.name, pid, writer.mode, writer.limit, writer.buffer_limit, writer.metrics)
        model.sync_ticks = 1
        for _ in model.append(key, sizes):
            pass
        if in_order:
            for _ in model.close(key):
                pass
        else:
            model.kill(pid)
        self.counts["forks"] += 1

    def step_kill(self, name: str) -> None:
        """A child, in the middle of something or not; or this one closes."""
        process = self.where[name]
        if process == os.getpid():
            return
        stage = self.chance.choice(("", "write", "published", "wait", "sync"))
        if (stage == "wait" and name.startswith("impatient")) or self.model.writers[name].buffered:
            stage = ""
        if stage == "sync" and self.model.next_lsn - 1 == self.model.durable:
            stage = ""
        if stage:
            self.killing = True
            if stage == "sync":
                self.do("sync", name, Plan(stage=stage))
            else:
                self.do("append", name, Plan(stage=stage, wait_ns=9000 if stage == "wait" else 0), self.sizes(name))
            self.killing = False
        child = self.children.pop(process)
        child.kill()
        assert child.died() == -9
        self.model.kill(process)
        self.model.clock = dataclasses.replace(self.model.clock, ticks=self.here.clock.ticks)
        child.end()
        self.counts[f"kills: {stage or 'idle'}"] += 1

    def step_reboot(self, name: str) -> None:
        for each in sorted(self.model.writers):
            if self.where[each] == os.getpid() or self.chance.random() < 0.5:
                self.do("close", each)
        for process, child in list(self.children.items()):
            child.kill()
            child.died()
            child.end()
            self.model.kill(process)
            del self.children[process]
        self.end_of_readers()
        self.here.boot += 1
        self.model.reboot()
        self.rebooted = True
        self.before = None
        self.open()
        self.counts["reboots"] += 1

    def step_many(self, name: str) -> None:
        """More than eight segments, and more entries than names are compared after."""
        if self.model.writers[name].limit == 300 or self.model.writers[name].buffered:
            for _ in range(10):
                self.do("append", name, PLAIN, [(1, 150)])
        else:
            self.do("append", name, PLAIN, [(0, 0)] * 1000)
        self.counts["many"] += 1

    def end_of_readers(self) -> None:
        for name, reader in self.readers.items():
            reader.close()
            self.model.readers[name].pin = 0
        self.readers.clear()

    def step_read(self, name: str) -> None:
        chance, model = self.chance, self.model
        if not self.readers or (len(self.readers) < 4 and chance.random() < 0.4):
            self.number += 1
            key = f"reader {self.number}"
            pin = chance.random() < 0.6
            self.readers[key] = WALReader(self.log, pin=pin)
            model.readers[key] = Reader(model.segments[0], model.segments[0] if pin else 0)
            return
        key = chance.choice(sorted(self.readers))
        its = model.readers[key]
        how = chance.choice(("entries", "entries", "all", "batch", "close", "drop"))
        if how in ("close", "drop") or its.next_lsn < model.segments[0]:  # or removed under it
            reader = self.readers.pop(key)
            if how != "drop":
                reader.close()
            its.pin = 0
        else:
            self.read(self.readers[key], its, how)

    def read(self, reader: WALReader, its: Reader, how: str) -> None:
        end = its.next_lsn
        over = True  # it came to the end
        if how == "entries":
            for _ in range(self.chance.choice((1, 2, 7))):
                entry = reader.read_entry()
                over = entry is None
                if entry is None:
                    break
                assert entry.lsn == end
                end += 1
        elif how == "batch" and self.model.is_between_batches(its.next_lsn):
            batch = next(reader.batches(), None)
            over = batch is None
            end += batch.count if batch is not None else 0
        else:  # all, or the rest of a batch with what follows
            end += sum(1 for _ in reader)
        self.model.read(its, end, over=over, all_told=over or how == "batch")

    # Looking

    def look(self) -> None:
        assert self.metrics is not None
        figures, found = Figures(self.model), self.metrics.snapshot()
        same(found, figures)
        if self.before is not None:
            same_since(found.delta(self.before[0]), figures, self.before[1])
        self.before = found, figures
        self.counts["looks"] += 1
        how = self.chance.random()
        if how < 0.1:
            same_in_json(self.log, figures)
        elif how < 0.2:
            same_in_prometheus(self.log, figures)
        elif how < 0.4 and self.here.writers:
            writer = self.here.writers[self.chance.choice(sorted(self.here.writers))]
            same(writer.metrics.snapshot(), figures)


def prove(folder: Path, seed: int, count: int, children: int = 2) -> Counter[str]:
    """`count` steps, in plays of at most STEPS. What each does follows from the seed."""
    counts: Counter[str] = Counter()
    with repeatable(prove, seed, count):
        while counts["steps"] < count:
            number = counts["plays"]
            place = folder / f"{number}"
            place.mkdir()
            play = Play(place, random.Random(f"{seed} {number}"), children)
            try:
                play.run(min(STEPS, count - counts["steps"]))
            except Exception as error:
                raise AssertionError(f"{error!r}, after {play.counts['steps']} steps: {play.last}") from error
            counts += play.counts
            counts["plays"] += 1
            shutil.rmtree(place)
    return counts
