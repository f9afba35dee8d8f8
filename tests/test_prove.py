"""The tool that tries everything for some minutes: its shortest run, in which each part is tried once."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.seeded import BUGS
from tests.matrix import ROWS
from tests.support import DEADLINE_S, ROOT
from tools import prove


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/prove.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S - 10,
        check=False,
    )


CHEAP = ("hostile inputs", "errors", "fuzzer's inputs", "cuts of a real ext4", "seeded bugs")


@pytest.mark.slow
def test_a_part_is_tried_and_the_report_says_what_was_done(tmp_path: Path, seed: int) -> None:
    """One of each kind of job; those of the others are that of the hostile inputs."""
    written = tmp_path / "report.md"
    only = [word for name in CHEAP for word in ("--only", name)]
    ended = run("--minutes", "0", "--seed", str(seed), "--report", str(written), *only)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = written.read_text()
    assert "**Findings: 0.** Acknowledged entries lost: 0." in report
    assert f"Seed {seed}:" in report
    for name in CHEAP:
        row = re.search(rf"^\| {re.escape(name)} \| ([0-9,]+)", report, re.MULTILINE)
        assert row, f"there is no row for {name}"
        assert row[1] != "0" or f"- {name}: " in report.partition("## Not run")[2], f"{name} did nothing"
    for fault in ROWS:
        assert f"\n| {fault} | " in report


def test_every_part_has_a_job_whose_answer_it_can_count() -> None:
    """What is asked of those that `test_a_part_is_tried` leaves out; that they work, their own tests say."""
    parts = {part.name: part for part in prove.parts(len(BUGS))}
    assert parts.keys() > set(CHEAP)
    for part in parts.values():
        if part.module:
            module = importlib.import_module(part.module)
            assert list(inspect.signature(module.prove).parameters)[:3] == ["folder", "seed", "count"]
            assert not part.key or f'"{part.key}"' in inspect.getsource(module)
        else:
            assert part.name in CHEAP


def test_a_finding_is_in_the_report_and_in_the_exit_code(tmp_path: Path) -> None:
    proof = prove.Proof(1, 0.0, ["kills"], short=True)
    (part,) = proof.parts
    proof._add(part, 50, {"finding": "LSN 7 is lost; repeat with: ..."}, tmp_path / "states")
    assert proof.findings == ["LSN 7 is lost; repeat with: ..."]
    report = prove.report(proof, 2)
    assert "**Findings: 1.** Acknowledged entries lost: see below." in report
    assert "LSN 7 is lost; repeat with: ..." in report


def test_a_part_that_there_is_not_is_refused_in_a_line() -> None:
    ended = run("--only", "nonsense")
    assert ended.returncode == 2
    assert "there is no part 'nonsense': there are crash states, " in ended.stderr
