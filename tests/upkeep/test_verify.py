"""Verify: each kind of finding, with its place; and nothing is changed."""

from collections.abc import Callable
from pathlib import Path

import pytest

import walpool
from tests.format import layout
from tests.read.logs import contents, copy_of, fill, leave_behind_tail, make, segment_files, spans, written
from walpool import LogNotFound, RecoveryMode, UnsupportedVersion, WALReader, WALWriter
from walpool.options import WriterOptions
from walpool.read.source import Source
from walpool.shared.catalog import Segment
from walpool.upkeep.check import DAMAGE, EVIDENCE, GAP, TORN_TAIL, Finding
from walpool.upkeep.repair import repair
from walpool.upkeep.verify import VerifyReport, verify

COUNT = 20


@pytest.fixture
def copy(log: Path, tmp_path: Path) -> Path:
    """20 entries in several segments, without a control block."""
    make(log, COUNT)
    return copy_of(log, tmp_path / "copy")


def kinds(report: VerifyReport) -> list[str]:
    return [finding.kind for finding in report.findings]


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x20
    file.write_bytes(data)


def test_a_sound_log_is_without_a_finding(log: Path, copy: Path) -> None:
    frames = [span for file in segment_files(log) for span in spans({file.name: file.read_bytes()})]
    for path, live in ((log, True), (copy, False)):
        report = verify(path)
        assert (report.findings, report.damaged, report.live) == ([], False, live)
        assert not hasattr(report, "__dict__")
        assert (report.entries, report.batches) == (COUNT, len(frames))
        assert report.bytes == sum(span.end - span.offset for span in frames)
        assert (report.first_lsn, report.next_lsn) == (1, COUNT + 1)
        assert report.segments == len(segment_files(log))
        assert report.path == str(path)


def test_one_segment_file_is_verified_alone(copy: Path) -> None:
    for file in segment_files(copy):
        report = verify(file)
        assert (report.findings, report.segments, report.path) == ([], 1, str(file))
        assert report.first_lsn == int(file.stem)
    flip(file, 70)
    assert kinds(verify(file)) != []


def test_an_empty_log_is_without_a_finding(log: Path) -> None:
    WALWriter(log).close()
    report = verify(log)
    assert (report.findings, report.entries, report.segments, report.next_lsn) == ([], 0, 1, 1)


def test_a_damaged_batch_in_the_middle_is_damage_and_says_which_lsns_are_lost(copy: Path) -> None:
    file = segment_files(copy)[1]
    span = next(spans({file.name: file.read_bytes()}))
    flip(file, span.offset + 30)
    report = verify(copy)
    assert kinds(report) == [DAMAGE, GAP]
    damage, gap = report.findings
    assert (damage.path, damage.offset, damage.lsn) == (str(file), span.offset, span.first_lsn)
    assert gap.reason == f"LSN {span.first_lsn} to {span.next_lsn - 1} are lost"
    assert report.damaged
    assert report.entries == COUNT - (span.next_lsn - span.first_lsn)
    assert report.next_lsn == COUNT + 1


def test_every_damaged_place_is_found_in_one_pass(copy: Path) -> None:
    lost = 0
    for file in segment_files(copy)[:-1]:
        *_, span = spans({file.name: file.read_bytes()})
        flip(file, span.end - 1)
        lost += span.next_lsn - span.first_lsn
    report = verify(copy)
    assert kinds(report).count(DAMAGE) == len(segment_files(copy)) - 1
    assert report.entries == COUNT - lost


def test_junk_between_batches_is_damage_without_a_gap(copy: Path) -> None:
    file = segment_files(copy)[1]
    data = file.read_bytes()
    span = list(spans({file.name: data}))[1]
    file.write_bytes(data[: span.offset] + b"junk" * 10 + data[span.offset :])
    report = verify(copy)
    assert kinds(report) == [DAMAGE]
    assert report.entries == COUNT


