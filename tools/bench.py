"""The benchmark: walpool against LMDB, SQLite and plain files, in the same run on the same disk.

Holds: every job runs once in each round, in a fresh process and a fresh directory, in turns with its peers, and
what is compared are medians over the rounds: a machine that others use too is slow for both sides of a ratio.
A ratio above 1 is in walpool's favour. Keys have 16 bytes and values 100.

Run it with `python3 tools/dev.py bench`, which installs what it needs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
DEFAULT_DIRECTORY = TOOLS.parent / ".bench"
QUICK_SCALE = 0.1
MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs"}

Samples = dict[str, list[float]]  # one a round, by the name of the measurement; rates are per second


@dataclass(frozen=True)
class Row:
    """One line of the table: walpool's measurement, what it is held against, and what it must reach."""

    name: str
    what: str
    own: str  # a measurement: JOB, or JOB/PART where a job makes several (see bench_work.JOBS)
    peer: str | None = None
    peer_name: str = ""
    least_ratio: float | None = None  # walpool over peer
    least_rate: float | None = None  # per second

    @property
    def jobs(self) -> list[str]:
        return [measurement.split("/")[0] for measurement in (self.own, self.peer) if measurement]


ROWS = [
    Row(
        "put-lmdb", "put, one process, NORMAL", "put", "put-lmdb", "LMDB, no sync, writemap, a transaction a put", 0.45
    ),
    Row(
        "put-lmdb-files",
        "put, one process, NORMAL",
        "put",
        "put-lmdb-files",
        "LMDB, no sync, a transaction a put",
        0.45,
    ),
    Row("put-mapped", "put, one process, mapped", "put-mapped", "put-lmdb", "LMDB, no sync, writemap", 1.2),
    Row("put-sqlite", "put, one process, NORMAL", "put", "put-sqlite", "SQLite WAL, synchronous=OFF", 4.0),
    Row("put-plain", "put, one process, NORMAL", "put", "put-plain", "plain O_APPEND write of 116 bytes"),
    Row("batch", "append_batch of 1,000 entries", "batch", least_rate=2.5e6),
    Row("batch-lmdb", "append_batch of 1,000 entries", "batch", "batch-lmdb", "LMDB, no sync, writemap, putmulti", 2.0),
    Row("batch-lmdb-puts", "append_batch of 1,000 entries", "batch", "batch-lmdb-puts", "the same with 1,000 put"),
    Row("read-batched", "read back, appended in batches of 1,000", "read-batched", least_rate=1.5e6),
    Row("read-single", "read back, appended by single puts", "read-single"),
    Row("cursor", "followed by a cursor, appended in batches", "cursor/follow", "cursor/read", "a plain reader"),
    Row("cursor-group", "followed by a group of one, all 4 parts", "cursor/group", "cursor/read", "a plain reader"),
    Row("commits", "durable commits of a cursor", "commits/synced", "commits/plain", "plain write and fdatasync"),
    Row("commits-unsynced", "commits of a cursor without a sync", "commits/unsynced"),
    Row("map", "a function of each batch of 1 GiB, 2 workers", "map/two", "map/one", "one reader", 1.8),
    Row("map-forked", "the same, 2 forked workers", "map/forked", "map/one", "one reader", 1.8),
    Row("writers", "put, 4 processes together, NORMAL", "writers-4", "writers-1", "1 process", 0.8),
    Row("growth", "put into a log of 1 GB", "growth/large", "growth/small", "into a log of 1 MB", 1 / 1.1),
    Row("full-8", "durable put, 8 processes, FULL", "full-8", "full-1", "1 process", 3.0),
    Row("full-16", "durable put, 16 processes, FULL", "full-16", "full-1", "1 process", 4.5),
    Row(
        "full-8-sqlite",
        "durable put, 8 processes, FULL",
        "full-8",
        "full-sqlite-8",
        "SQLite WAL FULL, 8 processes",
        3.5,
    ),
    Row("full-1-plain", "durable put, 1 process, FULL", "full-1", "full-plain-1", "plain write and fdatasync", 1.2),
    Row("full-1-growing", "durable put, 1 process, FULL", "full-1", "full-1-growing", "walpool into growing files"),
    Row("full-1-lmdb", "durable put, 1 process, FULL", "full-1", "full-lmdb-1", "LMDB with sync", 1.0),
]


