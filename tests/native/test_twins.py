"""Whatever a twin is given, it does what its Python function does: the same result, or the same error and words."""

from __future__ import annotations

import array
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from crc32c import crc32c

from tests.crash import hostile
from tests.format import layout
from tests.format.layout import MARKER, frame, item
from tests.native.twins import TWINS, agree, outcome, use_python
from walpool import Operation, WALEntry
from walpool.format.body import decode_body
from walpool.format.entry import MAX_KEY_BYTES, MAX_VALUE_BYTES, PUT_BITS, encode_entries, encode_one, make_put
from walpool.format.frame import Frame, read_frame
from walpool.format.names import MAX_LSN
from walpool.format.run import read_run
from walpool.native import select

pytestmark = pytest.mark.skipif(not select.core_in_use, reason="the compiled core does not run here")

ROUNDS = int(os.environ.get("WALPOOL_ROUNDS", "400"))  # of some ten calls each, of every kind


@pytest.fixture(autouse=True)
def only_twins_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    use_python(monkeypatch)


class Key(bytes):
    """A subclass, with a length of its own."""

    def __len__(self) -> int:
        return 3


class Number(int):
    pass


def released() -> memoryview:
    view = memoryview(b"released")
    view.release()
    return view


ODD_BYTES: list[Any] = [
    b"", b"k", bytearray(b"ab"), memoryview(b"abc"), memoryview(bytearray(60)), memoryview(b"abcdefgh").cast("I"),
    memoryview(b"abcdef").cast("B", (2, 3)), memoryview(b"abcd").cast("c"), memoryview(b"abcdef")[::2],
    memoryview(b"abcdef")[::-1], released(), Key(b"abcdef"), array.array("I", [1, 2]), "text", None, 5, [], Frame,
]  # fmt: skip
ODD_NUMBERS: list[Any] = [
    0, 1, 7, 47, 48, 64, (1 << 28) + 3, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64,
    1 << 200, -1, -48, -(1 << 63), -(1 << 70), True, False, Number(7), 1.0, None, "1", b"1", PUT_BITS, Operation.PUT,
]  # fmt: skip
BODY = b"".join(layout.entry(*item(lsn)) for lsn in range(1, 10))
FRAME = frame(7, [item(7), item(8)])


# Odd arguments


def test_every_function_that_is_marked_has_a_twin() -> None:
    assert set(TWINS) == {*USUAL, "encode_entries"}


@pytest.mark.parametrize("args", [(), (b"",), (b"", 1, 2, 3, 4, 5, 6, 7, 8, 9)], ids=["none", "one", "ten"])
@pytest.mark.parametrize("name", TWINS)
def test_a_wrong_number_of_arguments_is_refused_in_the_same_words(name: str, args: tuple[Any, ...]) -> None:
    if name != "encode_entries" or len(args) != 1:
        assert agree(name, *args)[0] is TypeError
    agree(name, *args, wrong=1)


USUAL: dict[str, list[tuple[list[Any], list[Any]]]] = {  # each argument as it should be, and what else is tried
    "encode_one": [([PUT_BITS], ODD_NUMBERS), ([b"key"], ODD_BYTES), ([b"value"], ODD_BYTES), ([7], ODD_NUMBERS)],
    "make_put": [([b"key"], ODD_BYTES), ([b"value"], ODD_BYTES), ([7], [*ODD_NUMBERS[:-7], "1"])],
    "check_body": [([BODY, memoryview(BODY)], ODD_BYTES), ([0], ODD_NUMBERS), ([len(BODY)], ODD_NUMBERS),
                   ([9], ODD_NUMBERS[:8])],
    "decode_body": [([BODY, bytearray(BODY)], ODD_BYTES), ([0], ODD_NUMBERS), ([len(BODY)], ODD_NUMBERS),
                    ([9], ODD_NUMBERS[:8]), ([1], ODD_NUMBERS), ([0, 3], ODD_NUMBERS), ([9, 4], ODD_NUMBERS)],
    "read_frame": [([FRAME, memoryview(bytearray(FRAME))], ODD_BYTES), ([0], ODD_NUMBERS), ([MARKER], ODD_NUMBERS),
                   ([7, 0], ODD_NUMBERS), ([len(FRAME), None], ODD_NUMBERS)],
    "read_run": [([FRAME, memoryview(bytearray(FRAME))], ODD_BYTES), ([0], ODD_NUMBERS), ([MARKER], ODD_NUMBERS),
                 ([7], ODD_NUMBERS), ([len(FRAME)], ODD_NUMBERS), ([MAX_LSN, 9], ODD_NUMBERS), ([True, False], [0, 1])],
}  # fmt: skip


