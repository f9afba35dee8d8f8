"""The core's append: dead at every moment inside, refused every call, interrupted, beside Python's: as if it were that.

Where there is no compiler, or no core, these tests are skipped, and say so.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

import pytest

from tests.crash import sweep
from tests.crash.failpoints import (
    CALLS,
    KILL,
    MOMENTS,
    SIGNAL,
    STOP,
    WRITES,
    Failpoints,
    appends_by,
    built,
    cannot_build,
)
from tests.crash.sweep import in_child
from tests.support import MAPPED, Ack, Channel, Ledger, Start, append_op, judge, read_log, reap, run_threads, until
from walpool import SyncFailed, SyncMode, WALEntry, WALReader, WALWriter
from walpool.shared.control import COMMIT, COPIES, GROWTH, POISONED, STOPPED, LogState
from walpool.shared.slot_rows import BYTES
from walpool.system.calls import calls
from walpool.system.locks import LOCK_UN, TRY_EX, try_lock
from walpool.write import appender

pytestmark = pytest.mark.skipif(bool(cannot_build()), reason=cannot_build())

HOUR_NS = 3_600_000_000_000
LARGE = b"x" * 70_000  # is written without the interpreter's lock
EACH_WAY = [False, *([True] if MAPPED else [])]  # whether the writer is mapped
EACH_MOMENT = [
    (moment, mapped)
    for mapped in EACH_WAY
    for moment in MOMENTS
    if moment != "waking" and (mapped or moment != "storing")
]
EACH_SIZE = pytest.mark.parametrize("value", [b"value", b"v" * 5000, LARGE], ids=["small", "in pieces", "large"])


@pytest.fixture(scope="session")
def failpoints() -> Failpoints:
    return Failpoints(built())


@pytest.fixture
def writer(
    log: Path, failpoints: Failpoints, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[WALWriter]:
    """One whose next appends are plain, however long they take. With a parameter that is true, it is mapped."""
    monkeypatch.setattr(appender, "LOOK_NS", 1 << 60)
    mapped = getattr(request, "param", False)
    with appends_by(failpoints.module), WALWriter(log, mapped=mapped) as writer:
        writer.put(b"first", b"")
        writer._handle.open().appender.waits.sample = False
        failpoints.disarm()
        yield writer
        failpoints.disarm()


def met(failpoints: Failpoints) -> set[str]:
    return set(+failpoints.met())


def lock_is_free(log: Path) -> bool:
    fd = os.open(log / "append.lock", os.O_RDWR)
    try:
        return try_lock(fd)
    finally:
        os.close(fd)


# Deaths


def die_inside(channel: Channel, folder: Path, scene: str, share: int, seed: int) -> sweep.Tally:
    chance = random.Random(seed) if share else None
    return sweep.sweep(folder, sweep.SCENES[scene], "core", chance, share, channel.send)


@pytest.mark.parametrize(
    ("scene", "share", "at_least"),
    [
        ("append", 0, 100),
        ("large batches", 0, 20),
        ("mapped", 50, 40),
        pytest.param("mapped", 0, 200, marks=pytest.mark.slow),
    ],
)
def test_a_death_at_every_moment_inside_loses_nothing(
    child: Start, memory: Path, scene: str, share: int, at_least: int, seed: int
) -> None:
    running = child(die_inside, memory, scene, share, seed)
    while (told := running.next())[0] == "message":
        pass
    assert told[0] == "result" and told[1].died >= at_least, told


@pytest.mark.parametrize("before", [1, 2, 3])
def test_who_opens_a_log_behind_a_death_in_the_filled_state_need_not_recover(
    log: Path, failpoints: Failpoints, before: int
) -> None:
    """At each of its fields, over a copy of each kind: of the making of the log, of one entry, of several."""

    def victim(field: int) -> None:
        with appends_by(failpoints.module), WALWriter(log) as writer:
            writer._handle.open().appender.waits.sample = False
            for number in range(before):
                writer.append_batch([WALEntry.put(b"before", bytes(9 * number), 1)] * (1 + number % 2))
            failpoints.arm("filling", KILL, field)
            writer.append_batch([WALEntry.put(b"victim", b"larger than any", 1)] * 2)

    for field in range(len(LogState._fields)):
        pid = os.fork()
        if pid == 0:
            in_child(lambda: victim(field))  # noqa: B023
        assert reap(pid) == -signal.SIGKILL
        with WALWriter(log) as writer:
            assert writer.recovery_report is None, (field, writer.recovery_report)


@pytest.mark.parametrize("writer", EACH_WAY, indirect=True)
def test_every_failpoint_is_met_by_a_plain_append(writer: WALWriter, failpoints: Failpoints) -> None:
    handle = writer._handle.open()
    handle.log.control.words[64] = 1  # somebody waits for it to grow
    writer.put(b"key", b"value")
    writer.put(b"key", LARGE)
    mapped = writer._handle.options.mapped
    assert met(failpoints) == {*MOMENTS, *CALLS} - (set(WRITES) if mapped else {"storing"})
    assert len(MOMENTS) == len(set(MOMENTS)) >= 10


@contextmanager
def stopped(
    log: Path, failpoints: Failpoints, moment: str, value: bytes = b"value", mapped: bool = False
) -> Iterator[None]:
    """Inside, another process stands still at that moment of its second append; then it goes on, and ends."""

    def victim() -> None:
        with appends_by(failpoints.module), WALWriter(log, mapped=mapped) as writer:
            writer.put(b"victim", b"")
            writer._handle.open().appender.waits.sample = False
            failpoints.arm(moment, STOP)
            writer.put(b"victim", value)

    pid = os.fork()
    if pid == 0:
        in_child(victim)
    try:
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]), f"it did not come to {moment}"
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
        assert reap(pid) == 0


@pytest.fixture
def other(log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WALWriter]:
    """Of Python, in this process."""
    monkeypatch.setattr(appender, "LOOK_NS", 1 << 60)  # a victim, too, is plain however long it takes
    with appends_by(None), WALWriter(log) as writer:
        yield writer


@EACH_SIZE
@pytest.mark.parametrize(("moment", "mapped"), EACH_MOMENT)
def test_the_lock_is_held_from_the_look_to_the_publication_while_it_stands_still(
    log: Path, failpoints: Failpoints, other: WALWriter, moment: str, mapped: bool, value: bytes
) -> None:
    control = other._handle.open().log.control
    with stopped(log, failpoints, moment, value, mapped):
        assert lock_is_free(log) is (moment in ("entered", "unlocked")), moment
        is_there = moment in ("committed", "unlocking", "unlocked")
        state = control.state()
        assert (state.next_lsn, state.batches) == ((3, 2) if is_there else (2, 1)), moment
        if moment in ("intent", "storing", "written", "filling", "filled"):
            assert control.appending_slot(control.words[COMMIT]) == 1
    assert [(entry.key, bytes(entry.value)) for entry in read_log(log)] == [(b"victim", b""), (b"victim", value)]


def test_what_comes_first_is_seen_by_who_is_about_to_take_the_lock(
    log: Path, failpoints: Failpoints, other: WALWriter
) -> None:
    with stopped(log, failpoints, "entered"):
        assert other.put(b"other", b"") == 2
    assert [entry.key for entry in read_log(log)] == [b"victim", b"other", b"victim"]


@EACH_SIZE
def test_who_falls_asleep_before_the_publication_is_woken_behind_it(
    log: Path, failpoints: Failpoints, other: WALWriter, value: bytes
) -> None:
    words = other._handle.open().log.control.words
    with stopped(log, failpoints, "filled", value):
        words[GROWTH] = 1
        woken = words[GROWTH + 1]
    assert words[GROWTH] == 0 and words[GROWTH + 1] != woken


def test_a_stopped_log_is_not_appended_to(writer: WALWriter) -> None:
    control = writer._handle.open().log.control
    control.halves[STOPPED] = POISONED
    with pytest.raises(SyncFailed):
        writer.put(b"key", b"")
    control.halves[STOPPED] = 0
    assert writer.put(b"key", b"") == 2


def test_a_segment_is_not_longer_than_it_may_be(log: Path, failpoints: Failpoints) -> None:
    with appends_by(failpoints.module), WALWriter(log, size_limit=4096) as writer:
        for number in range(200):
            writer.put(b"key", bytes(number % 90), number)
    sizes = [file.stat().st_size for file in log.glob("*.wal")]
    assert len(sizes) > 3 and max(sizes) <= 4096
    assert [entry.timestamp for entry in read_log(log)] == list(range(200))


def test_what_has_to_be_looked_at_is_looked_at(writer: WALWriter, failpoints: Failpoints) -> None:
    place = writer._handle.open().appender
    core = place.core
    assert core is not None
    now, ready = calls.time_ns(), (*place.active[:3], place.ready_to)
    for plain, *when in [
        (True, 1 << 40, now - HOUR_NS, now + HOUR_NS),
        (False, 3, now - HOUR_NS, now + HOUR_NS),
        (False, 1 << 40, now + HOUR_NS, now + 2 * HOUR_NS),
        (False, 1 << 40, now - 2 * HOUR_NS, now - HOUR_NS),
    ]:
        core.ready(*ready, *when, None)
        assert bool(core.put(b"key", b"", None)) is plain, when
    core.ready(place.active.first_lsn + 1, *ready[1:], 1 << 40, 0, 1 << 62, None)
    assert not core.put(b"key", b"", None)
    core.ready(ready[0], ready[1] ^ 1, *ready[2:], 1 << 40, 0, 1 << 62, None)
    assert not core.put(b"key", b"", None)


def test_the_clock_may_be_set_back_and_appended_at_does_not_go_back(log: Path, writer: WALWriter) -> None:
    control = writer._handle.open().log.control
    late_ns = calls.time_ns() + HOUR_NS
    control.words[COPIES[control.words[COMMIT] & 1] // 8 + LogState._fields.index("last_append_ns")] = late_ns
    writer.put(b"key", b"")
    with WALReader(log) as reader:
        assert [batch.appended_at >= late_ns for batch in reader.batches()] == [False, True]


def test_what_is_counted_counts_beyond_what_32_bits_hold(writer: WALWriter) -> None:
    row = writer._handle.open().row
    assert row is not None
    row.words[BYTES] = before = (1 << 40) + 5
    writer.put(b"key", b"value")
    assert row.words[BYTES] == before + 48 + 16 + 8


# Errors


@EACH_SIZE
@pytest.mark.parametrize(("call", "number"), [(call, number) for call, numbers in CALLS.items() for number in numbers])
def test_a_call_that_fails_inside_is_made_by_python(
    log: Path, writer: WALWriter, failpoints: Failpoints, call: str, number: int, value: bytes
) -> None:
    failpoints.arm(call, number)
    assert writer.put(b"key", value, 1) == 2
    failpoints.disarm()
    assert lock_is_free(log)
    assert writer.append_batch([WALEntry.put(b"batch", value, 2)] * 3) == range(3, 6)
    assert met(failpoints) >= {"committed"}, "and the next one is plain again"
    assert [(entry.key, bytes(entry.value)) for entry in read_log(log)] == [
        (b"first", b""), (b"key", value), *[(b"batch", value)] * 3,
    ]  # fmt: skip
    counted = writer.metrics.snapshot()
    assert (counted.writes_total, counted.batches_total, counted.writers[0].entries) == (5, 3, 5)


def write_too_much(channel: Channel, log: Path, value: bytes, room: int) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with WALWriter(log) as writer:
        writer.put(b"first", b"")
        tail = writer.size
        resource.setrlimit(resource.RLIMIT_FSIZE, (tail + room, resource.RLIM_INFINITY))
        with pytest.raises(Exception, match="nothing was appended"):
            writer.put(b"key", value)
        (segment,) = log.glob("*.wal")
        assert segment.read_bytes()[tail:].strip(b"\0") == b"", "what was written of it is zeros again"
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert writer.put(b"key", value) == 2
    assert [bytes(entry.value) for entry in read_log(log)] == [b"", value]


@EACH_SIZE
@pytest.mark.parametrize("room", [0, 10, 60])
def test_a_write_that_finds_no_room_is_undone_and_said(child: Start, log: Path, value: bytes, room: int) -> None:
    child(write_too_much, log, value, room).result()


# Interrupts


class Interrupt(BaseException):
    pass


@pytest.fixture
def handler() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Has something done at SIGUSR1."""
    before = signal.getsignal(signal.SIGUSR1)

    def have(do: Callable[[], object]) -> None:
        def handle(number: int, frame: FrameType | None) -> None:
            do()

        signal.signal(signal.SIGUSR1, handle)

    yield have
    signal.signal(signal.SIGUSR1, before)


