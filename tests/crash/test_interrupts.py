"""Signal handlers that raise at any moment: no lock stays held, nothing is doubled, and the writer can be used on."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import walpool
from tests.crash.failpoints import appends_by
from tests.crash.proof import repeatable
from tests.support import Ack, Channel, Child, Start, append_op, entries_of, judge, open_fds, read_log, until
from walpool import SyncMode, WALEntry, WALError, WALWriter
from walpool.system.locks import LOCK_UN, try_lock

LIMIT = 20_000
SOURCE = str(Path(walpool.__file__).parent)


class Interrupt(KeyboardInterrupt):
    """What the handler raises, as Python's own does at Ctrl-C."""


class Alarm:
    """Raises Interrupt in the main thread, once for each time it is set, after at most `longest_s`."""

    def __init__(self, seed: int, longest_s: float) -> None:
        self.delivered = 0
        self._armed = False  # a signal that another thread took is handled here a little later, perhaps after the step
        self._chance = random.Random(seed)
        self._longest_s = longest_s
        signal.signal(signal.SIGALRM, self._ring)
        complain = sys.unraisablehook

        def unless_ours(unraisable: Any) -> None:  # Python drops what is raised in a __del__
            if unraisable.exc_type is not Interrupt:
                complain(unraisable)

        sys.unraisablehook = unless_ours

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self._armed:
            self.delivered += 1
            raise Interrupt

    def run(self, step: Callable[[], object]) -> bool:
        """Whether the step came to its end undisturbed, as far as anybody can tell."""
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, self._chance.uniform(1e-6, self._longest_s))
            step()
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._armed = False
            return True
        except Interrupt:
            self._armed = False
            return False
        except BaseException:
            self._armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise


class Locks:
    """Looks from outside at the locks of a log."""

    def __init__(self, log: Path) -> None:
        self._fds = {name: os.open(log / name, os.O_RDWR) for name in ("append.lock", "sync.lock")}

    def check(self) -> None:
        """Others may hold one for a moment; one that is never free has leaked."""
        import fcntl

        for name, fd in self._fds.items():
            until(lambda fd=fd: try_lock(fd), f"{name} is free")
            fcntl.flock(fd, LOCK_UN)


def hammer(channel: Channel, log: Path, mode: SyncMode, seed: int, wanted: int) -> tuple[int, list[Ack], list[int]]:
    """Append under interrupts until so many were delivered; what was acknowledged, and what is in doubt."""
    with appends_by(seed % 2 == 0):
        return _hammer(channel, log, mode, seed, wanted)


def _hammer(channel: Channel, log: Path, mode: SyncMode, seed: int, wanted: int) -> tuple[int, list[Ack], list[int]]:
    alarm = Alarm(seed, 400e-6 if mode is SyncMode.FULL else 120e-6)
    acks: list[Ack] = []
    in_doubt: list[int] = []
    op = 0
    with WALWriter(log, mode, LIMIT) as writer:
        writer.sync()
        locks = Locks(log)
        told: list[range] = []
        while alarm.delivered < wanted:
            op += 1
            told.clear()
            before = alarm.delivered
            undisturbed = alarm.run(lambda op=op: told.append(append_op(writer, "w", op)))
            if told:
                acks.append(Ack(op, told[0].start, told[0].stop))
            else:
                assert not undisturbed
                in_doubt.append(op)
            if op % 7 == 0:
                alarm.run(writer.rotate)
            if op % 5 == 0:
                alarm.run(writer.sync)
            if alarm.delivered > before:
                locks.check()
            if op % 400 == 0:
                channel.send("peer")
                channel.receive()
        writer.sync()
    return alarm.delivered, acks, in_doubt


def append_on_demand(channel: Channel, log: Path) -> list[Ack]:
    acks = []
    with WALWriter(log, size_limit=LIMIT, lock_timeout=30) as writer:
        op = 0
        while channel.receive() == "append":
            lsns = append_op(writer, "peer", op)
            acks.append(Ack(op, lsns.start, lsns.stop))
            op += 1
            channel.send("appended")
    return acks


def interrupt_appends(child: Start, log: Path, mode: SyncMode, seed: int, wanted: int) -> int:
    """How many interrupts it was; another process appends now and then."""
    peer = child(append_on_demand, log)
    hammering = child(hammer, log, mode, seed, wanted)
    while True:
        kind, value = hammering.next()
        if kind == "result":
            break
        assert peer.ask("append") == "appended"
        hammering.send("go on")
    peer.send("end")
    delivered, acks, in_doubt = value
    assert delivered >= wanted
    judge(read_log(log), {"w": acks, "peer": peer.result()}, {"w": in_doubt})
    return int(delivered)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "wanted"), [(SyncMode.NORMAL, 2_200), (SyncMode.FULL, 1_000)])
