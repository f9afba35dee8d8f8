"""The oracle reads what walpool writes, from the documents alone, and sees what is wrong with a log."""

from __future__ import annotations

import itertools
import os
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import walpool
from tests import edges
from tests.oracle import reader
from tests.oracle.checker import Batch, Row, State, end_after_recovery, judge, readable, row
from tests.oracle.reader import Ending, Frame, read_frame, read_log, read_segment

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(name: str) -> bytes:
    return bytes.fromhex((GOLDEN / name).read_text().replace("\n", ""))


def entry_of(one: Row) -> walpool.WALEntry[bytes]:
    operation, key, value = one
    return walpool.WALEntry.put(key, value) if operation == "put" else walpool.WALEntry.delete(key)


# --- what is whole ---------------------------------------------------------------------------------------------------


@given(edges.binary(8, 16, max_size=300), edges.integers(0, 2**32 - 1))
def test_the_checksum_is_the_one_of_the_package(data: bytes, seed: int) -> None:
    assert reader.crc32c(data, seed) == crc32c.crc32c(data, seed)
    assert reader.crc32c(b"123456789") == 0xE3069283  # the check value in the catalogues of checksums


def test_the_golden_segment_is_read() -> None:
    segment = read_segment("00000000000000000041.wal", golden("segment-1.0.hex"))
    assert (segment.ending, segment.first_lsn, segment.next_lsn) == (Ending.CLEAN, 41, 47)
    assert [frame.writer for frame in segment.frames] == [0, 2, 65535, 1]
    entries = [entry for frame in segment.frames for entry in frame.entries]
    assert [entry.operation for entry in entries] == ["put", "delete", "put", "put", "put", "delete"]
    assert entries[3].key == "größe".encode() and entries[3].timestamp == 2**64 - 1
    assert not judge({"00000000000000000041.wal": golden("segment-1.0.hex")})


def test_the_golden_entry_is_read() -> None:
    data = golden("entry-1.0.hex")
    frame = read_frame(data, 0, 0x57414C45)
    assert isinstance(frame, Frame) and frame.end == len(data)
    assert frame.entries == (reader.Entry(0, "put", b"user:1", b"ada", 7),)


