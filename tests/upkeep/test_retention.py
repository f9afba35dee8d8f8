"""Retention: which sealed segments go, in which order, and what never goes."""

import dataclasses
import errno
import os
import shutil
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from tests import edges
from tests.crash.faults import Killed, killed_at, watched
from tests.format import layout
from tests.read.logs import contents, copy_of, entries, fill, read, segment_files
from walpool import (
    CorruptLog,
    LSNUnavailable,
    RecoveryMode,
    Retention,
    SyncFailed,
    SyncMode,
    UnsafeLog,
    WALError,
    WALReader,
    WALWriter,
)
from walpool.format.header import WALHeader
from walpool.shared.control import Control, LogState
from walpool.shared.origin import Origin, read_origin
from walpool.system.calls import calls
from walpool.system.files import Directory
from walpool.upkeep import retention
from walpool.upkeep.retention import PruneReport, SealedSegment, Wanted, removable, sealing_times
from walpool.upkeep.verify import verify

NONE = Wanted()
NEVER = Retention(checkpointed=False)


def sealed(*sizes: int) -> list[SealedSegment]:
    """Segments of ten entries each, sealed one second apart."""
    return [
        SealedSegment(at * 10 + 1, at * 10 + 11, size, (at + 1) * 1_000_000_000) for at, size in enumerate(sizes)
    ]  # fmt: skip


THREE = sealed(100, 100, 100)


@pytest.mark.parametrize(
    ("rule", "checkpoint", "gone"),
    [
        (NEVER, 30, 0),
        (Retention(), 0, 0),
        (Retention(), 9, 0),
        (Retention(), 10, 1),
        (Retention(), 19, 1),
        (Retention(), 30, 3),
        (Retention(), 999, 3),
        (Retention(checkpointed=False, max_segments=4), 0, 0),
        (Retention(checkpointed=False, max_segments=3), 0, 1),
        (Retention(checkpointed=False, max_segments=1), 0, 3),
        (Retention(checkpointed=False, max_segments=0), 0, 3),  # the active one stays, whatever is asked for
        (Retention(checkpointed=False, max_bytes=350), 0, 0),
        (Retention(checkpointed=False, max_bytes=349), 0, 1),
        (Retention(checkpointed=False, max_bytes=0), 0, 3),
        (Retention(checkpointed=False, max_age=9.0), 0, 0),  # the oldest was sealed 9 s ago
        (Retention(checkpointed=False, max_age=8.5), 0, 1),
        (Retention(checkpointed=False, max_age=0.0), 0, 3),
        (Retention(max_segments=3), 20, 2),  # any rule is enough
    ],
    ids=str,
)
def test_each_rule_removes_what_it_says(rule: Retention, checkpoint: int, gone: int) -> None:
    assert removable(THREE, 50, rule, checkpoint, NONE, 10_000_000_000) == (gone, 0, 0)


@pytest.mark.parametrize(("pin", "gone", "held"), [(1, 0, 3), (11, 1, 2), (21, 2, 1), (31, 3, 0)])
def test_a_pin_holds_its_segment_and_all_behind_it(pin: int, gone: int, held: int) -> None:
    assert removable(THREE, 50, Retention(), 30, Wanted(pin=pin), 0) == (gone, held, 0)


@pytest.mark.parametrize(("wanted_lsn", "gone", "held"), [(1, 0, 3), (10, 0, 3), (11, 1, 2), (30, 2, 1), (31, 3, 0)])
def test_a_cursor_holds_the_segment_of_what_it_wants_next(wanted_lsn: int, gone: int, held: int) -> None:
    assert removable(THREE, 50, Retention(), 30, Wanted(cursor=wanted_lsn), 0) == (gone, 0, held)


