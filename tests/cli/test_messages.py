"""What a person reads of a command that cannot do what it was asked for: one line, that says where and what to do."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run, assert_no_traceback
from walpool import SyncMode, WALWriter
from walpool.cli.main import COMMANDS

MORE = {"copy": ["copy"], "checkpoint": ["1"], "monitor": ["--once", "--interval", "0.05"], "export": ["--port", "0"]}
LOOKING = ("cat", "dump", "stat", "monitor", "verify", "repair", "copy")
WRITING = ("ingest", "checkpoint", "prune")


def words(command: str, log: object) -> list[object]:
    return [command, log, *MORE.get(command, [])]


@pytest.fixture(autouse=True)
def in_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def real(tmp_path: Path) -> Path:
    with WALWriter(tmp_path / "real", SyncMode.FULL, size_limit=512) as writer:
        for number in range(40):
            writer.put(b"key", b"%050d" % number)
    return tmp_path / "real"


# Words that are wrong


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["checkpoint", "real", "soon"], "'soon' is not a number from 0"),
        (["checkpoint", "real", "-1"], "'-1' is not a number from 0"),
        (["checkpoint", "real", "1.5"], "'1.5' is not a number from 0"),
        (["checkpoint", "real", "9" * 5000], "is not a number from 0"),
        (["cat", "real", "--from", "-1"], "'-1' is not an LSN: they count from 1"),
        (["cat", "real", "--from", "9" * 5000], "is not an LSN"),
        (["prune", "real", "--max-bytes", "-1"], "'-1' is not a number from 0"),
        (["prune", "real", "--max-bytes", "1G"], "'1G' is not a number from 0"),
        (["prune", "real", "--max-segments", "-1"], "'-1' is not a number from 0"),
        (["prune", "real", "--max-pinned-bytes", "x"], "'x' is not a number from 0"),
        (["prune", "real", "--max-age", "nan"], "'nan' is not a number of seconds"),
        (["prune", "real", "--max-age", "-5"], "'-5' is not a number of seconds"),
        (["monitor", "real", "--interval", "x"], "'x' is not a number of seconds from 0.05 to 3600"),
        (["monitor", "real", "--interval", "inf"], "'inf' is not a number of seconds from 0.05 to 3600"),
        (["export", "real", "--port", "99999"], "'99999' is not a number from 0 to 65535"),
        (["export", "real", "--port", "-1"], "'-1' is not a number from 0 to 65535"),
        (["repair", "real", "--mode", "x"], "'x' is not one of tolerate-tail, strict, point-in-time, salvage"),
        (["ingest", "real", "--sync", "bogus"], "'bogus' is not one of none, normal, full"),
        (["ingest", "real", "--long-lines", "bogus"], "'bogus' is not one of error, skip, split"),
        (["ingest", "real", "--workers", "-1"], "'-1' is not a number from 1 to 64"),
        (["ingest", "--as", "", "real", "real/control"], "--as needs a name, and this one is empty"),
        (["cat", "real", "--retry"], "--retry goes with --follow"),
    ],
)
@pytest.mark.parametrize("json", [[], ["--json"]], ids=["text", "json"])
def test_a_wrong_word_is_told_with_what_would_be_right(
    run: Run, real: Path, wrong: list[str], said: str, json: list[str]
) -> None:
    before = sorted(real.iterdir())
    ended = run(*wrong, *json)
    assert (ended.code, ended.out) == (2, b"")
    assert "Traceback" not in ended.err
    assert said in ended.err.splitlines()[-1]
    assert sorted(real.iterdir()) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_there_is_not_is_2(run: Run, tmp_path: Path, command: str) -> None:
    for more in ([], [tmp_path / "log", *MORE.get(command, [])]):
        ended = run(command, *more, "--no-such-option")
        assert (ended.code, ended.out) == (2, b"")
        assert "Traceback" not in ended.err and ": error: " in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_name_is_not_the_directory_that_we_are_in(run: Run, tmp_path: Path, command: str) -> None:
    ended = run(*words(command, ""))
    assert (ended.code, ended.out) == (2, b"")
    assert ended.err.endswith("it is empty: name a path\n")
    assert list(tmp_path.iterdir()) == []


# Places that are none


@pytest.mark.parametrize("json", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("command", [*LOOKING, "checkpoint", "prune", "export"])
def test_where_there_is_no_log_a_command_says_which_path_and_makes_nothing(
    run: Run, tmp_path: Path, command: str, json: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for place, said in {"nothing": "no such log", "empty": "the directory holds no log"}.items():
        ended = run(*words(command, place), *json)
        assert (ended.code, ended.out) == (3, b"")
        assert ended.err == f"walpool {command}: {tmp_path / place}: {said}\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize("command", [*LOOKING, *WRITING, "export"])
def test_a_link_in_the_place_of_a_log_is_one_line_with_the_path_to_use(
    run: Run, real: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "link").symlink_to(real)
    ended = run(*words(command, "link"))
    assert (ended.code, ended.out) == (74, b"")
    assert ended.err == (
        f"walpool {command}: {tmp_path}/link: refused: a symbolic link, to {real.resolve()}: use that path\n"
    )


@pytest.mark.parametrize("command", LOOKING)
def test_a_control_file_that_nobody_may_open_keeps_nobody_from_looking_at_the_segments(
    run: Run, real: Path, tmp_path: Path, command: str
) -> None:
    (real / "control").rename(tmp_path / "control")
    (real / "control").symlink_to(tmp_path / "control")
    ended = run(*words(command, real))
    if command == "monitor":  # which has nothing else to show
        assert ended.code == 74
        assert "a symbolic link" in ended.err
        assert_no_traceback(ended)
    else:
        assert (ended.code, ended.err) == (0, "")
    if command == "stat":
        assert "control   refused: a symbolic link" in ended.text


@pytest.mark.parametrize("command", ["monitor", "export"])
@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda log: shutil.copy(log / "control", log / "copy"), "the control block is a copy of another log's"),
        (lambda log: (log / "copy").write_bytes(b""), "the control block has 0 bytes"),
        (lambda log: None, "there is no control block"),
    ],
    ids=["copied", "empty", "missing"],
)
def test_a_log_whose_figures_nobody_keeps_is_named_with_what_to_do(
    run: Run, real: Path, command: str, harm: object, why: str
) -> None:
    assert callable(harm)
    harm(real)
    (real / "control").unlink()
    if (real / "copy").exists():
        (real / "copy").rename(real / "control")
    ended = run(*words(command, real))
    assert (ended.code, ended.out) == (74, b"")
    assert_no_traceback(ended)
    assert ended.err.startswith(f"walpool {command}: {real}: {why}")
    assert "`walpool checkpoint LOG 0`" in ended.err and "`walpool stat`" in ended.err
    assert run("checkpoint", real, "0").code == 0
    assert run("monitor", real, "--once", "--interval", "0.05").code == 0


# No descriptors


@pytest.mark.skipif(sys.platform != "linux", reason="how many Python needs by itself is Linux's")
@pytest.mark.parametrize("command", [*LOOKING, *WRITING])
def test_without_descriptors_every_command_names_the_limit(run: Run, real: Path, tmp_path: Path, command: str) -> None:
    refused = 0
    for limit in (6, 8, 10, 12):
        ended = run(
            *words(command, real),
            data=b"" if command == "ingest" else None,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        )
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        if ended.code == 0:
            continue
        assert ended.code == 74
        assert "Traceback" not in ended.err and "Errno" not in ended.err and "appended" not in ended.err
        assert f"Too many open files: this process may have {limit}; raise the limit (ulimit -n)" in ended.err
        refused += 1
    assert refused >= 1
    assert run("verify", real).code == 0


# Repair


def damage(log: Path) -> None:
    third = sorted(log.glob("*.wal"))[2]
    data = bytearray(third.read_bytes())
    data[200] ^= 1
    third.write_bytes(data)


def test_repair_that_would_cut_intact_entries_off_names_the_mode_that_keeps_them(run: Run, real: Path) -> None:
    damage(real)
    assert "--mode salvage would keep them in the log" in run("repair", real, "--mode", "point-in-time").text
    kept = run("repair", real, "--mode", "salvage")
    assert kept.text.endswith("nothing is cut; --apply starts a new segment at the end\n")


def test_repair_of_a_sound_log_says_that_there_is_nothing_to_repair(run: Run, real: Path) -> None:
    assert run("repair", real).text == "nothing to repair: the log ends at LSN 40\n"
    ended = run("repair", real, "--apply")
    assert ended.code == 0
    assert ended.text == "nothing to repair: the log ends at LSN 40, and its control block was made anew\n"
    shutil.copytree(real, "copy")
    assert run("repair", "copy").text == "nothing to repair: the log ends at LSN 40\n"


def test_repair_of_a_log_in_use_says_who_uses_it_and_what_to_do(run: Run, real: Path) -> None:
    damage(real)
    with WALWriter(real):
        ended = run("repair", real, "--mode", "salvage", "--apply")
    assert ended.code == 74
    assert_no_traceback(ended)
    assert f"the writers in slots 0 (process {os.getpid()} " in ended.err
    assert ended.err.endswith("still have the log open: close them, and try again\n")
    assert "sandboxes" not in ended.err