def interrupt() -> None:
    raise Interrupt


@EACH_SIZE
@pytest.mark.parametrize(
    ("moment", "writer"), [each for each in EACH_MOMENT if each[0] == "storing" or not each[1]], indirect=["writer"]
)
def test_a_signal_at_any_moment_is_handled_behind_the_append(
    log: Path, writer: WALWriter, failpoints: Failpoints, handler: Callable[..., None], moment: str, value: bytes
) -> None:
    inner: list[int] = []
    handler(lambda: inner.append(writer.put(b"inner", value)))
    failpoints.arm(moment, SIGNAL)
    assert writer.put(b"outer", value) == 2
    assert inner == [3]
    handler(interrupt)
    failpoints.arm(moment, SIGNAL)
    with pytest.raises(Interrupt):
        writer.put(b"interrupted", value)
    assert lock_is_free(log)
    run_threads(lambda: writer.put(b"thread", value))
    assert [entry.key for entry in read_log(log)] == [b"first", b"outer", b"inner", b"interrupted", b"thread"]


def test_who_forks_in_a_handler_behind_an_append_has_a_writer_of_its_own(
    log: Path, writer: WALWriter, failpoints: Failpoints, handler: Callable[..., None]
) -> None:
    children: list[int] = []

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            in_child(lambda: (writer.put(b"child", b""), writer.close()))
        children.append(pid)

    handler(fork)
    failpoints.arm("committed", SIGNAL)
    assert writer.put(b"parent", b"") == 2
    assert [reap(pid) for pid in children] == [0]
    writer.put(b"parent", b"")
    assert [entry.key for entry in read_log(log)] == [b"first", b"parent", b"child", b"parent"]


