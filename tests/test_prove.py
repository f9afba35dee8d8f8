"""The tool that tries everything for some minutes: its shortest run, in which each part is tried once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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


def test_each_part_is_tried_and_the_report_says_what_was_done(tmp_path: Path, seed: int) -> None:
    written = tmp_path / "report.md"
    ended = run("--minutes", "0", "--seed", str(seed), "--report", str(written))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = written.read_text()
    assert "**Findings: 0.** Acknowledged entries lost: 0." in report
    assert f"Seed {seed}:" in report
    for part in prove.parts(len(BUGS)):
        row = re.search(rf"^\| {re.escape(part.name)} \| ([0-9,]+)", report, re.MULTILINE)
        assert row, f"there is no row for {part.name}"
        assert row[1] != "0" or f"- {part.name}: " in report.partition("## Not run")[2], f"{part.name} did nothing"
    for fault in ROWS:
        assert f"\n| {fault} | " in report


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
