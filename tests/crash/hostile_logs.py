"""Logs of hostile bytes, on disk: whole segments, control blocks and small files, read, verified and opened.

Holds: entries before the damage are read, no entry is read that nobody appended, an opened log has every acknowledged
entry once and takes the next one; only walpool's own errors come out.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from random import Random

from tests.crash import hostile
from tests.format import layout
from tests.read.logs import entries, entry_of, fill, read
from walpool import Cursor, RecoveryMode, Retention, UnsupportedVersion, WALEntry, WALError, WALReader, WALWriter
from walpool.format.names import MAX_LSN
from walpool.options import WriterOptions
from walpool.shared.control import CONTROL_BYTES
from walpool.upkeep.cursors import set_cursor
from walpool.upkeep.verify import verify

MODES = tuple(RecoveryMode)
PREFIX_MODES = MODES[:3]
SMALL_FILES = {"sync.failed": "mark", "checkpoint": "checkpoint", "metrics": "rows", "cursors/etl": "cursor"}
SPLITS = ((12,), (5, 7), (3, 4, 5))  # entries of each segment
COUNT = 12
BOUND = COUNT * 60 + 200  # bytes of a sound segment, at most


def run_round(folder: Path, chance: Random, count: int, number: int, done: Counter[str]) -> None:
    """Mostly segments; in every second round a control block, in every 16th each of the small files."""
    log = folder / "log"
    if number % 2 == 0:
        spoilt_control(log, chance, done)
        count -= 1
    if number % 16 == 1:
        for name in ("sync.failed", "checkpoint", "metrics", "pins.lock", "cursors/etl"):
            spoilt_small_file(log, name, chance, done)
            count -= 1
    for _ in range(count):
        spoilt_segments(log, chance, done)


# Segments


def segments(chance: Random) -> dict[str, bytes]:
    """A small log without a control block, in one to three segments."""
    files = {}
    first = 1
    for sequence, size in enumerate(chance.choice(SPLITS), 1):
        batches, lsn = [], first
        while lsn < first + size:
            together = min(chance.choice((1, 1, 3)), first + size - lsn)
            batches.append([layout.item(each) for each in range(lsn, lsn + together)])
            lsn += together
        files[layout.name(first)] = layout.segment(
            first, batches, marker=chance.randrange(1, 1 << 32), sequence=sequence, durable_lsn=first - 1
        )
        first += size
    return files


def spoilt_segments(log: Path, chance: Random, done: Counter[str]) -> None:
    files = segments(chance)
    name = chance.choice(list(files))
    sound = files[name]
    data = bytearray(sound)
    parts = list(layout.spans(sound))
    fields = [(at, size) for at, size in hostile.make_header(chance).fields]
    for at, *_ in parts:
        fields += [(at + place, size) for place, size in hostile.FRAME_FIELDS] + [(at + 48, 4), (at + 52, 4)]
    another = segments(Random(1))
    pieces = [sound[at:end] for at, end, *_ in parts] + [data[64:] for data in another.values()] + list(files.values())
    touched = min(
        hostile.mutate(lambda limit: int(chance.random() * limit), data, fields, pieces)
        for _ in range(chance.choice((1, 1, 2)))
    )
    sealed = chance.random() < 0.5
    if sealed:
        hostile.seal_header(data)
        hostile.seal_frames(data, 64, int.from_bytes(data[56:60], "little"))
    whole = [span for span in parts if span[1] <= touched] if touched >= 64 else []
    least = (whole[-1][2] + whole[-1][3] if whole else int(name[:20])) - 1  # the LSN before the damage
    log.mkdir()
    try:
        for each, content in files.items():
            (log / each).write_bytes(data if each == name else content)
        try:
            judge_reads(log, least, sealed, chance)
            done[f"segment {judge_verify(log)}"] += 1
            if chance.random() < 0.2:
                done[f"segment {judge_opening(log, least, sealed, chance)}"] += 1
        except Exception as error:
            kind = "sealed again" if sealed else "not sealed"
            raise AssertionError(
                f"{name}, {kind}, touched from {touched}: {type(error).__name__}: {error}; its bytes: {data.hex()}"
            ) from error
    finally:
        shutil.rmtree(log)


def judge_reads(log: Path, least: int, sealed: bool, chance: Random) -> None:
    mode = chance.choice(MODES)
    capacity = chance.choice((1, 100, 8192))
    found = read(log, mode=mode, initial_capacity=capacity)
    _judge(found.entries, least, sealed, mode in PREFIX_MODES)
    start = chance.randrange(1, COUNT + 3)
    views = read(log, mode=mode, start=start)
    if not sealed:
        assert all(entry.lsn >= start and entry == entry_of(entry.lsn) for entry in views.entries)


def _judge(found: list[WALEntry], least: int, sealed: bool, prefix: bool) -> None:
    assert found[:least] == entries(1, least + 1), f"not all of the {least} entries before the damage are read"
    lsns = [entry.lsn for entry in found]
    assert lsns == sorted(set(lsns)), f"LSNs do not rise: {lsns}"
    if prefix:
        assert lsns == list(range(1, len(found) + 1)), f"LSNs are not dense: {lsns}"
    if not sealed:
        assert all(entry == entry_of(entry.lsn) for entry in found), "an entry is read that nobody appended"
        assert len(found) <= COUNT
    size = sum(16 + len(entry.key) + len(entry.value) for entry in found)
    assert size <= 3 * BOUND, f"{size} bytes of entries are read"


def judge_verify(log: Path) -> str:
    """Damage that verify does not report is damage that a strict reader does not see, and the other way round."""
    try:
        report = verify(log)
    except WALError as error:
        return f"verified with {type(error).__name__}"
    strict = read(log, mode=RecoveryMode.STRICT, start=report.first_lsn)
    if strict.error is None:
        assert not report.damaged, f"a strict reader reads all, verify says: {report.findings}"
    if not report.findings:
        assert strict.error is None, f"verify finds nothing, a strict reader: {strict.error}"
        return "verified sound"
    return "verified damaged" if report.damaged else "verified torn"


def judge_opening(log: Path, least: int, sealed: bool, chance: Random) -> str:
    mode = chance.choice(MODES)
    try:
        with WALWriter(log, recovery=mode, size_limit=600) as writer:
            lsn = writer.put(b"after", b"damage")
    except WALError as error:
        return f"opening refused with {type(error).__name__}"
    found = read(log, mode=RecoveryMode.SALVAGE)
    if sealed and isinstance(found.error, UnsupportedVersion):
        return "opened, and has a frame of a newer version"
    assert found.error is None, f"a log that was just opened is not read: {found.error}"
    _judge(found.entries[:-1], least, sealed, False)  # what is durable is not scanned: damage there is for readers
    assert found.entries, "nothing is read"
    assert (found.entries[-1].lsn, found.entries[-1].key) == (lsn, b"after"), "the append is lost"
    return "opened"


def check_segment(folder: Path, data: bytes) -> None:
    """One segment of any bytes, alone in a directory: of the first one says whether it is sealed again."""
    segment = bytearray(data[1:])
    if data[:1] and data[0] & 1:
        hostile.seal_header(segment)
        hostile.seal_frames(segment, 64, int.from_bytes(segment[56:60], "little"))
    first = int.from_bytes(segment[40:48], "little")
    file = folder / layout.name(first if 1 <= first <= MAX_LSN else 1)
    file.write_bytes(segment)
    try:
        for mode in MODES:
            found = read(folder, mode=mode, start=int(file.name[:20]))
            lsns = [entry.lsn for entry in found.entries]
            assert lsns == sorted(set(lsns)), f"LSNs do not rise: {lsns}"
            assert sum(16 + len(entry.key) + len(entry.value) for entry in found.entries) <= len(segment)
        judge_verify(folder)
    finally:
        file.unlink()


# The control block and what stands beside it


def make(log: Path, chance: Random) -> int:
    """A log with a control block; how many entries it has. An odd commit word or an even one."""
    count = COUNT + chance.randrange(3)
    with WALWriter(log, size_limit=400) as writer:
        fill(writer, count // 2)
        writer.sync()
        fill(writer, count - count // 2)
    return count


def spoilt_control(log: Path, chance: Random, done: Counter[str]) -> None:
    count = make(log, chance)
    try:
        sound = (log / "control").read_bytes()
        data = bytearray(sound)
        fields = [(at * 8, 8) for at in hostile.CONTROL_WORDS]
        pieces = [sound[:128], sound[256:344], sound[384:472], bytes(range(256))]
        for _ in range(chance.choice((1, 2, 3))):
            if chance.random() < 0.5:
                spoil_figure(data, chance)
            else:
                hostile.mutate(lambda limit: int(chance.random() * limit), data, fields, pieces)
        if chance.random() < 0.6:
            del data[CONTROL_BYTES:]
            data += bytes(CONTROL_BYTES - len(data))
        if chance.random() < 0.5:
            hostile.seal_control(data)
        with (log / "control").open("r+b") as file:  # in place: the file keeps its inode
            file.truncate(len(data))
            file.write(data)
        differs = [at for at in hostile.CONTROL_WORDS if data[at * 8 : at * 8 + 8] != sound[at * 8 : at * 8 + 8]]
        try:
            done[f"control {judge_log(log, count)}"] += 1
        except Exception as error:
            words = {at: hex(int.from_bytes(data[at * 8 : at * 8 + 8], "little")) for at in differs}
            raise AssertionError(
                f"a control block with these words: {words}, {len(data)} bytes: {type(error).__name__}: {error}"
            ) from error
    finally:
        shutil.rmtree(log)


def spoil_figure(data: bytearray, chance: Random) -> None:
    """A word that is nearly right: one of the others, or a little more or less."""
    at = chance.choice(hostile.CONTROL_WORDS) * 8
    word = int.from_bytes(data[at : at + 8], "little")
    if chance.random() < 0.5:
        other = chance.choice(hostile.CONTROL_WORDS) * 8
        word = int.from_bytes(data[other : other + 8], "little")
    word += chance.choice((-48, -16, -1, 0, 1, 16, 48, 91))
    data[at : at + 8] = (word & (1 << 64) - 1).to_bytes(8, "little")


def judge_log(log: Path, count: int) -> str:
    """All `count` entries are there after the next opening, and the next append comes behind them."""
    acknowledged = entries(1, count + 1)
    before = read(log)  # a reader may believe less than there is, but never something else
    assert before.entries == acknowledged[: len(before.entries)], "entries are read that nobody appended"
    try:
        with WALWriter(log, size_limit=400) as writer:
            lsn = writer.append(entry_of(count + 1))
            assert lsn == count + 1, f"the next entry gets LSN {lsn}, not {count + 1}"
            writer.sync()
            outcome = "believed" if writer.recovery_report is None else "rebuilt"
        count += 1
    except WALError as error:
        (log / "control").unlink()  # refused: then the segments alone must do
        outcome = f"refused with {type(error).__name__}"
        with WALWriter(log, size_limit=400):
            pass
    found = read(log)
    assert (found.entries, found.error) == (entries(1, count + 1), None), "not every acknowledged entry is there once"
    return outcome


def judge_cursor(log: Path, count: int) -> str:
    """It is refused, or hands out what follows a position that the log has; and a reset mends it."""
    known = entries(1, count + 1)
    with WALWriter(log, size_limit=400, retention=Retention(max_segments=1)) as writer:
        assert writer.prune().first_lsn <= count + 1
        first_lsn = WALReader(log).first_lsn
        try:
            with Cursor(log, "etl") as cursor:
                found = list(cursor.follow(timeout=0))
            outcome = "read"
            assert found == known[count - len(found) :]
        except WALError as error:
            outcome = f"refused with {type(error).__name__}"
    set_cursor(log, "etl", 0, WriterOptions())
    with Cursor(log, "etl") as cursor:
        assert list(cursor.follow(timeout=0)) == known[first_lsn - 1 :]
    return outcome


def spoilt_small_file(log: Path, name: str, chance: Random, done: Counter[str]) -> None:
    """Neither the mark of a failed sync, nor a checkpoint, nor rows, pins or a cursor of any bytes cost an entry."""
    count = make(log, chance)
    try:
        target = SMALL_FILES.get(name)
        if target is None:
            data = bytearray(chance.randbytes(chance.randrange(200)))
        else:
            sample = hostile.TARGETS[target].make(chance)
            data = bytearray(sample.data)
            hostile.mutate(lambda limit: int(chance.random() * limit), data, sample.fields, sample.pieces)
            if chance.random() < 0.5:
                hostile.TARGETS[target].seal(data)
        if target == "cursor":
            Cursor(log, "etl").close()
        (log / name).write_bytes(data)
        try:
            judge = judge_cursor if target == "cursor" else judge_log
            done[f"{name} {judge(log, count)}"] += 1
        except Exception as error:
            raise AssertionError(f"{name} of {data[:300]!r}: {type(error).__name__}: {error}") from error
    finally:
        shutil.rmtree(log)
