"""`walpool demo` on a small directory: it proves what is right, and does not prove what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from walpool import WALWriter
from walpool.cli.ingest import source
from walpool.cli.pool.lines import Run as LineRun
from walpool.cli.proof import Placements, prove

from .conftest import Run, Start, entries, wait_for_entries, write_lines


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    root = tmp_path / "sources"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "site-packages").mkdir()
    write_lines(root / "a.py", 4_000)
    write_lines(root / "deep" / "b.py", 3_000)
    (root / "deep" / "er" / "no_end.py").write_bytes(b"x = 1\n# \xff no line feed")
    (root / "empty.py").write_bytes(b"")
    (root / "site-packages" / "not_ours.py").write_bytes(b"no\n")
    (root / "not_python.txt").write_bytes(b"no\n")
    return root


def test_it_proves_that_every_line_is_there_once_and_in_order(run: Run, tmp_path: Path, sources: Path) -> None:
    ended = run("demo", tmp_path / "demo", "--source", sources)
    assert ended.code == 0, ended.err
    assert "7,002 lines in the sources, 7,002 entries in the log: 0 missing, 0 doubled, 0 from elsewhere" in ended.text
    assert "LSNs 1 to 7,002, 0 gaps" in ended.text
    assert "FAIL" not in ended.text and "proved: " in ended.text
    assert str(tmp_path / "demo" / "events.wal") in ended.text
    assert len(entries(tmp_path / "demo" / "events.wal")) == 7_002


def test_all_workers_take_part(run: Run, tmp_path: Path, sources: Path) -> None:
    result = run("demo", tmp_path / "demo", "--source", sources, "--workers", "3", "--json").json
    assert result["proved"] is True and result["lines"] == 7_002
    subjects = [claim["subject"] for claim in result["proof"]]
    assert subjects[:2] == ["complete", "dense"]
    assert subjects.count("order") == subjects.count("digest") >= 2


def test_a_new_directory_when_none_is_named(run: Run, tmp_path: Path, sources: Path) -> None:
    result = run("demo", "--source", sources, "--json", env={**os.environ, "TMPDIR": str(tmp_path)}).json
    log = Path(result["log"])
    assert log.parent.parent == tmp_path and log.parent.name.startswith("walpool-demo-")


def test_a_killed_demo_goes_on_and_still_proves(start: Start, run: Run, tmp_path: Path, sources: Path) -> None:
    write_lines(sources / "big.py", 150_000)
    demo = ["demo", tmp_path / "demo", "--source", sources, "--batch", "20"]
    running = start(*demo, "--verbose")
    running.read_worker()
    wait_for_entries(tmp_path / "demo" / "events.wal", 10_000)
    running.kill()
    running.end()
    ended = run(*demo)
    assert ended.code == 0, ended.out
    assert "lines of an earlier loading" in ended.text and "FAIL" not in ended.text


@pytest.mark.slow
def test_a_killed_worker_does_not_spoil_the_proof(start: Start, tmp_path: Path, sources: Path) -> None:
    write_lines(sources / "big.py", 150_000)
    running = start("demo", tmp_path / "demo", "--source", sources, "--batch", "20", "--verbose")
    running.read_worker()
    wait_for_entries(tmp_path / "demo" / "events.wal", 10_000)
    running.kill(running.workers[0])
    ended = running.wait()
    assert ended.code == 0, ended.out
    assert "1 of them replaced" in ended.text and "FAIL" not in ended.text


def test_a_log_with_something_else_in_it_is_not_proved(run: Run, tmp_path: Path, sources: Path) -> None:
    with WALWriter(tmp_path / "demo" / "events.wal") as writer:
        writer.put(b"what", b"is this")
    ended = run("demo", tmp_path / "demo", "--source", sources)
    assert ended.code == 1
    assert "1 from elsewhere" in ended.text and "NOT PROVED" in ended.text


def test_a_source_without_python_files_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    ended = run("demo", tmp_path / "demo", "--source", tmp_path / "nothing")
    assert ended.code == 2 and not (tmp_path / "demo").exists()


LINES = [b"zero", b"one", b"two", b"three", b"four", b"five"]


@pytest.mark.parametrize(
    ("order", "broken"),
    [
        ([0, 1, 2, 3, 4, 5], set()),
        ([0, 1, 3, 2, 4, 5], {"order", "digest"}),
        ([0, 1, 2, 3, 4], {"complete", "order", "digest"}),
        ([0, 1, 2, 3, 4, 5, 5], {"complete", "order", "digest"}),
        ([0, 1, 2, 6, 3, 4, 5], {"complete"}),
        ([7, 1, 2, 3, 4, 5], {"digest"}),
    ],
    ids=["right", "reordered", "missing", "doubled", "foreign", "another text"],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_each_way_to_be_wrong_is_found(
    log: Path, tmp_path: Path, order: list[int], broken: set[str], earlier: bool
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"".join(line + b"\n" for line in LINES))
    name = str(file).encode()
    entries_by_number = {n: (b"%b:%d" % (name, n + 1), line) for n, line in enumerate(LINES)}
    entries_by_number[6] = (b"foreign:1", b"")
    entries_by_number[7] = (entries_by_number[0][0], b"changed")
    with WALWriter(log) as writer:
        for number in order:
            writer.put(*entries_by_number[number])
    placements = Placements()
    if not earlier:
        placements.placed(1, (LineRun(name, 1, len(LINES), file.read_bytes()),))
    claims, read = prove(log, [source(str(file))], placements, lambda entries: None)
    assert read == len(order)
    assert {claim.subject for claim in claims if not claim.holds} == broken
