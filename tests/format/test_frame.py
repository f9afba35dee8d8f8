"""Frames: what `read_frame` sees in any bytes, and how intact frames are found again behind damage."""

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import walpool.format.frame as frame_module
from tests import edges
from tests.format import layout
from tests.format.layout import MARKER, frame, item
from walpool import WALEntry, WALHeader, WALReader, WALWriter
from walpool.format.frame import (
    FRAME_BYTES,
    Damage,
    End,
    Frame,
    SearchExhausted,
    find_frames,
    read_frame,
)
from walpool.format.names import MAX_LSN

TWO = frame(7, [item(7), item(8)], appended_at=11, durable_lsn=3, writer=2)
MARKER_BYTES = MARKER.to_bytes(4, "little")

ITEMS = st.tuples(
    st.sampled_from([1, 2]), edges.binary(max_size=20), edges.binary(max_size=40),
    edges.integers(0, edges.U64, *edges.EDGES.timestamps),
)  # fmt: skip
LSNS = st.integers(1, 1000) | st.sampled_from([1, MAX_LSN - 5, MAX_LSN - 4, MAX_LSN - 2, MAX_LSN - 1, MAX_LSN])
FRAMES = st.builds(
    frame,
    LSNS,
    st.lists(ITEMS, min_size=1, max_size=4),
    appended_at=edges.integers(0, 1 << 62),
    durable_lsn=edges.integers(0, 1000),
    writer=edges.integers(0, 0xFFFF, *edges.EDGES.slots),
)
JUNK = st.one_of(
    st.binary(max_size=60),
    st.builds(bytes, st.integers(0, 100)),
    st.just(MARKER_BYTES),
    FRAMES.map(lambda data: data[:-1]),  # one byte short: the rest of it is eaten from what follows
    FRAMES.map(lambda data: data[:8] + b"\xff\xff\xff\x7f" + data[12:]),
)


# One frame


def test_a_frame_says_all_that_its_header_does() -> None:
    found = read_frame(b"before" + TWO + b"after", 6, MARKER, 7)
    assert found == Frame(6, 6 + FRAME_BYTES, 6 + len(TWO), 7, 2, 11, 3, 0, 2)
    assert isinstance(found, Frame)
    assert found.next_lsn == 9


@layout.examples(300)
@given(
    st.lists(st.one_of(FRAMES, JUNK), max_size=4).map(b"".join),
    edges.integers(0, 300, 47, 48, 49),
    st.sampled_from([MARKER, 0, *edges.EDGES.markers]),
    edges.integers(0, 1001) | LSNS,
    st.one_of(st.none(), edges.integers(-10, 1 << 40, 0, 47, 48, 49)),
    st.sampled_from([bytes, bytearray, memoryview]),
)
@example(b"", 0, MARKER, 0, None, bytes)
@example(bytes(48), 0, MARKER, 1, None, bytes)
@example(TWO, 0, MARKER, 7, 10, bytes)
def test_read_frame_never_raises_and_a_frame_is_its_own_encoding(
    data: bytes, offset: int, marker: int, lsn: int, remaining: int | None, form: type
) -> None:
    found = read_frame(form(data), offset, marker, lsn, remaining)
    assert type(found) in (Frame, End, Damage)
    assert found.offset == offset
    if isinstance(found, Frame):
        body = data[found.body : found.end]
        again = frame(
            found.first_lsn, [], marker=marker, appended_at=found.appended_at, durable_lsn=found.durable_lsn,
            flags=found.flags, writer=found.writer, count=found.count, body=body,
        )  # fmt: skip
        assert data[offset : found.end] == again
        assert lsn in (0, found.first_lsn)


@layout.examples(150)
@given(edges.binary(47, 48, 49, max_size=200), edges.integers(0, 200, 47, 48))
def test_bytes_that_do_not_hold_the_marker_hold_no_frame(data: bytes, offset: int) -> None:
    found = read_frame(data, offset, MARKER, 0)
    assert not isinstance(found, Frame) or MARKER_BYTES in data


def test_every_flipped_bit_of_a_frame_is_damage() -> None:
    for at in range(len(TWO)):
        for bit in range(8):
            changed = bytearray(TWO)
            changed[at] ^= 1 << bit
            assert isinstance(read_frame(changed, 0, MARKER, 0), Damage), (at, bit)


def test_zeros_are_the_end() -> None:
    for length in (0, 1, 47, 48, 49, 500):
        for offset in (0, 1, length, length + 1, length + 1000):
            assert read_frame(bytes(length), offset, MARKER, 1) == End(offset)


def test_anything_else_where_a_frame_should_start_is_damage() -> None:
    for data in (b"x", bytes(46) + b"x", bytes(47) + b"x", b"x" + bytes(60), TWO[:20], TWO[:47], b"\xff" * 48):
        found = read_frame(data, 0, MARKER, 7)
        assert isinstance(found, Damage) and not found.needed, data