def test_a_log_over_the_cap_is_pruned_in_spite_of_pins() -> None:
    rule = Retention(max_pinned_bytes=200)
    for wanted in (Wanted(pin=1), Wanted(cursor=1), Wanted(1, 1)):
        assert removable(THREE, 50, rule, 30, wanted, 0).gone == 2, "until it is under the cap"


WHOLE = edges.around(100, 164, 228)  # bytes of the active segment, and of one or two empty ones beside it
RULES = st.builds(
    Retention,
    checkpointed=st.booleans(),
    max_bytes=st.one_of(st.none(), edges.integers(0, 2000, *WHOLE)),
    max_age=st.one_of(st.none(), st.floats(0, 20), st.integers(0, 20).map(float)),
    max_segments=st.one_of(st.none(), edges.integers(0, 12, *edges.EDGES.segments)),
    max_pinned_bytes=edges.integers(0, 2000, *WHOLE),
)


@layout.examples(200)
@given(
    st.lists(edges.integers(64, 400), max_size=10) | edges.lists(edges.integers(64, 400), *edges.EDGES.segments),
    RULES,
    edges.integers(0, 130, *edges.around(10, 20, 90)),
    edges.integers(1, 130, *edges.around(11, 21, 91)),
    edges.integers(1, 130, *edges.around(11, 21, 91)),
    edges.integers(0, 20),
)
def test_oldest_first_and_never_what_is_kept(
    sizes: list[int], rule: Retention, checkpoint: int, pin: int, cursor: int, now_s: int
) -> None:
    segments = sealed(*sizes)
    now_ns = now_s * 1_000_000_000
    wanted = Wanted(pin, cursor)
    gone, by_pins, by_cursors = removable(segments, 100, rule, checkpoint, wanted, now_ns)
    held = max(by_pins, by_cursors)
    assert 0 <= gone <= gone + held <= len(segments)
    if rule == NEVER:
        assert gone == 0
    if held:
        assert segments[gone].next_lsn > min(wanted)
    # Once it was done, doing it again removes nothing more, unless a pin was overruled half-way.
    assert removable(segments[gone:], 100, rule, checkpoint, wanted, now_ns).gone == 0


@pytest.fixture
def full(log: Path) -> Path:
    with WALWriter(log, size_limit=400) as writer:
        fill(writer, 40)
        writer.sync()
    return log


def test_a_checkpoint_lets_whole_segments_go_and_no_entry_above_it(full: Path) -> None:
    files = [int(file.stem) for file in segment_files(full)]
    with WALWriter(full, retention=Retention()) as writer:
        for lsn in (1, files[1] - 2, files[1] - 1, files[3], 40):
            assert writer.checkpoint(lsn) == lsn
            report = writer.prune()
            first = max(each for each in files if each <= lsn + 1)
            assert report.first_lsn == first == int(segment_files(full)[0].stem)
            assert read(full, start=first).entries == entries(first, 41)
            if first > 1:
                with pytest.raises(LSNUnavailable) as caught:
                    WALReader(full, start=1)
                assert caught.value.first_available == first
        assert writer.checkpoint(5) == 40, "a checkpoint never goes back"
        assert writer.put(b"key", b"value") == 41
    assert verify(full).findings == []


def test_a_dry_run_says_and_removes_nothing(full: Path) -> None:
    from walpool.shared.control import Control
    from walpool.system.files import Directory
    from walpool.upkeep.retention import prune

    before = contents(full)
    directory = Directory(full)
    control = Control.attach(directory, writable=False)
    report = prune(directory, control.state(), Retention(checkpointed=False, max_segments=2), dry_run=True)
    control.close()
    directory.close()
    assert len(report.removed) == len(segment_files(full)) - 2
    assert contents(full) == before


@pytest.mark.parametrize("lsn", [-1, 41, 1 << 70])
def test_a_checkpoint_that_is_not_in_the_log_is_refused(full: Path, lsn: int) -> None:
    with WALWriter(full) as writer:
        with pytest.raises(ValueError):
            writer.checkpoint(lsn)
        with pytest.raises(TypeError):
            writer.checkpoint("7")  # type: ignore[arg-type]
    assert not (full / "checkpoint").exists()


