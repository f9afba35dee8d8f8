"""The plan: a log in parts, compared with a scan of all of it."""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

import walpool
from tests.crash.taps import Call, tapped
from tests.edges import around
from tests.format import layout
from tests.read.logs import Outcome, copy_of, entries, fill, make, read, segment_files
from tests.read.test_seek import frames_in_payloads
from walpool import CorruptLog, LogNotFound, LogReplaced, LSNRange, LSNUnavailable, WALReader, WALWriter, plan
from walpool.system import processes
from walpool.system.calls import calls

MARKER = 0x0BADCAFE  # of `frames_in_payloads`
TRIES = 12


def random_log(chance: Random, log: Path) -> Path:
    """Batches of any size in segments of any size: a log in use, or only the segments of one."""
    live = chance.random() < 0.2
    lsn, segments, batches = 1, {}, []
    with WALWriter(log) if live else nullcontext() as writer:
        for _ in range(chance.randrange(1, 120)):
            count, value_bytes = chance.choice([1, 1, 2, 3, 8, 40]), chance.choice([1, 5, 20])
            if writer is not None:
                writer.append_batch(entries(lsn, lsn + count, value_bytes))
            batches.append([layout.item(at, value_bytes) for at in range(lsn, lsn + count)])
            lsn += count
            if chance.random() < 0.07:
                if writer is not None:
                    writer.rotate()
                first = lsn - sum(map(len, batches))
                segments[first] = layout.segment(first, batches, marker=first)
                batches = []
    first = lsn - sum(map(len, batches))
    segments[first] = layout.segment(first, batches, marker=first) + bytes(chance.choice([0, 500]))
    return log if live else layout.write_segments(log, segments)


def read_parts(log: Path, parts: list[LSNRange], **options: Any) -> Outcome:
    """One after another, until one of them fails."""
    found = []
    for part in parts:
        came = read(log, start=part.start, end=part.end, **options)
        found += came.entries
        if came.error is not None:
            return Outcome(found, came.error)
    return Outcome(found, None)


def test_parts_are_the_range_and_each_begins_with_a_batch(tmp_path: Path, seed: int) -> None:
    chance = Random(seed)
    for number in range(TRIES):
        log = random_log(chance, tmp_path / f"log{number}")
        with WALReader(log) as reader:
            firsts = {batch.first_lsn for batch in reader.batches()}
            last = reader.last_lsn
        start = chance.choice([None, 1, chance.randint(1, last + 2)])
        end = chance.choice([None, last + 1, last + 99, chance.randint(1, last + 2)])
        wanted = read(log, start=start, end=end)
        for count in (1, 2, 3, 7, 50):
            parts = plan(log, count, start=start, end=end)
            case = seed, number, start, end, parts
            assert len(parts) <= count and all(part.start < part.end for part in parts), case
            assert all(one.end == other.start for one, other in pairwise(parts)), case
            assert {part.start for part in parts[1:]} <= firsts, case
            if wanted.entries:
                assert (parts[0].start, parts[-1].end) == (wanted.entries[0].lsn, wanted.entries[-1].lsn + 1), case
            else:
                assert parts == [], case
            assert read_parts(log, parts) == wanted, case


def test_a_damaged_log_in_parts_is_as_damaged_as_in_one(tmp_path: Path, seed: int) -> None:
    """Also where a control block is missing, and the last segment is damaged: then nobody says where it ends."""
    chance = Random(seed)
    refused = 0
    for number in range(TRIES):
        log = random_log(chance, tmp_path / f"log{number}")
        for _ in range(chance.choice([1, 1, 2])):
            file = chance.choice(segment_files(log)[-3:])
            data = bytearray(file.read_bytes())
            at = chance.randrange(len(data) or 1)
            match chance.randrange(3):
                case 0 if data:
                    data[at] ^= 1 << chance.randrange(8)
                case 1:
                    data[at : at + 100] = bytes(len(data[at : at + 100]))
                case _:
                    del data[at:]
            file.write_bytes(data)
        wanted = read(log)
        for count in (1, 3, 8):
            parts = plan(log, count)
            found = read_parts(log, parts)
            assert found.entries == wanted.entries, (seed, number, parts)
            if isinstance(wanted.error, CorruptLog) and parts and wanted.error.lsn == parts[-1].end:
                continue  # in an active segment that has no entry yet: no part is there
            assert type(found.error) is type(wanted.error), (seed, number, parts)
            if wanted.error is not None:
                assert str(found.error) == str(wanted.error), (seed, number, parts)
                refused += 1
    assert refused


