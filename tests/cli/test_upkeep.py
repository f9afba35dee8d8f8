"""`walpool repair`, `checkpoint` and `prune`, by hand."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run, assert_no_traceback
from walpool import SyncMode, WALReader, WALWriter


@pytest.fixture
def damaged(log: Path) -> Path:
    """A log of ten segments with a damaged frame in the third, of which nobody knows whether it was durable."""
    with WALWriter(log, size_limit=512) as writer:
        for number in range(40):
            writer.put(b"key", b"%050d" % number)
    return damage(log)


@pytest.fixture
def damaged_durably(log: Path) -> Path:
    """The same, and it was."""
    with WALWriter(log, SyncMode.FULL, size_limit=512) as writer:
        for number in range(40):
            writer.put(b"key", b"%050d" % number)
    return damage(log)


def damage(log: Path) -> Path:
    third = sorted(log.glob("*.wal"))[2]
    data = bytearray(third.read_bytes())
    data[200] ^= 1
    third.write_bytes(data)
    return log


def test_repair_without_apply_says_what_it_would_do_and_touches_nothing(run: Run, damaged: Path) -> None:
    before = {path: path.read_bytes() for path in damaged.iterdir() if path.is_file()}
    ended = run("repair", damaged, "--mode", "point_in_time")
    assert ended.code == 1
    assert b"would end the log at LSN" in ended.out
    assert {path: path.read_bytes() for path in damaged.iterdir() if path.is_file()} == before


def test_repair_with_apply_keeps_what_it_cuts(run: Run, damaged: Path) -> None:
    segments = {path.name: path.read_bytes() for path in damaged.glob("*.wal")}
    plan = json.loads(run("repair", damaged, "--mode", "point_in_time", "--json").out)
    assert run("repair", damaged, "--mode", "point-in-time", "--apply").code == 0
    assert run("verify", damaged).code == 0
    assert [entry.lsn for entry in WALReader(damaged)] == list(range(1, plan["next_lsn"]))
    kept = {path.name[:24]: path.read_bytes() for path in (damaged / "quarantine").iterdir()}
    assert kept == {name: segments[name] for name in plan["quarantine"]}
    assert run("repair", damaged).code == 0


@pytest.mark.parametrize("mode", ["tolerate-tail", "tolerate_tail", "strict"])
def test_repair_that_refuses_names_the_ways_out(run: Run, damaged_durably: Path, mode: str) -> None:
    damaged = damaged_durably
    ended = run("repair", damaged, "--mode", mode)
    assert ended.code == 1
    assert_no_traceback(ended)
    ways = [word for word in ("point-in-time", "salvage") if f"--mode {word} " in ended.err]
    assert ways == ["point-in-time", "salvage"]
    for way in ways:
        assert run("repair", damaged, "--mode", way).code == 1
        assert b"would" in run("repair", damaged, "--mode", way.replace("-", "_")).out


def test_what_lies_in_quarantine_is_shown_and_removed_when_asked(run: Run, damaged: Path) -> None:
    assert run("repair", damaged, "--mode", "point-in-time", "--apply").code == 0
    kept = list((damaged / "quarantine").iterdir())
    held = {"files": len(kept), "bytes": sum(path.stat().st_size for path in kept)}
    assert held["files"] > 1
    assert run("stat", damaged, "--json").json["quarantine"] == held
    assert "walpool prune --quarantine" in run("stat", damaged).text
    segments = sorted(damaged.glob("*.wal"))
    with WALWriter(damaged):  # beside whoever appends
        assert run("prune", damaged, "--quarantine", "--json").json["quarantine"] == held
    assert list((damaged / "quarantine").iterdir()) == []
    assert sorted(damaged.glob("*.wal")) == segments
    assert run("prune", damaged, "--quarantine").text == "removed 0 files from quarantine/, 0 B\n"
    assert "quarantine/" not in run("stat", damaged).text
    assert run("verify", damaged).code == 0


def test_a_quarantine_that_leads_elsewhere_is_left_alone(run: Run, damaged: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_bytes(b"not ours")
    (damaged / "quarantine").symlink_to(elsewhere)
    assert run("prune", damaged, "--quarantine").code == 74
    assert (elsewhere / "file").exists()
    assert run("stat", damaged).code == 0


def test_no_quarantine_is_nothing_to_remove(run: Run, log: Path) -> None:
    assert run("prune", log, "--quarantine").code == 3
    WALWriter(log).close()
    assert run("prune", log, "--quarantine").text == "removed 0 files from quarantine/, 0 B\n"


def test_repair_of_a_log_that_is_open_is_refused_in_one_line(run: Run, damaged: Path) -> None:
    with WALWriter(damaged, size_limit=512):
        ended = run("repair", damaged, "--mode", "point_in_time", "--apply")
    assert ended.code == 74
    assert_no_traceback(ended)
    assert "still have the log open" in ended.err


def test_prune_removes_what_the_checkpoint_covers_and_says_what_is_first(run: Run, log: Path) -> None:
    with WALWriter(log, size_limit=512) as writer:
        for number in range(40):
            writer.put(b"key", b"%050d" % number)
    assert run("prune", log).code == 0
    assert WALReader(log).read_entry() is not None
    assert run("checkpoint", log, "20").out == b"checkpoint at LSN 20\n"
    assert run("checkpoint", log, "7").out == b"checkpoint at LSN 20\n"
    first = json.loads(run("prune", log, "--json").out)["first_lsn"]
    assert 1 < first <= 21
    assert WALReader(log, start=first).read_all()[0].lsn == first
    refused = run("cat", log, "--from", "1")
    assert refused.code == 2
    assert f"the first available is {first}" in refused.err


@pytest.mark.parametrize("command", ["repair", "prune"])
def test_upkeep_of_what_is_not_there_makes_nothing(run: Run, log: Path, command: str) -> None:
    assert run(command, log).code == 3
    assert not log.exists()


def test_a_checkpoint_past_the_end_is_refused(run: Run, log: Path) -> None:
    with WALWriter(log) as writer:
        writer.put(b"key", b"value")
    ended = run("checkpoint", log, "2")
    assert ended.code == 2
    assert_no_traceback(ended)


def test_copy_makes_a_log_and_says_what_is_in_it(run: Run, tmp_path: Path) -> None:
    with WALWriter(tmp_path / "log") as writer:
        for number in range(5):
            writer.put(b"key", b"%d" % number)
    ended = run("copy", tmp_path / "log", tmp_path / "copy")
    assert (ended.code, ended.err) == (0, "")
    assert ended.text.startswith("copied 5 entries (LSN 1 to 5) in 1 segments")
    assert run("cat", tmp_path / "copy").out == run("cat", tmp_path / "log").out
    told = run("copy", tmp_path / "log", tmp_path / "another", "--json").json
    assert (told["first_lsn"], told["next_lsn"], told["path"]) == (1, 6, str(tmp_path / "another"))


def test_copy_replaces_nothing_and_needs_a_log(run: Run, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert run("copy", tmp_path / "nothing", tmp_path / "copy").code == 3
    WALWriter(tmp_path / "log").close()
    ended = run("copy", tmp_path / "log", tmp_path / "there")
    assert ended.code == 74
    assert_no_traceback(ended)
    assert "it exists already" in ended.err