def test_zeros_before_intact_batches_are_damage(copy: Path) -> None:
    file = segment_files(copy)[1]
    data = file.read_bytes()
    span = next(spans({file.name: data}))
    file.write_bytes(data[: span.offset] + bytes(span.end - span.offset) + data[span.end :])
    report = verify(copy)
    assert kinds(report) == [DAMAGE, GAP]
    assert "zeros" in report.findings[0].reason


@pytest.mark.parametrize("marker", [None, 0x7700])
def test_a_gap_that_a_copy_by_files_would_leave_too_says_so(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: int | None
) -> None:
    """One segment in 256 has a marker that begins with a zero: that is no hole."""
    if marker is not None:
        monkeypatch.setattr("walpool.system.processes.random_word", lambda: marker)
    make(log, COUNT)
    copy = copy_of(log, tmp_path / "copy")
    file = segment_files(copy)[1]
    data = file.read_bytes()
    span = next(spans({file.name: data}))
    for changed in (
        data[: span.offset],
        data[: span.offset + 20],
        data[: span.offset] + bytes(len(data) - span.offset),
        data[: span.offset] + bytes(20) + data[span.offset + 20 :],
    ):
        file.write_bytes(changed)
        told = " ".join(finding.reason for finding in verify(copy).findings)
        assert "walpool copy" in told
        assert "--mode point-in-time" in told
    flipped = bytearray(data)
    flipped[span.offset + 50] ^= 1
    file.write_bytes(flipped)
    assert "walpool copy" not in " ".join(finding.reason for finding in verify(copy).findings)


def test_a_missing_segment_is_a_gap(copy: Path) -> None:
    files = segment_files(copy)
    first, end = int(files[1].stem), int(files[2].stem)
    files[1].unlink()
    report = verify(copy)
    assert kinds(report) == [GAP]
    assert report.findings[0].reason.startswith(f"LSN {first} to {end - 1} are missing")
    assert report.findings[0].path == str(files[2])
    assert report.damaged


def test_only_the_gap_behind_a_segment_that_ends_early_says_how_a_copy_may_have_made_it(copy: Path) -> None:
    """And not the one behind a header that is damaged, before it or after it."""
    files = segment_files(copy)
    flip(files[0], 50)
    *_, span = spans({files[1].name: files[1].read_bytes()})
    files[1].write_bytes(files[1].read_bytes()[: span.offset])
    flip(files[2], 50)
    gaps = [finding for finding in verify(copy).findings if finding.kind == GAP]
    assert [finding.path for finding in gaps] == [str(file) for file in files[1:4]]
    assert ["walpool copy" in finding.reason for finding in gaps] == [False, True, False]


def test_what_is_missing_at_the_beginning_and_retention_did_not_remove_is_a_gap(log: Path) -> None:
    make(log, COUNT)
    files = segment_files(log)
    second = int(files[1].stem)
    files[0].unlink()
    (found,) = verify(log).findings
    assert (found.kind, found.path, found.offset, found.lsn) == (GAP, str(files[1]), 0, second)
    assert found.reason == f"LSN 1 to {second - 1} are missing, and retention has not removed them"


@pytest.mark.parametrize("older_too", [False, True])
def test_a_segment_that_goes_while_it_is_verified_is_a_gap_unless_those_before_it_went_too(
    copy: Path, monkeypatch: pytest.MonkeyPatch, older_too: bool
) -> None:
    """Retention takes the oldest first."""
    files = segment_files(copy)
    real = Source.open

    def too_late(source: Source, first_lsn: int) -> Segment:
        if first_lsn == int(files[1].stem):
            for file in files[0 if older_too else 1 : 2]:
                file.unlink(missing_ok=True)
        return real(source, first_lsn)

    monkeypatch.setattr(Source, "open", too_late)
    found = [(each.kind, each.path, each.offset, each.reason) for each in verify(copy).findings]
    if older_too:
        assert found == []
    else:
        first, end = int(files[1].stem), int(files[2].stem)
        assert found[0][:3] == (GAP, str(files[1]), 0)
        assert found[0][3].startswith("the segment was removed while it was verified")
        assert [(kind, path) for kind, path, *_ in found[1:]] == [(GAP, str(files[2]))]
        assert found[1][3].startswith(f"LSN {first} to {end - 1} are missing")


