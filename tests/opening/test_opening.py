"""Opening a log to append to it: what is believed, what is finished, what is looked at, and what is refused."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.crash.faults import Killed, killed_at, watched
from tests.format import layout
from tests.read.logs import contents, copy_of, entries, entry_of, fill, leave_behind_tail, make, read, segment_files
from tests.support import Channel, Start
from walpool import IOFailed, LogBusy, RecoveryMode, UnsafeLog, WALError, WALHeader, WALWriter
from walpool.opening.opening import OpenLog, open_log
from walpool.shared.control import COMMIT, INTENT, STATE, Control
from walpool.shared.slot_rows import ROW_BYTES
from walpool.system.calls import calls
from walpool.system.files import Directory
from walpool.upkeep.verify import verify

COUNT = 14


def intent(log: Path, under_way: bool) -> None:
    """Say that an append is under way, as a killed one leaves it, or that none is."""
    block = bytearray((log / "control").read_bytes())
    commit = int.from_bytes(block[COMMIT * 8 : COMMIT * 8 + 8], "little")
    block[INTENT * 8 : INTENT * 8 + 8] = (commit + under_way).to_bytes(8, "little")
    with (log / "control").open("r+b") as file:
        file.write(block)


def marker_of(file: Path) -> int:
    return WALHeader.decode(file.read_bytes()).marker


# A clean log


def test_a_clean_log_opens_without_recovery(log: Path) -> None:
    make(log, COUNT)
    for _ in range(3):
        with WALWriter(log) as writer:
            assert writer.recovery_report is None
    assert read(log).entries == entries(1, COUNT + 1)


def test_opening_and_closing_changes_no_segment(log: Path) -> None:
    make(log, COUNT)
    before = {name: data for name, data in contents(log).items() if name.endswith(".wal")}
    WALWriter(log).close()
    assert {name: data for name, data in contents(log).items() if name.endswith(".wal")} == before


def test_opening_a_clean_log_reads_only_its_last_segment(log: Path) -> None:
    make(log, 200)
    assert len(segment_files(log)) > 30
    with watched() as trace:
        WALWriter(log).close()
    opened = {str(name) for name, _ in trace.of("open") if "/" not in str(name) and str(name).endswith(".wal")}
    assert opened == {segment_files(log)[-1].name}


def test_a_synced_log_without_a_control_block_reads_only_its_last_segment(log: Path) -> None:
    """What is durable is known from the last segment, so nothing before it is read."""
    with WALWriter(log, size_limit=400) as writer:
        fill(writer, 200)
        writer.sync()
        writer.rotate()
        writer.append(entry_of(201))
    (log / "control").unlink()
    with watched() as trace, WALWriter(log) as writer:
        assert writer.recovery_report is not None
        assert writer.recovery_report.segments_scanned == 1
    old = {file.name for file in segment_files(log)[:-2]}
    assert not old & {str(name) for name, _ in trace.of("open")}
    assert len(old) > 30
    assert read(log).entries == entries(1, 202)


def test_what_is_read_when_a_log_is_opened_does_not_grow_with_its_last_segment(log: Path) -> None:
    make(log, 3000, size_limit=64 << 20)
    with watched() as trace:
        WALWriter(log).close()
    assert sum(size for _, size in trace.of("pread")) < 2000 + ROW_BYTES
    assert not trace.of("preadv")


# A rotation that was killed half-way

HALVES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"W",
    "half a header": lambda: layout.header(COUNT + 1, sequence=99)[:30],
    "all but a byte": lambda: layout.header(COUNT + 1, sequence=99)[:63],
    "a whole header": lambda: layout.header(COUNT + 1, sequence=99, marker=123),
    "a header of zeros": lambda: bytes(64),
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize(
    ("before_opening", "next_append"), [(True, "rotates"), (True, "fits"), (False, "rotates")], ids=str
)
def test_a_half_done_rotation_is_finished_by_whoever_comes_next(
    log: Path, half: Callable[[], bytes], before_opening: bool, next_append: str
) -> None:
    """The file of the next segment is there; no state names it. The next frame may rotate, or still fit the old one."""
    make(log, COUNT, size_limit=1000)
    place = log / layout.name(COUNT + 1)
    if before_opening:
        place.write_bytes(half())
    with WALWriter(log, size_limit=1000) as writer:
        if not before_opening:
            place.write_bytes(half())
        found = read(log)
        assert (found.entries, found.error) == (entries(1, COUNT + 1), None)
        if next_append == "rotates":
            writer.rotate()
        assert writer.append(entry_of(COUNT + 1)) == COUNT + 1
        fill(writer, 40)
        writer.sync()
    expected = entries(1, COUNT + 42)
    for mode in RecoveryMode:
        found = read(log, mode=mode)
        assert (found.entries, found.error) == (expected, None)
    assert not verify(log).damaged
    found = read(copy_of(log, log.with_name("copy")))
    assert (found.entries, found.error) == (expected, None)
    (log / "control").unlink()
    with WALWriter(log) as writer:
        assert writer.put(b"key", b"value") == COUNT + 42


def test_a_half_done_rotation_is_not_overlooked_because_a_look_at_its_name_fails(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame in the old segment would be behind the new one's first LSN, and lost at the next recovery."""
    make(log, COUNT, size_limit=1000)
    (log / layout.name(COUNT + 1)).write_bytes(HALVES["half a header"]())
    look = calls.stat

    def stat(name: str, **named: Any) -> os.stat_result:
        if name == layout.name(COUNT + 1):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return look(name, **named)

    with WALWriter(log, size_limit=1000) as writer:
        with monkeypatch.context() as failing, pytest.raises(IOFailed):
            failing.setattr(calls, "stat", stat)
            writer.append(entry_of(COUNT + 1))
        assert writer.append(entry_of(COUNT + 1)) == COUNT + 1
    (log / "control").unlink()
    WALWriter(log).close()
    assert read(log).entries == entries(1, COUNT + 2)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another writer"])
