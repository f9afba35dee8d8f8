"""The reliability report, docs/reliability-report.md: first whether anything is open, then the figures of one run.

    python tools/prove_doc.py

`tools/prove.py` writes all of it after a run. This writes again what is of today and not of the run: the head, from
`tests/crash/findings.py`, the mutants, from `tools/mutants.json`, and the fault matrix. The figures stay, and say of
which commit they are.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.crash.findings import mended  # noqa: E402
from tests.matrix import ROWS  # noqa: E402

if TYPE_CHECKING:
    from prove import Proof

REPORT = ROOT / "docs" / "reliability-report.md"
FIGURES = ROOT / "tools" / "mutants.json"
PACKAGES = ("crc32c", "filelock", "psutil", "pytest", "hypothesis", "atheris")
RUN = "## The run"
FOUND = "## What was found, as the run said it"
MUTANTS = "## Mutants"
MATRIX = "## Fault matrix"
MOST_SAID = 300  # characters of an open finding, in the head


def report(proof: Proof, cores: int) -> str:
    """All of it, after a run."""
    lines = [
        RUN,
        "",
        f"{proof.began:%Y-%m-%d %H:%M} UTC, {proof.seconds / 60:.0f} minutes on {cores} cores. Seed {proof.seed}:"
        " a job's seed follows from it and from the order in which jobs began; a finding names its own.",
        "What was committed after the commit below, this run has not tried.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in versions().items()),
        "",
        "| part | tried | goal of a long run | jobs | minutes of a core | what it is |",
        "|---|---|---|---|---|---|",
    ]
    for part in proof.parts:
        done, goal = f"{part.done:,}", f"{part.goal:,}"
        if part.name == "errors":
            done = f"{part.also['errors']:,}" + (
                "" if part.done >= part.goal else f" ({part.done} of {part.goal} shares)"
            )
            goal = "all"
        lines.append(f"| {part.name} | {done} | {goal} | {part.jobs} | {part.seconds / 60:.1f} | {part.what} |")
    lines += ["", "## Of which", ""]
    for part in proof.parts:
        if part.also and part.name != "seeded bugs":
            lines.append(
                f"- {part.name}: " + ", ".join(f"{name} {count:,}" for name, count in sorted(part.also.items()))
            )
    skipped = [f"- {part.name}: {part.skipped}" for part in proof.parts if part.skipped]
    lines += ["", "## Not run", "", *(skipped or ["Nothing was skipped."])]
    if proof.findings:
        lines += ["", FOUND]
        for finding in proof.findings:
            lines += ["", f"```\n{finding}\n```"]
    if proof.bugs:
        lines += ["", "## Seeded bugs", "", "| bug | found by | seconds |", "|---|---|---|"]
        lines += [f"| {name} | `{finder}` | {seconds} |" for name, finder, seconds in sorted(proof.bugs)]
    return "\n".join([*head(proof.findings), "", *lines, "", *mutants(), "", *matrix()]) + "\n"


def again(written: str) -> str:
    """A report whose run was earlier, with the head, the mutants and the matrix of today."""
    end = written.index(MUTANTS if MUTANTS in written else MATRIX)
    run = written[written.index(RUN) : end].rstrip("\n")
    return "\n".join([*head(findings_of(run)), "", run, "", *mutants(), "", *matrix()]) + "\n"


def findings_of(run: str) -> list[str]:
    """The texts of the findings, as `report` has put them."""
    section = run.partition(FOUND)[2].partition("\n## ")[0]
    return re.findall(r"^```\n(.*?)\n```$", section, re.DOTALL | re.MULTILINE)


def head(findings: Sequence[str]) -> list[str]:
    """What somebody wants to know who reads one paragraph: is anything open?"""
    known = [mended(finding) for finding in findings]
    unknown = known.count(None)
    lost = "see below" if unknown else str(sum(each.lost for each in known if each is not None))
    found = "nothing" if not findings else "1 thing" if len(findings) == 1 else f"{len(findings)} things"
    state = f"Open: {unknown}." if unknown else "Nothing is open."
    lines = [
        "# Reliability report",
        "",
        f"**{state}** The run below found {found}. Acknowledged entries lost: {lost}.",
    ]
    if findings:
        lines += ["", "| what it found | now |", "|---|---|"]
    for finding, each in zip(findings, known, strict=True):
        if each is None:
            lines.append(f"| {_shortly(finding)} | **open** |")
        else:
            lines.append(f'| {each.what} | mended in "{each.by}", test `{each.test.removeprefix("tests/")}` |')
    return [
        *lines,
        "",
        "Written by `tools/prove.py` and `tools/prove_doc.py`, never edited by hand. What a part does, its file says.",
    ]


def _shortly(finding: str) -> str:
    """The line of a finding that says most: the last one that is no command."""
    said = [line.strip() for line in finding.splitlines() if line.strip() and "repeat with:" not in line]
    return (said[-1] if said else finding.strip())[:MOST_SAID].replace("|", "\\|")


def mutants() -> list[str]:
    """What `tools/mutate.py --report` has found last."""
    found = json.loads(FIGURES.read_text())
    real = found["drawn"] - found["equivalent"]
    rows = {
        "rooms": ", ".join(found["rooms"]),
        "drawn": f"{found['drawn']}, by seed {found['seed']}",
        "no change at all": f"{found['equivalent']}: each has its reason in `tools/equivalent_mutants.txt`",
        "noticed by a test": f"{found['killed']} of the {real} others, {100 * found['killed'] / real:.1f} %",
        "walpool": found["commit"],
    }
    lines = [MUTANTS, "", "One token or line of the source is changed at a time (`tools/mutate.py`).", "", "| | |"]
    lines += ["|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    if found["alive"]:
        lines += ["", "Not noticed:", "", *(f"- `{key}`" for key in found["alive"])]
    return lines


def matrix() -> list[str]:
    lines = [MATRIX, "", "| | fault | tests | not run, and why |", "|---|---|---|---|"]
    for row, (fault, tests, not_run) in ROWS.items():
        names = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in tests)
        lines.append(f"| {row} | {fault} | {names} | {not_run} |")
    return lines


def versions() -> dict[str, str]:
    found = {
        "walpool": f"{version('walpool')}, {commit()}",
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str:
    """The commit, and whether the tree is as committed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = ", changed" if git("status", "--porcelain") else ""
        return "commit " + git("show", "--no-patch", '--format=%h of %ad ("%s")', "--date=short") + changed
    except (OSError, subprocess.CalledProcessError):
        return "not from a repository"


if __name__ == "__main__":
    REPORT.write_text(again(REPORT.read_text()))
