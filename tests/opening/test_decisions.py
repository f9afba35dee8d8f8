"""The table of verdicts: a log is built for every row, and each tool says of the same bytes what the row says."""

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.format import layout
from tests.read.logs import contents, entries, entry_of, read
from walpool import CorruptLog, RecoveryMode, WALReader, WALWriter
from walpool.cli.dump import rows as dump
from walpool.opening.survey import survey
from walpool.read.verdict import TABLE, Asker, Verdict, judge
from walpool.system.files import Directory
from walpool.upkeep.check import DAMAGE, EVIDENCE, TORN_TAIL
from walpool.upkeep.repair import plan_repair
from walpool.upkeep.verify import WOULD_END, verify

BAD = 4  # the LSN of the batch that is damaged
LAST = 6
Build = Callable[[Path, bool], tuple[Path, int, range]]  # the log, intact entries behind the damage, lost LSNs


def damage(data: bytes, lsn: int) -> bytes:
    """`data` with the last byte of the batch of `lsn` flipped."""
    (end,) = [end for _, end, first, count in layout.spans(data) if first <= lsn < first + count]
    return data[: end - 1] + bytes([data[end - 1] ^ 0xFF]) + data[end:]


def durable(is_durable: bool) -> int:
    """The highest durable LSN that the log states: the damaged one, or the one before it."""
    return BAD if is_durable else BAD - 1


def followed_in_its_segment(log: Path, is_durable: bool) -> tuple[Path, int, range]:
    """1 2 3 [4] 5 6"""
    data = layout.segment(1, layout.single(1, BAD), frames_durable=0)
    data += layout.frame(5, [layout.item(5)], durable_lsn=durable(is_durable))
    data += layout.frame(6, [layout.item(6)], durable_lsn=0)
    return layout.write_segments(log, {1: damage(data, BAD)}), 2, range(4, 5)


def followed_in_the_next_segment(log: Path, is_durable: bool) -> tuple[Path, int, range]:
    """1 2 3 [4] [5] | 6"""
    data = damage(damage(layout.segment(1, layout.single(1, 5)), BAD), 5)
    return layout.write_segments(log, {1: data, 6: following(is_durable)}), 1, range(4, 6)


def followed_across_a_missing_segment(log: Path, is_durable: bool) -> tuple[Path, int, range]:
    """1 2 3 | (4 and 5 are missing) | 6"""
    data = layout.segment(1, layout.single(1, BAD - 1))
    return layout.write_segments(log, {1: data, 6: following(is_durable)}), 1, range(4, 6)


def followed_behind_a_hole_of_zeros(log: Path, is_durable: bool) -> tuple[Path, int, range]:
    """1 2 3 000 5 6"""
    data = layout.segment(1, layout.single(1, BAD), frames_durable=0)
    ((at, end),) = [(at, end) for at, end, first, _ in layout.spans(data) if first == BAD]
    data = data[:at] + bytes(end - at)
    data += layout.frame(5, [layout.item(5)], durable_lsn=durable(is_durable)) + layout.frame(6, [layout.item(6)])
    return layout.write_segments(log, {1: data}), 2, range(4, 5)


def followed_by_a_segment_behind_one_whose_header_is_damaged(log: Path, is_durable: bool) -> tuple[Path, int, range]:
    """1 2 3 | x 4 5 | 6"""
    middle = bytearray(layout.segment(4, layout.single(4, 2), sequence=2, marker=9))
    middle[20] ^= 1
    segments = {1: layout.segment(1, layout.single(1, 3)), 4: bytes(middle), 6: following(is_durable)}
    return layout.write_segments(log, segments), 3, range(4, 6)  # frames that stand without their header are evidence


def last_in_the_log(log: Path, is_durable: bool) -> tuple[Path, int, range]:
    """1 2 3 [4] [5], and, when 4 was durable, the header of the next segment, which says so"""
    data = damage(damage(layout.segment(1, layout.single(1, 5)), BAD), 5)
    return layout.write_segments(log, {1: data, **witness(is_durable)}), 0, range(0)


def last_and_cut_short(log: Path, is_durable: bool) -> tuple[Path, int, range]:
    """1 2 3 [4, half of it"""
    data = layout.segment(1, layout.single(1, BAD))
    return layout.write_segments(log, {1: data[:-9], **witness(is_durable)}), 0, range(0)


def last_segment_without_a_whole_header(log: Path, is_durable: bool) -> tuple[Path, int, range]:
    """1 2 3 | x: as a power cut leaves a rotation"""
    segments = {1: layout.segment(1, layout.single(1, BAD - 1)), 4: layout.header(4, sequence=2)[:40]}
    return layout.write_segments(log, {**segments, **witness(is_durable)}), 0, range(0)


