"""Entries: what is taken, what is refused before a byte is written, and the stand-alone encoding."""

import array
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import edges
from tests.format import layout
from walpool import CorruptLog, EntryTooLarge, Operation, UnsupportedVersion, WALEntry, WALReader, WALWriter
from walpool.format.body import BodyError, check_body, decode_body
from walpool.format.entry import MAX_KEY_BYTES, MAX_VALUE_BYTES, encode_entries
from walpool.native.select import python_of

ENTRIES = st.builds(
    WALEntry,
    operation=st.sampled_from(Operation),
    key=edges.binary(max_size=40),
    value=edges.binary(max_size=80),
    timestamp=edges.integers(0, edges.U64, *edges.EDGES.timestamps),
    lsn=st.just(0),
)
BATCHES = st.lists(ENTRIES, min_size=1, max_size=12) | edges.lists(ENTRIES, *edges.EDGES.counts[1:])
ENTRY = WALEntry.put(b"user:1", b"ada", timestamp=7)


# On its own


@layout.examples(100)
@given(ENTRIES)
def test_an_entry_comes_back_from_its_own_encoding(entry: WALEntry) -> None:
    data = entry.encode()
    for form in (data, bytearray(data), memoryview(data)):
        found = WALEntry.decode(form)
        assert found == entry
        assert type(found.operation) is Operation
        assert type(found.key) is type(found.value) is bytes


@layout.examples(100)
@given(ENTRIES)
def test_an_entry_alone_is_a_frame_with_its_own_marker_and_lsn_0(entry: WALEntry) -> None:
    operation, key, value, timestamp, _ = entry
    assert entry.encode() == layout.frame(0, [(int(operation), key, value, timestamp)], marker=0x57414C45)


def test_every_flipped_bit_of_an_entry_alone_is_damage() -> None:
    data = ENTRY.encode()
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            with pytest.raises(CorruptLog):
                WALEntry.decode(changed)


def test_an_entry_alone_is_decoded_from_any_bytes_like_form() -> None:
    entry = WALEntry.put(b"12345678", b"12345678", timestamp=7)
    data = entry.encode()
    doubled = bytes(byte for each in data for byte in (each, 0))
    assert len(data) % 4 == 0
    for form in (memoryview(data).cast("I"), memoryview(doubled)[::2]):
        assert WALEntry.decode(form) == entry


def test_an_entry_alone_that_is_cut_or_followed_by_more_is_damage() -> None:
    data = ENTRY.encode()
    for length in range(len(data)):
        with pytest.raises(CorruptLog):
            WALEntry.decode(data[:length])
    for more in (b"\0", b"x", data):
        with pytest.raises(CorruptLog):
            WALEntry.decode(data + more)


@pytest.mark.parametrize(
    "fields",
    [
        {"first_lsn": 1},
        {"marker": layout.MARKER},
        {"count": 2},
        {"flags": 1},
        {"raw_length": 3},
        {"body": b"\0" * 16},  # operation 0
        {"body": layout.entry(3, b"k", b"v", 1)},
        {"body": layout.entry(1, b"k", b"v", 1) + b"x"},
        {"body": layout.entry(1, b"k", b"v", 1)[:-1]},
    ],
    ids=str,
)
def test_a_frame_that_is_not_one_entry_alone_is_refused(fields: dict[str, Any]) -> None:
    arguments = {"first_lsn": 0, "items": [(1, b"k", b"v", 1)], "marker": 0x57414C45, **fields}
    with pytest.raises((CorruptLog, UnsupportedVersion)):
        WALEntry.decode(layout.frame(**arguments))


@layout.examples(100)
@given(edges.binary(47, 48, 63, 64, 65, max_size=120))
def test_no_other_bytes_are_an_entry_alone(data: bytes) -> None:
    with pytest.raises(CorruptLog):
        WALEntry.decode(data)


@pytest.mark.parametrize("data", ["text", None, 5, [1, 2]], ids=repr)
def test_only_bytes_are_decoded(data: Any) -> None:
    with pytest.raises(TypeError):
        WALEntry.decode(data)


