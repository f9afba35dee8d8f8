"""The command line as such: help, versions, exit codes, and errors in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from walpool import WALWriter
from walpool.cli.exits import describe
from walpool.cli.main import COMMANDS
from walpool.errors import LogReplaced

from .conftest import Run, assert_no_traceback


def test_help_names_every_command(run: Run) -> None:
    ended = run("--help")
    assert ended.code == 0
    for command in COMMANDS:
        assert f"\n    {command}" in ended.text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_and_json(run: Run, command: str) -> None:
    ended = run(command, "--help")
    assert ended.code == 0
    assert "--json" in ended.text


def test_version(run: Run) -> None:
    ended = run("--version")
    assert ended.code == 0
    assert ended.text.startswith("walpool ")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["no-such-command"],
        ["cat"],
        ["cat", "x", "--from", "0"],
        ["cat", "x", "--from", "soon"],
        ["cat", "x", "--format", "xml"],
        ["ingest", "x", "--workers", "0"],
        ["ingest", "x", "--batch", "many"],
        ["ingest", "x", "--sync", "maybe"],
        ["ingest", "x", "--size-limit", "12 parsecs"],
        ["ingest", "x", "--size-limit", "1"],
        ["ingest", "x", "--wait", "-1"],
    ],
)
def test_a_wrong_word_is_a_usage_error_and_makes_nothing(run: Run, tmp_path: Path, args: list[str]) -> None:
    ended = run(*args, cwd=tmp_path)
    assert ended.code == 2
    assert "usage: walpool" in ended.err
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_replaced_log_is_74() -> None:
    code, line = describe(LogReplaced("events.wal", "another log is here now"))
    assert (code, line) == (74, "events.wal: another log is here now")


@pytest.mark.parametrize("command", ["cat", "dump", "stat", "verify"])
def test_no_such_log_is_3(run: Run, tmp_path: Path, command: str) -> None:
    ended = run(command, tmp_path / "nothing")
    assert ended.code == 3
    assert_no_traceback(ended)
    assert "nothing" in ended.err


@pytest.mark.parametrize("command", ["cat", "dump", "stat", "verify"])
def test_an_empty_directory_is_no_log_and_stays_empty(run: Run, tmp_path: Path, command: str) -> None:
    ended = run(command, tmp_path)
    assert ended.code == 3
    assert_no_traceback(ended)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["cat", "dump", "verify"])
def test_a_file_that_is_no_segment_is_refused_in_one_line(run: Run, tmp_path: Path, command: str) -> None:
    stranger = tmp_path / "00000000000000000001.wal"
    stranger.write_bytes(b"not a segment at all" * 20)
    ended = run(command, stranger)
    assert ended.code == 1
    assert "Traceback" not in ended.err


def test_a_log_that_cannot_be_made_is_an_io_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    ended = run("ingest", tmp_path / "file" / "log", data=b"line\n")
    assert ended.code == 74
    assert_no_traceback(ended)


def test_a_control_character_in_a_name_does_not_reach_the_terminal(run: Run, tmp_path: Path) -> None:
    ended = run("ingest", tmp_path / "log", "no\x1b[2Jfile")
    assert ended.code == 2
    assert "\x1b" not in ended.err


def test_the_reader_going_away_is_no_error(log: Path) -> None:
    with WALWriter(log) as writer:
        for _ in range(1000):
            writer.put(b"key", b"x" * 1000)
    command = [sys.executable, "-m", "walpool", "cat", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as cat:
        assert cat.stdout is not None and cat.stderr is not None
        assert cat.stdout.readline()
        cat.stdout.close()
        assert cat.wait(60) == 0
        assert cat.stderr.read() == b""


def test_only_the_command_that_runs_is_imported() -> None:
    code = (
        "import sys; from walpool.cli.main import run\n"
        "try: run(['cat', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name.startswith('walpool.cli.')), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert b"walpool.cli.cat" in ended.stderr
    assert b"walpool.cli.demo" not in ended.stderr
    assert b"walpool.cli.pool" not in ended.stderr