def test_a_child_of_a_fork_that_python_does_not_know_of_is_not_let_in(writer: WALWriter) -> None:
    core = writer._handle.open().appender.core
    assert core is not None
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        os._exit(bool(core.put(b"key", b"", None) or core.append(bytes(20), 1, 20)))
    assert reap(pid) == 0
    assert core.put(b"key", b"", None) == 2


def wait_for_the_lock(channel: Channel, log: Path) -> float:
    """How long an interrupt took."""
    failpoints = Failpoints(built())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with appends_by(failpoints.module), WALWriter(log) as writer:
        writer.put(b"first", b"")
        failpoints.disarm()
        waits = writer._handle.open().appender.waits
        waits.sample, waits.contended = False, 8  # it waits at once
        channel.send("waits")
        channel.receive()
        with suppress(KeyboardInterrupt):
            writer.put(b"key", b"value")
            raise AssertionError("nobody interrupted it")
        took_s = time.monotonic() - channel.receive()
        assert met(failpoints) == {"entered", "flock"}, "it waited in the core, and had it not"
        assert writer.put(b"key", b"value") == 2
    return took_s


def test_who_waits_for_the_lock_answers_an_interrupt_at_once(child: Start, log: Path) -> None:
    WALWriter(log).close()
    fd = os.open(log / "append.lock", os.O_RDWR)
    waiting = child(wait_for_the_lock, log)
    assert waiting.receive() == "waits"
    calls.flock(fd, TRY_EX)
    waiting.send("go on")
    held = time.monotonic()
    until(lambda: time.monotonic() > held + 0.2, "it waits")
    os.kill(waiting.pid, signal.SIGINT)
    waiting.send(time.monotonic())
    until(lambda: time.monotonic() > held + 1.0, "it has answered")
    calls.flock(fd, LOCK_UN)
    os.close(fd)
    assert waiting.result() < 0.25