def test_a_rotation_killed_at_any_call_is_finished_by_the_next_append(tmp_path: Path, beside: bool) -> None:
    """Whoever comes next may have a frame that still fits the old segment."""
    number = 0
    while True:
        log = tmp_path / str(number)
        other = WALWriter(log, size_limit=1000) if beside else None
        writer = WALWriter(log, size_limit=1000)
        fill(writer, COUNT)
        with killed_at(number) as trace:
            try:
                writer.rotate()
            except Killed:
                pass
        writer.close()
        with other or WALWriter(log, size_limit=1000) as successor:
            assert beside or successor.recovery_report is None, trace.hit
            fill(successor, 30)
            found = read(log)
            assert (found.entries, found.error) == (entries(1, COUNT + 31), None), trace.hit
        found = read(copy_of(log, tmp_path / f"{number}-copy"), mode=RecoveryMode.STRICT)
        assert (found.entries, found.error) == (entries(1, COUNT + 31), None), trace.hit
        if not trace.hit:
            break
        number += 1
    assert number > 3


def test_a_segment_that_nobody_knows_and_that_holds_frames_is_never_written_over(log: Path) -> None:
    make(log, COUNT)
    place = log / layout.name(COUNT + 1)
    data = layout.segment(COUNT + 1, layout.single(COUNT + 1, 3), sequence=99, marker=5)
    with WALWriter(log, size_limit=400) as writer:
        place.write_bytes(data)
        with pytest.raises(UnsafeLog):
            writer.rotate()
    assert place.read_bytes() == data


def test_segments_that_the_block_does_not_know_are_read_when_the_log_is_opened(log: Path) -> None:
    """An old control block, or a file that somebody copied in: the segments are the truth."""
    make(log, COUNT)
    place = log / layout.name(COUNT + 1)
    place.write_bytes(layout.segment(COUNT + 1, layout.single(COUNT + 1, 3), sequence=99, marker=5, durable_lsn=COUNT))
    with WALWriter(log) as writer:
        assert writer.recovery_report is not None
        assert writer.append(entry_of(COUNT + 4)) == COUNT + 4
    assert read(log).entries == entries(1, COUNT + 5)


# An append that was killed


def leftovers(file: Path) -> dict[str, bytes]:
    whole = layout.frame(COUNT + 1, [(1, b"never", b"acknowledged" * 20, 1)], marker=marker_of(file))
    return {"a whole frame": whole, "half a frame": whole[:90], "a header": whole[:48], "one byte": whole[:1]}


@pytest.mark.parametrize("kind", ["a whole frame", "half a frame", "a header", "one byte"])
def test_what_a_killed_append_left_is_covered_by_the_next(log: Path, kind: str) -> None:
    make(log, COUNT, size_limit=4000)
    file = segment_files(log)[-1]
    leave_behind_tail(file, leftovers(file)[kind])
    intent(log, under_way=True)
    assert read(log).entries == entries(1, COUNT + 1)
    with WALWriter(log) as writer:
        assert writer.recovery_report is None
        assert writer.append(entry_of(COUNT + 1)) == COUNT + 1
        found = read(log)
        assert (found.entries, found.error) == (entries(1, COUNT + 2), None)
        fill(writer, 10)
    found = read(log)
    assert (found.entries, found.error) == (entries(1, COUNT + 12), None)
    (log / "control").unlink()
    with WALWriter(log) as writer:
        assert writer.metrics.snapshot().next_lsn == COUNT + 12
    assert read(log).entries == entries(1, COUNT + 12)