# What a caller may pass

WRONG = ["text", 5, None, [1], (1,), {}, ..., 1.5, array.array("B", b"bytes")]


class Untouched:
    """A log with one entry, and the proof that nothing came after it."""

    def __init__(self, path: Path) -> None:
        self.writer = WALWriter(path)
        self.writer.put(b"first", b"entry", 1)
        self.before = self.state()

    def state(self) -> tuple[bytes, int]:
        (segment,) = Path(self.writer.path).glob("*.wal")
        return segment.read_bytes(), self.writer.metrics.snapshot().next_lsn

    def close(self) -> None:
        assert self.state() == self.before, "something was written"
        assert self.writer.put(b"next", b"entry", 2) == 2, "a refused entry took an LSN"
        self.writer.close()


@pytest.fixture
def untouched(tmp_path: Path) -> Any:
    log = Untouched(tmp_path / "log")
    yield log
    log.close()


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_what_is_not_bytes_is_a_type_error_and_nothing_is_written(untouched: Untouched, wrong: Any) -> None:
    writer = untouched.writer
    for attempt in (
        lambda: writer.put(wrong, b"v"),
        lambda: writer.put(b"k", wrong),
        lambda: writer.delete(wrong),
        lambda: WALEntry.put(wrong, b"v"),
        lambda: WALEntry.put(b"k", wrong),
        lambda: WALEntry.delete(wrong),
        lambda: writer.append(WALEntry(Operation.PUT, wrong, b"v", 1)),
        lambda: writer.append(WALEntry(Operation.PUT, b"k", wrong, 1)),
        lambda: writer.append_batch([ENTRY, WALEntry(Operation.PUT, wrong, b"v", 1)]),
        lambda: writer.append_batch([ENTRY, WALEntry(Operation.DELETE, b"k", wrong, 1)]),
    ):
        with pytest.raises(TypeError):
            attempt()


@pytest.mark.parametrize(
    "wrong",
    [None, 5, "text", b"bytes", b"four", [], (), (1, b"k", b"v", 1), ["k", "v"], ...],
    ids=repr,
)
def test_what_is_not_an_entry_is_a_type_error_and_nothing_is_written(untouched: Untouched, wrong: Any) -> None:
    with pytest.raises(TypeError):
        untouched.writer.append(wrong)
    with pytest.raises(TypeError):
        untouched.writer.append_batch([ENTRY, wrong])


def test_a_batch_that_is_not_iterable_is_a_type_error(untouched: Untouched) -> None:
    wrong: Any
    for wrong in (None, 5, ENTRY):
        with pytest.raises(TypeError):
            untouched.writer.append_batch(wrong)


def test_what_the_callers_own_iterable_raises_is_told_as_it_is(untouched: Untouched) -> None:
    def entries() -> Iterator[WALEntry]:
        yield WALEntry.put(b"k", b"v")
        raise ValueError("not enough values to unpack from a file of the caller's")

    with pytest.raises(ValueError, match=r"of the caller's$"):
        untouched.writer.append_batch(entries())


@pytest.mark.parametrize("operation", [0, 3, 15, 16, -1])
def test_an_unknown_operation_is_refused(untouched: Untouched, operation: Any) -> None:
    with pytest.raises(ValueError, match="operation"):
        untouched.writer.append(WALEntry(operation, b"k", b"v", 1))


@pytest.mark.parametrize(("timestamp", "error"), [(-1, ValueError), (1 << 64, ValueError), (1.5, TypeError),
                                                  ("1", TypeError), (b"1", TypeError)])  # fmt: skip
def test_a_timestamp_that_does_not_fit_is_refused(untouched: Untouched, timestamp: Any, error: type[Exception]) -> None:
    writer = untouched.writer
    for attempt in (
        lambda: WALEntry.put(b"k", b"v", timestamp),
        lambda: WALEntry.delete(b"k", timestamp),
        lambda: writer.put(b"k", b"v", timestamp),
        lambda: writer.delete(b"k", timestamp),
        lambda: writer.append(WALEntry(Operation.PUT, b"k", b"v", timestamp)),
        lambda: writer.append_batch([ENTRY, WALEntry(Operation.PUT, b"k", b"v", timestamp)]),
    ):
        with pytest.raises(error):
            attempt()