def test_other_threads_go_on_while_one_waits_for_the_lock(log: Path, writer: WALWriter, failpoints: Failpoints) -> None:
    writer._handle.open().appender.waits.contended = 8
    fd = os.open(log / "append.lock", os.O_RDWR)
    calls.flock(fd, TRY_EX)
    thread = threading.Thread(target=writer.put, args=(b"key", b"value"))
    thread.start()
    until(lambda: failpoints.met()["entered"] == 1, "it waits in the core")
    calls.flock(fd, LOCK_UN)
    os.close(fd)
    thread.join()
    assert met(failpoints) >= {"committed"}
    assert [entry.key for entry in read_log(log)] == [b"first", b"key"]


# Who is what


def test_what_is_not_plain_is_pythons(log: Path, writer: WALWriter, failpoints: Failpoints) -> None:
    core = writer._handle.open().appender.core
    assert core is not None
    key, value = b"key", b"value"
    too_large = bytes((10 << 20) + 1)
    for odd in [(bytearray(key), value, 1), (key, memoryview(value), 1), (key, value, -1), (key, value, 1 << 64),
                (key, value, True), (key, too_large, 1), (too_large, value, 1), (key,)]:  # fmt: skip
        assert core.put(*odd) == 0
    for odd in [(bytearray(3), 1, 1), (b"", 0, 1), (b"", -1, 1), (b"", 1 << 32, 1), (b"", 1, "1"), ()]:
        assert core.append(*odd) == 0
    assert not met(failpoints), "not even the lock was taken"
    chores = writer._handle.open().chores
    chores.ask()
    assert core.put(key, value, None) == 0
    chores.do()
    assert core.put(key, value, None) == 2
    writer.rotate()
    assert core.put(key, value, None) == 0
    writer.put(key, value)
    assert core.put(key, value, None) == 4
    with WALWriter(log) as other:
        other.rotate()
        other.put(key, value)
        assert core.put(key, value, None) == 0
    writer.close()
    assert core.put(key, value, None) == core.append(b"x" * 20, 1, 20) == 0