@dataclass(frozen=True)
class Figure:
    """A measurement of walpool alone that is not a rate."""

    name: str
    what: str
    own: str
    unit: str
    aim: str = "–"


FIGURES = [
    Figure("map-cpu", "the CPU of 2 workers and their parent over that of one reader", "map/cpu", "", "near 1"),
    Figure("map-cpu-forked", "the same, 2 forked workers", "map/cpu-forked", "", "under 1.11"),
    Figure("seek-p50", "a reader for one entry out of batches of 1 MB: CPU, median", "seek/p50", "us", "under 1,200"),
    Figure("rotations-p50", "put across rotations of 8 MiB segments, median", "rotations/p50", "us"),
    Figure("rotations-p99.9", "the same, 99.9th percentile", "rotations/p99.9", "us", "under 1,000"),
    Figure("rotations-bare", "the same, segments not prepared", "rotations-unprepared/p99.9", "us"),
    Figure("even", "8 FULL writers for 10 s: slowest over fastest", "waiting/even", "", "≥ 0.5"),
    Figure("cpu", "the same: CPU of one writer", "waiting/cpu", "% of a core"),
    Figure("cpu-put", "the same: CPU of one durable put", "waiting/cpu_us", "us"),
    Figure("group", "the same: puts made durable by one sync", "waiting/group", ""),
]


