"""Hostile bytes: whatever the files of a log hold, what comes out is an entry that was appended or a typed error.

A target takes bytes as a reader would and judges what comes back; a mutator spoils what a target takes, and seals the
checksums of half of it again, so that what stands behind them is reached. Most inputs need no file (30,000 of them a
second); the few that make a log on disk are in hostile_logs. Everything follows from a seed and the number of a round:

    python -m tests.crash.hostile SEED ROUND
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

from crc32c import crc32c

from tests.format import layout
from tests.native.twins import agree
from walpool import CorruptLog, Operation, UnsupportedVersion, WALEntry, WALHeader
from walpool.format.body import ALONE_MARKER, BodyError, decode_body
from walpool.format.entry import encode_entries
from walpool.format.frame import FRAME_BYTES, Frame, SearchExhausted, find_frames, read_frame
from walpool.format.names import MAX_LSN
from walpool.shared import control, rows_file, slot_rows
from walpool.shared.checkpoint import read_checkpoint
from walpool.shared.cursors import positions
from walpool.shared.figures.histogram import BUCKETS
from walpool.shared.figures.snapshot import ProcessNames, writer_row
from walpool.shared.poison import first_doubtful
from walpool.shared.slots import Owner
from walpool.system import processes
from walpool.system.calls import calls

ROUND = 1000  # inputs
PATIENCE_S = 60  # of a round, which takes a few hundredths of a second
MOST_BYTES = 64 << 20  # that a run may add to the process, whatever lengths its inputs declare
WORD = 8
MARKER = layout.MARKER

Below = Callable[[int], int]  # a number from 0, below another
Field = tuple[int, int]  # offset and size


class Sample(NamedTuple):
    """What is spoilt, and what is known of it."""

    data: bytes
    fields: list[Field]
    pieces: list[bytes]  # what is put in: its own parts again, and those of others
    known: frozenset[bytes]  # what may be accepted although no checksum was sealed again
    ends: tuple[int, ...] = ()  # of the parts that are read one by one: one wholly before the damage is read


class Target(NamedTuple):
    """How bytes of one kind are made, sealed and judged."""

    make: Callable[[Random], Sample]
    seal: Callable[[bytearray], None]
    # Raises AssertionError; the sample is None when checksums were sealed again. Offset: the first that was touched.
    check: Callable[[bytes, Sample | None, int], str]


# Mutators


EXTREMES = (
    *(0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, 1 << 28, 10 << 20, (10 << 20) + 1),
    *(end - less for end in (1 << 31, 1 << 32, 1 << 62, 1 << 63, 1 << 64) for less in (0, 1, 2)),
)


def mutate(below: Below, data: bytearray, fields: list[Field], pieces: list[bytes]) -> int:
    """Spoil the bytes in one way; the first offset that was touched."""
    size = len(data)
    kind = below(18)
    if kind < 7 and fields:
        at, width = fields[below(len(fields))]
        if kind < 4:
            value = EXTREMES[below(len(EXTREMES))]
        else:
            value = int.from_bytes(data[at : at + width], "little") + (-1, 1, -16, 16, -48, 48, size, -size)[below(8)]
        data[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
        return min(at, size)
    at = below(size + 1)
    if kind < 11:
        if at == size:
            return size
        data[at] ^= 1 << below(8)
    elif kind == 11:
        data[at : at + 1] = bytes((below(256),))
    elif kind == 12:
        del data[at:]
    elif kind == 13:
        del data[at : at + 1 + below(64)]
    elif kind == 14:
        data[at:at] = bytes((below(256),)) * below(40)
    elif kind == 15:
        other = below(size + 1)
        at, other = min(at, other), max(at, other)
        length = min(below(64), other - at)
        data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
    else:
        piece = pieces[below(len(pieces))] if pieces else b"\xff"
        if below(2):
            at = fields[below(len(fields))][0] if fields else 0
            at = min(at, size)
        data[at : at + (len(piece) if kind == 16 else 0)] = piece
    return at


# Segment headers


def make_header(chance: Random) -> Sample:
    def one() -> bytes:
        first = chance.choice((1, 2, 1 << 40, MAX_LSN))
        return layout.header(
            first,
            marker=chance.randrange(1, 1 << 32),
            sequence=chance.choice((1, 9, MAX_LSN)),
            durable_lsn=first - 1,
            version=chance.choice((0x0100, 0x0100, 0x0105)),
        )

    data, other = one(), one()
    fields = [(0, 8), (8, 2), (10, 2), (12, 4), (16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8), (56, 4), (60, 4)]
    return Sample(data, fields, [other, data], frozenset((data, other)))


def seal_header(data: bytearray) -> None:
    if len(data) >= 64:
        data[16:20] = crc32c(bytes(data[20:64]), crc32c(bytes(data[:16]))).to_bytes(4, "little")


def check_header(data: bytes, sample: Sample | None, touched: int) -> str:
    try:
        header = WALHeader.decode(data)
    except (CorruptLog, UnsupportedVersion):
        return "header refused"
    assert header.encode() == data[:64], "the header is not what the bytes say"
    assert 1 <= header.first_lsn <= MAX_LSN and header.durable_lsn < header.first_lsn and header.marker
    assert sample is None or data[:64] in sample.known, "bytes that nobody wrote pass for a header"
    return "header read"


# Frames


_ITEMS = [layout.item(lsn, bytes_) for lsn in range(1, 12) for bytes_ in (0, 3, 20)]


def make_frames(chance: Random) -> Sample:
    """A few frames of one segment, one of them with a frame in a payload; pieces of it and of another segment."""
    count = chance.randrange(1, 5)
    frames = []
    inner = layout.frame(chance.randrange(1, 9), [chance.choice(_ITEMS)])
    lsn = 1
    for _ in range(count):
        items = [chance.choice(_ITEMS) for _ in range(chance.choice((1, 1, 1, 2, 9)))]
        if chance.random() < 0.2:
            items[0] = (layout.PUT, b"log", inner, 1)
        frames.append(layout.frame(lsn, items, durable_lsn=lsn - 1, appended_at=lsn))
        lsn += len(items)
    foreign = layout.frame(1, [chance.choice(_ITEMS)], marker=MARKER ^ chance.randrange(1, 1 << 32))
    fields: list[Field] = []
    ends: list[int] = []
    at = 0
    for frame in frames:
        fields += [(at + place, size) for place, size in FRAME_FIELDS]
        fields += [(at + 48, 4), (at + 52, 4), (at + 56, 8)]  # of its first entry
        at += len(frame)
        ends.append(at)
    pieces = [*frames, inner, foreign, MARKER.to_bytes(4, "little"), bytes(48)]
    return Sample(b"".join(frames), fields, pieces, frozenset((*frames, inner)), tuple(ends))


FRAME_FIELDS = ((0, 4), (4, 4), (8, 4), (12, 4), (16, 8), (24, 8), (32, 8), (40, 4), (44, 2), (46, 2))


def seal_frames(data: bytearray, at: int = 0, marker: int | None = None) -> None:
    """One frame after another, as far as their lengths lead."""
    size = len(data)
    if marker is None:
        marker = int.from_bytes(data[at : at + 4], "little")
    while at + FRAME_BYTES <= size:
        end = at + FRAME_BYTES + int.from_bytes(data[at + 8 : at + 12], "little")
        if end > size:
            return
        crc = crc32c(bytes(data[at + 8 : at + 48]), crc32c(bytes(data[at + 48 : end]), marker))
        data[at + 4 : at + 8] = crc.to_bytes(4, "little")
        at = end


def check_frames(data: bytes, sample: Sample | None, touched: int) -> str:
    """Frame after frame, as a reader goes; and once with a buffer that ends early."""
    size = len(data)
    at = read = 0
    lsn = 1 if sample is not None else 0
    while True:
        found = read_frame(data, at, MARKER, lsn)
        agree("read_frame", data, at, MARKER, lsn)
        if type(found) is not Frame:
            break
        end = found.end
        assert at + FRAME_BYTES <= end <= size and found.body == at + FRAME_BYTES and found.offset == at
        assert found.count >= 1 and found.next_lsn <= MAX_LSN
        assert found.flags or found.count <= (end - found.body) // 16, "so many entries only a codec packs"
        if sample is None:
            if not found.flags:
                judge_body(data[found.body : end], found.count, found.first_lsn)
        else:
            assert found.first_lsn == lsn
            assert data[at:end] in sample.known, "bytes that nobody wrote pass for a frame"
        lsn = found.next_lsn
        at = end
        read += 1
    if sample is not None:
        for end in sample.ends:
            if end > min(touched, size):
                break
            assert end <= at, "a frame before the damage is not read"
    agree("read_run", data, 0, MARKER, 1, size, MAX_LSN, True)
    half = data[: size // 2]
    early = read_frame(half, 0, MARKER, 0, size)
    if type(early) is Frame:
        assert early.end <= len(half)
    else:
        assert not isinstance(early, Frame)
        assert early.needed <= size, f"asks for {early.needed} bytes where there are {size}"
    return "frames read" if read else "frames refused"


def check_search(data: bytes, sample: Sample | None, touched: int) -> str:
    """Frames found anywhere: none overlaps, LSNs rise, and those before the damage are among them."""
    found: list[Frame] = []
    try:
        found.extend(find_frames(data, 0, MARKER, 1))
    except SearchExhausted:
        return "search given up"
    at, lsn = 0, 1
    for frame in found:
        assert at <= frame.offset < frame.end <= len(data), "frames overlap"
        assert frame.first_lsn >= lsn, "LSNs fall"
        assert sample is None or data[frame.offset : frame.end] in sample.known, "bytes that nobody wrote are a frame"
        at, lsn = frame.end, frame.next_lsn
    if sample is not None:
        before = [end for end in sample.ends if end <= touched]
        assert [frame.end for frame in found[: len(before)]] == before, "a frame before the damage is not found"
    return "search found some" if found else "search found none"


# Entries


def make_alone(chance: Random) -> Sample:
    def one() -> bytes:
        operation, key, value, timestamp = chance.choice(_ITEMS)
        return WALEntry(Operation(operation), key, value, timestamp).encode()

    data, other = one(), one()
    fields = [*FRAME_FIELDS, (48, 4), (52, 4), (56, 8)]
    return Sample(data, fields, [data, other], frozenset((data, other)))


def seal_alone(data: bytearray) -> None:
    seal_frames(data, 0, ALONE_MARKER)


def check_alone(data: bytes, sample: Sample | None, touched: int) -> str:
    try:
        entry = WALEntry.decode(data)
    except (CorruptLog, UnsupportedVersion):
        return "entry refused"
    assert entry.encode()[48:] == data[48:], "the entry is not what the bytes say"
    assert sample is None or data in sample.known, "bytes that nobody wrote pass for an entry"
    return "entry read"


def make_body(chance: Random) -> Sample:
    items = [chance.choice(_ITEMS)] * chance.choice((1, 8, 9)) if chance.random() < 0.4 else []
    items += (
        [chance.choice(_ITEMS) for _ in range(chance.randrange(1, 5))] if chance.random() < 0.7 or not items else []
    )
    fields: list[Field] = []
    at = 0
    for item in items:
        fields += [(at, 4), (at + 3, 1), (at + 4, 4), (at + 8, 8)]
        at += len(layout.entry(*item))
    data = len(items).to_bytes(4, "little") + b"".join(layout.entry(*item) for item in items)
    return Sample(data, [(0, 4), *((at + 4, size) for at, size in fields)], [data[4:], data[4:20]], frozenset())


def seal_nothing(data: bytearray) -> None:
    pass


def check_body(data: bytes, sample: Sample | None, touched: int) -> str:
    """A body has no checksum of its own: the first four bytes are the count that a frame's header would say."""
    body = data[4:]
    count = int.from_bytes(data[:4], "little")
    if not 1 <= count <= len(body) // 16:
        count = 1 + count % (len(body) // 16 or 1)  # what read_frame lets through
    return judge_body(body, count, 5)


def judge_body(body: bytes, count: int, first_lsn: int) -> str:
    agree("check_body", body, 0, len(body), count)
    agree("decode_body", body, 0, len(body), count, first_lsn)
    try:
        entries = decode_body(body, 0, len(body), count, first_lsn)
    except BodyError:
        entries = None
    try:
        views = decode_body(memoryview(body), 0, len(body), count, first_lsn, views=True)
    except BodyError:
        views = None
    assert entries == views, "the same bytes, read in two ways, are not the same entries"
    if entries is None:
        return "body refused"
    assert len(entries) == count and entries[-1].lsn == first_lsn + count - 1
    assert encode_entries(entries)[0] == body, "the entries are not what the bytes say"
    return "body read"


# Small files, without a file


class _Held:
    """A file that is bytes, in a directory that has no other."""

    path = "<bytes>"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stat = SimpleNamespace(st_dev=7, st_ino=9, st_size=len(data))

    def open(self, name: str, flags: int = 0) -> _Held:
        return self

    def size(self) -> int:
        return len(self.data)

    def read(self, length: int, offset: int) -> bytes:
        return self.data[max(0, offset) : max(0, offset) + max(0, length)]

    def __enter__(self) -> _Held:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        pass


def make_checkpoint(chance: Random) -> Sample:
    def one() -> bytearray:
        data = bytearray(
            struct.pack("<8sQQII", b"WALPCKPT", chance.randrange(1 << 63), chance.randrange(1 << 63), 0, 0)
        )
        seal_checkpoint(data)
        return data

    data, other = bytes(one()), bytes(one())
    fields = [(0, 8), (8, 8), (16, 8), (24, 4), (28, 4)]
    return Sample(data, fields, [data, other], frozenset((data[:28], other[:28])))


def seal_checkpoint(data: bytearray) -> None:
    data[24:28] = crc32c(bytes(data[:24])).to_bytes(4, "little")


def check_checkpoint(data: bytes, sample: Sample | None, touched: int) -> str:
    directory: Any = _Held(data)
    try:
        lsn = read_checkpoint(directory)
    except CorruptLog:
        return "checkpoint refused"
    assert lsn == int.from_bytes(data[8:16], "little") and len(data) == 32
    assert sample is None or data[:28] in sample.known, "bytes that nobody wrote pass for a checkpoint"
    return "checkpoint read"


def make_cursor(chance: Random) -> Sample:
    """Two copies, the first or the second of them newer, or a file that was never written twice."""

    def one() -> bytes:
        first, data = chance.randrange(1 << 40), b""
        for sequence in chance.sample((first, first + 1), 2):
            lsn = chance.choice((0, 3, chance.randrange(1 << 63)))
            start_lsn = chance.choice((1, chance.randrange(1, 1 << 63)))
            data += positions.pack(positions.Position(sequence, lsn, start_lsn))
        return data[:32] + chance.choice((data[32:], bytes(32)))

    data, other = one(), one()
    fields = [(at + place, size) for at in (0, 32) for place, size in ((0, 4), (4, 4), (8, 8), (16, 8), (24, 8))]
    copies = (data[:32], data[32:], other[:32], other[32:])
    return Sample(data, fields, [data, other, *copies], frozenset(copies))


def seal_cursor(data: bytearray) -> None:
    for at in (0, 32):
        if len(data) >= at + 32:
            data[at + 4 : at + 8] = crc32c(bytes(data[at + 8 : at + 32])).to_bytes(4, "little")


def check_cursor(data: bytes, sample: Sample | None, touched: int) -> str:
    file: Any = _Held(data)
    try:
        position, copy = positions.read_position(file)
    except CorruptLog as error:
        assert "--reset" in error.reason
        return "cursor refused"
    there = data[32 * copy : 32 * copy + 32]
    assert positions.pack(position) == there and len(data) == 64
    assert sample is None or there in sample.known, "bytes that nobody wrote pass for a position"
    assert 0 <= position.lsn <= MAX_LSN and 1 <= position.start_lsn <= MAX_LSN and position.wanted_lsn > position.lsn
    return "cursor read"


def make_mark(chance: Random) -> Sample:
    high, low = processes.boot_id()
    data = b"%016x%016x %d 5\n" % (high, low, chance.randrange(1 << chance.choice((4, 63))))
    pieces = [b" ", b"-1", b"0", b"9" * 200, b"_1", b"\xd9\xa1", b"1e9", b"+7", b"\0", str(1 << 64).encode(), data]
    return Sample(data, [(32, 1), (33, 1), (33, 2), (34, 1), (33, 0)], pieces, frozenset())


def check_mark(data: bytes, sample: Sample | None, touched: int) -> str:
    directory: Any = _Held(data)
    lsn = first_doubtful(directory, None)
    assert lsn is None or 0 <= lsn <= MAX_LSN, f"LSN {lsn} is called doubtful"
    return "mark of another boot" if lsn is None else "mark read"


# The control block


def make_control(chance: Random) -> Sample:
    image = bytearray(control.CONTROL_BYTES)
    words = memoryview(image).cast("Q")
    words[0], words[1], words[2], words[5] = (
        control.MAGIC,
        control.LAYOUT,
        control.CONTROL_BYTES,
        chance.getrandbits(64),
    )
    words[3], words[4] = processes.boot_id()
    words[8], words[9] = 7, 9
    for at in (*CONTROL_WORDS[-22:], control.COMMIT):
        words[at] = chance.randrange(1 << chance.choice((1, 8, 40)))
    del words
    seal_control(image)
    data = bytes(image)
    other = data[: 16 * WORD]
    fields = [(at * WORD, WORD) for at in CONTROL_WORDS] + [(control.STOP * WORD, 4), (control.STOP * WORD + 4, 4)]
    return Sample(data, fields, [other, data[256:344]], frozenset((_identity(data),)))


CONTROL_WORDS = [*range(13), control.COMMIT, control.INTENT, *range(24, 32), *range(32, 43), *range(48, 59)]


def _identity(data: bytes) -> bytes:
    return data[: 6 * WORD] + data[7 * WORD : 13 * WORD]


def seal_control(data: bytearray) -> None:
    crc = crc32c(bytes(data[8 * WORD : 13 * WORD]), crc32c(bytes(data[: 6 * WORD])))
    data[7 * WORD : 8 * WORD] = crc.to_bytes(WORD, "little")


def check_control(data: bytes, sample: Sample | None, touched: int) -> str:
    """As `attach` judges it, once the size is right: of another size it is not even mapped."""
    held: Any = _Held(data)
    totals = control.last_totals(held)
    assert max(totals) < 1 << 64
    if len(data) != control.CONTROL_BYTES:
        assert len(data) > control.CONTROL_BYTES or totals == control.Totals()
        return "control of another size"
    block = bytearray(data)
    shared: Any = SimpleNamespace(bytes=memoryview(block), words=memoryview(block).cast("Q"))
    mapped = control.Control(held, shared)
    if mapped._problem() is not None:
        return "control refused"
    assert sample is None or _identity(data) in sample.known, "bytes that nobody wrote pass for a control block"
    state = mapped.state()
    commit = mapped.words[control.COMMIT]
    assert state == mapped.copy(commit) and max(*state, mapped.durable_lsn) < 1 << 64
    slot = mapped.appending_slot(commit)
    assert slot is None or 0 <= slot < 1 << 16
    return "control read"


# Slot rows


def make_rows(chance: Random) -> Sample:
    image = bytearray(4 * rows_file.ROW_BYTES)
    image[:24] = rows_file.HEADER
    words = memoryview(image).cast("Q")
    fields = [(0, 8), (8, 8), (16, 8)]
    for row in (1, 2, 3):
        start = row * rows_file.ROW_BYTES // WORD
        words[start] = 2
        for at in (*range(1, 8), *range(16, 120)):
            words[start + at] = chance.randrange(1 << chance.choice((1, 10, 40)))
        for _ in range(5):
            words[start + 128 + chance.randrange(BUCKETS * 4)] = chance.randrange(1 << 20)
        fields += [((start + at) * WORD, WORD) for at in (*range(129), 200)]
    del words
    data = bytes(image)
    return Sample(data, fields, [b"\xff" * 600, b"\xc3" * 100, data[rows_file.ROW_BYTES : -1]], frozenset())


def check_rows(data: bytes, sample: Sample | None, touched: int) -> str:
    directory: Any = _Held(data)
    rows = slot_rows.read_rows(directory)
    assert len(rows) <= len(data) // rows_file.ROW_BYTES
    by_slot = {values.slot: values for values in rows}
    for values in rows:
        assert len(values.error) <= slot_rows.ERROR_BYTES and len(values.name) <= slot_rows.NAME_BYTES
        shown = writer_row(values.slot, Owner.of(values.pid, values.pid_namespace), by_slot, _NAMES)
        json.dumps([shown.__dict__ if hasattr(shown, "__dict__") else str(shown)])
    for histogram in rows[0].histograms if rows else ():
        json.dumps(histogram.as_dict())
    return "rows read" if rows else "rows refused"


class _NoNames(ProcessNames):
    def of(self, pid: int, started_ns: int) -> str:
        return ""


_NAMES = _NoNames()


TARGETS: dict[str, Target] = {
    "header": Target(make_header, seal_header, check_header),
    "frames": Target(make_frames, seal_frames, check_frames),
    "search": Target(make_frames, seal_frames, check_search),
    "entry": Target(make_alone, seal_alone, check_alone),
    "body": Target(make_body, seal_nothing, check_body),
    "checkpoint": Target(make_checkpoint, seal_checkpoint, check_checkpoint),
    "cursor": Target(make_cursor, seal_cursor, check_cursor),
    "mark": Target(make_mark, seal_nothing, check_mark),
    "control": Target(make_control, seal_control, check_control),
    "rows": Target(make_rows, seal_nothing, check_rows),
}
SHARES = {"header": 192, "frames": 231, "search": 110, "entry": 161, "body": 126, "checkpoint": 50, "cursor": 50,
          "mark": 40, "control": 30, "rows": 5}  # fmt: skip  # of a round; the rest of it are logs on disk


# Rounds


def prove(folder: Path, seed: int, count: int) -> Counter[str]:
    """At least `count` spoilt inputs, of all targets; what came of them. Leaves `folder` as it was."""
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=folder) as place, _undisturbed():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(-(-count // ROUND)):
            try:
                run_round(Path(place), seed, number, done)
            except Exception as error:
                repeat = f"python -m tests.crash.hostile {seed} {number}"
                raise AssertionError(f"{type(error).__name__}: {error}\nseed {seed}; repeat with: {repeat}") from error
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown <= MOST_BYTES, f"{grown} bytes of memory were taken (seed {seed}, {count} inputs)"
    return done


def run_round(folder: Path, seed: int, number: int, done: Counter[str]) -> None:
    """One thousand inputs: a sample of each kind, spoilt again and again."""
    from tests.crash import hostile_logs

    chance = Random(f"{seed}/{number}")
    signal.alarm(PATIENCE_S)
    spent = 0
    for name, share in SHARES.items():
        run_target(name, chance, share, done)
        spent += share
    hostile_logs.run_round(folder, chance, ROUND - spent, number, done)
    signal.alarm(0)


def run_target(name: str, chance: Random, count: int, done: Counter[str]) -> None:
    make, seal, check = TARGETS[name]
    sample = make(chance)
    original, fields, pieces = sample.data, sample.fields, sample.pieces
    draw = chance.random

    def below(limit: int) -> int:
        return int(draw() * limit)

    data = bytearray()
    try:
        for at in range(count):
            data = bytearray(original)
            touched = mutate(below, data, fields, pieces)
            if not at & 3:
                touched = min(touched, mutate(below, data, fields, pieces))
            if at & 1:
                seal(data)
                done[check(bytes(data), None, 0)] += 1
            else:
                done[check(bytes(data), sample, touched)] += 1
    except Exception as error:
        raise AssertionError(
            f"target {name}: {type(error).__name__}: {error}; the bytes: {data[:400].hex()}"
        ) from error


class Hung(Exception):
    """A round did not end."""


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Nothing is logged, nothing waits for a disk or sleeps long, and what hangs is interrupted."""

    def hung(number: int, frame: object) -> None:
        raise Hung(f"the round has not ended within {PATIENCE_S} s")

    def sleep(seconds: float) -> None:
        assert seconds < 1, f"hostile bytes make a process sleep for {seconds} s"
        really_sleep(seconds)

    really_sleep, fdatasync, fsync = calls.sleep, calls.fdatasync, calls.fsync
    logger = logging.getLogger("walpool")
    was, logger.disabled = logger.disabled, True
    handler = signal.signal(signal.SIGALRM, hung)
    replaced: dict[str, Callable[..., None]] = {"sleep": sleep, "fdatasync": lambda fd: None, "fsync": lambda fd: None}
    vars(calls).update(replaced)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        calls.sleep, calls.fdatasync, calls.fsync = really_sleep, fdatasync, fsync
        logger.disabled = was


def main() -> None:
    seed, number = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory() as place, _undisturbed():
        done: Counter[str] = Counter()
        run_round(Path(place), seed, number, done)
        print(dict(done))


if __name__ == "__main__":
    main()
