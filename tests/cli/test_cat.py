"""`walpool cat`: each format, from an LSN on, and following."""

from __future__ import annotations

import json
import os
import shutil
import signal
from base64 import b64decode
from pathlib import Path

import pytest

from walpool import SyncMode, WALWriter

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
