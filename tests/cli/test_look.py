"""`walpool dump`, `stat` and `verify`: what they say of a whole log, a live one, a copy, and a damaged one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.support import ROOT
from walpool import WALWriter
from walpool.cli.output import amount

from .conftest import Run, assert_no_traceback

GOLDEN = "00000000000000000041.wal"
FIRST = "00000000000000000001.wal"

DUMP = (Path(__file__).parent / "golden-dump-1.0.txt").read_text()


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """The golden segment alone in a directory, as a copy or an archive has it."""
    segment = bytes.fromhex((ROOT / "tests" / "golden" / "segment-1.0.hex").read_text())
    (tmp_path / GOLDEN).write_bytes(segment)
    return tmp_path


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def test_the_golden_segment_is_dumped_like_this(run: Run, golden: Path) -> None:
    for path in (golden, golden / GOLDEN):
        ended = run("dump", path)
        assert (ended.code, ended.text) == (0, DUMP)


def test_a_segment_file_may_have_any_name(run: Run, golden: Path) -> None:
    (golden / GOLDEN).rename(golden / "x.wal")
    ended = run("dump", golden / "x.wal")
    assert (ended.code, ended.text) == (0, DUMP.replace(GOLDEN, "x.wal"))
    for command in ("verify", "cat"):
        ended = run(command, golden / "x.wal")
        assert (ended.code, ended.err) == (0, "")
    assert "LSN 41 to" in run("verify", golden / "x.wal").text


def test_a_dump_as_json_has_the_same_rows(run: Run, golden: Path) -> None:
    rows = [json.loads(line) for line in run("dump", golden, "--json").text.splitlines()]
    assert [(row["offset"], row["kind"]) for row in rows] == [
        (0, "header"), (64, "frame"), (137, "frame"), (250, "frame"), (730, "frame"), (9794, "end"),
    ]  # fmt: skip
    assert rows[2]["first_lsn"] == 42 and rows[2]["count"] == 3 and rows[2]["bytes"] == 113


def test_a_dump_of_a_range_has_the_frames_that_hold_it(run: Run, golden: Path, log: Path) -> None:
    def frames(*words: object) -> list[tuple[int, int]]:
        rows = [json.loads(line) for line in run("dump", *words, "--json").text.splitlines()]
        return [(row["first_lsn"], row["last_lsn"]) for row in rows if row["kind"] == "frame"]

    every = frames(golden)
    for start, end in ((1, 99), (41, 42), (43, 44), (44, 46), (46, 47)):
        wanted = [(first, last) for first, last in every if last >= start and first < end]
        assert frames(golden, "--from", start, "--to", end) == wanted
        assert frames(golden / GOLDEN, "--from-lsn", start, "--to-lsn", end) == wanted
    with WALWriter(log) as writer:
        for _ in range(3):
            writer.put(b"key", b"value")
            writer.rotate()
    assert run("dump", log, "--from", "2", "--to", "3").text.count(".wal") == 1


def test_damage_is_dumped_with_what_lies_behind_it(run: Run, golden: Path) -> None:
    flip(golden / GOLDEN, 200)
    ended = run("dump", golden)
    assert ended.code == 1
    offsets_and_kinds = [line.split()[:2] for line in ended.text.splitlines()[2:]]
    assert offsets_and_kinds == [["64", "frame"], ["137", "damage"], ["250", "void"], ["730", "void"], ["9794", "end"]]
    assert "113 bytes  the frame's checksum does not match" in ended.text


def test_zeros_and_a_torn_tail_behind_the_frames(run: Run, golden: Path) -> None:
    segment = golden / GOLDEN
    whole = segment.read_bytes()
    segment.write_bytes(whole + bytes(100))
    assert run("dump", golden).text.splitlines()[-1] == "        9794  end      100 bytes  zeros"
    segment.write_bytes(whole[:-1])
    torn = run("dump", golden)
    assert torn.code == 1
    assert torn.text.splitlines()[-1].startswith("         730  damage   9063 bytes")


def test_a_damaged_header_is_one_row(run: Run, golden: Path) -> None:
    flip(golden / GOLDEN, 30)
    ended = run("dump", golden)
    assert ended.code == 1
    assert ended.text == f"{GOLDEN}\n           0  damage   9794 bytes  the segment header's checksum does not match\n"


def test_every_frame_of_a_live_log_counts_and_what_is_behind_the_tail_does_not(run: Run, log: Path) -> None:
    with WALWriter(log) as writer:
        for number in range(3):
            writer.put(b"key", b"%d" % number)
        writer.rotate()
        writer.put(b"key", b"last")
        active = log / "00000000000000000004.wal"
        with active.open("ab") as file:
            file.write((log / FIRST).read_bytes()[64:])  # as a killed append may leave it
        ended = run("dump", log)
    assert ended.code == 0
    kinds = [line.split()[1] for line in ended.text.splitlines() if "  " in line]
    assert kinds == ["header", "frame", "frame", "frame", "end", "header", "frame", "end"]


def test_stat_of_a_live_log(run: Run, log: Path) -> None:
    with WALWriter(log) as writer:
        for number in range(10):
            writer.put(b"key", b"%d" % number)
        writer.sync()
        writer.rotate()
        writer.append_batch([])
        writer.put(b"key", b"value")
        found = run("stat", log, "--json").json
        text = run("stat", log).text
    assert (found["first_lsn"], found["next_lsn"], found["schema"]) == (1, 12, 1)
    assert found["durable_lsn"] >= 10
    assert [(row["name"], row["first_lsn"], row["state"]) for row in found["segments"]] == [
        (FIRST, 1, "sealed"),
        ("00000000000000000011.wal", 11, "active"),
    ]
    assert found["bytes"] == sum(path.stat().st_size for path in log.glob("*.wal"))
    assert found["totals"]["writes_total"] == 11 and found["totals"]["rotation_count"] == 1
    assert len(found["writers"]) == 1 and found["writers"][0]["pid"] > 0
    assert "11: LSN 1 to 11" in text and "1 alive" in text and FIRST in text


def test_the_schema_of_stat(run: Run, log: Path) -> None:
    """Who reads the JSON relies on these; a field that goes, or means something else, is another `schema`."""
    with WALWriter(log, name="it") as writer:
        writer.put(b"key", b"value")
        found = run("stat", log, "--json").json
        text = run("stat", log).text
    assert found["schema"] == 1
    names = [
        " ".join(each)
        for each in (found, found["segments"][0], found["totals"], found["totals"]["lock_wait"], found["writers"][0])
    ]
    assert names == [
        "schema path first_lsn next_lsn durable_lsn checkpoint bytes segments totals writers killed_writers readers"
        " cursors unusable_control quarantine",
        "name first_lsn bytes state",
        "writes_total writes_failed batches_total bytes_written sync_total sync_seconds_total rotation_count"
        " avg_entry_size max_entry_size current_file_size write_success_rate checkpoint failures_by_kind lock_waits"
        " lock_holder sync_waits lock_wait sync_duration append_duration batch_entries",
        "count sum p50 p90 p99 p999 max",
        "slot pid process name sync_mode opened_at shares_row entries batches bytes failures failures_by_kind"
        " lock_waits syncs_led sync_waits rotations buffered_bytes last_append_at state state_since state_seconds"
        " last_error last_error_at elsewhere",
    ]
    head, row = (
        re.split(r"\s{2,}", line.strip())
        for line in text.splitlines()
        if line.startswith("          ") and ".wal" not in line
    )
    assert dict(zip(head, row, strict=True)) | {"pid": ""} == {
        "slot": "0", "pid": "", "name": "it", "mode": "normal", "entries": "1", "written": "72 B", "failed": "0",
        "buffered": "0", "state": "idle",
    }  # fmt: skip


def test_stat_of_a_closed_log_and_of_an_empty_one(run: Run, log: Path) -> None:
    WALWriter(log).close()
    assert "entries   0 yet" in run("stat", log).text
    assert "0 alive" in run("stat", log).text


def test_stat_of_a_copy_reads_the_segments(run: Run, golden: Path) -> None:
    found = run("stat", golden, "--json").json
    assert (found["first_lsn"], found["next_lsn"], found["durable_lsn"]) == (41, 47, 45)
    assert found["totals"] is None and found["writers"] is None and "no control block" in found["unusable_control"]
    text = run("stat", golden).text
    assert "no control block" in text and "a writer that opens the log makes a new one" in text


def test_verify_of_a_whole_log(run: Run, golden: Path) -> None:
    ended = run("verify", golden)
    assert (ended.code, ended.err) == (0, "")
    assert ended.text.startswith("no damage; read 1 segments, 4 batches, 6 entries (LSN 41 to 46)")


def test_verify_with_workers_says_the_same(run: Run, log: Path) -> None:
    with WALWriter(log) as writer:
        for _ in range(4):
            writer.put(b"key", b"value")
            writer.rotate()
    assert run("verify", log, "--workers", "2") == run("verify", log)
    flip(log / "00000000000000000003.wal", 100)
    damaged = run("verify", log, "--workers", "2")
    assert damaged == run("verify", log) and damaged.code == 1
    assert run("verify", log, "--workers", "0").code == 2


def test_verify_names_each_damage_and_ends_with_1(run: Run, golden: Path) -> None:
    flip(golden / GOLDEN, 200)
    ended = run("verify", golden)
    assert ended.code == 1
    assert f"{GOLDEN}: damage at offset 137 (LSN 42): the frame's checksum does not match" in ended.text
    assert ended.text.splitlines()[-1].startswith("DAMAGED: ")
    result = run("verify", golden, "--json").json
    assert result["damaged"] is True
    assert result["findings"][0]["offset"] == 137 and result["findings"][0]["is_damage"] is True


def test_a_torn_tail_is_no_damage(run: Run, golden: Path) -> None:
    segment = golden / GOLDEN
    segment.write_bytes(segment.read_bytes()[:-1])
    ended = run("verify", golden)
    assert ended.code == 0
    assert "torn tail at offset 730 (LSN 46)" in ended.text


def test_a_log_without_entries_has_no_range_of_them(run: Run, log: Path) -> None:
    WALWriter(log).close()
    assert "(none before LSN 1)" in run("verify", log).text
    assert "the log has no entries yet" in run("repair", log).text
    for command in ("stat", "verify", "repair", "dump"):
        assert "to 0" not in run(command, log).text


def test_the_checkpoint_shows(run: Run, log: Path) -> None:
    with WALWriter(log) as writer:
        for _ in range(5):
            writer.put(b"key", b"value")
    assert run("stat", log, "--json").json["checkpoint"] == 0
    assert "checkpoint  " not in run("stat", log).text
    assert run("checkpoint", log, "3").code == 0
    assert run("stat", log, "--json").json["checkpoint"] == 3
    assert "checkpoint  LSN 3:" in run("stat", log).text
    flip(log / "checkpoint", 10)
    ended = run("stat", log, "--json")
    assert (ended.code, ended.json["checkpoint"]) == (0, None)
    assert "checkpoint  damaged" in run("stat", log).text


def test_a_copied_log_says_what_to_do(run: Run, log: Path, tmp_path: Path) -> None:
    with WALWriter(log) as writer:
        writer.put(b"key", b"value")
    copy = shutil.copytree(log, tmp_path / "copy")
    ended = run("monitor", copy, "--once")
    assert ended.code == 74
    assert_no_traceback(ended)
    assert "open the log once with a writer" in ended.err and "verify" in ended.err
    assert "a writer that opens the log" in run("stat", copy).text
    assert run("checkpoint", copy, "0").code == 0
    assert run("monitor", copy, "--once", "--interval", "0.05").code == 0


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.00 KB"), (28_000, "28.0 KB"), (123_456, "123 KB"), (999_499, "999 KB"),
        (999_500, "1.00 MB"), (9_994_999, "9.99 MB"), (1_500_000_000, "1.50 GB"), (2_048 * 10**9, "2,048 GB"),
    ],
)  # fmt: skip
def test_an_amount_has_the_unit_that_fits(count: int, text: str) -> None:
    assert amount(count) == text


def test_looking_changes_nothing(run: Run, golden: Path, log: Path) -> None:
    with WALWriter(log) as writer:
        writer.put(b"key", b"value")
    shutil.copytree(log, golden / "copy")
    before = {path: path.read_bytes() for path in golden.rglob("*") if path.is_file()}
    for command in ("cat", "dump", "stat", "verify"):
        for place in (golden, log, golden / "copy"):
            assert run(command, place).code == 0
    assert {path: path.read_bytes() for path in golden.rglob("*") if path.is_file()} == before