def test_what_retention_removed_is_no_gap(copy: Path) -> None:
    files = segment_files(copy)
    files[0].unlink()
    report = verify(copy)
    assert report.findings == []
    assert report.first_lsn == int(files[1].stem)


def test_a_sealed_segment_that_ends_early_is_a_gap(copy: Path) -> None:
    file = segment_files(copy)[1]
    *_, span = spans({file.name: file.read_bytes()})
    file.write_bytes(file.read_bytes()[: span.offset])
    assert kinds(verify(copy)) == [GAP]
    file.write_bytes(file.read_bytes()[: span.offset - 3])
    assert DAMAGE in kinds(verify(copy))


def test_a_damaged_header_is_damage(copy: Path) -> None:
    files = segment_files(copy)
    flip(files[1], 50)
    report = verify(copy)
    assert kinds(report) == [DAMAGE, GAP]
    assert (report.findings[0].path, report.findings[0].offset) == (str(files[1]), 0)


def test_a_damaged_header_of_the_last_segment_is_damage_when_frames_stand_behind_it(copy: Path) -> None:
    flip(segment_files(copy)[-1], 50)
    assert kinds(verify(copy)) == [DAMAGE]


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_tail_of_a_copy_is_no_damage(copy: Path, cut: int) -> None:
    file = segment_files(copy)[-1]
    *_, span = spans({file.name: file.read_bytes()})
    file.write_bytes(file.read_bytes()[:-cut])
    report = verify(copy)
    assert kinds(report) == [TORN_TAIL]
    assert (report.findings[0].offset, report.findings[0].lsn) == (span.offset, span.first_lsn)
    assert not report.damaged
    assert report.next_lsn == span.first_lsn


@pytest.mark.parametrize("head", [b"", b"WALPOOL", bytes(64)])
def test_a_segment_that_was_being_made_is_a_torn_tail(copy: Path, head: bytes) -> None:
    (copy / layout.name(COUNT + 1)).write_bytes(head)
    report = verify(copy)
    assert kinds(report) == [TORN_TAIL]
    assert report.entries == COUNT


def test_zeros_behind_the_tail_are_no_finding(copy: Path) -> None:
    file = segment_files(copy)[-1]
    file.write_bytes(file.read_bytes() + bytes(5000))
    assert verify(copy).findings == []


def test_damage_at_the_end_of_a_live_log_is_damage(log: Path) -> None:
    with WALWriter(log) as writer:
        fill(writer, COUNT)
        flip(segment_files(log)[-1], len(written(segment_files(log)[-1])) - 1)
        report = verify(log)
        assert kinds(report) == [DAMAGE]
        assert report.live


def test_what_is_behind_the_tail_of_a_live_log_is_no_finding(log: Path) -> None:
    with WALWriter(log) as writer:
        fill(writer, COUNT)
        file = segment_files(log)[-1]
        leave_behind_tail(file, b"an append under way")
        assert verify(log).findings == []


def test_what_a_recovery_left_behind_the_cut_is_evidence(log: Path, tmp_path: Path) -> None:
    make(log, COUNT, size_limit=64 << 20)
    copy = copy_of(log, tmp_path / "copy")
    file = segment_files(copy)[-1]
    *_, span = spans({file.name: file.read_bytes()})
    flip(file, span.end - 1)
    with WALWriter(copy) as writer:
        assert writer.put(b"key", b"value") == span.first_lsn
    for path in (copy, copy_of(copy, copy.with_name("another"))):
        report = verify(path)
        assert kinds(report) == [EVIDENCE]
        assert (report.findings[0].path, report.findings[0].offset) == (str(path / file.name), span.offset)
        assert not report.damaged
        assert report.next_lsn == span.first_lsn + 1