def main() -> int:
    options = parse_options()

    def chosen(name: str) -> bool:
        return not options.only or any(part in name for part in options.only)

    rows = [row for row in ROWS if chosen(row.name)]
    more = [figure for figure in FIGURES if chosen(figure.name)]
    if not rows and not more:
        names = ", ".join([row.name for row in ROWS] + [figure.name for figure in FIGURES])
        return complain(f"--only: no row has that in its name; the rows are {names}")
    missing = what_is_missing()
    if missing:
        return complain(missing)
    options.dir.mkdir(parents=True, exist_ok=True)
    file_system = file_system_of(options.dir)
    if file_system in MEMORY_FILE_SYSTEMS:
        return complain(f"{options.dir} is in memory ({file_system}): name a directory on a disk with --dir")

    rounds = options.rounds or (1 if options.quick else 5)
    machine = describe_machine(file_system)
    jobs = list(
        dict.fromkeys([job for row in rows for job in row.jobs] + [figure.own.split("/")[0] for figure in more])
    )
    try:
        samples = measure(jobs, rounds, QUICK_SCALE if options.quick else 1.0, options.dir)
    except JobFailed as failure:
        return complain(str(failure))

    table = [cells(row, samples) for row in rows]
    figure_table = [figure_cells(figure, samples) for figure in more]
    print(aligned([HEADINGS, *table]) + "\n\n" + aligned([FIGURE_HEADINGS, *figure_table]))
    if options.json:
        options.json.write_text(json.dumps(as_json(rows, samples, machine, options.quick), indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(as_markdown(table, figure_table, machine, rounds, options.quick))
    return 0


def parse_options() -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="bench", description=summary)
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds to take the median of (5; with --quick 1)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work: shows that it runs, proves nothing")
    parser.add_argument("--only", action="append", metavar="NAME", help="rows with NAME in their name; may be repeated")
    parser.add_argument("--dir", type=Path, default=DEFAULT_DIRECTORY, help="where to write; on a disk (.bench)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table and the machine there")
    return parser.parse_args()


# --- measure ---


class JobFailed(Exception):
    """A job ended without rates; the text has its name and the end of what it said."""


def measure(jobs: Sequence[str], rounds: int, scale: float, directory: Path) -> Samples:
    samples: Samples = {}
    for number in range(1, rounds + 1):
        # Back and forth, so that no job always follows the same other one.
        for job in jobs if number % 2 else reversed(jobs):
            for measurement, rate in run_job(job, scale, directory).items():
                samples.setdefault(measurement, []).append(rate)
                print(f"round {number} of {rounds}: {measurement} {rate:,.6g}", file=sys.stderr, flush=True)
    return samples


def run_job(job: str, scale: float, directory: Path) -> dict[str, float]:
    place = tempfile.mkdtemp(prefix=f"{job}-", dir=directory)
    command: list[str | Path] = [sys.executable, TOOLS / "bench_work.py", job, place, str(scale)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(place)
    if done.returncode != 0:
        raise JobFailed(f"{job} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    rates: dict[str, float] = json.loads(done.stdout)
    return rates


def what_is_missing() -> str:
    """Import what the jobs import, in a process of its own as they do; what to do if that fails, or nothing."""
    probe = [sys.executable, "-c", "import bench_work"]
    done = subprocess.run(probe, cwd=TOOLS, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    reason = done.stderr.strip().splitlines()[-1]
    return f"cannot measure: {reason}\nbench: run it as: python3 tools/dev.py bench (or: pip install 'walpool[bench]')"


def complain(text: str) -> int:
    print(f"bench: {text}", file=sys.stderr)
    return 2


# --- report ---

FIGURE_HEADINGS = ["what", "walpool (lowest–highest)", "unit", "aim"]
HEADINGS = ["what", "walpool a second (lowest–highest)", "against", "peer a second", "ratio", "target", "met"]


def cells(row: Row, samples: Samples) -> list[str]:
    own, peer, ratio, met = figures(row, samples)
    target = "–"
    if row.least_ratio is not None:
        target = f"≥ {row.least_ratio:.2f}×"
    elif row.least_rate is not None:
        target = f"≥ {row.least_rate:,.0f}"
    return [
        row.what,
        f"{own:,.0f} ({min(samples[row.own]):,.0f}–{max(samples[row.own]):,.0f})",
        row.peer_name or "–",
        f"{peer:,.0f}" if peer else "–",
        f"{ratio:.2f}×" if ratio else "–",
        target,
        {True: "yes", False: "no", None: "–"}[met],
    ]


def figure_cells(figure: Figure, samples: Samples) -> list[str]:
    values = samples[figure.own]
    median, low, high = (f"{value:,.4g}" for value in (statistics.median(values), min(values), max(values)))
    return [figure.what, f"{median} ({low}–{high})", figure.unit or "–", figure.aim]


def figures(row: Row, samples: Samples) -> tuple[float, float | None, float | None, bool | None]:
    """Median of walpool, median of the peer, the one over the other, and whether the target is met."""
    own = statistics.median(samples[row.own])
    peer = statistics.median(samples[row.peer]) if row.peer else None
    ratio = own / peer if peer else None
    met = None
    if row.least_ratio is not None:
        met = ratio is not None and ratio >= row.least_ratio
    elif row.least_rate is not None:
        met = own >= row.least_rate
    return own, peer, ratio, met


def aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def as_markdown(
    table: Sequence[Sequence[str]],
    figure_table: Sequence[Sequence[str]],
    machine: Mapping[str, str],
    rounds: int,
    quick: bool,
) -> str:
    def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        return ["| " + " | ".join(line) + " |" for line in [headings, ["---"] * len(headings), *rows]]

    how = f"Medians of {rounds} interleaved round{'s' if rounds > 1 else ''}"
    if quick:
        how += " of a tenth of the work (`--quick`: shows that it runs, proves nothing)"
    lines = [
        "; ".join(f"{name} {value}" for name, value in machine.items()) + ".",
        f"{how}; 16-byte keys, 100-byte values.",
        "",
        *markdown(HEADINGS, table),
        "",
        *markdown(FIGURE_HEADINGS, figure_table),
    ]
    return "\n".join(lines) + "\n"


def as_json(rows: Iterable[Row], samples: Samples, machine: Mapping[str, str], quick: bool) -> dict[str, object]:
    def one(row: Row) -> dict[str, object]:
        own, peer, ratio, met = figures(row, samples)
        targets = {"least_ratio": row.least_ratio, "least_per_s": row.least_rate}
        measured = {"walpool_per_s": own, "peer_per_s": peer, "ratio": ratio, "met": met}
        return {"name": row.name, "what": row.what, "against": row.peer_name or None, **measured, **targets}

    return {"machine": dict(machine), "quick": quick, "rows": [one(row) for row in rows], "samples_per_s": samples}


# --- the machine ---


def describe_machine(file_system: str) -> dict[str, str]:
    return {
        "CPU": f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "file system": file_system,
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "walpool": package_version("walpool"),
        "py-lmdb": package_version("lmdb"),
        "SQLite": sqlite3.sqlite_version,
        "date": datetime.now(UTC).date().isoformat(),
    }


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def file_system_of(path: Path) -> str:
    """The type of the mount that holds `path`: of all mounts above it, the longest; of equals, the last mounted."""
    place = path.resolve()
    found = (0, "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind = line.split()[:3]
        if place.is_relative_to(mount) and len(mount) >= found[0]:
            found = (len(mount), kind)
    return found[1]


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
