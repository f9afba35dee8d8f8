"""Repair: it looks at the whole log, says what it would do, and does just that."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.format import layout
from tests.read.logs import contents, entries, entry_of, read
from walpool import CorruptLog, LogNotFound, RecoveryMode, UnsafeLog, WALWriter
from walpool.opening import opening
from walpool.options import WriterOptions
from walpool.upkeep.check import Finding
from walpool.upkeep.repair import plan_repair, repair
from walpool.upkeep.verify import verify

POINT, SALVAGE = RecoveryMode.POINT_IN_TIME, RecoveryMode.SALVAGE


def options(mode: RecoveryMode) -> WriterOptions:
    return WriterOptions(recovery=mode)


@pytest.fixture
def damaged(log: Path) -> Path:
    """1 2 [3] 4 | 5 6 7 8 | 9 10, all of it durable: recovery alone would not look as far back as LSN 3."""
    first = bytearray(layout.segment(1, layout.single(1, 4)))
    (at,) = [offset for offset, _, lsn, _ in layout.spans(bytes(first)) if lsn == 3]
    first[at + 50] ^= 1
    return layout.write_segments(
        log,
        {
            1: bytes(first),
            5: layout.segment(5, layout.single(5, 4), sequence=2, marker=2, durable_lsn=4),
            9: layout.segment(9, layout.single(9, 2), sequence=3, marker=3, durable_lsn=8, frames_durable=8),
        },
    )


def test_opening_does_not_read_as_far_back_as_a_repair(damaged: Path) -> None:
    with WALWriter(damaged) as writer:
        assert writer.recovery_report is not None
        assert (writer.recovery_report.cut, writer.recovery_report.next_lsn) == (None, 11)
    assert plan_repair(damaged, SALVAGE).needed


@pytest.mark.parametrize("mode", [RecoveryMode.STRICT, RecoveryMode.TOLERATE_TAIL])
def test_a_mode_that_refuses_says_where_and_touches_nothing(damaged: Path, mode: RecoveryMode) -> None:
    before = contents(damaged)
    for attempt in (lambda: plan_repair(damaged, mode), lambda: repair(damaged, options(mode))):
        with pytest.raises(CorruptLog) as caught:
            attempt()
        assert caught.value.lsn == 3
    assert {name: data for name, data in contents(damaged).items() if name.endswith(".wal")} == before
    assert not (damaged / "quarantine").exists()


def test_point_in_time_ends_the_log_before_the_damage_and_keeps_what_is_behind(damaged: Path) -> None:
    before = contents(damaged)
    plan = plan_repair(damaged, POINT)
    assert contents(damaged) == before, "a plan touched something"
    assert plan.needed
    assert plan.cut is not None
    assert (plan.cut.lsn, plan.next_lsn, plan.intact_behind) == (3, 3, 7)
    assert plan.quarantine == (layout.name(5), layout.name(9))
    report = repair(damaged, options(POINT))
    assert (report.next_lsn, report.intact_behind, len(report.quarantined)) == (3, 7, 2)
    with WALWriter(damaged) as writer:
        assert writer.append(entry_of(3)) == 3
    for mode in RecoveryMode:
        found = read(damaged, mode=mode)
        assert (found.entries, found.error) == (entries(1, 4), None)
    kept = list(contents(damaged).values())
    assert all(data in kept for data in before.values()), "something was deleted"
    assert not verify(damaged).damaged


def test_salvage_keeps_every_intact_entry(damaged: Path) -> None:
    before = contents(damaged)
    plan = plan_repair(damaged, SALVAGE)
    assert contents(damaged) == before
    assert ([place.lsn for place in plan.skipped], plan.cut, plan.quarantine, plan.next_lsn) == ([3], None, (), 11)
    repair(damaged, options(SALVAGE))
    after = contents(damaged)
    assert {name: after[name] for name in before} == before
    assert read(damaged, mode=SALVAGE).entries == [entry for entry in entries(1, 11) if entry.lsn != 3]


@pytest.mark.parametrize("mode", RecoveryMode)
def test_a_sound_log_needs_no_repair_and_stays_as_it_is(log: Path, mode: RecoveryMode) -> None:
    with WALWriter(log, size_limit=400) as writer:
        for lsn in range(1, 15):
            writer.append(entry_of(lsn))
    plan = plan_repair(log, mode)
    assert (plan.needed, plan.next_lsn, plan.quarantine) == (False, 15, ())
    repair(log, options(mode))
    assert read(log).entries == entries(1, 15)


def test_a_log_that_is_open_is_not_repaired(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "TRANSIENT_S", 0.0)
    with WALWriter(damaged) as writer:
        segments = {name: data for name, data in contents(damaged).items() if name.endswith(".wal")}
        with pytest.raises(UnsafeLog, match="slots 0"):
            repair(damaged, options(POINT))
        assert writer.put(b"key", b"value") == 11
    after = contents(damaged)
    assert all(after[name] == data for name, data in segments.items() if name != layout.name(11))


def test_where_there_is_no_log_there_is_nothing_to_repair(log: Path, tmp_path: Path) -> None:
    for place in (log, tmp_path):
        with pytest.raises(LogNotFound):
            plan_repair(place, POINT)
        with pytest.raises(LogNotFound):
            repair(place, options(POINT))
    assert list(tmp_path.iterdir()) == []


# A frame whose checksum fits and whose entries do not add up: a writer's bug, or forged


def odd_frame(lsn: int, *, marker: int = layout.MARKER, durable_lsn: int = 0) -> bytes:
    """LSN `lsn` and the next."""
    items = [layout.item(lsn), layout.item(lsn + 1)]
    body = layout.entry(*items[0]) + layout.entry(*items[1])[:-1]
    return layout.frame(lsn, items, body=body, marker=marker, durable_lsn=durable_lsn)


def odd_in_the_middle(log: Path) -> Path:
    """1 2 [3 4] 5 | 6 7"""
    first = layout.segment(1, layout.single(1, 2)) + odd_frame(3) + layout.frame(5, [layout.item(5)])
    return layout.write_segments(log, {1: first, 6: layout.segment(6, layout.single(6, 2), sequence=2, marker=2)})


def odd_at_the_end_of_a_segment(log: Path) -> Path:
    """1 2 [3 4] | 5 6 7"""
    first = layout.segment(1, layout.single(1, 2)) + odd_frame(3)
    return layout.write_segments(log, {1: first, 5: layout.segment(5, layout.single(5, 3), sequence=2, marker=2)})


def odd_in_the_last_segment(log: Path) -> Path:
    """1 2 [3 4] 5 6 7, none of it known to be durable: written whole, so no power cut made it so"""
    data = layout.segment(1, layout.single(1, 2)) + odd_frame(3)
    return layout.write_segments(log, {1: data + b"".join(layout.frame(lsn, [layout.item(lsn)]) for lsn in (5, 6, 7))})


def where(finding: Finding) -> tuple[str, int, int]:
    return finding.path, finding.offset, finding.lsn


@pytest.mark.parametrize("build", [odd_in_the_middle, odd_at_the_end_of_a_segment, odd_in_the_last_segment])
def test_verify_and_repair_agree_about_entries_that_do_not_add_up(log: Path, build: Callable[[Path], Path]) -> None:
    build(log)
    (finding,) = verify(log).findings
    for mode in (RecoveryMode.TOLERATE_TAIL, RecoveryMode.STRICT):
        with pytest.raises(CorruptLog, match="past its end") as caught:
            plan_repair(log, mode)
        assert (caught.value.path, caught.value.offset, caught.value.lsn) == where(finding)
    plan = plan_repair(log, POINT)
    assert plan.cut is not None
    assert (plan.cut.path, plan.cut.offset, plan.cut.lsn, plan.next_lsn) == (*where(finding), 3)
    assert plan.intact_behind == 3
    plan = plan_repair(log, SALVAGE)
    assert ([place.lsn for place in plan.skipped], plan.cut, plan.next_lsn) == ([3], None, 8)


@pytest.mark.parametrize("build", [odd_in_the_middle, odd_at_the_end_of_a_segment, odd_in_the_last_segment])
def test_a_repair_gets_past_entries_that_do_not_add_up(log: Path, build: Callable[[Path], Path]) -> None:
    build(log)
    repair(log, options(SALVAGE))
    assert read(log, mode=SALVAGE).entries == entries(1, 3) + entries(5, 8)
    repair(log, options(POINT))
    with WALWriter(log) as writer:
        assert writer.append(entry_of(3)) == 3
    for mode in RecoveryMode:
        found = read(log, mode=mode)
        assert (found.entries, found.error) == (entries(1, 4), None)
    assert not verify(log).damaged


def test_a_recovery_sees_entries_that_do_not_add_up_where_it_reads(log: Path) -> None:
    odd_in_the_last_segment(log)
    before = contents(log)
    with pytest.raises(CorruptLog, match="past its end"):
        WALWriter(log).close()
    assert {name: data for name, data in contents(log).items() if name in before} == before
    with WALWriter(log, recovery=POINT) as writer:
        assert writer.recovery_report is not None
        assert (writer.recovery_report.next_lsn, writer.recovery_report.intact_behind) == (3, 3)
