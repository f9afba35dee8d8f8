"""Writes docs/coverage.md from what `coverage json` says: lines and branches by room, and the least covered files.

`tools/dev.py coverage` runs it. `python tools/coverage_doc.py COVERAGE.json` alone writes the page again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "coverage.md"
SOURCE = "src/walpool/"
LEAST = 90  # per cent: files below are named

HEAD = """\
# What the tests reach

Branch coverage of `src/walpool` by the whole suite, with every process that it forks, starts or spawns, measured at
{commit} by `tools/dev.py coverage` on Linux. What a process had run that was killed is not counted, nor what
those tests run that interrupt at every bytecode (they take the tracer's place): so these figures are a lower bound.
Code for macOS never ran.

| room | lines | not reached | branches | not reached | covered |
|---|---|---|---|---|---|
"""


def row(name: str, sums: dict[str, int]) -> str:
    whole = sums["num_statements"] + sums["num_branches"]
    reached = sums["covered_lines"] + sums["covered_branches"]
    return (
        f"| {name} | {sums['num_statements']:,} | {sums['num_statements'] - sums['covered_lines']:,}"
        f" | {sums['num_branches']:,} | {sums['num_branches'] - sums['covered_branches']:,}"
        f" | {100 * reached / max(1, whole):.0f} % |\n"
    )


def page(report: dict[str, Any], commit: str) -> str:
    rooms: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    low = []
    for path, file in sorted(report["files"].items()):
        name = path.removeprefix(SOURCE)
        summary = file["summary"]
        room = f"`{name.split('/')[0]}/`" if "/" in name else "beside the rooms"
        for each in ("num_statements", "covered_lines", "num_branches", "covered_branches"):
            rooms[room][each] += summary[each]
            rooms["**all**"][each] += summary[each]
        if summary["percent_covered"] < LEAST:
            low.append(f"| `{name}` | {summary['percent_covered']:.0f} % |\n")
    text = HEAD.format(commit=commit)
    text += "".join(row(name, rooms[name]) for name in sorted(rooms, key=lambda name: (name == "**all**", name)))
    if low:
        text += f"\nFiles below {LEAST} %:\n\n| file | covered |\n|---|---|\n" + "".join(low)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    report = json.loads(parser.parse_args().report.read_text())
    commit = subprocess.run(
        ["git", "log", "-1", "--format=commit %h of %cs"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    PAGE.write_text(page(report, commit or "a checkout without its history"))
    print(f"{PAGE}: {report['totals']['percent_covered']:.1f} % of lines and branches")


if __name__ == "__main__":
    main()