def following(is_durable: bool) -> bytes:
    """The segment from LSN 6 on; its header says what was durable then."""
    return layout.segment(
        LAST, layout.single(LAST, 1), sequence=3, marker=7, durable_lsn=durable(is_durable), frames_durable=0
    )


def witness(is_durable: bool) -> dict[int, bytes]:
    """Nothing but the header of the segment from LSN 6 on: it is no entry, but it says that 4 was durable."""
    return {LAST: layout.header(LAST, sequence=3, marker=7, durable_lsn=BAD)} if is_durable else {}


BUILDS: dict[bool, list[Build]] = {
    True: [
        followed_in_its_segment,
        followed_in_the_next_segment,
        followed_across_a_missing_segment,
        followed_behind_a_hole_of_zeros,
        followed_by_a_segment_behind_one_whose_header_is_damaged,
    ],
    False: [last_in_the_log, last_and_cut_short, last_segment_without_a_whole_header],
}
CASES = list(itertools.product(RecoveryMode, [False, True], [False, True]))
ROWS = [
    pytest.param(row, build, id=f"{row[0].name}-{'durable' if row[1] else 'not durable'}-{build.__name__}")
    for row in CASES
    for build in BUILDS[row[2]]
]


def test_one_row_fits_every_case_and_every_row_is_needed() -> None:
    fitting = [
        [
            row
            for row in TABLE
            if (row.asker, row.mode) == (asker, mode)
            and row.vouched in (None, vouched)
            and row.followed in (None, followed)
        ]
        for asker in Asker
        for mode, vouched, followed in CASES
    ]
    assert {len(rows) for rows in fitting} == {1}
    assert {row for (row,) in fitting} == set(TABLE)


@pytest.mark.parametrize("asker", Asker)
def test_only_salvage_skips_and_only_point_in_time_and_salvage_give_up_what_counts(asker: Asker) -> None:
    for mode, vouched, followed in CASES:
        verdict = judge(asker, mode, vouched=vouched, followed=followed)
        if verdict is Verdict.SKIP:
            assert mode is RecoveryMode.SALVAGE
        if vouched and verdict is not Verdict.REFUSE:
            assert mode in (RecoveryMode.POINT_IN_TIME, RecoveryMode.SALVAGE)
        if mode is RecoveryMode.STRICT:
            assert verdict is Verdict.REFUSE
        assert asker is Asker.READER or verdict is not Verdict.END, "a recovery waits for nothing"


def test_the_page_on_durability_has_the_table() -> None:
    lines = ["| who | mode | something vouches for it | something follows | what it does | because |", "|---" * 6 + "|"]
    for row in TABLE:
        known = [{None: "yes or no", True: "yes", False: "no"}[each] for each in (row.vouched, row.followed)]
        lines.append(f"| {' | '.join([row.asker.value, row.mode.name, *known, row.verdict.value, row.why])} |")
    page = (Path(__file__).parents[2] / "docs" / "durability.md").read_text()
    assert "\n".join(lines) in page, "\n".join(["docs/durability.md wants this table:", *lines])


@pytest.mark.parametrize(("row", "build"), ROWS)
def test_readers_verify_repair_and_dump_say_what_the_table_says(
    row: tuple[RecoveryMode, bool, bool], build: Build, log: Path
) -> None:
    mode, is_durable, followed = row
    _, behind, lost = build(log, is_durable)
    goes_on = followed or is_durable  # for a reader: the segment that says so follows

    found = read(log, mode=mode)
    verdict = judge(Asker.READER, mode, vouched=False, followed=goes_on)
    if verdict is Verdict.SKIP:
        expected = [entry for entry in entries(1, LAST + 1) if followed and entry.lsn not in lost]
        assert (found.entries, found.error) == (expected or entries(1, BAD), None)
    else:
        assert found.entries == entries(1, BAD)
        assert isinstance(found.error, CorruptLog) == (verdict is Verdict.REFUSE)
        assert not isinstance(found.error, CorruptLog) or found.error.lsn == BAD

    report = verify(log)
    verdict = judge(Asker.READER, RecoveryMode.TOLERATE_TAIL, vouched=False, followed=goes_on)
    assert report.damaged == (verdict is Verdict.REFUSE)
    assert report.damaged or [finding.kind for finding in report.findings] == [TORN_TAIL]
    assert report.findings[0].lsn == BAD
    cuts = judge(Asker.RECOVERY, RecoveryMode.TOLERATE_TAIL, vouched=is_durable, followed=followed) is Verdict.CUT
    told = [finding.reason for finding in report.findings if WOULD_END in finding.reason]
    assert len(told) == (report.damaged and cuts), "where a reader stops and a writer would not, verify says so"

    verdict = judge(Asker.RECOVERY, mode, vouched=is_durable, followed=followed)
    if verdict is Verdict.REFUSE:
        with pytest.raises(CorruptLog) as caught:
            plan_repair(log, mode)
        assert caught.value.lsn == BAD
    else:
        plan = plan_repair(log, mode)
        assert (plan.cut is not None and plan.cut.lsn == BAD) == (verdict is Verdict.CUT)
        assert [place.lsn for place in plan.skipped] == ([BAD] if verdict is Verdict.SKIP else [])
        assert plan.intact_behind == (behind if verdict is Verdict.CUT else 0)

    shown = {(line.segment, line.offset) for line in dump(str(log)) if line.kind == "damage"}
    places = {(Path(each.path).name, each.offset) for each in report.findings if each.kind in (DAMAGE, TORN_TAIL)}
    assert places <= shown