@pytest.mark.parametrize("by_python", [False, True], ids=["core", "python"])
def test_no_interrupt_leaves_a_lock_held_or_an_entry_doubled(
    child: Start, memory: Path, mode: SyncMode, wanted: int, by_python: bool, seed: int
) -> None:
    interrupt_appends(child, memory / "events.wal", mode, 2 * seed + by_python, wanted)


def hammer_buffered(channel: Channel, log: Path, seed: int, wanted: int) -> tuple[list[int], list[int]]:
    alarm = Alarm(seed, 60e-6)
    sure: list[int] = []
    in_doubt: list[int] = []
    op = 0
    with WALWriter(log, SyncMode.NONE, LIMIT, buffer_bytes=400, linger_s=3600.0) as writer:
        while alarm.delivered < wanted:
            op += 1
            entry = WALEntry.put(b"%d" % op, b"x" * 20, 1)
            done: list[bool] = []
            alarm.run(lambda entry=entry, done=done: (writer.append(entry), done.append(True)))
            (sure if done else in_doubt).append(op)
            if op % 9 == 0:
                alarm.run(writer.sync)
    return sure, in_doubt


def interrupt_buffering(child: Start, log: Path, seed: int, wanted: int) -> int:
    sure, in_doubt = child(hammer_buffered, log, seed, wanted).result()
    with WALWriter(log, lock_timeout=20) as writer:  # so no lock is held
        assert len(writer.metrics.snapshot().writers) == 1
    found = [int(entry.key) for entry in read_log(log)]
    assert len(found) == len(set(found)), "an entry is there twice"
    assert found == sorted(found)
    lost = set(sure) - set(found)
    assert not lost, f"lost: {sorted(lost)[:20]}"
    assert set(found) <= set(sure) | set(in_doubt)
    return wanted


def test_an_interrupt_neither_loses_nor_doubles_what_is_buffered(child: Start, memory: Path, seed: int) -> None:
    interrupt_buffering(child, memory / "events.wal", seed, 1_500)


def open_and_close(channel: Channel, log: Path, seed: int, wanted: int) -> tuple[list[Ack], list[int]]:
    """Interrupts in openings, recoveries and closings; what was acknowledged, and what is in doubt."""
    alarm = Alarm(seed, 4e-3)
    chance = random.Random(seed)
    acks: list[Ack] = []
    in_doubt: list[int] = []
    op = 0
    WALWriter(log, size_limit=LIMIT).close()
    warnings.simplefilter("ignore", ResourceWarning)  # a writer may be interrupted before anybody can close it
    gc.collect()
    before = open_fds()

    def once(op: int, told: list[range]) -> None:
        with WALWriter(log, size_limit=LIMIT) as writer:
            told.append(append_op(writer, "w", op))

    while alarm.delivered < wanted:
        op += 1
        if chance.random() < 0.3:
            with suppress(FileNotFoundError):
                (log / "control").unlink()
        told: list[range] = []
        alarm.run(lambda op=op, told=told: once(op, told))
        if told:
            acks.append(Ack(op, told[0].start, told[0].stop))
        else:
            in_doubt.append(op)
    gc.collect()
    left = [path for fd, path in open_fds().items() if fd not in before]
    # Between the system's answer and the variable that takes it there is room for an interrupt; it costs a descriptor.
    assert len(left) <= 4 + wanted // 8, f"{len(left)} descriptors are left open: {left}"
    with suppress(FileNotFoundError):
        (log / "control").unlink()
    channel.send("recover")  # another process can, so no lock and no slot is left held by those
    channel.receive()
    once(op + 1, told := [])
    acks.append(Ack(op + 1, told[0].start, told[0].stop))
    return acks, in_doubt


def interrupt_openings(child: Start, log: Path, seed: int, wanted: int) -> int:
    interrupted = child(open_and_close, log, seed, wanted)
    assert interrupted.receive() == "recover"
    with WALWriter(log, lock_timeout=20) as writer:
        assert writer.recovery_report is not None
    interrupted.send("done")
    acks, in_doubt = interrupted.result()
    judge(read_log(log), {"w": acks}, {"w": in_doubt})
    return wanted


def test_an_interrupted_opening_or_recovery_is_as_if_it_had_not_been(child: Start, memory: Path, seed: int) -> None:
    interrupt_openings(child, memory / "events.wal", seed, 300)