def test_a_thread_in_the_middle_of_its_own_append_is_not_let_in(log: Path, writer: WALWriter) -> None:
    place = writer._handle.open().appender
    core = place.core
    assert core is not None
    with place._mutex:
        assert core.put(b"key", b"value", None) == 0
        answers: list[int] = []
        run_threads(lambda: answers.append(core.put(b"key", b"value", None)))
        assert answers == [0]
    assert core.put(b"key", b"value", None) == 2


@pytest.mark.parametrize("name", ["flock", "pwrite", "time_ns", "monotonic", "futex_wake"])
def test_who_replaces_a_call_before_a_log_is_opened_sees_it_made(
    log: Path, monkeypatch: pytest.MonkeyPatch, failpoints: Failpoints, name: str
) -> None:
    real = getattr(calls, name)
    monkeypatch.setattr(calls, name, lambda *args: real(*args))
    with appends_by(failpoints.module), WALWriter(log) as writer:
        assert writer._handle.open().appender.core is None
        assert writer._handle.hot_put is None


def test_a_frame_is_the_same_bytes_whoever_wrote_it(tmp_path: Path, failpoints: Failpoints, seed: int) -> None:
    chance = random.Random(seed)
    batches = [
        [WALEntry.put(chance.randbytes(9), chance.randbytes(chance.choice([0, 9, 4000, 5000, 80_000])), at)
         for at in range(chance.choice([1, 1, 2, 31, 32, 33, 100]))]
        for _ in range(30)
    ]  # fmt: skip
    told = []
    for name, core in (("python", None), ("core", failpoints.module)):
        with appends_by(core), WALWriter(tmp_path / name, name="w") as writer:
            for batch in batches:
                if len(batch) == 1:
                    writer.put(batch[0].key, batch[0].value, batch[0].timestamp)
                else:
                    writer.append_batch(batch)
            snapshot = writer.metrics.snapshot()
            state = writer._handle.open().log.control.state()
        with WALReader(tmp_path / name) as reader:
            frames = [(each.first_lsn, [tuple(entry) for entry in each.entries]) for each in reader.batches()]
        told.append((
            frames, snapshot.batch_entries, snapshot.writers[0].batches, snapshot.writers[0].bytes,
            snapshot.writers[0].entries, state._replace(marker=0, last_append_ns=0),
        ))  # fmt: skip
    assert told[0] == told[1]
    assert failpoints.met()["committed"] > 0


# Beside Python's


