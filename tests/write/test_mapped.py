"""mapped=True: what is stored is what would have been written, where a store cannot fail, and nowhere else."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.crash.failpoints import appends_by
from tests.crash.taps import Call, kill_self, tapped
from tests.support import Ack, Channel, Start, append_op, judge, read_log, reap, run_threads
from walpool import LogFull, SyncMode, UnsafeLog, Unsupported, WALEntry, WALReader, WALWriter
from walpool.native.select import core_in_use
from walpool.system.calls import calls
from walpool.system.mapped import STORES_KEEP_THEIR_ORDER
from walpool.write import appender, coordinator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stores into mapped segments are for Linux")
by_either = pytest.mark.parametrize(
    "core",
    [
        pytest.param(False, marks=pytest.mark.skipif(not STORES_KEEP_THEIR_ORDER, reason="Python writes here")),
        pytest.param(True, marks=pytest.mark.skipif(not core_in_use, reason="the core does not run")),
    ],
    ids=["python", "core"],
)
MIB = 1 << 20


@pytest.fixture
def log(memory: Path) -> Path:
    return memory / "events.wal"


@pytest.fixture
def old_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(calls, "madvise", refuse)


@contextmanager
def opened(log: Path, core: bool = False, **options: Any) -> Iterator[WALWriter]:
    with appends_by(core), WALWriter(log, mapped=True, **options) as writer:
        yield writer


def is_mapped(writer: WALWriter) -> bool:
    return writer._handle.open().appender.active.mapped is not None


def mapped_segments(log: Path) -> list[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split(maxsplit=5)[5] for line in lines if str(log) in line and ".wal" in line.rsplit("/", 1)[-1]]


def first_hole(writer: WALWriter) -> int:
    """Behind the tail."""
    return os.lseek(writer._handle.open().appender.active.fd, writer.size, os.SEEK_HOLE)


# What is stored


@by_either
def test_what_is_stored_is_what_would_be_written(log: Path, memory: Path, core: bool) -> None:
    entries = [WALEntry.put(b"%d" % at, bytes([at % 256]) * (at * 37 % 6000), at) for at in range(1, 300)]
    with appends_by(core), WALWriter(log, mapped=True, size_limit=100_000) as mapped:
        with WALWriter(memory / "plain", size_limit=100_000) as plain:
            for writer in (mapped, plain):
                for entry in entries[:200]:
                    writer.append(entry)
                writer.append_batch(entries[200:220])
                writer.put(b"", b"x" * 90_000, 0)
        assert is_mapped(mapped)
    assert [tuple(entry) for entry in read_log(log)] == [tuple(entry) for entry in read_log(memory / "plain")]
    assert sorted(path.name for path in log.glob("*.wal")) == sorted(p.name for p in (memory / "plain").glob("*.wal"))


@pytest.mark.skipif(not STORES_KEEP_THEIR_ORDER, reason="Python writes here")
def test_an_append_makes_no_call_but_for_the_lock(log: Path) -> None:
    made: Counter[str] = Counter()

    def tap(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made[name] += 1
        return call(*args, **kwargs)

    with tapped(tap), WALWriter(log, mapped=True) as writer:
        writer.put(b"first", b"")
        made.clear()
        for _ in range(100):
            writer.put(b"key", b"value")
    assert made["store"] == 100 and made["flock"] >= 200
    assert made["pwrite"] < 10, "of a hundred puts none is written: the rest is what closing takes"


@by_either
def test_who_reads_and_who_syncs_see_what_another_process_has_stored(log: Path, core: bool) -> None:
    with opened(log, core) as mapped, WALWriter(log, SyncMode.FULL) as full, WALReader(log) as reader:
        for round_ in range(20):
            assert mapped.put(b"mapped", b"%d" % round_) == 2 * round_ + 1
            assert full.put(b"full", b"%d" % round_) == 2 * round_ + 2, "its sync is for both"
            assert full.metrics.snapshot().durable_lsn == 2 * round_ + 2
            assert [entry.key for entry in reader] == [b"mapped", b"full"]


@by_either
@pytest.mark.usefixtures("old_linux")
def test_every_store_has_a_place_that_was_written(log: Path, core: bool) -> None:
    """Ahead of it there are zeros on the disk, and no hole."""
    with opened(log, core, size_limit=3 * MIB) as writer:
        for size in [10, 100_000, 10, MIB, MIB - 5000, 10, 4096, 2 * MIB, 10]:
            writer.put(b"key", bytes(size))
            place = writer._handle.open().appender
            assert place.active.mapped is not None
            assert writer.size <= place.ready_to <= len(place.active.mapped) <= 3 * MIB
            assert place.ready_to <= first_hole(writer)
    assert [len(entry.value) for entry in read_log(log)][-1] == 10


@by_either
@pytest.mark.usefixtures("old_linux")  # a newer one would fill the hole when it fetches pages
def test_a_hole_behind_the_tail_is_written_before_anything_is_stored_there(log: Path, core: bool) -> None:
    with opened(log, core, size_limit=4 * MIB) as writer, WALWriter(log, size_limit=4 * MIB) as other:
        other.put(b"first", b"")
        (segment,) = log.glob("*.wal")
        os.truncate(segment, 4 * MIB)  # FULL leaves one like it where the frame before its zeros is refused
        assert first_hole(other) <= 4096
        for size in (10, 5000, 10):
            writer.put(b"key", bytes(size))
            assert is_mapped(writer) and writer._handle.open().appender.ready_to <= first_hole(writer)
        assert first_hole(writer) >= MIB
    assert len(read_log(log)) == 4


@by_either
def test_a_prepared_segment_is_mapped_once(log: Path, monkeypatch: pytest.MonkeyPatch, core: bool) -> None:
    with opened(log, core, size_limit=4 * MIB) as writer:
        writer.put(b"first", b"")
        coordinator_of(writer).wake()
        until_idle(writer)
        writer.rotate()
        writer.put(b"key", bytes(100))
        view = writer._handle.open().appender.active.mapped
        assert view is not None and len(view) == 4 * MIB
        for _ in range(5):
            writer.put(b"key", bytes(700_000))
        assert writer._handle.open().appender.active.mapped is view


def coordinator_of(writer: WALWriter) -> coordinator.Coordinator:
    return writer._handle.open().coordinator


def until_idle(writer: WALWriter) -> None:
    thread = coordinator_of(writer)._thread
    if thread is not None:
        thread.join()


# What is let go of


@by_either
def test_nothing_stays_mapped_behind_a_rotation_or_a_close(log: Path, core: bool) -> None:
    with opened(log, core) as writer, WALWriter(log) as other:
        writer.put(b"key", b"")
        assert len(mapped_segments(log)) == 1
        writer.rotate()
        assert not mapped_segments(log)
        writer.put(b"key", b"")
        other.rotate()
        other.put(b"key", b"")
        writer.put(b"key", b"")
        (segment,) = mapped_segments(log)
        assert segment.endswith(f"{3:020d}.wal")
    assert not mapped_segments(log)


@by_either
def test_a_child_stores_into_a_mapping_of_its_own(log: Path, core: bool) -> None:
    with opened(log, core) as writer:
        writer.put(b"parent", b"")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert not mapped_segments(log), "the parent's is let go of"
                writer.put(b"child", b"")
                code = 0 if is_mapped(writer) else 2
            finally:
                os._exit(code)
        assert reap(pid) == 0
        assert writer.put(b"parent", b"") == 3
    assert [entry.key for entry in read_log(log)] == [b"parent", b"child", b"parent"]


class Interrupt(BaseException):
    pass


@pytest.mark.skipif(not STORES_KEEP_THEIR_ORDER, reason="Python writes here")
def test_a_child_that_was_forked_before_a_store_does_not_make_it(log: Path) -> None:
    """When it comes to it, something else may be there: here its parent was interrupted, and has appended again."""
    armed, parent = [False], os.getpid()
    read_end, write_end = os.pipe()
    children: list[int] = []

    def tap(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "store" and armed[0]:
            armed[0] = False
            if pid := os.fork():
                children.append(pid)
                raise Interrupt
            os.read(read_end, 1)
        return call(*args, **kwargs)

    with tapped(tap), WALWriter(log, mapped=True) as writer:
        writer.put(b"first", b"")
        armed[0] = True
        try:
            lsn = writer.put(b"forked", b"value")
        except Interrupt:
            lsn = writer.put(b"parent", b"other")
        except BaseException:
            os._exit(1)
        if os.getpid() != parent:
            os._exit(0 if lsn == 3 else 2)
        os.write(write_end, b"!")
        assert lsn == 2 and reap(children[0]) == 0
    assert [entry.key for entry in read_log(log)] == [b"first", b"parent", b"forked"]


@pytest.mark.skipif(not STORES_KEEP_THEIR_ORDER, reason="Python writes here")
@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("beside", [True, False], ids=["beside another", "alone"])
def test_who_dies_in_the_middle_of_a_store_has_published_nothing(log: Path, part: float, beside: bool) -> None:
    def tap(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "store" and args[2].endswith(b"last words"):
            mapped, start, data = args
            call(mapped, start, data[: int(part * len(data))])
            kill_self()
        return call(*args, **kwargs)

    WALWriter(log).close()
    other = WALWriter(log) if beside else None
    pid = os.fork()
    if pid == 0:
        with tapped(tap), WALWriter(log, mapped=True) as writer:
            writer.put(b"victim", b"")
            writer.put(b"victim", b"last words")
        os._exit(1)
    assert reap(pid) == -signal.SIGKILL
    assert [entry.lsn for entry in read_log(log)] == [1]
    with other or WALWriter(log) as writer:
        assert writer.put(b"other", b"") == 2
    assert [entry.key for entry in read_log(log)] == [b"victim", b"other"]


# Where it cannot be


@pytest.mark.parametrize("mode", [SyncMode.FULL, SyncMode.NONE])
def test_it_is_for_normal_appends(log: Path, mode: SyncMode) -> None:
    with pytest.raises(ValueError, match=r"mapped is for SyncMode\.NORMAL"):
        WALWriter(log, mode, mapped=True)
    with pytest.raises(TypeError):
        WALWriter(log, mapped=1)  # type: ignore[arg-type]


def test_where_nothing_can_be_mapped_frames_are_written(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: Counter[str] = Counter()
    refusing = {"mmap"}

    def tap(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name in refusing and (name != "mmap" or args[1] > 100_000):
            refused[name] += 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return call(*args, **kwargs)

    with tapped(tap), WALWriter(log, mapped=True, size_limit=16 * MIB) as writer:
        for name in ("mmap", "madvise", "lseek"):
            refusing.clear()
            writer.put(b"key", bytes(MIB))
            assert is_mapped(writer) is True
            refusing.add(name)
            writer.put(b"key", bytes(MIB))
            assert not is_mapped(writer) and refused[name] == 1, name
        refusing.clear()
        writer.put(b"key", bytes(2 * MIB))
        assert is_mapped(writer), "it is tried again further on"
    assert len(read_log(log)) == 7


@pytest.mark.usefixtures("old_linux")
def test_an_older_linux_fetches_page_by_page(log: Path) -> None:
    with WALWriter(log, mapped=True) as writer:
        writer.put(b"key", b"value")
        assert is_mapped(writer)


def test_a_file_system_where_stores_may_fail_is_refused(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "statfs", lambda fd: (0x9123683E).to_bytes(8, sys.byteorder) + bytes(112))
    with pytest.raises(Unsupported, match=r"btrfs.*leave mapped out"):
        WALWriter(log, mapped=True)
    WALWriter(log).close()


def fill_to_a_limit(channel: Channel, log: Path, core: bool) -> None:
    """A limit on the size of files stands for a full disk: zeros ahead are refused, too."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    acks: list[Ack] = []
    op = 0
    with opened(log, core) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        with pytest.raises(LogFull, match="nothing was appended"):
            while True:
                lsns = append_op(writer, "w", op)
                acks.append(Ack(op, lsns.start, lsns.stop))
                op += 1
        judge(read_log(log), {"w": acks})
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        for later in range(op, op + 50):
            lsns = append_op(writer, "w", later)
            acks.append(Ack(later, lsns.start, lsns.stop))
        assert is_mapped(writer)
    judge(read_log(log), {"w": acks})