class RaiseAtLine:
    """Ctrl-C before the n-th line of a part of walpool; in a finaliser too, where nobody hears of it."""

    def __init__(self, n: int, part: str) -> None:
        self.left = n
        self._part = part

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self._part):
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def interrupt_an_opening_at(log: Path, line: int, part: str) -> bool:
    """Whether it came that far. Whatever it held is free afterwards, in this process too."""
    (log / "control").unlink(missing_ok=True)
    at = RaiseAtLine(line, part)
    sys.settrace(at)
    try:
        WALWriter(log).close()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    (log / "control").unlink(missing_ok=True)
    with WALWriter(log, lock_timeout=1) as writer:  # nobody can have the log open, so it is recovered
        assert writer.recovery_report is not None
    return at.left <= 0


def interrupt_openings_at_lines(channel: Channel, log: Path, seed: int, part: str, step: int) -> int:
    """The last line of all in that part of walpool; about every `step`-th is tried, and each with 1."""
    sys.unraisablehook = lambda _: None
    warnings.simplefilter("ignore", ResourceWarning)
    gc.disable()  # what it held is free at once, not when cycles are looked for
    chance = random.Random(seed)
    line = chance.randrange(1, step + 1)
    while True:
        try:
            if not interrupt_an_opening_at(log, line, part):
                return line
        except WALError as error:
            raise AssertionError(f"after an interrupt before line {line} of an opening: {error}") from error
        line += chance.randrange(1, max(2, 2 * step))


def test_an_interrupt_before_any_line_of_an_opening_leaves_nothing_held(child: Start, memory: Path, seed: int) -> None:
    assert child(interrupt_openings_at_lines, memory / "events.wal", seed, SOURCE, 40).result() > 1000


def test_an_interrupt_before_each_line_of_a_new_or_closing_writer_leaves_nothing_held(
    child: Start, memory: Path, seed: int
) -> None:
    part = os.path.join(SOURCE, "write", "")
    assert child(interrupt_openings_at_lines, memory / "events.wal", seed, part, 1).result() > 100


PART = {"normal": 8_000, "full": 3_000, "buffered": 6_000, "openings": 400}  # at most so many in one child


def prove(folder: Path, seed: int, count: int) -> Counter[str]:
    """`count` interrupts: six of ten in appends, some in syncs, in what is buffered, and a few in openings."""
    found: Counter[str] = Counter()
    chance = random.Random(seed)
    log = folder / "interrupted.wal"
    children: list[Child] = []

    def child(target: Callable[..., object], *args: object) -> Child:
        children.append(Child("subprocess", target, args))
        return children[-1]

    runs: dict[str, Callable[[int, int], int]] = {
        "normal": lambda number, wanted: interrupt_appends(child, log, SyncMode.NORMAL, number, wanted),
        "full": lambda number, wanted: interrupt_appends(child, log, SyncMode.FULL, number, wanted),
        "buffered": lambda number, wanted: interrupt_buffering(child, log, number, wanted),
        "openings": lambda number, wanted: interrupt_openings(child, log, number, wanted),
    }
    with repeatable(prove, seed, count):
        for name, share in {"openings": 0.03, "buffered": 0.25, "full": 0.12, "normal": 1.0}.items():
            goal = count - found["interrupts"] if name == "normal" else int(count * share)
            while found[f"interrupts: {name}"] < goal:
                wanted = min(PART[name], goal - found[f"interrupts: {name}"])
                try:
                    done = runs[name](chance.getrandbits(32), wanted)
                finally:
                    for each in children:
                        each.end()
                    children.clear()
                    shutil.rmtree(log, ignore_errors=True)
                found.update({"interrupts": done, f"interrupts: {name}": done})
    return found


@pytest.mark.slow
def test_the_proof_of_interrupts_does_what_it_says(memory: Path, seed: int) -> None:
    found = prove(memory, seed, 400)
    assert found["interrupts"] >= 400 and len(found) == 5
    assert not list(memory.iterdir())


def interrupt_each_batch_source(channel: Channel, log: Path) -> int:
    """An exception out of the caller's own iterator is no different."""
    with WALWriter(log, size_limit=LIMIT) as writer:
        for count in range(50):

            def entries(count: int = count) -> Iterator[WALEntry]:
                yield from entries_of("x", 6)[: count % 4]
                raise MemoryError

            with suppress(MemoryError, WALError):
                writer.append_batch(entries())
            Locks(log).check()
        return writer.put(b"k", b"v") or 0


def test_any_exception_out_of_a_batchs_source_leaves_the_lock_free(child: Start, log: Path) -> None:
    assert child(interrupt_each_batch_source, log).result() == 1