@pytest.mark.parametrize("have", range(len(TWO)))
def test_needed_says_how_many_bytes_could_mend_a_short_buffer(have: int) -> None:
    found = read_frame(TWO[:have], 0, MARKER, 7, len(TWO))
    steps = 0
    while not isinstance(found, Frame):
        assert have < found.needed <= len(TWO)
        have = found.needed
        found = read_frame(TWO[:have], 0, MARKER, 7, len(TWO))
        steps += 1
    assert steps <= 2  # the header first, then all of it


@pytest.mark.parametrize("remaining", range(len(TWO)))
def test_a_frame_that_runs_past_its_segment_is_damage_whatever_the_buffer_holds(remaining: int) -> None:
    for have in (FRAME_BYTES, len(TWO) - 1, len(TWO), len(TWO) + 50):
        found = read_frame((TWO + bytes(50))[:have], 0, MARKER, 7, remaining)
        assert isinstance(found, Damage) and not found.needed


def test_a_buffer_that_ends_early_asks_for_no_more_than_there_is() -> None:
    assert read_frame(b"", 0, MARKER, 1, 100) == End(0, 48)
    assert read_frame(b"", 0, MARKER, 1, 20) == End(0, 20)
    assert read_frame(b"\0" * 10, 4, MARKER, 1, 100) == End(4, 48)


@pytest.mark.parametrize("body_bytes", [0xFFFFFFFF, 1 << 31, 10 << 20])
@pytest.mark.parametrize("remaining", [None, 1 << 40])
def test_a_frame_that_claims_a_huge_length_allocates_nothing(body_bytes: int, remaining: int | None) -> None:
    data = TWO[:8] + body_bytes.to_bytes(4, "little") + TWO[12:]
    tracemalloc.start()
    try:
        found = read_frame(data, 0, MARKER, 7, remaining)
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()
    assert isinstance(found, Damage)
    assert found.needed == (0 if remaining is None else FRAME_BYTES + body_bytes)


def test_another_lsn_than_the_one_that_must_follow_is_damage() -> None:
    assert isinstance(read_frame(TWO, 0, MARKER, 7), Frame)
    assert isinstance(read_frame(TWO, 0, MARKER, 0), Frame)
    for lsn in (1, 6, 8):
        assert isinstance(read_frame(TWO, 0, MARKER, lsn), Damage)


def test_a_frame_of_another_segment_is_damage() -> None:
    assert isinstance(read_frame(TWO, 0, MARKER + 1, 7), Damage)
    moved = (MARKER + 1).to_bytes(4, "little") + TWO[4:]  # the marker rewritten: the checksum is seeded with it
    assert isinstance(read_frame(moved, 0, MARKER + 1, 7), Damage)


@pytest.mark.parametrize("count", [0, 3, 4, 0xFFFFFFFF])
def test_a_count_that_the_body_cannot_hold_is_damage(count: int) -> None:
    body = layout.entry(1, b"", b"", 1) * 2
    assert isinstance(read_frame(frame(1, [], count=2, body=body), 0, MARKER, 1), Frame)
    assert isinstance(read_frame(frame(1, [], count=count, body=body), 0, MARKER, 1), Damage)


def test_lsns_stay_below_their_limit() -> None:
    assert isinstance(read_frame(frame(MAX_LSN - 1, [item(1)]), 0, MARKER, 0), Frame)
    for lsn in (MAX_LSN, MAX_LSN + 1, (1 << 64) - 1):
        assert isinstance(read_frame(frame(lsn, [item(1)]), 0, MARKER, 0), Damage)


def test_an_uncompressed_frame_whose_raw_length_differs_is_damage() -> None:
    assert isinstance(read_frame(frame(1, [item(1)], raw_length=5), 0, MARKER, 1), Damage)


def test_a_frame_with_an_unknown_codec_is_a_frame_that_says_so() -> None:
    found = read_frame(frame(1, [item(1)], raw_length=500, flags=2), 0, MARKER, 1)
    assert isinstance(found, Frame)
    assert found.flags == 2


def test_how_many_entries_a_codec_packs_into_a_frame_is_not_for_us_to_say() -> None:
    found = read_frame(frame(1, [], count=1000, body=bytes(2000), raw_length=50_000, flags=3), 0, MARKER, 1)
    assert isinstance(found, Frame)
    assert (found.flags, found.count) == (3, 1000)
    assert isinstance(read_frame(frame(1, [], count=0, body=bytes(2000), flags=3), 0, MARKER, 1), Damage)


# Many


@layout.examples(120)
@given(st.data())
def test_every_intact_frame_is_found_whatever_lies_between(data: st.DataObject) -> None:
    lsn, parts, expected = 1, [], []
    for _ in range(data.draw(st.integers(0, 6))):
        parts.append(data.draw(st.one_of(st.just(b""), st.binary(max_size=40), st.just(bytes(64)))))
        lsn += data.draw(st.integers(0, 5))
        items = data.draw(st.lists(ITEMS, min_size=1, max_size=3))
        expected.append((sum(map(len, parts)), lsn, len(items)))
        parts.append(frame(lsn, items))
        lsn += len(items)
    buffer = b"".join(parts)
    for form in (buffer, bytearray(buffer), memoryview(buffer)):
        assert [(found.offset, found.first_lsn, found.count) for found in find_frames(form, 0, MARKER, 1)] == expected


