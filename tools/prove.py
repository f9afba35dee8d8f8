"""Proof: try to break walpool in every way there is for some minutes, and write down what was tried.

    python3 tools/dev.py prove --minutes 60

Power cuts, kills, errors, interrupts, hostile bytes, stress and seeded bugs, as the tests run them, but with new seeds
and for as long as one likes. Each part has a goal; the part that is furthest from its own is worked on next, one job a
core. What is found does not end the run: it is in the report, with the command that repeats it, and the exit code is 1.
Once it is mended, `tests/crash/findings.py` gets a line, and `python tools/prove_doc.py` says so in the report.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "docs" / "reliability-report.md"
LONGEST_JOB_S = 900
MEMORY = Path("/dev/shm")


@dataclass
class Part:
    """One kind of attempt. `job`: how many at once, about 20 s; `goal`: of a long run."""

    name: str
    what: str  # for the report
    job: int
    goal: int
    module: str = ""  # where `prove(folder, seed, count)` is, and what of its answer counts
    key: str = ""  # "": all of it
    disk: bool = False  # needs a real one
    done: int = 0
    jobs: int = 0
    seconds: float = 0.0
    also: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    skipped: str = ""
    running: int = 0  # attempts that are under way
    states: set[int] = field(default_factory=set)


def parts(bugs: int) -> list[Part]:
    return [
        Part("crash states", "distinct states that a power cut may leave, each recovered and compared",
             10_000, 1_000_000, "tests.crash.power_cut", "crash states"),
        Part("hostile inputs", "bytes mutated with knowledge of the format, checksums sealed again in half of them",
             250_000, 20_000_000, "tests.crash.hostile"),
        Part("kills", "processes killed at a call, a store or a line of their own, with a survivor", 1_000, 20_000,
             "tests.crash.sweep", "kills"),
        Part("interleavings", "operations of another process at a call or a store of the first, some two deep",
             600, 20_000, "tests.crash.interleavings", "interleavings"),
        Part("schedules", "threads of one writer, in an order of their calls and mutexes that is drawn", 2_000, 40_000,
             "tests.crash.schedules", "schedules"),
        Part("errors", "every call of every place with every errno, once and for ever, and short writes", 1, 60),
        Part("interrupts", "exceptions raised by a signal handler at any moment", 10_000, 40_000,
             "tests.crash.test_interrupts", "interrupts"),
        Part("fuzzer's inputs", "executions guided by coverage (atheris), all targets together", 400_000, 1_200_000),
        Part("steps beside the model", "whatever counts, and each figure after it, as a model has it", 1_500, 30_000,
             "tests.shared.metrics_play", "steps"),
        Part("rounds of stress", "processes × threads × modes, with followers, retention, a monitor and kills", 1, 10,
             "tests.processes.stress", "rounds", disk=True),
        Part("cuts of real file systems", "ext4, XFS and Btrfs shut down, or their device, under four writers", 20, 100,
             "tests.crash.real_cut", "cuts", disk=True),
        Part("seeded bugs", "one small change of the source each; found, or the run fails", 1, bugs),
    ]  # fmt: skip


# One job, in a process of its own


def job(name: str, seed: int, count: int, folder: Path) -> dict[str, Any]:
    """What came of it, as JSON can say it: counts, and what else the part's row tells."""
    if name == "errors":
        errors = importlib.import_module("tests.crash.errors")
        return {"counts": errors.play(folder, errors.every(folder)[seed::count])}
    if name == "fuzzer's inputs":
        fuzz = importlib.import_module("tools.fuzz")
        try:
            counts = fuzz.run_all(folder, seed, count // len(fuzz.TARGETS))
        except ModuleNotFoundError as error:
            return {"skipped": str(error)}
        return {"counts": counts}
    if name == "seeded bugs":
        seeded = importlib.import_module("tests.crash.seeded")
        bug = seeded.BUGS[seed]
        began = time.monotonic()
        found = seeded.find(bug, folder)
        assert found is not None, f"the harness does not see it: {bug.name}"
        return {"counts": {bug.name: 1}, "bug": [bug.name, bug.finder, round(time.monotonic() - began, 1)]}
    part = next(part for part in parts(0) if part.name == name)
    module = importlib.import_module(part.module)
    if name == "crash states":
        seen: set[int] = set()
        counts = module.prove(folder, seed, count, seen=seen)
        (folder / "states").write_bytes(array("q", seen).tobytes())
        return {"counts": counts}
    if name == "cuts of real file systems" and (why := module.why_not()):
        return {"skipped": why}
    return {"counts": module.prove(folder, seed, count)}


def run_job() -> None:
    _, _, name, seed, count, place = sys.argv
    folder = Path(place)
    try:
        answer = job(name, int(seed), int(count), folder)
    except AssertionError as error:
        answer = {"finding": str(error)}
    (folder / "answer.json").write_text(json.dumps(answer))


# All of them


class Proof:
    def __init__(self, seed: int, seconds: float, chosen: Sequence[str], short: bool) -> None:
        bugs = importlib.import_module("tests.crash.seeded").BUGS
        self.seed = seed
        self.parts = [part for part in parts(len(bugs)) if not chosen or part.name in chosen]
        self.bugs: list[tuple[str, str, float]] = []
        self._seeds = random.Random(seed)
        self._until = time.monotonic() + seconds
        self._short = short
        self._lock = threading.Lock()
        self.began = datetime.now(UTC)
        self.seconds = 0.0

    def run(self, cores: int) -> None:
        began = time.monotonic()
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(cores)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(1.0)
        except KeyboardInterrupt:
            self._until = 0
            for thread in threads:
                thread.join()
        self.seconds = time.monotonic() - began

    def _work(self) -> None:
        while (task := self._next()) is not None:
            part, seed, count = task
            began = time.monotonic()
            try:
                self._do(part, seed, count)
            finally:
                with self._lock:
                    part.running -= count
                    part.seconds += time.monotonic() - began
                    self._tell(part)

    def _next(self) -> tuple[Part, int, int] | None:
        with self._lock:
            open_ones = [part for part in self.parts if part.done + part.running < part.goal and not part.skipped]
            if time.monotonic() > self._until:
                open_ones = [part for part in open_ones if not part.jobs]  # each is tried once, however short the time
            if not open_ones:
                return None
            # Those that have not been tried at all first, then the one that is furthest from its goal.
            part = min(open_ones, key=lambda part: (part.jobs > 0, (part.done + part.running) / part.goal))
            count = min(max(1, part.job // 20) if self._short else part.job, part.goal - part.done - part.running)
            seed = self._seeds.getrandbits(31)
            if part.name in ("errors", "seeded bugs"):  # the n-th of a known number
                count, seed = 1, part.jobs
            part.jobs += 1
            part.running += count
            return part, seed, count

    def _do(self, part: Part, seed: int, count: int) -> None:
        folder = Path(tempfile.mkdtemp(prefix="walpool-", dir=MEMORY if not part.disk and MEMORY.is_dir() else None))
        wanted = part.goal if part.name == "errors" else count
        environment = {**os.environ, "PYTHONHASHSEED": "0"}  # states of different jobs are compared by their hashes
        try:
            with subprocess.Popen(
                [sys.executable, str(Path(__file__)), "--job", part.name, str(seed), str(wanted), str(folder)],
                cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            ) as process:  # fmt: skip
                try:
                    said, _ = process.communicate(timeout=LONGEST_JOB_S)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, 9)
                    said = b"it did not end within %d s" % LONGEST_JOB_S
            try:
                answer = json.loads((folder / "answer.json").read_text())
            except FileNotFoundError:
                answer = {
                    "finding": f"{part.name}, seed {seed}, count {count}: {said.decode(errors='replace')[-4000:]}"
                }
            with self._lock:
                self._add(part, count, answer, folder / "states")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _add(self, part: Part, count: int, answer: dict[str, Any], states: Path) -> None:
        if "skipped" in answer:
            part.skipped = answer["skipped"]
            return
        if "finding" in answer:
            part.findings.append(answer["finding"])
            print(f"FOUND {answer['finding']}", flush=True)
            if part.name in ("errors", "seeded bugs"):
                part.done += 1
            return
        counts = answer["counts"]
        part.also.update(counts)
        if states.exists():
            part.states.update(array("q", states.read_bytes()))
            part.done = len(part.states)
        elif part.name == "errors":
            part.done += 1
        else:
            part.done += counts.get(part.key, 0) if part.key else sum(counts.values())
        if "bug" in answer:
            self.bugs.append(tuple(answer["bug"]))

    def _tell(self, part: Part) -> None:
        left = max(0, self._until - time.monotonic())
        print(f"{part.name}: {part.done:,} of {part.goal:,}; {left / 60:.0f} min left", flush=True)

    @property
    def findings(self) -> list[str]:
        return [finding for part in self.parts for finding in part.findings]


def main() -> int:
    parser = argparse.ArgumentParser(prog="prove.py", description="Try to break walpool, and write a report.")
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="begin no job after so many (default: 5); each part once"
    )
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    parser.add_argument("--report", type=Path, default=REPORT, help=f"default: {REPORT.relative_to(ROOT)}")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="may be given several times")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(31)
    known = [part.name for part in parts(0)]
    if unknown := [name for name in options.only if name not in known]:
        parser.error(f"there is no part {unknown[0]!r}: there are {', '.join(known)}")
    proof = Proof(seed, options.minutes * 60, options.only, short=options.minutes < 5)
    proof.run(cores)
    options.report.write_text(importlib.import_module("tools.prove_doc").report(proof, cores))
    print(f"{options.report}: {len(proof.findings)} findings")
    return 1 if proof.findings else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    if sys.argv[1:2] == ["--job"]:
        run_job()
    else:
        sys.exit(main())
