"""Damage: a small log of several segments cut at every byte, flipped at every byte, and mangled at random.

What is read is a prefix of the entries, or a prefix and a named damage, never another entry; SALVAGE reads what is
intact, in order. All of it without a control block, as a copy is; the last tests damage a live log.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from types import NoneType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import edges
from tests.format import layout
from tests.read.logs import Span, contents, copy_of, entries, entry_of, fill, make, read, segment_files, spans, written
from walpool import CorruptLog, RecoveryMode, WALEntry, WALReader, WALWriter

COUNT = 12
ALL = entries(1, COUNT + 1)
TOLERATE, STRICT = RecoveryMode.TOLERATE_TAIL, RecoveryMode.STRICT
POINT, SALVAGE = RecoveryMode.POINT_IN_TIME, RecoveryMode.SALVAGE


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """File name to bytes of each segment, as a writer wrote them."""
    place = tmp_path_factory.mktemp("original")
    assert make(place / "log", COUNT, size_limit=300) == ALL
    files = {file.name: written(file) for file in segment_files(place / "log")}
    assert len(files) >= 4
    assert max(span.next_lsn - span.first_lsn for span in spans(files)) == 3
    return files


@pytest.fixture
def log(original: dict[str, bytes], tmp_path: Path) -> Path:
    """A fresh copy, without a control block."""
    path = tmp_path / "log"
    path.mkdir()
    restore(path, original)
    return path


def restore(log: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (log / name).write_bytes(data)


def entries_in(found: Iterator[Span]) -> list[WALEntry]:
    return [entry_of(lsn) for span in found for lsn in range(span.first_lsn, span.next_lsn)]


@pytest.mark.slow
def test_every_flipped_byte_is_found_and_nothing_else_is_read(original: dict[str, bytes], log: Path) -> None:
    files = list(original)
    all_spans = list(spans(original))
    for name, data in original.items():
        is_last = name == files[-1]
        for at in range(len(data)):
            mask = (0xFF, 0x01, 0x80)[at % 3]
            changed = bytearray(data)
            changed[at] ^= mask
            (log / name).write_bytes(changed)
            place = f"byte {at} of {name} ^ {mask:#x}"
            if at < 64:  # the header: no frame of this segment can be read without its marker
                lost = [span for span in all_spans if span.file == name]
            else:
                lost = [span for span in all_spans if span.file == name and span.offset <= at < span.end]
            before = [span for span in all_spans if span.first_lsn < lost[0].first_lsn]
            intact = entries_in(span for span in all_spans if span not in lost)
            torn = is_last and at >= 64 and lost[-1] is all_spans[-1]

            found = read(log, mode=STRICT)
            assert found.entries == entries_in(iter(before)), place
            assert isinstance(found.error, CorruptLog), place
            assert (found.error.path, found.error.lsn) == (str(log / name), lost[0].first_lsn), place

            found = read(log, mode=TOLERATE)
            assert found.entries == entries_in(iter(before)), place
            assert (found.error is None) == torn, place

            found = read(log, mode=POINT)
            assert (found.entries, found.error) == (entries_in(iter(before)), None), place

            found = read(log, mode=SALVAGE)
            assert (found.entries, found.error) == (intact, None), place
        (log / name).write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("filled", [False, True], ids=["cut", "zeros"])
def test_a_log_cut_at_every_byte_is_read_up_to_there(original: dict[str, bytes], log: Path, filled: bool) -> None:
    """Everything behind one byte is gone, or reads as zeros as after a power cut: later segments are gone."""
    all_spans = list(spans(original))
    for name in reversed(original):
        data = original[name]
        for length in range(len(data) - 1, -1, -1):
            cut = data[:length] + bytes(len(data) - length if filled else 0)
            (log / name).write_bytes(cut)
            place = f"{name} cut to {length}"
            whole = [span for span in all_spans if span.file < name or (span.file == name and span.end <= length)]
            expected = entries_in(iter(whole))
            # A header is in one sector: it is there, or it is short or zeros. A part of it and zeros is damage.
            torn = cut[:64] == data[:64] or len(cut) < 64 or not any(cut[:64])
            for mode in (TOLERATE, POINT, SALVAGE) if length % 3 == 0 else (TOLERATE,):
                found = read(log, mode=mode)
                assert found.entries == expected, (place, mode)
                assert (found.error is None) == (torn or mode is not TOLERATE), (place, mode)
            found = read(log, mode=STRICT)
            assert found.entries == expected, place
            frames_end = max([64, *(span.end for span in whole if span.file == name)])
            clean = cut[:64] == data[:64] and not any(cut[frames_end:])  # all that is left of it is zeros
            assert isinstance(found.error, NoneType if clean else CorruptLog), place
        (log / name).unlink()


@pytest.mark.slow
def test_a_segment_cut_at_every_byte_is_a_gap_before_the_next(original: dict[str, bytes], log: Path) -> None:
    all_spans = list(spans(original))
    names = list(original)
    for name in names[:-1]:
        data = original[name]
        for length in range(len(data)):
            (log / name).write_bytes(data[:length])
            place = f"{name} cut to {length}"
            lost = [span for span in all_spans if span.file == name and span.end > length]
            before = entries_in(span for span in all_spans if span.first_lsn < lost[0].first_lsn)
            for mode in (TOLERATE, STRICT):
                found = read(log, mode=mode)
                assert found.entries == before, place
                assert isinstance(found.error, CorruptLog), place
                assert found.error.lsn == lost[0].first_lsn, place
            assert read(log, mode=POINT).entries == before, place
            found = read(log, mode=SALVAGE)
            intact = entries_in(span for span in all_spans if span not in lost)
            assert (found.entries, found.error) == (intact, None), place
        (log / name).write_bytes(data)


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_segment_in_the_middle_is_damage_not_the_end(
    original: dict[str, bytes], log: Path, missing: int
) -> None:
    names = list(original)
    first, end = int(names[missing][:20]), int(names[missing + 1][:20])
    (log / names[missing]).unlink()
    for start in (1, first - 1, first, end - 1):
        before = entries(start, first) if start < first else []
        for mode in (TOLERATE, STRICT):
            found = read(log, start=start, mode=mode)
            assert found.entries == before
            assert isinstance(found.error, CorruptLog)
            assert found.error.lsn == first
        found = read(log, start=start, mode=POINT)
        assert (found.entries, found.error) == (before, None)
        found = read(log, start=start, mode=SALVAGE)
        assert (found.entries, found.error) == (before + entries(end, COUNT + 1), None)
    assert read(log, start=end).entries == entries(end, COUNT + 1)


def test_segments_that_change_places_are_damage(original: dict[str, bytes], log: Path) -> None:
    names = list(original)
    (log / names[1]).write_bytes(original[names[2]])
    (log / names[2]).write_bytes(original[names[1]])
    found = read(log)
    assert isinstance(found.error, CorruptLog)
    assert found.entries == entries(1, int(names[1][:20]))
    found = read(log, mode=SALVAGE)
    assert found.entries == entries(1, int(names[1][:20])) + entries(int(names[3][:20]), COUNT + 1)


def test_a_segment_that_counts_further_than_the_next_one_starts_counts_up_to_there(
    original: dict[str, bytes], log: Path
) -> None:
    """A recovery that cut leaves the frames behind the cut in place; the next segment's name says where."""
    last = list(original)[-1]
    in_last = [span for span in spans(original) if span.file == last]
    cut = in_last[-1].first_lsn
    assert len(in_last) > 1
    layout.write_segments(log, {cut: layout.segment(cut, layout.single(cut, 2, 9), sequence=9, marker=77)})
    expected = entries(1, cut) + entries(cut, cut + 2, 9)
    for mode in RecoveryMode:
        for start in (1, cut - 1, cut, cut + 1):
            found = read(log, mode=mode, start=start)
            assert (found.entries, found.error) == (expected[start - 1 :], None)


