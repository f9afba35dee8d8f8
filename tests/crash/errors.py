"""The error sweep: a call of walpool's fails, once or until the fault is lifted, and what must hold does.

A fault is the n-th call of one name at one place of the source, what happens to it, and whether it lasts. `every`
names all there are in the script of `Case`; `run` plays one. What is not as it must be goes to the case's `wrong`: an
append is acknowledged and there, or refused and not there; only errors of walpool's own kind come out, and none that
calls an error damage; no lock, slot or descriptor stays held; and once the fault is lifted, the log works again.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import os
import random
import shutil
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import walpool
from tests.crash.proof import repeatable
from tests.crash.taps import Call, tapped, untapped
from tests.crash.witness import Witness
from tests.oracle import second
from tests.support import MAPPED, Ack, append_op, judge, open_fds
from walpool import CorruptLog, Cursor, SyncFailed, SyncMode, WALError, WALReader, WALWriter
from walpool.system.locks import try_lock

LIMIT = 1200
ERRNOS = ("EIO", "ENOSPC", "EDQUOT", "EINTR", "EMFILE", "EACCES", "EROFS")
SHORT: dict[str, tuple[Callable[[int], int], int]] = {  # how much of a write is done, and what the next answers
    "half of it, then the rest": (lambda size: size // 2, 0),
    "all but one byte, then the rest": (lambda size: size - 1, 0),
    "one byte, then no space": (lambda size: 1, errno.ENOSPC),
    "half of it, then EIO": (lambda size: size // 2, errno.EIO),
    "nothing of it": (lambda size: 0, 0),
}
EVERYWHERE = {"no space at all": errno.ENOSPC, "no quota at all": errno.EDQUOT, "a dead disk": errno.EIO}
CHANGES = {"pwrite", "fdatasync", "fsync", "rename", "link", "unlink", "mkdir", "ftruncate", "open"}
GIVE_BACK = {"unlink", "ftruncate"}  # these need no room
HELD = {  # the first two: this is how the system says that somebody has the lock; a store is no call, and cannot fail
    "flock": {"EACCES"},
    "fcntl": {"EACCES"},
    "store": set(ERRNOS),
}
LONGEST_S = 30  # of one case; only a case that hangs comes near it

_SOURCE = str(Path(walpool.__file__).parent) + os.sep
_SYSTEM = _SOURCE + "system" + os.sep


class Fault(NamedTuple):
    name: str  # of the call
    place: str  # the line of walpool that wants it, and the line of the system room that makes it
    n: int  # the n-th such call there
    what: str  # one of ERRNOS, SHORT or EVERYWHERE
    lasting: bool  # all calls of that name from then on, wherever they are made; EVERYWHERE: of whatever name

    def __str__(self) -> str:
        return f"{self.name} at {self.place}, call {self.n}: {self.what}{', for ever' if self.lasting else ''}"


def _place() -> str:
    """Who makes the call that a tap sees now."""
    frame = sys._getframe(2)
    inner = ""
    while True:
        file = frame.f_code.co_filename
        if file.startswith(_SOURCE):
            at = f"{file.removeprefix(_SOURCE)}:{frame.f_lineno}"
            inner = inner or at
            if not file.startswith(_SYSTEM):
                return at if at == inner else f"{at} > {inner}"
        if frame.f_back is None:
            return inner
        frame = frame.f_back


class Failing:
    """The tap of one fault."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.hit = False
        self._count = 0
        self._then = 0  # the errno of the next write
        self._on = True
        self._lock = threading.Lock()  # a helper thread makes calls too

    def lift(self) -> bool:
        """If it was met, and that it was: everything works from now on."""
        self._on = not self.hit
        return self.hit

    def __call__(self, name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        fault = self.fault
        concerned = name == fault.name or (self.hit and fault.what in EVERYWHERE)
        if not concerned or not self._on or _unlocks(name, args) or not _meets(fault.what, name, args):
            return call(*args, **kwargs)
        with self._lock:
            if then := self._then:
                self._then = 0
                raise OSError(then, os.strerror(then))
            if self.hit:
                if not fault.lasting:
                    return call(*args, **kwargs)
            else:
                if _place() != fault.place:
                    return call(*args, **kwargs)
                self._count += 1
                if self._count != fault.n:
                    return call(*args, **kwargs)
                self.hit = True
        if fault.what in SHORT:
            part, self._then = SHORT[fault.what]
            fd, data, offset = args
            size = part(len(data))
            return call(fd, bytes(data)[:size], offset) if size else 0
        if name == "close":
            call(*args, **kwargs)  # whatever close says, the descriptor is gone
        number = EVERYWHERE.get(fault.what) or getattr(errno, fault.what)
        raise OSError(number, os.strerror(number))


def _meets(what: str, name: str, args: tuple[Any, ...]) -> bool:
    """Whether a call of this name can meet this error."""
    if what not in EVERYWHERE:
        return what in ERRNOS or name == "pwrite"
    if name not in CHANGES or (name == "open" and not args[1] & os.O_CREAT):
        return False
    return what == "a dead disk" or name not in GIVE_BACK


def _unlocks(name: str, args: tuple[Any, ...]) -> bool:
    return name == "flock" and args[1] == fcntl.LOCK_UN  # an unlock cannot fail


class Case:
    """One run of the script."""

    def __init__(self, log: Path, lift: Callable[[], bool] | None) -> None:
        self.log = log
        self.acks: list[Ack] = []
        self.in_doubt: list[int] = []
        self.checkpoints: list[int] = []  # asked for
        self.stated = 0  # and in force
        self.committed = 0  # by the cursor
        self.begun = 0
        self.wrong: list[str] = []
        self.failed = 0
        self.op = 0
        self.witness = Witness(log)
        self._lift = lift  # of a fault that lasts
        self._mapped = False

    def run(self) -> None:
        append = self.append
        self._life(
            SyncMode.NORMAL, [append] * 5 + [self.sync] + [append] * 3 + [self.rotate, append, self.read, self.rotate]
        )
        self._life(SyncMode.FULL, [append] * 5 + [self.read, self.consume, self.checkpoint, self.prune, append])
        self._reboot()
        self._life(SyncMode.NORMAL, [self.read, append, append, self.rotate, append, self.sync, append], mapped=MAPPED)

    def _life(self, mode: SyncMode, steps: list[Callable[[WALWriter], object]], mapped: bool = False) -> None:
        """Of a writer; a fault that lasts does so until its end."""
        self._mapped = mapped
        writer = self._open(mode)
        for step in steps:
            if writer is None:
                break
            if self.attempt(lambda step=step, writer=writer: step(writer)) is SyncFailed:
                self.attempt(writer.close)
                writer = self._open(mode)  # which recovers
            self._look()
        lifted = self._lift is not None and self._lift()
        if writer is None:
            writer = self._open(mode)
            assert writer is not None, f"the log cannot be opened after the fault: {self.wrong}"
        if lifted:
            failed = self.attempt(lambda: self.append(writer))
            if failed is SyncFailed:
                self.attempt(writer.close)
                writer = WALWriter(self.log, mode, LIMIT, mapped=mapped)
                self.append(writer)
            else:
                assert failed is None, f"the fault is over, and an append raises {failed}"
        self.attempt(writer.close)

    def _open(self, mode: SyncMode) -> WALWriter | None:
        """A fault that is met once can refuse one opening; the next must be granted. None: the fault lasts."""
        opened: list[WALWriter] = []
        for _ in range(2):
            self.attempt(lambda: opened.append(WALWriter(self.log, mode, LIMIT, mapped=self._mapped)))
            if opened:
                return opened[0]
        assert self._lift is not None, f"two openings were refused for one fault: {self.wrong}"
        return None

    def _look(self) -> None:
        _wait_for_helpers()
        with untapped():
            self.witness.look()

    def _reboot(self) -> None:
        """As far as walpool can tell: the next opening recovers."""
        with suppress(FileNotFoundError):
            (self.log / "control").unlink()

    def attempt(self, step: Callable[[], object]) -> type[BaseException] | None:
        """What it raised."""
        try:
            step()
        except CorruptLog as error:
            self.wrong.append(f"an error passes for damage: {error!r}")
            return type(error)
        except WALError as error:
            self.failed += 1
            return type(error)
        except AssertionError:
            raise
        except Exception as error:
            self.wrong.append(f"an error that is not walpool's: {error!r}")
            return type(error)
        return None

    def append(self, writer: WALWriter) -> None:
        self.op += 1
        try:
            lsns = append_op(writer, "w", self.op)
        except SyncFailed:
            self.in_doubt.append(self.op)  # it was appended, and may not be on disk
            raise
        self.acks.append(Ack(self.op, lsns.start, lsns.stop))

    def sync(self, writer: WALWriter) -> None:
        writer.sync()

    def rotate(self, writer: WALWriter) -> None:
        writer.rotate()

    def checkpoint(self, writer: WALWriter) -> None:
        lsn = self.acks[-1].end_lsn - 4
        self.checkpoints.append(lsn)
        self.stated = writer.checkpoint(lsn)

    def consume(self, writer: WALWriter) -> None:
        cursor = Cursor(self.log, "etl", lock_timeout=5)
        try:
            with cursor:
                for entry in cursor.follow(timeout=0):
                    self.begun = max(self.begun, entry.lsn)
                    cursor.commit(entry.lsn, sync=entry.lsn % 4 == 0)
        finally:
            self.committed = cursor.position  # a sync that failed may have taken it back

    def prune(self, writer: WALWriter) -> None:
        writer.prune()

    def read(self, writer: WALWriter) -> None:
        self.judge()

    def judge(self) -> None:
        """What a reader finds, or its error."""
        first_lsn = min((int(path.stem) for path in self.log.glob("*.wal")), default=1)
        covered = max(self.checkpoints, default=0)
        assert first_lsn <= covered + 1, f"the log begins at {first_lsn}, and the checkpoint is {covered}"
        with WALReader(self.log, start=first_lsn) as reader:
            entries = reader.read_all()
        self.witness.holds(entries, first_lsn)
        judge(entries, {"w": [ack for ack in self.acks if ack.first_lsn >= first_lsn]}, {"w": self.in_doubt}, first_lsn)
        second.agree(self.log, entries, exact=False)


def _wait_for_helpers() -> None:
    for thread in threading.enumerate():
        if thread.name == "walpool-coordinator":
            thread.join()


def check(case: Case) -> None:
    """The log holds what was acknowledged; nobody holds a lock; the log can be used."""
    try:
        with WALWriter(case.log, size_limit=LIMIT, lock_timeout=5) as writer:
            case.append(writer)
            writer.sync()
            rows = writer.metrics.snapshot().writers
            assert len(rows) == 1, f"slots are still held: {rows}"
            in_force = writer.checkpoint(0)
            assert case.stated <= in_force <= max(case.checkpoints, default=0), f"the checkpoint is {in_force}"
        with Cursor(case.log, "etl", lock_timeout=5) as cursor:
            position = cursor.position
            assert case.committed <= position <= case.begun, f"{case.committed} was committed, and it is at {position}"
        for name in ("append.lock", "sync.lock"):
            fd = os.open(case.log / name, os.O_RDWR)
            free = try_lock(fd)
            os.close(fd)
            assert free, f"{name} is still held"
        case.witness.look()
        case.judge()
    except (AssertionError, WALError) as error:
        case.wrong.append(f"afterwards: {error!r}")
    case.witness.close()


def run(
    folder: Path,
    fault: Fault,
    outer: Callable[[Path], AbstractContextManager[object]] | None = None,
    look: Callable[[Case], None] = check,
) -> tuple[Case, bool]:
    """Play a fault; what came of it, and whether it was met.

    `outer(log)` is entered before the fault's tap is, so a tap of its own sees the calls that are really made, and left
    before `look` judges the case.
    """
    log = folder / "events.wal"
    tap = Failing(fault)
    case = Case(log, tap.lift if fault.lasting else None)
    before = open_fds()
    with outer(log) if outer is not None else nullcontext(), tapped(tap), _no_hang():
        try:
            case.run()
        except (AssertionError, WALError) as error:
            case.wrong.append(repr(error))
        except OSError as error:
            case.wrong.append(f"an error that is not walpool's: {error!r}")
    look(case)
    gc.collect()
    if left := {path for fd, path in open_fds().items() if fd not in before}:
        case.wrong.append(f"descriptors are left open: {left}")
    shutil.rmtree(log, ignore_errors=True)
    return case, tap.hit


@contextmanager
def _no_hang() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise AssertionError(f"it hangs: nothing came within {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def every(folder: Path) -> list[Fault]:
    """All faults of the script: each call of each place, each thing that can happen to it, once and for ever."""
    calls: Counter[tuple[str, str]] = Counter()
    changes: Counter[tuple[str, str, str]] = Counter()  # of each of EVERYWHERE, those that meet it
    lock = threading.Lock()

    def see(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not _unlocks(name, args):
            with lock:
                place = _place()
                calls[name, place] += 1
                changes.update((name, place, what) for what in EVERYWHERE if _meets(what, name, args))
        return call(*args, **kwargs)

    log = folder / "dry.wal"
    case = Case(log, None)
    with tapped(see):
        case.run()
    assert not case.wrong and not case.failed, case.wrong
    shutil.rmtree(log)
    return [
        Fault(name, place, n, what, lasting)
        for (name, place), count in sorted(calls.items())
        for n in range(1, count + 1)
        for what in (*ERRNOS, *(SHORT if name == "pwrite" else ()))
        if what not in HELD.get(name, ())
        for lasting in (False, True)
    ] + [Fault(*at, n, what, True) for (*at, what), count in sorted(changes.items()) for n in range(1, count + 1)]


def firsts(faults: Iterable[Fault]) -> list[Fault]:
    """Of each place the first call, with EIO, every short write, and two of the other errors in turn."""
    chosen = []
    places: dict[tuple[str, str], int] = {}
    for fault in faults:
        turn = places.setdefault((fault.name, fault.place), len(places))
        others = [ERRNOS[1 + (turn + at) % 6] for at in (0, 3)]
        if fault.n == 1 and (fault.what in ("EIO", *others) or fault.what in SHORT):
            chosen.append(fault)
    return chosen


def play(folder: Path, faults: Iterable[Fault], progress: Callable[[str], object] = lambda _: None) -> Counter[str]:
    """How many were met, by the name of the call. Raises AssertionError for the first that came out wrong."""
    found: Counter[str] = Counter()
    logging.getLogger("walpool").setLevel(logging.CRITICAL)
    gc.collect()
    gc.freeze()  # what was imported is no garbage: a collection has only our own to look at
    for at, fault in enumerate(faults):
        case, met = run(folder, fault)
        assert not case.wrong, f"{fault}:\n" + "\n".join(case.wrong)
        if met:
            found.update({"errors": 1, f"errors: {fault.name}": 1, "refused": case.failed, "judged by the oracle": 1})
        if at % 100 == 99:
            progress(f"{at + 1} faults")
    return found


def nothing_works(folder: Path, seed: int, count: int) -> list[Fault]:
    """Of those that no change survives from some moment on, `count` of each kind, drawn by `seed`."""
    faults = every(folder)
    chance = random.Random(seed)
    kinds = [[fault for fault in faults if fault.what == what] for what in EVERYWHERE]
    return [fault for kind in kinds for fault in chance.sample(kind, min(count, len(kind)))]


def prove(folder: Path, seed: int, count: int, progress: Callable[[str], object] = lambda _: None) -> Counter[str]:
    """`count` faults, drawn by `seed` from all there are, are met."""
    found: Counter[str] = Counter()
    chance = random.Random(seed)
    with repeatable(prove, seed, count):
        faults = every(folder)
        while (left := count - found["errors"]) > 0:
            found += play(folder, chance.sample(faults, min(left, len(faults))), progress)
    return found