def test_intact_batches_behind_the_cut_are_evidence_too(tmp_path: Path) -> None:
    log = layout.write_segments(
        tmp_path / "log",
        {
            1: layout.segment(1, layout.single(1, 6)),
            4: layout.segment(4, layout.single(4, 1, 9), sequence=2, marker=7, durable_lsn=3),
        },
    )
    report = verify(log)
    assert kinds(report) == [EVIDENCE]
    assert (report.entries, report.next_lsn) == (4, 5)


def test_a_batch_that_reaches_into_the_next_segment_is_damage(tmp_path: Path) -> None:
    log = layout.write_segments(
        tmp_path / "log",
        {
            1: layout.segment(1, [[layout.item(1)], [layout.item(2), layout.item(3)]]),
            3: layout.segment(3, layout.single(3, 1), sequence=2, marker=7),
        },
    )
    assert DAMAGE in kinds(verify(log))


def test_a_body_that_does_not_hold_its_entries_is_damage_although_its_checksum_is_right(tmp_path: Path) -> None:
    bad = layout.frame(2, [], count=1, body=layout.entry(7, b"k", b"v", 1))
    data = layout.segment(1, layout.single(1, 1)) + bad + layout.frame(3, [layout.item(3)])
    log = layout.write_segments(tmp_path / "log", {1: data})
    report = verify(log)
    assert kinds(report) == [DAMAGE]
    assert report.findings[0].lsn == 2
    assert report.next_lsn == 4


def test_a_newer_format_is_not_damage(tmp_path: Path) -> None:
    layout.write_segments(tmp_path / "major", {1: layout.header(version=0x0200)})
    with pytest.raises(UnsupportedVersion):
        verify(tmp_path / "major")
    codec = layout.segment(1, layout.single(1, 1)) + layout.frame(2, [layout.item(2)], flags=1)
    layout.write_segments(tmp_path / "codec", {1: codec})
    with pytest.raises(UnsupportedVersion):
        verify(tmp_path / "codec")


def test_where_there_is_no_log_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound):
        verify(tmp_path / "missing")
    with pytest.raises(LogNotFound):
        verify(tmp_path)


def test_progress_rises_to_the_whole(copy: Path) -> None:
    told: list[tuple[int, int]] = []
    flip(segment_files(copy)[1], 100)
    for file in segment_files(copy):
        file.write_bytes(file.read_bytes() + bytes(100))  # written ahead: it counts as read, too
    verify(copy, lambda done, total: told.append((done, total)))
    total = sum(file.stat().st_size for file in segment_files(copy))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (total, total)


def test_verifying_changes_nothing(log: Path, copy: Path) -> None:
    flip(segment_files(copy)[0], 90)
    segment_files(copy)[2].unlink()
    for path in (log, copy):
        before = contents(path)
        verify(path)
        assert contents(path) == before


def test_only_damage_and_gaps_count_as_damage() -> None:
    found = {kind: Finding(kind, "here", 0, 1, "because").is_damage for kind in (DAMAGE, GAP, TORN_TAIL, EVIDENCE)}
    assert found == {DAMAGE: True, GAP: True, TORN_TAIL: False, EVIDENCE: False}


def test_a_newer_codec_is_damage_to_no_tool(tmp_path: Path) -> None:
    """More entries than an uncompressed frame could hold: only the flags tell them from damage."""
    newer = layout.frame(3, [], count=1000, body=bytes(2000), raw_length=50_000, flags=3)
    data = layout.segment(1, layout.single(1, 2)) + newer + layout.frame(1003, [layout.item(3)])
    log = layout.write_segments(tmp_path / "log", {1: data})
    uses: list[Callable[[], object]] = [
        lambda: WALWriter(log),
        lambda: WALWriter(log, recovery=RecoveryMode.SALVAGE),
        lambda: verify(log),
        lambda: repair(log, WriterOptions(recovery=RecoveryMode.POINT_IN_TIME)),
        lambda: walpool.copy(log, tmp_path / "copy"),
        lambda: list(WALReader(log)),
    ]
    for use in uses:
        with pytest.raises(UnsupportedVersion, match="codec 3"):
            use()
    assert segment_files(log)[0].read_bytes() == data
    assert not (tmp_path / "copy").exists()