def test_a_key_or_value_over_its_limit_is_refused_and_nothing_is_written(untouched: Untouched) -> None:
    writer = untouched.writer
    long_key, long_value = bytes(MAX_KEY_BYTES + 1), bytes(MAX_VALUE_BYTES + 1)
    for attempt in (
        lambda: writer.put(long_key, b""),
        lambda: writer.put(b"", long_value),
        lambda: writer.delete(long_key),
        lambda: writer.append(WALEntry.put(long_key, b"")),
        lambda: writer.append_batch([ENTRY, WALEntry.put(b"", long_value)]),
        lambda: WALEntry.put(b"", long_value).encode(),
    ):
        with pytest.raises(EntryTooLarge) as caught:
            attempt()
        assert isinstance(caught.value, ValueError)


def test_a_key_and_a_value_at_their_limits_are_taken(tmp_path: Path) -> None:
    key, value = b"k" * (1 << 20), b"v" * (10 << 20)
    with WALWriter(tmp_path / "log") as writer:
        writer.put(key, value, 1)
        writer.append(WALEntry.put(key, value, 2))
        writer.delete(key, 3)
    with WALReader(tmp_path / "log") as reader:
        assert [(entry.key == key, len(entry.value)) for entry in reader] == [
            (True, 10 << 20), (True, 10 << 20), (True, 0),
        ]  # fmt: skip


FORMS = {
    "bytearray": (bytearray(b"abcd"), b"abcd"),
    "memoryview": (memoryview(b"abcd"), b"abcd"),
    "items of 4 bytes": (memoryview(b"abcdefgh").cast("I"), b"abcdefgh"),
    "two dimensions": (memoryview(b"abcdef").cast("B", (2, 3)), b"abcdef"),
    "every other byte": (memoryview(b"abcdef")[::2], b"ace"),
    "backwards": (memoryview(b"abcdef")[::-1], b"fedcba"),
    "a slice of items": (memoryview(b"abcdefghijkl").cast("I")[1:], b"efghijkl"),
    "empty": (memoryview(b""), b""),
}


@pytest.mark.parametrize(("form", "expected"), FORMS.values(), ids=FORMS)
def test_any_bytes_like_form_is_taken_as_its_bytes(tmp_path: Path, form: Any, expected: bytes) -> None:
    with WALWriter(tmp_path / "log") as writer:
        writer.put(form, form, 1)
        writer.append(WALEntry.put(form, form, 1))
        writer.append(WALEntry(Operation.PUT, form, form, 1))
        writer.append_batch([WALEntry(Operation.PUT, form, form, 1)])
        with writer.batch() as batch:
            batch.put(form, form, 1)
    with WALReader(tmp_path / "log") as reader:
        assert [entry[:4] for entry in reader] == [(Operation.PUT, expected, expected, 1)] * 5
    assert WALEntry.decode(WALEntry(Operation.PUT, form, form, 1).encode())[1:3] == (expected, expected)


def test_an_entry_does_not_change_when_the_callers_buffer_does() -> None:
    key, value = bytearray(b"key"), bytearray(b"value")
    entry = WALEntry.put(key, memoryview(value), 1)
    key[:] = b"KEY"
    value[:] = b"VALUE"
    assert entry == (Operation.PUT, b"key", b"value", 1, 0)
    assert hash(entry) == hash(WALEntry.put(b"key", b"value", 1))


# Bodies