def test_a_whole_frame_that_no_append_under_way_explains_makes_the_block_old(log: Path) -> None:
    make(log, COUNT, size_limit=4000)
    file = segment_files(log)[-1]
    leave_behind_tail(file, layout.frame(COUNT + 1, [layout.item(COUNT + 1)], marker=marker_of(file)))
    intent(log, under_way=False)
    with WALWriter(log) as writer:
        assert writer.recovery_report is not None
        assert writer.append(entry_of(COUNT + 2)) == COUNT + 2
    assert read(log).entries == entries(1, COUNT + 3)


@pytest.mark.parametrize("kind", ["half a frame", "a header", "one byte"])
def test_less_than_a_frame_behind_the_tail_does_not_matter(log: Path, kind: str) -> None:
    make(log, COUNT, size_limit=4000)
    file = segment_files(log)[-1]
    leave_behind_tail(file, leftovers(file)[kind])
    intent(log, under_way=False)
    with WALWriter(log) as writer:
        assert writer.recovery_report is None
        assert writer.append(entry_of(COUNT + 1)) == COUNT + 1
    assert read(log).entries == entries(1, COUNT + 2)


def test_an_append_killed_at_any_call_leaves_the_log_as_it_was_and_the_next_goes_on(tmp_path: Path) -> None:
    number = 0
    while True:
        log = tmp_path / str(number)
        writer, seen = kill_in_append(log, number)
        writer.close()
        published = not seen or (seen == "flock" and number > 0)  # only to unlock was left
        with WALWriter(log) as other:
            assert other.recovery_report is None
            first = 6 + published
            assert other.append(entry_of(first)) == first, (number, seen)
        found = read(log)
        assert (found.entries, found.error) == (entries(1, first + 1), None), seen
        if not seen:
            break
        number += 1
    assert number >= 3


def kill_in_append(log: Path, number: int) -> tuple[WALWriter, str]:
    """Five appends, and one that is killed at its call `number`: the writer, and the call."""
    armed = False
    count = -1
    hit = ""

    def before(_: int, name: str) -> None:
        nonlocal count, hit
        if not armed:
            return
        count += 1
        if count >= number:
            hit = hit or name
            raise Killed

    with watched(before):
        writer = WALWriter(log)
        for lsn in range(1, 6):
            writer.append(entry_of(lsn))
        armed = True
        try:
            writer.append(entry_of(6))
        except Killed:
            pass
        armed = False
    return writer, hit


# What is refused


@pytest.mark.parametrize("name", ["control", "append.lock", "sync.lock", "slots.lock", "SEGMENT"])
@pytest.mark.parametrize("plant", ["symlink", "hard link", "fifo", "directory"])
def test_what_is_not_a_plain_file_in_the_place_of_ours_is_refused(
    log: Path, tmp_path: Path, name: str, plant: str
) -> None:
    make(log, COUNT)
    place = segment_files(log)[-1] if name == "SEGMENT" else log / name
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(place.read_bytes())
    before = elsewhere.read_bytes()
    place.unlink()
    {
        "symlink": lambda: place.symlink_to(elsewhere),
        "hard link": lambda: place.hardlink_to(elsewhere),
        "fifo": lambda: os.mkfifo(place),
        "directory": place.mkdir,
    }[plant]()
    with pytest.raises(UnsafeLog):
        WALWriter(log)
    assert elsewhere.read_bytes() == before


@pytest.mark.parametrize("name", ["maintenance.lock", "pins.lock", "sync.failed"])
@pytest.mark.parametrize("plant", ["symlink", "fifo"])
def test_what_only_a_recovery_opens_is_refused_by_it(log: Path, tmp_path: Path, name: str, plant: str) -> None:
    make(log, COUNT)
    (log / "control").unlink()
    (log / name).unlink(missing_ok=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"precious")
    if plant == "symlink":
        (log / name).symlink_to(elsewhere)
    else:
        os.mkfifo(log / name)
    with pytest.raises(UnsafeLog):
        WALWriter(log)
    assert elsewhere.read_bytes() == b"precious"


