"""`walpool cat`: each format, from an LSN on, and following."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from base64 import b64decode
from pathlib import Path

import pytest

from walpool import SyncMode, WALEntry, WALWriter
from walpool.system.calls import calls

from .conftest import Run, Start, assert_no_traceback


@pytest.fixture
def mixed(log: Path) -> Path:
    """A log with text, with what must be escaped, with bytes that are no text, and with a delete."""
    with WALWriter(log, SyncMode.NORMAL) as writer:
        writer.put(b"user:1", "Ada Łovelace".encode(), timestamp=7)
        writer.put(b"tab\there", b"line\nfeed \\ \x1b[31mred \x00", timestamp=8)
        writer.put(b"\xff\xfe", b"\x80 raw", timestamp=9)
        writer.delete(b"user:1", timestamp=10)
    return log


def test_text_is_one_line_an_entry_whatever_is_in_it(run: Run, mixed: Path) -> None:
    assert run("cat", mixed).text == (
        "1\tput\t7\tuser:1\tAda Łovelace\n"
        "2\tput\t8\ttab\\there\tline\\nfeed \\\\ \\x1b[31mred \\x00\n"
        "3\tput\t9\t\\xff\\xfe\t\\x80 raw\n"
        "4\tdelete\t10\tuser:1\t\n"
    )


def test_json_is_one_object_a_line_and_loses_nothing(run: Run, mixed: Path) -> None:
    first, second, third, fourth = map(json.loads, run("cat", mixed, "--format", "json").text.splitlines())
    assert first == {"lsn": 1, "operation": "put", "timestamp": 7, "key": "user:1", "value": "Ada Łovelace"}
    assert second["value"] == "line\nfeed \\ \x1b[31mred \x00"
    assert b64decode(third["key_base64"]) == b"\xff\xfe" and b64decode(third["value_base64"]) == b"\x80 raw"
    assert fourth == {"lsn": 4, "operation": "delete", "timestamp": 10, "key": "user:1"}


def test_json_as_every_command_has_it(run: Run, mixed: Path) -> None:
    assert run("cat", mixed, "--json").out == run("cat", mixed, "--format", "json").out


def test_raw_is_the_values_of_puts(run: Run, mixed: Path) -> None:
    assert run("cat", mixed, "--format", "raw").out == (
        "Ada Łovelace\n".encode() + b"line\nfeed \\ \x1b[31mred \x00\n" + b"\x80 raw\n"
    )


def test_from_one_lsn_up_to_another(run: Run, mixed: Path) -> None:
    for words in (
        ("--from", "2", "--to", "4"),
        ("--from-lsn", "2", "--to-lsn", "4"),
        ("-f", "--from", "2", "--to", "4"),
    ):
        assert [line.split("\t")[0] for line in run("cat", mixed, *words).text.splitlines()] == ["2", "3"]
    assert run("cat", mixed, "--to", "1").out == b""
    assert run("cat", mixed, "--to", "99").out == run("cat", mixed).out
    refused = run("cat", mixed, "--to", "2", "--until", "1s")
    assert refused.code == 2 and refused.err.endswith("give one of them\n")


def test_those_that_match(run: Run, mixed: Path) -> None:
    def lsns(*words: object) -> list[int]:
        return [int(line.split("\t")[0]) for line in run("cat", mixed, *words).text.splitlines()]

    assert lsns("--match", "user:1") == [1, 4]  # in keys
    assert lsns("--match", "^Ada .ovelace$") == [1]  # in values, by characters and not by bytes
    assert lsns("--match", "(?i)RAW|RED") == [2, 3]
    assert lsns("--match", "nothing") == []
    assert lsns("--match", ".", "--from", "2", "--to", "3") == [2]
    refused = run("cat", mixed, "--match", "(")
    assert refused.code == 2 and "is no regular expression: missing )" in refused.err


def test_workers_print_what_one_process_prints(run: Run, log: Path) -> None:
    with WALWriter(log, size_limit=1 << 20) as writer:
        for number in range(40):
            writer.append_batch([WALEntry.put(b"%d-%d" % (number, at), bytes(1000), 1) for at in range(40)])
    for words in ((), ("--format", "raw"), ("--json",), ("--match", "3-.$", "--from", "77", "--to", "999")):
        assert run("cat", log, *words, "--workers", "3").out == run("cat", log, *words).out != b""
    refused = run("cat", log, "--workers", "2", "--follow")
    assert refused.code == 2 and refused.err.endswith("it takes one process\n")


def test_workers_print_what_stands_before_damage(run: Run, log: Path) -> None:
    with WALWriter(log, size_limit=1 << 20) as writer:
        for _ in range(1000):
            writer.put(b"key", bytes(1000), 1)
    file = min(log.glob("*.wal"))
    data = bytearray(file.read_bytes())
    data[600_000] ^= 1
    file.write_bytes(data)
    alone, together = run("cat", log), run("cat", log, "--workers", "2")
    assert together == alone and alone.code == 1 and alone.out


def test_workers_end_when_nobody_reads(log: Path, start: Start) -> None:
    with WALWriter(log) as writer:
        for number in range(100):
            writer.append_batch([WALEntry.put(b"key-%d" % number, bytes(1000), 1)] * 100)
    process = start("cat", log, "--workers", "2").process
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() == 0


def test_from_an_lsn_on(run: Run, mixed: Path) -> None:
    assert [line.split("\t")[0] for line in run("cat", mixed, "--from", "3").text.splitlines()] == ["3", "4"]
    assert run("cat", mixed, "--from", "5").out == b""


def test_one_segment_file(run: Run, mixed: Path) -> None:
    assert run("cat", mixed / "00000000000000000001.wal").out == run("cat", mixed).out


def test_output_does_not_depend_on_the_locale(run: Run, mixed: Path) -> None:
    plain = run("cat", mixed)
    env = {**os.environ, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "LC_ALL": "C"}
    ascii_only = run("cat", mixed, env=env)
    assert ascii_only.out == plain.out


def test_follow_prints_what_comes_and_ends_with_ctrl_c(start: Start, log: Path) -> None:
    with WALWriter(log) as writer:
        writer.put(b"first", b"1")
        following = start("cat", log, "--follow", "--format", "raw")
        assert following.process.stdout is not None
        assert following.process.stdout.readline() == b"1\n"
        writer.put(b"second", b"2")
        assert following.process.stdout.readline() == b"2\n"
        writer.rotate()
        writer.put(b"third", b"3")
        assert following.process.stdout.readline() == b"3\n"
        following.process.send_signal(signal.SIGINT)
        ended = following.wait()
    assert ended.code == 0
    assert ended.err == ""


def put(log: Path, *values: bytes) -> None:
    with WALWriter(log) as writer:
        for value in values:
            writer.put(b"key", value)


def test_retry_waits_for_a_log_and_goes_on_with_the_next_of_that_name(start: Start, log: Path, tmp_path: Path) -> None:
    following = start("cat", log, "--follow", "--retry", "--format", "raw")
    out, err = following.process.stdout, following.process.stderr
    assert out is not None and err is not None
    assert b"no such log; waiting" in err.readline()
    put(log, b"1", b"2")
    assert [out.readline() for _ in range(2)] == [b"1\n", b"2\n"]
    log.rename(tmp_path / "moved")
    assert b"waiting" in err.readline()
    put(log, b"3")
    assert out.readline() == b"3\n"
    shutil.rmtree(log)
    log.mkdir()
    put(log, b"4")
    assert out.readline() == b"4\n"
    following.process.send_signal(signal.SIGINT)
    assert following.wait().code == 0


def test_retry_takes_the_start_for_the_first_log(start: Start, log: Path) -> None:
    following = start("cat", log, "--follow", "--retry", "--from", "2", "--format", "raw")
    put(log, b"1", b"2")
    assert following.process.stdout is not None
    assert following.process.stdout.readline() == b"2\n"


def test_without_retry_a_replaced_log_ends_it_with_74(start: Start, log: Path, tmp_path: Path) -> None:
    put(log, b"1")
    following = start("cat", log, "--follow", "--format", "raw")
    assert following.process.stdout is not None
    assert following.process.stdout.readline() == b"1\n"
    log.rename(tmp_path / "moved")
    ended = following.wait()
    assert ended.code == 74
    assert_no_traceback(ended)


def test_retry_without_follow_is_refused(run: Run, mixed: Path) -> None:
    assert run("cat", mixed, "--retry").code == 2


def test_damage_ends_it_behind_what_is_intact(run: Run, log: Path) -> None:
    with WALWriter(log) as writer:
        for number in range(100):
            writer.put(b"%d" % number, b"value")
        writer.sync()
        writer.rotate()
        writer.put(b"last", b"value")
    segment = log / "00000000000000000001.wal"
    data = bytearray(segment.read_bytes())
    data[64 + 50 * 80] ^= 0xFF
    segment.write_bytes(data)
    ended = run("cat", log)
    assert ended.code == 1
    assert 40 < len(ended.text.splitlines()) < 60
    assert "Traceback" not in ended.err and "damage" in ended.err


@pytest.fixture
def aged(log: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Entries of two hours, one hour, five minutes ago and of now."""
    now_ns = time.time_ns()
    for seconds in (7200, 3600, 300, 0):
        monkeypatch.setattr(calls, "time_ns", lambda at=now_ns - seconds * 10**9: at)
        with WALWriter(log) as writer:
            writer.put(b"seconds ago", b"%d" % seconds)
    monkeypatch.undo()
    return log