@by_either
def test_without_room_it_is_refused_and_goes_on_when_there_is(child: Start, log: Path, core: bool) -> None:
    child(fill_to_a_limit, log, core).result()


# Others


def fail_beside_it(channel: Channel, log: Path, core: bool) -> None:
    """Another process's write ends in the middle, ahead of what was written: the mapped file keeps its length."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with opened(log, core, size_limit=MIB) as writer, WALWriter(log, size_limit=8 * MIB) as larger:
        writer.put(b"mapped", bytes(1000))
        ahead = writer._handle.open().appender.ready_to
        assert ahead == MIB
        for room in (ahead + 5000, ahead - 5000, writer.size + 100):
            size = next(iter(log.glob("*.wal"))).stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            with pytest.raises(LogFull):
                larger.put(b"refused", bytes([255]) * (2 * MIB))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert next(iter(log.glob("*.wal"))).stat().st_size >= size
            writer.put(b"mapped", bytes(100_000))
        segment = next(iter(log.glob("*.wal"))).read_bytes()
        assert not segment[writer.size :].strip(b"\0"), "what was refused left nothing"
    assert {entry.key for entry in read_log(log)} == {b"mapped"}


@by_either
def test_a_write_that_fails_beside_it_does_not_shorten_the_file(child: Start, log: Path, core: bool) -> None:
    child(fail_beside_it, log, core).result()


@by_either
def test_a_sealed_segment_is_trimmed_and_the_next_stores_go_elsewhere(log: Path, core: bool) -> None:
    with opened(log, core, size_limit=4 * MIB) as writer, WALWriter(log, size_limit=4 * MIB) as other:
        for round_ in range(6):
            writer.put(b"key", bytes(10_000))
            other.rotate()
            coordinator_of(other).wake()
            until_idle(other)
            assert (log / f"{round_ + 1:020d}.wal").stat().st_size < 20_000, "its zeros are given back"
    assert len(read_log(log)) == 6


@by_either
def test_a_segment_that_somebody_has_cut_off_is_seen_at_the_next_look(
    log: Path, monkeypatch: pytest.MonkeyPatch, core: bool
) -> None:
    monkeypatch.setattr(appender, "LOOK_NS", 0)  # each append looks
    with opened(log, core) as writer:
        writer.put(b"key", b"value")
        (segment,) = log.glob("*.wal")
        os.truncate(segment, writer.size)
        with pytest.raises(UnsafeLog, match=r"cut below the bytes in use.*nothing was appended"):
            writer.put(b"key", b"value")
    assert len(read_log(log)) == 1


def be_cut_off(channel: Channel, log: Path, core: bool) -> None:
    with opened(log, core) as writer:
        appender.LOOK_NS = 1 << 60
        writer._handle.open().appender.next_look_ns = 0
        writer.put(b"key", b"value")
        (segment,) = log.glob("*.wal")
        os.truncate(segment, 4096)
        channel.send("cut")
        while True:
            writer.put(b"key", b"value")


@by_either
def test_the_price_whoever_cuts_it_off_meanwhile_kills_the_process(child: Start, log: Path, core: bool) -> None:
    victim = child(be_cut_off, log, core)
    assert victim.receive() == "cut"
    assert victim.died() == -signal.SIGBUS
    with WALWriter(log) as writer:
        assert writer.put(b"after", b"") > 2, "and nothing else is lost"
    assert {entry.key for entry in read_log(log)} == {b"key", b"after"}


@by_either
def test_mapped_and_plain_writers_and_threads_share_a_log(log: Path, core: bool) -> None:
    told: dict[str, list[Ack]] = {}

    def append(writer: WALWriter, name: str) -> None:
        told[name] = []
        for op in range(200):
            lsns = append_op(writer, name, op)
            told[name].append(Ack(op, lsns.start, lsns.stop))

    with (
        opened(log, core, size_limit=30_000) as mapped,
        opened(log, size_limit=50_000) as python,
        WALWriter(log, size_limit=30_000) as plain,
    ):
        writers = {"mapped": mapped, "python": python, "plain": plain, "more": mapped}
        run_threads(*(partial(append, writer, name) for name, writer in writers.items()))
    judge(read_log(log), told, {})