def test_whoever_reads_the_last_part_of_a_copy_meets_the_damage_in_it(tmp_path: Path) -> None:
    """The head of a frame is damaged, so that nothing leads on to those behind it."""
    data = bytearray(layout.segment(1, layout.single(1, 10)))
    (offset, *_), *behind = list(layout.spans(bytes(data)))[5:]
    data[offset : offset + 48] = bytes(48)
    log = layout.write_segments(tmp_path / "log", {1: bytes(data)})
    assert len(behind) == 4 and plan(log, 1) == [LSNRange(1, 11)]
    found = read_parts(log, plan(log, 3))
    assert isinstance(found.error, CorruptLog) and found.entries == entries(1, 6)


def test_parts_of_a_range_are_the_same_when_the_log_has_grown_and_its_beginning_is_gone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with WALWriter(log, size_limit=20_000) as writer:
        fill(writer, 2000)
        before = plan(log, 7, start=700, end=1900)
        whole = plan(log, 7)
        fill(writer, 1500)
        writer.checkpoint(650)
        assert writer.prune().removed
        assert plan(log, 7, start=700, end=1900) == before
        assert read_parts(log, before) == read(log, start=700, end=1900)
        with pytest.raises(LSNUnavailable):
            plan(log, 7, start=1)
        gone = read_parts(log, whole)
        assert isinstance(gone.error, LSNUnavailable) and gone.entries == []
        assert read_parts(log, whole[3:]) == read(log, start=whole[3].start, end=2001)


def test_what_is_removed_while_a_log_is_planned_is_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    make(log, 200)
    real = calls.stat

    def remove_and_look(name: Any, **options: Any) -> Any:
        if str(name) == segment_files(log)[2].name:
            monkeypatch.undo()
            for file in segment_files(log)[:4]:
                file.unlink()
        return real(name, **options)

    monkeypatch.setattr(calls, "stat", remove_and_look)
    parts = plan(log, 3)
    assert read_parts(log, parts) == read(log) and parts[0].start == int(segment_files(log)[0].stem)

    monkeypatch.setattr(calls, "stat", remove_and_look)
    with pytest.raises(LSNUnavailable):
        plan(log, 3, start=parts[0].start)


def test_a_log_that_is_gone_while_it_is_planned_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    make(log, 50)
    real = calls.stat

    def remove_and_look(name: Any, **options: Any) -> Any:
        if str(name).endswith(".wal"):
            for file in segment_files(log):
                file.unlink()
        return real(name, **options)

    for place in (log, segment_files(log)[1]):
        saved = {file: file.read_bytes() for file in segment_files(log)}
        with monkeypatch.context() as patch:
            source = walpool.read.source.Source(place)
            patch.setattr(calls, "stat", remove_and_look)
            with pytest.raises(LogReplaced):
                walpool.read.plan.Ground(source, None, None)
        for file, data in saved.items():
            file.write_bytes(data)
    with pytest.raises(LogNotFound):
        plan(tmp_path / "nothing")


@pytest.mark.parametrize("count", [2, 3, 10, 64])
def test_parts_are_nearly_equal_in_bytes(tmp_path: Path, count: int) -> None:
    """None differs from an even share by more than a batch at either end."""
    chance = Random(count)
    log = tmp_path / "log"
    with WALWriter(log, size_limit=50_000) as writer:
        for _ in range(500):
            first = writer.metrics.snapshot().next_lsn
            writer.append_batch(entries(first, first + chance.randint(1, 9), chance.choice([1, 60])))
    sizes = {}
    for file in segment_files(log):
        for offset, end, first_lsn, _ in layout.spans(file.read_bytes()):
            sizes[first_lsn] = end - offset
    parts = plan(log, count)
    shares = [sum(sizes[lsn] for lsn in range(part.start, part.end) if lsn in sizes) for part in parts]
    assert len(parts) == count
    assert max(shares) - min(shares) <= 2 * max(sizes.values()) + 2


def test_values_that_hold_frames_of_their_own_segment_cut_no_batch(tmp_path: Path) -> None:
    """Each of them is a frame that was written before: what it says of itself is true, and it is not where it says."""
    built = list(frames_in_payloads())
    data = layout.header(marker=MARKER) + b"".join(frame for _, frame, _ in built)
    log = layout.write_segments(tmp_path / "log", {1: data})
    for count in (2, 9, 30):
        parts = plan(log, count)
        assert len(parts) >= min(count, 4)
        assert (parts[0].start, parts[-1].end) == (1, len(built) + 1)
        assert [entry.lsn for entry in read_parts(log, parts).entries] == list(range(1, len(built) + 1))


