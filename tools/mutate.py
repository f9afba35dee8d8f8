"""Changes one token or line of walpool at a time and lists the changes that no test notices.

    python3 tools/dev.py mutate [ROOM or FILE ...] [--sample 60] [--seed 1] [--jobs N] [--report]

A mutant is a comparison turned round or moved by one, a constant that is one more, `and` for `or`, a `not` less, a
statement left out, or two neighbours that changed places. It is let loose on the tests that reach its line (see
tools/reached.py), those of its room first and of them the quickest, until one fails or they have taken their time;
then on all tests of its room and on those of names and defaults. A line that no test reaches is a survivor at once. Who
lives is either a hole in the tests (write one; of a kind that could come back, also a bug in tests/crash/seeded.py), a
line that nobody needs, or no change at all: those stand in tools/equivalent_mutants.txt, each with its reason. With
--report the figures go into tools/mutants.json, and from there, by `python tools/prove_doc.py`, into the reliability
report.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from reached import Reached

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "walpool"
EQUIVALENT = ROOT / "tools" / "equivalent_mutants.txt"
FIGURES = ROOT / "tools" / "mutants.json"
ROOMS = ("format", "shared", "read", "opening", "upkeep", "staging", "write")
REACHING_S = 20.0  # of those that reach a line, as many tests as take so long together
SURFACE = "tests/test_surface.py"  # what is promised of names and defaults, of whatever is reached
EACH_S = 25.0  # one of them that takes longer hangs
SLACK_S = 30.0  # what hangs is noticed after so long, and four times what its tests take
LONGEST_S = 240.0
SIMPLE = ast.Expr | ast.Assign | ast.AugAssign
OPPOSITE: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip


class Mutant(NamedTuple):
    file: str  # below src/walpool
    line: int
    kind: str
    text: str  # of the whole file, changed
    old: str
    new: str
    lines: list[int]  # that are run when it is

    @property
    def key(self) -> str:
        """How it stands in the list of the equivalent ones: without a line, which moves."""
        return f"{self.file}: {self.old} -> {self.new}"


def mutants_of(path: Path) -> Iterator[Mutant]:
    text = path.read_text()
    name = path.relative_to(SOURCE).as_posix()
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    data = text.encode()
    tree = ast.parse(text)
    blocks = [each for each in ast.walk(tree) if isinstance(each, ast.stmt | ast.ExceptHandler | ast.match_case)]

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def changed(node: ast.expr | ast.stmt, kind: str, start: int, end: int, new: str) -> Mutant | None:
        made = (data[:start] + new.encode() + data[end:]).decode()
        try:
            compile(made, name, "exec")
        except SyntaxError:
            return None
        old = " ".join(data[start:end].decode().split())
        line = " ".join(text.splitlines()[node.lineno - 1].split())
        old = f"{old} [{line}]" if old != line else old
        return Mutant(name, node.lineno, kind, made, old, " ".join(new.split()), lines_of(node, tree, blocks))

    def found() -> Iterator[Mutant | None]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                for left, operator, right in zip(
                    [node.left, *node.comparators], node.ops, node.comparators, strict=False
                ):
                    start, end = span(left)[1], span(right)[0]
                    if b"(" not in data[start:end] and b")" not in data[start:end]:
                        yield changed(node, "comparison", start, end, f" {OPPOSITE[type(operator)]} ")
            elif isinstance(node, ast.BoolOp):
                start, end = span(node.values[0])[1], span(node.values[1])[0]
                word = "or" if isinstance(node.op, ast.And) else "and"
                between = data[start:end].decode()
                yield changed(node, "and, or", start, end, between.replace("and" if word == "or" else "or", word, 1))
            elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
                yield changed(node, "not", span(node)[0], span(node.operand)[0], "")
            elif isinstance(node, ast.Constant) and type(node.value) is int:
                yield changed(node, "constant", *span(node), str(node.value + 1))
            elif isinstance(node, ast.Constant) and type(node.value) is bool:
                yield changed(node, "constant", *span(node), str(not node.value))
            for block in (getattr(node, each, None) for each in ("body", "orelse", "finalbody")):
                if not isinstance(block, list):
                    continue
                for at, statement in enumerate(block):
                    if not isinstance(statement, SIMPLE) or is_text(statement):
                        continue
                    if isinstance(node, ast.ClassDef | ast.Module):
                        continue  # names that others import
                    yield changed(statement, "left out", *span(statement), "pass")
                    follower = block[at + 1] if at + 1 < len(block) else None
                    if isinstance(follower, SIMPLE) and does_something(statement) and does_something(follower):
                        (start, end), (then, last) = span(statement), span(follower)
                        swapped = data[then:last] + data[end:then] + data[start:end]
                        yield changed(statement, "order", start, last, swapped.decode())

    yield from (each for each in found() if each is not None)


def lines_of(node: ast.expr | ast.stmt, tree: ast.Module, blocks: list[Any]) -> list[int]:
    """Those that are run when `node` is: of its statement, of the head of one that holds others, of the body of the
    function whose default it is. What is run when a module is imported is needed by every function of it.
    """
    inside = [each for each in blocks if span_of(each)[0] <= node.lineno and (node.end_lineno or 0) <= span_of(each)[1]]
    if not any(isinstance(each, ast.FunctionDef) for each in inside):
        functions = [each for each in blocks if isinstance(each, ast.FunctionDef)]
        return sorted({line for each in functions for line in body_of(each)}) or [*range(1, span_of(tree.body[-1])[1])]
    last = inside[-1]  # `blocks` has what is deeper later
    if isinstance(last, ast.FunctionDef):
        return [*body_of(last)]
    start, end = span_of(last)
    body = getattr(last, "body", None) or getattr(last, "cases", None)
    return [*range(start, max(start, span_of(body[0])[0] - 1 if body else end) + 1)]


def body_of(function: ast.FunctionDef) -> range:
    return range(function.body[0].lineno, span_of(function)[1] + 1)


def span_of(block: Any) -> tuple[int, int]:
    if isinstance(block, ast.match_case):
        return block.pattern.lineno, block.body[-1].end_lineno or 0
    return block.lineno, block.end_lineno


def does_something(statement: ast.stmt) -> bool:
    """More than naming a value: it calls, or stores where others look."""
    return any(
        isinstance(each, ast.Call) or (isinstance(each, ast.Subscript) and isinstance(each.ctx, ast.Store))
        for each in ast.walk(statement)
    )


def is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def files_of(words: list[str]) -> list[Path]:
    found: list[Path] = []
    for word in words or list(ROOMS):
        place = SOURCE / word
        found += sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return [path for path in found if path.name != "__init__.py"]


def lives(mutant: Mutant, reached: Reached, *, quick: bool = False) -> str | None:
    """None when a test noticed it; else why it lives."""
    tests = reached.of(mutant.file, mutant.lines)
    if not tests and reached.knows(mutant.file, mutant.lines):
        return "not reached"
    chosen = list(reached.within(tests, REACHING_S))
    if chosen and notices(mutant, chosen, SLACK_S + 4 * reached.seconds(chosen), EACH_S):
        return None
    room = ROOT / "tests" / mutant.file.split("/")[0]
    more = [SURFACE, *([f"tests/{room.name}"] if room.exists() and len(chosen) < len(tests) and not quick else [])]
    if notices(mutant, more, LONGEST_S, LONGEST_S):
        return None
    return f"{len(chosen)} of {len(tests)} tests that reach it passed"


def notices(mutant: Mutant, tests: list[str], longest_s: float, each_s: float) -> bool:
    finders = importlib.import_module("tests.crash.finders")
    module = "walpool." + mutant.file.removesuffix(".py").replace("/", ".")
    with tempfile.TemporaryDirectory(prefix="walpool-") as folder:
        words = ["-x", "-q", "-p", "no:cacheprovider", "--timeout", str(each_s), *tests]
        try:
            code, said = finders.run(module, mutant.text, words, {"WALPOOL_DEADLINE_S": "5"}, Path(folder), longest_s)
        except AssertionError:
            return True  # it hangs
    # pytest says the same of a test that there is not as of one that cannot be imported
    assert "ERROR: not found:" not in said and "ERROR: file or directory not found" not in said, said[-500:]
    assert code != 0 or "passed" in said, said[-500:]
    return bool(code != 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", help="rooms, or files below src/walpool; all rooms without")
    parser.add_argument("--sample", type=int, default=60, help="how many mutants are drawn")
    parser.add_argument("--seed", type=int, default=1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=cores)
    parser.add_argument("--list", action="store_true", help="say what would be tried")
    parser.add_argument("--report", action="store_true", help="keep the figures for the reliability report")
    parser.add_argument("--quick", action="store_true", help="leave out the tests of the room: more live, in less time")
    chosen = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    known = {
        line.rpartition("  # ")[0].strip()
        for line in (EQUIVALENT.read_text().splitlines() if EQUIVALENT.exists() else [])
        if "  # " in line
    }
    every = [each for path in files_of(chosen.places) for each in mutants_of(path)]
    drawn = random.Random(chosen.seed).sample(every, min(chosen.sample, len(every)))
    real = [each for each in drawn if each.key not in known]
    print(f"{len(every)} mutants, {len(drawn)} drawn, {len(drawn) - len(real)} known to be equivalent", flush=True)
    if chosen.list:
        print("\n".join(each.key for each in real))
        return 0
    reached: Reached = importlib.import_module("tools.reached").Reached()
    reached.update(chosen.jobs)
    began = time.monotonic()
    alive: list[Mutant] = []
    with ThreadPoolExecutor(chosen.jobs) as pool:
        tried = pool.map(lambda mutant: lives(mutant, reached, quick=chosen.quick), real)
        for number, (mutant, survived) in enumerate(zip(real, tried, strict=True), 1):
            if number % 20 == 0:
                print(f"{number} of {len(real)} after {time.monotonic() - began:.0f} s", flush=True)
            if survived is not None:
                alive.append(mutant)
                print(f"lives: {mutant.file}:{mutant.line} ({mutant.kind}, {survived}): {mutant.key}", flush=True)
    killed = len(real) - len(alive)
    print(
        f"{killed} of {len(real)} noticed ({100 * killed / max(1, len(real)):.1f} %) in"
        f" {time.monotonic() - began:.0f} s, seed {chosen.seed}: {dict(Counter(each.kind for each in drawn))}"
    )
    if chosen.report:
        commit = importlib.import_module("tools.prove_doc").commit()
        figures = {
            "rooms": chosen.places or list(ROOMS), "drawn": len(drawn), "seed": chosen.seed, "commit": commit,
            "equivalent": len(drawn) - len(real), "killed": killed, "alive": [mutant.key for mutant in alive],
        }  # fmt: skip
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