@pytest.mark.parametrize("plant", ["symlink", "dangling symlink", "file", "fifo", "below a file"])
def test_a_place_that_is_no_directory_is_refused(tmp_path: Path, plant: str) -> None:
    place, elsewhere = tmp_path / "log", tmp_path / "elsewhere"
    if plant == "symlink":
        make(elsewhere, 1)
        place.symlink_to(elsewhere)
    elif plant == "dangling symlink":
        place.symlink_to(elsewhere)
    elif plant == "file":
        place.write_bytes(b"precious")
    elif plant == "fifo":
        os.mkfifo(place)
    else:
        elsewhere.write_bytes(b"precious")
        place = elsewhere / "log"
    before = contents(tmp_path)
    with pytest.raises(WALError) as caught:
        WALWriter(place)
    assert isinstance(caught.value, UnsafeLog)
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before


def test_a_directory_that_anyone_can_write_to_is_refused(log: Path) -> None:
    make(log, COUNT)
    log.chmod(0o777)
    with pytest.raises(UnsafeLog, match="anyone"):
        WALWriter(log)
    log.chmod(0o700)
    WALWriter(log).close()


def test_opening_waits_for_a_lock_no_longer_than_it_was_told(log: Path) -> None:
    import fcntl

    make(log, COUNT)
    for name in ("append.lock", "maintenance.lock"):
        if name == "maintenance.lock":
            (log / "control").unlink()
        with (log / name).open("r+b") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(LogBusy):
                WALWriter(log, lock_timeout=0.01)
    WALWriter(log, lock_timeout=5).close()


def test_an_opening_that_fails_leaves_no_slot_taken(log: Path) -> None:
    """Else the next recovery would take it for a living writer."""
    make(log, COUNT)
    last = segment_files(log)[-1]
    data = last.read_bytes()
    for _ in range(3):
        last.unlink()
        last.mkdir()
        with pytest.raises(UnsafeLog):
            WALWriter(log)
        last.rmdir()
        last.write_bytes(data)
    (log / "control").unlink()
    with WALWriter(log) as writer:
        assert writer.append(entry_of(COUNT + 1)) == COUNT + 1


# Writers side by side


def test_each_writer_holds_a_slot_of_its_own(log: Path) -> None:
    from walpool.options import WriterOptions

    opened: list[OpenLog] = []
    try:
        for _ in range(5):
            opened.append(open_log(str(log), WriterOptions()))
        assert [each.slot for each in opened] == [0, 1, 2, 3, 4]
        opened.pop(2).close()
        opened.append(open_log(str(log), WriterOptions()))
        assert opened[-1].slot == 2, "a free slot is used again"
    finally:
        for each in opened:
            each.close()


def test_a_control_block_can_be_attached_to_while_a_writer_appends(log: Path) -> None:
    with WALWriter(log) as writer:
        fill(writer, 4)
        directory = Directory(log)
        control = Control.attach(directory, writable=False)
        assert control.state().next_lsn == 5
        fill(writer, 3)
        assert control.state().next_lsn == 8
        control.close()
        directory.close()


def test_a_commit_that_leaves_no_room_for_the_slot_beside_it_is_not_believed(log: Path) -> None:
    make(log, COUNT)
    with (log / "control").open("r+b") as file:
        file.seek(COMMIT * 8)
        commit = int.from_bytes(file.read(8), "little")
        file.seek(COMMIT * 8)
        file.write((commit + (1 << 60)).to_bytes(8, "little"))
    with WALWriter(log) as writer:
        assert writer.recovery_report is not None
        assert writer.append(entry_of(COUNT + 1)) == COUNT + 1


def die_while_filling(channel: Channel, log: Path, zeroed: int, filled: int) -> None:
    """In an append whose frame is written: the copy of the state that is to be put in force is half there."""
    writer = WALWriter(log)
    for _ in range(3):
        writer.put(b"key", b"value")
    appender = writer._handle.open().appender

    def fill(block: memoryview, at: int, *fields: int) -> None:
        block[at : at + zeroed] = bytes(zeroed)
        block[at : at + filled] = STATE.pack(*fields)[:filled]
        os.kill(os.getpid(), signal.SIGKILL)

    appender._fill = fill
    appender._look_first()  # so that it is Python's
    writer.put(b"key", b"value")


@pytest.mark.parametrize(
    ("zeroed", "filled"),
    [(0, 0), (32, 0), (64, 0), *((STATE.size, n) for n in (0, 1, 8, 20, 40, 60, 72, 80, 87, STATE.size))],
)
def test_a_writer_killed_while_it_fills_the_state_leaves_nothing_to_recover(
    child: Start, log: Path, zeroed: int, filled: int
) -> None:
    assert child(die_while_filling, log, zeroed, filled).died() == -signal.SIGKILL
    with WALWriter(log) as writer:
        assert writer.recovery_report is None, writer.recovery_report
        assert writer.put(b"next", b"") == (5 if filled >= 80 else 4)  # its last field is known from the frame