@pytest.mark.parametrize("name", USUAL)
def test_an_odd_argument_changes_no_outcome(name: str) -> None:
    usual = [good for good, _ in USUAL[name]]
    for first in range(max(map(len, usual))):
        args = [good[first % len(good)] for good in usual]
        assert not issubclass(agree(name, *args)[0], Exception), "the usual arguments are refused"
        for at, (_, odd) in enumerate(USUAL[name]):
            for value in odd:
                agree(name, *args[:at], value, *args[at + 1 :])


def test_views_and_names_are_taken_as_python_takes_them() -> None:
    for views in (False, True, 0, 1, None):
        agree("decode_body", memoryview(BODY), 0, len(BODY), 9, 1, views=views)
    agree("decode_body", data=BODY, start=0, end=len(BODY), count=9, first_lsn=1)
    agree("read_frame", FRAME, 0, MARKER, 7, remaining=len(FRAME))
    agree("read_frame", FRAME, 0, MARKER, lsn=7)


# Entries

ENTRIES: list[Any] = [
    WALEntry.put(b"key", b"value", 1),
    WALEntry.put(b"", b"", 0),
    WALEntry.put(b"k" * MAX_KEY_BYTES, b"", (1 << 64) - 1),
    WALEntry.put(b"k" * (MAX_KEY_BYTES + 1), b"", 1),
    WALEntry.put(b"k", bytes(MAX_VALUE_BYTES + 1), 1),
    WALEntry.delete(b"key", 5),
    WALEntry(Operation.DELETE, b"key", b"a value", 5, 99),
    WALEntry(Operation.PUT, bytearray(b"key"), memoryview(b"value"), 2),
    WALEntry(Operation.PUT, Key(b"abcdef"), b"value", 2),
    (Operation.PUT, b"key", b"value", 2, 0),
    [Operation.PUT, b"key", b"value", 2, 0],
    (Operation.PUT, b"key", b"value", 2),
    *(WALEntry(operation, b"k", b"v", 1) for operation in (0, 1, 2, 3, 1.0, True, None, "PUT")),  # type: ignore[arg-type]
    *(WALEntry(Operation.PUT, b"k", b"v", number) for number in ODD_NUMBERS),
    *(WALEntry(Operation.PUT, odd, b"v", 1) for odd in ODD_BYTES),
    None,
    5,
    "12345",
]


@pytest.mark.parametrize("form", [list, tuple, iter, set], ids=["list", "tuple", "iterator", "set"])
def test_any_entries_are_encoded_alike(form: Callable[[Any], Any], seed: int) -> None:
    chance = Random(seed)
    good = [WALEntry.put(b"key", b"value", 1), WALEntry.delete(b"k", 2), WALEntry.put(b"longer", b"", 3)]
    for round_ in range(ROUNDS):
        entries = [chance.choice(good) for _ in range(chance.randrange(12))]
        if round_ % 2:
            entries.insert(chance.randrange(len(entries) + 1), chance.choice(ENTRIES))
        try:
            wanted = outcome(select.python_of(encode_entries), form(entries))
        except (TypeError, ValueError):
            continue  # what cannot be in a set
        assert outcome(encode_entries, form(entries)) == wanted, (seed, entries)


def test_each_odd_entry_alone_is_encoded_alike() -> None:
    for odd in ENTRIES:
        agree("encode_entries", [odd])
        agree("encode_entries", (odd,))
        agree("encode_entries", odd)


def test_an_entry_from_the_core_is_one_as_any_other() -> None:
    body = encode_entries([WALEntry.put(b"key", b"value", 7)]).data
    (found,) = decode_body(body, 0, len(body), 1, 9)
    made = make_put(b"key", b"value", 7)
    wanted = WALEntry(Operation.PUT, b"key", b"value", 7, 9)
    assert found == wanted and hash(found) == hash(wanted) and {found: 1}[wanted] == 1
    assert hash(made) == hash(WALEntry.put(b"key", b"value", 7)) and made.lsn == 0
    assert found.operation is Operation.PUT and type(found) is type(made) is WALEntry
    assert found._replace(lsn=0) == made


def test_the_collector_need_not_look_at_entries_of_the_core() -> None:
    body = encode_entries([WALEntry.put(b"key", b"value", 7)]).data
    assert not any(gc.is_tracked(each) for each in decode_body(body, 0, len(body), 1, 9))