def append_until_killed(log: Path, acks: Path, name: str, mode: SyncMode, core: object, mapped: bool) -> None:
    ledger = Ledger(acks, name)
    with appends_by(core), WALWriter(log, mode, 30_000, mapped=mapped) as writer:  # type: ignore[arg-type]
        for op in range(1 << 60):
            ledger.append(writer, op)


class Mixed:
    """Writers of both kinds. Those of the core may die by themselves, at a failpoint."""

    def __init__(self, log: Path, acks: Path, mode: SyncMode, chance: random.Random) -> None:
        self._log, self._acks, self._mode, self._chance = log, acks, mode, chance
        self._failpoints = Failpoints(built())
        self.living: dict[str, int] = {}
        self.died = 0

    def start(self, number: int) -> None:
        name = f"{'core' if number % 2 else 'python'}{number}"
        core = self._failpoints.module if number % 2 else None
        mapped = MAPPED and self._mode is SyncMode.NORMAL and number % 4 in (1, 2)
        self._failpoints.arm(self._chance.choice(MOMENTS), KILL, self._chance.randrange(400))
        pid = os.fork()
        if pid == 0:
            in_child(lambda: append_until_killed(self._log, self._acks, name, self._mode, core, mapped))
        self.living[name] = pid

    def _is_dead(self, name: str) -> bool:
        pid, status = os.waitpid(self.living[name], os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, name
            del self.living[name]
            self.died += 1
        return bool(pid)

    def _acknowledged(self, name: str) -> int:
        file = self._acks / name
        return file.stat().st_size if file.exists() else 0

    def go_on(self) -> None:
        """Until each has appended, or is dead."""
        for name in list(self.living):
            until(partial(self._goes_on, name, self._acknowledged(name)), f"{name} goes on")

    def _goes_on(self, name: str, before: int) -> bool:
        return self._acknowledged(name) > before or self._is_dead(name)

    def kill(self, name: str) -> None:
        if not self._is_dead(name):
            os.kill(self.living[name], signal.SIGKILL)
            assert reap(self.living.pop(name)) == -signal.SIGKILL


def kill_mixed_writers(channel: Channel, log: Path, acks: Path, mode: SyncMode, seed: int) -> int:
    """How many died inside of the core."""
    chance = random.Random(seed)
    acks.mkdir()
    mixed = Mixed(log, acks, mode, chance)
    for number in range(24):
        mixed.start(number)
        if len(mixed.living) == 4:
            mixed.go_on()
            if mixed.living:
                mixed.kill(chance.choice(list(mixed.living)))
            mixed.go_on()
    for name in list(mixed.living):
        mixed.kill(name)
    told: dict[str, list[Ack]] = Ledger.read_all(acks)
    judge(read_log(log), told, {name: [theirs[-1].op + 1 if theirs else 0] for name, theirs in told.items()})
    with WALWriter(log, size_limit=30_000) as writer:
        assert writer.recovery_report is None
        append_op(writer, "after", 0)
    return mixed.died


@pytest.mark.parametrize("mode", [SyncMode.NORMAL, SyncMode.FULL])
def test_writers_of_both_kinds_lose_nothing_when_one_after_another_is_killed(
    child: Start, log: Path, tmp_path: Path, mode: SyncMode, seed: int
) -> None:
    print(child(kill_mixed_writers, log, tmp_path / "acks", mode, seed).result(), "died inside of the core")


def test_threads_of_both_kinds_lose_nothing(log: Path, failpoints: Failpoints) -> None:
    told: dict[str, list[Ack]] = {}

    def append(writer: WALWriter, name: str) -> None:
        told[name] = []
        for op in range(300):
            lsns = append_op(writer, name, op)
            told[name].append(Ack(op, lsns.start, lsns.stop))

    with appends_by(None):
        python = WALWriter(log, size_limit=30_000)
    with appends_by(failpoints.module):
        core = WALWriter(log, size_limit=30_000)
    with python, core:
        run_threads(*(partial(append, which, f"{kind}{thread}")
                      for kind, which in (("python", python), ("core", core)) for thread in range(2)))  # fmt: skip
        assert sum(row.batches for row in core.metrics.snapshot().writers) == 4 * 300
    judge(read_log(log), told, {})