@pytest.mark.parametrize("mode", RecoveryMode)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("how", ["published", "whole"])
def test_what_something_vouches_for_is_damage_wherever_it_stands(
    log: Path, mode: RecoveryMode, last: bool, how: str
) -> None:
    """It is below the published tail, or its checksum fits."""
    if how == "published":
        with WALWriter(log) as writer:
            for lsn in range(1, BAD + 1 if last else LAST + 1):
                writer.append(entry_of(lsn))
        (file,) = log.glob("*.wal")
        file.write_bytes(damage(file.read_bytes(), BAD))
    else:
        bad = layout.frame(BAD, [], count=1, body=layout.entry(7, b"key", b"value", 1))
        behind = b"" if last else b"".join(layout.frame(lsn, [layout.item(lsn)]) for lsn in (5, LAST))
        layout.write_segments(log, {1: layout.segment(1, layout.single(1, BAD - 1)) + bad + behind})
    found = read(log, mode=mode)
    verdict = judge(Asker.READER, mode, vouched=True, followed=not last)
    assert found.entries == entries(1, BAD) + (entries(5, LAST + 1) if verdict is Verdict.SKIP else [])
    assert isinstance(found.error, CorruptLog) == (verdict is Verdict.REFUSE)
    assert verify(log).findings[0].kind == DAMAGE
    verdict = judge(Asker.RECOVERY, mode, vouched=how == "whole", followed=not last)
    if verdict is Verdict.REFUSE:
        with pytest.raises(CorruptLog):
            plan_repair(log, mode)
    else:
        plan = plan_repair(log, mode)
        assert (plan.cut is not None, len(plan.skipped)) == ((True, 0) if verdict is Verdict.CUT else (False, 1))


@pytest.mark.parametrize("mode", RecoveryMode)
def test_where_a_reader_ends_for_now_it_goes_on_when_there_is_more(log: Path, mode: RecoveryMode) -> None:
    whole = layout.segment(1, layout.single(1, LAST))
    layout.write_segments(log, {1: damage(whole, LAST)})
    with WALReader(log, mode=mode) as reader:
        verdict = judge(Asker.READER, mode, vouched=False, followed=False)
        if verdict is Verdict.REFUSE:
            with pytest.raises(CorruptLog):
                reader.read_all()
            return
        assert reader.read_all() == entries(1, LAST)
        layout.write_segments(log, {1: whole})
        assert reader.read_all() == (entries(LAST, LAST + 1) if verdict is Verdict.END else [])


@pytest.mark.parametrize(("row", "build"), ROWS)
def test_recovery_does_what_the_table_says(row: tuple[RecoveryMode, bool, bool], build: Build, log: Path) -> None:
    mode, is_durable, followed = row
    _, behind, lost = build(log, is_durable)
    before = contents(log)
    verdict = judge(Asker.RECOVERY, mode, vouched=is_durable, followed=followed)

    if verdict is Verdict.REFUSE:
        with pytest.raises(CorruptLog) as caught:
            WALWriter(log, recovery=mode)
        assert caught.value.lsn == BAD
        assert caught.value.path.startswith(str(log))
        left = {name: data for name, data in contents(log).items() if name.endswith(".wal")}
        assert left == before
        assert not (log / "quarantine").exists()
        return

    with WALWriter(log, recovery=mode) as writer:
        report = writer.recovery_report
        assert report is not None
        assert report.mode is mode
        assert report.reason == "there is no control block"
        assert (report.durable_lsn == BAD) == is_durable
        if verdict is Verdict.CUT:
            assert report.cut is not None
            assert report.cut.lsn == BAD
            assert report.intact_behind == behind
            assert report.skipped == ()
            assert report.next_lsn == BAD
        else:
            assert followed
            assert report.cut is None
            assert report.quarantined == ()
            assert [place.lsn for place in report.skipped] == [BAD]
            assert report.next_lsn == LAST + 1
        next_lsn = report.next_lsn
        assert writer.append(entry_of(next_lsn)) == next_lsn

    # Nothing was changed and nothing is gone: each segment is in place or in quarantine, as it was.
    kept = {hashlib.sha256(data).digest() for data in contents(log).values()}
    assert all(hashlib.sha256(data).digest() in kept for data in before.values())
    for name, data in before.items():
        if int(name[:20]) < next_lsn:
            assert (log / name).read_bytes() == data

    expected = entries(1, next_lsn + 1)
    if verdict is Verdict.SKIP:
        expected = [entry for entry in expected if entry.lsn not in lost]
        assert read(log, mode=RecoveryMode.SALVAGE).entries == expected
        assert read(log).entries == entries(1, BAD), "what was salvaged around is still damage to everyone else"
    else:
        for any_mode in RecoveryMode:
            found = read(log, mode=any_mode)
            assert (found.entries, found.error) == (expected, None)
        findings = verify(log).findings
        assert all(finding.kind == EVIDENCE for finding in findings)