@pytest.mark.parametrize(
    ("words", "lsns"),
    [
        (["--since", "10m"], [3, 4]),
        (["--since", "90m"], [2, 3, 4]),
        (["--since", "3h"], [1, 2, 3, 4]),
        (["--since", "1d", "--until", "10m"], [1, 2]),
        (["--until", "600s"], [1, 2]),
        (["--until", "1970-01-01"], []),
        (["--since", "2100-01-01T12:00"], []),
        (["--from", "2", "--until", "2100-01-01T12:00:00+01:00"], [2, 3, 4]),
    ],
)
def test_from_and_to_a_time(run: Run, aged: Path, words: list[str], lsns: list[int]) -> None:
    assert [int(line.split("\t")[0]) for line in run("cat", aged, *words).text.splitlines()] == lsns


def test_follow_since_a_time(start: Start, aged: Path) -> None:
    running = start("cat", aged, "--follow", "--retry", "--since", "10m")
    assert running.process.stdout is not None
    assert [running.process.stdout.readline().split(b"\t")[0] for _ in range(2)] == [b"3", b"4"]
    running.process.send_signal(signal.SIGINT)
    assert running.wait().code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--since", "yesterday"], "no moment: use 30s, 10m, 2h or 1d"),
        (["--since", "5x"], "no moment"),
        (["--since", "10m", "--from", "3"], "both say where to begin"),
        (["--until", "10m", "--follow"], "where to end"),
    ],
)
def test_times_that_say_nothing_are_refused(run: Run, aged: Path, words: list[str], says: str) -> None:
    ended = run("cat", aged, *words)
    assert ended.code == 2
    assert says in ended.err
