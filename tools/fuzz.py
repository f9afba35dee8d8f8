"""Coverage-guided fuzzing of what reads bytes, with atheris: `python tools/fuzz.py TARGET --runs N --corpus DIR`.

The targets are those of tests/crash/hostile.py, and `segment`: one whole segment in a directory, read in every mode and
verified. The first byte of an input says whether its checksums are sealed again, so that the fuzzer reaches what stands
behind them. Seeds of the corpus are made from sound bytes. Needs `pip install 'walpool[fuzz]'`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("header", "frames", "search", "entry", "body", "checkpoint", "cursor", "mark", "control", "rows", "segment")
SLOWER = {"rows": 10, "segment": 100}  # how many times, than the others
SEEDS = 24  # of a corpus
MOST_BYTES = 1 << 14  # of an input; rows and control blocks, which have one size, take more
MEMORY_MB = 512
SLOWEST_S = 10  # of one input
MISSING = "fuzz: atheris is not installed: pip install 'walpool[fuzz]'"

Check = Callable[[bytes], object]


def check_of(target: str, folder: Path) -> Check:
    """What one input goes through; AssertionError and everything that is not walpool's own error is a finding."""
    from tests.crash import hostile, hostile_logs

    if target == "segment":
        return lambda data: hostile_logs.check_segment(folder, data)
    _, seal, judge = hostile.TARGETS[target]

    def check(data: bytes) -> object:
        changed = bytearray(data[1:])
        if data[:1] and data[0] & 1:
            seal(changed)
        return judge(bytes(changed), None, 0)

    return check


def make_corpus(target: str, corpus: Path, seed: int) -> None:
    """Sound bytes, with and without the wish to have them sealed again."""
    from tests.crash import hostile, hostile_logs

    corpus.mkdir(parents=True, exist_ok=True)
    for number in range(SEEDS):
        chance = Random(f"{seed}/{number}")
        if target == "segment":
            data = next(iter(hostile_logs.segments(chance).values()))
        else:
            data = hostile.TARGETS[target].make(chance).data
        content = bytes((number & 1,)) + data
        (corpus / hashlib.sha1(content, usedforsecurity=False).hexdigest()).write_bytes(content)


def run(target: str, runs: int, corpus: Path, seed: int) -> int:
    """Fuzz in this process, which libFuzzer ends."""
    try:
        import atheris
    except ImportError:
        print(MISSING, file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["walpool"]):
        import walpool.upkeep.verify  # noqa: F401  # the first import of all of walpool is the instrumented one
    make_corpus(target, corpus, seed)
    largest = max(file.stat().st_size for file in corpus.iterdir())
    folder = Path(tempfile.mkdtemp(dir=corpus.parent))
    arguments = [
        sys.argv[0],
        f"-runs={runs}",
        f"-seed={seed & 0x7FFFFFFF or 1}",
        f"-max_len={max(MOST_BYTES, largest)}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={SLOWEST_S}",
        "-print_final_stats=1",
        f"-artifact_prefix={corpus.parent}/finding-{target}-",
        str(corpus),
    ]
    atheris.Setup(arguments, check_of(target, folder))
    atheris.Fuzz()  # does not return
    return 0


def run_all(folder: Path, seed: int, runs: int) -> Counter[str]:
    """`runs` executions of each target, fewer of slow ones, in one child process after another; how many there were.

    Raises AssertionError for a finding, ModuleNotFoundError when atheris is not installed.
    """
    done: Counter[str] = Counter()
    for target in TARGETS:
        place = Path(tempfile.mkdtemp(dir=folder))
        share = max(1, runs // SLOWER.get(target, 1))
        command = [sys.executable, str(Path(__file__).resolve()), target, "--runs", str(share), "--seed", str(seed)]
        ended = subprocess.run(
            [*command, "--corpus", str(place / "corpus")],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd=ROOT,
        )
        if ended.returncode == 2 and MISSING in ended.stderr:
            raise ModuleNotFoundError(MISSING)
        executed = re.search(r"stat::number_of_executed_units:\s*(\d+)", ended.stderr)
        if ended.returncode != 0 or executed is None:
            findings = [f"{file.name}: {file.read_bytes()[:400].hex()}" for file in place.glob("finding-*")]
            repeat = f"python tools/fuzz.py {target} --runs {share} --seed {seed} --corpus DIR"
            raise AssertionError(
                f"{target} ended with {ended.returncode} (seed {seed}); {findings}\n{ended.stdout[-2000:]}"
                f"{ended.stderr[-3000:]}\nrepeat with: {repeat}"
            )
        done[target] = int(executed[1])
        shutil.rmtree(place)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz what reads bytes, guided by coverage.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=100_000, help="executions (default: 100000)")
    parser.add_argument("--corpus", type=Path, required=True, help="directory of inputs, kept and added to")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    return run(options.target, options.runs, options.corpus.absolute(), options.seed)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    sys.exit(main())