def test_a_batch_that_reaches_into_the_next_segment_is_not_read(tmp_path: Path) -> None:
    log = layout.write_segments(
        tmp_path / "log",
        {
            1: layout.segment(1, [[layout.item(1)], [layout.item(2), layout.item(3)]]),
            3: layout.segment(3, layout.single(3, 2), sequence=2, marker=5),
        },
    )
    for mode in (TOLERATE, STRICT):
        found = read(log, mode=mode)
        assert found.entries == entries(1, 2)
        assert isinstance(found.error, CorruptLog)
    assert read(log, mode=SALVAGE).entries == entries(1, 2) + entries(3, 5)


def leftovers(original: dict[str, bytes]) -> dict[str, bytes]:
    names = list(original)
    last, other = original[names[-1]], original[names[0]]
    marker = int.from_bytes(last[56:60], "little")
    torn = layout.frame(COUNT + 1, [layout.item(COUNT + 1)], marker=marker)
    return {
        "random": bytes(range(1, 200)),
        "one byte": b"\x01",
        "frames of this segment's past": last[64:],
        "frames of another segment": other[64:],
        "a whole other segment": other,
        "zeros, then frames of this segment's past": bytes(100) + last[64:],
        "a torn frame": torn[:-1],
        "a torn frame whose payload holds frames": layout.frame(
            COUNT + 1, [(1, b"", last[64:] + last[64:], 1)], marker=marker
        )[:-1],
        "its marker over and over": last[56:60] * 60,
    }


