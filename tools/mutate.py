"""Changes one token or line of walpool at a time and lists the changes that no test notices.

    python3 tools/dev.py mutate [ROOM or FILE ...] [--sample 60] [--seed 1] [--jobs N]

A mutant is a comparison turned round or moved by one, a constant that is one more, `and` for `or`, a `not` less, a
statement left out, or two neighbours that changed places. It is let loose on the tests of its room, then on those that
start processes. Who lives is either a hole in the tests (write one; of a kind that could come back, also a bug in
tests/crash/seeded.py) or no change at all: those stand in tools/equivalent_mutants.txt, each with its reason.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "walpool"
EQUIVALENT = ROOT / "tools" / "equivalent_mutants.txt"
ROOMS = ("format", "shared", "read", "opening", "upkeep", "staging", "write")
# After those of its own room; what is cheap first: most mutants die at once.
MORE = {
    "format": ["tests/golden", "tests/read"],
    "shared": ["tests/opening", "tests/write", "tests/upkeep"],
    "read": ["tests/opening", "tests/upkeep", "tests/shared"],
    "opening": ["tests/write", "tests/upkeep", "tests/crash/test_hostile_bytes.py"],
    "upkeep": ["tests/write", "tests/cli/test_upkeep.py", "tests/cli/test_look.py"],
    "staging": ["tests/write"],
    "write": ["tests/shared", "tests/opening"],
}
LAST = ["tests/processes", "tests/crash/test_interrupts.py", "tests/crash/test_error_sweep.py"]
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

    @property
    def key(self) -> str:
        return f"{self.file}: {self.old} -> {self.new}"


def mutants_of(path: Path) -> Iterator[Mutant]:
    text = path.read_text()
    name = path.relative_to(SOURCE).as_posix()
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    data = text.encode()

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
        return Mutant(name, node.lineno, kind, made, f"{old} [{line}]" if old != line else old, " ".join(new.split()))

    def found() -> Iterator[Mutant | None]:
        for node in ast.walk(ast.parse(text)):
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


def lives(mutant: Mutant) -> str | None:
    """None when a test noticed it; else what ran."""
    finders = importlib.import_module("tests.crash.finders")
    room = mutant.file.split("/")[0]
    module = "walpool." + mutant.file.removesuffix(".py").replace("/", ".")
    for places in ([f"tests/{room}"] if (ROOT / "tests" / room).exists() else [], MORE[room], LAST):
        if not places:
            continue
        with tempfile.TemporaryDirectory(prefix="walpool-") as folder:
            words = ["-x", "-q", "-p", "no:cacheprovider", *places]
            environment = {"WALPOOL_DEADLINE_S": "5"}
            try:
                code, said = finders.run(module, mutant.text, words, environment, Path(folder), LONGEST_S)
            except AssertionError:
                return None  # it hangs
        if code != 0:
            return None
        assert "passed" in said, said[-500:]
    return "passed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", help="rooms, or files below src/walpool; all rooms without")
    parser.add_argument("--sample", type=int, default=60, help="how many mutants are drawn")
    parser.add_argument("--seed", type=int, default=1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=cores)
    parser.add_argument("--list", action="store_true", help="say what would be tried")
    chosen = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    missing = [place for places in (*MORE.values(), LAST) for place in places if not (ROOT / place).exists()]
    if missing:  # pytest's error would pass for a mutant that was noticed
        parser.error(f"there are no tests {missing}: mend MORE and LAST")
    known = {
        line.rpartition("  # ")[0].strip()
        for line in (EQUIVALENT.read_text().splitlines() if EQUIVALENT.exists() else [])
        if "  # " in line
    }
    every = [each for path in files_of(chosen.places) for each in mutants_of(path)]
    real = [each for each in every if each.key not in known]
    drawn = random.Random(chosen.seed).sample(real, min(chosen.sample, len(real)))
    print(f"{len(every)} mutants, {len(every) - len(real)} known to be equivalent, {len(drawn)} drawn", flush=True)
    if chosen.list:
        print("\n".join(each.key for each in drawn))
        return 0
    began = time.monotonic()
    alive: list[Mutant] = []
    kinds: Counter[str] = Counter()
    with ThreadPoolExecutor(chosen.jobs) as pool:
        for mutant, survived in zip(drawn, pool.map(lives, drawn), strict=True):
            kinds[mutant.kind] += 1
            if survived is not None:
                alive.append(mutant)
                print(f"lives: {mutant.file}:{mutant.line} ({mutant.kind}): {mutant.old} -> {mutant.new}", flush=True)
    killed = len(drawn) - len(alive)
    print(
        f"{killed} of {len(drawn)} noticed ({100 * killed / max(1, len(drawn)):.0f} %) in"
        f" {time.monotonic() - began:.0f} s, seed {chosen.seed}: {dict(kinds)}"
    )
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