# Hostile bytes


def spoilt(seed: int, make: Callable[[Random], hostile.Sample], seal: Callable[[bytearray], None]) -> Iterator[bytes]:
    chance = Random(seed)
    for at in range(ROUNDS):
        sample = make(chance)
        data = bytearray(sample.data)
        for _ in range(at % 3):
            hostile.mutate(chance.randrange, data, sample.fields, sample.pieces)
        if at & 4:
            seal(data)
        yield bytes(data)


FORMS: list[Callable[[bytes], Any]] = [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))]


def test_hostile_bodies_are_decoded_and_checked_alike(seed: int) -> None:
    chance = Random(seed)
    refused = read = 0
    for data in spoilt(seed, hostile.make_body, hostile.seal_nothing):
        body = data[4:]
        count = int.from_bytes(data[:4], "little")
        if count > len(body) // 16:
            count = 1 + count % (len(body) // 16 or 1)
        before, behind = chance.randrange(3), chance.randrange(3)
        held = chance.choice(FORMS)(bytes(before) + body + bytes(behind))
        args = held, before, before + len(body), count
        agree("check_body", *args)
        agree("decode_body", *args, chance.choice((0, 1, 1 << 40, MAX_LSN, 1 << 64)), views=chance.random() < 0.1)
        agree("decode_body", *args, 1, chance.randrange(12), chance.choice((None, chance.randrange(12))))
        if isinstance(agree("decode_body", *args, 1)[1], str):
            refused += 1
        else:
            read += 1
    assert refused and read, (refused, read)


def test_hostile_frames_are_read_alike(seed: int) -> None:
    chance = Random(seed)
    kinds = set()
    for data in spoilt(seed, hostile.make_frames, hostile.seal_frames):
        held = chance.choice(FORMS)(data)
        ends = [at for at in range(len(data)) if data[at : at + 4] == MARKER.to_bytes(4, "little")]
        for at in {0, *ends, chance.randrange(len(data) + 60)}:
            lsn = chance.choice((0, 1, 2, 3))
            for remaining in (None, len(data) - at, chance.randrange(-50, 500), 1 << 40):
                kinds.add(agree("read_frame", held, at, MARKER, lsn, remaining)[0])
    assert len(kinds) == 3


def test_hostile_runs_are_read_alike(seed: int) -> None:
    chance = Random(seed)
    lengths = set()
    for data in spoilt(seed, hostile.make_frames, hostile.seal_frames):
        held = chance.choice(FORMS)(data)
        for with_entries in (True, False):
            for lsn, remaining in ((1, len(data)), (1, chance.randrange(len(data) + 1)), (2, 1 << 40), (0, len(data))):
                end_lsn = chance.choice((MAX_LSN, chance.randrange(20)))
                agree("read_run", held, 0, MARKER, lsn, remaining, end_lsn, with_entries)
            lengths.add(read_run(held, 0, MARKER, 1, len(data), MAX_LSN, with_entries).batches)
    assert len(lengths) > 3


@pytest.mark.parametrize("with_entries", [True, False])
def test_a_run_goes_as_far_in_both(with_entries: bool) -> None:
    """Up to a limit of bytes when its entries are made; behind what stands before it; to each end."""
    single = [frame(lsn, [item(lsn, 40)], appended_at=lsn % 7, durable_lsn=lsn % 5) for lsn in range(1, 1200)]
    many = frame(1200, [item(lsn) for lsn in range(1200, 1300)])
    odd = [frame(1300, [item(1)], raw_length=9, flags=1), frame(1300, [], count=1, body=layout.entry(3, b"", b"", 1))]
    for behind in (b"", bytes(100), b"x", frame(1301, [item(1)]), *odd, odd[0][:-1]):
        data = b"before" + b"".join(single) + many + behind
        _, told = agree("read_run", data, 6, MARKER, 1, len(data) - 6, MAX_LSN, with_entries)
        assert (told[0][1] >= 64 << 10) and (told[2][1] == (1300 if not with_entries else told[2][1]))
        for end_lsn in (0, 1, 2, 5, 1199, 1200, 1201, 1299, 1300):
            agree("read_run", data, 6, MARKER, 1, len(data) - 6, end_lsn, with_entries)
        start = 6 + sum(map(len, single[:-3]))
        for end in range(start, len(data), 7):
            agree("read_run", data[:end], start, MARKER, 1197, end - start, MAX_LSN, with_entries)


def test_a_frame_cut_at_every_byte_is_read_alike() -> None:
    data = FRAME + frame(9, [item(9)])
    for end in range(len(data) + 1):
        for remaining in (None, end, len(data), len(FRAME)):
            agree("read_frame", data[:end], 0, MARKER, 7, remaining)


def test_a_large_body_is_summed_alike_while_other_threads_run() -> None:
    large = frame(1, [(layout.PUT, b"k", bytes(range(256)) * 4000, 1)])
    for form in FORMS:
        assert agree("read_frame", form(large), 0, MARKER, 1)[0] is Frame
    agree("read_frame", large[:-1] + b"x", 0, MARKER, 1)


def test_the_core_sums_as_the_package_does() -> None:
    core = select.core
    assert core is not None
    data = Random(1).randbytes(20_000)
    for size in [*range(300), *range(1500, 1600), *range(3000, 3100), 4607, 4608, 4609, 19_000]:
        for start in (0, 1, 7):
            part = memoryview(data)[start : start + size]
            for before in (0, 1, 0xFFFFFFFF, 0x5EEDF00D):
                wanted = crc32c(part, before)
                assert core.crc32c(part, before) == core.table_crc32c(part, before) == wanted, (start, size)


@pytest.mark.parametrize("what", ["crc32c", "read_frame"])
def test_a_large_sum_lets_other_threads_run(what: str) -> None:
    core = select.core
    assert core is not None
    data = frame(1, [(layout.PUT, b"k", bytes(8 << 20), 1)])
    go, ran = threading.Event(), []
    other = threading.Thread(target=lambda: ran.append(go.wait(60)))
    interval = sys.getswitchinterval()
    other.start()
    try:
        sys.setswitchinterval(1000)  # from now on a thread runs until it waits, or lets others run
        go.set()
        for _ in range(2000):
            core.crc32c(data) if what == "crc32c" else read_frame(data, 0, MARKER, 1)
            if ran:
                break
        assert ran
    finally:
        sys.setswitchinterval(interval)
        other.join()


# Memory


def calls() -> list[Callable[[], Any]]:
    entries = [WALEntry.put(b"key", bytes(9), at) for at in range(20)]
    large = frame(7, [item(7)] * 3)
    return [
        lambda: encode_one(PUT_BITS, b"key", b"value", 7),
        lambda: encode_one(PUT_BITS, "key", b"value", 7),
        lambda: encode_entries(entries),
        lambda: encode_entries([*entries, None]),  # type: ignore[list-item]
        lambda: make_put(b"key", b"value", None),
        lambda: make_put(b"key", b"value", 1 << 64),
        lambda: decode_body(BODY, 0, len(BODY), 9, 1),
        lambda: decode_body(BODY, 0, len(BODY) - 1, 9, 1),
        lambda: decode_body(memoryview(bytearray(BODY)), 0, len(BODY), 9, 1, views=True),
        lambda: read_frame(memoryview(bytearray(large)), 0, MARKER, 7),
        lambda: read_frame(memoryview(bytearray(large)), 1, MARKER, 7, 5),
        lambda: read_frame(released(), 0, MARKER, 7),
        lambda: read_run(memoryview(bytearray(large)), 0, MARKER, 7, len(large), MAX_LSN, True),
        lambda: read_run(memoryview(bytearray(large)), 0, MARKER, 7, len(large), MAX_LSN, False),
        lambda: read_run(large, 0, MARKER, 8, 5, MAX_LSN, True),
    ]


@pytest.mark.parametrize("at", range(len(calls())))
def test_nothing_is_left_behind_whatever_came_of_a_call(at: int) -> None:
    call = calls()[at]

    def grown() -> int:
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(500):
            outcome(call)
        gc.collect(0)  # nothing of a call's is older
        return sys.getallocatedblocks() - before

    assert any(grown() < 100 for _ in range(4))  # the first may warm up what stays


@pytest.mark.parametrize("at", range(len(calls())))
def test_memory_that_is_not_there_is_a_memory_error_and_no_more(at: int) -> None:
    testcapi = pytest.importorskip("_testcapi")
    call = calls()[at]
    wanted = outcome(call)
    failed = 0
    for start in range(80):
        testcapi.set_nomemory(start, start + 1)
        try:
            call()
        except MemoryError:
            failed += 1
        except Exception:
            pass  # what it says of its arguments
        finally:
            testcapi.remove_mem_hooks()
    assert failed
    assert outcome(call)[0] is wanted[0]