@pytest.mark.parametrize("kind", leftovers({"0": bytes(99)}))
def test_stale_bytes_behind_the_tail_are_a_torn_tail(original: dict[str, bytes], log: Path, kind: str) -> None:
    name, data = list(original.items())[-1]
    (log / name).write_bytes(data + leftovers(original)[kind])
    for mode in (TOLERATE, POINT, SALVAGE):
        with WALReader(log, mode=mode) as reader:
            assert reader.read_all() == ALL
            assert reader.read_all() == []
    found = read(log, mode=STRICT)
    assert found.entries == ALL
    assert isinstance(found.error, CorruptLog)
    assert found.error.offset == len(data)


def test_stale_bytes_behind_the_tail_are_counted_once(original: dict[str, bytes], log: Path) -> None:
    name, data = list(original.items())[-1]
    (log / name).write_bytes(data + b"stale" * 30)
    with WALReader(log) as reader:
        for _ in range(3):
            reader.read_all()
        assert reader.stats.damaged == 1


@pytest.mark.parametrize("count", [1, 47, 48, 64, 5000, 100_000])
def test_zeros_behind_the_tail_are_space_that_was_not_used(original: dict[str, bytes], log: Path, count: int) -> None:
    name, data = list(original.items())[-1]
    (log / name).write_bytes(data + bytes(count))
    for mode in RecoveryMode:
        with WALReader(log, mode=mode) as reader:
            assert reader.read_all() == ALL
            assert reader.stats.damaged == 0


def test_zeros_before_intact_frames_are_damage(original: dict[str, bytes], log: Path) -> None:
    name, data = list(original.items())[-1]
    hole = next(span for span in spans({name: data}))
    (log / name).write_bytes(data[: hole.offset] + bytes(hole.end - hole.offset) + data[hole.end :])
    for mode in (TOLERATE, STRICT):
        found = read(log, mode=mode)
        assert found.entries == entries(1, hole.first_lsn)
        assert isinstance(found.error, CorruptLog)
        assert "zeros" in found.error.reason
    assert read(log, mode=SALVAGE).entries == entries(1, hole.first_lsn) + entries(hole.next_lsn, COUNT + 1)


@functools.cache
def mangled_log() -> dict[str, bytes]:
    """Built, not written: hypothesis wants the same bytes each time."""
    return {
        layout.name(first): layout.segment(first, batches, marker=1000 + first, sequence=at)
        for at, (first, batches) in enumerate(
            {
                1: [[layout.item(1)], [layout.item(lsn) for lsn in (2, 3, 4)], [layout.item(5)]],
                6: layout.single(6, 4),
                10: [[layout.item(lsn) for lsn in range(10, 14)], [layout.item(14)], [layout.item(15)]],
            }.items(),
            1,
        )
    }


@st.composite
def mangled(draw: st.DrawFn) -> dict[str, bytes]:
    """The log with bytes flipped, cut out, put in, doubled, zeroed, or swapped, and files missing or added."""
    files = {name: bytearray(data) for name, data in mangled_log().items()}
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(files)))
        data = files[name]
        ends = edges.around(0, 64, len(data), *(at for span in layout.spans(bytes(data)) for at in span[:2]))
        ends = tuple(at for at in ends if 0 <= at <= len(data))
        at = draw(st.one_of(st.integers(0, len(data)), st.sampled_from(ends)))
        end = draw(st.one_of(st.integers(at, at + 80), st.sampled_from(ends)))
        at, end = min(at, end), max(at, end)
        piece = bytes(data[at:end])
        kind = draw(
            st.sampled_from(["flip", "cut", "truncate", "insert", "double", "zero", "foreign", "unlink", "copy"])
        )
        if kind == "flip" and at < len(data):
            data[at] ^= draw(st.integers(1, 255))
        elif kind == "cut":
            del data[at:end]
        elif kind == "truncate":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(edges.binary(48, 64, max_size=80))
        elif kind == "double":
            data[at:at] = piece
        elif kind == "zero":
            data[at:end] = bytes(len(piece))
        elif kind == "foreign":
            other = draw(st.sampled_from(sorted(files)))
            data[at:end] = files[other][64:]
        elif kind == "unlink" and len(files) > 1:
            del files[name]
        elif kind == "copy":
            files[layout.name(draw(st.integers(2, 20)))] = bytearray(data)
    return {name: bytes(data) for name, data in files.items()}


@layout.examples(150)
@given(files=mangled(), start=edges.integers(1, 17, *edges.around(6, 10, 16)), capacity=st.sampled_from([1, 100, 8192]))
def test_a_mangled_log_gives_a_prefix_or_a_named_damage(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], start: int, capacity: int
) -> None:
    log = tmp_path_factory.mktemp("mangled", numbered=True)
    restore(log, files)
    expected = entries(start, 16)
    for mode in RecoveryMode:
        found = read(log, mode=mode, start=start, initial_capacity=capacity)
        if mode is SALVAGE:
            lsns = [entry.lsn for entry in found.entries]
            assert lsns == sorted(set(lsns))
            assert all(entry == entry_of(entry.lsn) for entry in found.entries)
        else:
            assert found.entries == expected[: len(found.entries)]
    for name, data in files.items():
        assert (log / name).read_bytes() == data