@layout.examples(100)
@given(BATCHES, edges.integers(1, 1 << 40))
def test_a_body_comes_back_with_rising_lsns(entries: list[WALEntry], first_lsn: int) -> None:
    body, count, largest = encode_entries(entries)
    assert body == b"".join(
        layout.entry(int(op), bytes(key), bytes(value), time) for op, key, value, time, _ in entries
    )
    assert count == len(entries)
    assert largest == max(16 + len(entry.key) + len(entry.value) for entry in entries)
    expected = [entry._replace(lsn=first_lsn + at) for at, entry in enumerate(entries)]
    padded = b"before" + body + b"after"
    assert decode_body(padded, 6, 6 + len(body), count, first_lsn) == expected
    views = decode_body(memoryview(padded), 6, 6 + len(body), count, first_lsn, views=True)
    assert views == expected
    assert all(type(entry.key) is type(entry.value) is memoryview for entry in views)


@layout.examples(100)
@given(BATCHES, edges.integers(0, 12), st.none() | edges.integers(0, 12), st.booleans())
def test_of_a_body_some_entries_are_made_as_they_are_among_all(
    entries: list[WALEntry], skip: int, keep: int | None, views: bool
) -> None:
    body, count, _ = encode_entries(entries)
    every = decode_body(memoryview(body), 0, len(body), count, 5, views=views)
    for decode in (decode_body, python_of(decode_body)):
        found = decode(memoryview(body), 0, len(body), count, 5, skip, keep, views=views)
        assert found == every[skip:][:keep]
        with pytest.raises(BodyError):  # also where what is wanted would add up
            decode(memoryview(body)[:-1], 0, len(body) - 1, count, 5, skip, keep, views=views)


@layout.examples(200)
@given(edges.binary(15, 16, 17, max_size=100), st.integers(1, 6), st.booleans())
def test_any_other_body_is_a_body_error_or_its_own_encoding(body: bytes, count: int, views: bool) -> None:
    try:
        found = decode_body(memoryview(body), 0, len(body), count, 1, views=views)
    except BodyError:
        return
    assert encode_entries(found)[0] == body


@pytest.mark.parametrize("lengths", [(0x1FFFFFFF, 0), (0x10000000, 0xFFFFFFFF), (0x10100001, 0), (0x10000000, 0xA00001),
                                     (0x10100000, 0xA00000)])  # fmt: skip
def test_a_huge_length_is_refused_before_anything_is_allocated(lengths: tuple[int, int]) -> None:
    body = lengths[0].to_bytes(4, "little") + lengths[1].to_bytes(4, "little") + bytes(100)
    tracemalloc.start()
    try:
        for views in (False, True):
            with pytest.raises(BodyError):
                decode_body(body, 0, len(body), 1, 1, views=views)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


ODD: list[Any] = [
    WALEntry.put(b"key", b"value", timestamp=2),
    WALEntry.put(b"longer key", b"value", timestamp=2),
    WALEntry.put(b"key", b"longer value", timestamp=2),
    WALEntry.put(b"", b"", timestamp=2),
    WALEntry.delete(b"key", timestamp=2),
    WALEntry(Operation.PUT, bytearray(b"key"), memoryview(b"value"), 2),
    WALEntry(1, b"key", b"value", 2),  # type: ignore[arg-type]
    WALEntry(3, b"key", b"value", 2),  # type: ignore[arg-type]
    WALEntry(Operation.PUT, "key", b"value", 2),  # type: ignore[arg-type]
    WALEntry(Operation.PUT, b"key", None, 2),  # type: ignore[arg-type]
    WALEntry(Operation.PUT, b"key", b"value", -1),
    WALEntry(Operation.PUT, b"key", b"value", 1 << 64),
    WALEntry(Operation.PUT, b"key", b"value", 1.5),  # type: ignore[arg-type]
    WALEntry(Operation.PUT, b"key", bytes(MAX_VALUE_BYTES + 1), 2),
    (Operation.PUT, b"key", b"value", 2),
    (Operation.PUT, b"key", b"value", 2, 0),
    None,
]


