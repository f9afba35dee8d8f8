"""The tool that tries everything for some minutes: its shortest run, in which each part is tried once."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash import findings
from tests.crash.seeded import BUGS
from tests.matrix import ROWS
from tests.support import DEADLINE_S, ROOT
from tools import prove, prove_doc


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/prove.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S - 10,
        check=False,
    )


CHEAP = ("hostile inputs", "errors", "fuzzer's inputs", "cuts of real file systems", "seeded bugs")


@pytest.mark.slow
def test_a_part_is_tried_and_the_report_says_what_was_done(tmp_path: Path, seed: int) -> None:
    """One of each kind of job; those of the others are that of the hostile inputs."""
    written = tmp_path / "report.md"
    only = [word for name in CHEAP for word in ("--only", name)]
    ended = run("--minutes", "0", "--seed", str(seed), "--report", str(written), *only)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    report = written.read_text()
    assert "**Nothing is open.** The run below found nothing. Acknowledged entries lost: 0." in report
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
    report = prove_doc.report(proof, 2)
    assert "**Open: 1.** The run below found 1 thing. Acknowledged entries lost: see below." in report
    assert "\n| LSN 7 is lost; repeat with: ... | **open** |\n" in report
    assert "```\nLSN 7 is lost; repeat with: ...\n```" in report


def test_a_finding_that_was_mended_is_told_with_what_mended_it(tmp_path: Path) -> None:
    proof = prove.Proof(1, 0.0, ["kills"], short=True)
    (part,) = proof.parts
    for seed in (7, 8):
        said = f"Traceback\nLockHeld: nobody frees it\n\nseed {seed}; repeat with: ..."
        proof._add(part, 50, {"finding": said}, tmp_path / "states")
    was = prove_doc.report(proof, 2)
    assert "**Open: 2.** The run below found 2 things. Acknowledged entries lost: see below." in was
    assert was.count("\n| LockHeld: nobody frees it | **open** |") == 2
    line = findings.Mended("seed 7;", "A lock stayed held.", "locks: they are freed", "tests/x.py::test_y")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "MENDED", (line,))
        now = prove_doc.again(was)
        assert "**Open: 1.** The run below found 2 things. Acknowledged entries lost: see below." in now
        assert '| A lock stayed held. | mended in "locks: they are freed", test `x.py::test_y` |' in now
        patch.setattr(findings, "MENDED", (line, line._replace(said="seed 8;", lost=3)))
        now = prove_doc.again(now)
        assert "**Nothing is open.** The run below found 2 things. Acknowledged entries lost: 3." in now
    assert prove_doc.again(now) == was, "the figures and the texts stay"


def test_the_report_has_the_head_that_the_findings_give() -> None:
    report = prove_doc.REPORT.read_text()
    head, _, run = report.partition(prove_doc.RUN)
    assert head == "\n".join([*prove_doc.head(prove_doc.findings_of(run)), "", ""]), "run python tools/prove_doc.py"


@pytest.mark.parametrize("mended", findings.MENDED)
def test_what_mended_a_finding_has_a_test_that_exists(mended: findings.Mended) -> None:
    file, _, name = mended.test.partition("::")
    tree = ast.parse((ROOT / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"there is no {mended.test}"


def test_a_part_that_there_is_not_is_refused_in_a_line() -> None:
    ended = run("--only", "nonsense")
    assert ended.returncode == 2
    assert "there is no part 'nonsense': there are crash states, " in ended.stderr