@pytest.mark.parametrize("start", [1, 3, 4])
def test_a_frame_whose_entries_do_not_add_up_is_damage_like_any_other(tmp_path: Path, start: int) -> None:
    """Its checksum is right: a writer's bug, or forged."""
    whole = layout.segment(1, layout.single(1, 2))
    items = [layout.item(3), layout.item(4)]
    body = layout.entry(*items[0]) + layout.entry(*items[1])[:-1]
    odd = layout.frame(3, items, body=body)
    log = layout.write_segments(
        tmp_path / "log",
        {1: whole + odd + layout.frame(5, [layout.item(5)]), 6: layout.segment(6, layout.single(6, 2))},
    )
    before = entries(start, 3)
    for mode in (TOLERATE, STRICT):
        with WALReader(log, start, mode=mode) as reader:
            found: list[WALEntry] = []
            for _ in range(3):
                with pytest.raises(CorruptLog, match="past its end") as caught:
                    found.extend(reader)
                assert (caught.value.offset, caught.value.lsn) == (len(whole), 3)
                assert reader.next_lsn == max(3, start)
            assert found == before
    for mode, behind in ((POINT, []), (SALVAGE, entries(5, 8))):
        with WALReader(log, start, mode=mode) as reader:
            assert reader.read_all() == before + behind
            assert reader.read_all() == []
            assert reader.stats.damaged == 1


# A live log


def test_damage_below_the_published_tail_is_damage_even_at_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    make(log, COUNT)
    last = segment_files(log)[-1]
    data = written(last)
    *_, span = spans({last.name: data})
    before, behind = entries(1, span.first_lsn), entries(span.next_lsn, COUNT + 1)
    for damaged in (
        data[: span.offset + 10] + b"\xff" + data[span.offset + 11 :],
        data[: span.offset] + bytes(span.end - span.offset),
        data[: span.end - 1],
        data[: span.offset],
        data[:64],
    ):
        last.write_bytes(damaged)
        for mode in (TOLERATE, STRICT):
            found = read(log, mode=mode)
            assert isinstance(found.error, CorruptLog)
            assert (found.error.path, found.error.offset) == (str(last), min(span.offset, max(64, len(damaged))))
            assert found.entries == before[: len(found.entries)]
        for mode in (POINT, SALVAGE):
            found = read(log, mode=mode)
            assert found.error is None
            assert found.entries == before[: len(found.entries)] + behind
    assert behind == []


def test_salvage_reads_on_behind_damage_in_a_live_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with WALWriter(log, size_limit=400) as writer:
        fill(writer, COUNT)
        files = {file.name: file.read_bytes() for file in segment_files(log)}
        for span in spans(files):
            data = bytearray(files[span.file])
            data[span.offset + 9] ^= 0x10
            (log / span.file).write_bytes(data)
            intact = [entry for entry in ALL if not span.first_lsn <= entry.lsn < span.next_lsn]
            with WALReader(log, mode=SALVAGE) as reader:
                assert reader.read_all() == intact
                assert reader.stats.damaged == 1
            (log / span.file).write_bytes(files[span.file])
        assert read(log).entries == ALL


def test_reading_a_damaged_log_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path / "log", COUNT)
    log = copy_of(tmp_path / "log", tmp_path / "copy")
    file = segment_files(log)[1]
    file.write_bytes(file.read_bytes()[:-5])
    (segment_files(log)[-1]).write_bytes(segment_files(log)[-1].read_bytes()[:-5])
    before = contents(log)
    for mode in RecoveryMode:
        read(log, mode=mode)
    assert contents(log) == before


def test_reading_again_after_an_error_gives_the_error_again(log: Path) -> None:
    file = segment_files(log)[1]
    data = bytearray(file.read_bytes())
    data[80] ^= 1
    file.write_bytes(data)
    with WALReader(log) as reader:
        found: list[WALEntry] = []
        for _ in range(3):
            with pytest.raises(CorruptLog):
                found.extend(reader)
        assert reader.stats.damaged == 1
    assert found == entries(1, int(file.stem))


@pytest.mark.parametrize("at", [50, 64 + 50], ids=["header", "frame"])
def test_point_in_time_has_ended_for_good_though_the_damage_is_mended(log: Path, at: int) -> None:
    file = segment_files(log)[1]
    whole = file.read_bytes()
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with WALReader(log, mode=POINT) as reader:
        assert [entry.lsn for entry in reader] == [*range(1, int(file.stem))]
        file.write_bytes(whole)
        assert reader.read_entry() is None
        assert list(reader) == []
