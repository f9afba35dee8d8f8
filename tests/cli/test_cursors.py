"""`walpool cursors`, and what other commands say of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from walpool import Cursor, CursorGroup, WALWriter


@pytest.fixture
def log(log: Path) -> Path:
    with WALWriter(log) as writer:
        for number in range(10):
            writer.put(b"key %d" % number, b"value")
        with Cursor(log, "etl") as cursor:
            writer.sync()
            cursor.commit(4)
        CursorGroup(log, "group", 2).close()
    return log


def test_they_are_listed_with_how_far_each_is_behind(run: Run, log: Path) -> None:
    lines = run("cursors", log).text.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["cursor", "position", "entries"], ["etl", "4", "6"], ["group@0of2", "0", "10"], ["group@1of2", "0", "10"]
    ]  # fmt: skip
    found = run("cursors", log, "--json").json
    assert found["schema"] == 1
    assert list(found["cursors"][0]) == [
        "name", "position", "lag_entries", "lag_bytes", "lag_seconds", "missed", "is_open", "pid", "problem"
    ]  # fmt: skip
    assert "cursor    etl at LSN 4, 6 entries" in run("stat", log).text
    assert "cursor group@0of2 10 behind" in run("monitor", log, "--once").text


def test_of_a_copy_and_after_a_reboot_they_are_listed_too(run: Run, log: Path) -> None:
    (log / "control").unlink()
    rows = run("cursors", log, "--json").json["cursors"]
    assert [(row["name"], row["lag_entries"], row["is_open"]) for row in rows][:1] == [("etl", 6, False)]
    assert rows[0]["lag_bytes"] > 0


def test_one_is_set_to_another_place_or_begins_anew(run: Run, log: Path) -> None:
    assert run("cursors", log, "--reset", "etl", "--to", "7").text == "etl goes on behind LSN 7\n"
    with Cursor(log, "etl") as cursor:
        assert [entry.lsn for entry in cursor.follow(timeout=0)] == [8, 9, 10]
    assert run("cursors", log, "--reset", "etl", "--json").json == {"schema": 1, "reset": ["etl"]}
    with Cursor(log, "etl") as cursor:
        assert [entry.lsn for entry in cursor.follow(timeout=0)] == [*range(1, 11)]
    assert run("cursors", log, "--reset", "group", "--to", "10").text.count("goes on behind LSN 10") == 2


def test_one_is_forgotten(run: Run, log: Path) -> None:
    assert run("cursors", log, "--delete", "group").text == "group@0of2 deleted\ngroup@1of2 deleted\n"
    assert [row["name"] for row in run("cursors", log, "--json").json["cursors"]] == ["etl"]
    CursorGroup(log, "group", 3).close()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--reset", "nobody"], 2, "there is no cursor 'nobody'"),
        (["--delete", "a/b"], 2, "a cursor's name is"),
        (["--reset", "etl", "--to", "11"], 2, "LSN 11 is not in the log: its last is 10"),
        (["--to", "3"], 2, "--to says where --reset goes"),
        (["--reset", "etl", "--delete", "etl"], 2, "not allowed with"),
        (["--reset", "etl", "--to", "x"], 2, "'x' is not a number"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(run: Run, log: Path, words: list[str], code: int, said: str) -> None:
    ended = run("cursors", log, *words)
    assert ended.code == code and said in ended.err
    assert "Traceback" not in ended.err


def test_one_that_somebody_has_open_is_busy(run: Run, log: Path) -> None:
    with Cursor(log, "etl"):
        ended = run("cursors", log, "--delete", "etl")
        assert ended.code == 4 and "has it" in ended.err
        assert run("cursors", log, "--json").json["cursors"][0]["is_open"]


def test_a_damaged_one_is_shown_and_the_way_out_works(run: Run, log: Path) -> None:
    file = log / "cursors" / "etl"
    file.write_bytes(bytes(64))
    listed = run("cursors", log)
    assert listed.code == 1 and "walpool cursors LOG --reset etl" in listed.text
    assert run("cursors", log, "--reset", "etl", "--to", "4").code == 0
    assert run("cursors", log).code == 0


def test_a_log_without_any_and_no_log(run: Run, tmp_path: Path) -> None:
    with WALWriter(tmp_path / "log") as writer:
        writer.put(b"key", b"value")
    assert run("cursors", tmp_path / "log").text == "no cursors\n"
    assert run("cursors", tmp_path / "nowhere").code == 3
    assert run("cursors", tmp_path / "nowhere", "--delete", "etl").code == 3


def test_prune_says_what_it_keeps_for_them(run: Run, tmp_path: Path) -> None:
    with WALWriter(tmp_path / "log", size_limit=512) as writer:
        for _ in range(40):
            writer.put(b"key", bytes(50))
    Cursor(tmp_path / "log", "etl").close()
    assert "kept for cursors" in run("prune", tmp_path / "log", "--max-segments", "2").text
    assert "kept for cursors" not in run("prune", tmp_path / "log", "--max-segments", "2", "--no-cursors").text