@pytest.mark.parametrize("place", [0, 6, 7, 12, 13])
@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_one_odd_entry_among_many_of_one_shape_changes_no_outcome(odd: Any, place: int) -> None:
    entries: list[Any] = [WALEntry.put(b"key", b"value", timestamp=at) for at in range(14)]
    entries[place] = odd

    def outcome(of: Any) -> Any:
        try:
            return encode_entries(of)
        except (TypeError, ValueError, EntryTooLarge) as error:
            return type(error), str(error)

    one_by_one = outcome(iter(entries))
    assert outcome(entries) == one_by_one
    if odd is ODD[0]:
        assert one_by_one == (b"".join(encode_entries([entry])[0] for entry in entries), 14, 16 + 3 + 5)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, int]:
    """A body of up to 12 entries, often of one shape, with a byte changed, added or taken away; and a count."""
    shape = draw(st.tuples(st.integers(0, 4), st.integers(0, 9)))
    uniform = draw(st.booleans())
    count = draw(edges.integers(1, 12, *edges.EDGES.counts))
    shapes = [shape if uniform else draw(st.tuples(st.integers(0, 4), st.integers(0, 9))) for _ in range(count)]
    body = bytearray(b"".join(layout.entry(layout.PUT, b"k" * key, b"v" * value, 1) for key, value in shapes))
    kind = draw(st.sampled_from(["none", "flip", "cut", "add", "count"]))
    if kind == "flip":
        body[draw(st.integers(0, len(body) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif kind == "cut":
        del body[-draw(st.integers(1, len(body))) :]
    elif kind == "add":
        body += bytes(draw(st.integers(1, 40)))
    elif kind == "count":
        count += draw(st.sampled_from([-1, 1]))
    return bytes(body), max(1, count)


@layout.examples(400)
@given(case=bodies())
def test_a_body_is_checked_as_it_is_decoded(case: tuple[bytes, int]) -> None:
    body, count = case

    def outcome(work: Any) -> str | None:
        try:
            work()
        except BodyError as error:
            return error.reason
        return None

    framed = b"before" + body + b"behind"
    start, end = 6, 6 + len(body)
    checked = outcome(lambda: check_body(memoryview(framed), start, end, count))
    assert checked == outcome(lambda: decode_body(framed, start, end, count, 1))


@pytest.mark.parametrize("others", [0, 1, 20])  # 20: more than the columns need
@pytest.mark.parametrize("at", ["first", "last"])
@pytest.mark.parametrize(
    "entry",
    [WALEntry.put(bytes(MAX_KEY_BYTES + 1), b""), WALEntry.put(b"k", bytes(MAX_VALUE_BYTES + 1)),
     WALEntry.delete(bytes(MAX_KEY_BYTES + 1))],
    ids=["key", "value", "key of a delete"],
)  # fmt: skip
def test_a_batch_is_refused_for_an_entry_over_a_limit_wherever_it_stands(entry: WALEntry, at: str, others: int) -> None:
    """Also behind a larger one that is within the limits."""
    large = [WALEntry.put(b"large", bytes(MAX_VALUE_BYTES))] * min(others, 1) + [WALEntry.put(b"small", b"1")] * others
    with pytest.raises(EntryTooLarge):
        encode_entries([entry, *large] if at == "first" else [*large, entry])


@pytest.mark.parametrize(
    ("operation", "key_bytes", "value_bytes", "reason"),
    [
        (3, 1, 1, "an entry of the frame has the unknown operation 3"),
        (15, 1, 1, "an entry of the frame has the unknown operation 15"),
        (1, (1 << 20) + 1, 1, "an entry of the frame has impossible lengths 1048577, 1"),
        (2, 1, (10 << 20) + 1, "an entry of the frame has impossible lengths 1, 10485761"),
    ],
)
def test_an_entry_that_cannot_be_says_what_it_claims(
    operation: int, key_bytes: int, value_bytes: int, reason: str
) -> None:
    body = struct.pack("<IIQ", operation << 28 | key_bytes, value_bytes, 0) + b"kv"
    for judge in (lambda: check_body(body, 0, len(body), 1), lambda: decode_body(body, 0, len(body), 1, 1)):
        with pytest.raises(BodyError) as refused:
            judge()
        assert refused.value.reason == reason