rows = st.one_of(
    st.tuples(st.just("put"), edges.binary(max_size=40), edges.binary(512, max_size=600)),
    st.tuples(st.just("delete"), edges.binary(max_size=40), st.just(b"")),
)
steps = st.one_of(st.lists(rows, min_size=1, max_size=8), st.sampled_from(["rotate", "sync", "reopen"]))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(walpool.SyncMode)), st.sampled_from([4096, 20_000]), st.lists(steps, max_size=30))
def test_the_oracle_and_walpool_read_the_same(mode: walpool.SyncMode, limit: int, steps: list[list[Row] | str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log")
        told: list[tuple[int, Batch]] = []
        appended: list[Row] = []
        writer = walpool.WALWriter(path, mode, limit)
        for step in steps:
            if step == "rotate":
                writer.rotate()
            elif step == "sync":
                writer.sync()
            elif step == "reopen":
                writer.close()
                writer = walpool.WALWriter(path, mode, limit)
            elif isinstance(step, list):
                told.append((len(appended) + 1, step))
                appended += step
                writer.append_batch([entry_of(one) for one in step])
        writer.close()
        assert not judge(path, told, [], first_lsn=1, size_limit=limit)
        with walpool.WALReader(path) as theirs:
            read = [
                (entry.lsn, entry.operation.name.lower(), entry.key, entry.value, entry.timestamp) for entry in theirs
            ]
        ours = [entry for segment in read_log(path) for frame in segment.frames for entry in frame.entries]
        assert read == [(entry.lsn, entry.operation, entry.key, entry.value, entry.timestamp) for entry in ours]


OF_ONE_MIND = """
import sys, zlib, crc32c
crc32c.crc32c = lambda data, value=0: zlib.crc32(data, value)  # another polynomial, to write and to read
import walpool
with walpool.WALWriter(sys.argv[1]) as writer:
    writer.put(b"key", b"value")
print(walpool.WALReader(sys.argv[1]).read_all()[0].value)
"""


def test_what_writer_and_reader_get_wrong_alike_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = {**os.environ, "WALPOOL_PURE": "1"}  # the compiled core has a checksum of its own
    said = subprocess.run([sys.executable, "-c", OF_ONE_MIND, log], env=environment, capture_output=True, check=True)
    assert said.stdout == b"b'value'\n"
    assert judge(log) == [f"damage: {1:020}.wal behind LSN 0: a damaged header; its checksum does not match"]


# --- what is not -----------------------------------------------------------------------------------------------------

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Files, list[tuple[int, Batch]]]:
    """Three segments of five batches each, closed in order."""
    path = tmp_path_factory.mktemp("oracle") / "log"
    told: list[tuple[int, Batch]] = []
    with walpool.WALWriter(path, walpool.SyncMode.FULL) as writer:
        for number in range(15):
            if number in (5, 10):
                writer.rotate()
            batch = [("put", b"key %d.%d" % (number, at), b"v" * 20) for at in range(number % 3 + 1)]
            told.append((writer.append_batch([entry_of(one) for one in batch])[0], batch))
    files = {file.name: file.read_bytes() for file in path.glob("*.wal")}
    last = max(files)
    files[last] = files[last].rstrip(b"\0") + bytes(50)  # of the prepared space, enough
    assert len(files) == 3 and not judge(files, told, [], first_lsn=1)
    return files, told


def test_every_flipped_bit_is_found(whole: tuple[Files, list[tuple[int, Batch]]]) -> None:
    files, told = whole
    for name, data in files.items():
        for at in range(len(data)):
            changed = bytearray(data)
            changed[at] ^= 1 << at % 8
            assert judge({**files, name: bytes(changed)}), (name, at)
            in_the_zeros = at >= len(data.rstrip(b"\0"))
            assert in_the_zeros or judge({**files, name: bytes(changed)}, told, state=State.CUT), (name, at)


def test_every_cut_is_found(whole: tuple[Files, list[tuple[int, Batch]]]) -> None:
    files, told = whole
    for name, data in files.items():
        for size in range(len(data.rstrip(b"\0"))):
            assert judge({**files, name: data[:size]}, told, state=State.CUT), (name, size)


def test_every_frame_that_was_zeroed_doubled_or_swapped_is_found(whole: tuple[Files, list[tuple[int, Batch]]]) -> None:
    files, told = whole
    for segment in read_log(files):
        data = files[segment.name]
        ends = [reader.HEADER_BYTES, *(frame.end for frame in segment.frames)]
        frames = [data[start:end] for start, end in itertools.pairwise(ends)]
        for number, frame in enumerate(frames):
            before, after = frames[:number], frames[number + 1 :]
            following = after[:1] or [b""]
            for kind, changed in {
                "zeroed": [*before, bytes(len(frame)), *after],
                "doubled": [*before, frame, frame, *after],
                "left out": [*before, *after],
                "swapped": [*before, *following, frame, *after[1:]],
            }.items():
                found = judge({**files, segment.name: data[:64] + b"".join(changed)}, told, [])
                assert found or (kind == "swapped" and not after), (kind, segment.name, number)


def test_removed_and_swapped_segments_are_found(whole: tuple[Files, list[tuple[int, Batch]]]) -> None:
    files, told = whole
    first, second, third = sorted(files)
    for name, kind in {first: "lost", second: "gap", third: "lost"}.items():
        found = judge({other: files[other] for other in files if other != name}, told)
        assert kind in {line.partition(":")[0] for line in found}
    assert judge({name: files[name] for name in (second, third)}, first_lsn=1)
    for one, other in ((first, second), (second, third)):
        assert judge({**files, one: files[other], other: files[one]})


HEADER_FIELDS = {"version": (8, "H"), "flags": (10, "H"), "header_size": (12, "I"), "entries_offset": (20, "I")}
HEADER_FIELDS |= {"sequence": (32, "Q"), "first_lsn": (40, "Q"), "durable_lsn": (48, "Q"), "marker": (56, "I")}
HEADER_FIELDS |= {"reserved": (60, "I")}


@pytest.mark.parametrize("field", HEADER_FIELDS)
def test_a_header_with_a_wrong_field_and_a_fitting_checksum_is_found(
    whole: tuple[Files, list[tuple[int, Batch]]], field: str
) -> None:
    files, _ = whole
    second = sorted(files)[1]
    at, kind = HEADER_FIELDS[field]
    for wrong in (0, 1, 500):
        changed = bytearray(files[second])
        if struct.unpack_from("<" + kind, changed, at)[0] == wrong:
            continue
        struct.pack_into("<" + kind, changed, at, wrong)
        struct.pack_into("<I", changed, 16, reader.crc32c(bytes(changed[:16] + changed[20:64])))
        found = judge({**files, second: bytes(changed)})
        assert found or (field, wrong) in {("durable_lsn", 0), ("durable_lsn", 1), ("version", 500)}, (field, wrong)


FRAME_FIELDS = {"count": (12, "I"), "first_lsn": (16, "Q"), "appended_at": (24, "Q"), "durable_lsn": (32, "Q")}
FRAME_FIELDS |= {"raw_length": (40, "I"), "flags": (44, "H")}


@pytest.mark.parametrize("field", FRAME_FIELDS)
def test_a_frame_with_a_wrong_field_and_a_fitting_checksum_is_found(
    whole: tuple[Files, list[tuple[int, Batch]]], field: str
) -> None:
    files, _ = whole
    segment = read_log(files)[1]
    assert segment.header is not None
    start, end = segment.frames[1].end, segment.frames[2].end
    at, kind = FRAME_FIELDS[field]
    (right,) = struct.unpack_from("<" + kind, files[segment.name], start + at)
    for wrong in {right + 1, max(right - 1, 0), right + 100, right // 1000} - {right}:
        changed = bytearray(files[segment.name])
        struct.pack_into("<" + kind, changed, start + at, wrong)
        crc = reader.crc32c(bytes(changed[start + 48 : end]), segment.header.marker)
        struct.pack_into("<I", changed, start + 4, reader.crc32c(bytes(changed[start + 8 : start + 48]), crc))
        found = judge({**files, segment.name: bytes(changed)})
        assert found or (field in ("appended_at", "durable_lsn") and abs(right - wrong) <= right), (field, wrong)


def test_what_was_told_is_compared(whole: tuple[Files, list[tuple[int, Batch]]]) -> None:
    files, told = whole
    lsn, batch = told[4]  # LSN 8 and 9

    def kinds(acknowledged: list[tuple[int, Batch]], in_doubt: list[Batch]) -> set[str]:
        return {line.partition(":")[0] for line in judge(files, acknowledged, in_doubt)}

    others = [(other, rows) for other, rows in told if other != lsn]
    assert kinds(others, [batch]) == kinds(others, [batch, batch, [("put", b"not there", b"")]]) == set()
    assert kinds(others, []) == {"invented"}
    assert kinds(others, [batch[:1]]) == {"invented"}
    assert kinds([*told, (31, [("put", b"31", b"")])], []) == {"lost"}
    assert kinds([*others, (lsn, batch[::-1])], []) == {"changed"}
    assert kinds([*told, (lsn, batch)], []) == {"doubled"}
    assert kinds([*others, (lsn - 1, batch)], []) == {"doubled", "changed", "torn"}
    assert kinds([*told[:3], (7, [*told[3][1], *batch]), *told[5:]], []) == {"torn"}
    assert kinds([one for one in others if one != told[1]] + [(40, batch), (50, told[1][1])], []) == {"lost", "doubled"}


def test_a_tail_may_be_torn_after_a_kill_and_a_hole_only_where_nothing_vouches(tmp_path: Path) -> None:
    with walpool.WALWriter(tmp_path / "log") as writer:  # nothing is synced
        for number in range(6):
            writer.put(b"%d" % number, b"v" * 30)
    (segment,) = read_log(tmp_path / "log")
    data = (tmp_path / "log" / segment.name).read_bytes()
    torn = data[: segment.frames[5].end - 1] + b"\xff"
    assert judge({segment.name: torn}) and not judge({segment.name: torn}, state=State.KILLED)
    assert not judge({segment.name: torn, f"{7:020}.wal": bytes(64)}, state=State.CUT)
    hole = data[: segment.frames[2].end] + bytes(80) + data[segment.frames[2].end + 80 :]
    assert judge({segment.name: hole}, state=State.KILLED) and not judge({segment.name: hole}, state=State.CUT)
    assert end_after_recovery({segment.name: hole}) == 4
    with walpool.WALWriter(tmp_path / "log", walpool.SyncMode.FULL) as writer:
        writer.put(b"", b"")
        writer.put(b"", b"")
    data = (tmp_path / "log" / segment.name).read_bytes()
    hole = data[: segment.frames[2].end] + bytes(80) + data[segment.frames[2].end + 80 :]
    assert judge({segment.name: hole}, state=State.CUT) and end_after_recovery({segment.name: hole}) is None


@pytest.mark.parametrize("kind", ["zeros", "junk", "header zeros", "header junk", "cut", "removed"])
def test_the_oracle_and_a_recovery_end_a_log_at_the_same_place(tmp_path: Path, kind: str) -> None:
    for seed in range(15):
        chance = random.Random(seed)
        synced = chance.randrange(12)
        path, copy = tmp_path / f"log {seed}", tmp_path / f"copy {seed}"
        with walpool.WALWriter(path, size_limit=4096) as writer:
            for number in range(1, 25):
                writer.append_batch([walpool.WALEntry.put(b"%d" % number, chance.randbytes(chance.randrange(400)))] * 2)
                if number == synced:
                    writer.sync()
        copy.mkdir()
        for name in [*(segment.name for segment in read_log(path)), "control"]:  # with it, an opening reads everything
            (copy / name).write_bytes((path / name).read_bytes())
        hit = chance.choice(read_log(copy))
        data = (copy / hit.name).read_bytes()
        at = chance.randrange(64 if kind.startswith("header") or not hit.frames else hit.frames[-1].end)
        instead = bytes(64) if kind.endswith("zeros") else chance.randbytes(64) if kind.endswith("junk") else b""
        (copy / hit.name).write_bytes(data[:at] + instead + (data[at + 64 :] if instead else b""))
        if kind == "removed":
            (copy / hit.name).unlink()
        expected = end_after_recovery(copy)
        kept = [row(entry) for frame in readable(read_log(copy)) for entry in frame.entries]
        try:
            with walpool.WALWriter(copy) as writer:
                found = writer.put(b"", b"")
        except (walpool.CorruptLog, walpool.UnsupportedVersion):
            found = None
        assert found == expected, (seed, hit.name, at)
        if found is not None:
            told = list(enumerate([*kept, ("put", b"", b"")], found - len(kept)))
            assert not judge(copy, [(lsn, [one]) for lsn, one in told], [], state=State.KILLED)