def test_bytes_that_only_look_like_frames_are_passed(tmp_path: Path) -> None:
    """A segment full of markers and plausible headers that do not sum up: then parts are whole segments."""
    head = layout.frame(7, [layout.item(7)], marker=layout.MARKER)
    false = bytearray(head)
    false[4] ^= 1
    items = [(layout.PUT, b"key", bytes(false) * 2000, 1)]
    log = layout.write_segments(
        tmp_path / "log",
        {1: layout.segment(1, [items] * 4), 5: layout.segment(5, [items] * 4), 9: layout.segment(9, [items])},
    )
    assert {part.start for part in plan(log, 4)} <= set(range(1, 10))
    assert {5, 9} & {part.start for part in plan(log, 4)}
    assert len(read_parts(log, plan(log, 4)).entries) == 9


def test_a_plan_looks_at_each_segment_once_and_opens_those_that_it_cuts(tmp_path: Path) -> None:
    """What makes a plan of 1,000 segments cheap: no time is asserted."""
    log = tmp_path / "log"
    make(log, 400)
    count = len(segment_files(log))
    seen: list[str] = []

    def tap(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if str(args[0]).endswith(".wal"):
            seen.append(name)
        return call(*args, **kwargs)

    with tapped(tap):
        assert len(plan(log, 4)) == 4
    assert count > 60 and seen.count("stat") == count and seen.count("open") <= 3


def test_one_segment_file_is_planned_as_what_it_holds(tmp_path: Path) -> None:
    make(tmp_path / "log", 100, size_limit=2000)
    files = segment_files(tmp_path / "log")
    first, behind = int(files[1].stem), int(files[2].stem)
    parts = plan(files[1], 3)
    assert (parts[0].start, parts[-1].end, len(parts)) == (first, behind, 3)
    assert plan(files[1], 3, start=1, end=10_000) == parts


def test_an_empty_range_has_no_parts(tmp_path: Path) -> None:
    with WALWriter(tmp_path / "log") as writer:
        assert plan(tmp_path / "log", 3) == plan(tmp_path / "log", start=5) == []
        fill(writer, 10)
        writer.rotate()
    for start, end in ((11, None), (5, 5), (7, 3), (99, None)):
        assert plan(tmp_path / "log", 3, start=start, end=end) == []
    assert plan(tmp_path / "log", 1) == [LSNRange(1, 11)]
    for edge in around(1, 10):
        if edge:
            assert [tuple(part) for part in plan(tmp_path / "log", 1, end=edge)] == (
                [(1, min(edge, 11))] if edge > 1 else []
            )


def test_a_segment_whose_header_is_damaged_is_in_the_last_part(tmp_path: Path) -> None:
    make(tmp_path / "log", 60)
    log = copy_of(tmp_path / "log", tmp_path / "copy")
    last = segment_files(log)[-1]
    first = int(last.stem)
    data = last.read_bytes()
    last.write_bytes(b"x" * len(data))
    assert plan(log, 1) == [LSNRange(1, first + 1)]
    assert isinstance(read_parts(log, plan(log, 3)).error, CorruptLog)
    last.write_bytes(bytes(len(data)))
    assert plan(log, 1) == [LSNRange(1, first)] and read_parts(log, plan(log, 3)) == read(log)


def test_as_many_parts_as_cores_unless_somebody_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "log", 100)
    monkeypatch.setattr("walpool.read.plan.cores", lambda: 5)
    assert len(plan(tmp_path / "log")) == 5
    assert processes.cores() >= 1


def test_a_part_survives_pickling_and_is_two_arguments(tmp_path: Path) -> None:
    make(tmp_path / "log", 10)
    part = plan(tmp_path / "log", 2)[1]
    assert pickle.loads(pickle.dumps(part)) == part == (part.start, part.end)
    with WALReader(tmp_path / "log", *part) as reader:
        assert [entry.lsn for entry in reader] == list(range(part.start, 11))


@pytest.mark.parametrize("parts", [0, -1, 1.0, True, "2"])
def test_options_that_cannot_be_are_refused(tmp_path: Path, parts: Any) -> None:
    make(tmp_path / "log", 1)
    with pytest.raises(ValueError, match="parts must be"):
        plan(tmp_path / "log", parts)
    for name in ("start", "end"):
        with pytest.raises(ValueError, match=f"{name} must be an LSN"):
            plan(tmp_path / "log", **{name: 0})