def test_a_checkpoint_whose_sync_failed_is_made_durable_by_whoever_states_it_again(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is there and can be read, and a power cut would take it away: to call it in force is too early."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with WALWriter(full) as writer:
        with monkeypatch.context() as patch, pytest.raises(WALError):
            patch.setattr(calls, "fsync", fail)
            writer.checkpoint(30)
        with watched() as trace:
            assert writer.checkpoint(7) == 30
    assert "fsync" in trace.names()


def test_what_a_checkpoint_covers_is_durable(log: Path) -> None:
    """Or a power cut may end the log below the checkpoint, and what is appended then has LSNs that it covers."""
    with WALWriter(log) as writer:
        fill(writer, 20)
        assert writer.metrics.snapshot().durable_lsn == 0
        assert writer.checkpoint(17) == 17
        assert writer.metrics.snapshot().durable_lsn >= 17


def test_a_checkpoint_of_what_cannot_be_made_durable_is_not_stated(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with WALWriter(log) as writer:
        fill(writer, 20)
        with monkeypatch.context() as patch, pytest.raises(SyncFailed):
            patch.setattr(calls, "fdatasync", fail)
            writer.checkpoint(17)
    assert not (log / "checkpoint").exists()


@pytest.mark.parametrize("end", [0, 14])
def test_a_checkpoint_that_the_log_does_not_reach_covers_nothing_that_is_appended_later(
    full: Path, tmp_path: Path, end: int
) -> None:
    """A copy may hold a younger checkpoint than segments, and a repair may cut below it."""
    with WALWriter(full) as writer:
        writer.checkpoint(40)
    copy = copy_of(full, tmp_path / "copy")
    for file in segment_files(copy):
        if int(file.stem) > end:
            file.unlink()
    shutil.copy(full / "checkpoint", copy)
    with WALWriter(copy, SyncMode.FULL, 400) as writer:
        last_lsn = writer.metrics.snapshot().next_lsn - 1
        assert (last_lsn == 0) == (end == 0)
        acknowledged = fill(writer, 40)
        writer.prune()
        assert writer.checkpoint(0) <= last_lsn
    first_lsn = int(segment_files(copy)[0].stem)
    assert read(copy, start=first_lsn).entries[-len(acknowledged) :] == acknowledged


def test_a_damaged_checkpoint_may_be_stated_again_and_keeps_no_log_closed(full: Path) -> None:
    with WALWriter(full) as writer:
        writer.checkpoint(30)
    (full / "checkpoint").write_bytes(b"WALPCKPT")
    os.unlink(full / "control")
    with WALWriter(full) as writer:
        with pytest.raises(CorruptLog):
            writer.prune()
        assert writer.checkpoint(20) == 20
        assert writer.prune().removed


def test_a_damaged_checkpoint_removes_nothing(full: Path) -> None:
    with WALWriter(full) as writer:
        writer.checkpoint(30)
        good = (full / "checkpoint").read_bytes()
        segments = segment_files(full)
        for at in range(0, len(good) - 4):
            data = bytearray(good)
            data[at] ^= 0x40
            (full / "checkpoint").write_bytes(data)
            with pytest.raises(CorruptLog):
                writer.prune()
        for cut in (b"", good[:-1], good + b"x"):
            (full / "checkpoint").write_bytes(cut)
            with pytest.raises(CorruptLog):
                writer.prune()
        assert segment_files(full) == segments
        (full / "checkpoint").unlink()
        assert writer.prune().removed == ()


def test_a_reader_with_a_pin_keeps_what_it_has_not_read(full: Path) -> None:
    with WALWriter(full) as writer, WALReader(full, pin=True) as reader:
        found = [reader.read_entry() for _ in range(12)]
        writer.checkpoint(40)
        report = writer.prune()
        assert report.held_by_pins > 0
        found += reader.read_all()
        assert found == entries(1, 41)
        assert writer.prune().held_by_pins == 0, "it has moved on"
        assert int(segment_files(full)[0].stem) > 12


def test_the_pin_of_a_reader_that_is_gone_holds_nothing(full: Path) -> None:
    with WALWriter(full) as writer:
        reader = WALReader(full, pin=True)
        writer.checkpoint(40)
        assert writer.prune().removed == ()
        reader.close()
        assert len(writer.prune().removed) > 5


def test_removals_are_durable_one_by_one_oldest_first(full: Path) -> None:
    files = [file.name for file in segment_files(full)]
    with WALWriter(full) as writer:
        writer.checkpoint(40)
        with watched() as trace:
            writer.prune()
    noted = trace.names().index("rename")  # first of all the note of how much is removed is durable
    assert "fdatasync" in trace.names()[:noted]
    steps = [(name, str(arguments[0])) for name, arguments in trace.made[noted:] if name in ("unlink", "fsync")]
    assert [step[1] for step in steps[1::2]] == files[:-1]
    assert [step[0] for step in steps] == ["fsync", *["unlink", "fsync"] * (len(files) - 1)]


def test_a_prune_killed_at_any_call_leaves_a_log_that_starts_later(tmp_path: Path) -> None:
    number = 0
    while True:
        log = tmp_path / str(number)
        with WALWriter(log, size_limit=400) as writer:
            fill(writer, 20)
            writer.checkpoint(20)
            with killed_at(number) as trace:
                try:
                    writer.prune()
                except Killed:
                    pass
        first = int(segment_files(log)[0].stem)
        assert read(log, start=first).entries == entries(first, 21), trace.hit
        assert verify(log).findings == []
        with WALWriter(log) as writer:
            assert writer.recovery_report is None
            assert writer.put(b"key", b"value") == 21
        if not trace.hit:
            break
        number += 1
    assert number > 5


@pytest.mark.parametrize("noted_before", [False, True])
def test_no_entry_is_older_than_one_that_retention_removed(
    log: Path, monkeypatch: pytest.MonkeyPatch, noted_before: bool
) -> None:
    """Also when no other was left, the log has to be recovered, and the clock was set back meanwhile."""
    now_ns = 10**18
    monkeypatch.setattr(calls, "time_ns", lambda: now_ns)
    with WALWriter(log, retention=Retention(max_segments=1)) as writer:
        writer.put(b"removed", b"")
        writer.rotate()
        writer.prune()
    if noted_before:  # by a version that noted no time
        data = (log / "origin").read_bytes()[:32]
        (log / "origin").write_bytes(data + crc32c(data).to_bytes(4, "little") + bytes(4))
        with WALWriter(log) as writer:
            assert read_origin(writer._handle.open().log.directory) == Origin(data[8:24], 2)
            writer.put(b"removed", b"")
            writer.rotate()
            writer.checkpoint(2)
            writer.prune()
    (log / "control").unlink()
    now_ns -= 10**9
    with WALWriter(log) as writer:
        writer.put(b"kept", b"")
    with WALReader(log) as reader:
        assert [batch.appended_at for batch in reader.batches()] == [10**18]


def test_a_pruned_log_recovers(full: Path) -> None:
    with WALWriter(full) as writer:
        writer.checkpoint(30)
        writer.prune()
    first = int(segment_files(full)[0].stem)
    os.unlink(full / "control")
    with WALWriter(full) as writer:
        assert writer.put(b"key", b"value") == 41
        assert writer.checkpoint(2) == 30
    assert [entry.lsn for entry in read(full, start=first).entries] == list(range(first, 42))


# A clock that is set

YEAR = 10_000  # of a clock that counts in tens


@pytest.mark.parametrize(
    ("made", "written", "times"),
    [
        ([100, 200, 300], [199, 299], [200, 300]),  # the clock was right all the time
        ([100, 100, 100], [100, 100], [100, 100]),
        ([100, 200 + YEAR, 300, 400], [199, 299, 399], [199, 300, 400]),  # a year ahead, for one rotation
        ([100, 200 + YEAR, 300, 400], [YEAR, YEAR, 399], [300, 300, 400]),  # ... and for all writes to two segments
        ([100, 200 + YEAR, 201 + YEAR], [YEAR, YEAR], [500, 500]),  # still: nothing is known yet
        ([200 + YEAR, 300, 400], [299, 399], [300, 400]),  # made in the future, sealed by the right clock
        ([YEAR + 100, YEAR + 200, 20, 30], [YEAR, 25, 35], [20, 20, 30]),  # set back for good
        ([100, 200, 20, 400], [199, 25, 399], [200, 400, 400]),  # behind, for one rotation: not older than it can be
        ([100, 200, 20, 30], [199, 25, 35], [200, 500, 500]),  # behind until now
        ([100], [], []),
    ],
)
def test_a_clock_that_was_set_makes_no_segment_too_old_or_young_for_ever(
    made: list[int], written: list[int], times: list[int]
) -> None:
    assert sealing_times(made, written.__getitem__, 500) == times


@given(st.lists(edges.integers(0, 1000, *edges.around(600)), min_size=1, max_size=8), st.data())
def test_whatever_the_clock_did_a_segment_is_old_at_last(made: list[int], data: st.DataObject) -> None:
    """Once one was made by the right clock behind it; and what the clock left in order is as it says."""
    written = data.draw(st.lists(st.integers(0, 1000), min_size=len(made), max_size=len(made)))
    assert all(0 <= time <= 600 for time in sealing_times(made, written.__getitem__, 600))
    now = 1100
    times = sealing_times([*made, now], written.__getitem__, now)
    assert all(time <= now for time in times)
    assert all(now + 500 - time >= 500 for time in sealing_times([*made, now], written.__getitem__, now + 500))
    ordered = sorted(made)
    assert sealing_times(ordered, written.__getitem__, now) == ordered[1:]


def test_segments_made_by_a_clock_a_year_ahead_are_removed_when_they_are_old(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = Retention(checkpointed=False, max_age=3600.0)
    now = calls.time_ns

    def at(hours: float) -> None:
        monkeypatch.setattr(calls, "time_ns", lambda: now() + int(hours * 3600e9))

    at(24 * 365)
    with WALWriter(log, size_limit=400) as writer:
        fill(writer, 20)
    at(0)
    with WALWriter(log, size_limit=400, retention=rule) as writer:
        writer.rotate()
        assert writer.prune().removed == (), "nothing is an hour old"
        at(2)
        assert len(segment_files(log)) - 1 == len(writer.prune().removed) > 3


def test_segments_made_by_a_clock_that_was_behind_stay_as_long_as_they_should(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = calls.time_ns
    with WALWriter(log, size_limit=400, retention=Retention(checkpointed=False, max_age=3600.0)) as writer:
        fill(writer, 20)
        for file in segment_files(log)[1:]:
            change_created_at(file, now() - int(24 * 365 * 3600e9))
        assert writer.prune().removed == ()
        monkeypatch.setattr(calls, "time_ns", lambda: now() + int(2 * 3600e9))
        assert writer.prune().removed != ()


def change_created_at(file: Path, created_at: int) -> None:
    data = bytearray(file.read_bytes())
    data[:64] = dataclasses.replace(WALHeader.decode(bytes(data[:64])), created_at=created_at).encode()
    file.write_bytes(data)


@pytest.mark.parametrize("last_value", [b"value", bytes(200)], ids=["", "ends with zeros"])
def test_zeros_written_ahead_are_not_bytes_of_the_log(tmp_path: Path, last_value: bytes) -> None:
    """A sealed segment keeps them until somebody has the time to give them back."""
    data = layout.segment(1, layout.single(1, 4)) + layout.frame(5, [(layout.PUT, b"k", last_value, 1)])
    files = {
        1: data + bytes(1_000_000),
        6: layout.segment(6, layout.single(6, 5), sequence=2, marker=2) + bytes(900_000),
        11: layout.segment(11, layout.single(11, 2), sequence=3, marker=3),
    }
    in_use = {first: len(file.rstrip(b"\0")) for first, file in files.items()} | {1: len(data)}
    log = layout.write_segments(tmp_path / "log", files)
    with WALWriter(log, recovery=RecoveryMode.STRICT) as writer:
        first_lsn = writer.put(b"key", b"value")
        assert first_lsn == 13
        total = sum(in_use.values()) + writer.size

        def prune(max_bytes: int) -> PruneReport:
            state = Control.attach(Directory(log), writable=False).state()
            return retention.prune(Directory(log), state, Retention(checkpointed=False, max_bytes=max_bytes))

        assert prune(total).removed == ()
        report = prune(total - 1)
        assert (report.removed, report.bytes) == ((1,), in_use[1])
        assert prune(total - in_use[1]).removed == ()
        assert prune(0).removed == (6, 11)


def test_a_segment_whose_end_cannot_be_found_counts_whole(tmp_path: Path) -> None:
    data = bytearray(layout.segment(1, layout.single(1, 5)))
    data[-3] ^= 1  # of the last frame: one before it is no matter
    log = layout.write_segments(tmp_path / "log", {1: bytes(data) + bytes(5000), 6: layout.segment(6, [], sequence=2)})
    state = LogState(6, 2, layout.MARKER, 64, 6, 0, 5, 5, 0, 0, 0)
    report = retention.prune(Directory(log), state, Retention(checkpointed=False, max_bytes=0), dry_run=True)
    assert (report.removed, report.bytes) == ((1,), len(data) + 5000)


def test_a_reader_that_pins_in_the_middle_of_a_prune_misses_nothing(tmp_path: Path) -> None:
    """At each call of the prune. What is being removed when it opens is gone for it, and nothing behind that."""
    number = 0
    while pin_in_the_middle_of_a_prune(tmp_path / f"{number}", number):
        number += 1
    assert number > 30


def pin_in_the_middle_of_a_prune(log: Path, number: int) -> bool:
    """Whether the prune has so many calls."""
    readers: list[WALReader] = []
    lsns: list[int] = []
    came = False

    def pin(now: int, name: str) -> None:
        nonlocal came
        if now == number and not came:
            came = True
            readers.append(WALReader(log, pin=True))
            entry = readers[0].read_entry()
            assert entry is not None
            lsns.append(entry.lsn)

    with WALWriter(log, size_limit=400) as writer:
        fill(writer, 12)
        writer.rotate()
        writer.checkpoint(12)
        fill(writer, 1)
        with watched(pin):
            report = writer.prune()
        assert report.removed or report.held_by_pins
        for reader in readers:
            lsns += [entry.lsn for entry in reader.read_all()]
            reader.close()
            assert lsns == list(range(lsns[0], 14))
    return came


def test_a_log_stays_the_same_log_though_its_id_cannot_be_read(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or every reader would hear that another log was made in its place."""
    with WALWriter(log, size_limit=600) as writer, WALReader(log) as reader:
        fill(writer, 20)
        origin = (log / "origin").read_bytes()
        writer.rotate()
        writer.checkpoint(20)
        real = calls.open

        def refused(path: str, *args: object, **kwargs: object) -> int:
            if path == "origin":
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return real(path, *args, **kwargs)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(calls, "open", refused)
            with pytest.raises(UnsafeLog):
                writer.prune()
        assert (log / "origin").read_bytes() == origin
        assert len(reader.read_all()) == 20
        assert writer.prune().removed
