"""Repair: it looks at the whole log, says what it would do, and does just that."""

from pathlib import Path

import pytest

from tests.format import layout
from tests.read.logs import contents, entries, entry_of, read
from walpool import CorruptLog, LogNotFound, RecoveryMode, UnsafeLog, WALWriter
from walpool.options import WriterOptions
from walpool.upkeep import opening
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
