"""The segment header: 64 bytes, both directions, and what every other 64 bytes are."""

import struct

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from tests import edges
from tests.format import layout
from walpool import CorruptLog, UnsupportedVersion, WALHeader

U64 = edges.integers(0, edges.U64, *edges.EDGES.timestamps)
LSN = edges.integers(1, edges.U63, *edges.EDGES.lsns)
HEADERS = st.builds(
    WALHeader,
    created_at=U64,
    sequence=edges.integers(1, edges.U63),
    first_lsn=st.shared(LSN, key="lsn"),
    durable_lsn=st.shared(LSN, key="lsn").flatmap(lambda lsn: edges.integers(0, lsn - 1)),
    marker=edges.integers(1, edges.U32, *edges.EDGES.markers),
)

GOOD = WALHeader(created_at=123, sequence=3, first_lsn=41, durable_lsn=40, marker=0x5EEDF00D)


@layout.examples(300)
@given(HEADERS)
def test_a_header_comes_back_as_it_was_encoded(header: WALHeader) -> None:
    data = header.encode()
    assert len(data) == 64
    assert WALHeader.decode(data) == header
    assert WALHeader.decode(bytearray(data + b"frames follow")) == header
    assert WALHeader.decode(memoryview(data)) == header


@layout.examples(300)
@given(HEADERS)
def test_a_header_has_the_bytes_that_the_table_says(header: WALHeader) -> None:
    assert header.encode() == layout.header(
        header.first_lsn,
        marker=header.marker,
        sequence=header.sequence,
        durable_lsn=header.durable_lsn,
        created_at=header.created_at,
    )


@pytest.mark.parametrize("at", range(64))
def test_every_flipped_bit_of_a_header_is_damage(at: int) -> None:
    for bit in range(8):
        data = bytearray(GOOD.encode())
        data[at] ^= 1 << bit
        with pytest.raises(CorruptLog) as caught:
            WALHeader.decode(data, "here.wal")
        assert (caught.value.path, caught.value.offset) == ("here.wal", 0)


@layout.examples(200)
@given(edges.binary(63, 64, 65, max_size=80))
def test_no_other_bytes_are_a_header(data: bytes) -> None:
    with pytest.raises(CorruptLog):
        WALHeader.decode(data)


@pytest.mark.parametrize("length", range(64))
def test_a_header_cut_short_is_damage(length: int) -> None:
    with pytest.raises(CorruptLog, match="64 bytes"):
        WALHeader.decode(GOOD.encode()[:length])


@pytest.mark.parametrize("version", [0x0000, 0x00FF, 0x0200, 0xFF00])
def test_another_major_version_is_newer_not_corrupt(version: int) -> None:
    with pytest.raises(UnsupportedVersion, match="upgrade") as caught:
        WALHeader.decode(layout.header(version=version, flags=7, header_size=96, entries_offset=4096, reserved=9))
    assert not isinstance(caught.value, CorruptLog)


def test_another_major_version_with_a_bad_checksum_is_damage() -> None:
    data = bytearray(GOOD.encode())
    data[9] = 2
    with pytest.raises(CorruptLog):
        WALHeader.decode(data)


@pytest.mark.parametrize("minor", [1, 7, 255])
def test_a_later_minor_version_is_read(minor: int) -> None:
    data = layout.header(5, version=0x0100 | minor, flags=3, header_size=80, entries_offset=128, reserved=1)
    header = WALHeader.decode(data)
    assert (header.version, header.first_lsn, header.entries_offset) == (0x0100 | minor, 5, 128)


@pytest.mark.parametrize(
    "fields",
    [
        {"magic": b"WALPOOL1"},
        {"magic": b"\0" * 8},
        {"flags": 1},
        {"reserved": 1},
        {"header_size": 72},
        {"header_size": 0},
        {"entries_offset": 72},
        {"entries_offset": 0},
        {"sequence": 0},
        {"sequence": 1 << 63},  # the next segment's would not fit
        {"first_lsn": 0},
        {"first_lsn": 1 << 63},
        {"durable_lsn": 1},
        {"durable_lsn": (1 << 64) - 1},
        {"marker": 0},
        {"version": 0x0101, "entries_offset": 63},
        {"version": 0x0101, "header_size": 128, "entries_offset": 64},
        {"version": 0x0101, "header_size": 32, "entries_offset": 64},
    ],
    ids=str,
)
def test_a_field_that_cannot_be_is_damage_although_the_checksum_is_right(fields: dict[str, int]) -> None:
    with pytest.raises(CorruptLog):
        WALHeader.decode(layout.header(**fields))  # type: ignore[arg-type]


def test_the_checksum_covers_all_but_itself() -> None:
    data = GOOD.encode()
    assert struct.unpack_from("<I", data, 16) == (crc32c(data[:16] + data[20:]),)


@pytest.mark.parametrize(
    "fields", [{"created_at": -1}, {"created_at": 1 << 64}, {"sequence": 1 << 64}, {"marker": 1 << 32}], ids=str
)
def test_a_field_that_does_not_fit_its_place_is_refused(fields: dict[str, int]) -> None:
    values = {"created_at": 1, "sequence": 1, "first_lsn": 1, "durable_lsn": 0, "marker": 1, **fields}
    with pytest.raises(ValueError, match="does not fit"):
        WALHeader(**values).encode()


def test_a_header_is_a_value_that_nobody_changes() -> None:
    assert hash(GOOD) == hash(WALHeader.decode(GOOD.encode()))
    for name in ("first_lsn", "another"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(GOOD, name, 1)
    assert not hasattr(GOOD, "__dict__")