@pytest.mark.parametrize("mode", RecoveryMode)
@pytest.mark.parametrize("zeros", [0, 1, 48, 5000])
def test_a_log_that_ends_at_a_frame_or_in_zeros_is_not_damaged_in_any_mode(
    log: Path, mode: RecoveryMode, zeros: int
) -> None:
    layout.write_segments(log, {1: layout.segment(1, layout.single(1, LAST)) + bytes(zeros)})
    with WALWriter(log, recovery=mode) as writer:
        report = writer.recovery_report
        assert report is not None
        assert (report.cut, report.skipped, report.quarantined) == (None, (), ())
        assert writer.append(entry_of(LAST + 1)) == LAST + 1
    assert read(log).entries == entries(1, LAST + 2)


@pytest.mark.parametrize("mode", RecoveryMode)
def test_a_survey_touches_nothing(log: Path, mode: RecoveryMode) -> None:
    followed_in_its_segment(log, False)
    before = contents(log)
    directory = Directory(log)
    try:
        survey(directory, mode)
    except CorruptLog:
        pass
    directory.close()
    assert contents(log) == before


def test_damage_that_is_far_below_what_is_durable_is_not_looked_for(log: Path) -> None:
    """Opening must not read the whole log; `verify` and readers find it."""
    first = damage(layout.segment(1, layout.single(1, LAST)), 2)
    second = layout.segment(7, layout.single(7, 3), sequence=2, marker=7, durable_lsn=6)
    layout.write_segments(log, {1: first, 7: second})
    with WALWriter(log) as writer:
        assert writer.recovery_report is not None
        assert writer.recovery_report.cut is None
        assert writer.put(b"key", b"value") == 10
    assert verify(log).damaged
    with WALReader(log) as reader, pytest.raises(CorruptLog):
        reader.read_all()


def test_salvage_skips_every_damaged_range_and_reports_each(log: Path) -> None:
    first = layout.segment(1, layout.single(1, 6))
    for lsn in (2, 5):
        first = damage(first, lsn)
    second = damage(layout.segment(7, layout.single(7, 4), sequence=2, marker=7), 8)
    layout.write_segments(log, {1: first, 7: second})
    with WALWriter(log, recovery=RecoveryMode.SALVAGE) as writer:
        report = writer.recovery_report
        assert report is not None
        assert [place.lsn for place in report.skipped] == [2, 8]  # the second range of a segment lies behind the first
        assert writer.append(entry_of(11)) == 11
    found = read(log, mode=RecoveryMode.SALVAGE)
    assert found.entries == [entry for entry in entries(1, 12) if entry.lsn not in (2, 5, 8)]


def test_a_log_that_claims_more_entries_than_any_has_is_not_opened(log: Path) -> None:
    """It would be at the end of what an LSN can say, and append what nobody can read."""
    first = layout.segment(1, layout.single(1, 3)) + layout.frame((1 << 63) - 2, [layout.item(4)])
    layout.write_segments(log, {1: first})
    with pytest.raises(CorruptLog, match="no log has so many entries"):
        WALWriter(log, recovery=RecoveryMode.SALVAGE)
    assert len(list(log.glob("*.wal"))) == 1


def test_salvage_of_a_segment_full_of_hostile_markers_is_refused_or_done_but_typed(log: Path) -> None:
    marker = layout.MARKER.to_bytes(4, "little")
    data = damage(layout.segment(1, layout.single(1, 3)), 2)
    size = 150_000
    unit = marker + bytes(4) + (size // 2).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes(32)
    layout.write_segments(log, {1: data + unit * (size // len(unit)) + bytes(size)})
    try:
        with WALWriter(log, recovery=RecoveryMode.SALVAGE) as writer:
            assert writer.put(b"key", b"value") == 4
    except CorruptLog:
        pass
    assert [entry.lsn for entry in read(log, mode=RecoveryMode.SALVAGE).entries][:2] == [1, 3]