@layout.examples(120)
@given(st.lists(st.one_of(FRAMES, JUNK), max_size=8).map(b"".join), edges.integers(0, 400), LSNS)
def test_found_frames_are_intact_rise_and_do_not_overlap(buffer: bytes, offset: int, least_lsn: int) -> None:
    end = offset
    try:
        for found in find_frames(buffer, offset, MARKER, least_lsn):
            assert read_frame(buffer, found.offset, MARKER, found.first_lsn) == found
            assert found.offset >= end
            assert found.first_lsn >= least_lsn
            end, least_lsn = found.end, found.next_lsn
    except SearchExhausted:
        pass


def test_all_frames_behind_a_damaged_one_are_found() -> None:
    frames = [frame(lsn, [item(lsn)]) for lsn in range(1, 20)]
    buffer = bytearray(b"".join(frames))
    for at in range(len(frames[0])):
        buffer[at] ^= 0x55
        assert [found.first_lsn for found in find_frames(buffer, 0, MARKER, 1)] == list(range(2, 20))
        buffer[at] ^= 0x55


def test_a_frame_inside_a_payload_or_of_an_earlier_life_is_not_found() -> None:
    inner = frame(2, [item(2)])
    outer = frame(1, [(1, b"", inner, 1)])
    last = frame(2, [item(2, 9)])
    stale = frame(1, [item(1)])
    assert [found.offset for found in find_frames(outer + last + stale, 0, MARKER, 1)] == [0, len(outer)]


def test_a_marker_cut_by_the_end_of_the_buffer_is_nothing() -> None:
    for length in range(1, FRAME_BYTES):
        assert list(find_frames(TWO[:length], 0, MARKER, 1)) == []


@pytest.mark.parametrize("step", [4, 12, 48])
def test_a_search_through_hostile_markers_is_linear_and_says_that_it_gave_up(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 200_000
    claims = bytearray()
    while len(claims) < size:  # each marker claims all that is left, and its checksum is wrong
        unit = MARKER_BYTES * 2 + (size - len(claims) - FRAME_BYTES & 0xFFFFFFFF).to_bytes(4, "little")
        claims += (unit + (1).to_bytes(4, "little") + (1).to_bytes(8, "little") + bytes(24))[:step]
    summed = 0
    real = frame_module.crc32c

    def counting(data: bytes, value: int = 0) -> int:
        nonlocal summed
        summed += len(data)
        return real(data, value)

    monkeypatch.setattr(frame_module, "crc32c", counting)
    hostile = bytes(claims) + frame(9, [item(9)])
    try:
        found = list(find_frames(hostile, 0, MARKER, 1))
        assert [each.first_lsn for each in found] == [9], "an intact frame was passed over in silence"
    except SearchExhausted:
        pass
    assert summed <= 6 * len(hostile)


def test_a_search_that_gives_up_never_says_that_nothing_is_there() -> None:
    size = 100_000
    unit = MARKER_BYTES + bytes(4) + (size - 1000).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes(32)
    hostile = unit * (size // len(unit)) + bytes(size)
    with pytest.raises(SearchExhausted):
        list(find_frames(hostile, 0, MARKER, 1))


# The writer's bytes


def test_what_a_writer_writes_is_what_the_tables_say(tmp_path: Path) -> None:
    log = tmp_path / "log"
    batches = [[item(1)], [item(2), item(3), item(4)], [(1, b"", b"", 0)], [(2, b"\xff" * 300, b"", (1 << 64) - 1)]]
    with WALWriter(log) as writer:
        for items in batches:
            writer.append_batch(WALEntry(*each) for each in items)  # type: ignore[arg-type]
            writer.sync()
        writer.put(b"put", b"alone", 5)
    batches.append([(1, b"put", b"alone", 5)])
    (file,) = log.glob("*.wal")
    written = file.read_bytes()
    told = WALHeader.decode(written)
    with WALReader(log) as reader:
        times = [(batch.appended_at, batch.writer) for batch in reader.batches()]
    assert [time for time, _ in times] == sorted(time for time, _ in times)
    parts = [layout.header(1, marker=told.marker, sequence=1, durable_lsn=0, created_at=told.created_at)]
    lsn, durable_lsn = 1, 0
    for items, (appended_at, slot) in zip(batches, times, strict=True):
        parts.append(
            frame(lsn, items, marker=told.marker, appended_at=appended_at, durable_lsn=durable_lsn, writer=slot)
        )
        lsn += len(items)
        durable_lsn = lsn - 1  # each batch but the last was synced
    expected = b"".join(parts)
    assert written[: len(expected)] == expected
    assert not any(written[len(expected) :])
